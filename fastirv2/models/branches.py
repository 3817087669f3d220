"""Branches that read the same input: as they are drawn, or with what they have in common computed at once."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.autograd.function import FunctionCtx

from fastirv2.models.layers import ConvNorm, activated, pointwise
from fastirv2.models.norm import normalise
from fastirv2.models.residual import Reader


class Branches(Reader):
    """Branches that read the same input, their outputs concatenated along the channels; submodules `branch0`, `branch1`, ….

    Where `merge` is set, the 1×1 convolutions that read the input are one convolution and one normalisation over the channels
    of all, and each branch's last ReLU writes to its place in the concatenation. The mathematics is the same, and so are the
    parameters, their gradients and the running statistics: weights are concatenated anew in each pass. Branches that
    all end in a normalised convolution also scale what they put out for nothing.
    """

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        for number, branch in enumerate(branches):
            self.add_module(f"branch{number}", branch)
        self.branches = branches
        self.merge = True

    def concatenated(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Map (N, C, H, W) to (N, sum of the branches' channels, H', W'), scaled by a number above 0."""
        if self.merge:
            return _merged(self.branches, x, scale)
        return torch.cat([branch(x) if scale == 1 else _scaled(branch, x, scale) for branch in self.branches], dim=1)


class Concat(Branches):
    """Branches that are a layer of their own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, sum of the branches' channels, H', W')."""
        return self.concatenated(self.read(x))


def merge_siblings(model: nn.Module, merge: bool) -> None:
    """Set whether sibling convolutions of `model` run as one."""
    for module in model.modules():
        if isinstance(module, Branches):
            module.merge = merge


def _scaled(branch: nn.Module, x: torch.Tensor, scale: float) -> torch.Tensor:
    """Return what a branch that ends in a `ConvNorm` puts out, scaled by its last normalisation."""
    *before, last = branch if isinstance(branch, nn.Sequential) else (branch,)
    for layer in before:
        x = layer(x)
    return last(x, scale)


def _merged(branches: tuple[nn.Module, ...], x: torch.Tensor, scale: float) -> torch.Tensor:
    """Run the branches, their heads as one, and their last ReLUs into one tensor.

    A number above 0 goes through a ReLU, so that the last normalisation of each branch can scale for it.
    """
    chains = [tuple(branch) if isinstance(branch, nn.Sequential) else (branch,) for branch in branches]
    siblings = [isinstance(chain[0], ConvNorm) and chain[0].conv.pointwise for chain in chains]
    if sum(siblings) < 2:
        siblings = [False] * len(chains)
    heads = [chain for chain, sibling in zip(chains, siblings, strict=True) if sibling]
    begun = iter(_heads([chain[0] for chain in heads], x, [scale if len(chain) == 1 else 1.0 for chain in heads]))
    ends = []
    for chain, sibling in zip(chains, siblings, strict=True):
        y = next(begun) if sibling else _before_relu(chain[0], x, scale if len(chain) == 1 else 1.0)
        for previous, layer in pairwise(chain):
            if _has_relu(previous):  # a head's output is a slice, of which ReLU makes a dense tensor
                y = y.relu() if sibling and previous is chain[0] else activated(y)
            y = _before_relu(layer, y, scale if layer is chain[-1] else 1.0)
        ends.append((y, _has_relu(chain[-1])))
    return _concatenate_activated(ends)


def _heads(heads: list[ConvNorm], x: torch.Tensor, scales: list[float]) -> tuple[torch.Tensor, ...]:
    """Return what each of `heads` has before its ReLU."""
    if not heads:
        return ()
    y = pointwise(x, torch.cat([head.conv.weight.to(x.dtype) for head in heads]))  # in autocast's type: half the bytes
    return normalise([head.bn for head in heads], y, scales)


def _has_relu(layer: nn.Module) -> bool:
    return isinstance(layer, ConvNorm) and layer.relu


def _before_relu(layer: nn.Module, x: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the layer's output before its ReLU, if it has one, scaled if it is normalised."""
    return layer.bn(layer.conv(x), scale) if isinstance(layer, ConvNorm) else layer(x)


def _concatenate_activated(parts: list[tuple[torch.Tensor, bool]]) -> torch.Tensor:
    """Concatenate along the channels; those that are marked pass a ReLU first."""
    tensors, marks = zip(*parts, strict=True)
    if torch.compiler.is_compiling():
        return torch.cat([y.relu() if relu else y for y, relu in parts], dim=1)
    return _ActivatedConcatenation.apply(marks, *tensors)


class _ActivatedConcatenation(torch.autograd.Function):
    """Concatenation along the channels, into which the ReLUs before it write: a pass over the images less than both."""

    @staticmethod
    def forward(ctx: FunctionCtx, relu: tuple[bool, ...], *parts: torch.Tensor) -> torch.Tensor:
        ctx.relu, ctx.sizes = relu, [part.shape[1] for part in parts]
        n, _, height, width = parts[0].shape
        last = any(part.is_contiguous(memory_format=torch.channels_last) for part in parts)
        layout = torch.channels_last if last else torch.contiguous_format
        y = torch.empty((n, sum(ctx.sizes), height, width), dtype=parts[0].dtype, device=parts[0].device, memory_format=layout)
        for part, out, marked in zip(parts, y.split(ctx.sizes, dim=1), relu, strict=True):
            if marked:
                torch.clamp_min(part, 0, out=out)
            else:
                out.copy_(part)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        gradients = zip(dy.split(ctx.sizes, dim=1), y.split(ctx.sizes, dim=1), ctx.relu, strict=True)
        return None, *(torch.ops.aten.threshold_backward(g, part, 0) if relu else g for g, part, relu in gradients)
