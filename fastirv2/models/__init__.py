"""The two forms of Inception-ResNet-v2, made by name."""

from __future__ import annotations

from torch import nn

from fastirv2.errors import UsageError, nearest
from fastirv2.models.paper import Paper
from fastirv2.models.slim import Slim

ARCHITECTURES: dict[str, type[nn.Module]] = {"paper": Paper, "slim": Slim}
SMALLEST_INPUT = 75  # pixels a side: below it a reduction has nothing left to reduce


def create(arch: str, num_classes: int = 1000, dropout: float = 0.2) -> nn.Module:
    """Make an Inception-ResNet-v2 with freshly drawn weights, from torch's global random state.

    Args:
        arch: "paper" (arXiv 1602.07261, what the predecessors trained) or "slim" (TensorFlow-slim's, public weights).
        num_classes: outputs of the last layer.
        dropout: probability of dropping one of the last features in training.

    Returns:
        a module that maps float images (N, 3, H, W) in [-1, 1] to logits (N, num_classes).

    Raises:
        UsageError: there is no such network.
    """
    if arch not in ARCHITECTURES:
        raise UsageError(f"there is no network '{arch}'{nearest(arch, ARCHITECTURES)}")
    return ARCHITECTURES[arch](num_classes, dropout)
