"""Tars read where they lie: their headers become folders whose files are byte ranges, and nothing is unpacked."""

from __future__ import annotations

import sys
import tarfile
import threading
import time
from collections.abc import Hashable, Iterator

from fastirv2.building.folders import Contents, Folder
from fastirv2.building.listing import Column, Names, Place
from fastirv2.building.tar_headers import members

_MOST_LINKS = 40  # that lead to one file, as the kernel has it
_NOWHERE = "/"  # what lies outside of the tar


class ContentsProgress:
    """Says on stderr how far the reading of a table of contents is: after three seconds, and then every ten."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._due = time.monotonic() + 3
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Print the text if it is time to."""
        with self._lock:
            if (now := time.monotonic()) >= self._due:
                self._due = now + 10
                print(f"reading the table of contents of {self._path}: {text}", file=sys.stderr, flush=True)


class TarFolder(Folder):
    """A folder inside of the tar at `path`; the tar's members are added to it in their order, and the last of a name counts."""

    def __init__(self, path: str, where: str, parent: TarFolder | None = None) -> None:
        self.where = where
        self._path = path
        self._parent = parent
        self._folders: dict[str, TarFolder] = {}
        self._names, self._offsets, self._lengths = Names(), Column(), Column()
        self._links: dict[int, str] = {}
        self._rows: dict[str, int] | None = None

    def below(self, name: str) -> TarFolder:
        """Return the folder of this name, made if it is not there yet."""
        if name not in self._folders:
            self._folders[name] = TarFolder(self._path, f"{self.where}/{name}", self)
        return self._folders[name]

    def find(self, path: str) -> TarFolder | None:
        """Return the folder at a path, None when there is none yet."""
        here: TarFolder | None = self
        for part in _parts(path):
            here = here._folders.get(part) if here else None
        return here

    def add(self, name: str, offset: int, length: int) -> None:
        """Take a file: a byte range of the tar."""
        if self._rows is not None:
            self._rows[name] = len(self._names)
        self._names.append(name)
        self._offsets.append(offset)
        self._lengths.append(length)

    def add_link(self, name: str, target: str) -> None:
        """Take a symbolic link; its `target` may come later."""
        self._links[len(self._names)] = target
        self.add(name, 0, 0)

    def add_hard_link(self, name: str, target: TarFolder | None, target_name: str) -> None:
        """Take another name of what is called `target_name` in the folder `target` by now."""
        row = target._row(target_name) if target else None
        if target is None or row is None:
            self.add_link(name, _NOWHERE)
        elif row in target._links:
            self.add_link(name, target._links[row])
        else:
            self.add(name, target._offsets[row], target._lengths[row])

    def read(self) -> Contents:
        """Return what lies in it. A link to what the tar does not hold is a file that cannot be opened, as in a folder."""
        rows = {name: row for row, name in enumerate(self._names)}
        repeated = (name for row, name in enumerate(self._names) if rows[name] != row) if len(rows) < len(self._names) else ()
        folders: dict[str, Folder] = {name: below for name, below in self._folders.items() if not name.startswith(".")}
        files = {}
        for name in sorted(rows):
            if name.startswith(".") or name in self._folders:
                continue
            found = self._at(rows[name], iter(range(_MOST_LINKS)))
            if isinstance(found, TarFolder):
                folders[name] = found
            else:
                files[name] = found or Place(f"{self._path} (without what a link in it leads to)", 0, 0)
        return Contents(dict(sorted(folders.items())), files, frozenset(repeated))

    def identity(self) -> Hashable:
        """Return the object's own identity."""
        return id(self)

    def _row(self, name: str) -> int | None:
        """Return the row of the last file or link of this name."""
        if self._rows is None:
            self._rows = {known: row for row, known in enumerate(self._names)}
        return self._rows.get(name)

    def _at(self, row: int, budget: Iterator[int]) -> TarFolder | Place | None:
        """Return what a row means, None for a link that leads nowhere; every link takes one from the budget."""
        if row not in self._links:
            return Place(self._path, self._offsets[row], self._lengths[row])
        target = self._links[row]
        here: TarFolder | Place | None = self
        if next(budget, None) is None or target.startswith("/"):
            return None
        for part in target.split("/"):
            if not isinstance(here, TarFolder):
                return None
            if part == "..":
                here = here._parent
            elif part not in ("", "."):
                here = here._entry(part, budget)
        return here

    def _entry(self, name: str, budget: Iterator[int]) -> TarFolder | Place | None:
        """Return the folder or file of this name, links followed."""
        if name in self._folders:
            return self._folders[name]
        row = self._row(name)
        return None if row is None else self._at(row, budget)


def read_tar(tar: Place, title: str, progress: ContentsProgress | None = None) -> TarFolder:
    """Return the uppermost folder of a tar that is a file or lies in one; `title` is what errors call it.

    Raises DataError for a tar that cannot be read, is cut off, or is damaged.
    """
    root = TarFolder(tar.path, title)
    known: dict[str, TarFolder] = {}
    for count, member in enumerate(members(tar, title), 1):
        _add(root, known, member, tar.offset)
        if progress and count % 256 == 0:
            progress.say(f"{count:,} members in {member.offset / 1e9:.1f} GB")
    return root


def _add(root: TarFolder, known: dict[str, TarFolder], member: tarfile.TarInfo, offset: int) -> None:
    """Put a member of a tar that begins at `offset` where its name says; devices are left out."""
    if member.isdir() or member.name.endswith("/"):
        _folder(root, known, member.name)
        return
    path, _, name = member.name.rpartition("/")
    folder = _folder(root, known, path)
    if member.isreg():
        folder.add(name, offset + member.offset_data, member.size)
    elif member.issym():
        folder.add_link(name, member.linkname)
    elif member.islnk():
        path, _, target = member.linkname.rpartition("/")
        folder.add_hard_link(name, root.find(path), target)


def _folder(root: TarFolder, known: dict[str, TarFolder], path: str) -> TarFolder:
    """Return the folder at a path as members give it, made if it is not there yet."""
    if path not in known:
        folder = root
        for part in _parts(path):
            folder = folder.below(part)
        known[path] = folder
    return known[path]


def _parts(path: str) -> list[str]:
    """Return the folders of a member's path: like tar, from the top on, and behind the last ".."."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return parts[len(parts) - parts[::-1].index("..") :] if ".." in parts else parts
