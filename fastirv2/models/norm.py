"""Batch normalisation whose statistics are taken over a chosen number of images, whatever the number of devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional

from fastirv2.models.pooling import choose, put_back

# both renamed in torch 2.13
_all_gather_in_graph = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


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

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Normalise `x` (N, C, H, W) and scale the result; in training mode the running statistics move by `momentum`."""
        if self.moving and self.statistics != Statistics():
            return normalise((self,), x, (scale,))[0]
        weight, bias = _scaled(self.weight, scale), _scaled(self.bias, scale)
        return functional.batch_norm(x, self.running_mean, self.running_var, weight, bias, self.moving, self.momentum, self.eps)

    @property
    def moving(self) -> bool:
        """Whether it normalises by the batch's statistics, and moves its running ones."""
        return self.training and not self.frozen


def normalise(layers: Sequence[BatchNorm2d], x: torch.Tensor, scales: Sequence[float]) -> tuple[torch.Tensor, ...]:
    """Normalise `x` (N, C, H, W), whose channels are those of `layers`, all alike, one layer after the other.

    It is what the layers would do, each with its own channels, at once: one kernel, and one collective of their statistics.
    A layer's result is scaled by its place in `scales`, through its weight and bias: that costs no pass over the images.

    Returns:
        what each layer makes of its channels: slices of one tensor, or, compiled, tensors of their own.
    """
    first = layers[0]
    widths = [layer.num_features for layer in layers]
    weight = _joined([_scaled(layer.weight, scale) for layer, scale in zip(layers, scales, strict=True)])
    bias = _joined([_scaled(layer.bias, scale) for layer, scale in zip(layers, scales, strict=True)])
    means, variances = ([getattr(layer, name) for layer in layers] for name in ("running_mean", "running_var"))
    if not first.moving:
        y = functional.batch_norm(x, _joined(means), _joined(variances), weight, bias, False, 0.0, first.eps)
        return _split(y, widths)
    if torch.compiler.is_compiling():
        *parts, mean, var = _FusedBatchNorm.apply(x, weight, bias, widths, first.statistics, first.eps)
    else:
        y, mean, var = _normalised(x, weight, bias, first.statistics, first.eps)
        parts = _split(y, widths)
    _move(means + variances, [*mean.split(widths), *var.split(widths)], first.momentum)
    return tuple(parts)


