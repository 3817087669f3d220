"""What a source is: the names, labels and classes of its images, and where the bytes of each are, in few bytes an image."""

from __future__ import annotations

import errno
import hashlib
import operator
import os
import stat
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_TOGETHER = 1000  # names that are decoded at once


class Place(NamedTuple):
    """A byte range of a file: `length` bytes from `offset`, or all that follows when `length` is None."""

    path: str
    offset: int = 0
    length: int | None = None

    def read(self) -> bytes:
        """Return the bytes; raises OSError when they cannot be read, or when the file ends before them."""
        # without waiting: a pipe has nobody that writes to it
        with open(self.path, "rb", buffering=0, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.ENXIO, "is a device, pipe or socket", self.path)
            if self.length is None:
                return file.read()
            data = os.pread(file.fileno(), self.length, self.offset)
            while len(data) < self.length:
                more = os.pread(file.fileno(), self.length - len(data), self.offset + len(data))
                if not more:
                    raise OSError(errno.EIO, f"ends at byte {self.offset + len(data):,}, before what is to be read", self.path)
                data += more
            return data


class Column:
    """Integers from 0 up, built by appending: four bytes each, and eight once one needs them."""

    def __init__(self) -> None:
        self._values = array("I")

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, number: int) -> int:
        return self._values[number]

    def append(self, value: int) -> None:
        """Take one more; raises OverflowError below 0."""
        try:
            self._values.append(value)
        except OverflowError:
            self._values = array("Q", self._values)
            self._values.append(value)


class Names(Sequence[str]):
    """Names as one buffer, built by appending: millions cost their bytes and five more each, not a Python string each."""

    def __init__(self, names: Iterable[str | bytes] = ()) -> None:
        self._buffer = bytearray()
        self._ends = Column()
        for name in names:
            self.append(name)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> str:  # type: ignore[override]  # no slices: they would make lists of strings
        number = operator.index(number)
        if not -len(self) <= number < len(self):
            raise IndexError(f"name {number} of {len(self)}")
        number %= len(self)
        start = self._ends[number - 1] if number else 0
        return os.fsdecode(bytes(self._buffer[start : self._ends[number] - 1]))

    def __iter__(self) -> Iterator[str]:
        start = 0
        for first in range(0, len(self), _TOGETHER):  # one by one they take eight times as long
            end = self._ends[min(first + _TOGETHER, len(self)) - 1]
            yield from os.fsdecode(bytes(self._buffer[start : end - 1])).split("\0")
            start = end

    def append(self, name: str | bytes) -> None:
        """Take one more name, which holds no NUL."""
        self._buffer += name if isinstance(name, bytes) else os.fsencode(name)
        self._buffer += b"\0"
        self._ends.append(len(self._buffer))

    def extend(self, other: Names) -> None:
        """Take all of the `other` names."""
        base = len(self._buffer)
        self._buffer += other._buffer
        for number in range(len(other)):
            self._ends.append(base + other._ends[number])

    @property
    def encoded(self) -> bytearray:
        """All names as the file system has them, each with a NUL behind it; not to be changed."""
        return self._buffer


class Ranges:
    """Places in few files, built by appending: twelve bytes each; `ranges[i]` is a Place."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._starts: list[int] = []  # the first range in the path of the same number
        self._offsets = Column()
        self._lengths = Column()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, number: int) -> Place:
        path = self._paths[bisect_right(self._starts, number) - 1]
        return Place(path, self._offsets[number], self._lengths[number])

    def append(self, place: Place) -> None:
        """Take one more place, which has a length."""
        if place.length is None:
            raise ValueError(f"{place} is no byte range")
        if not self._paths or self._paths[-1] != place.path:
            self._paths.append(place.path)
            self._starts.append(len(self))
        self._offsets.append(place.offset)
        self._lengths.append(place.length)

    def extend(self, other: Ranges) -> None:
        """Take all of the `other` places."""
        for number in range(len(other)):
            self.append(other[number])


@dataclass(frozen=True, eq=False)
class Source:
    """All images of a source in its own order.

    `names` are what reports call the images; `labels` is (N,) int32; `classes` are the names in label order. The images are
    the files of these names in `folder`, or where `ranges` says that they are in tars. `listed` says that a list names them,
    and not what was found there; `notes` are sentences on what was found and is no part of it.
    """

    folder: str
    names: Names
    labels: np.ndarray
    classes: list[str]
    ranges: Ranges | None = None
    listed: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def packed(self) -> bool:
        """Whether the images lie inside of tars, and are no files of their own."""
        return self.ranges is not None

    def place(self, position: int) -> Place:
        """Return where the bytes of the image at `position` are."""
        if self.ranges is not None:
            return self.ranges[position]
        return Place(os.path.join(self.folder, self.names[position]))

    def paths(self) -> Iterator[str]:
        """Yield the path of every image, in order, where each is a file of its own."""
        below = os.path.join(self.folder, "")
        return (name if name.startswith("/") else below + name for name in self.names)

    def digest(self) -> str:
        """Return the sha256 over names, labels and classes: equal for equal sources, wherever they lie."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels, "<i4").data)
        for name in (*self.classes, ""):
            digest.update(os.fsencode(name) + b"\0")
        digest.update(self.names.encoded)
        return digest.hexdigest()
