"""Checkpoints written by a thread of their own, from a copy of the state, while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fastirv2.training.checkpoint import Checkpoints, RefusedError

RETRY_SECONDS = 60.0
Place = tuple[object, ...]  # the keys and indices that lead to a tensor


class HostCopy:
    """Memory on the host for a state of nested dicts, lists and tensors; it is made once and filled again and again.

    Of a GPU's tensors the copies are queued on the stream of the steps and go into page-locked memory: they see exactly the
    state between two steps, and the host does not wait for them. The next step does, for the milliseconds that the bus
    takes; copies on a stream of their own would have to be waited for all the same, before a weight may change, or would
    take the state's size of the GPU's memory once more.
    """

    def __init__(self) -> None:
        self._memory: dict[Place, torch.Tensor] = {}
        self._queued = False  # whether copies run on a GPU's stream
        self._filled: torch.cuda.Event | None = None

    @torch.no_grad()
    def fill(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of `state`, good once `wait` has returned and until the next call."""
        before, self._memory = self._memory, {}
        copy = self._copied(state, (), before)
        if self._queued:
            self._filled = torch.cuda.Event(blocking=True)
            self._filled.record()
        return copy

    def wait(self) -> None:
        """Wait until the copies are there."""
        if self._filled:
            self._filled.synchronize()

    def _copied(self, value: Any, place: Place, before: dict[Place, torch.Tensor]) -> Any:
        if isinstance(value, dict):
            return {key: self._copied(item, (*place, key), before) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(self._copied(item, (*place, index), before) for index, item in enumerate(value))
        if not isinstance(value, torch.Tensor):
            return value
        memory = before.get(place)
        if memory is None or (memory.shape, memory.dtype, memory.stride()) != (value.shape, value.dtype, value.stride()):
            memory = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        self._memory[place] = memory
        self._queued |= value.is_cuda
        if value.is_cuda or value.dtype == torch.bfloat16:
            memory.copy_(value, non_blocking=True)
        else:  # by one thread: torch's wait for each other on a busy host, five times as long as the copy itself takes
            np.copyto(memory.numpy(), value.detach().numpy())
        return memory


@dataclass
class _Job:
    memory: HostCopy
    state: dict[str, Any]
    step: int
    best_step: int


class BackgroundWriter:
    """Writes checkpoints, one at a time, in a thread; while the disk refuses one, it is tried again each minute.

    A checkpoint that comes while another is being written waits for that. It replaces one that the disk refuses, unless
    that is the best so far: this one is kept beside it and comes first, so that every checkpoint on the disk finds its best
    there. All methods are for one thread.
    """

    def __init__(
        self, checkpoints: Checkpoints, prune: Callable[[int], None], say: Callable[[str], None], warn: Callable[[str], None]
    ) -> None:
        """Write into `checkpoints`, call `prune` with the step of the best after each; `say` and `warn` from the thread."""
        self._checkpoints = checkpoints
        self._prune = prune
        self._say = say
        self._warn = warn
        self._memories: list[HostCopy] = []
        self._jobs: list[_Job] = []  # the thread's own while it runs
        self._thread: threading.Thread | None = None
        self._no_more_tries = threading.Event()
        self._ending = False
        self._refused = False
        self._broken: BaseException | None = None

    def put(self, state: dict[str, Any], step: int, best_step: int) -> None:
        """Copy the state and return; it is written meanwhile. Whatever but the disk went wrong before is raised here."""
        self._settle()
        self._jobs = [job for job in self._jobs if job.step == best_step != step]
        used = [job.memory for job in self._jobs]
        memory = next((memory for memory in self._memories if memory not in used), HostCopy())
        self._memories = [*used, memory]
        self._jobs.append(_Job(memory, memory.fill(state), step, best_step))
        self._no_more_tries.clear()
        self._ending = False
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong in the thread; that the disk refuses is nothing wrong."""
        if self._broken:
            self._settle()

    def finish(self) -> None:
        """Return once all is on the disk.

        Raises:
            RefusedError: the disk refuses it.
        """
        self._ending = True
        self._settle()
        try:
            while self._jobs:
                self._write(self._jobs[0])
        except RefusedError as error:
            then = "goes on from the checkpoint before" if self._checkpoints.steps() else "begins anew"
            what_next = f"{error.remedy} and give the same command again, it {then}"
            raise RefusedError(f"{error}; {what_next}", error.remedy) from error

    def close(self) -> None:
        """Wait for what is being written; what the disk refuses is given up."""
        self._settle()
        self._jobs = []

    def _settle(self) -> None:
        """Wait for the thread, which ends after its next try."""
        self._no_more_tries.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        broken, self._broken = self._broken, None
        if broken:
            self._jobs = []
            raise broken

    def _work(self) -> None:
        try:
            while self._jobs:
                try:
                    self._write(self._jobs[0])
                except RefusedError as error:
                    if not self._ending:  # then `finish` tries again, and says how that went
                        self._tell(error)
                    if self._no_more_tries.wait(RETRY_SECONDS):
                        return
        except BaseException as error:
            self._broken = error

    def _write(self, job: _Job) -> None:
        job.memory.wait()
        self._checkpoints.save(job.state, job.step, job.best_step)
        self._prune(job.best_step)
        self._jobs.remove(job)
        if self._refused and not self._jobs:
            self._say(f"checkpoint {self._checkpoints.path(job.step)} is written: the disk takes it again")
            self._refused = False

    def _tell(self, error: RefusedError) -> None:
        """Say that the disk refuses, once until it no longer does."""
        if not self._refused:
            there = self._checkpoints.steps()
            since = f"after step {there[-1]}" if there else "so far"
            self._warn(
                f"{error}; training goes on, and it is tried again each minute: {error.remedy}, a kill would lose all "
                f"that was done {since}"
            )
        self._refused = True
