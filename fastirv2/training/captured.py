"""A whole step as one CUDA graph: for a few images a GPU, where starting the kernels takes longer than running them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

from fastirv2.errors import UsageError
from fastirv2.training.plan import Plan

_DALI_SECONDS = 0.1
_WARM_UP = 3  # steps on a side stream before the capture, in which libraries choose algorithms and allocate for good

Work = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]  # images, labels, keys, the step's number


class Replayed(Protocol):
    """What records work once and then does it again and again, on the same memory."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work as it is."""

    def capture(self, work: Callable[[], None]) -> None:
        """Record the work without doing it."""

    def replay(self) -> None:
        """Do what was recorded."""


class CudaGraph:
    """torch's CUDA graph as its documentation has it for a whole step: warmed up on a side stream, with memory of its own.

    Threads that load data may allocate meanwhile: only this thread's calls are held against the capture.
    """

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._side = torch.cuda.Stream()

    def warm_up(self, work: Callable[[], None]) -> None:
        """Do the work on the side stream, in turn with the current one."""
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            work()
        torch.cuda.current_stream().wait_stream(self._side)

    def capture(self, work: Callable[[], None]) -> None:
        """Record the work; the host waits for the device before, this once.

        And for DALI's thread that frees batches, which synchronises the device, as nobody may while a capture is under way.
        """
        torch.cuda.synchronize()
        time.sleep(_DALI_SECONDS)
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            work()

    def replay(self) -> None:
        """Do what was recorded, on the current stream."""
        self._graph.replay()


class CapturedStep:
    """Does a step's work by replaying it; its inputs are copied to where the recorded kernels read them.

    The first steps of every shape of images are done as they are, and the next one is recorded: none is done twice or left
    out. All that changes from step to step must lie on the device, at the same place: the learning rate too (`own_rate`).
    """

    def __init__(self, work: Work, make: Callable[[], Replayed] = CudaGraph) -> None:
        self._work = work
        self._make = make
        self._graph: Replayed | None = None
        self._inputs: tuple[torch.Tensor, ...] = ()
        self._taken = 0

    def step(self, images: torch.Tensor, labels: torch.Tensor, keys: torch.Tensor, number: int) -> None:
        """Take a step with images (B, 3, H, W), labels (B,), dropout's keys (B,), and the step's number."""
        given = images, labels, keys
        if self._graph is None or not _alike(given, self._inputs):
            self._graph, self._taken = self._make(), 0
            self._inputs = (*map(torch.empty_like, given), torch.zeros((), dtype=torch.int64, device=images.device))
        for own, value in zip(self._inputs, given, strict=False):
            own.copy_(value)
        self._inputs[-1].fill_(number)
        if self._taken < _WARM_UP:
            self._graph.warm_up(self._do)
        else:
            if self._taken == _WARM_UP:
                self._graph.capture(self._do)
            self._graph.replay()
        self._taken += 1

    def _do(self) -> None:
        self._work(*self._inputs)


def _alike(given: tuple[torch.Tensor, ...], own: tuple[torch.Tensor, ...]) -> bool:
    pairs = zip(given, own, strict=False)
    return all((a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride()) for a, b in pairs)


def own_rate(optimizer: torch.optim.Optimizer) -> None:
    """Have the learning rate of every group in a tensor on the device, which a recorded step reads anew each time."""
    for group in optimizer.param_groups:
        group["lr"] = torch.full((), float(group["lr"]), device=group["params"][0].device)


def check_graphs(device: torch.device) -> None:
    """Refuse a device that records no graphs; raises UsageError."""
    if device.type != "cuda":
        raise UsageError("--train.cuda-graph on needs an NVIDIA GPU; leave it out")


def check_capture(plan: Plan) -> None:
    """Refuse a step that cannot be captured; raises UsageError."""
    if plan.world > 1 or plan.accumulation > 1:
        raise UsageError(
            f"--train.cuda-graph on is for one GPU and one pass a step; here are {plan.world} × {plan.accumulation} passes, so "
            "leave it out"
        )
