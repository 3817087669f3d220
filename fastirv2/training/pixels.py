"""What brings pixels to the numbers that a network takes, made for a precision and a device before the first image comes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastirv2.pipelines import IMAGENET_MEAN, IMAGENET_STD, UNIT_MEAN, UNIT_STD

Normalise = Callable[[torch.Tensor], torch.Tensor]  # from images (B, 3, H, W) in 0 … 255, uint8 or of any float


def unit(dtype: torch.dtype, _device: torch.device) -> Normalise:
    """Return what brings images from 0 … 255 to -1 … 1."""

    def normalise(images: torch.Tensor) -> torch.Tensor:
        return images.to(dtype, copy=True).sub_(UNIT_MEAN).div_(UNIT_STD)  # a copy: float images are the input pipeline's own

    return normalise


def imagenet(dtype: torch.dtype, device: torch.device) -> Normalise:
    """Return what takes ImageNet's mean from images and divides by its standard deviation, channel by channel."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    scale, shift = (line.to(device, wide) for line in (1 / std, -mean / std))

    def normalise(images: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(shift, images.to(wide), scale).to(dtype)

    return normalise


NORMALISE: dict[str, Callable[[torch.dtype, torch.device], Normalise]] = {"unit": unit, "imagenet": imagenet}
