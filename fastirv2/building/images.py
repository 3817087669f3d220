"""One image: verified by decoding it, made an upright RGB JPEG where it is none, and resized if asked."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from fastirv2.building.sources import Place
from fastirv2.data.datum import data_offset, encode
from fastirv2.errors import UsageError

MAX_PIXELS = 178_956_970  # where Pillow too sees a decompression bomb
MAX_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # what a photograph may be; no format that starts a program
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImageError(ValueError):
    """The bytes are no image that can be used; the text is the reason."""


@dataclass(frozen=True)
class Resize:
    """What --resize asks for: `mode` is "none", "warp" (to `width` × `height`) or "short" (short side `height`), in pixels."""

    mode: str = "none"
    width: int = 0
    height: int = 0

    @classmethod
    def parse(cls, text: str) -> Resize:
        """Return what `none`, `WxH` or `short:N` means; raises UsageError for any other text."""
        if text == "none":
            return cls()
        sides = re.fullmatch(r"(?:(short):|(\d+)x)(\d+)", text, re.ASCII)
        numbers = [int(number) for number in sides.groups()[1:] if number] if sides else []
        if not sides or not all(1 <= number <= MAX_SIDE for number in numbers):
            raise UsageError(f"--resize {text} is none of: none, WIDTHxHEIGHT, short:N (pixels, 1 to {MAX_SIDE:,})")
        if sides[1]:
            return cls("short", numbers[0], numbers[0])
        return cls("warp", *numbers)

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that an upright image of this size becomes."""
        if self.mode == "warp":
            return self.width, self.height
        short = min(width, height)
        if self.mode == "none" or short <= self.height:
            return width, height
        return max(1, round(width * self.height / short)), max(1, round(height * self.height / short))


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
    """A task's outcome: the Datum (None when rejected), its image's place in it, size in pixels, and what a report says."""

    value: bytes | None
    header: int
    length: int
    width: int
    height: int
    reason: str


@dataclass(frozen=True)
class Preparer:
    """The workers' job: a Task to a Result."""

    resize: Resize
    quality: int

    def __call__(self, task: Task) -> Result:
        """Read, prepare and encode one image; whatever is wrong with it becomes the result's reason."""
        try:
            image = prepare(task.place.read(), self.resize, self.quality)
        except BadImageError as error:
            return Result(None, 0, 0, 0, 0, str(error))
        except OSError as error:
            return Result(None, 0, 0, 0, 0, f"cannot be read: {error.strerror}")
        value = encode(image.data, task.label, image.height, image.width)
        return Result(value, data_offset(value), len(image.data), image.width, image.height, image.repair)


def prepare(data: bytes, resize: Resize, quality: int) -> Prepared:
    """Return the image as an upright RGB or gray JPEG of the size asked for, whatever format its content has.

    A JPEG that needs no change keeps its exact bytes. Raises BadImageError with the reason.
    """
    if not data:
        raise BadImageError("the file is empty")
    if data[:2] != b"\xff\xd8":
        return _prepare_other(data, resize, quality, "")
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # also what TurboJPEG says of unusual chroma subsampling
        return _prepare_other(data, resize, quality, "an unusual JPEG")
    _check_size(width, height)
    orientation = _jpeg_orientation(data)
    if colorspace in ("CMYK", "YCCK"):
        verify_jpeg(data, "CMYK")
        return _prepare_other(data, resize, quality, "CMYK")
    size = (height, width) if orientation >= 5 else (width, height)
    target = resize.target(*size)
    if orientation == 1 and target == size:
        verify_jpeg(data)
        return Prepared(data, width, height, "")
    stored = target[::-1] if orientation >= 5 else target
    image = Image.fromarray(_decode_reduced(data, *stored) if target != size else _decode(data))
    if orientation == 1:
        return _encode(image, target, quality, "")
    return _encode(image.transpose(_UPRIGHT[orientation]), target, quality, f"EXIF orientation {orientation}")


