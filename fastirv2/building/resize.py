"""What --resize asks for, and the antialiased Lanczos filter that does it."""

from __future__ import annotations

import functools
import multiprocessing
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

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

    def __str__(self) -> str:
        """Return the one text that means it, of those that do."""
        return {"none": "none", "warp": f"{self.width}x{self.height}", "short": f"short:{self.height}"}[self.mode]

    def target(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that an upright image of this size becomes."""
        if self.mode == "warp":
            return self.width, self.height
        short = min(width, height)
        if self.mode == "none" or short <= self.height:
            return width, height
        return max(1, round(width * self.height / short)), max(1, round(height * self.height / short))


def resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return (H, W, 3) uint8 pixels, or (N, H, W, 3), as (…, height, width, 3), through Lanczos' filter with antialiasing.

    torch does it in a fifth of Pillow's time, to within two levels of it; Pillow does where torch cannot yet.
    """
    images = pixels.reshape(-1, *pixels.shape[-3:])
    interpolate = torch_lanczos() or _pillow_lanczos
    return interpolate(images, width, height).reshape(*pixels.shape[:-3], height, width, 3)


def _pillow_lanczos(images: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.stack([Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS) for image in images])


@functools.cache
def torch_lanczos() -> Callable[[np.ndarray, int, int], np.ndarray] | None:
    """Return what resizes (N, H, W, 3) by torch, or None where torch is too old to know the filter.

    Imports torch, which takes a second and 150 MB: only for what is really resized.
    """
    import torch

    def interpolate(images: np.ndarray, width: int, height: int) -> np.ndarray:
        batch: Any = torch.from_numpy(images).permute(0, 3, 1, 2)  # channels last, as the result is: nothing is copied
        output = torch.nn.functional.interpolate(batch, size=(height, width), mode="lanczos", antialias=True)
        return output.permute(0, 2, 3, 1).numpy()

    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # there is a worker for each CPU
    try:
        interpolate(np.zeros((1, 2, 2, 3), np.uint8), 1, 1)
    except (NotImplementedError, ValueError):
        return None
    return interpolate


class Stacks:
    """Memory of `size` bytes for decoded images, those of one size side by side, so that they are resized in one call.

    Computing the filter's weights takes a third of the time of resizing one image of 500 × 375 pixels.
    """

    def __init__(self, size: int) -> None:
        self._memory = np.empty(size, np.uint8)
        self._images: dict[tuple[int, int], np.ndarray] = {}
        self._taken: dict[tuple[int, int], int] = {}
        self._resized: dict[tuple[int, int], np.ndarray] = {}

    def begin(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Forget all images, and keep places for others of these sizes (width, height), as many as there is room for."""
        self._images, self._taken, self._resized = {}, {}, {}
        end = 0
        for (width, height), wanted in Counter(sizes).items():
            image = 3 * width * height
            start, count = end, min(wanted, (len(self._memory) - end) // image)
            end += count * image
            self._images[width, height] = self._memory[start:end].reshape(count, height, width, 3)

    def put(self, width: int, height: int, decode: Callable[[np.ndarray], np.ndarray]) -> Stacked | None:
        """Have `decode` fill the next place, (height, width, 3) uint8; None where none is left, or for another size."""
        size = (width, height)
        place = self._taken.get(size, 0)
        if size not in self._images or place == len(self._images[size]):
            return None
        if decode(self._images[size][place]).shape != (height, width, 3):
            return None
        self._taken[size] = place + 1
        return Stacked(size, place)

    def resized(self, image: Stacked, target: tuple[int, int]) -> np.ndarray:
        """Return an image as (height, width, 3) of its `target` (width, height), which is the same for all of its size."""
        if image.size not in self._resized:
            self._resized[image.size] = resized(self._images[image.size][: self._taken[image.size]], *target)
        return self._resized[image.size][image.place]


class Stacked(NamedTuple):
    """An image in `Stacks`: its width and height, and its place among those of that size."""

    size: tuple[int, int]
    place: int
