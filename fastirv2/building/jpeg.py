"""What is known about a JPEG before and after decoding it: its segments, its EXIF orientation, its pixels, strictly."""

from __future__ import annotations

import re
import struct
import warnings
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

MAX_PIXELS = 178_956_970  # where Pillow too sees a decompression bomb
TOO_LARGE = f"over {MAX_PIXELS // 1_000_000} megapixels"
MAX_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
PROCESSES = {
    0xC0: "baseline",
    0xC1: "extended",
    0xC2: "progressive",
    0xC9: "arithmetic-coded",
    0xCA: "arithmetic-coded progressive",
}
_UNSUPPORTED = dict.fromkeys((0xC3, 0xCB), "lossless JPEG") | {0xF7: "JPEG-LS"}
_UNSUPPORTED |= dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "hierarchical JPEG")
_STANDALONE = (0x01, *range(0xD0, 0xD8))  # markers that no length follows
_START_OF_SCAN, _APP1, _END = 0xDA, 0xE1, b"\xff\xd9"
_EXIF, _JFIF = b"Exif\0\0", b"JFIF\0"
_ORIENTATION = 0x0112
# The orientation's tag in either byte order, unless one SHORT follows that is none of 2 to 8: anything else may turn an image.
_TURNING = re.compile(rb"\x12\x01(?!\x03\0\x01\0\0\0[^\x02-\x08]\0)|\x01\x12(?!\0\x03\0\0\0\x01\0[^\x02-\x08])")
_REVISION = "Warning: unknown JFIF revision number"
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")


class BadImageError(ValueError):
    """The bytes are no image that can be used; the text is the reason."""


class Frame(NamedTuple):
    """What the segments before a JPEG's compressed data say.

    `process` is the second byte of the SOF marker; `sampling` has a component's (horizontal, vertical) factors; `scanned`
    is the number of components in the first scan, `scan` the offset of its segment; `exif` holds the (start, end) of each
    EXIF segment, marker included.
    """

    process: int
    precision: int
    width: int
    height: int
    sampling: tuple[tuple[int, int], ...]
    scanned: int
    scan: int
    exif: tuple[tuple[int, int], ...]

    @property
    def kind(self) -> str:
        """The kind of JPEG in words, "" for baseline in one scan: the only one that a GPU's JPEG engines take."""
        if self.process != 0xC0:
            return f"{PROCESSES[self.process]} JPEG"
        return "" if self.scanned == len(self.sampling) else "JPEG of several scans"


def read_frame(data: bytes) -> Frame:
    """Return what a JPEG's segments say. Raises BadImageError for a kind that nothing here decodes, and for no frame at all."""
    at, exif = 2, []
    process, body = 0, b""
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if marker in _UNSUPPORTED:
            raise BadImageError(f"{_UNSUPPORTED[marker]} is not supported")
        if marker in PROCESSES:
            process, body = marker, data[at + 4 : end]
        elif marker == _APP1 and data.startswith(_EXIF, at + 4):
            exif.append((at, end))
        elif marker == _START_OF_SCAN:
            return _frame(process, body, data[at + 4 : at + 5], at, tuple(exif))
        at = end
    raise BadImageError(_why_no_frame(data))


def _why_no_frame(data: bytes) -> str:
    """Return the decoder's reason for what is wrong with a JPEG's segments."""
    try:
        verify_jpeg(data)
    except BadImageError as error:
        if not is_subsampling(error):  # TurboJPEG says this too where it finds no frame
            return str(error)
    return "broken JPEG header"


def _frame(process: int, body: bytes, scanned: bytes, scan: int, exif: tuple[tuple[int, int], ...]) -> Frame:
    """Return what a SOF segment's body says, beside what is known already."""
    if len(body) < 6 or len(body) < 6 + 3 * body[5] or not scanned:
        raise BadImageError("broken JPEG header")
    precision, height, width, count = struct.unpack_from(">BHHB", body)
    if precision != 8:
        raise BadImageError(f"{precision}-bit JPEG is not supported")
    sampling = tuple((body[7 + 3 * i] >> 4, body[7 + 3 * i] & 15) for i in range(count))
    return Frame(process, precision, width, height, sampling, scanned[0], scan, exif)


def header_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height in a JPEG's header; None for what the decoder does not know."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (KeyError, ValueError):
        return None
    return width, height


def is_subsampling(error: Exception) -> bool:
    """Return whether TurboJPEG complains of a chroma subsampling that it does not know."""
    return "subsampling" in str(error)


def check_size(width: int, height: int) -> None:
    """Raise BadImageError for what would take too much memory to decode."""
    if width * height > MAX_PIXELS:
        raise BadImageError(TOO_LARGE)


