"""How a global batch is divided, and the numbers that are offered where it cannot be."""

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


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"world": 3}, "3 ranks do not divide a global batch of 64 images; --train.global-batch 63 or 66 would do"),
        ({"world": 65}, "--train.global-batch 65 would do"),
        ({"batch": 48}, "--train.batch 48 does not divide the 64 images .* one of 64, 32 would do"),
        ({"batch": 16}, "over 32 images cannot be met by 1 ranks with passes of 16 images; --train.batch 64, 32 would do"),
        ({"batch": 1, "bn_batch": 0}, "over a single image make no sense"),
        ({"world": 2, "bn_batch": 48}, "cannot be met by 2 ranks with passes of 32 images; --train.bn-batch 32 would do"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(wrong, text):
    with pytest.raises(UsageError, match=text):
        plan(**wrong)


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
