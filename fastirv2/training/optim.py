"""The optimizer: stochastic gradient descent with Nesterov momentum."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from fastirv2.errors import UsageError


@dataclass(frozen=True)
class OptimizerConfig:
    """Nesterov SGD, weight decay on every parameter, as the predecessor trained."""

    momentum: float = 0.9
    """Momentum; dampening is 0."""
    weight_decay: float = 1e-4
    """L2 penalty added to the gradient of every parameter, normalisation and biases included."""

    def __post_init__(self) -> None:
        if not (0 < self.momentum < 1 and 0 <= self.weight_decay < math.inf):
            raise UsageError(
                f"optimizer: momentum must lie between 0 and 1 and weight-decay not below 0; "
                f"got momentum {self.momentum}, weight-decay {self.weight_decay}"
            )


def create_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.SGD:
    """Make the optimizer, as one fused kernel over all parameters; its rate is set before each step."""
    return torch.optim.SGD(
        model.parameters(), lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=True, fused=True
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
