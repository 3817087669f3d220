"""The regions that a network is compiled in, and the parts whose activations can be computed twice, in the order they run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import nn
from torch.utils.checkpoint import checkpoint

from fastirv2.models.layers import GlobalPool
from fastirv2.models.residual import mask_where_read

_NEW_STAGE = {"reduction_a", "reduction_b", "mixed_6a", "mixed_7a"}  # these halve the feature maps' sides


def stages(model: nn.Module) -> list[list[nn.Module]]:
    """Return the parts of `model`, all but its head, by stages of one resolution each: of 35², 17² and 8² at 299².

    A part is a submodule that has parameters and is no last layer, or each element of one that is a sequence. Parts of a kind
    run the same code on the same shapes.
    """
    found: list[list[nn.Module]] = [[]]
    for name, child in model.named_children():
        if name in _NEW_STAGE:
            found.append([])
        if isinstance(child, nn.Linear) or not any(True for _ in child.parameters()):
            continue
        found[-1].extend(child if isinstance(child, nn.Sequential) else [child])
    return found


class Region(NamedTuple):
    """What is compiled by itself: a function of a module, as it is called when the network runs."""

    module: nn.Module
    method: str = "forward"

    def change(self, how: Callable[[Callable], Callable]) -> None:
        """Have what `how` makes of the function called in its place."""
        setattr(self.module, self.method, how(getattr(self.module, self.method)))


def regions(model: nn.Module, *, recomputed: bool = False) -> list[Region]:
    """Part a network, and return the parts of all its stages, of which each then masks the gradient of the one before.

    Layers that make a stem are one part, unless each of them is `recomputed` by itself.
    """
    parts = [part for stage in stages(model) for part in stage]
    mask_where_read([*parts, *(module for module in model.modules() if isinstance(module, GlobalPool))])
    stem = [] if recomputed else [model.get_submodule(name) for name in getattr(model, "STEM", ())]
    apart = [Region(part) for part in parts if part not in stem]
    return [Region(model, "stem"), *apart] if stem else apart


def recompute_stages(model: nn.Module, count: int) -> None:
    """Have the first `count` stages keep only each part's input, and compute the rest again when its gradient is due.

    It is torch's checkpointing (Chen et al. 2016, arXiv 1604.06174) without re-entrance, so that it goes with
    DistributedDataParallel and compiled parts. Normalisation moves its running statistics in the second computation too:
    whoever runs the backward pass puts them back.
    """
    for stage in stages(model)[:count]:
        for part in stage:
            part.forward = partial(checkpoint, part.forward, use_reentrant=False, preserve_rng_state=False)
