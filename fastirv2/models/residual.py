"""Residual sums, and ReLUs whose gradient is masked by those who read them.

A block's gradient is the sum of what its shortcut and its branches pass back, and the ReLU of the block before then masks it.
Where each block is compiled by itself, the sum is written to memory, read and written again. But the mask is known to the
reader too: x > 0. So it can mask as it adds up, and the block before passes on what it gets: two passes over images less.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.autograd.function import FunctionCtx


class Reader(nn.Module):
    """What reads the results of ReLUs, or of max-pooling them, and masks the gradient where `masks` is set.

    If a ReLU does so again, it is the same gradient.
    """

    masks = False

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` with the gradient that it is to have."""
        return _Masked.apply(x) if self.masks else x


class ResidualSum(Reader):
    """What ends in a residual sum; where `passes_on` is set, its ReLU leaves the mask of the gradient to all its readers."""

    relu = True
    passes_on = False

    def scaled_sum(self, x: torch.Tensor, residual: torch.Tensor, scale: float) -> torch.Tensor:
        """Return x + scale · residual, then ReLU if there is one (arXiv 1602.07261, section 3.3 and figure 20)."""
        y = torch.add(x, residual, alpha=scale)
        if self.passes_on:
            return _PassedOn.apply(y)
        return y.relu_() if self.relu else y


def mask_where_read(parts: Sequence[nn.Module]) -> None:
    """Have the gradients of residual sums masked by their readers, of parts that run one after the other.

    All residual blocks mask, after whatever part, so that those of a kind stay the same code.
    """
    for part, following in pairwise(parts):
        if isinstance(part, ResidualSum):
            part.masks = True
            if part.relu and isinstance(following, Reader):
                part.passes_on = following.masks = True


class _PassedOn(torch.autograd.Function):
    """ReLU whose gradient is masked elsewhere."""

    @staticmethod
    def forward(_ctx: FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        return x.relu()

    @staticmethod
    def backward(_ctx: FunctionCtx, dy: torch.Tensor) -> torch.Tensor:
        return dy


class _Masked(torch.autograd.Function):
    """The gradient of a ReLU that has been computed already."""

    @staticmethod
    def forward(ctx: FunctionCtx, y: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(y)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: FunctionCtx, dy: torch.Tensor) -> torch.Tensor:
        (y,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(dy, y, 0)
