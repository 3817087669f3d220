"""The learning rate as a function of the step; the recipes' own are in test_recipes.py."""

import math

import pytest

from fastirv2.errors import UsageError
from fastirv2.training.schedule import ScheduleConfig, describe_scaling, for_run, learning_rate

IMAGENET = 1_281_167


@pytest.mark.parametrize(("scaling", "rate"), [("linear", 0.4), ("sqrt", 0.2), ("none", 0.1)])
def test_the_rules_of_scaling(scaling, rate):
    config = ScheduleConfig(rate=0.1, batch=64, scaling=scaling, global_batch=256)
    assert learning_rate(1, config) == pytest.approx(rate)


def test_cosine_falls_from_the_rate_to_nothing():
    config = for_run(ScheduleConfig(kind="cosine", rate=0.2), global_batch=64, count=640, total_steps=100)
    rates = [learning_rate(step, config) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[50] == pytest.approx(0.1)
    assert rates[25] == pytest.approx(0.1 * (1 + math.cos(math.pi / 4)))
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 1e-4


def test_warm_up_rises_linearly_to_the_schedule():
    plain = for_run(ScheduleConfig(kind="cosine", rate=0.2), global_batch=64, count=640, total_steps=100)
    warm = for_run(ScheduleConfig(kind="cosine", rate=0.2, warmup_epochs=0.9), global_batch=64, count=640, total_steps=100)
    assert warm.warmup_steps == 9
    for step in range(1, 101):
        assert learning_rate(step, warm) == pytest.approx(learning_rate(step, plain) * min(1, step / 10))


def test_an_interval_in_epochs_counts_the_epochs_done_before_the_step():
    config = ScheduleConfig(rate=0.1, factor=0.5, interval=0, interval_epochs=1.5, batch=4)
    config = for_run(config, global_batch=4, count=10, total_steps=10)  # 15 images: the rate halves with the 5th step
    assert [learning_rate(step, config) for step in (1, 4, 5, 8, 9)] == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])


def test_a_factor_of_1_is_a_constant_rate():
    assert learning_rate(10_000_000, ScheduleConfig(rate=0.1, factor=1.0)) == 0.1


def test_epochs_of_no_known_length_are_refused():
    with pytest.raises(UsageError, match="has not said how many images one has"):
        learning_rate(1, ScheduleConfig(interval=0, interval_epochs=2))


def test_an_interval_in_epochs_keeps_its_length_whatever_the_batch():
    config = ScheduleConfig(rate=0.1, factor=0.1, interval=0, interval_epochs=30, batch=256)
    for global_batch in (256, 1024, 100):
        run = for_run(config, global_batch=global_batch, count=IMAGENET, total_steps=1)
        last = -(-30 * IMAGENET // global_batch)  # the step that ends epoch 30
        assert learning_rate(last, run) == pytest.approx(0.1 * global_batch / 256)
        assert learning_rate(last + 1, run) == pytest.approx(0.01 * global_batch / 256)


@pytest.mark.parametrize(
    ("change", "global_batch", "text"),
    [
        ({}, 64, ""),
        (
            {"interval": 0, "interval_epochs": 2},
            256,
            "learning rate scaled by 4 (linear): batches of 256 instead of the recipe's 64",
        ),
        (
            {},
            256,
            "learning rate scaled by 4 (linear): batches of 256 instead of the recipe's 64; "
            "3,200 steps between two factors instead of 12,800",
        ),
        (
            {"kind": "cosine", "scaling": "sqrt"},
            32,
            "learning rate scaled by 0.7071 (sqrt): batches of 32 instead of the recipe's 64",
        ),
        (
            {"kind": "cosine", "scaling": "none"},
            96,
            "learning rate not scaled (none): batches of 96 instead of the recipe's 64",
        ),
    ],
)
def test_a_run_can_say_how_its_batch_changes_the_recipe(change, global_batch, text):
    config = for_run(ScheduleConfig(**change), global_batch=global_batch, count=640, total_steps=100)
    assert describe_scaling(config) == text


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0},
        {"rate": math.nan},
        {"rate": math.inf},
        {"warmup_epochs": math.inf},
        {"factor": 0},
        {"factor": 1.1},
        {"interval": -1},
        {"interval_epochs": -1},
        {"interval_epochs": math.nan},
        {"batch": 0},
    ],
)
def test_values_out_of_bounds_are_refused(wrong):
    with pytest.raises(UsageError, match="schedule: rate and batch must be positive"):
        ScheduleConfig(**wrong)


@pytest.mark.parametrize("both", [{"interval": 0}, {"interval_epochs": 2.0}])
def test_the_interval_is_given_once(both):
    with pytest.raises(UsageError, match="exactly one of the two says when the factor comes"):
        ScheduleConfig(**both)
    ScheduleConfig(**both, kind="cosine")  # which has no factors


def test_the_warm_up_is_whole_steps_that_hold_all_its_images():
    assert for_run(ScheduleConfig(warmup_epochs=0.5), global_batch=64, count=641, total_steps=9).warmup_steps == 6
