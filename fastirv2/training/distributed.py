"""The processes of a run: who they are, how they reduce, and how they agree to stop."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist

from fastirv2.errors import SENTENCES, DataError, UsageError, say
from fastirv2.host import cpu_share
from fastirv2.report.machine import DRIVER
from fastirv2.training.watchdog import Watchdog

T = TypeVar("T")


@dataclass(frozen=True)
class Process:
    """This process among those that torchrun started, and its share of the host's CPUs; `python -m` alone is rank 0 of 1.

    Collectives fail after `seconds`.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    device: torch.device
    cpus: int = 1
    seconds: float = 1800.0

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0


def join(device: str, seconds: float = 1800.0) -> Process:
    """Read torchrun's environment, choose this rank's device ("auto", "cpu" or "cuda") and set up the process group.

    Collectives fail after `seconds`, which is to be longer than a watchdog lets them hang.

    Raises:
        UsageError: "cuda" without a GPU, or more ranks on this host than GPUs.
    """
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    world, local_world = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--train.device cuda: torch sees no NVIDIA GPU here; use --train.device cpu, or auto")
    gpus = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if device == "auto" and not gpus and rank == 0 and _has_driver():
        say(
            f"warning: NVIDIA's driver is here, but torch {torch.__version__} finds no GPU, so the CPU is used; is the driver "
            f"too old for CUDA {torch.version.cuda}, or was the container given no GPU? (device cpu says that it is meant)"
        )
    if gpus and local_world > gpus:
        raise UsageError(f"{local_world} ranks on a host with {gpus} GPUs; use --nproc-per-node {gpus}, or --train.device cpu")
    if gpus:
        torch.cuda.set_device(local_rank)
    here = torch.device("cuda", local_rank) if gpus else torch.device("cpu")
    if world > 1:
        limit = timedelta(seconds=seconds)
        # Gradients and the statistics of normalisation overlap on communicators of their own: NCCL since 2.26 is safe from
        # deadlocks where it keeps the host's order, which is the same on all ranks.
        os.environ.setdefault("NCCL_LAUNCH_ORDER_IMPLICIT", "1")
        dist.init_process_group("nccl" if gpus else "gloo", timeout=limit, device_id=here if gpus else None)
    masks = _masks_of_host()
    cpus = cpu_share(masks)
    if not gpus and len(masks) > 1:  # torchrun would give each rank one thread, or each of two launchers' all
        torch.set_num_threads(cpus)
    return Process(rank, world, local_rank, local_world, here, cpus, seconds)


def _has_driver() -> bool:
    """Return whether NVIDIA's driver is loaded, and nobody has hidden its GPUs."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in ("", "-1") and DRIVER.exists()


def _masks_of_host() -> list[frozenset[int]]:
    """Return the affinity masks of all ranks on this host: torchrun --numa-binding gives each its own."""
    mine = (socket.gethostname(), frozenset(os.sched_getaffinity(0)))
    if not dist.is_initialized():
        return [mine[1]]
    found: list[tuple[str, frozenset[int]]] = [mine] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return [mask for host, mask in found if host == mine[0]]


def leave() -> None:
    """Take the process group down, if there is one: NCCL waits for all ranks of a host to do so."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Leave the process group where all ranks do: at the context's end, and by an error that all of them raise.

    A rank that fails alone must not: the others would keep it waiting in a collective, and what it has to say unsaid.
    """
    try:
        yield
    except SENTENCES as error:
        if error.shared:
            leave()
        raise
    leave()


def neighbours(process: Process, size: int) -> dist.ProcessGroup | None:
    """Return the group of the `size` neighbouring ranks that this one is in, or None for a group of one."""
    if size == 1:
        return None
    limit = timedelta(seconds=process.seconds)  # a group does not take over the one that its ranks were given
    groups = [dist.new_group(range(first, first + size), timeout=limit) for first in range(0, process.world, size)]
    return groups[process.rank // size]


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, in place; alone, it is the sum already."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def same_on_all(value: object) -> object:
    """Return rank 0's `value` (something picklable) on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all(value: T) -> list[T]:
    """Return every rank's `value` (something picklable), in the order of the ranks."""
    if not dist.is_initialized():
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def together(work: Callable[[], T]) -> T:
    """Run `work` on every rank; an error of `SENTENCES` on any ends all with the first one's, said once."""
    result, error = None, None
    try:
        result = work()
    except SENTENCES as raised:
        error = raised
    except OSError as raised:
        error = DataError(f"{raised.filename or 'a file'} cannot be used: {raised.strerror}; mend that and try again")
    for rank, found in enumerate(from_all(error)):
        if found is not None:
            found.args = (f"{found} (rank {rank})" if rank else str(found),)
            found.shared = True
            raise found
    return cast(T, result)


def is_lost_connection(error: RuntimeError) -> bool:
    """Say whether an error is that of a collective whose peer has gone."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)


class Agreed(NamedTuple):
    """What all ranks know at the same step: a signal that came (0: none), whether rank 0 asks for a checkpoint, and whether
    some rank has met what is to end the run."""

    signal: int = 0
    checkpoint: bool = False
    fault: bool = False


class Agreement:
    """Ctrl-C, SIGTERM and the like, rank 0's wish for a checkpoint, and faults, agreed upon by all ranks at the same step.

    The flags travel in an asynchronous all-reduce that is read one step later, so that no step waits for it.
    """

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        limit = timedelta(seconds=watchdog.collective_seconds)
        self._group = dist.new_group(backend="gloo", timeout=limit) if dist.is_initialized() else None
        self._sent: tuple[dist.Work, torch.Tensor] | None = None

    def reach(self, *, checkpoint: bool = False, fault: bool = False) -> Agreed:
        """Return what the ranks have said.

        Every rank calls this equally often. With several ranks the answer is that to the call before; a wish is to be
        said once, a fault in every call.
        """
        self._watchdog.beat()
        received = self._watchdog.signals.received
        if self._group is None:
            return Agreed(received, checkpoint, fault)
        agreed = self._read()
        flags = torch.tensor([received, int(checkpoint), int(fault)])
        self._sent = (dist.all_reduce(flags, dist.ReduceOp.MAX, self._group, async_op=True), flags)
        return agreed

    def _read(self) -> Agreed:
        if self._sent is None:
            return Agreed()
        work, flags = self._sent
        work.wait()
        self._sent = None
        received, checkpoint, fault = flags.tolist()
        return Agreed(received, bool(checkpoint), bool(fault))

    def close(self) -> None:
        """Wait for what is still under way; signals stay heard, so that no rank is ended before it has had its say."""
        self._read()
