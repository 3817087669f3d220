"""The size of an image as it is seen upright, from its header alone."""

from __future__ import annotations

import io
import struct
import warnings

from PIL import Image

_ORIENTATION = 0x0112  # EXIF's tag
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 … SOF15: all that are no table definition
_BARE = frozenset(range(0xD0, 0xDA)) | {0x01}  # markers without a length
_BLOCK = struct.Struct(">H")
_SIDES = struct.Struct(">HH")


def upright_size(data: bytes | memoryview) -> tuple[int, int]:
    """Return an encoded image's width and height in pixels, after its EXIF orientation is applied.

    `data` is the whole file or as much of its beginning as holds the header. Raises ValueError when it has none.
    """
    if data[:2] == b"\xff\xd8":
        size = _jpeg_size(data)
        if size is not None:
            return size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            sideways = _sideways(image.info.get("exif", b""))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("no header of an image") from error
    return image.size[::-1] if sideways else image.size


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """Walk a JPEG's segments to its frame header; None when that is not there (ITU-T T.81, annex B)."""
    position, sideways = 2, False
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF or marker in _BARE:
            position += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAMES:
            height, width = _SIDES.unpack_from(data, position + 5)
            return (height, width) if sideways else (width, height)
        length = _BLOCK.unpack_from(data, position + 2)[0]
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            sideways = _sideways(bytes(data[position + 4 : position + 2 + length]))
        position += 2 + length
    return None


def _sideways(block: bytes) -> bool:
    """Return whether an EXIF block asks for a turn by a quarter; a broken one asks for nothing."""
    if not block:
        return False
    exif = Image.Exif()
    try:
        exif.load(block)
        return exif.get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # Pillow raises whatever parsing a broken block comes to
        return False
