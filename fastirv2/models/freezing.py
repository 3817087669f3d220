"""What of a network does not learn in fine-tuning: its stem, and the running statistics of its normalisation."""

from __future__ import annotations

from typing import Literal

from torch import nn

from fastirv2.models.norm import BatchNorm2d
from fastirv2.models.slim import Slim

Freeze = Literal["none", "stem", "statistics", "both"]

FROZEN = {
    "stem": "the stem",
    "statistics": "the running statistics, by which normalisation goes whatever the batch",
    "both": "the stem, and the running statistics, by which normalisation goes whatever the batch",
}
_STEM = ("stem", *Slim.STEM)  # of the paper's network, and of slim's


def freeze(model: nn.Module, what: Freeze) -> None:
    """Leave parts of a network as they are from here on, in training too.

    stem: the convolutions before the first branches of the slim network, or the paper's stem, with their normalisation,
    learn nothing. statistics: normalisation keeps its running means and variances and normalises by them, whatever the
    batch; its weights and biases learn. That of a frozen stem always does. To be called before anything is made of the
    network's parameters: an optimizer, averages, gradient buckets.
    """
    for name, module in model.named_modules():
        stem = what in ("stem", "both") and name.partition(".")[0] in _STEM
        if isinstance(module, BatchNorm2d) and (stem or what in ("statistics", "both")):
            module.frozen = True
        for parameter in module.parameters(recurse=False) if stem else ():
            parameter.requires_grad_(False)
