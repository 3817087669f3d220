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
from fastirv2.training.engine import Engine
from fastirv2.training.fitting import largest_batch
from fastirv2.training.optim import OptimizerConfig, create_optimizer
from fastirv2.training.pixels import unit
from fastirv2.training.plan import TrainConfig
from tests.training.reduced import ALONE, reduced

GIB = 1 << 30


def make(process, batch):
    engine = Engine(reduced(), process, amp="fp32", accumulation=1, normalise=unit)
    return engine, create_optimizer(engine.model, OptimizerConfig())


@pytest.mark.parametrize(("images", "ranks", "found"), [(1000, 1, 64), (80, 2, 32), (17, 1, 16)])
def test_the_most_that_the_ranks_of_a_host_hold_in_its_memory_is_taken(monkeypatch, images, ranks, found):
    kept = fitting._bytes_kept(make(ALONE, 0)[0], 75)
    monkeypatch.setattr(fitting, "available_memory", lambda: images * kept * fitting._GRADIENTS / fitting._ON_A_CPU)
    batch, said = largest_batch([64, 32, 16], make, replace(ALONE, local_world=ranks), 75)
    assert batch == found
    assert said == f"--train.batch auto: {found} images a pass, of the 64 that a rank has in a step"


def test_what_a_pass_keeps_is_counted_an_image_by_its_size_and_without_the_weights():
    """Of a convolution its input, of a sigmoid its result."""
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Sigmoid())
    engine = Engine(layers, ALONE, amp="fp32", accumulation=1, normalise=unit)
    for crop in (9, 90):
        kept = fitting._bytes_kept(engine, crop)
        assert kept == 4 * (3 * crop**2 + 8 * (crop - 2) ** 2)


def test_too_little_memory_is_a_sentence(monkeypatch):
    monkeypatch.setattr(fitting, "available_memory", lambda: 1 << 20)
    with pytest.raises(UsageError, match=r"does not hold 16 images of 75 pixels; use more ranks, .* or --train.recompute 3"):
        largest_batch([64, 32, 16], make, ALONE, 75)


def largest_on_gpu(monkeypatch, peak, world=1):
    """What is found of 64, 32 and 16 images a pass, on a GPU with 8 of its 10 GiB free, whose steps take what `peak` says."""
    monkeypatch.setattr(fitting, "_peak_of_steps", peak)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8 * GIB, 10 * GIB))
    gpu = replace(ALONE, device=torch.device("cuda"), world=world)
    return largest_batch([64, 32, 16], make, gpu, 299)[0]


@pytest.mark.parametrize(
    "refusal",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    ],
)
def test_a_gpu_that_refuses_a_batch_is_asked_for_the_next(monkeypatch, refusal):
    def peak(make, alone, batch, crop, *, copies):
        if batch > 32:
            raise refusal
        return 5 * GIB

    assert largest_on_gpu(monkeypatch, peak) == 32


@pytest.mark.parametrize(("over", "found"), [(0, 64), (1, 32)])
def test_of_what_is_free_a_tenth_of_the_gpu_and_4_mib_an_image_are_left(monkeypatch, over, found):
    def peak(*_, **__):
        return 8 * GIB - GIB - (64 * 4 << 20) + over

    assert largest_on_gpu(monkeypatch, peak) == found


def test_the_batch_is_one_that_the_gpus_of_all_ranks_hold_besides_the_buckets_of_gradients(monkeypatch):
    asked = []

    def peak(make, alone, batch, crop, *, copies):
        asked.append((alone.world, copies))
        return 0

    monkeypatch.setattr(fitting, "from_all", lambda found: [found, 16])
    assert largest_on_gpu(monkeypatch, peak, world=2) == 16
    assert asked == [(1, True)]
    monkeypatch.setattr(fitting, "from_all", lambda found: [found, 0])
    with pytest.raises(UsageError, match="does not hold 16 images"):
        largest_on_gpu(monkeypatch, peak, world=2)


@pytest.mark.parametrize(("copies", "buckets"), [(False, 0), (True, 2 * 4)])
def test_what_the_first_step_reserves_for_its_search_does_not_count(monkeypatch, copies, buckets):
    """With a stand-in for torch's allocator; the first of an engine's steps reserves 9 units, each later one 5.

    Of a network of two weights, whose gradients are kept twice where they are averaged over ranks.
    """
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
    assert fitting._peak_of_steps(lambda *_: (Stepping(), None), ALONE, 8, 75, copies=copies) == 5 - 1 + buckets


def test_another_error_of_a_gpu_is_not_taken_for_a_lack_of_memory(monkeypatch):
    def peak(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        largest_on_gpu(monkeypatch, peak)


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