def verify_jpeg(data: bytes, colorspace: str = "GRAY") -> None:
    """Decode a JPEG strictly, without keeping the pixels; raises BadImageError with the decoder's reason.

    At an eighth of the size all of the compressed data is still read, so that nothing that is broken stays hidden.
    """
    _decode(data, colorspace, min_height=1, min_width=1)


def _decode_reduced(data: bytes, width: int, height: int) -> np.ndarray:
    """Return a JPEG's pixels at a reduced DCT scale that leaves at least twice `width` and `height`, where there is one."""
    return _decode(data, "RGB", min_height=2 * height, min_width=2 * width, min_factor=2)


def _decode(data: bytes, colorspace: str = "RGB", **smallest: float) -> np.ndarray:
    """Return a JPEG's pixels, (H, W, C) uint8, decoded strictly; raises BadImageError with the decoder's reason."""
    try:
        return simplejpeg.decode_jpeg(data, colorspace, **smallest)
    except ValueError as error:
        raise BadImageError(_first_line(error)) from error


def _prepare_other(data: bytes, resize: Resize, quality: int, repair: str) -> Prepared:
    """Return anything that Pillow reads (the first frame of it) as a JPEG."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            _check_size(*image.size)
            repair = repair or f"{image.format} instead of JPEG"
            image.load()
            orientation = _exif_orientation(image)
            image = _to_rgb(image)
    except (BadImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError(_too_large()) from error
    except Image.UnidentifiedImageError as error:
        raise BadImageError("no image of a known format") from error
    except Exception as error:  # Pillow's plugins raise whatever parsing a broken file comes to
        raise BadImageError(_first_line(error)) from error
    if orientation > 1:
        image = image.transpose(_UPRIGHT[orientation])
    return _encode(image, resize.target(*image.size), quality, repair)


def _encode(image: Image.Image, target: tuple[int, int], quality: int, repair: str) -> Prepared:
    """Return an RGB image, resized to `target` (width, height), as a baseline 4:2:0 JPEG."""
    if image.size != target:
        image = image.resize(target, Image.Resampling.BICUBIC)
    if max(image.size) > MAX_SIDE:
        raise BadImageError(f"{image.width:,} × {image.height:,} pixels are more than a JPEG can have ({MAX_SIDE:,} a side)")
    pixels = np.ascontiguousarray(image)
    data = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
    return Prepared(data, image.width, image.height, repair)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB, over white where it is transparent."""
    if image.mode.startswith(("I", "F")):
        scale = 1.0 if image.mode == "F" else 257.0  # 16-bit gray: Pillow's own conversion clips it
        return Image.fromarray((np.asarray(image, np.float64) / scale).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _check_size(width: int, height: int) -> None:
    """Reject what would take too much memory to decode."""
    if width * height > MAX_PIXELS:
        raise BadImageError(_too_large())


def _too_large() -> str:
    """Return the reason for rejecting a huge image."""
    return f"over {MAX_PIXELS // 1_000_000} megapixels"


def _jpeg_orientation(data: bytes) -> int:
    """Return the EXIF orientation of a JPEG, 1 to 8 (1: upright, or none given)."""
    if b"Exif\0\0" not in data[: 1 << 16]:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _exif_orientation(Image.open(io.BytesIO(data), formats=("JPEG",)))
    except Exception:  # a broken EXIF block says nothing about the image
        return 1


def _exif_orientation(image: Image.Image) -> int:
    """Return the orientation in the image's EXIF block: not in XMP, which decoders do not follow."""
    block = image.info.get("exif")
    if not block:
        return 1
    exif = Image.Exif()
    try:
        exif.load(block)
        orientation = exif.get(_ORIENTATION, 1)
    except Exception:  # as above
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _first_line(error: Exception) -> str:
    """Return an error's text as a reason."""
    return str(error).strip().split("\n")[0] or type(error).__name__
