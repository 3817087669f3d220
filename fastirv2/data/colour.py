"""What becomes of a sample's colours, drawn outside the graph as a function of (seed, epoch, record)."""

from __future__ import annotations

import numpy as np

from fastirv2.data import counter

_STREAM = 0x636F6C6F7572  # "colour"
_GRAY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, of red, green, blue
# Eigenvalues and eigenvectors (in columns) of the covariance of ImageNet's colours in 0 … 1, as fb.resnet.torch has them.
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
JITTER = 0.4
LIGHTING = 0.1
BRIGHTNESS = 32 / 255
SATURATION = (0.5, 1.5)


def jitter(seed: int, epochs: np.ndarray, records: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw brightness, contrast and saturation in random order, then lighting noise, for each sample.

    As fb.resnet.torch's ColorJitter and Lighting (datasets/transforms.lua): each of the three blends the image, with a
    weight of 1 + U(−0.4, 0.4), with black, with the mean of its own gray, or with its own gray; lighting adds
    Σ αᵢ λᵢ vᵢ with α ~ N(0, 0.1) over the eigenvectors v and eigenvalues λ of ImageNet's colours (Krizhevsky 2012, 4.1).

    Args:
        seed: seed of the run.
        epochs: int64 (B,), the epoch of each sample, from 0.
        records: int64 (B,), the record number of each sample.

    Returns:
        (of_pixel, of_mean, offset), float32 (B, 3, 3), (B, 3, 3), (B, 3): all of it is linear in a pixel's colour x and in
        the image's mean colour m, of_pixel · x + of_mean · m + offset, with colours in 0 … 255.
    """
    bits = counter.hashes(seed, _STREAM, epochs, records)
    draws = counter.hashes(0, bits[:, None], np.arange(9))
    weights = 1 + JITTER * (2 * counter.uniform(draws[:, :3]) - 1)
    order = np.argsort(draws[:, 3:6], axis=1)
    of_pixel, of_mean = compose(weights, order)
    lighting = 255 * (counter.normal(draws[:, 6:]) * LIGHTING * _EIGENVALUES) @ _EIGENVECTORS.T
    return of_pixel.astype(np.float32), of_mean.astype(np.float32), lighting.astype(np.float32)


def compose(weights: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return brightness (0), contrast (1) and saturation (2), done one after the other, as one linear form.

    Args:
        weights: float64 (B, 3), of the image itself in the blends of brightness, contrast and saturation.
        order: int64 (B, 3), which of them comes first, second and third.

    Returns:
        of_pixel and of_mean, float64 (B, 3, 3), as `jitter` has them.
    """
    identity, to_gray = np.eye(3), np.ones((3, 1)) * _GRAY
    of_pixel, of_mean = np.tile(identity, (len(order), 1, 1)), np.zeros((len(order), 3, 3))
    for kind in order.T[:, :, None, None]:
        weight = np.take_along_axis(weights, kind[:, :, 0], axis=1)[:, :, None]
        blend = (1 - weight) * to_gray
        step = weight * identity + (kind == 2) * blend
        of_mean = step @ of_mean + (kind == 1) * (blend @ (of_pixel + of_mean))
        of_pixel = step @ of_pixel
    return of_pixel, of_mean


def distortion(seed: int, epochs: np.ndarray, records: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw brightness and saturation for each sample, as TF-slim's distort_color does in its fast mode.

    Brightness adds U(−32, 32) of 255; saturation multiplies HSV's saturation by U(0.5, 1.5). Of the four orders that slim
    draws from, the fast mode takes brightness first in one, and saturation in the other three.

    Returns:
        (before, factor, after), float32 (B, 1) each: what is added before and after the saturation is multiplied by factor,
        with colours in 0 … 255; one of the two is 0.
    """
    bits = counter.hashes(seed, _STREAM, epochs, records)
    draws = counter.uniform(counter.hashes(0, bits[:, None], np.arange(3)))
    added = 255 * BRIGHTNESS * (2 * draws[:, :1] - 1)
    factor = SATURATION[0] + (SATURATION[1] - SATURATION[0]) * draws[:, 1:2]
    first = draws[:, 2:] < 0.25
    return tuple(part.astype(np.float32) for part in (added * first, factor, added * ~first))  # type: ignore[return-value]
