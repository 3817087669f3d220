"""What --resize asks for, and the antialiased Lanczos filter that does it."""

from __future__ import annotations

import functools
import multiprocessing
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fastirv2.building.jpeg import MAX_SIDE
from fastirv2.errors import UsageError


@dataclass(frozen=True)
class Resize:
    """What --resize asks for: `mode` is "none", "warp" (to `width` × `height`) or "short" (short side `height`), in pixels."""

    mode: str = "none"
    width: int = 0
    height: int = 0

    @classmethod
    def parse(cls, text: str) -> Resize:
        """Return what `none`, `WxH` or `short:N` means; raises UsageError for any other text."""
        if text == "none":
            return cls()
        sides = re.fullmatch(r"(?:(short):|(\d+)x)(\d+)", text, re.ASCII)
        numbers = [int(number) for number in sides.groups()[1:] if number] if sides else []
        if not sides or not all(1 <= number <= MAX_SIDE for number in numbers):
            raise UsageError(f"--resize {text} is none of: none, WIDTHxHEIGHT, short:N (pixels, 1 to {MAX_SIDE:,})")
        if sides[1]:
            return cls("short", numbers[0], numbers[0])
        return cls("warp", *numbers)

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that an upright image of this size becomes."""
        if self.mode == "warp":
            return self.width, self.height
        short = min(width, height)
        if self.mode == "none" or short <= self.height:
            return width, height
        return max(1, round(width * self.height / short)), max(1, round(height * self.height / short))


def resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return (H, W, 3) uint8 pixels as (height, width, 3), through Lanczos' filter with antialiasing.

    torch does it in a fifth of Pillow's time, to within two levels of it; Pillow does where torch cannot yet.
    """
    interpolate = torch_lanczos()
    if interpolate is None:
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
    return interpolate(pixels, width, height)


@functools.cache
def torch_lanczos() -> Callable[[np.ndarray, int, int], np.ndarray] | None:
    """Return `resized` by torch, or None where torch is too old to know the filter.

    Imports torch, which takes a second and 150 MB: only for what is really resized.
    """
    import torch

    def interpolate(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
        image: Any = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # channels last, as the result is: nothing is copied
        output = torch.nn.functional.interpolate(image, size=(height, width), mode="lanczos", antialias=True)
        return output[0].permute(1, 2, 0).numpy()

    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # there is a worker for each CPU
    try:
        interpolate(np.zeros((2, 2, 3), np.uint8), 1, 1)
    except (NotImplementedError, ValueError):
        return None
    return interpolate
