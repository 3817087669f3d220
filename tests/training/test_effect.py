"""A setting that does nothing beside the others is said."""

from types import SimpleNamespace

import numpy as np
import pytest

from fastirv2.assembly import check_effect, check_labels
from fastirv2.training.optim import OptimizerConfig
from fastirv2.training.schedule import ScheduleConfig


@pytest.mark.parametrize(
    ("optimizer", "warmup_steps", "said"),
    [
        (OptimizerConfig(), 99, []),
        (OptimizerConfig(alpha=0.5, epsilon=0.1), 0, ["sgd has no use for --optimizer.alpha and --optimizer.epsilon"]),
        (OptimizerConfig(kind="rmsprop", alpha=0.5), 0, []),
        (OptimizerConfig(), 100, ["the warm-up takes all 100 steps, so that the learning rate never comes to 0.045"]),
    ],
)
def test_what_has_no_effect_is_warned_of(optimizer, warmup_steps, said):
    config = SimpleNamespace(optimizer=optimizer, schedule=ScheduleConfig(rate=0.045, warmup_steps=warmup_steps))
    warnings = check_effect(config, SimpleNamespace(total_steps=100, count=64, global_batch=64))
    assert len(warnings) == len(said)
    assert all(warning.startswith(start) for warning, start in zip(warnings, said, strict=True))


def test_a_batch_larger_than_the_data_set_is_warned_of():
    config = SimpleNamespace(optimizer=OptimizerConfig(), schedule=ScheduleConfig())
    (warning,) = check_effect(config, SimpleNamespace(total_steps=6, count=18, global_batch=64, epochs=20))
    assert warning.startswith("a step takes 64 images and the training set has 18, so that 20 epochs are 6 steps; ")


def test_images_of_one_class_are_warned_of():
    records = SimpleNamespace(path="photographs", classes=["cat", "dog"], labels=np.array([1, 1, 1]))
    assert check_labels(records) == ["all images of photographs are of the class dog: nothing is learned from them"]
    records.labels = np.array([1, 0, 1])
    assert check_labels(records) == []
