"""Graphs of colour augmentations on images uint8 (H, W, 3) in 0 … 255, given what was drawn for each sample."""

from __future__ import annotations

from nvidia.dali import fn, math, types
from nvidia.dali.data_node import DataNode

_TINY = 1e-3  # of 255: keeps a gray pixel's saturation from dividing by zero


def jitter(images: DataNode, of_pixel: DataNode, of_mean: DataNode, offset: DataNode) -> DataNode:
    """Return of_pixel · x + of_mean · m + offset for each pixel x, with m the image's mean colour, as float16.

    The arguments are (3, 3), (3, 3) and (3,) a sample; the result may lie outside of 0 … 255. The mean is taken where the
    images are, so that nothing comes back from a GPU.
    """
    mean = fn.reshape(fn.reductions.mean(images, axes=[0, 1]), shape=[1, 1, 3])
    shift = fn.coord_transform(mean, M=of_mean, T=offset)
    return fn.cast(fn.coord_transform(images, M=of_pixel, dtype=types.FLOAT) + shift, dtype=types.FLOAT16)


def distortion(images: DataNode, before: DataNode, factor: DataNode, after: DataNode) -> DataNode:
    """Return images with `before` added, HSV's saturation multiplied by `factor` and `after` added, as uint8 in 0 … 255.

    The arguments are (1,) a sample. With value v and smallest channel l, saturation (v − l)/v times a factor f, at most 1,
    leaves v and brings each channel x to v − (v − x) · min(f, v / (v − l)).
    """
    if images.device == "gpu":
        before, factor, after = before.gpu(), factor.gpu(), after.gpu()
    pixels = images + before
    value = fn.reductions.max(pixels, axes=[2], keep_dims=True)
    lowest = fn.reductions.min(pixels, axes=[2], keep_dims=True)
    strength = math.min(factor, value / math.max(value - lowest, _TINY))
    return fn.cast(math.clamp(value - (value - pixels) * strength + after, 0.0, 255.0), dtype=types.UINT8)


COLOURS = {"jitter": jitter, "distortion": distortion}
