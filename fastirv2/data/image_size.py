"""The size of an image as it is seen upright, from its header alone."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from fastirv2.building.jpeg import BadImageError, exif_orientation, orientation, read_frame

_DECODED = {"JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"}  # by the graph, of what Pillow knows
HEAD_BYTES = 1 << 16  # in which most headers lie, thumbnails and colour profiles included


def upright_size(data: bytes | memoryview) -> tuple[int, int]:
    """Return an encoded image's width and height in pixels, after its EXIF orientation is applied.

    `data` is the whole file or as much of its beginning as holds the header. Raises ValueError when it has none, or one of a
    format that the graph does not decode.
    """
    try:
        return _read_size(bytes(data[:HEAD_BYTES]))
    except ValueError:
        if len(data) <= HEAD_BYTES:
            raise
        return _read_size(bytes(data))


def _read_size(data: bytes) -> tuple[int, int]:
    """Return `upright_size` of so much of a file."""
    if data.startswith(b"\xff\xd8"):
        try:
            frame = read_frame(data)
            size, turn = (frame.width, frame.height), orientation(data, frame)[0]
            return size[::-1] if turn >= 5 else size
        except BadImageError:  # of a kind that Pillow may know, or its header is not all there
            pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError("no header of an image") from error
    if image.format not in _DECODED:
        raise ValueError(f"{image.format}, which is not decoded here")
    return image.size[::-1] if (exif_orientation(image.info.get("exif")) or 1) >= 5 else image.size
