"""Pooling with gradients of our own, where torch's are not the same to the bit every time or compile badly.

Max-pooling's adds up with atomics on a GPU, so that it does not repeat; compiled there, it also fills a tensor with zeros in
single precision first. Average-pooling's, compiled, works out for each value anew which windows hold it and how large each is.
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
        return _GatheredMaxPool.apply(x) if x.requires_grad and _is_gathered(x.device) else super().forward(x)


def choose(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Max-pool (N, C, H, W) as `MaxPool` does, without a gradient; return what it keeps, and where in its image that was."""
    return functional.max_pool2d(x, _SIZE, _STRIDE, return_indices=True)


def put_back(dy: torch.Tensor, chosen: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the gradient (N, C, H, W) of what `choose` was given, laid out as that: `dy` of what it kept, 0 elsewhere."""
    if _is_gathered(x.device):
        return _gathered(dy, chosen, x.shape[2:], _layout(x))
    sides = [_SIZE, _SIZE], [_STRIDE, _STRIDE], [0, 0], [1, 1]
    return torch.ops.aten.max_pool2d_with_indices_backward(dy, x, *sides, False, chosen)


def _is_gathered(device: torch.device) -> bool:
    return torch.are_deterministic_algorithms_enabled() or (torch.compiler.is_compiling() and device.type == "cuda")


class _GatheredMaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        y, chosen = choose(x)
        ctx.save_for_backward(chosen)
        ctx.sides, ctx.layout = x.shape[2:], _layout(x)
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, dy: torch.Tensor) -> torch.Tensor:
        (chosen,) = ctx.saved_tensors
        return _gathered(dy, chosen, ctx.sides, ctx.layout)


def _gathered(dy: torch.Tensor, chosen: torch.Tensor, sides: torch.Size, layout: torch.memory_format) -> torch.Tensor:
    """Return the gradient of the inputs, images of these sides."""
    if torch.compiler.is_compiling():
        return _gathered_at_once(dy, chosen, *sides)
    dx = dy.new_zeros((*dy.shape[:2], *sides)).contiguous(memory_format=layout)
    own = torch.arange(sides.numel(), device=dy.device).view(sides)
    for top in range(_SIZE):
        for left in range(_SIZE):  # what the windows have at this place are all different inputs
            rows, columns = _every_window(top, dy.shape[2]), _every_window(left, dy.shape[3])
            dx[:, :, rows, columns] += torch.where(chosen == own[rows, columns], dy, 0)
    return dx


def _gathered_at_once(dy: torch.Tensor, chosen: torch.Tensor, height: int, width: int) -> torch.Tensor:
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


class AveragePool(nn.AvgPool2d):
    """Average-pooling of 3 × 3 with stride 1 that does not count its padding: the only one in these networks."""

    def __init__(self) -> None:
        super().__init__(3, 1, padding=1, count_include_pad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, C, H, W) to the same shape."""
        ours = torch.compiler.is_compiling() and x.requires_grad
        return _AveragePool.apply(x) if ours else super().forward(x)


class _AveragePool(torch.autograd.Function):
    """Its gradient is the sum over the same windows: a value is in the windows of those that are in its own."""

    @staticmethod
    def forward(_ctx: FunctionCtx, x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    @staticmethod
    def backward(_ctx: FunctionCtx, dy: torch.Tensor) -> torch.Tensor:
        dtype = torch.promote_types(dy.dtype, torch.float32)
        rows, columns = (_neighbours(side, dtype, dy.device) for side in dy.shape[2:])
        shares = dy.to(dtype) / (rows[:, None] * columns)
        return functional.avg_pool2d(shares, 3, 1, 1, divisor_override=1).to(dy.dtype)


def _neighbours(side: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return how many places of a side are at most one away from each (side,), itself included."""
    place = torch.arange(side, device=device)
    return 3 - (place == 0).to(dtype) - (place == side - 1).to(dtype)


def _layout(x: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
