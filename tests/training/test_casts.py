"""Weights that are cast together: the same bits from fewer conversions; on a CPU, where graphs run as they are traced."""

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from fastirv2.models.branches import merge_siblings
from fastirv2.models.layers import ConvNorm
from fastirv2.training.casts import cast_together
from tests.training.reduced import reduced


@pytest.fixture(autouse=True)
def forgotten():
    yield
    torch._dynamo.reset()


def block35(merge):
    """Slim's Inception-ResNet-A: seven convolutions, the last with a bias; three read the input."""
    model = reduced("slim")
    merge_siblings(model, merge)
    return model.repeat[0], 320


def partly_frozen(merge):
    part, channels = block35(merge)
    part.branch2[1].conv.weight.requires_grad_(False)
    return part, channels


def nine(merge):
    """Nine convolutions, one after another: one more than are cast together."""
    torch.manual_seed(0)
    return nn.Sequential(*(ConvNorm(8, 8, 3, padding=1) for _ in range(9))), 8


def run(made, *, together, autocast=True):
    """Take a pass through a compiled part of a network.

    Returns:
        what it computes, with the gradients, and how often tensors are converted to another precision for that.
    """
    conversions = 0

    def count(graph, inputs):
        nonlocal conversions
        conversions += sum(node.target == torch.ops.aten._to_copy.default for node in graph.graph.nodes)
        return make_boxed_func(graph)

    def backend(graph, inputs):
        if together:
            cast_together(graph.graph)
            graph.recompile()
        return aot_autograd(fw_compiler=count, bw_compiler=count)(graph, inputs)

    part, channels = made
    part = part.to(memory_format=torch.channels_last)
    x = torch.randn(2, channels, 9, 9, generator=torch.Generator().manual_seed(1)).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = torch.compile(part.forward, backend=backend, fullgraph=True, dynamic=False)(x.bfloat16() if autocast else x)
    y.float().square().mean().backward()
    return [y, *(parameter.grad for parameter in part.parameters() if parameter.requires_grad)], conversions


CASES = [(block35, False, 12), (block35, True, 12), (nine, False, 14), (partly_frozen, False, 10)]


@pytest.mark.parametrize(("make", "merge", "spared"), CASES)
def test_weights_cast_together_compute_the_same_bits_with_one_conversion_for_up_to_eight(make, merge, spared):
    """One forward, one of the gradients; these lie in memory as their parameters do. What is frozen has no gradient."""
    expected, conversions = run(make(merge), together=False)
    computed, fewer = run(make(merge), together=True)
    assert conversions - fewer == spared
    for ours, theirs in zip(computed, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()


def test_what_runs_without_autocast_converts_nothing():
    expected, _ = run(nine(False), together=False, autocast=False)
    computed, conversions = run(nine(False), together=True, autocast=False)
    assert conversions == 0
    assert all(map(torch.equal, computed, expected))
