"""The sizes of images in files, from their headers: read side by side, once, and kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from fastirv2.data.image_size import HEAD_BYTES, upright_size
from fastirv2.files import alone_in, cache_folder, read_npy, write_file

_THREADS = 16  # that wait for the storage at once
_SECONDS_A_LINE = 10
_NO_IMAGE, _UNREAD = (0, 0), (0, 1)


def read_sizes(path: Callable[[int], str], count: int, digest: str) -> np.ndarray:
    """Return the upright height and width in pixels of each of `count` images, uint16 (count, 2).

    The height is 0 of what cannot be read, is no image, or has more than 65,535 pixels a side.

    Args:
        path: the file of an image by its number.
        count: how many images there are.
        digest: of names and lengths of the files; the sizes are kept under it.
    """
    folder = cache_folder()
    kept = folder / f"sizes-2-{digest[:24]}.npy"
    with alone_in(folder):  # the ranks of a host all ask for them at once
        with contextlib.suppress(OSError, ValueError):
            sizes = read_npy(kept)
            if sizes.shape == (count, 2) and sizes.dtype == np.uint16:
                return sizes
        sizes = _read_all(path, count)
        if (sizes == _UNREAD).all(1).any():  # they may be read another time
            return sizes
        with contextlib.suppress(OSError):
            write_file(kept, lambda stream: np.save(stream, sizes))
    return sizes


def _read_all(path: Callable[[int], str], count: int) -> np.ndarray:
    """Read the headers of all files."""
    sizes = np.empty((count, 2), np.uint16)
    said = time.monotonic()
    with warnings.catch_warnings(), ThreadPoolExecutor(_THREADS) as threads:  # whose own catching would leave some behind
        numbers = iter(range(count))
        while block := list(islice(numbers, 64 * _THREADS)):
            sizes[block[0] : block[-1] + 1] = list(threads.map(lambda number: _size(path(number)), block))
            if time.monotonic() - said >= _SECONDS_A_LINE:
                said = time.monotonic()
                print(f"reading the images' sizes: {block[-1] + 1:,} of {count:,}", file=sys.stderr, flush=True)
    return sizes


def _size(path: str) -> tuple[int, int]:
    """Return height and width of one image, or 0 and why there are none."""
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(HEAD_BYTES)
            try:
                width, height = upright_size(head)
            except ValueError:
                width, height = upright_size(head + file.read())
    except OSError:
        return _UNREAD
    except ValueError:
        return _NO_IMAGE
    return (height, width) if max(width, height) <= 65_535 else _NO_IMAGE
