"""A batch, a gradient, and what a normalisation layer makes of them; shared by the test and its ranks."""

import torch


def case(dtype=torch.float64):
    """Images (8, 5, 6, 7), channels last, far from zero mean, and a gradient of the same shape."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 5, 6, 7, generator=generator, dtype=dtype) * 3 + torch.arange(8)[:, None, None, None] + 40
    dy = torch.randn(8, 5, 6, 7, generator=generator, dtype=dtype)
    return tuple(t.contiguous(memory_format=torch.channels_last) for t in (x, dy))


def normalise(norm, x, dy):
    """Take one training pass through `norm` with fixed weights; return output, gradients and running statistics."""
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, 5))
        norm.bias.copy_(torch.linspace(-1, 1, 5))
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = norm(x)
    y.backward(dy)
    assert y.is_contiguous(memory_format=torch.channels_last)
    return {
        "y": y.detach(), "dx": x.grad, "d_weight": norm.weight.grad, "d_bias": norm.bias.grad,
        "mean": norm.running_mean.clone(), "var": norm.running_var.clone(),
    }  # fmt: skip
