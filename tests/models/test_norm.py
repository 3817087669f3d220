"""Batch normalisation over chosen images equals torch's own over a batch of exactly those images."""

import pytest
import torch
from torch import nn

from fastirv2.models.norm import BatchNorm2d, Statistics, _FusedBatchNorm, _moments
from tests.models.norm_case import case, normalise
from tests.models.ranks import saved_by_ranks


def reference(x, dy):
    return normalise(nn.BatchNorm2d(5).double(), x, dy)


def assert_same(ours, theirs, names=("y", "dx", "d_weight", "d_bias", "mean", "var")):
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory):
    return saved_by_ranks(4, "tests.models.norm_ranks", tmp_path_factory.mktemp("norm"))


def joined(ranks, way):
    parts = [rank[way] for rank in ranks]
    whole = {name: torch.cat([part[name] for part in parts]) for name in ("y", "dx")}
    sums = {name: sum(part[name] for part in parts) for name in ("d_weight", "d_bias")}
    return {**whole, **sums, "mean": parts[0]["mean"], "var": parts[0]["var"]}


def test_over_four_ranks_it_is_torchs_over_the_whole_batch(four_ranks):
    assert_same(joined(four_ranks, "all"), reference(*case()))
    assert all(torch.equal(rank["all"]["mean"], four_ranks[0]["all"]["mean"]) for rank in four_ranks)


def test_over_pairs_of_ranks_it_is_torchs_over_their_halves(four_ranks):
    halves = [[t.chunk(2)[i] for t in case()] for i in range(2)]
    for i, half in enumerate(halves):
        assert_same(joined(four_ranks[2 * i : 2 * i + 2], "pairs"), reference(*half))


def test_united_running_statistics_are_the_average_or_rank_0s_on_all_ranks(four_ranks):
    means = [rank["pairs"]["mean"] for rank in four_ranks]
    assert not torch.equal(means[0], means[2])
    for rank in four_ranks:
        torch.testing.assert_close(rank["pairs"]["mean_True"], (means[0] + means[2]) / 2)
        assert torch.equal(rank["pairs"]["mean_False"], means[0])


def test_parts_of_a_batch_are_normalised_each_on_its_own():
    x, dy = case()
    norm = BatchNorm2d(5).double()
    norm.statistics = Statistics(splits=4)
    ours = normalise(norm, x, dy)
    parts = [reference(a, b) for a, b in zip(x.chunk(4), dy.chunk(4), strict=True)]
    theirs = {name: torch.cat([part[name] for part in parts]) for name in ("y", "dx")}
    theirs |= {name: sum(part[name] for part in parts) for name in ("d_weight", "d_bias")}
    theirs |= {name: sum(part[name] for part in parts) / 4 for name in ("mean", "var")}
    assert_same(ours, theirs)


def test_gradients_are_those_of_finite_differences():
    x = case()[0][:4, :, :2, :2].contiguous()
    norm = BatchNorm2d(5).double()
    norm.statistics = Statistics(splits=2)
    assert torch.autograd.gradcheck(norm, x.requires_grad_())


