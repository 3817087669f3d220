"""The two forms of Inception-ResNet-v2, made by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from fastirv2.errors import UsageError, nearest
from fastirv2.models.branches import merge_siblings
from fastirv2.models.paper import Paper
from fastirv2.models.slim import Slim
from fastirv2.models.weights import load_weights

__all__ = ["ARCHITECTURES", "SMALLEST_INPUT", "ModelConfig", "create", "last_maps", "load_weights"]

SMALLEST_INPUT = 75  # pixels a side: below it a reduction has nothing left to reduce
ARCHITECTURES: dict[str, type[nn.Module]] = {"paper": Paper, "slim": Slim}


@dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    arch: Literal["paper", "slim"] = "paper"
    """The network of the paper (paper), or TensorFlow-slim's, which public weights are for (slim)."""
    classes: int = 0
    """Outputs of the last layer; 0: as many as the training data has classes."""
    dropout: float = 0.2
    """Probability of dropping a feature before the last layer."""
    merge: Literal["auto", "on", "off"] = "auto"
    """Run 1×1 convolutions that read the same input as one (on), or each on its own (off): the same mathematics.
    auto: on where that was measured to be faster, which is on a CPU and not compiled."""

    def __post_init__(self) -> None:
        if self.classes < 0 or not 0 <= self.dropout < 1:
            raise UsageError(
                f"model: classes must not be negative and dropout must lie in [0, 1); got {self.classes}, {self.dropout}"
            )


def last_maps(size: int) -> int:
    """Return the side of either network's last maps for images of `size` pixels: 8 for 299, 1 for 75."""
    for stride in (2, 1, 2, 1, 2, 2, 2):  # of the convolutions and pools of 3 × 3 that a path passes without padding
        size = (size - 3) // stride + 1
    return size


def create(arch: str, num_classes: int = 1000, dropout: float = 0.2, *, merge: bool = True) -> nn.Module:
    """Make an Inception-ResNet-v2 with freshly drawn weights, from torch's global random state.

    Args:
        arch: "paper" (arXiv 1602.07261, what the predecessors trained) or "slim" (TensorFlow-slim's, public weights).
        num_classes: outputs of the last layer.
        dropout: probability of dropping one of the last features in training.
        merge: run sibling convolutions as one (`merge_siblings`).

    Returns:
        a module that maps float images (N, 3, H, W) in [-1, 1] to logits (N, num_classes).

    Raises:
        UsageError: there is no such network.
    """
    if arch not in ARCHITECTURES:
        raise UsageError(f"there is no network '{arch}'{nearest(arch, ARCHITECTURES)}")
    model = ARCHITECTURES[arch](num_classes, dropout)
    merge_siblings(model, merge)
    return model
