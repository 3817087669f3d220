"""One image: verified by decoding it, made an upright baseline JPEG where it is none, and resized if asked."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
import simplejpeg

from fastirv2.building.jpeg import (
    BadImageError,
    Frame,
    check_size,
    decode,
    decode_reduced,
    encode_jpeg,
    first_line,
    header_size,
    is_reducible,
    is_subsampling,
    mended,
    orientation,
    read_frame,
    verify_jpeg,
)
from fastirv2.building.other_formats import read_other, upright
from fastirv2.building.resize import Resize, Stacked, Stacks, resized
from fastirv2.building.sources import Place
from fastirv2.building.transcode import check_coefficients, to_baseline
from fastirv2.data.datum import around

_HELD_BYTES = 4 << 20  # of files that are read before the first of them is decoded
_STACKS_BYTES = 24 << 20  # of images that wait to be resized together: 42 of 500 × 375 pixels


class Prepared(NamedTuple):
    """An image ready to store: a JPEG's bytes, its size in pixels, and why it was repaired ("" when it was not)."""

    data: bytes
    width: int
    height: int
    repair: str


class Waiting(NamedTuple):
    """An image that is verified and decoded, and to be resized with others of its size to `target` (width, height)."""

    image: Stacked
    target: tuple[int, int]
    repair: str


class Task(NamedTuple):
    """An image to prepare: where its bytes are, and its label."""

    place: Place
    label: int


class Result(NamedTuple):
    """A task's outcome: the Datum (None when rejected), its image's place in it, size in pixels, and what a report says.

    `value` is bytes where the builder gets it; `read` is the number of bytes read from the source, and `errno` why
    it could not be read, 0 when it was.
    """

    value: bytes | pickle.PickleBuffer | None
    header: int
    length: int
    width: int
    height: int
    reason: str
    read: int = 0
    errno: int = 0


@dataclass(frozen=True)
class Preparer:
    """The workers' job: a Task to a Result."""

    resize: Resize
    quality: int

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that are slow to import and that this job will import: to be imported once, before workers are forked."""
        return ("torch",) if self.resize.mode != "none" else ()

    def of_chunk(self, tasks: Sequence[Task], at: Callable[[int], None]) -> Iterator[Result]:
        """Read, prepare and encode images; those of one size are resized together. `at` is told which one is worked on."""
        stacks = _stacks()
        for files in _read(tasks, at):
            stacks.begin(size for _, data in files if (size := self._stacked_size(data)))
            begun = []
            for number, data in files:
                at(number)
                begun.append(self._begin(data, stacks))
            for (number, data), outcome in zip(files, begun, strict=True):
                at(number)
                yield self._finish(outcome, tasks[number].label, _length(data), stacks)

    def _stacked_size(self, data: bytes | OSError) -> tuple[int, int] | None:
        """Return the width and height of an image that may be resized together with others; None for one that cannot."""
        size = header_size(data) if self.resize.mode != "none" and isinstance(data, bytes) else None
        if size is None or is_reducible(size, target := self.resize.target(*size)) or size == target:
            return None
        return size

    def _begin(self, data: bytes | OSError, stacks: Stacks) -> Prepared | Waiting | Result:
        """Return what an image is after it was verified."""
        if isinstance(data, OSError):
            return Result(None, 0, 0, 0, 0, f"cannot be read: {data.strerror}", 0, data.errno or -1)
        try:
            return prepare(data, self.resize, self.quality, stacks)
        except BadImageError as error:
            return _rejected(error, len(data))

    def _finish(self, outcome: Prepared | Waiting | Result, label: int, read: int, stacks: Stacks) -> Result:
        """Resize what waits for it, and return the image as a record."""
        if isinstance(outcome, Waiting):
            try:
                outcome = _encoded(stacks.resized(*outcome[:2]), 1, outcome.target, self.quality, outcome.repair)
            except BadImageError as error:
                return _rejected(error, read)
        if isinstance(outcome, Result):
            return outcome
        before, after = around(len(outcome.data), label, outcome.height, outcome.width)
        value = b"".join((before, outcome.data, after))
        shared = pickle.PickleBuffer(value)  # to the builder through shared memory, where it arrives as bytes
        return Result(shared, len(before), len(outcome.data), outcome.width, outcome.height, outcome.repair, read)


@functools.cache
def _stacks() -> Stacks:
    """Return this process's room for images that are resized together."""
    return Stacks(_STACKS_BYTES)


def _read(tasks: Sequence[Task], at: Callable[[int], None]) -> Iterator[list[tuple[int, bytes | OSError]]]:
    """Yield the tasks' numbers and files, or why one cannot be read, some at a time; `at` is told which one is read."""
    files: list[tuple[int, bytes | OSError]] = []
    held = 0
    for number, task in enumerate(tasks):
        at(number)
        try:
            files.append((number, task.place.read()))
        except OSError as error:
            files.append((number, error))
        held += _length(files[-1][1])
        if held > _HELD_BYTES:
            yield files
            files, held = [], 0
    if files:
        yield files


def _length(data: bytes | OSError) -> int:
    """Return the number of bytes that were read."""
    return len(data) if isinstance(data, bytes) else 0


