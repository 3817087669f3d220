"""Gradients that are masked where a ReLU is read are those that the ReLU masks itself."""

import pytest
import torch
from torch import nn

from fastirv2 import models
from fastirv2.models.layers import GlobalPool
from fastirv2.models.residual import ResidualSum
from fastirv2.training.regions import regions
from tests.models.test_branches import images, trained_pass
from tests.training.reduced import reduced

ARCHITECTURES = ["paper", "slim"]


def network(arch):
    model = reduced(arch, classes=5).double().to(memory_format=torch.channels_last)
    model.dropout = nn.Identity()
    return model


@pytest.mark.parametrize("frozen", [False, True], ids=["", "frozen"])
@pytest.mark.parametrize("merge", [False, True], ids=["drawn", "merged"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_they_are_the_same_to_the_bit(arch, merge, frozen):
    results = []
    for parted in (False, True):
        model = network(arch)
        models.merge_siblings(model, merge)
        if frozen:  # up to the second of the first blocks
            blocks = model.block_a if arch == "paper" else model.repeat
            for part in (*list(model.children())[: list(model.children()).index(blocks)], blocks[0]):
                part.requires_grad_(False)
        if parted:
            regions(model)
        passed = trained_pass(model, images())
        results.append({name: value for name, value in passed.items() if value is not None})
    drawn, parted = results
    assert parted.keys() == drawn.keys()
    assert all(torch.equal(parted[name], value) for name, value in drawn.items())
    assert any(name.startswith("d ") and value.any() for name, value in drawn.items())


@pytest.mark.parametrize(("arch", "count"), [("paper", 20), ("slim", 39)])
def test_every_residual_sum_with_a_relu_leaves_its_mask_to_the_reader(arch, count):
    with torch.device("meta"):
        model = models.create(arch, 5)
    blocks = [module for module in model.modules() if isinstance(module, ResidualSum)]
    assert not any(block.passes_on or block.masks for block in blocks)
    regions(model)
    assert sum(block.passes_on for block in blocks) == sum(block.relu for block in blocks) == count
    assert all(block.masks for block in blocks)


def test_the_gradient_that_a_pool_masks_is_channels_last_as_its_reader_has_it():
    pool = GlobalPool()
    pool.masks = True
    x = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    x.requires_grad_()
    (dx,) = torch.autograd.grad(pool(x).sum(), x)
    assert torch.equal(dx, torch.where(x > 0, 1 / 9, 0.0))
    assert dx.is_contiguous(memory_format=torch.channels_last)
