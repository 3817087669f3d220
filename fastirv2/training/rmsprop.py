"""RMSProp as TensorFlow computes it, which is not how torch does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fastirv2.training.fused import Begun, approach, descend


class RMSProp(Begun):
    """RMSProp in the form of TensorFlow's `ApplyRMSProp`, which the network's paper trained with.

        s ← α s + (1 − α) g², from 1
        b ← momentum · b + rate · g / √(s + ε), from 0
        w ← w − b

    `torch.optim.RMSprop` has ε outside the root, s from 0 and the rate outside the momentum: at ε = 1 another optimizer.
    Weight decay is an L2 penalty: weight_decay · w is added to g. Works on CPU and CUDA, in few kernels over all parameters.
    """

    def __init__(
        self, groups: Iterable[Any], *, alpha: float, momentum: float, epsilon: float, weight_decay: float, lr: float = 0.0
    ) -> None:
        defaults = {"lr": lr, "alpha": alpha, "momentum": momentum, "epsilon": epsilon, "weight_decay": weight_decay}
        super().__init__(groups, defaults)
        self.begin()

    def fresh(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a mean square of 1 and a momentum of 0."""
        return {"mean_square": torch.ones_like(parameter), "momentum_buffer": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step by the gradients that are there."""
        for group in self.param_groups:
            parameters, gradients, squares, momenta = self.gather(group, "mean_square", "momentum_buffer")
            if not parameters:
                continue
            if group["weight_decay"]:
                gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
            approach(squares, torch._foreach_mul(gradients, gradients), self.overflow, share=1 - group["alpha"])
            roots = torch._foreach_add(squares, group["epsilon"])
            torch._foreach_sqrt_(roots)
            amounts = torch._foreach_div(gradients, roots)
            torch._foreach_mul_(amounts, group["lr"])
            descend(parameters, amounts, self.overflow, momenta=momenta, momentum=group["momentum"])
