"""Records by number: the bytes of an image and its label, from an LMDB folder, a folder of class folders, or a file list."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastirv2.building.sources import Source, open_source
from fastirv2.data.lmdb_file import check_size
from fastirv2.errors import DataError

FORMAT_VERSION = 1


class Records(ABC):
    """A fixed sequence of images with labels; `records[i]` is (bytes of the encoded image, label).

    `labels` is int64 (count,), `classes` the names in label order, `digest` the same for the same data, `files` whether
    `feed` gives paths instead of bytes.
    """

    files: bool = False

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


class LmdbRecords(Records):
    """An LMDB folder of fastirv2-build-lmdb, mapped whole: a record is a view of the map at its place in `index.npy`."""

    def __init__(self, path: str) -> None:
        about = _read_about(path)
        meta = check_size(path)
        index = _read_index(path, about["count"])
        if not len(index):
            raise DataError(f"{path} holds no records; build it again from images that can be read")
        super().__init__(path, index["label"].astype(np.int64), about["classes"], about["digest"])
        ends = index["offset"] + index["length"]
        if int(ends.max()) > meta.pages * meta.page_size:
            raise DataError(f"{path}/index.npy points past the end of data.mdb; run fastirv2-build-lmdb --check {path}")
        self._offsets = index["offset"].astype(np.int64)
        self._lengths = index["length"].astype(np.int64)
        with open(os.path.join(path, "data.mdb"), "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)

    def __getitem__(self, number: int) -> tuple[memoryview, int]:
        """Return a view of the encoded image, without a copy, and the label."""
        start = self._offsets[number]
        return self._view[start : start + self._lengths[number]], int(self.labels[number])

    def feed(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Return views of the map as uint8 arrays."""
        places = zip(self._lengths[numbers].tolist(), self._offsets[numbers].tolist(), strict=True)
        return [np.frombuffer(self._view, np.uint8, length, offset) for length, offset in places]

    def where(self, number: int) -> str:
        """Name the record by its key."""
        return f"record {number:08d} of {self.path}"


class FileRecords(Records):
    """Images as files; the graph reads them with its own threads."""

    files = True

    def __init__(self, path: str, source: Source) -> None:
        super().__init__(path, source.labels.astype(np.int64), source.classes, _digest(path, source))
        self._source = source

    def __getitem__(self, number: int) -> tuple[bytes, int]:
        """Return the file's bytes and the label."""
        return self._source.place(number).read(), int(self.labels[number])

    def feed(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Return the files' paths as uint8 arrays."""
        return [np.frombuffer(os.fsencode(self._source.place(n).path), np.uint8) for n in numbers.tolist()]

    def where(self, number: int) -> str:
        """Name the record by its path."""
        return self._source.place(number).path


def open_records(path: str | os.PathLike[str]) -> Records:
    """Open a data set.

    Args:
        path: an LMDB folder made by fastirv2-build-lmdb, a folder of class folders, or a list of "path label" lines.

    Raises:
        DataError: nothing is there, it is empty, cut short, from an unfinished build, or of another format.
    """
    path = os.fspath(path).rstrip("/") or "/"
    if not os.path.exists(path):
        partial = f"{path}.partial"
        hint = f"; {partial} is an unfinished build: give its command again" if os.path.isdir(partial) else ""
        raise DataError(f"{path} does not exist{hint}")
    if any(os.path.exists(os.path.join(path, name)) for name in ("data.mdb", "dataset.json")):
        return LmdbRecords(path)
    return FileRecords(path, open_source(path))


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


def _read_about(path: str) -> dict[str, Any]:
    """Return dataset.json, after making sure that it says what is needed."""
    file = Path(path) / "dataset.json"
    if not file.exists():
        if path.endswith(".partial"):
            raise DataError(f"{path} is an unfinished build; give its fastirv2-build-lmdb command again, it goes on from there")
        raise DataError(f"{path} is an LMDB without dataset.json: it was not made by fastirv2-build-lmdb; build it with that")
    try:
        about = json.loads(file.read_text())
        version = about["format_version"]
        needed = {key: about[key] for key in ("count", "classes", "digest")} if version == FORMAT_VERSION else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be understood ({error!r}); copy the folder again or build it anew") from error
    if not needed:
        raise DataError(f"{file} is of format {version}, this program reads format {FORMAT_VERSION}; build it anew")
    return needed


def _read_index(path: str, count: int) -> np.ndarray:
    file = Path(path) / "index.npy"
    try:
        index = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DataError(f"{file} cannot be read ({error}); copy the folder again or build it anew") from error
    if index.ndim != 1 or index.dtype.names is None or not {"offset", "length", "label"} <= set(index.dtype.names):
        raise DataError(f"{file} is no index of fastirv2-build-lmdb; copy the folder again or build it anew")
    if len(index) != count:
        raise DataError(
            f"{file} holds {len(index):,} records but dataset.json says {count:,}: the copy is incomplete; "
            f"run fastirv2-build-lmdb --check {path}"
        )
    return index


def _digest(path: str, source: Source) -> str:
    """Digest names, labels, classes and sizes; it also makes sure that every file is there."""
    digest = hashlib.sha256(source.digest().encode())
    for number in range(len(source)):
        place = source.place(number)
        try:
            digest.update(b"%d," % os.stat(place.path).st_size)
        except OSError as error:
            raise DataError(f"{place.path}, listed by {path}, cannot be read: {error.strerror}") from error
    return digest.hexdigest()
