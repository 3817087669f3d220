"""What every data set is to those that read it: records by number, with labels and classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from fastirv2.errors import DataError


class Records(ABC):
    """A fixed sequence of images with labels; `records[i]` is (bytes of the encoded image, label).

    `labels` is int64 (count,), `classes` the names in label order, `digest` the same for the same data, `form` what `feed`
    gives ("encoded" images, "files": their paths, "planes": raw ones in the order blue, green, red), `resizes` what the
    images were stored with (none, WxH or short:N; several when several LMDBs are joined), `warnings` what a user should
    know before training on them.
    """

    form: Literal["encoded", "files", "planes"] = "encoded"
    resizes: tuple[str, ...] = ("none",)
    warnings: tuple[str, ...] = ()

    def __init__(self, path: str, labels: np.ndarray, classes: list[str], digest: str) -> None:
        self.path = path
        self.labels = labels
        self.classes = classes
        self.digest = digest
        if int(labels.max()) >= len(classes) or int(labels.min()) < 0:
            worst = int(labels.max() if labels.min() >= 0 else labels.min())
            raise DataError(f"{path} holds the label {worst}, but names {len(classes)} classes; build it anew")

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def __getitem__(self, number: int) -> tuple[memoryview | bytes, int]:
        """Return the encoded image and the label of record `number`."""

    @abstractmethod
    def feed(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Return what a DALI graph is fed for these records: uint8 arrays of encoded images, of paths, or (3, H, W) planes."""

    @property
    @abstractmethod
    def sizes(self) -> np.ndarray:
        """Height and width in pixels of each image as it is seen upright: uint16 (count, 2)."""

    @property
    @abstractmethod
    def data_bytes(self) -> int:
        """Bytes of all images as they are stored."""

    @property
    def headless(self) -> frozenset[int]:
        """The records that are no images by their first bytes, which DALI must not be given: it may crash in a large batch."""
        return frozenset()

    @property
    def names(self) -> Sequence[str] | None:
        """What the images were called where they came from, by record; None where that is not known."""
        return None

    @abstractmethod
    def read_ahead(self, numbers: np.ndarray) -> None:
        """Tell the storage which records will be asked for soon; returns before they are read."""

    @abstractmethod
    def where(self, number: int) -> str:
        """Name a record for a message."""

    def lost(self) -> str:
        """Return a sentence when what was opened is no longer there as it was, otherwise an empty string."""
        return ""


def check_classes(records: Iterable[Records]) -> list[str]:
    """Return the classes that all the data sets share; raises DataError where they differ.

    Of data sets whose classes have numbers for names, the later ones may lack the last classes of the first.
    """
    first, *others = records
    for other in others:
        fewer = _numbered(first.classes) and _numbered(other.classes) and len(other.classes) < len(first.classes)
        if other.classes != first.classes and not fewer:
            difference = _difference(first.classes, other.classes)
            raise DataError(f"{first.path} and {other.path} have different classes: {difference}")
    return first.classes


def _numbered(classes: list[str]) -> bool:
    """Return whether the classes' names are their labels."""
    return all(name == str(label) for label, name in enumerate(classes))


def _difference(ours: list[str], theirs: list[str]) -> str:
    """Say how two lists of classes differ."""
    advice = "build both with the same --classes file, or give both the same class folders, empty ones too"
    if len(ours) != len(theirs) and _numbered(ours) == _numbered(theirs):
        alone = sorted(set(ours) ^ set(theirs))
        only = f", as '{alone[0]}' is in one alone" if alone else ""
        return f"{len(ours)} and {len(theirs)}{only}; {advice}"
    pairs = enumerate(zip(ours, theirs, strict=False))
    label = next((i for i, pair in pairs if pair[0] != pair[1]), None)
    if label is None:
        return f"{len(ours)} and {len(theirs)}; {advice}"
    return f"label {label} is '{ours[label]}' and '{theirs[label]}'; {advice}"
