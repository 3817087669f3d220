"""The slim network as timm's inception_resnet_v2: the same state dict, and its preprocessing as timm's config.json has it."""

from __future__ import annotations

import json
import math
from typing import Any

from fastirv2.errors import UsageError
from fastirv2.pipelines import IMAGENET_MEAN, IMAGENET_STD
from fastirv2.trained import Trained

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_HALF = (0.5, 0.5, 0.5)


def check_timm(trained: Trained) -> None:
    """Raise UsageError for a network that timm does not have."""
    if trained.arch != "slim":
        raise UsageError(
            f"timm has the slim network only, but {trained.source} holds the {trained.arch} one; export safetensors or onnx"
        )


def timm_config(trained: Trained) -> dict[str, Any]:
    """Return what timm's config.json says of a model: how it is made, and its preprocessing (timm 1.0, models/_hub.py)."""
    own, count = trained.input, len(trained.classes)
    mean, std = _HALF, _HALF
    if own.normalise == "imagenet":
        mean, std = ([round(value / 255, 6) for value in values] for values in (IMAGENET_MEAN, IMAGENET_STD))
    preprocessing = {
        "tag": "fastirv2", "custom_load": False, "input_size": [3, own.crop, own.crop], "fixed_input_size": False,
        "interpolation": "bicubic" if own.filter == "cubic" else "bilinear", "crop_pct": crop_share(own.crop, own.resize),
        "crop_mode": "squash" if own.resize_mode == "warp" else "center", "mean": mean, "std": std, "num_classes": count,
        "first_conv": "conv2d_1a.conv", "classifier": "classif",
    }  # fmt: skip
    model = {"architecture": "inception_resnet_v2", "num_classes": count, "num_features": trained.model.classif.in_features}
    return {**model, "pretrained_cfg": preprocessing, "label_names": trained.classes}


def crop_share(crop: int, resize: int) -> float:
    """Return timm's crop_pct: timm resizes to ⌊crop / crop_pct⌋ pixels (data/transforms_factory.py)."""
    exact = crop / resize
    while math.floor(crop / exact) < resize:
        exact = math.nextafter(exact, 0.0)
    short = round(exact, 4)
    return short if short and math.floor(crop / short) == resize else exact


def timm_config_text(trained: Trained) -> bytes:
    """Return config.json."""
    return json.dumps(timm_config(trained), indent=2).encode() + b"\n"
