"""Pooling with a gradient of its own gives torch's: max-pooling that gathers it, ties included, and average-pooling."""

import pytest
import torch

from fastirv2.models.pooling import AveragePool, MaxPool


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(3, 3), (9, 12), (35, 35), (8, 7)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_are_torchs(deterministic, size, layout, device):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 4, (2, 5, *size), generator=generator).double().contiguous(memory_format=layout)  # many ties
    ours, theirs = x.clone().to(device).requires_grad_(), x.clone().requires_grad_()
    y = MaxPool()(ours)
    wanted = torch.nn.functional.max_pool2d(theirs, 3, 2)
    dy = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    y.backward(dy.to(device))
    wanted.backward(dy)
    assert "Gathered" in type(y.grad_fn).__name__
    assert torch.equal(y.cpu(), wanted)
    torch.testing.assert_close(ours.grad.cpu(), theirs.grad, rtol=1e-15, atol=1e-15)
    assert ours.grad.is_contiguous(memory_format=layout)


def test_it_is_torchs_own_where_nothing_has_to_be_deterministic():
    x = torch.randn(1, 2, 7, 7, requires_grad=True)
    assert "MaxPool" in type(MaxPool()(x).grad_fn).__name__
    assert "Gathered" not in type(MaxPool()(x).grad_fn).__name__


@pytest.mark.parametrize("size", [(3, 3), (9, 12), (8, 7)])
def test_compiled_its_gradient_is_torchs_too_and_channels_last(deterministic, size):
    """Traced only, since making kernels takes long; on a GPU it is so without being asked for."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, 4, (2, 5, *size), generator=generator).double().contiguous(memory_format=torch.channels_last)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled = torch.compile(MaxPool(), backend="aot_eager", fullgraph=True)
    wanted = torch.nn.functional.max_pool2d(theirs, 3, 2)
    dy = torch.randn(wanted.shape, generator=generator, dtype=torch.float64)
    compiled(ours).backward(dy)
    wanted.backward(dy)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-15, atol=1e-15)
    assert ours.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 5), (8, 7)])
def test_average_pooling_compiled_has_torchs_gradient_and_channels_last(size):
    generator = torch.Generator().manual_seed(1)
    x, dy = (torch.randn(2, 5, *size, generator=generator, dtype=torch.float64) for _ in range(2))
    ours, theirs = (x.clone().contiguous(memory_format=torch.channels_last).requires_grad_() for _ in range(2))
    y = torch.compile(AveragePool(), backend="aot_eager", fullgraph=True)(ours)
    wanted = torch.nn.functional.avg_pool2d(theirs, 3, 1, 1, count_include_pad=False)
    assert "AvgPool" in type(AveragePool()(ours).grad_fn).__name__  # eagerly it is torch's
    y.backward(dy)
    wanted.backward(dy)
    assert torch.equal(y, wanted)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-14, atol=1e-14)
    assert ours.grad.is_contiguous(memory_format=torch.channels_last)
