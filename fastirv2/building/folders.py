"""Folders with images at any depth, on the disk or inside of a tar, and the one order that they are walked in."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from fastirv2.building.listing import Names, Place, Ranges
from fastirv2.errors import DataError


class Contents(NamedTuple):
    """What lies directly in a folder, by name, sorted, hidden names left out.

    `repeated` are the names that a tar holds more than once, of which the last one counts.
    """

    folders: dict[str, Folder]
    files: dict[str, Place]
    repeated: frozenset[str] = frozenset()


class Images(NamedTuple):
    """The images of one class: their names, and their places when they lie in a tar."""

    names: Names
    ranges: Ranges | None


class Folder(ABC):
    """A folder; `where` is what errors call it."""

    where: str

    @abstractmethod
    def read(self) -> Contents:
        """Return what lies in it, links followed; raises DataError when it cannot be read."""

    @abstractmethod
    def identity(self) -> Hashable:
        """Return what tells it from all other folders, by whatever links it was reached."""


class DiskFolder(Folder):
    """A folder on the disk. All that is no folder is a file, also a link to nothing: the build rejects it with the reason."""

    def __init__(self, path: str) -> None:
        self.where = path

    def read(self) -> Contents:
        """Return what lies in it; raises DataError when it cannot be read."""
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(self.where) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):
                        (folders if _is_folder(entry) else files).append(entry.name)
        except OSError as error:
            raise _unreadable(self.where, error) from error
        return Contents(
            {name: DiskFolder(os.path.join(self.where, name)) for name in sorted(folders)},
            {name: Place(os.path.join(self.where, name)) for name in sorted(files)},
        )

    def identity(self) -> Hashable:
        """Return device and number; raises DataError when it is gone."""
        try:
            status = os.stat(self.where)
        except OSError as error:
            raise _unreadable(self.where, error) from error
        return status.st_dev, status.st_ino


def walk(folder: Folder, prefix: str = "") -> Iterator[tuple[str, Place]]:
    """Yield the files at any depth, each with its name behind `prefix`: at each folder its files, then its folders.

    A folder that several links lead to comes once. Raises DataError for a folder that cannot be read.
    """
    seen: set[Hashable] = set()
    left = [(folder, prefix)]
    while left:
        here, path = left.pop()
        identity = here.identity()
        if identity in seen:
            continue
        seen.add(identity)
        contents = here.read()
        for name, place in contents.files.items():
            yield path + name, place
        left += [(below, f"{path}{name}/") for name, below in reversed(contents.folders.items())]


def collect(folder: Folder, prefix: str, *, packed: bool) -> Images:
    """Return the images of `walk`, with their places when they are `packed` in a tar."""
    names, ranges = Names(), Ranges() if packed else None
    for name, place in walk(folder, prefix):
        names.append(name)
        if ranges is not None:
            ranges.append(place)
    return Images(names, ranges)


def holds_files(folder: Folder) -> bool:
    """Return whether there is a file at any depth."""
    return next(walk(folder), None) is not None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a folder or a link to one; a link that leads nowhere is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _unreadable(path: str, error: OSError) -> DataError:
    return DataError(f"the folder {path} cannot be read: {error.strerror}")