def test_plain_statistics_and_evaluation_are_torchs_to_the_bit():
    x, dy = case(torch.float32)
    ours, theirs = BatchNorm2d(5), nn.BatchNorm2d(5)
    first, second = normalise(ours, x, dy), normalise(theirs, x, dy)
    assert all(torch.equal(first[name], second[name]) for name in first)
    ours.statistics = Statistics(splits=2)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_bf16_images_keep_their_type_and_statistics_their_precision():
    x, dy = case(torch.float32)
    norm = BatchNorm2d(5)
    norm.statistics = Statistics(splits=2)
    ours = normalise(norm, x.bfloat16(), dy.bfloat16())
    assert ours["y"].dtype == ours["dx"].dtype == torch.bfloat16
    assert ours["mean"].dtype == torch.float32
    torch.testing.assert_close(ours["mean"], 0.1 * x.bfloat16().double().mean((0, 2, 3)).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("splits", [1, 2, 4])
def test_the_formulas_for_a_compiler_are_torchs_over_parts_of_a_batch(splits):
    x, dy = case()
    norm = BatchNorm2d(5).double()
    norm.statistics = Statistics(splits=splits)
    theirs = normalise(norm, x, dy)
    weight, bias = (parameter.detach().clone().requires_grad_() for parameter in (norm.weight, norm.bias))
    *parts, mean, var = _FusedBatchNorm.apply(x.requires_grad_(), weight, bias, [2, 3], norm.statistics, norm.eps)
    y = torch.cat(parts, 1)
    y.backward(dy)
    ours = {"y": y.detach(), "dx": x.grad, "d_weight": weight.grad, "d_bias": bias.grad}
    assert_same({**ours, "mean": 0.1 * mean, "var": 0.9 + 0.1 * var}, theirs)


def test_moments_of_bf16_images_that_ranks_combine_are_in_single_precision():
    x = case(torch.float32)[0].bfloat16()
    mean, var = _moments(x, torch.ones(5))
    wide = x.double()
    torch.testing.assert_close(mean, wide.mean((0, 2, 3)).float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(var, wide.var((0, 2, 3), correction=0).float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("splits", [1, 2])
def test_the_formulas_for_a_compiler_take_bf16_images_to_sums_in_single_precision(splits):
    images, gradients = (each.bfloat16() for each in case(torch.float32))

    def passed(dtype, own):
        x = images.detach().to(dtype).requires_grad_()
        weight, bias = (torch.linspace(first, last, 5, dtype=own).requires_grad_() for first, last in ((0.5, 2), (-1, 1)))
        y, mean, var = _FusedBatchNorm.apply(x, weight, bias, [5], Statistics(splits=splits), 1e-5)
        y.backward(gradients.to(dtype))
        assert y.dtype == x.grad.dtype == dtype
        return [mean, var, weight.grad, bias.grad], [y.detach(), x.grad]

    (sums, pixels), (exact_sums, exact_pixels) = passed(torch.bfloat16, torch.float32), passed(torch.float64, torch.float64)
    for ours, exact in zip(sums, exact_sums, strict=True):
        torch.testing.assert_close(ours, exact.float(), rtol=1e-4, atol=1e-4)
    for ours, exact in zip(pixels, exact_pixels, strict=True):
        torch.testing.assert_close(ours, exact.bfloat16(), rtol=0.01, atol=1e-3)


def test_its_state_is_that_of_torchs_layer():
    assert BatchNorm2d(3).state_dict().keys() == nn.BatchNorm2d(3).state_dict().keys()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return saved_by_ranks(2, "tests.models.compiled_ranks", tmp_path_factory.mktemp("compiled"))


@pytest.mark.parametrize("way", ["merged", "compiled"])
def test_blocks_over_two_ranks_are_the_same_merged_and_compiled(two_ranks, way):
    for rank in two_ranks:
        ours, theirs = rank[way][0], rank["drawn"][0]
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert (ours[name] - value).abs().max() <= 1e-9 * value.abs().max() + 1e-13, name


def test_compiled_blocks_over_ranks_are_one_graph_for_both(two_ranks):
    assert [rank["compiled"][2] for rank in two_ranks] == [1, 1]


def test_merged_siblings_send_their_statistics_in_one_collective(two_ranks):
    for rank in two_ranks:
        drawn, merged, compiled = (rank[way][1] for way in ("drawn", "merged", "compiled"))
        assert drawn == {"all_gather_into_tensor": 12, "all_reduce": 12}  # two blocks of six normalisations
        assert merged == {"all_gather_into_tensor": 8, "all_reduce": 8}
        assert compiled == {"all_gather_into_tensor": 4, "all_reduce": 4}  # in the graph that both blocks share
