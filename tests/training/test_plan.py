"""How a global batch is divided, and the numbers that are offered where it cannot be."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastirv2.errors import UsageError
from fastirv2.training.plan import Plan, TrainConfig, make_plan


def plan(global_batch=64, world=1, batch=0, bn_batch=32, sync_bn="auto", count=1_281_167, epochs=90):
    return make_plan(
        global_batch=global_batch, world=world, batch=batch, bn_batch=bn_batch, sync_bn=sync_bn, count=count, epochs=epochs
    )


@pytest.mark.parametrize(
    ("world", "batch", "passes", "ranks", "splits"),
    [(1, 0, 1, 1, 2), (1, 32, 2, 1, 1), (2, 0, 1, 1, 1), (4, 0, 1, 2, 1), (8, 0, 1, 4, 1), (8, 4, 2, 8, 1)],
)
def test_statistics_span_32_images_on_any_number_of_ranks(world, batch, passes, ranks, splits):
    made = plan(world=world, batch=batch)
    assert (made.accumulation, made.bn_ranks, made.bn_splits, made.bn_images) == (passes, ranks, splits, 32)


def test_the_other_ways_of_statistics():
    assert plan(world=8, sync_bn="on").bn_images == 64
    assert plan(world=8, sync_bn="off").bn_images == plan(world=8, sync_bn="local").bn_images == 8
    assert plan(world=4, bn_batch=0).bn_images == 16


def test_a_large_share_is_taken_in_passes_of_at_most_256():
    made = plan(global_batch=4096, world=2, bn_batch=0)
    assert (made.batch, made.accumulation) == (256, 8)


def test_statistics_over_more_than_256_images_take_the_smallest_pass_that_holds_them():
    made = plan(global_batch=4096, bn_batch=512)
    assert (made.batch, made.accumulation, made.bn_images) == (512, 8, 512)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"world": 3}, "3 ranks do not divide a global batch of 64 images; --train.global-batch 63 or 66 would do"),
        ({"world": 65}, "--train.global-batch 65 would do"),
        ({"batch": 48}, "--train.batch 48 does not divide the 64 images .* one of 64, 32 would do"),
        ({"batch": 16}, "over 32 images cannot be met by 1 ranks with passes of 16 images; --train.batch 64, 32 would do"),
        ({"batch": 1, "bn_batch": 0}, "over a single image make no sense"),
        ({"world": 2, "bn_batch": 48}, "cannot be met by 2 ranks with passes of 32 images; --train.bn-batch 32 would do"),
        ({"global_batch": 48, "world": 6}, "cannot be met by 6 ranks with passes of 8 images; --train.bn-batch 8 would do"),
        ({"global_batch": 3, "world": 3, "bn_batch": 2}, "with passes of 1 images; --train.bn-batch 3 would do"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(wrong, text):
    with pytest.raises(UsageError, match=text):
        plan(**wrong)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        *(({name: 0}, "train: epochs, global-batch") for name in ("epochs", "global_batch", "patience")),
        *(({name: -1}, "train: epochs, global-batch") for name in ("batch", "bn_batch", "recalibrate", "stop_after", "seed")),
        ({"seed": 2**63}, "train: epochs, global-batch"),
        *(({"recompute": stages}, f"--train.recompute {stages} must be 0 to 3 stages") for stages in (-1, 4)),
        *(({"timeout": minutes}, "--train.timeout must be at least 0") for minutes in (-1.0, math.inf, math.nan)),
        ({"recompute": 1, "compile": "full"}, "--train.compile regional or off, not with full"),
        ({"freeze": "statistics", "init_from": "w.pth", "recalibrate": 1}, "--train.freeze statistics keeps: give one"),
    ],
)
def test_options_out_of_bounds_and_at_odds_are_refused(wrong, text):
    with pytest.raises(UsageError, match=text):
        TrainConfig(**wrong)


def test_options_at_their_bounds_are_taken():
    TrainConfig(epochs=1, global_batch=1, patience=1, seed=2**63 - 1, recompute=3, timeout=0.0)
    TrainConfig(freeze="stem", init_from="w.pth", recalibrate=1)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_a_label_is_not_smoothed_away(smoothing):
    with pytest.raises(UsageError, match=r"--train.label-smoothing must lie in \[0, 1\)"):
        TrainConfig(label_smoothing=smoothing)


def test_90_epochs_of_setting_1_are_68_steps_fewer_than_rounding_up_each():
    made = plan()
    assert made.total_steps == 1_801_642
    assert 90 * made.last_step(1) - made.total_steps == 68


@given(st.integers(1, 50), st.integers(1, 60), st.integers(1, 6))
def test_every_epoch_ends_once_and_steps_are_counted_to_the_epoch_they_begin_in(count, global_batch, epochs):
    made = Plan(global_batch, 1, global_batch, 1, 1, 1, count, epochs)
    ended = [made.ended_by(step) for step in range(1, made.total_steps + 1)]
    assert ended[-1] == epochs
    for epoch in range(1, epochs + 1):
        step = made.last_step(epoch)
        assert step == -(-epoch * count // global_batch)
        assert ended[step - 1] >= epoch
        assert made.epoch_of(step) <= epoch
    assert [e for e in ended if e] == sorted({e for e in ended if e})
