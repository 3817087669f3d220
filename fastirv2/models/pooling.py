"""Max-pooling whose gradient is the same to the bit every time, which torch's is not on a GPU: it adds up with atomics.

Compiled for a GPU, that gradient also takes fewer passes: torch's compiler would fill a tensor with zeros in single precision
and add to it with atomics.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

_SIZE, _STRIDE = 3, 2


class MaxPool(nn.MaxPool2d):
    """Max-pooling of 3 × 3 with stride 2, without padding: the only one in these networks.

    Where deterministic algorithms are asked for (`torch.use_deterministic_algorithms`), and compiled for a GPU, its gradient is
    gathered: each input looks up which of the up to four windows over it chose it, in a fixed order.
    """

    def __init__(self) -> None:
        super().__init__(_SIZE, _STRIDE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to (N, C, ⌊(H − 1) / 2⌋, ⌊(W − 1) / 2⌋)."""
        gathered = torch.are_deterministic_algorithms_enabled() or (torch.compiler.is_compiling() and x.is_cuda)
        if gathered and x.requires_grad:
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
        if torch.compiler.is_compiling():
            return _gathered(dy, chosen, height, width)
        dx = dy.new_zeros((*dy.shape[:2], height, width)).contiguous(memory_format=ctx.layout)
        own = torch.arange(height * width, device=dy.device).view(height, width)
        for top in range(_SIZE):
            for left in range(_SIZE):  # what the windows have at this place are all different inputs
                rows, columns = _every_window(top, dy.shape[2]), _every_window(left, dy.shape[3])
                dx[:, :, rows, columns] += torch.where(chosen == own[rows, columns], dy, 0)
        return dx


def _gathered(dy: torch.Tensor, chosen: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the gradient of the inputs as one formula for each of them, which a compiler writes where it is read.

    The formula's own order of dimensions is that in which a compiler lays out what it writes.
    """
    own = torch.arange(height * width, device=dy.device).view(height, width, 1)
    chosen, dy = _spread(chosen.permute(0, 2, 3, 1), -1), _spread(dy.permute(0, 2, 3, 1), 0.0)
    pieces = []
    for top in (0, _STRIDE):  # the window before the last that reaches this input, and the last
        for left in (0, _STRIDE):
            place = (slice(None), slice(top, top + height), slice(left, left + width))
            pieces.append(torch.where(chosen[place] == own, dy[place], 0))
    return sum(pieces[1:], pieces[0]).permute(0, 3, 1, 2)


def _spread(windows: torch.Tensor, fill: float) -> torch.Tensor:
    """Return each value of windows (N, H, W, C) at the 2 × 2 places of its stride, with windows of `fill` all around."""
    n, height, width, channels = windows.shape
    framed = functional.pad(windows, (0, 0, 1, 1, 1, 1), value=fill)
    repeated = framed[:, :, None, :, None].expand(-1, -1, _STRIDE, -1, _STRIDE, -1)
    return repeated.reshape(n, _STRIDE * (height + 2), _STRIDE * (width + 2), channels)


def _every_window(offset: int, windows: int) -> slice:
    """Return where along a side the windows have their input number `offset`."""
    return slice(offset, offset + _STRIDE * windows - 1, _STRIDE)


def _layout(x: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
