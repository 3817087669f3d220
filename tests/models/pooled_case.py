"""A normalised convolution with a pool, and passes through it; run as a rank it saves those of its share of a batch."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from fastirv2.models.layers import PooledConvNorm
from fastirv2.models.norm import Statistics


def layer():
    """A layer of 5 to 7 channels, of which some have negative weights."""
    torch.manual_seed(0)
    made = PooledConvNorm(5, 7, 3, padding=1, eps=1e-3).double().to(memory_format=torch.channels_last)
    with torch.no_grad():
        made.bn.weight.copy_(torch.linspace(-1, 2.1, 7))
        made.bn.bias.copy_(torch.linspace(1, -1, 7))
    return made


def case():
    """Images (4, 5, 12, 13), channels last, and a gradient of what becomes of them."""
    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(4, *shape, generator=generator, dtype=torch.float64) for shape in ((5, 12, 13), (7, 5, 6)))
    return tuple(each.contiguous(memory_format=torch.channels_last) for each in (x, dy))


def drawn(made):
    """What the layer is, with its pool where it is drawn."""
    return lambda x: made.pool(made.bn(made.conv(x)).relu())


def passed(made, call, x, dy):
    """Call it, once there and back; return output, gradients and running statistics."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = call(x)
    y.backward(dy)
    gradients = {f"d {name}": parameter.grad for name, parameter in made.named_parameters()}
    statistics = {"mean": made.bn.running_mean.clone(), "var": made.bn.running_var.clone()}
    return {"y": y.detach(), "dx": x.grad, **gradients, **statistics}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= 1e-9 * value.abs().max(), name


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    x, dy = (each.chunk(world)[rank] for each in case())
    results = {}
    for way in ("eager", "compiled"):
        made = layer()
        made.bn.statistics = Statistics(dist.group.WORLD)
        call = torch.compile(made, backend="aot_eager", fullgraph=True) if way == "compiled" else made
        results[way] = passed(made, call, x, dy)
    torch.save(results, out / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
