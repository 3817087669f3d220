"""`--train.batch auto` on a CPU: what memory holds, of what the plan allows."""

from dataclasses import replace

import pytest

from fastirv2 import assembly
from fastirv2.config import Config, Options
from fastirv2.errors import UsageError
from fastirv2.report.console import Console
from fastirv2.training import fitting
from fastirv2.training.engine import Engine, unit
from fastirv2.training.fitting import largest_batch
from fastirv2.training.optim import OptimizerConfig, create_optimizer
from fastirv2.training.plan import TrainConfig
from tests.training.reduced import ALONE, reduced


def make(process, batch):
    engine = Engine(reduced(), process, amp="fp32", accumulation=1, normalise=unit)
    return engine, create_optimizer(engine.model, OptimizerConfig())


@pytest.mark.parametrize(("images", "found"), [(1000, 64), (40, 32), (17, 16)])
def test_the_most_that_memory_holds_is_taken(monkeypatch, images, found):
    kept = fitting._bytes_kept(make(ALONE, 0)[0], 75)
    monkeypatch.setattr(fitting, "available_memory", lambda: images * kept * fitting._GRADIENTS / fitting._ON_A_CPU)
    batch, said = largest_batch([64, 32, 16], make, ALONE, 75)
    assert batch == found
    assert said == f"--train.batch auto: {found} images a pass, of the 64 that a rank has in a step"


def test_too_little_memory_is_a_sentence(monkeypatch):
    monkeypatch.setattr(fitting, "available_memory", lambda: 1 << 20)
    with pytest.raises(UsageError, match=r"does not hold 16 images of 75 pixels; use more ranks, .* or --train.recompute 3"):
        largest_batch([64, 32, 16], make, ALONE, 75)


def test_a_run_takes_what_was_found_and_others_what_they_were_given(monkeypatch):
    monkeypatch.setattr(assembly, "largest_batch", lambda candidates, *_: (candidates[1], "said"))
    config = Config(train=TrainConfig(global_batch=64, bn_batch=32, batch="auto"))
    console = Console(first=False)
    assert assembly.fit_batch(Options(config=config), ALONE, console).config.train.batch == 32
    given = Options(config=replace(config, train=replace(config.train, batch=64)))
    assert assembly.fit_batch(given, ALONE, console) is given
