"""Several LMDB folders as one data set: what they must have in common, and record i of them all."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from fastirv2.data.dataset import Records, check_classes
from fastirv2.data.lmdb_records import MappedRecords
from fastirv2.errors import DataError


class JoinedRecords(Records):
    """The records of several LMDB folders, one folder's after the other's, in the order given."""

    def __init__(self, path: str, folders: Sequence[MappedRecords]) -> None:
        for pair in combinations(folders, 2):
            _refuse_overlap(*pair)
        forms = sorted({folder.form for folder in folders})
        if len(forms) > 1:
            raise DataError(f"{path} joins encoded and raw images; build an LMDB of the raw ones with fastirv2-build-lmdb")
        classes = check_classes(sorted(folders, key=lambda folder: -len(folder.classes)))
        digest = hashlib.sha256("".join(folder.digest for folder in folders).encode()).hexdigest()
        super().__init__(path, np.concatenate([folder.labels for folder in folders]), classes, digest)
        self._folders = folders
        self.form = folders[0].form
        self._sizes = np.concatenate([folder.sizes for folder in folders])
        self._ends = np.cumsum([len(folder) for folder in folders])
        self._starts = self._ends - [len(folder) for folder in folders]
        self.resizes = tuple(dict.fromkeys(resize for folder in folders for resize in folder.resizes))
        self.warnings = tuple(_missing_parts(folders))

    def __getitem__(self, number: int) -> tuple[memoryview | bytes, int]:
        """Return the encoded image and the label of record `number`."""
        folder = self._which(number)
        return self._folders[folder][number - self._starts[folder]]

    def feed(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Return views of the folders' maps as uint8 arrays."""
        views: list[np.ndarray] = [np.empty(0, np.uint8)] * len(numbers)
        for folder, places, own in self._divided(numbers):
            for place, view in zip(places.tolist(), folder.feed(own), strict=True):
                views[place] = view
        return views

    @property
    def sizes(self) -> np.ndarray:
        """From the folders' indexes."""
        return self._sizes

    @property
    def names(self) -> list[str] | None:
        """The folders' together, where all have them."""
        parts = [folder.names for folder in self._folders]
        return None if None in parts else list(itertools.chain.from_iterable(parts))

    @property
    def data_bytes(self) -> int:
        """The folders' together."""
        return sum(folder.data_bytes for folder in self._folders)

    def read_ahead(self, numbers: np.ndarray) -> None:
        """Have the kernel read the records into the page cache."""
        for folder, _, own in self._divided(numbers):
            folder.read_ahead(own)

    def where(self, number: int) -> str:
        """Name the record by its folder and key."""
        folder = self._which(number)
        return self._folders[folder].where(number - self._starts[folder])

    def lost(self) -> str:
        """Say so when a folder's file has been cut."""
        return next(filter(None, (folder.lost() for folder in self._folders)), "")

    def _divided(self, numbers: np.ndarray) -> Iterator[tuple[MappedRecords, np.ndarray, np.ndarray]]:
        """Yield each folder, the places in `numbers` that it holds, and its own numbers of those records."""
        which = self._which(numbers)
        for folder in np.unique(which).tolist():
            places = np.flatnonzero(which == folder)
            yield self._folders[folder], places, numbers[places] - self._starts[folder]

    def _which(self, numbers: np.ndarray | int) -> np.ndarray:
        """Return the folder, counted from 0, that each record is in."""
        return np.searchsorted(self._ends, numbers, side="right")


def _refuse_overlap(one: MappedRecords, other: MappedRecords) -> None:
    """Raise DataError when two LMDBs hold the same images: the same part twice, or parts of different divisions."""
    if one.digest == other.digest:
        raise DataError(f"{one.path} and {other.path} hold the same records; give each LMDB once")
    if one.build is None or other.build is None or one.build.source != other.build.source:
        return
    if (one.build.seed, one.build.limit, one.build.parts) != (other.build.seed, other.build.limit, other.build.parts):
        raise DataError(
            f"{one.path} and {other.path} were built from the same images, but not as parts of one order: {one.build} and "
            f"{other.build}; build all parts with the same --seed, --limit and number of parts"
        )
    if one.build.part == other.build.part:
        raise DataError(f"{one.path} and {other.path} are the same part of the same images: {one.build}; give each part once")


def _missing_parts(folders: Sequence[MappedRecords]) -> list[str]:
    """Return a sentence for each source of which not every part is there."""
    held: dict[tuple[str, int], set[int]] = {}
    for folder in folders:
        if folder.build is not None:
            held.setdefault((folder.build.source, folder.build.parts), set()).add(folder.build.part)
    sentences = []
    for (_, parts), present in held.items():
        missing = sorted(set(range(1, parts + 1)) - present)
        if missing:
            names = ", ".join(f"{part}/{parts}" for part in missing)
            paths = " and ".join(folder.path for folder in folders)
            sentences.append(f"of the images that {paths} were built from, part {names} is missing")
    return sentences
