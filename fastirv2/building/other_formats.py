"""Images that are no JPEG, or one that only Pillow takes, as RGB pixels."""

from __future__ import annotations

import io
import logging
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastirv2.building.jpeg import TOO_LARGE, BadImageError, check_size, exif_orientation, first_line
from fastirv2.building.memory_files import said_on_stderr

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # what a photograph may be; no format that starts a program
_NOT_READ = {
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"II\xbc": "JPEG XR",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF"}
_BITS_PER_SAMPLE = 258  # TIFF's tag
_STRIP_PIXELS = 1 << 22
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else what it says of broken files would go to stderr


class Picture(NamedTuple):
    """A decoded image: (H, W, 3) uint8 RGB pixels as they are stored, their EXIF orientation, and the file's format."""

    pixels: np.ndarray
    orientation: int
    kind: str


def read_other(data: bytes) -> Picture:
    """Return the first frame of anything that Pillow reads, over white where it is transparent, of 8 bits a channel.

    Raises BadImageError with the reason.
    """
    kind = "image"
    try:
        with warnings.catch_warnings(), said_on_stderr():  # where libtiff prints
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            check_size(*image.size)
            kind = _kind(image, data)
            image.load()
            return Picture(_rgb(image), exif_orientation(image.info.get("exif")) or 1, kind)
    except (BadImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImageError(TOO_LARGE) from error
    except Image.UnidentifiedImageError as error:
        raise BadImageError(_unknown(data)) from error
    except Exception as error:  # Pillow's plugins raise whatever parsing a broken file comes to
        raise BadImageError(f"broken {kind}: {first_line(error)}") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return an image of Pillow's as a build stores it: RGB, turned as its EXIF block says.

    Nothing of that block is written anew, as Pillow's own turning does, which fails on odd ones. Raises BadImageError for
    more than 16 bits a channel, and whatever Pillow raises of broken files.
    """
    image.load()
    deep = image.format == "TIFF" and max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 16
    if deep or image.mode == "F":
        raise BadImageError("more than 16 bits a channel are not supported")
    plain = image.mode == "RGB" and not image.has_transparency_data
    seen = image.convert("RGB") if plain else Image.fromarray(_rgb(image))
    turn = exif_orientation(image.info.get("exif")) or 1
    return seen if turn == 1 else Image.fromarray(np.ascontiguousarray(upright(np.asarray(seen), turn)))


def upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Return a view of (H, W, C) pixels turned upright from EXIF orientation `turn`, 2 to 8."""
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = -1 if turn in (3, 4, 7, 8) else 1
    columns = -1 if turn in (2, 3, 6, 7) else 1
    return pixels[::rows, ::columns]


def _unknown(data: bytes) -> str:
    """Return the reason for rejecting what Pillow does not know."""
    name = next((name for start, name in _NOT_READ.items() if data.startswith(start)), None)
    if name is None and data[4:8] == b"ftyp":
        name = _BRANDS.get(data[8:12])
    return f"{name} is not supported" if name else "no image of a known format"


def _kind(image: Image.Image, data: bytes) -> str:
    """Return the format's name, with its depth where that is not 8 bits; raises BadImageError for more than 16."""
    name = image.format or "unknown"
    bits = 16 if image.mode.startswith("I") else 8
    if name == "PNG":
        bits = data[24]  # IHDR's bit depth
    elif name == "TIFF":
        bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    if bits > 16:
        raise BadImageError(f"{bits}-bit {name} is not supported")
    return f"16-bit {name}" if bits > 8 else name


def _rgb(image: Image.Image) -> np.ndarray:
    """Return an image's pixels, (H, W, 3) uint8, made strip by strip, so that a huge one is not held three times."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = _strip_rgb(image.crop((0, top, image.width, bottom)))
    return pixels


def _strip_rgb(image: Image.Image) -> np.ndarray:
    """Return an image's pixels, (H, W, 3) or, for gray of 16 bits, (H, W, 1) uint8."""
    if image.mode.startswith("I"):  # Pillow's own conversion clips: whatever is not nearly black would become white
        deep = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return ((deep + 128) // 257).astype(np.uint8)[:, :, None]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))
