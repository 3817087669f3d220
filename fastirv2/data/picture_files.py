"""Images that a user names: as files, folders, or lists."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastirv2.building.folders import DiskFolder, walk
from fastirv2.building.sources import IMAGE_SUFFIXES, no_file
from fastirv2.errors import DataError

_LOOKED_AT = 4096  # bytes by which a list is told from an image


def find_pictures(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the paths of all images that the arguments mean, in their order.

    A folder means the files in it at any depth, as an LMDB is built from them: links followed, hidden names left out. A text
    file means the paths that it lists, a line each, relative to it or to where we are, in quotes or not, each with or without
    a label behind it. All else is an image, there or not, to be found out later.

    Raises:
        DataError: a folder holds no files or cannot be read, or an argument is a pipe or device.
    """
    for argument in arguments:
        if os.path.isdir(argument):
            yield from _in_folder(argument)
        elif os.path.exists(argument) and not os.path.isfile(argument):
            raise no_file(argument)
        elif is_list(argument):
            yield from _listed(argument)
        else:
            yield argument


def _in_folder(folder: str) -> Iterator[str]:
    names = [name for name, _ in walk(DiskFolder(folder))]
    if not names:
        raise DataError(f"{folder} holds no files, which images could be")
    yield from (os.path.join(folder, name) for name in names)


def is_list(path: str) -> bool:
    """Return whether a file is text, and not called an image."""
    if path.lower().endswith(IMAGE_SUFFIXES):
        return False
    try:
        with open(path, "rb") as file:
            beginning = file.read(_LOOKED_AT)
    except OSError:
        return False
    try:
        beginning.decode()
    except UnicodeDecodeError as error:
        if error.start < len(beginning) - 3 or len(beginning) < _LOOKED_AT:  # not a letter that the reading cut
            return False
    return bool(beginning.strip()) and b"\0" not in beginning


def _listed(file: str) -> Iterator[str]:
    folder = os.path.dirname(file)
    for line in Path(file).read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n"):
        if line.strip():
            yield _path_of(line.strip(), folder)


def _path_of(line: str, folder: str) -> str:
    """Return the path of a line, which may end in a label, and be in quotes."""
    parts = line.rsplit(None, 1)
    choices = [line, parts[0]] if len(parts) == 2 and parts[1].isdecimal() else [line]
    choices += [choice[1:-1] for choice in choices if len(choice) > 2 and choice[0] == choice[-1] == '"']
    places = [os.path.join(where, choice) for choice in choices for where in (folder, "")]
    return next(filter(os.path.exists, places), places[0])
