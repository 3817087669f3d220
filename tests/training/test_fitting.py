"""`--train.batch auto`: what memory holds, of what the plan allows; measured on a CPU, and with a stand-in for a GPU."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fastirv2 import assembly
from fastirv2.config import Config, Options
from fastirv2.errors import UsageError
from fastirv2.models import ModelConfig
from fastirv2.models.branches import Branches
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


@pytest.mark.parametrize(
    "refusal",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_gpu_that_refuses_a_batch_is_asked_for_the_next(monkeypatch, refusal):
    def peak(make, alone, batch, crop, *, copies):
        if batch > 32:
            raise refusal
        return 5 << 30

    monkeypatch.setattr(fitting, "_peak_of_steps", peak)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 << 30, 12 << 30))
    gpu = replace(ALONE, device=torch.device("cuda"))
    assert largest_batch([128, 64, 32, 16], make, gpu, 299)[0] == 32


def test_what_the_first_step_reserves_for_its_search_does_not_count(monkeypatch):
    """With a stand-in for torch's allocator; the first of an engine's steps reserves 9 units, each later one 5."""
    reserved = {"now": 1, "peak": 1}

    class Stepping:
        model, steps = nn.Linear(1, 1), 0

        def step(self, batches, optimizer):
            assert len(next(batches)[0]) == 8
            reserved["now"] = 9 if not self.steps else 5
            reserved["peak"] = max(reserved.values())
            self.steps += 1

    def give_back():
        reserved["now"] = 1

    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", give_back)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: reserved.update(peak=reserved["now"]))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: reserved["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: reserved["peak"])
    assert fitting._peak_of_steps(lambda *_: (Stepping(), None), ALONE, 8, 75, copies=False) == 5 - 1


def test_another_error_of_a_gpu_is_not_taken_for_a_lack_of_memory(monkeypatch):
    def peak(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(fitting, "_peak_of_steps", peak)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10 << 30, 12 << 30))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        largest_batch([64, 32], make, replace(ALONE, device=torch.device("cuda")), 299)


@pytest.mark.parametrize("merge", ["on", "off"])
def test_the_network_that_is_tried_is_the_runs_own(monkeypatch, merge):
    made = []

    def largest(candidates, make, process, _):
        made.append(make(process, 8)[0].model)
        return candidates[-1], "said"

    monkeypatch.setattr(assembly, "largest_batch", largest)
    settings = TrainConfig(global_batch=64, bn_batch=8, batch="auto", freeze="stem", init_from="weights")
    assembly.fit_batch(Options(config=Config(train=settings, model=ModelConfig(merge=merge))), ALONE, Console(first=False))
    assert {module.merge for module in made[0].modules() if isinstance(module, Branches)} == {merge == "on"}
    assert not next(made[0].stem.parameters()).requires_grad


def test_a_run_takes_what_was_found_and_others_what_they_were_given(monkeypatch):
    monkeypatch.setattr(assembly, "largest_batch", lambda candidates, *_: (candidates[1], "said"))
    config = Config(train=TrainConfig(global_batch=64, bn_batch=32, batch="auto"))
    console = Console(first=False)
    assert assembly.fit_batch(Options(config=config), ALONE, console).config.train.batch == 32
    given = Options(config=replace(config, train=replace(config.train, batch=64)))
    assert assembly.fit_batch(given, ALONE, console) is given
