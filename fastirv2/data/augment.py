"""What is random about a sample, drawn outside the graph as a function of (seed, epoch, record)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastirv2.data import counter

_CROP_STREAM = 0x63726F70  # "crop"


@dataclass(frozen=True)
class Windows:
    """What the graph is fed for a batch of B samples: windows relative to the image, and whether each is mirrored.

    `start` and `end` are float32 (B, 2), (y, x) in 0 … 1; `mirror` is int32 (B,), 0 or 1.
    """

    start: np.ndarray
    end: np.ndarray
    mirror: np.ndarray


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
    mirror = counter.integers(counter.hashes(0, bits, 2), 2).astype(np.int32)
    return _windows(corner, resize, crop, mirror)


def centre_crops(batch: int, resize: int, crop: int) -> Windows:
    """Return the central `crop`² window of the image warped to `resize`² for `batch` samples, unmirrored."""
    corner = np.full((batch, 2), (resize - crop) // 2, dtype=np.int64)
    return _windows(corner, resize, crop, np.zeros(batch, dtype=np.int32))


def _windows(corner: np.ndarray, resize: int, crop: int, mirror: np.ndarray) -> Windows:
    start = (corner / resize).astype(np.float32)
    end = ((corner + crop) / resize).astype(np.float32)
    return Windows(start, end, mirror)
