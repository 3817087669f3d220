"""One image: verified by decoding it, made an upright baseline JPEG where it is none, and resized if asked."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import NamedTuple

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
    is_subsampling,
    mended,
    orientation,
    read_frame,
    verify_jpeg,
)
from fastirv2.building.other_formats import read_other
from fastirv2.building.resize import Resize, resized
from fastirv2.building.sources import Place
from fastirv2.building.transcode import check_coefficients, to_baseline
from fastirv2.data.datum import data_offset, encode


class Prepared(NamedTuple):
    """An image ready to store: a JPEG's bytes, its size in pixels, and why it was repaired ("" when it was not)."""

    data: bytes
    width: int
    height: int
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

    def __call__(self, task: Task) -> Result:
        """Read, prepare and encode one image; whatever is wrong with it becomes the result's reason."""
        try:
            data = task.place.read()
        except OSError as error:
            return Result(None, 0, 0, 0, 0, f"cannot be read: {error.strerror}", 0, error.errno or -1)
        try:
            image = prepare(data, self.resize, self.quality)
        except BadImageError as error:
            return Result(None, 0, 0, 0, 0, str(error), len(data))
        value = encode(image.data, task.label, image.height, image.width)
        shared = pickle.PickleBuffer(value)  # to the builder through shared memory, where it arrives as bytes
        return Result(shared, data_offset(value), len(image.data), image.width, image.height, image.repair, len(data))


def prepare(data: bytes, resize: Resize, quality: int) -> Prepared:
    """Return the image as an upright baseline JPEG, RGB or gray, of the size asked for, whatever format its content has.

    A JPEG that needs no change keeps its exact bytes; one that is only coded in another way keeps its exact pixels. Raises
    BadImageError with the reason.
    """
    if not data:
        raise BadImageError("the file is empty")
    if not data.startswith(b"\xff\xd8"):
        return _prepare_other(data, resize, quality, "{} instead of JPEG")
    frame, faults = read_frame(data), []
    while True:
        try:
            return _prepare_jpeg(data, frame, resize, quality, _joined(*faults))
        except BadImageError as error:
            better = mended(data, frame, str(error))
            if better is None or better[1] in faults:
                raise
            data, fault = better
            faults.append(fault)


def _prepare_jpeg(data: bytes, frame: Frame, resize: Resize, quality: int, fault: str) -> Prepared:
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
    pixels = decode_reduced(data, *_turned_size(turn, target)) if _turned_size(turn, target) != size else decode(data)
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
        pixels = _upright(pixels, turn)
        repair = _joined(repair, f"EXIF orientation {turn}")
    return Prepared(encode_jpeg(pixels, quality), *target, repair)


def _turned_size(turn: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) after turning by an EXIF orientation, or before: 5 to 8 swap the sides."""
    return size[::-1] if turn >= 5 else size


def _upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Return a view of (H, W, C) pixels turned upright from EXIF orientation `turn`, 2 to 8."""
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if turn in (3, 4, 7, 8) else 1
    columns = -1 if turn in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]


def _joined(*repairs: str) -> str:
    """Return reasons as one text."""
    return ", ".join(filter(None, repairs))
