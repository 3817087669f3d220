"""Max-pooling whose gradient is the same to the bit every time, which torch's is not on a GPU: it adds up with atomics."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

_SIZE, _STRIDE = 3, 2


class MaxPool(nn.MaxPool2d):
    """Max-pooling of 3 × 3 with stride 2, without padding: the only one in these networks.

    Where deterministic algorithms are asked for (`torch.use_deterministic_algorithms`), its gradient is gathered: each input
    looks up which of the up to four windows over it chose it, in a fixed order.
    """

    def __init__(self) -> None:
        super().__init__(_SIZE, _STRIDE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C, ⌊(H − 1) / 2⌋, ⌊(W − 1) / 2⌋)."""
        if torch.are_deterministic_algorithms_enabled() and x.requires_grad:
            return _GatheredMaxPool.apply(x)
        return super().forward(x)


class _GatheredMaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        y, chosen = functional.max_pool2d(x, _SIZE, _STRIDE, return_indices=True)
        ctx.save_for_backward(chosen)
        ctx.size, ctx.layout = x.shape[2:], _layout(x)
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, dy: torch.Tensor) -> torch.Tensor:
        (chosen,) = ctx.saved_tensors
        height, width = ctx.size
        dx = dy.new_zeros((*dy.shape[:2], height, width)).contiguous(memory_format=ctx.layout)
        own = torch.arange(height * width, device=dy.device).view(height, width)
        for top in range(_SIZE):
            for left in range(_SIZE):  # what the windows have at this place are all different inputs
                rows, columns = _every_window(top, dy.shape[2]), _every_window(left, dy.shape[3])
                dx[:, :, rows, columns] += torch.where(chosen == own[rows, columns], dy, 0)
        return dx


def _every_window(offset: int, windows: int) -> slice:
    """Return where along a side the windows have their input number `offset`."""
    return slice(offset, offset + _STRIDE * windows - 1, _STRIDE)


def _layout(x: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
