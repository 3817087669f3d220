"""A running average of the weights, which is validated beside the weights themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from fastirv2.errors import UsageError
from fastirv2.models.norm import BatchNorm2d
from fastirv2.training.fused import approach


@dataclass(frozen=True)
class EmaConfig:
    """The running average of weights and normalisation statistics."""

    decay: float = 0.0
    """Share of the average that a step of schedule.batch images keeps, such as 0.9999 (the first steps keep less); 0: no
    average."""
    scaling: Literal["images", "none"] = "images"
    """How the decay follows another global batch: so that the average spans as many images (images), or steps (none)."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UsageError(f"ema: decay must be 0, for none, or lie between 0 and 1; got {self.decay}")


def for_run(config: EmaConfig, *, global_batch: int, batch: int) -> EmaConfig:
    """Return what a run with this global batch averages by, where the decay is given for steps of `batch` images.

    decay^(global_batch / batch) halves a weight's share in the average over as many images as before (Busbridge et al. 2023,
    arXiv 2307.13813, definition 1.2).
    """
    return config if config.scaling == "none" else replace(config, decay=config.decay ** (global_batch / batch))


def describe_averaging(config: EmaConfig, *, global_batch: int, batch: int) -> str:
    """Say how the run's global batch changes the decay; "" where it does not."""
    decay = for_run(config, global_batch=global_batch, batch=batch).decay
    if decay == config.decay:
        return ""
    return f"weights averaged with decay {decay:.6g} a step instead of {config.decay:g}: over as many images as the recipe does"


class Ema:
    """Averages of a model's parameters and of its normalisation's running means and variances.

    After the t-th step that counts, average ← d · average + (1 − d) · weight with d = min(decay, (1 + t) / (10 + t)):
    TensorFlow's `ExponentialMovingAverage` with `num_updates`, which the network's paper was evaluated with. So the first
    steps forget the weights that training began with, and no further correction is needed.

    Make it when the model is on its device and holds the weights to begin with. Parameters are float32 or float64, and the
    averages their like. On several ranks every one keeps the same averages of the weights; statistics of normalisation
    are as different as the model's own, and `exchange` brings them to where those are made the same.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self.model = model
        self.decay = config.decay
        named = dict(model.named_parameters())
        for name, module in model.named_modules():
            if isinstance(module, BatchNorm2d):
                named |= {f"{name}.{statistic}": getattr(module, statistic) for statistic in ("running_mean", "running_var")}
        if wrong := {tensor.dtype for tensor in named.values()} - {torch.float32, torch.float64}:
            raise TypeError(f"averages are kept of float32 and float64, not of {wrong}")
        self.names = [name.removeprefix(".") for name in named]
        self.weights = [tensor.detach() for tensor in named.values()]
        self.averages = [tensor.clone(memory_format=torch.preserve_format) for tensor in self.weights]
        self.updates = torch.zeros((), dtype=torch.float64, device=self.weights[0].device)
        self.exchanged = False

    @torch.no_grad()
    def update(self, found_inf: torch.Tensor | None = None) -> None:
        """Take in the weights after a step; nothing changes if `found_inf`, float32 0-dim on the device, is 1."""
        self._expect_own_weights()
        t = self.updates + 1
        share = 1 - torch.clamp((1 + t) / (10 + t), max=self.decay)
        approach(self.averages, self.weights, found_inf, share=share)
        self.updates += 1 if found_inf is None else 1 - found_inf

    @torch.no_grad()
    def exchange(self) -> None:
        """Put the averages into the model and its weights where the averages were; a second call undoes it, to the bit.

        Values move and tensors stay, so that compiled code, CUDA graphs, the optimizer and gradient buckets, which all hold
        on to addresses, need not know.
        """
        kept = [torch.empty_like(tensor) for tensor in self.weights]
        torch._foreach_copy_(kept, self.weights)
        torch._foreach_copy_(self.weights, self.averages)
        torch._foreach_copy_(self.averages, kept)
        self.exchanged = not self.exchanged

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the averages in the model for as long as the context lasts."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    def state_dict(self) -> dict[str, Any]:
        """Return the averages as a state dict that the model could load, and the number of steps taken in; no copies."""
        self._expect_own_weights()
        averages = dict(zip(self.names, self.averages, strict=True))
        weights = {name: averages.get(name, tensor) for name, tensor in self.model.state_dict().items()}
        return {"updates": self.updates, "weights": weights}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self._expect_own_weights()
        self.updates.copy_(state["updates"])
        for name, average in zip(self.names, self.averages, strict=True):
            average.copy_(state["weights"][name])

    def _expect_own_weights(self) -> None:
        if self.exchanged:
            raise RuntimeError("the model holds the averages at present, not its own weights")
