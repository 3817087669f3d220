"""Batch normalisation whose statistics are taken over a chosen number of images, whatever the number of devices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import nn
from torch.autograd.function import FunctionCtx

_all_gather = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor  # renamed in torch 2.13


@dataclass(frozen=True)
class Statistics:
    """How a rank's batch takes its statistics: over a group of ranks, or over equal parts of the batch, or plainly.

    `group` holds the ranks that share statistics (None: this rank alone); `splits` is the number of parts of this rank's
    batch that are normalised each on its own. At most one of the two is in use.
    """

    group: dist.ProcessGroup | None = None
    splits: int = 1


class BatchNorm2d(nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` over the images that `statistics` names, on CPU and CUDA, through functional collectives.

    `num_batches_tracked` is kept for its place in state dicts and never counted up: the momentum is fixed, so nothing
    reads it, and counting would be one more kernel for each layer and step. A `frozen` layer normalises by its running
    statistics in training too, and they stay as they are.
    """

    def __init__(self, features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(features, eps=eps, momentum=momentum)
        self.statistics = Statistics()
        self.frozen = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise `x` (N, C, H, W); in training mode the running statistics move by `momentum`."""
        moving = self.training and not self.frozen
        if not moving or self.statistics == Statistics():
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, moving, self.momentum, self.eps
            )
        y, mean, var, count = _SharedBatchNorm.apply(x, self.weight, self.bias, self.statistics, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean.mean(0), self.momentum)
            self.running_var.lerp_(var.mean(0) * (count / (count - 1)), self.momentum)
        return y


class _SharedBatchNorm(torch.autograd.Function):
    """Ioffe & Szegedy 2015, algorithm 1, and its gradient (section 3), with sums over a group of ranks or by parts.

    Statistics have the shape (splits, C); images are seen as (splits, N / splits, C, H, W), a view.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, statistics: Statistics, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        parts = x.unflatten(0, (statistics.splits, -1))
        exact = torch.promote_types(x.dtype, torch.float32)
        var, mean = torch.var_mean(parts.to(exact), dim=(1, 3, 4), correction=0)
        count = parts.shape[1] * parts.shape[3] * parts.shape[4]
        if statistics.group is not None:
            mean, var = _combine(mean, var, statistics.group)
            count *= dist.get_world_size(statistics.group)
        invstd = torch.rsqrt(var + eps)
        scale = weight * invstd
        shift = torch.addcmul(bias, mean, scale, value=-1)
        y = torch.empty_like(x)  # whole, and written through a view: a view returned from here could not be changed in place
        torch.addcmul(_spread(shift), parts, _spread(scale), out=y.unflatten(0, (statistics.splits, -1)))
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.statistics, ctx.count = statistics, count
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var, count

    @staticmethod
    def backward(ctx: FunctionCtx, dy: torch.Tensor, *_: object) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, invstd = ctx.saved_tensors
        splits = ctx.statistics.splits
        dy_parts = dy.unflatten(0, (splits, -1)).to(mean.dtype)
        normalised = (x.unflatten(0, (splits, -1)) - _spread(mean)) * _spread(invstd)
        sums = torch.stack([dy_parts.sum((1, 3, 4)), (dy_parts * normalised).sum((1, 3, 4))])
        d_bias, d_weight = sums.sum(1).unbind(0)
        if ctx.statistics.group is not None:
            sums = collectives.wait_tensor(collectives.all_reduce(sums, "sum", ctx.statistics.group))
        mean_dy, mean_dy_normalised = (sums / ctx.count).unbind(0)
        dx = _spread(weight * invstd) * (dy_parts - _spread(mean_dy) - normalised * _spread(mean_dy_normalised))
        return dx.to(x.dtype).flatten(0, 1), d_weight, d_bias, None, None


def _spread(statistic: torch.Tensor) -> torch.Tensor:
    """View a statistic (splits, C) so that it broadcasts over (splits, N, C, H, W)."""
    return statistic[:, None, :, None, None]


def _combine(mean: torch.Tensor, var: torch.Tensor, group: dist.ProcessGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine the ranks' means and biased variances (1, C) of equally many images, without cancellation (Chan et al. 1979)."""
    gathered = _all_gather(torch.stack([mean, var], dim=1), 0, group)
    means, variances = collectives.wait_tensor(gathered).unbind(1)
    mean = means.mean(0, keepdim=True)
    return mean, (variances + (means - mean).square()).mean(0, keepdim=True)


def share_statistics(model: nn.Module, statistics: Statistics) -> None:
    """Set how every `BatchNorm2d` of `model` takes its statistics in training."""
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.statistics = statistics


@torch.no_grad()
def flat_statistics(model: nn.Module) -> torch.Tensor:
    """Move all running means and variances of `model` into one tensor (n,), of which they become views, and return it.

    Those of frozen layers stay where they are. What is then done with all the others is one kernel. To be called once the
    model is on its device in its dtype.
    """
    layers = [module for module in model.modules() if isinstance(module, BatchNorm2d) and not module.frozen]
    buffers = [buffer for layer in layers for buffer in (layer.running_mean, layer.running_var)]
    flat = torch.cat(buffers) if buffers else torch.empty(0, device=next(model.parameters()).device)
    views = iter(flat.split([buffer.numel() for buffer in buffers]))
    for layer in layers:
        layer.running_mean, layer.running_var = next(views), next(views)
    return flat


@torch.no_grad()
def unite_running_statistics(flat: torch.Tensor, *, average: bool) -> None:
    """Give all ranks the same `flat_statistics`, in place, in one collective: their average, or rank 0's."""
    if not flat.numel():  # all are frozen, and the same from the beginning
        return
    if average:
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
    else:
        dist.broadcast(flat, src=0)
