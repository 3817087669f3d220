"""A normalised convolution whose max-pooling comes first in training is the same with the pool behind it."""

import pytest
import torch
from torch import nn

from fastirv2.models.layers import PooledConvNorm
from fastirv2.models.norm import Statistics
from tests.models.pooled_case import assert_same, case, drawn, layer, passed
from tests.models.ranks import saved_by_ranks
from tests.models.test_branches import Passes, channels_inside


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("way", ["eager", "deterministic", "compiled"])
def test_it_gives_the_same_outputs_gradients_and_statistics(way, splits, device):
    """Traced only where it is compiled, since making kernels takes long."""
    ours, theirs = layer().to(device), layer()
    ours.bn.statistics = theirs.bn.statistics = Statistics(splits=splits)
    call = torch.compile(ours, backend="aot_eager", fullgraph=True) if way == "compiled" else ours
    torch.use_deterministic_algorithms(way == "deterministic")
    try:
        result = passed(ours, call, *(each.to(device) for each in case()))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same({name: value.cpu() for name, value in result.items()}, passed(theirs, drawn(theirs), *case()))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return saved_by_ranks(2, "tests.models.pooled_case", tmp_path_factory.mktemp("pooled"))


@pytest.mark.parametrize("way", ["eager", "compiled"])
def test_over_two_ranks_it_is_the_same_over_the_whole_batch(two_ranks, way):
    parts = [rank[way] for rank in two_ranks]
    ours = {name: torch.cat([part[name] for part in parts]) for name in ("y", "dx")}
    ours |= {name: sum(part[name] for part in parts) for name in parts[0] if name.startswith("d ")}
    ours |= {name: parts[0][name] for name in ("mean", "var")}
    whole = layer()
    assert_same(ours, passed(whole, drawn(whole), *case()))


@pytest.mark.parametrize("how", ["evaluated", "frozen"])
def test_with_statistics_that_stay_it_is_as_drawn_to_the_bit(how):
    ours = layer()
    ours.bn.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    ours.eval() if how == "evaluated" else setattr(ours.bn, "frozen", True)
    before = ours.bn.running_mean.clone()
    images, _ = case()
    assert torch.equal(ours(images), drawn(ours)(images))
    assert torch.equal(ours.bn.running_mean, before)


def test_another_normalisation_in_its_place_is_heeded():
    ours = layer()
    ours.bn = nn.BatchNorm2d(7).double()
    images, _ = case()
    assert torch.equal(ours(images), ours.pool(torch.relu(ours.bn(ours.conv(images)))))


def test_the_convolutions_output_is_the_only_image_in_full_size_and_all_are_channels_last():
    ours = PooledConvNorm(8, 16, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(4, 8, 13, 13, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16), Passes() as passes:
        y = ours(x)
    made = [one for _, _, result in passes.calls for one in (result if isinstance(result, tuple) else (result,))]
    made = [one for one in made if isinstance(one, torch.Tensor) and one.ndim == 4 and one.shape[:2] == (4, 16)]
    assert [one.dtype for one in made if one.shape[2:] == (13, 13)] == [torch.bfloat16]
    assert y.shape == (4, 16, 6, 6)
    assert all(channels_inside(one) for one in made)


def test_bf16_images_have_results_as_near_to_exact_ones_as_with_the_pool_behind():
    exact = layer()
    exact = passed(exact, exact, *(each.bfloat16().double() for each in case()))
    errors = []
    for how in (drawn, lambda made: made):
        made = layer().float()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = passed(made, how(made), *(each.bfloat16() for each in case()))
        errors.append({name: ((rounded[name] - value).norm() / value.norm()).item() for name, value in exact.items()})
    for name, error in errors[1].items():
        assert error <= 1.5 * errors[0][name] + 1e-3, name
