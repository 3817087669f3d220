"""A model card: what is known of a trained network, and nothing else, as Markdown."""

from __future__ import annotations

from typing import Any

import torch

from fastirv2 import __version__
from fastirv2.report.accuracy import wilson
from fastirv2.report.machine import describe
from fastirv2.scoring.protocol import choose_protocol
from fastirv2.trained import Trained

_WEIGHTS = {"raw": "as they were trained", "ema": "running averages"}
_NETWORKS = {
    "paper": "that of arXiv 1602.07261, with its two misprints corrected",
    "slim": "TensorFlow-slim's, which timm has as inception_resnet_v2",
}
_COLOURS = {"unit": "colours from -1 to 1", "imagenet": "colours less ImageNet's mean, divided by its standard deviation"}
_SHOWN = 20  # classes that are named


def card(trained: Trained, name: str, usage: list[str], notes: dict[str, str]) -> str:
    """Return the card of what is exported as `name`; `usage` are lines of Python, `notes` what the export adds."""
    results = trained.results
    facts = {
        "Network": f"{_NETWORKS[trained.arch]}; {sum(each.numel() for each in trained.model.parameters()):,} parameters",
        "Classes": _classes(trained.classes),
        "Input": f"{choose_protocol(trained.input)}; RGB, {_COLOURS[trained.input.normalise]}",
        "Weights": ", ".join(filter(None, [_WEIGHTS.get(str(results.get("weights")), ""), _when(results)])),
        "Recipe": results.get("recipe"),
        "Training data": _digest(results.get("train_digest")),
        **_errors(results),
        **notes,
        "Exported with": f"fastirv2 {__version__}, torch {torch.__version__}, DALI {describe()['dali']}",
    }
    lines = [f"- {what}: {value}" for what, value in facts.items() if value]
    return "\n".join([f"# {name}: Inception-ResNet-v2", "", *lines, "", "```python", *usage, "```", ""])


def _classes(classes: list[str]) -> str:
    names = ", ".join(classes[:_SHOWN]) + (", …" if len(classes) > _SHOWN else "")
    named = any(name != str(label) for label, name in enumerate(classes))
    return f"{len(classes):,}" + (f": {names}" if named else "")


def _when(results: dict[str, Any]) -> str:
    parts = [f"{name} {results[name]:,}" for name in ("epoch", "step") if isinstance(results.get(name), int)]
    return f"after {', '.join(parts)}" if parts else ""


def _digest(digest: str | None) -> str:
    return f"digest {digest}" if digest else ""


def _errors(results: dict[str, Any]) -> dict[str, str]:
    """Return what is known of the errors in validation, with the interval where the number of images is known."""
    images, found = results.get("images"), {}
    for name in ("top1", "top5"):
        error = results.get(f"{name}_error")
        if error is None:
            continue
        low, high = wilson(images - results[f"{name}_correct"], images) if images else (0.0, 0.0)
        interval = f", 95 % interval {low:.2f} to {high:.2f} %, on {images:,} images" if images else ""
        found[f"{name.replace('top', 'Top-')} error"] = f"{error:.3f} %{interval}"
    if found:
        found["Validated"] = "one crop, as the input says"
    if results.get("val_digest"):
        found["Validation data"] = _digest(results["val_digest"])
    return found
