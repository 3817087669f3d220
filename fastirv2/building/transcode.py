"""A JPEG's DCT coefficients coded anew as baseline, without loss: libjpeg does it, by way of the package jpeglib."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
from typing import Any

import numpy as np

from fastirv2.building.jpeg import BadImageError, Frame, decode, read_frame
from fastirv2.building.memory_files import MemoryFile, said_on_stderr

MAX_PIXELS = 64_000_000  # beyond that the coefficients take more memory than the largest image that is decoded
_VERSION = "turbo210"  # of the libraries that jpeglib brings, one that reads arithmetic coding
_SPACES = {"Gray": 1, "RGB": 2, "YCbCr": 3}  # libjpeg's J_COLOR_SPACE


def to_baseline(data: bytes, frame: Frame, colorspace: str, pixels: np.ndarray) -> bytes | None:
    """Return a JPEG as a baseline one that decodes to the same `pixels`, without any EXIF; None where that cannot be.

    `data` has decoded strictly to `pixels`; `colorspace` is "Gray", "RGB" or "YCbCr", which is kept, as are the chroma
    subsampling and the quantisation tables; the Huffman tables are made for the image.
    """
    if frame.width * frame.height > MAX_PIXELS:
        return None
    luma = _luma(frame)
    with MemoryFile(data) as source, MemoryFile() as target, said_on_stderr():
        try:
            _read(source, luma)
            _write(source, target, luma, frame, _SPACES[colorspace])
        except OSError:  # more blocks in a baseline scan than the standard allows, for one
            return None
        rewritten = target.read()
    try:
        again = decode(rewritten, "GRAY" if pixels.shape[2] == 1 else "RGB")
        return rewritten if not read_frame(rewritten).kind and np.array_equal(again, pixels) else None
    except BadImageError:
        return None


def check_coefficients(data: bytes, frame: Frame) -> None:
    """Read all of a JPEG's compressed data; raises BadImageError with libjpeg's first complaint.

    For JPEGs that the strict decoder does not take, and that a lenient one has decoded.
    """
    with MemoryFile(data) as source, said_on_stderr() as said:
        with contextlib.suppress(OSError):  # libjpeg has said why
            _read(source, _luma(frame))
        complaint = said.read().decode("utf-8", "replace").strip()
    if complaint:
        raise BadImageError(complaint.split("\n")[0])


def _luma(frame: Frame) -> np.ndarray:
    """Return room for the first component's coefficients, (blocks, 64) int16."""
    blocks = 1
    for side, length in enumerate((frame.width, frame.height)):
        factors = [factor[side] for factor in frame.sampling]
        blocks *= -(-length * factors[0] // (8 * max(factors)))
    return np.empty((blocks, 64), np.int16)


def _read(source: MemoryFile, luma: np.ndarray) -> None:
    """Read the first component's coefficients into `luma`; raises OSError when libjpeg gives up."""
    pointer = luma.ctypes.data_as(ctypes.c_void_p)
    with contextlib.redirect_stdout(io.StringIO()):  # where jpeglib prints the path of what it could not read
        _libjpeg().read_jpeg_dct(srcfile=source.path, Y=pointer, Cb=None, Cr=None, K=None, qt=None, quant_tbl_no=None)


def _write(source: MemoryFile, target: MemoryFile, luma: np.ndarray, frame: Frame, space: int) -> None:
    """Write the coefficients of `source` to `target`; raises OSError when libjpeg gives up.

    Tables, subsampling and the other components come from `source`, which is all that jpeglib leaves out when they are
    not given; only `luma` has to be. No marker is copied: the encoder writes the JFIF or Adobe marker that `space` needs.
    """
    _libjpeg().write_jpeg_dct(
        srcfile=source.path,
        dstfile=target.path,
        Y=luma.ctypes.data_as(ctypes.c_void_p),
        Cb=None,
        Cr=None,
        K=None,
        image_dims=(ctypes.c_int * 2)(frame.height, frame.width),
        block_dims=None,
        in_color_space=space,
        in_components=len(frame.sampling),
        samp_factor=None,
        qt=None,
        quality=-1,
        quant_tbl_no=None,
        num_markers=0,
        marker_types=None,
        marker_lengths=None,
        markers=None,
        flags=["OPTIMIZE_CODING"],
    )


@functools.cache
def _libjpeg() -> Any:
    """Return jpeglib's binding, below its classes: those copy every marker one byte at a time and leave files behind."""
    import jpeglib
    from jpeglib._bind import CJpegLib

    jpeglib.version.set(_VERSION)
    return CJpegLib
