"""How images are shown to a network for a score: said with every score, since scores of two protocols do not compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from fastirv2.data.samples import InputConfig
from fastirv2.data.views import scales
from fastirv2.errors import UsageError
from fastirv2.models import SMALLEST_INPUT


@dataclass(frozen=True)
class Protocol:
    """`crops` of each image, from images that are resized as `input` says."""

    input: InputConfig
    crops: int = 1

    def __str__(self) -> str:
        """Say what is done to an image."""
        own, crop, mode = self.input, self.input.crop, self.input.resize_mode
        kernel = "bicubic" if own.filter == "cubic" else "bilinear"
        resized = f"warped to {own.resize}²" if mode == "warp" else f"shorter side {own.resize}"
        views = f"{crop}² windows at the corners and the centre, the whole square, and all six mirrored; softmax averaged"
        if self.crops == 12:
            square = "" if mode == "warp" else ", of the central square"
            return f"12 crops, {resized}{square}: {views}; {kernel}"
        if self.crops == 144:
            sides = ", ".join(map(str, scales(crop)))
            return f"144 crops, shorter side {sides}, three squares of each: {views}; {kernel}"
        return f"1 crop, {resized}, central {crop}²; {kernel}"

    def table(self) -> dict[str, Any]:
        """Return it as plain values; `resize` and `resize_mode` have no part in 144 crops, which name their own sides."""
        of_crops = {"sides": scales(self.input.crop)} if self.crops == 144 else {"resize": self.input.resize}
        mode = "short" if self.crops == 144 else self.input.resize_mode
        kernel = "bicubic" if self.input.filter == "cubic" else "bilinear"
        return {"crops": self.crops, **of_crops, "resize_mode": mode, "crop": self.input.crop, "interpolation": kernel}


def choose_protocol(
    own: InputConfig,
    *,
    crops: int = 1,
    resize: int | None = None,
    resize_mode: Literal["warp", "short"] | None = None,
    crop: int | None = None,
    interpolation: Literal["bilinear", "bicubic"] | None = None,
) -> Protocol:
    """Return the protocol of a network's own input, with what is given in place of it.

    Raises:
        UsageError: a size that makes no sense, or a resize beside 144 crops, which name their own.
    """
    if crops == 144 and (resize is not None or resize_mode is not None):
        sides = ", ".join(map(str, scales(crop or own.crop)))
        raise UsageError(f"144 crops resize images to {sides}; leave --resize and --resize-mode out")
    side, window = resize or own.resize, crop or own.crop
    for name, value in (("--resize", resize), ("--crop", crop)):
        if value is not None and value < SMALLEST_INPUT:
            raise UsageError(f"{name} {value} is too small for this network; it needs {SMALLEST_INPUT} pixels")
    if crops == 144:
        side = max(side, window)
    kernel = interpolation or ("bicubic" if own.filter == "cubic" else "bilinear")
    changes = {"resize": side, "crop": window, "resize_mode": resize_mode or own.resize_mode, "interpolation": kernel}
    return Protocol(replace(own, augment="crop", sizes=(), **changes), crops)
