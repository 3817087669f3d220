"""Max-pooling that gathers its gradient gives torch's, ties included."""

import pytest
import torch

from fastirv2.models.pooling import MaxPool


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
