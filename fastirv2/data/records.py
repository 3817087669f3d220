"""Records by number: the bytes of an image and its label, from LMDB folders, a folder of class folders, or a file list."""

from __future__ import annotations

import hashlib
import os

import numpy as np

from fastirv2.building.listing import Names
from fastirv2.building.sources import Source, open_source
from fastirv2.data.dataset import Records
from fastirv2.data.file_sizes import read_sizes
from fastirv2.data.joined import JoinedRecords
from fastirv2.data.lmdb_records import CaffeRecords, LmdbRecords, MappedRecords
from fastirv2.errors import DataError


class FileRecords(Records):
    """Images as files; the graph reads them with its own threads."""

    form = "files"

    def __init__(self, path: str, source: Source) -> None:
        digest, self._data_bytes = _digest(path, source)
        super().__init__(path, source.labels.astype(np.int64), source.classes, digest)
        self._source, self.warnings = source, source.notes
        self._sizes: np.ndarray | None = None
        self._headless: frozenset[int] = frozenset()

    def __getitem__(self, number: int) -> tuple[bytes, int]:
        """Return the file's bytes and the label."""
        return self._source.place(number).read(), int(self.labels[number])

    def feed(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Return the files' paths as uint8 arrays."""
        return [np.frombuffer(os.fsencode(self._source.place(n).path), np.uint8) for n in numbers.tolist()]

    def read_ahead(self, numbers: np.ndarray) -> None:
        """Do nothing: the graph's threads read the files while others decode."""

    @property
    def sizes(self) -> np.ndarray:
        """Read from the files' headers when first asked for; a file without one is given that of another."""
        if self._sizes is None:
            self._sizes = read_sizes(lambda number: self._source.place(number).path, len(self), self.digest)
            headless = self._sizes[:, 0] == 0
            self._headless = frozenset(np.flatnonzero(headless).tolist())
            self._sizes[headless] = 1 if headless.all() else self._sizes[~headless][0]
        return self._sizes

    @property
    def headless(self) -> frozenset[int]:
        """Found when the sizes are read."""
        _ = self.sizes
        return self._headless

    @property
    def names(self) -> Names:
        """The files' paths below the data set's folder, or as a list has them."""
        return self._source.names

    @property
    def data_bytes(self) -> int:
        """The files' sizes together."""
        return self._data_bytes

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
    if source.packed:
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


def _digest(path: str, source: Source) -> tuple[str, int]:
    """Digest names, labels, classes and sizes, and add up the sizes; it also makes sure that every file is there."""
    digest, total = hashlib.sha256(source.digest().encode()), 0
    for file in source.paths():
        try:
            size = os.stat(file).st_size
        except OSError as error:
            raise DataError(f"{file}, listed by {path}, cannot be read: {error.strerror}") from error
        digest.update(b"%d," % size)
        total += size
    return digest.hexdigest(), total
