"""`torch.compile` for a network whose blocks repeat: each kind of block is compiled once and shared, and nothing falls back."""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import shutil
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch
from torch import fx

from fastirv2.errors import UsageError
from fastirv2.training.casts import cast_together
from fastirv2.training.plan import Compile
from fastirv2.training.regions import Region

BACKEND = "inductor"
_LIMIT = 128  # graphs of one piece of code: kinds of block × sizes × (training, validation) are fewer, so that more are a fault
_WORKERS = 32  # torch's own bound


def choose_compile(mode: Compile, device: torch.device) -> Compile:
    """Resolve "auto": regions on a GPU that torch can compile for, and nothing on a CPU.

    Raises:
        UsageError: compiling is asked for and what it takes is missing here.
    """
    if mode == "off" or (mode == "auto" and device.type != "cuda"):
        return "off"
    missing = _missing(device)
    if mode == "auto":
        return "off" if missing else "regional"
    if missing:
        raise UsageError(f"--train.compile {mode} needs {missing}; install it, or give --train.compile off")
    return mode


def _missing(device: torch.device) -> str | None:
    """Say what compiling for a device would need and is not here."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "triton, which is not installed here"
        names = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]  # what triton looks for
        if not any(map(shutil.which, names)):
            return "a C compiler (gcc, or what CC names), and there is none here"
        headers = Path(sysconfig.get_paths()["include"], "Python.h")
        return None if headers.is_file() else f"Python's headers (python3-dev), and there is no {headers}"
    _have_a_name()
    from torch._inductor import cpp_builder, exc  # takes a second, which only those pay who compile

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        return "a C++ compiler (g++, or what CXX names), and there is none here"
    return None


def describe_compile(mode: Compile) -> str:
    """Say in a few words how the network runs."""
    return {"regional": "compiled block by block", "full": "compiled as a whole"}.get(mode, "not compiled")


class Compiler:
    """Compiles a network in place, when it first meets a shape, and knows what that took, and whether it is at it.

    Given its regions (`regions.regions`), it compiles each by itself. Parameters are inputs of the compiled code, so that all
    blocks of a kind share one graph, and gradients of early blocks are averaged over the ranks while later ones are computed.
    One graph of the whole network takes several times as long.

    Graphs are of fixed shapes. PyTorch silently runs eagerly what it has compiled more than 8 times; here the limit is higher,
    and meeting it an error. So is what cannot be made one graph.

    Kernels are kept in a folder that the ranks of a host share, and the next run too (TORCHINDUCTOR_CACHE_DIR); each rank
    compiles with its share of the CPUs unless TORCHINDUCTOR_COMPILE_THREADS says otherwise.
    """

    def __init__(self, pieces: list[Region], *, cpus: int) -> None:
        _configure(cpus, gpu=any(parameter.is_cuda for region in pieces for parameter in region.module.parameters()))
        for region in pieces:
            region.change(partial(torch.compile, backend=_compile, fullgraph=True, dynamic=False))
        self.graphs = 0
        self.seconds = 0.0
        self._sides: set[int] = set()
        self._before = _graphs()
        self._told = 0, 0.0
        self._begun = 0.0
        self.running = False
        handler = torch._dynamo.callback.callback_handler  # type: ignore[attr-defined]
        handler.register_start_callback(self._start)
        handler.register_end_callback(self._end)

    def _start(self, *_: object) -> None:
        self.running, self._begun = True, time.perf_counter()

    def _end(self, *_: object) -> None:
        self.running = False
        self.seconds += time.perf_counter() - self._begun
        self.graphs = _graphs() - self._before

    def meet(self, images: torch.Tensor) -> None:
        """Note the size of a batch's images (B, 3, H, W)."""
        self._sides.add(images.shape[-1])

    def news(self) -> str | None:
        """Say what was compiled since the last call, or None if nothing was."""
        graphs, seconds = self.graphs - self._told[0], self.seconds - self._told[1]
        self._told = self.graphs, self.seconds
        if not graphs:
            return None
        sides = ", ".join(map(str, sorted(self._sides)))
        so_far = "" if graphs == self.graphs else f"; {self.graphs} in {self.seconds:.0f} s so far"
        return f"compiled {graphs} graphs in {seconds:.0f} s, for images of {sides} pixels{so_far}"

    def paused(self) -> AbstractContextManager[None]:
        """Return a context in which the network runs eagerly."""
        return torch.compiler.set_stance("force_eager")


def _compile(module: fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
    """Compile what torch traced: all blocks by this one function, since what is compiled is shared within a backend alone.

    Weights are cast together on a GPU, where most of them take less time than the launch of a kernel; on a CPU that is slower.
    """
    if any(value.is_cuda for value in inputs if isinstance(value, torch.Tensor)):
        cast_together(module.graph)
        module.recompile()
    return torch._dynamo.lookup_backend(BACKEND)(module, inputs)  # type: ignore[attr-defined]


def _graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]  # type: ignore[attr-defined]


def _configure(cpus: int, *, gpu: bool) -> None:
    """Set torch's switches: the limit, which must not be met quietly, how many compile at once, and what is kept for a GPU."""
    threads = os.environ.get("TORCHINDUCTOR_COMPILE_THREADS") or str(max(1, min(cpus, _WORKERS)))
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = threads  # read when inductor is imported, here or in its workers
    _have_a_name()
    import torch._dynamo
    import torch._inductor.config

    torch._inductor.config.compile_threads = int(threads)
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _LIMIT)
    config.accumulated_recompile_limit = max(config.accumulated_recompile_limit, 8 * _LIMIT)
    config.fail_on_recompile_limit_hit = True
    if gpu:
        # What has several readers (or one) goes to memory if computing it reads more than 4 (or 8) tensors: a normalisation's
        # output or gradient would, in single precision, where a GPU's readers compute it for less.
        for name, reads in (("realize_reads_threshold", 8), ("realize_acc_reads_threshold", 16)):
            setattr(torch._inductor.config, name, max(getattr(torch._inductor.config, name) or 0, reads))
    config.optimize_ddp = False  # would cut each block's graph to the buckets of gradients; blocks are small enough


def _have_a_name() -> None:
    """Give a user who has none a name, as of `docker run --user 1234`: torch's compiler fails for want of it before 2.13."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Make one sentence of an error that torch's compiler raises; a rank may be alone in meeting it."""
    try:
        yield
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        said = UsageError(f"the network cannot be compiled here ({reason}); --train.compile off trains without")
        said.shared = False
        raise said from error


def _reason(error: Exception) -> str | None:
    """Return what the compiler says, or None where the error is another's."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    if type(error).__name__ == "FailOnRecompileLimitHit":
        return f"a part of it was compiled {torch._dynamo.config.recompile_limit} times, each time for something else"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
