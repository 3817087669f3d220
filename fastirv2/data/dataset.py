"""What every data set is to those that read it: records by number, with labels and classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import numpy as np

from fastirv2.errors import DataError


class Records(ABC):
    """A fixed sequence of images with labels; `records[i]` is (bytes of the encoded image, label).

    `labels` is int64 (count,), `classes` the names in label order, `digest` the same for the same data, `files` whether
    `feed` gives paths instead of bytes, `resizes` what the images were stored with (none, WxH or short:N; several when
    several LMDBs are joined), `warnings` what a user should know before training on them.
    """

    files: bool = False
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
        """Return what a DALI graph is fed for these records: uint8 arrays of encoded images, or of paths."""

    @abstractmethod
    def where(self, number: int) -> str:
        """Name a record for a message."""


def check_classes(records: Iterable[Records]) -> list[str]:
    """Return the classes that all the data sets share, raising DataError where they differ."""
    first, *others = records
    for other in others:
        if other.classes != first.classes:
            difference = _difference(first.classes, other.classes)
            raise DataError(f"{first.path} and {other.path} have different classes: {difference}")
    return first.classes


def _difference(ours: list[str], theirs: list[str]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} and {len(theirs)}; build both with the same --classes file"
    label = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
    return f"label {label} is '{ours[label]}' and '{theirs[label]}'; build both with the same --classes file"
