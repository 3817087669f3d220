"""Siblings that run as one are the siblings as they are drawn: the same numbers, the same state, and no copies between."""

import functools
import io

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastirv2 import models
from fastirv2.models.branches import _concatenate_activated, merge_siblings
from fastirv2.models.norm import Statistics, flat_statistics, share_statistics
from fastirv2.models.paper import block_a, reduction_a

ARCHITECTURES = ["paper", "slim"]
BATCH, SIZE = 4, 75
aten = torch.ops.aten


def network(arch, *, merge):
    torch.manual_seed(0)
    model = models.create(arch, 5, dropout=0.0, merge=merge).double().to(memory_format=torch.channels_last)
    flat_statistics(model)  # as in training: all running statistics in one tensor
    return model


def images(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def trained_pass(model, x):
    """One pass forward and back; return outputs, gradients and buffers by name."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    gradients = {f"d {name}": parameter.grad for name, parameter in model.named_parameters()}
    return {"y": y.detach(), "dx": x.grad, **gradients, **dict(model.named_buffers())}


def assert_equal_but_for_rounding(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        # in front of a normalisation a bias has no gradient but rounding
        assert (ours[name] - value).abs().max() <= 1e-9 * value.abs().max() + 1e-13, name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_merged_siblings_give_the_same_outputs_gradients_and_statistics(arch):
    drawn, merged = (network(arch, merge=merge) for merge in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(drawn.state_dict().values(), merged.state_dict().values(), strict=True))
    assert_equal_but_for_rounding(trained_pass(merged, images()), trained_pass(drawn, images()))
    with torch.no_grad():
        ours, theirs = merged.eval()(images()), drawn.eval()(images())
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)


def test_they_do_where_parts_of_a_batch_have_statistics_of_their_own_and_where_statistics_are_frozen():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 384, 5, 5, generator=generator, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    results = []
    for merge in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(block_a(), block_a(), reduction_a()).double().to(memory_format=torch.channels_last)
        merge_siblings(model, merge)
        share_statistics(model, Statistics(splits=2))
        for layer in model[1].modules():
            layer.frozen = True
        results.append(trained_pass(model, images))
    assert_equal_but_for_rounding(*results)


def test_of_what_is_concatenated_only_what_is_marked_passes_a_relu_there_and_back():
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(2, width, 4, 5, generator=generator, dtype=torch.float64).requires_grad_() for width in (3, 1, 2)]
    dy = torch.randn(2, 6, 4, 5, generator=generator, dtype=torch.float64)
    ours = _concatenate_activated(list(zip(parts, (True, False, True), strict=True)))
    theirs = torch.cat([parts[0].relu(), parts[1], parts[2].relu()], dim=1)
    assert torch.equal(ours, theirs)
    for mine, wanted in zip(*(torch.autograd.grad(y, parts, dy) for y in (ours, theirs)), strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_state_goes_from_one_form_to_the_other_to_the_bit(arch):
    merged, drawn = (models.create(arch, 5, merge=merge) for merge in (True, False))
    before, file = {name: value.clone() for name, value in merged.state_dict().items()}, io.BytesIO()
    torch.save(before, file)
    file.seek(0)
    drawn.load_state_dict(torch.load(file, weights_only=True))
    for parameter in merged.parameters():
        parameter.data.zero_()
    merged.load_state_dict(drawn.state_dict())
    for model in (drawn, merged):
        state = model.state_dict()
        assert list(state) == list(before)
        assert all(torch.equal(state[name], value) for name, value in before.items())


class Passes(TorchDispatchMode):
    """Notes what reads and writes images while it is on."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function.overloadpacket, args, result))
        return result

    def count(self, *kinds):
        return sum(kind in kinds for kind, _, _ in self.calls)


def is_images(value):
    return isinstance(value, torch.Tensor) and value.ndim == 4 and value.shape[0] == BATCH and value.is_floating_point()


def channels_inside(value):
    """Whether an image's channels lie side by side, in the whole or in a slice of the channels."""
    return value.stride(1) == 1 or value.shape[1] == 1


@functools.cache
def forward(arch, *, merge, train):
    model = models.create(arch, 5, merge=merge).to(memory_format=torch.channels_last).train(train)
    x = images(torch.float32)
    with torch.autocast("cpu", torch.bfloat16), Passes() as passes:
        model(x)
    return passes


@pytest.mark.parametrize(("merge", "train"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_images_stay_channels_last_and_nothing_copies_them(arch, merge, train):
    passes = forward(arch, merge=merge, train=train)
    dense = {aten.convolution, aten.native_batch_norm, aten.mm, aten.addmm, aten.max_pool2d_with_indices, aten.avg_pool2d}
    seen = 0
    for kind, args, result in passes.calls:
        given = [value for value in args if is_images(value)]
        made = [value for value in (result if isinstance(result, tuple) else (result,)) if is_images(value)]
        if kind in (aten.permute, aten.view, aten._unsafe_view, aten.detach):  # of a product: the same memory seen otherwise
            continue
        seen += len(made)
        assert all(channels_inside(value) for value in given + made), kind
        if kind in dense:
            assert all(value.is_contiguous(memory_format=torch.channels_last) for value in given), kind
        assert kind not in (aten.clone, aten.contiguous), kind
        if kind is aten.copy_:  # a pool's output goes to its place in a concatenation, as `cat` would bring it
            assert not result.is_contiguous(memory_format=torch.channels_last)
        if kind is aten._to_copy:  # the images that come in
            assert not given or given[0].shape[1] == 3
    assert seen > 300


@pytest.mark.parametrize(("arch", "drawn", "merged"), [("paper", 132, 104), ("slim", 244, 190)])
def test_siblings_are_one_convolution_and_one_normalisation(arch, drawn, merged):
    plain = 40 if arch == "slim" else 0  # convolutions without normalisation
    for merge, convolutions in ((False, drawn), (True, merged)):
        passes = forward(arch, merge=merge, train=True)
        assert passes.count(aten.convolution, aten.mm, aten.addmm) == convolutions + 1  # and the last layer
        assert passes.count(aten.native_batch_norm) == convolutions - plain
