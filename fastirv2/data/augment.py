"""Which window of an image becomes a sample, drawn outside the graph as a function of (seed, epoch, record)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastirv2.data import counter

_CROP_STREAM = 0x63726F70  # "crop"
_AREA_STREAM = 0x61726561  # "area"
_MIRROR = 0x6D6972726F72  # "mirror"
_DISTORTED_STREAM = 0x646973746F7274  # "distort"
_SMALLEST_AREA, _LARGEST_ASPECT, _TRIES = 0.08, 4 / 3, 10  # fb.resnet.torch's
_DISTORTED_AREA, _COVERED, _DISTORTED_ASPECTS, _DISTORTED_TRIES = 0.05, 0.1, (0.75, 1.33), 100  # TF-slim's


@dataclass(frozen=True)
class Windows:
    """The window of each of B samples, relative to its image: float32 (B, 2), (y, x) in 0 … 1; of several views (B, views, 2).

    A window that ends left of where it starts is mirrored.
    """

    start: np.ndarray
    end: np.ndarray


def random_crops(
    seed: int, epochs: np.ndarray, records: np.ndarray, resize: int, crop: int, sizes: np.ndarray | None = None
) -> Windows:
    """Draw a random `crop`² window of the resized image, and a mirror with probability ½, for each sample.

    Args:
        seed: seed of the run.
        epochs: int64 (B,), the epoch of each sample, from 0.
        records: int64 (B,), the record number of each sample.
        resize: side in pixels that the image is warped to (328), or its shorter side where `sizes` are given.
        crop: side in pixels of the window (299), at most `resize`.
        sizes: (B, 2), height and width of each image in pixels, for images that keep their aspect.

    Returns:
        windows at whole pixels of the resized image, uniform over all places.
    """
    bits = counter.hashes(seed, _CROP_STREAM, epochs, records)
    resized = resized_sizes(len(records), resize, sizes)
    corner = np.stack([counter.integers(counter.hashes(0, bits, axis), resized[:, axis] - crop + 1) for axis in (0, 1)], axis=1)
    return _mirrored(_windows(corner, crop, resized), counter.integers(counter.hashes(0, bits, 2), 2).astype(bool))


def centre_crops(count: int, resize: int, crop: int, sizes: np.ndarray | None = None) -> Windows:
    """Return the central `crop`² window of each of `count` resized images, unmirrored; arguments as `random_crops` has them."""
    resized = resized_sizes(count, resize, sizes)
    return _windows((resized - crop) // 2, crop, resized)


def resized_sizes(count: int, resize: int, sizes: np.ndarray | None) -> np.ndarray:
    """Return the sizes, int64 (count, 2), that images are resized to: `resize`², or a shorter side of `resize` pixels."""
    if sizes is None:
        return np.full((count, 2), resize, np.int64)
    sizes = sizes.astype(np.int64)
    return sizes * resize // sizes.min(axis=1, keepdims=True)


def area_crops(seed: int, epochs: np.ndarray, records: np.ndarray, sizes: np.ndarray) -> Windows:
    """Draw a window of random area and aspect, and a mirror with probability ½, for each sample.

    As torch7's RandomSizedCrop does (fb.resnet.torch, datasets/transforms.lua): a try takes a share of the image's area from
    [0.08, 1) and an aspect from [3/4, 4/3), both uniform, and exchanges width and height with probability ½. The first of
    ten that fits is taken, at a place uniform over all whole pixels; where none fits it is the central square.

    Args:
        seed, epochs, records: as `random_crops` has them.
        sizes: (B, 2), height and width of each image in pixels.
    """
    smallest, tries = _SMALLEST_AREA, _TRIES
    bits = counter.hashes(seed, _AREA_STREAM, epochs, records)
    draws = counter.uniform(counter.hashes(0, bits[:, None], np.arange(3 * tries + 2)))
    share, aspect, turned = np.split(draws[:, : 3 * tries], 3, axis=1)
    area = (smallest + (1 - smallest) * share) * sizes.prod(axis=1, dtype=np.float64)[:, None]
    aspect = 1 / _LARGEST_ASPECT + (_LARGEST_ASPECT - 1 / _LARGEST_ASPECT) * aspect
    width, height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    width, height = np.where(turned < 0.5, (height, width), (width, height))
    drawn = np.stack([height, width], axis=2).astype(np.int64)
    fits = ((drawn <= sizes[:, None]) & (drawn > 0)).all(axis=2)
    rows, first = np.arange(len(records)), fits.argmax(axis=1)
    found, limits = fits[rows, first], sizes.astype(np.int64)
    window = np.where(found[:, None], drawn[rows, first], limits.min(axis=1, keepdims=True))
    corner = np.where(found[:, None], (draws[:, -2:] * (limits - window + 1)).astype(np.int64), (limits - window) // 2)
    mirrored = counter.integers(counter.hashes(0, bits, _MIRROR), 2).astype(bool)
    return _mirrored(_windows(corner, window, limits), mirrored)


def distorted_crops(seed: int, epochs: np.ndarray, records: np.ndarray, sizes: np.ndarray) -> Windows:
    """Draw a window of random size and aspect, and a mirror with probability ½, for each sample.

    As TensorFlow's sample_distorted_bounding_box does when TF-slim calls it for the whole image
    (inception_preprocessing.py): a try takes an aspect from [0.75, 1.33), uniform, and a height uniform over whole pixels
    from that of 5 % of the image's area to the largest that fits; it has to cover 10 %. The first of 100 that does is
    taken, at a uniform place; where none does it is the whole image.

    Args:
        seed, epochs, records: as `random_crops` has them.
        sizes: (B, 2), height and width of each image in pixels.
    """
    bits = counter.hashes(seed, _DISTORTED_STREAM, epochs, records)
    limits = sizes.astype(np.int64)
    window, corner = limits.copy(), np.zeros_like(limits)
    left = np.arange(len(records))
    for attempt in range(_DISTORTED_TRIES):
        draws = counter.uniform(counter.hashes(0, bits[left, None], 4 * attempt + np.arange(4)))
        drawn = _distorted_sizes(limits[left], draws)
        area, whole = drawn.prod(axis=1), limits[left].prod(axis=1)
        fits = (drawn <= limits[left]).all(axis=1) & (area >= _COVERED * whole) & (area <= whole)
        done = left[fits]
        window[done] = drawn[fits]
        corner[done] = (draws[fits, 2:] * np.maximum(limits[done] - drawn[fits], 1)).astype(np.int64)
        left = left[~fits]
        if not len(left):
            break
    mirrored = counter.integers(counter.hashes(0, bits, _MIRROR), 2).astype(bool)
    return _mirrored(_windows(corner, window, limits), mirrored)


def _distorted_sizes(limits: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return a drawn height and width, int64 (B, 2), for images of `limits`; TensorFlow's GenerateRandomCrop."""
    aspect = _DISTORTED_ASPECTS[0] + (_DISTORTED_ASPECTS[1] - _DISTORTED_ASPECTS[0]) * draws[:, 0]
    area = limits.prod(axis=1)
    largest = np.rint(np.sqrt(area / aspect))
    largest = np.minimum(largest, np.ceil((limits[:, 1] + 0.5) / aspect) - 1)  # the most whose width rounds to the image's
    largest = np.minimum(largest, limits[:, 0])
    lowest = np.minimum(np.rint(np.sqrt(_DISTORTED_AREA * area / aspect)), largest)
    height = lowest + np.floor(draws[:, 1] * (largest - lowest + 1))
    return np.stack([height, np.rint(height * aspect)], axis=1).astype(np.int64)


def _windows(corner: np.ndarray, window: np.ndarray | int, sizes: np.ndarray) -> Windows:
    """Return windows given in pixels of images of `sizes` as shares of them."""
    return Windows((corner / sizes).astype(np.float32), ((corner + window) / sizes).astype(np.float32))


def _mirrored(windows: Windows, mirrored: np.ndarray) -> Windows:
    """Exchange the left and right edges of some windows."""
    windows.start[mirrored, 1], windows.end[mirrored, 1] = windows.end[mirrored, 1], windows.start[mirrored, 1]
    return windows
