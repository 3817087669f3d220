"""The learning rate at chosen steps, against values worked out by hand."""

import math

import pytest

from fastirv2.config import read_recipe
from fastirv2.errors import UsageError
from fastirv2.training.schedule import ScheduleConfig, for_run, learning_rate

IMAGENET = 1_281_167


def schedule(recipe, global_batch=64, epochs=90):
    steps = -(-epochs * IMAGENET // global_batch)
    return for_run(read_recipe(recipe)[0].schedule, global_batch=global_batch, count=IMAGENET, total_steps=steps)


@pytest.mark.parametrize(
    ("recipe", "step", "rate"),
    [
        ("setting1", 1, 0.045),
        ("setting1", 12_799, 0.045),
        ("setting1", 12_800, 0.0432),
        ("setting1", 25_600, 0.041472),
        ("setting1", 1_801_642, 0.045 * 0.96**140),  # the end: 1.483e-4
        ("setting2", 25_599, 0.045),
        ("setting2", 25_600, 0.0432),
        ("setting2", 1_801_642, 0.045 * 0.96**70),
        ("setting3", 51_199, 0.045),
        ("setting3", 51_200, 0.0432),
        ("setting3", 1_801_642, 0.045 * 0.96**35),
    ],
)
def test_the_predecessors_settings(recipe, step, rate):
    assert learning_rate(step, schedule(recipe)) == pytest.approx(rate, rel=1e-12)


def test_setting_1_ends_at_1_5e_4():
    config = schedule("setting1")
    assert config.total_steps == 1_801_642
    assert learning_rate(config.total_steps, config) == pytest.approx(1.5e-4, rel=0.02)


def test_another_batch_scales_the_rate_and_keeps_the_interval_in_images():
    config = schedule("setting1", global_batch=256)
    assert learning_rate(1, config) == pytest.approx(0.18)
    assert learning_rate(3199, config) == pytest.approx(0.18)
    assert learning_rate(3200, config) == pytest.approx(0.18 * 0.96)


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


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0}, {"rate": math.nan}, {"warmup_epochs": math.inf}, {"factor": 1.1}, {"interval": 0}, {"batch": 0}],
)
def test_values_out_of_bounds_are_refused(wrong):
    with pytest.raises(UsageError, match="schedule: "):
        ScheduleConfig(**wrong)
