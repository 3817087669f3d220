"""Where images come from: each source becomes a list of byte ranges in files, with a name and a label each."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fastirv2.errors import DataError, UsageError, nearest


class Place(NamedTuple):
    """A byte range of a file: `length` bytes from `offset`, or all that follows when `length` is None."""

    path: str
    offset: int = 0
    length: int | None = None

    def read(self) -> bytes:
        """Return the bytes; raises OSError when they cannot be read."""
        with open(self.path, "rb", buffering=0) as file:
            if self.offset:
                file.seek(self.offset)
            return file.read() if self.length is None else file.read(self.length)


@dataclass(frozen=True)
class Source:
    """All images of a source in its own order.

    `names` are relative to `folder` and what reports call the images; `labels` is (N,) int32; `classes` are the names in
    label order.
    """

    folder: str
    names: list[str]
    labels: np.ndarray
    classes: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def place(self, position: int) -> Place:
        """Return where the bytes of the image at `position` are."""
        return Place(os.path.join(self.folder, self.names[position]))

    def digest(self) -> str:
        """Return the sha256 over names, labels and classes: equal for equal sources, wherever they lie."""
        digest = hashlib.sha256(self.labels.astype("<i4").tobytes())
        for name in (*self.classes, "", *self.names):
            digest.update(os.fsencode(name) + b"\0")
        return digest.hexdigest()


def open_source(path: str, root: str | None = None, classes_file: str | None = None) -> Source:
    """Return the images of a folder of class folders, or of a list of "path label" lines.

    `root` is the folder that the paths of a list are relative to (the list's own unless given); `classes_file` holds the
    classes' names, a line each, in label order. Raises DataError for anything that is missing or makes no sense, and
    UsageError for a `root` that goes with no list.
    """
    classes = read_classes(classes_file) if classes_file else None
    if os.path.isdir(path):
        if root is not None:
            raise UsageError(f"--root goes with a list file, but {path} is a folder; leave it out")
        return _open_folder(path, classes)
    if os.path.isfile(path):
        return _open_list(path, root or os.path.dirname(path) or ".", classes)
    raise DataError(f"{path} does not exist; give a folder of class folders, or a list of 'path label' lines")


def read_classes(path: str) -> list[str]:
    """Return the names in a --classes file: a line each, blank lines only at its end. Raises DataError."""
    names = [line.strip() for line in _read_text(path).rstrip().split("\n")]
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise DataError(f"{path}, line {number} is empty; every line must be the name of a class")
        if name in first:
            raise DataError(f"{path}, line {number}: class '{name}' is on line {first[name]} already")
        first[name] = number
    return names


def _open_folder(path: str, classes: list[str] | None) -> Source:
    """Return the images of a folder of class folders."""
    folders, files = _list_folder(path)
    if not folders:
        if files:
            raise DataError(
                f"{path} holds {len(files):,} files but no class folders; put every class's images into a folder of its own, "
                "or give a list of 'path label' lines"
            )
        raise DataError(f"{path} holds no images: it is empty")
    classes = classes if classes is not None else folders
    number = {name: label for label, name in enumerate(classes)}
    names: list[str] = []
    labels: list[int] = []
    for name in folders:
        if name not in number:
            raise DataError(f"the class folder {os.path.join(path, name)} is not in the --classes file{nearest(name, classes)}")
        found = list(_walk(path, name, set()))
        names += found
        labels += [number[name]] * len(found)
    if not names:
        raise DataError(f"{path} holds no images: its {len(folders):,} class folders are empty")
    return Source(path, names, np.array(labels, np.int32), classes)


def _walk(root: str, folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yield the files at any depth below `root`/`folder`, sorted, relative to `root`; a folder linked twice comes once."""
    path = os.path.join(root, folder)
    folders, files = _list_folder(path)
    status = os.stat(path)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    for name in files:
        yield f"{folder}/{name}"
    for name in folders:
        yield from _walk(root, f"{folder}/{name}", seen)


def _list_folder(path: str) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, sorted, without hidden ones."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise DataError(f"the folder {path} cannot be read: {error.strerror}") from error
    return sorted(folders), sorted(files)


def _open_list(path: str, root: str, classes: list[str] | None) -> Source:
    """Return the images of a list file."""
    names: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        name, label = _parse_line(line, where)
        if classes is not None and label >= len(classes):
            raise DataError(f"{where}: label {label} is not among the {len(classes):,} names of the --classes file")
        if not os.path.isfile(os.path.join(root, name)):
            raise DataError(f"{where}: there is no file {os.path.join(root, name)}; is --root the folder of its path?")
        names.append(name)
        labels.append(label)
    if not names:
        raise DataError(f"{path} lists no images; it needs lines of 'path label'")
    if classes is None:
        classes = [str(label) for label in range(max(labels) + 1)]
    return Source(root, names, np.array(labels, np.int32), classes)


def _parse_line(line: str, where: str) -> tuple[str, int]:
    """Return path and label of a list's line; `where` names it in errors."""
    parts = line.strip().rsplit(None, 1)
    if len(parts) < 2:
        raise DataError(f"{where} is '{line.strip()}', but 'path label' is needed")
    name, label = parts
    if not (label.isascii() and label.removeprefix("-").isdigit()):
        raise DataError(f"{where}: the label '{label}' is no integer; a line is 'path label'")
    if label.startswith("-") or int(label) >= 1_000_000:
        raise DataError(f"{where}: the label {label} is not between 0 and 999,999; number the classes from 0")
    return name, int(label)


def _read_text(path: str) -> str:
    """Return a text file's content with names as the file system has them. Raises DataError."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(1 << 16)
            if b"\0" in beginning:
                hint = "; give the folder of an LMDB, not its file" if os.path.basename(path) == "data.mdb" else ""
                raise DataError(f"{path} is no text file, but a list has lines of 'path label'{hint}")
            return os.fsdecode(beginning + file.read()).replace("\r\n", "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
