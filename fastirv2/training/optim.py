"""The optimizers: Nesterov SGD, RMSProp in TensorFlow's form, LAMB."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from fastirv2.errors import UsageError
from fastirv2.models.weights import head_of
from fastirv2.training.fused import Begun
from fastirv2.training.lamb import Lamb
from fastirv2.training.rmsprop import RMSProp

_ALPHA = {"rmsprop": 0.9, "lamb": 0.999}  # TensorFlow's and LAMB's defaults
_EPSILON = {"rmsprop": 1.0, "lamb": 1e-6}  # arXiv 1602.07261, section 4; LAMB's own code


@dataclass(frozen=True)
class OptimizerConfig:
    """How gradients move the weights; by default Nesterov SGD with weight decay on everything, as the predecessor trained."""

    kind: Literal["sgd", "rmsprop", "lamb"] = "sgd"
    """sgd: with Nesterov momentum; rmsprop: in TensorFlow's form (ε inside the root, mean square from 1, rate inside the
    momentum); lamb: You et al. 2019."""
    momentum: float = 0.9
    """Momentum, without dampening; for lamb β₁. rmsprop can do without: 0."""
    weight_decay: float = 1e-4
    """L2 penalty, added to the gradient (lamb: to the update)."""
    decay: Literal["all", "weights"] = "all"
    """What weight decay acts on; weights: not on biases and normalisation (which lamb then does not scale by layer either)."""
    alpha: float = 0.0
    """Decay of the mean of squared gradients; 0: rmsprop 0.9, lamb 0.999 (its β₂); sgd has none."""
    epsilon: float = 0.0
    """Added to that mean (rmsprop) or to its root (lamb); 0: rmsprop 1.0, lamb 1e-6; sgd has none."""
    clip: float = 0.0
    """Largest norm of all gradients together, to which larger ones are scaled down; 0: none."""
    body_rate: float = 1.0
    """Factor of the learning rate for all but the last layer, which begins anew in fine-tuning; logs have the last layer's."""

    def __post_init__(self) -> None:
        momentum = 0 < self.momentum < 1 or (self.kind == "rmsprop" and self.momentum == 0)
        if not (momentum and 0 <= self.weight_decay < math.inf):
            raise UsageError(
                f"optimizer: momentum must lie between 0 and 1 (for rmsprop it may be 0) and weight-decay not below 0; "
                f"got momentum {self.momentum}, weight-decay {self.weight_decay}"
            )
        if not (0 <= self.alpha < 1 and 0 <= self.epsilon < math.inf and 0 <= self.clip < math.inf):
            raise UsageError(
                f"optimizer: alpha must lie between 0 and 1, epsilon and clip not below 0; "
                f"got alpha {self.alpha}, epsilon {self.epsilon}, clip {self.clip}"
            )
        if not 0 < self.body_rate <= 1:
            raise UsageError(f"--optimizer.body-rate must lie in (0, 1]; got {self.body_rate}")
        if self.kind == "lamb" and self.epsilon >= 0.1:
            raise UsageError(
                f"optimizer: epsilon {self.epsilon} is one for rmsprop, next to which lamb's root vanishes; "
                f"give --optimizer.epsilon 0 for lamb's own, {_EPSILON['lamb']}"
            )


class NesterovSGD(Begun, torch.optim.SGD):
    """torch's SGD as one fused kernel over all parameters, its momentum zeros from the beginning.

    Left to itself torch allocates momentum in the first step and, where a scaler skips just that step, never writes to it:
    the second then begins from whatever lay in memory. Zeros give the same first step to the bit.

    torch's kernel, and not the FusedSGD of NVIDIA's apex: both read and write each tensor once (not measured side by side);
    torch's takes `grad_scale` and `found_inf` from the device, is there wherever torch is, and a run's bits do not depend on
    what else is installed.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, weight_decay: float) -> None:
        super().__init__(groups, lr=0.0, momentum=momentum, weight_decay=weight_decay, nesterov=True, fused=True)
        self.begin()

    def fresh(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a momentum of 0."""
        return {"momentum_buffer": torch.zeros_like(parameter)}


def create_optimizer(model: nn.Module, config: OptimizerConfig) -> Begun:
    """Make the optimizer over parameters that lie where they will be trained; its rate is set before each step."""
    groups = _groups(model, config)
    settings: dict[str, Any] = {"weight_decay": config.weight_decay}
    if config.kind == "sgd":
        return NesterovSGD(groups, momentum=config.momentum, **settings)
    alpha, settings["epsilon"] = config.alpha or _ALPHA[config.kind], config.epsilon or _EPSILON[config.kind]
    if config.kind == "rmsprop":
        return RMSProp(groups, alpha=alpha, momentum=config.momentum, **settings)
    return Lamb(groups, betas=(config.momentum, alpha), **settings)


def describe_optimizer(config: OptimizerConfig) -> str:
    """Say in a few words what the optimizer is."""
    where = "" if config.decay == "all" else " on weights"
    decay = f"weight decay {config.weight_decay:g}{where}" if config.weight_decay else "no weight decay"
    name = {"sgd": "Nesterov SGD", "rmsprop": "RMSProp", "lamb": "LAMB"}[config.kind]
    momentum = f"momentum {config.momentum:g}" if config.momentum else "no momentum"
    body = f", all but the last layer at {config.body_rate:g} of the rate" if config.body_rate != 1 else ""
    return f"{name}, {momentum}, {decay}{body}"


def _groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return the parameters that learn: all as one group, or by what decays, or by rate, or by both."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.body_rate == 1:
        return _by_decay(learning, config)
    head = list(head_of(model).parameters())
    body = [parameter for parameter in learning if not any(parameter is each for each in head)]
    scaled = [{**group, "rate_factor": config.body_rate} for group in _by_decay(body, config)]
    return [*scaled, *({**group, "rate_factor": 1.0} for group in _by_decay(head, config))]


def _by_decay(parameters: list[nn.Parameter], config: OptimizerConfig) -> list[dict[str, Any]]:
    """Return parameters as one group, or those with several dimensions and those with one: biases and normalisation."""
    if config.decay == "all":
        return [{"params": parameters}]
    plain: dict[str, Any] = {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0}
    if config.kind == "lamb":
        plain["adapt"] = False
    return [group for group in ({"params": [p for p in parameters if p.ndim >= 2]}, plain) if group["params"]]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the coming step, for each group as much of it as it has.

    A rate that is a tensor keeps its place, where a captured step reads it.
    """
    for group in optimizer.param_groups:
        own = rate * group.get("rate_factor", 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own
