"""What is random about a sample, drawn outside the graph as a function of (seed, epoch, record)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastirv2.data import counter

_CROP_STREAM = 0x63726F70  # "crop"


@dataclass(frozen=True)
class Windows:
    """The window of each of B samples, relative to its image: float32 (B, 2), (y, x) in 0 … 1.

    A window that ends left of where it starts is mirrored.
    """

    start: np.ndarray
    end: np.ndarray


def random_crops(seed: int, epochs: np.ndarray, records: np.ndarray, resize: int, crop: int) -> Windows:
    """Draw a random `crop`² window of the image warped to `resize`², and a mirror with probability ½, for each sample.

    Args:
        seed: seed of the run.
        epochs: int64 (B,), the epoch of each sample, from 0.
        records: int64 (B,), the record number of each sample.
        resize: side in pixels that the image is warped to (328).
        crop: side in pixels of the window (299), at most `resize`.

    Returns:
        windows at multiples of 1/resize, uniform over the (resize − crop + 1)² places.
    """
    bits = counter.hashes(seed, _CROP_STREAM, epochs, records)
    places = resize - crop + 1
    corner = np.stack([counter.integers(counter.hashes(0, bits, axis), places) for axis in (0, 1)], axis=1)
    windows = _windows(corner, resize, crop)
    mirrored = counter.integers(counter.hashes(0, bits, 2), 2).astype(bool)
    windows.start[mirrored, 1], windows.end[mirrored, 1] = windows.end[mirrored, 1], windows.start[mirrored, 1]
    return windows


def centre_crops(batch: int, resize: int, crop: int) -> Windows:
    """Return the central `crop`² window of the image warped to `resize`² for `batch` samples, unmirrored."""
    return _windows(np.full((batch, 2), (resize - crop) // 2, dtype=np.int64), resize, crop)


def _windows(corner: np.ndarray, resize: int, crop: int) -> Windows:
    return Windows((corner / resize).astype(np.float32), ((corner + crop) / resize).astype(np.float32))
