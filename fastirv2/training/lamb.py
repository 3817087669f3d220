"""LAMB: Adam whose step is scaled, layer by layer, to the size of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fastirv2.training.fused import Begun, approach, descend


class Lamb(Begun):
    """LAMB (You et al. 2019, arXiv 1904.00962, algorithm 2, with φ the identity).

        m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²
        u = m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε) + weight_decay · w
        w ← w − rate · ‖w‖ / ‖u‖ · u

    The ratio of the norms is 1 where one of them is 0, and in a group whose "adapt" is False, as its authors do for what
    takes no decay. t counts the steps that were taken, on the device.

    It is written here because no other can be gated by a flag on the device in every precision: NVIDIA apex's FusedLAMB counts
    its steps on the host, lets NaN through by design and clips by a norm of its own, and its FusedMixedPrecisionLamb takes a
    flag from a GradScaler alone; the libraries count on the host as well, and some wait for a norm of every parameter.
    """

    def __init__(
        self, groups: Iterable[Any], *, betas: tuple[float, float], epsilon: float, weight_decay: float, lr: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "epsilon": epsilon, "weight_decay": weight_decay, "adapt": True})
        self.begin()

    def fresh(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return moments of 0, and for the first parameter of a group the number of steps taken."""
        state = {"mean": torch.zeros_like(parameter), "mean_square": torch.zeros_like(parameter)}
        if any(parameter is group["params"][0] for group in self.param_groups):
            state["taken"] = torch.zeros((), dtype=parameter.dtype, device=parameter.device)
        return state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one step by the gradients that are there."""
        for group in self.param_groups:
            parameters, gradients, means, squares = self.gather(group, "mean", "mean_square")
            if not parameters:
                continue
            taken, (beta1, beta2) = self.state[group["params"][0]]["taken"], group["betas"]
            taken += 1 if self.overflow is None else 1 - self.overflow
            approach(means, gradients, self.overflow, share=1 - beta1)
            approach(squares, torch._foreach_mul(gradients, gradients), self.overflow, share=1 - beta2)
            roots = torch._foreach_div(squares, _correction(beta2, taken))
            torch._foreach_sqrt_(roots)
            torch._foreach_add_(roots, group["epsilon"])
            updates = torch._foreach_div(means, _correction(beta1, taken))
            torch._foreach_div_(updates, roots)
            if group["weight_decay"]:
                torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
            if group["adapt"]:
                torch._foreach_mul_(updates, _ratios(parameters, updates))
            descend(parameters, updates, self.overflow, rate=group["lr"])


def _correction(beta: float, taken: torch.Tensor) -> torch.Tensor:
    """Return 1 − βᵗ, 0-dim in the dtype of `taken`."""
    return (1 - beta ** taken.double()).to(taken.dtype)


def _ratios(parameters: list[torch.Tensor], updates: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return for each parameter the norm of its weights over that of its update, 0-dim, or 1 where one of them is 0."""
    weights, steps = (torch.stack(list(torch._foreach_norm(tensors))) for tensors in (parameters, updates))
    return list(torch.where((weights > 0) & (steps > 0), weights / steps, 1.0).to(parameters[0].dtype).unbind())
