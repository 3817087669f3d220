"""Text files that a user gives: lists of "path label" lines, and --classes files."""

from __future__ import annotations

import codecs
import os
from array import array
from collections.abc import Iterator
from itertools import count

import numpy as np

from fastirv2.building.listing import Names, Source
from fastirv2.errors import DataError

MAX_CLASSES = 1_000_000
_DIGITS = len(str(MAX_CLASSES))
_LONGEST_LINE = 1 << 16
_LMDB = b"\xde\xc0\xef\xbe"  # its file's bytes 16 to 19, LMDB's MDB_MAGIC
_LOOKED_UP = 1000  # a wrong --root shows at once; millions of look-ups on a network's file system take an hour


class BadLineError(ValueError):
    """A line makes no sense; the text is the reason, without the file and the number of the line."""


def read_lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Yield every line with its number, from 1, without the white space around it and a byte order mark.

    Raises DataError for a file that cannot be read or is no text.
    """
    try:
        with open(path, "rb") as file:
            for number in count(1):
                line = file.readline(_LONGEST_LINE)
                if not line:
                    return
                if b"\0" in line or len(line) == _LONGEST_LINE:
                    raise DataError(f"{path}, line {number} is no text" if line[16:20] != _LMDB else _lmdb_file(path))
                yield number, (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).strip()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _lmdb_file(path: str) -> str:
    if os.path.basename(path) == "data.mdb":
        return f"{path} is an LMDB's file: give the folder that it lies in"
    return f"{path} is an LMDB in one file: name it data.mdb in a folder of its own, and give that folder"


def read_filled_lines(path: str) -> Iterator[tuple[int, str]]:
    """Yield every line, decoded, with its number. Raises DataError for a blank one that is not at the end."""
    blank = 0
    for number, line in read_lines(path):
        if line and blank:
            raise DataError(f"{path}, line {blank} is empty; blank lines may stand at the end only")
        if line:
            yield number, os.fsdecode(line)
        else:
            blank = blank or number


def read_classes(path: str) -> list[str]:
    """Return the names in a --classes file: a line each, blank lines only at its end. Raises DataError."""
    first: dict[str, int] = {}
    for number, name in read_filled_lines(path):
        if name in first:
            raise DataError(f"{path}, line {number}: class '{name}' is on line {first[name]} already")
        first[name] = number
    if not first:
        raise DataError(f"{path} is empty; it needs the name of a class in every line")
    return list(first)


def open_list(path: str, root: str, classes: list[str] | None) -> Source:
    """Return the images of a list of "path label" lines.

    The paths are relative to `root`; without `classes` the labels name themselves. Only the first thousand files are looked
    up. Raises DataError, naming the line, for one that makes no sense.
    """
    names, labels, hashes, files = Names(), array("i"), array("q"), _Files(root)
    for number, line in read_lines(path):
        if not line:
            continue
        try:
            name, label = _parse_line(line)
            if classes is not None and label >= len(classes):
                raise BadLineError(f"label {label} is not among the {len(classes):,} names of the --classes file")
            name = files.meant(name)
        except BadLineError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        names.append(name)
        labels.append(label)
        hashes.append(hash(name.removeprefix(b"./")))
    if not labels:
        raise DataError(f"{path} lists no images; it needs lines of 'path label'")
    if classes is None:
        classes = [str(label) for label in range(max(labels) + 1)]
    numbers = np.frombuffer(labels, np.int32)
    notes = _of_two_labels(path, names, numbers, np.frombuffer(hashes, np.int64))
    return Source(root, names, numbers, classes, listed=True, notes=notes)


def _of_two_labels(path: str, names: Names, labels: np.ndarray, hashes: np.ndarray) -> tuple[str, ...]:
    """Return a sentence where files are listed with different labels; found by their names' hashes, int64 (n,)."""
    order = np.argsort(hashes, kind="stable")
    alike = (hashes[order][1:] == hashes[order][:-1]) & (labels[order][1:] != labels[order][:-1])
    if not alike.any():
        return ()
    place, count = int(np.flatnonzero(alike)[0]), len(np.unique(hashes[order][1:][alike]))
    one, other = order[place : place + 2].tolist()
    what = "a file" if count == 1 else f"{count:,} files"
    return (f"{path} lists {what} with two labels, as {names[one]} with {labels[one]} and {labels[other]}",)


class _Files:
    """Which file a line's path means: looked up for the first lines, and where quotes leave it open."""

    def __init__(self, root: str) -> None:
        self._root = os.fsencode(root)
        self._lines = 0
        self._unquoted: set[bool] = set()  # what the looked-up paths in quotes meant

    def meant(self, name: bytes) -> bytes:
        """Return the path without quotes around it when only so there is a file; raises BadLineError when there is none."""
        self._lines += 1
        quoted = len(name) > 2 and name[:1] == name[-1:] == b'"'
        if self._lines > _LOOKED_UP and (not quoted or len(self._unquoted) == 1):
            return name[1:-1] if quoted and True in self._unquoted else name
        if quoted and not self._is_file(name) and self._is_file(name[1:-1]):
            self._unquoted.add(True)
            return name[1:-1]
        if self._lines <= _LOOKED_UP:
            if not self._is_file(name):
                path = os.fsdecode(os.path.join(self._root, name))
                raise BadLineError(f"there is no file {path}; paths are relative to the list's folder, in a build to --root")
            if quoted:
                self._unquoted.add(False)
        return name

    def _is_file(self, name: bytes) -> bool:
        return os.path.isfile(os.path.join(self._root, name))


def _parse_line(line: bytes) -> tuple[bytes, int]:
    """Return path and label of a list's line."""
    parts = line.rsplit(None, 1)
    if len(parts) == 2 and parts[1].isdigit() and len(parts[1]) < _DIGITS:  # nearly all are; the rest is for the others
        return parts[0], int(parts[1])
    if len(parts) < 2:
        raise BadLineError(f"'{_shown(line)}' is no 'path label'")
    name, label = parts
    if not label.removeprefix(b"-").isdigit():
        raise BadLineError(f"the label '{_shown(label)}' is no integer; a line is 'path label'")
    digits = label.lstrip(b"0")
    if label.startswith(b"-") or len(digits) >= _DIGITS:
        raise BadLineError(f"the label {_shown(label)} is not between 0 and {MAX_CLASSES - 1:,}; number the classes from 0")
    return name, int(label[-_DIGITS:])


def _shown(text: bytes) -> str:
    """Return a line's text for an error, cut when it is long."""
    return os.fsdecode(text if len(text) <= 200 else text[:200] + b"...")
