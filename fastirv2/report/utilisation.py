"""Model FLOP utilisation: the network's own arithmetic as a share of what the devices could do at best."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastirv2.errors import UsageError

# Dense TFLOP/s of the tensor cores in bf16 or fp16, summed in fp32, and in TF32, from NVIDIA's data sheets and architecture
# white papers; sheets that give them with sparsity only are halved. 0: not computed there. The first name that fits counts.
PEAKS: tuple[tuple[str, dict[str, float]], ...] = tuple(
    (name, {"bf16": bf16, "fp16": fp16, "tf32": tf32})
    for name, bf16, fp16, tf32 in (
        (r"GB[23]00\b", 2500, 2500, 1250),
        (r"B[23]00\b", 2250, 2250, 1125),
        (r"B100\b", 1750, 1750, 875),
        (r"H[12]00 NVL", 835.5, 835.5, 417.5),
        (r"H100 PCIe", 756, 756, 378),
        (r"GH200\b|H[12]00\b|H800\b(?! PCIe)", 989, 989, 494.5),
        (r"H20\b", 148, 148, 74),
        (r"A[18]00\b", 312, 312, 156),
        (r"A40\b", 149.7, 149.7, 74.8),
        (r"A30\b", 165, 165, 82),
        (r"A10\b", 125, 125, 62.5),
        (r"A10G\b", 70, 70, 35),
        (r"L40S\b", 362, 362, 183),
        (r"L40\b", 181, 181, 90.5),
        (r"L4\b", 121, 121, 60),
        (r"RTX 6000 Ada", 364.2, 364.2, 182.1),
        (r"RTX A6000", 154.8, 154.8, 77.4),
        (r"RTX 5090$", 209.5, 209.5, 104.8),
        (r"RTX 4090$", 165.2, 165.2, 82.6),
        (r"RTX 3090 Ti$", 80, 80, 40),
        (r"RTX 3090$", 71, 71, 35.6),
        (r"V100S", 0, 130, 0),
        (r"V100-PCIE|V100-FHHL", 0, 112, 0),
        (r"V100", 0, 125, 0),
        (r"\bT4\b", 0, 65, 0),
    )
)


@dataclass(frozen=True)
class DeviceConfig:
    """What one of the devices can do."""

    peak_tflops: float = 0.0
    """Dense TFLOP/s of one device in the run's precision, that model FLOP utilisation is a share of; 0: by the GPU's name."""

    def __post_init__(self) -> None:
        if not 0 <= self.peak_tflops < math.inf:
            raise UsageError(f"--device.peak-tflops {self.peak_tflops} must not be negative")


def peak_tflops(name: str, amp: str) -> float:
    """Return the dense TFLOP/s of the GPU that torch calls `name`, in the precision `amp`; 0 where that is not known."""
    if " MIG " in name:  # a part of a GPU
        return 0.0
    return next((peaks.get(amp, 0.0) for pattern, peaks in PEAKS if re.search(rf"(?<![\w]){pattern}", name)), 0.0)


def forward_flop(make: Callable[[], nn.Module], size: int) -> int:
    """Return the floating-point operations, 2 a multiply-add, of one image (3, size, size) through the network of `make`.

    Matrix products and convolutions count; shapes alone are computed, on the meta device.
    """
    with torch.device("meta"):
        model = make().eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, size, size))
    return counter.get_total_flops()


def training_flop(make: Callable[[], nn.Module], size: int) -> float:
    """Return the floating-point operations of one image's forward and backward pass, counted as `forward_flop` counts.

    What is frozen before all that learns takes no part in the backward pass. A network that learns as a whole takes three times
    its forward pass: a gradient for the inputs of each layer, but for the first, and one for its weights.
    """
    images = 2  # normalisation wants more than one value a channel
    with torch.device("meta"):
        model = make().train()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(images, 3, size, size)).sum().backward()
    return counter.get_total_flops() / images


@dataclass(frozen=True)
class Utilisation:
    """Turns images/s into the share of the devices' peak; the arithmetic of an image follows the crop of its epoch."""

    stages: tuple[tuple[int, float], ...]  # the first epoch of each crop, and the FLOP of training one such image
    peak: float  # FLOP/s of all devices together

    def share(self, epoch: int, images_per_second: float) -> float:
        """Return the utilisation, 0 to 1, of training at a rate of images in an epoch, from 1."""
        flop = next(flop for first, flop in reversed(self.stages) if first <= epoch)
        return images_per_second * flop / self.peak


def utilisation(
    make: Callable[[], nn.Module], crops: Sequence[tuple[int, int]], *, peak_tflops: float, devices: int
) -> Utilisation | None:
    """Return what tells the utilisation of `devices` alike, or None where their peak is not known (0).

    Args:
        make: makes the network, on torch's default device, with what does not learn frozen.
        crops: the first epoch of each crop and its side in pixels, as (1, 299).
        peak_tflops: dense TFLOP/s of one device.
        devices: how many there are.
    """
    if not peak_tflops:
        return None
    flop = {size: training_flop(make, size) for size in {size for _, size in crops}}
    return Utilisation(tuple((first, flop[size]) for first, size in crops), devices * peak_tflops * 1e12)


def pixels_trained(crops: Sequence[tuple[int, int]], epochs: float) -> float:
    """Return the pixels of an image, summed over the first `epochs`; `crops` are as `utilisation` has them."""
    ends = [first - 1 for first, _ in crops[1:]] + [math.inf]
    return sum(size**2 * max(0.0, min(epochs, end) - (first - 1)) for (first, size), end in zip(crops, ends, strict=True))
