"""Run as a rank: blocks whose normalisation spans the ranks, eager and compiled, merged and not, and their collectives."""

import sys
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch.utils._python_dispatch import TorchDispatchMode

from fastirv2.models.branches import merge_siblings
from fastirv2.models.norm import Statistics, share_statistics
from fastirv2.models.slim import block35

KINDS = {  # as compiled code calls them, and other code
    "_c10d_functional::all_gather_into_tensor": "all_gather_into_tensor",
    "_c10d_functional::all_reduce": "all_reduce",
    "c10d::_allgather_base_": "all_gather_into_tensor",
    "c10d::allreduce_": "all_reduce",
}


class Collectives(TorchDispatchMode):
    """Counts the collectives of what runs while it is on."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        note(self.counts, function)
        return function(*args, **(kwargs or {}))


def note(counts, function):
    if isinstance(function, torch._ops.OpOverload) and function._schema.name in KINDS:
        counts[KINDS[function._schema.name]] += 1


def blocks():
    torch.manual_seed(0)
    model = nn.Sequential(block35(), block35()).double().to(memory_format=torch.channels_last)
    share_statistics(model, Statistics(dist.group.WORLD))
    return model


def passed(model, images):
    x = images.clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    gradients = {f"d {name}": parameter.grad for name, parameter in model.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **gradients, **dict(model.named_buffers())}


def eager(images, *, merge):
    model = blocks()
    merge_siblings(model, merge)
    with Collectives() as collectives:
        result = passed(model, images)
    return result, dict(collectives.counts)


def compiled(images):
    counts = Counter()

    def compiler(graph, _):
        for node in graph.graph.nodes:
            note(counts, node.target)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=compiler, partition_fn=min_cut_rematerialization_partition)  # as inductor divides it
    model = blocks()
    for block in model:
        block.forward = torch.compile(block.forward, backend=backend, fullgraph=True, dynamic=False)
    return passed(model, images), dict(counts), counters["stats"]["unique_graphs"]


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    generator = torch.Generator().manual_seed(dist.get_rank())
    images = torch.randn(3, 320, 5, 5, generator=generator, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    results = {"drawn": eager(images, merge=False), "merged": eager(images, merge=True), "compiled": compiled(images)}
    torch.save(results, out / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
