"""Updates by torch's fused kernel, which leaves them out when a flag on the device says so, and no host waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.sgd import sgd


def descend(
    targets: Sequence[torch.Tensor],
    amounts: Sequence[torch.Tensor],
    found_inf: torch.Tensor | None,
    *,
    rate: float = 1.0,
    momenta: Sequence[torch.Tensor] = (),
    momentum: float = 0.0,
) -> None:
    """Take `rate` × `amounts` from `targets`, in place, unless `found_inf` is 1: then nothing changes, NaN or not.

    With `momentum`, momenta ← momentum · momenta + amounts, and those are taken. It is torch's fused SGD kernel, which
    returns at once if `found_inf` says so; a product with zero would let NaN through.

    Args:
        targets: tensors of one dtype and device.
        amounts: their like in shape, dtype, device and memory layout, which the kernel for CPUs takes for granted.
        found_inf: float32 0-dim, 0 or 1, on the targets' device; None is 0.
        rate: factor of all amounts.
        momenta: their like too.
        momentum: factor of the momenta; 0: they are left alone.
    """
    _fused(targets, amounts, found_inf, rate=rate, momenta=momenta, momentum=momentum)


def approach(
    targets: Sequence[torch.Tensor],
    goals: Sequence[torch.Tensor],
    found_inf: torch.Tensor | None,
    *,
    share: float | torch.Tensor,
) -> None:
    """Bring `targets` nearer to `goals` by `share` of the way, in place, unless `found_inf` is 1: then nothing changes.

    targets ← targets + share · (goals − targets) is a descent with a weight decay of −1, at a rate of −share: so each tensor
    is read once, and nothing is kept between.

    Args:
        targets: tensors of one dtype and device.
        goals: their like in shape, dtype, device and memory layout; they stay as they are.
        found_inf: as in `descend`.
        share: a number, or one on the targets' device, 0-dim; a GPU's kernel takes the latter in float32.
    """
    if isinstance(share, torch.Tensor) and share.is_cuda:
        share = share.float()
    _fused(targets, goals, found_inf, rate=-share, weight_decay=-1.0)


def _fused(
    targets: Sequence[torch.Tensor],
    amounts: Sequence[torch.Tensor],
    found_inf: torch.Tensor | None,
    *,
    rate: float | torch.Tensor,
    weight_decay: float = 0.0,
    momenta: Sequence[torch.Tensor] = (),
    momentum: float = 0.0,
) -> None:
    sgd(
        list(targets),
        list(amounts),
        list(momenta),
        fused=True,
        found_inf=found_inf,
        lr=rate,  # type: ignore[arg-type]  # the kernel takes a tensor too
        momentum=momentum,
        weight_decay=weight_decay,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )


class Begun(torch.optim.Optimizer):
    """An optimizer whose state is there from the beginning, in its parameters' memory layout, and not from the first step on.

    Subclasses say in `fresh` what it begins with, and call `begin` once constructed. `step` honours `grad_scale`, by which
    gradients are divided, and `found_inf`: float32 0-dim tensors on the parameters' device, set before each step; None, or
    not set, is 1 and 0. `torch.amp.GradScaler` sets them too.
    """

    grad_scale: torch.Tensor | None  # annotations and no values: a scaler multiplies what it finds, and deletes its own
    found_inf: torch.Tensor | None

    @property
    def overflow(self) -> torch.Tensor | None:
        """Return `found_inf`, or None where none was set."""
        return getattr(self, "found_inf", None)

    def fresh(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the state that a parameter begins with."""
        raise NotImplementedError

    def begin(self) -> None:
        """Fill in what state is missing, and bring what is there into the parameters' layout."""
        self._step_supports_amp_scaling = True
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                for name, value in self.fresh(parameter).items():
                    state[name] = value.copy_(state[name]) if name in state else value

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of an optimizer of the same kind over the same parameters; the given one is not changed."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["lr"] = float(group["lr"])  # a tensor, where the step was captured
        self.begin()

    def gather(self, group: dict[str, Any], *names: str) -> tuple[list[torch.Tensor], ...]:
        """Return a group's parameters that have gradients, these gradients divided by `grad_scale`, and the named states."""
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters]
        scale = getattr(self, "grad_scale", None)
        if scale is not None and parameters:
            gradients = torch._foreach_div(gradients, scale.to(parameters[0].dtype))
        return parameters, list(gradients), *([self.state[parameter][name] for parameter in parameters] for name in names)