def decode(data: bytes, colorspace: str = "RGB", buffer: np.ndarray | None = None, **smallest: float) -> np.ndarray:
    """Return a JPEG's pixels, (H, W, C) uint8, decoded strictly, in `buffer` if it is given.

    Raises:
        BadImageError: it is broken, for the decoder's reason.
    """
    try:
        return simplejpeg.decode_jpeg(data, colorspace, buffer=buffer, **smallest)
    except ValueError as error:
        raise BadImageError(first_line(error)) from error


def is_reducible(size: tuple[int, int], target: tuple[int, int]) -> bool:
    """Return whether half of a JPEG's `size`, its DCT scale of one half, is at least twice `target`, both (width, height)."""
    return all(-(-side // 2) >= 2 * least for side, least in zip(size, target, strict=True))


def decode_reduced(data: bytes, width: int, height: int) -> np.ndarray:
    """Return a JPEG's pixels at the smallest DCT scale that leaves at least twice `width` and `height`."""
    return decode(data, "RGB", min_height=2 * height, min_width=2 * width, min_factor=2)


def verify_jpeg(data: bytes, colorspace: str = "GRAY") -> None:
    """Decode a JPEG strictly, without keeping the pixels; raises BadImageError with the decoder's reason.

    At an eighth of the size all of the compressed data is still read, so that nothing that is broken stays hidden.
    """
    decode(data, colorspace, min_height=1, min_width=1)


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """Return (H, W, 3) uint8 RGB pixels as a baseline 4:2:0 JPEG; raises BadImageError for more than a JPEG can have."""
    height, width = pixels.shape[:2]
    if max(width, height) > MAX_SIDE:
        raise BadImageError(f"{width:,} × {height:,} pixels are more than a JPEG can have ({MAX_SIDE:,} a side)")
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")


def orientation(data: bytes, frame: Frame) -> tuple[int, bool]:
    """Return a JPEG's EXIF orientation, 1 to 8, and whether another reader may see another one in what is broken or double."""
    blocks = [data[start + 4 : end] for start, end in frame.exif]
    if not any(_TURNING.search(block) for block in blocks):
        return 1, False
    value = exif_orientation(blocks[0])
    if value is None:
        return 1, any(_lists_orientation(block) for block in blocks)
    return value, value == 1 and len(blocks) > 1


def _lists_orientation(block: bytes) -> bool:
    """Return whether the first directory of an EXIF block has an entry for the orientation, however broken it all is."""
    if len(block) < 14:
        return False
    order = "<" if block.startswith(b"I", 6) else ">"  # DALI looks at no more of the byte order, nor at an entry's type
    tag, start = struct.pack(order + "H", _ORIENTATION), 6 + struct.unpack_from(order + "I", block, 10)[0] + 2
    return any(block.startswith(tag, at) for at in range(start, len(block), 12))


def exif_orientation(block: bytes | None) -> int | None:
    """Return the orientation in an EXIF block, 1 to 8; None where it has none that exists, or is broken.

    Pillow reads it. What an XMP block says is not followed: decoders do not follow it either.
    """
    if not block:
        return None
    exif = Image.Exif()
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        try:
            exif.load(block)
            value = exif.get(_ORIENTATION)
        except Exception:  # whatever parsing a broken block comes to; it says nothing about the image
            return None
    if isinstance(value, int) and (2 <= value <= 8 or (value == 1 and not complaints)):
        return value
    return None


def mended(data: bytes, frame: Frame, complaint: str) -> tuple[bytes, str] | None:
    """Return a JPEG without the harmless fault that the decoder complained of, and the fault's name; None for all others.

    The first complaint hides those that follow: what is returned has to be decoded again.
    """
    if complaint.startswith(_REVISION):
        at = data.find(_JFIF) + len(_JFIF)
        return data[:at] + b"\x01\x01" + data[at + 2 :], "unknown JFIF revision"
    found = _EXTRANEOUS.fullmatch(complaint)
    shorter = _without_padding(data, frame, int(found[1])) if found else None
    return (shorter, "extraneous bytes before the end marker") if shorter else None


def _without_padding(data: bytes, frame: Frame, length: int) -> bytes | None:
    """Return a JPEG without the last bytes before its end marker, `length` of them; None where they are no padding.

    Only bytes that are all alike are padding. After a flipped bit the decoder complains in the same words, since what it
    makes of the rest is too short by some blocks: then the bytes are what is left of the picture's data. One byte alone
    proves nothing, but the one before it has to be padding too, mostly: the decoder reads ahead and counts it not.
    """
    end = data.find(_END, frame.scan)
    start = end - length
    if start <= frame.scan or len(set(data[min(start, end - 2) : end])) != 1:
        return None
    return data[:start] + data[end:]


def first_line(error: Exception) -> str:
    """Return an error's text as a reason."""
    return str(error).strip().split("\n")[0] or type(error).__name__
