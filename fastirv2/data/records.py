"""Records by number: the bytes of an image and its label, from LMDB folders, a folder of class folders, or a file list."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from fastirv2.building.sources import Source, open_source
from fastirv2.data.dataset import Records
from fastirv2.data.joined import JoinedRecords
from fastirv2.data.lmdb_records import CaffeRecords, LmdbRecords, MappedRecords
from fastirv2.errors import DataError


class FileRecords(Records):
    """Images as files; the graph reads them with its own threads."""

    form = "files"

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
        path: an LMDB folder made by fastirv2-build-lmdb or another writer of Caffe's Datum, several joined by commas, a
            folder of class folders, or a list of "path label" lines.

    Raises:
        DataError: nothing is there, it is empty, cut short, from an unfinished build, or of another format.
    """
    path = os.fspath(path)
    if "," in path and not os.path.exists(path):
        return _open_joined(path)
    path = path.rstrip("/") or "/"
    if not os.path.exists(path):
        partial = f"{path}.partial"
        hint = f"; {partial} is an unfinished build: give its command again" if os.path.isdir(partial) else ""
        raise DataError(f"{path} does not exist{hint}")
    if any(os.path.exists(os.path.join(path, name)) for name in ("dataset.json", "index.npy", "journal")):
        return LmdbRecords(path)
    if os.path.exists(os.path.join(path, "data.mdb")):
        return CaffeRecords(path)
    source = open_source(path)
    if getattr(source, "packed", False):
        raise DataError(f"{path}: images in tars are not read in training; build an LMDB of them with fastirv2-build-lmdb")
    return FileRecords(path, source)


def _open_joined(path: str) -> Records:
    """Open LMDB folders whose paths are joined by commas."""
    folders: list[MappedRecords] = []
    for part in path.split(","):
        if not part:
            raise DataError(f"{path}: there is nothing before, after or between commas; give LMDB folders, a comma between two")
        records = open_records(part)
        if not isinstance(records, MappedRecords):
            raise DataError(f"{part}, one of several joined by commas, is no LMDB folder; only those can be joined")
        folders.append(records)
    return JoinedRecords(path, folders)


def resize_warnings(records: Records, resize: int) -> list[str]:
    """Return what is lost when records as they are stored are warped to `resize`² pixels: a sentence each."""
    sentences = []
    for stored in records.resizes:
        sides = [int(side) for side in stored.removeprefix("short:").split("x") if side.isdigit()]
        if sides and min(sides) < resize:
            sentences.append(
                f"{records.path} was built with --resize {stored}: its images are enlarged to {resize} pixels; build it with "
                f"at least {resize}, or train with a smaller --input.resize"
            )
    if len(records.resizes) > 1:
        sentences.append(f"{records.path} joins LMDBs built with different --resize: {' and '.join(records.resizes)}")
    return sentences


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
