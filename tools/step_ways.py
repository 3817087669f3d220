"""Ways to run the same training step: a network, compiled or not, its siblings merged or not, and how it normalises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product, repeat
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
import torch.distributed as dist
from timm_network import timm_network
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fastirv2.errors import DataError, UsageError
from fastirv2.models import create
from fastirv2.models.norm import Statistics, share_statistics
from fastirv2.report.machine import forget_peak, seconds_of, wait_for
from fastirv2.training.compiled import choose_compile
from fastirv2.training.distributed import Process, neighbours
from fastirv2.training.engine import Batch, Engine
from fastirv2.training.optim import OptimizerConfig, create_optimizer, set_rate
from fastirv2.training.pixels import unit
from fastirv2.training.plan import Amp

Compile = Literal["off", "regional", "full"]
Switch = Literal["on", "off"]
Norm = Literal["local", "shared", "torch"]
CLASSES, DROPOUT = 1000, 0.2
WARM_UP = 3
_UNTIMED = 4  # steps that a GPU is given at once, so that the host's waiting between them is not counted


@dataclass(frozen=True)
class Way:
    """One way."""

    network: str
    compile: Compile
    merge: Switch
    norm: Norm

    def __str__(self) -> str:
        how = "eager" if self.compile == "off" else f"compiled ({self.compile})"
        siblings = {"on": ", merged", "off": ", as drawn"}[self.merge] if self.network != "timm" else ""
        norm = {"local": "", "shared": ", our BN over all ranks", "torch": ", torch's SyncBatchNorm"}[self.norm]
        return f"{self.network}, {how}{siblings}{norm}"


def all_ways(
    arch: str, compiles: tuple[Compile, ...], merges: tuple[Switch, ...], norms: tuple[Norm, ...], vs: str
) -> list[Way]:
    """Return every combination that there is, timm's network last.

    torch's SyncBatchNorm breaks compiled graphs and knows no siblings: it runs eagerly and as drawn.
    """
    ways = [Way(arch, *rest) for rest in product(compiles, merges, norms) if rest[2] != "torch"]
    if "torch" in norms:
        ways.append(Way(arch, "off", "off", "torch"))
    return ways + ([Way("timm", compile, "off", "local") for compile in compiles] if vs == "timm" else [])


def network(way: Way, process: Process) -> nn.Module:
    """Make the network that a way runs.

    Raises:
        UsageError: it normalises over ranks, and there are none, or it needs what is not installed.
    """
    if way.network == "timm":
        return timm_network(CLASSES, DROPOUT)
    model = create(way.network, CLASSES, DROPOUT, merge=way.merge == "on")
    if way.norm == "local":
        return model
    if not dist.is_initialized():
        raise UsageError(f"--norm {way.norm} is over ranks: start with torchrun --nproc-per-node N")
    if way.norm == "torch":
        if process.device.type != "cuda":
            raise UsageError("--norm torch needs GPUs: torch's SyncBatchNorm takes no images on a CPU")
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    share_statistics(model, Statistics(_all_ranks(process)))
    return model


@cache
def _all_ranks(process: Process) -> dist.ProcessGroup | None:
    """Return a group of all ranks, as a run has it besides the one that gradients are averaged in."""
    return neighbours(process, process.world)


def graphs() -> dict[str, int]:
    """Return how many graphs this process has compiled so far, and how many it found compiled in inductor's folder."""
    counts = torch._dynamo.utils.counters["inductor"]  # type: ignore[attr-defined]
    return {"compiled": counts["fxgraph_cache_miss"], "found": counts["fxgraph_cache_hit"]}


class Runner:
    """Steps of `batch` images that lie on the device, run in one way; all ways share everything but the network."""

    def __init__(self, way: Way, process: Process, amp: Amp, batch: int, size: int) -> None:
        self.way, self.device, self.batch = way, process.device, batch
        before = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        compile = choose_compile(way.compile, process.device)
        self.engine = Engine(network(way, process), process, amp=amp, accumulation=1, normalise=unit, compile=compile)
        self.optimizer = create_optimizer(self.engine.model, OptimizerConfig())
        set_rate(self.optimizer, 1e-3)
        images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        self._batches: Iterator[Batch] = repeat((images, torch.arange(batch, device=self.device) % CLASSES, batch))
        before_it = graphs() if compile != "off" else {}
        begun = perf_counter()
        self.first_seconds = seconds_of(self._step, self.device)
        forget_peak(self.device)
        self.graphs = {name: graphs()[name] - count for name, count in before_it.items()}
        self._take(WARM_UP - 1)
        wait_for(self.device)
        self.warm_up_seconds = perf_counter() - begun
        self.peak_memory = torch.cuda.max_memory_allocated(self.device) - before if self.device.type == "cuda" else None

    def _step(self) -> None:
        with torch.cuda.nvtx.range(str(self.way)) if self.device.type == "cuda" else nullcontext():  # for Nsight
            self.engine.step(self._batches, self.optimizer)

    def _take(self, steps: int) -> None:
        for _ in range(steps):
            self._step()

    def step_seconds(self) -> float:
        """Return the seconds of a training step."""
        count = _UNTIMED if self.device.type == "cuda" else 1
        return seconds_of(lambda: self._take(count), self.device) / count

    def forward_seconds(self, rounds: int) -> list[float]:
        """Return the seconds of forward passes in evaluation."""
        images, _, _ = next(self._batches)
        model = self.engine.model.eval()
        with torch.inference_mode(), self.engine.autocast():
            for _ in range(WARM_UP):
                model(images)
            seconds = [seconds_of(lambda: model(images), self.device) for _ in range(rounds)]
        model.train()
        return seconds

    def write_trace(self, file: Path | None, steps: int = 3) -> None:
        """Write a Chrome trace of some steps, or only take them, as the other ranks do; raises DataError where it cannot."""
        if file is None:
            return self._take(steps)
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        else:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its lines on stderr
        try:
            file.write_bytes(b"")
        except OSError as error:
            raise DataError(f"{file} cannot be written: {error.strerror}; choose another --trace") from error
        with profile(activities=activities, record_shapes=True) as profiler:
            self._take(steps)
            wait_for(self.device)
        profiler.export_chrome_trace(str(file))
        return None

    def describe(self) -> dict[str, Any]:
        """Return what is known before the steps are timed."""
        return {
            **asdict(self.way), "batch": self.batch, "first_step_seconds": self.first_seconds, "graphs": self.graphs,
            "warm_up_seconds": self.warm_up_seconds, "peak_memory_bytes": self.peak_memory,
        }  # fmt: skip