def _rejected(error: BadImageError, read: int) -> Result:
    return Result(None, 0, 0, 0, 0, str(error), read)


@overload
def prepare(data: bytes, resize: Resize, quality: int) -> Prepared: ...
@overload
def prepare(data: bytes, resize: Resize, quality: int, stacks: Stacks) -> Prepared | Waiting: ...
def prepare(data: bytes, resize: Resize, quality: int, stacks: Stacks | None = None) -> Prepared | Waiting:
    """Return the image as an upright baseline JPEG, RGB or gray, of the size asked for, whatever format its content has.

    A JPEG that needs no change keeps its exact bytes; one that is only coded in another way keeps its exact pixels. With
    `stacks`, one that is to be resized, and not turned, may be left there.

    Raises:
        BadImageError: it is none that can be used, for the reason given.
    """
    if not data:
        raise BadImageError("the file is empty")
    if not data.startswith(b"\xff\xd8"):
        return _prepare_other(data, resize, quality, "{} instead of JPEG")
    frame, faults = read_frame(data), []
    while True:
        try:
            return _prepare_jpeg(data, frame, resize, quality, _joined(*faults), stacks)
        except BadImageError as error:
            better = mended(data, frame, str(error))
            if better is None or better[1] in faults:
                raise
            data, fault = better
            faults.append(fault)


def _prepare_jpeg(
    data: bytes, frame: Frame, resize: Resize, quality: int, fault: str, stacks: Stacks | None
) -> Prepared | Waiting:
    """Return a JPEG as `prepare` does; where it has a `fault`, however harmless, it is not stored as it is."""
    check_size(frame.width, frame.height)
    colorspace = _colorspace(data)
    if colorspace == "":
        image = _prepare_other(data, resize, quality, _joined("unusual chroma subsampling", fault))
        check_coefficients(data, frame)
        return image
    if colorspace in ("CMYK", "YCCK"):
        verify_jpeg(data, "CMYK")
        return _prepare_other(data, resize, quality, _joined("CMYK", fault))
    turn, is_doubtful = orientation(data, frame)
    size = (frame.width, frame.height)
    target = resize.target(*_turned_size(turn, size))
    if turn == 1 and target == size:
        return _kept(data, frame, colorspace, quality, fault or (is_doubtful and "broken EXIF block") or "")
    wanted = _turned_size(turn, target)
    if stacks is not None and turn == 1 and not is_reducible(size, target):
        stacked = stacks.put(*size, lambda buffer: decode(data, buffer=buffer))
        if stacked:
            return Waiting(stacked, target, fault)
    pixels = decode_reduced(data, *wanted) if is_reducible(size, wanted) else decode(data)
    return _encoded(pixels, turn, target, quality, fault)


def _colorspace(data: bytes) -> str:
    """Return "Gray", "RGB", "YCbCr", "CMYK" or "YCCK", or "" for a chroma subsampling that TurboJPEG does not know."""
    try:
        return simplejpeg.decode_jpeg_header(data, strict=False)[2]
    except KeyError:  # what simplejpeg says of 4:4:1
        return ""
    except ValueError as error:
        if is_subsampling(error):
            return ""
        raise BadImageError(first_line(error)) from error


def _kept(data: bytes, frame: Frame, colorspace: str, quality: int, fault: str) -> Prepared:
    """Return an upright JPEG with the same pixels: its own bytes where it is baseline and nothing is at fault."""
    size = (frame.width, frame.height)
    repair = _joined(frame.kind, fault)
    if not repair:
        verify_jpeg(data)
        return Prepared(data, *size, "")
    pixels = decode(data, "GRAY" if colorspace == "Gray" else "RGB")
    rewritten = to_baseline(data, frame, colorspace, pixels)
    if rewritten is not None:
        return Prepared(rewritten, *size, repair)
    return _encoded(np.broadcast_to(pixels, (*size[::-1], 3)), 1, size, quality, f"{repair}, encoded with loss")


def _prepare_other(data: bytes, resize: Resize, quality: int, repair: str) -> Prepared:
    """Return anything that Pillow reads as a JPEG; `repair` may name the format as {}."""
    picture = read_other(data)
    height, width = picture.pixels.shape[:2]
    target = resize.target(*_turned_size(picture.orientation, (width, height)))
    return _encoded(picture.pixels, picture.orientation, target, quality, repair.format(picture.kind))


def _encoded(pixels: np.ndarray, turn: int, target: tuple[int, int], quality: int, repair: str) -> Prepared:
    """Return (H, W, 3) uint8 RGB pixels as a JPEG of `target` (width, height), turned upright from an EXIF orientation."""
    width, height = _turned_size(turn, target)
    if pixels.shape[:2] != (height, width):
        pixels = resized(pixels, width, height)
    if turn > 1:
        pixels = upright(pixels, turn)
        repair = _joined(repair, f"EXIF orientation {turn}")
    return Prepared(encode_jpeg(pixels, quality), *target, repair)


def _turned_size(turn: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) after turning by an EXIF orientation, or before: 5 to 8 swap the sides."""
    return size[::-1] if turn >= 5 else size


def _joined(*repairs: str) -> str:
    """Return reasons as one text."""
    return ", ".join(filter(None, repairs))