def normalise_largest(layer: BatchNorm2d, x: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
    """Do as `layer`, which is training, and then a `MaxPool`: choose, and normalise what is kept, by statistics of all of `x`.

    The line that a channel is normalised by must rise, so that it keeps the order: `turned` (C,) is -1 where a weight is below
    0, and 1 elsewhere, and `x` (N, C, H, W) is what the layer would get, times that.
    """
    weight, bias, statistics = layer.weight * turned, layer.bias, layer.statistics
    if torch.compiler.is_compiling():
        y, mean, var = _FusedBatchNorm.apply(x, weight, bias, [len(weight)], statistics, layer.eps, True)
    else:
        parts = x.chunk(statistics.splits)
        made = [_PooledBatchNorm.apply(part, weight, bias, statistics.group, layer.eps) for part in parts]
        ys, means, variances = zip(*made, strict=True)
        y, mean, var = _joined(ys), _mean(means), _mean(variances)
    _move([layer.running_mean, layer.running_var], [mean * turned, var], layer.momentum)
    return y


def _move(running: list[torch.Tensor], new: list[torch.Tensor], momentum: float) -> None:
    # `.data`: where all statistics are views of one tensor, layers before this one have saved theirs, and never read them again
    torch._foreach_lerp_([old.data for old in running], new, momentum)


def _scaled(parameter: torch.Tensor, scale: float) -> torch.Tensor:
    return parameter if scale == 1 else parameter * scale


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _mean(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(parts).mean(0) if len(parts) > 1 else parts[0]


def _split(y: torch.Tensor, widths: list[int]) -> tuple[torch.Tensor, ...]:
    return y.split(widths, dim=1) if len(widths) > 1 else (y,)  # a slice could not be changed in place


def _normalised(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, statistics: Statistics, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return `x` normalised, and the means and unbiased variances (C,) that move the running statistics."""
    if statistics.group is not None:
        y, mean, var, count = _SharedBatchNorm.apply(x, weight, bias, statistics.group, eps)
        return y, mean, var * (count / (count - 1))
    # a momentum of 1 puts a part's own statistics where the running ones stand
    mean, var = torch.zeros(2, statistics.splits, len(weight), dtype=weight.dtype, device=x.device)
    parts = [
        functional.batch_norm(part, part_mean, part_var, weight, bias, True, 1.0, eps)
        for part, part_mean, part_var in zip(x.chunk(statistics.splits), mean, var, strict=True)
    ]
    return _joined(parts), mean.mean(0), var.mean(0)


class _FusedBatchNorm(torch.autograd.Function):
    """Ioffe & Szegedy 2015, algorithm 1, and its gradient (section 3), in plain formulas that a compiler makes kernels of.

    Statistics are taken in one reduction over all channels. Each layer's channels are then normalised on their own, as what
    follows reads them: what is computed for several readers at once would be written to memory first, in single precision.
    Where they are `pooled`, that is done with what max-pooling keeps.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        widths: list[int],
        statistics: Statistics,
        eps: float,
        pooled: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        ctx.widths, ctx.statistics = widths, statistics
        ctx.count = x[:, 0].numel() // statistics.splits
        var, mean = torch.var_mean(_wide(x, statistics), dim=_IMAGES, correction=0)
        if statistics.group is not None:
            mean, var = (each[None] for each in _combine(mean[0], var[0], statistics.group))
            ctx.count *= dist.get_world_size(statistics.group)
        deviation = torch.rsqrt(var + eps)
        kept, *chosen = choose(x) if pooled else (x,)
        ctx.save_for_backward(x, weight, mean, deviation, kept, *chosen)
        columns = zip(*(each.split(widths, -1) for each in (mean, weight * deviation, bias)), strict=True)
        parts = [
            ((_wide(part, statistics) - _spread(mean_)) * _spread(scale) + shift[:, None, None]).to(x.dtype).flatten(0, 1)
            for part, (mean_, scale, shift) in zip(kept.split(widths, 1), columns, strict=True)
        ]
        mean, var = mean.mean(0), var.mean(0) * (ctx.count / (ctx.count - 1))
        ctx.mark_non_differentiable(mean, var)
        return *parts, mean, var

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, deviation, kept, *chosen = ctx.saved_tensors
        splits, group = ctx.statistics.splits, ctx.statistics.group
        dys = [dy.unflatten(0, (splits, -1)) for dy in gradients[:-2]]
        parts = [part.unflatten(0, (splits, -1)) for part in kept.split(ctx.widths, 1)]
        triples = list(zip(dys, parts, map(_spread, mean.split(ctx.widths, 1)), strict=True))
        sums = torch.stack(
            [
                torch.cat([dy.sum(_IMAGES, dtype=mean.dtype) for dy in dys], 1),
                torch.cat([(dy * (part - m)).sum(_IMAGES) for dy, part, m in triples], 1) * deviation,
            ]
        )  # (2, splits, C)
        d_bias, d_weight = sums.sum(1)
        if group is not None:
            sums = collectives.wait_tensor(collectives.all_reduce(sums, "sum", group))
        shift, slope = sums / ctx.count
        # dx = scale · (dy - shift - (x - mean) · deviation · slope), which is a line in dy and x
        scale, steep = weight * deviation, deviation * slope
        # by a foreach, which a compiler computes once for each channel, and not again for each pixel
        of_x, rest = torch._foreach_mul([steep, shift - steep * mean], [-scale, -scale])
        lines = zip(*(map(_spread, each.split(ctx.widths, 1)) for each in (scale, of_x, rest)), strict=True)
        if chosen:  # all places have a gradient, what was not kept that of the statistics alone
            dys = [put_back(gradients[0], chosen[0], x).unflatten(0, (splits, -1))]
            parts = [x.unflatten(0, (splits, -1))]
        dx = [(dy * a + part * b + c).to(x.dtype).flatten(0, 1) for dy, part, (a, b, c) in zip(dys, parts, lines, strict=True)]
        return torch.cat(dx, 1), d_weight, d_bias, None, None, None, None


class _SharedBatchNorm(torch.autograd.Function):
    """Ioffe & Szegedy 2015, algorithm 1, and its gradient (section 3), with sums over a group of ranks.

    Each pass over the images is one of torch's own kernels: they read and write them in their own type and order.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, group: dist.ProcessGroup, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        mean, var = _combine(*_moments(x, weight), group)
        count = x[:, 0].numel() * dist.get_world_size(group)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.group, ctx.eps, ctx.count = group, eps, count
        ctx.mark_non_differentiable(mean, var)
        return functional.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var, count

    @staticmethod
    def backward(ctx: FunctionCtx, dy: torch.Tensor, *_: object) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, None, None, mean, torch.rsqrt(var + ctx.eps), True, ctx.eps, [True, True, True]
        )  # dx as if this rank's two means were those of the group
        own = torch.stack([d_weight, d_bias])
        total = own.clone()
        dist.all_reduce(total, group=ctx.group)
        slope, shift = (own * (dist.get_world_size(ctx.group) / ctx.count) - total / ctx.count).unbind(0)
        scale = weight * torch.rsqrt(var + ctx.eps)
        dx += functional.batch_norm(x, mean, var, scale * slope, scale * shift, False, 0.0, ctx.eps)
        return dx, d_weight, d_bias, None, None


class _PooledBatchNorm(torch.autograd.Function):
    """The same over a group of ranks or none, of which max-pooling then keeps the largest: only what it keeps is normalised.

    The gradient of what it does not keep is that of the statistics, a line in x.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, group: dist.ProcessGroup | None, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, var = _moments(x, weight)
        ctx.group, ctx.eps, ctx.count = group, eps, x[:, 0].numel()
        if group is not None:
            mean, var = _combine(mean, var, group)
            ctx.count *= dist.get_world_size(group)
        kept, chosen = choose(x)
        ctx.save_for_backward(x, weight, mean, var, kept, chosen)
        y = functional.batch_norm(kept, mean, var, weight, bias, False, 0.0, eps)
        unbiased = var * (ctx.count / (ctx.count - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return y, mean, unbiased

    @staticmethod
    def backward(ctx: FunctionCtx, dy: torch.Tensor, *_: object) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, var, kept, chosen = ctx.saved_tensors
        deviation = torch.rsqrt(var + ctx.eps)
        d_kept, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            dy, kept, weight, mean, var, mean, deviation, False, ctx.eps, [True, True, True]
        )  # as if the statistics were given: a CPU reads their first two forms, a GPU the others
        sums = torch.stack([d_weight, d_bias])
        if ctx.group is not None:
            dist.all_reduce(sums, group=ctx.group)
        slope, shift = (sums * (weight * deviation / -ctx.count)).unbind(0)
        dx = put_back(d_kept, chosen, x)
        dx += functional.batch_norm(x, mean, var, slope, shift, False, 0.0, ctx.eps)
        return dx, d_weight, d_bias, None, None


def _moments(x: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the means and biased variances (C,) of this rank's images, in the type of `like`."""
    unused = torch.zeros(2, x.shape[1], dtype=like.dtype, device=x.device)  # their type is that of the results
    return torch.batch_norm_update_stats(x, *unused, 0.0)


_IMAGES = (1, 3, 4)  # what statistics are taken over, in what `_wide` returns


def _wide(x: torch.Tensor, statistics: Statistics) -> torch.Tensor:
    """View images (N, C, H, W) as (splits, N / splits, C, H, W), in single precision at least."""
    return x.unflatten(0, (statistics.splits, -1)).to(torch.promote_types(x.dtype, torch.float32))


def _spread(statistic: torch.Tensor) -> torch.Tensor:
    """View a statistic (splits, C) so that it broadcasts over (splits, N, C, H, W)."""
    return statistic[:, None, :, None, None]


def _combine(mean: torch.Tensor, var: torch.Tensor, group: dist.ProcessGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Combine the ranks' means and biased variances (C,) of equally many images, without cancellation (Chan et al. 1979)."""
    own = torch.stack([mean, var])[None]
    if torch.compiler.is_compiling():
        gathered = collectives.wait_tensor(_all_gather_in_graph(own, 0, group))
    else:  # a functional collective costs the host several times as much
        gathered = own.new_empty(dist.get_world_size(group), *own.shape[1:])
        _all_gather(gathered, own, group)
    means, variances = gathered.unbind(1)
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)


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
