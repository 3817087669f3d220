"""What a measurement was made on."""

from __future__ import annotations

import json
import os
import platform
import resource
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from fastirv2.errors import DataError
from fastirv2.host import available_cpus

DRIVER = Path("/proc/driver/nvidia/version")  # which NVIDIA's driver makes
KERNELS = "TORCHINDUCTOR_CACHE_DIR"  # the folder of what torch.compile made; what is in it decides a first step's seconds
_GIVEN = os.environ.get(KERNELS)  # before torch sets it


def describe() -> dict[str, Any]:
    """Return processor, GPU, driver and the versions that decide a speed."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cpus": available_cpus(),
        "gpus": gpus,
        "driver": _driver() if gpus else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "dali": _dali(),
    }


def device_name(device: torch.device) -> str:
    """Return what a device is called: the GPU's name, or CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def forget_peak(device: torch.device) -> None:
    """Count a GPU's peaks from here on: in a first step cuDNN tries its algorithms with all the memory that is free."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Return the most memory used in bytes: of a GPU by torch since `forget_peak`, or of a host by this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _driver() -> str | None:
    return DRIVER.read_text().splitlines()[0] if DRIVER.exists() else None


def _dali() -> str | None:
    for name in ("nvidia-dali-cuda120", "nvidia-dali-cuda130"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _command() -> str:
    """Return this process's command line, a tool's as it is given in the checkout, without where the result goes.

    The folder of compiled kernels stands before it, where one was given.
    """
    tool, words = Path(sys.argv[0]), sys.argv[1:]
    if "--json" in words:
        at = words.index("--json")
        del words[at : at + 2]
    name = f"{tool.parent.name}/{tool.name}" if tool.parent.name == "tools" else tool.name
    ranks = os.environ.get("LOCAL_WORLD_SIZE")  # torchrun's
    line = shlex.join([*(["torchrun", "--nproc-per-node", ranks] if ranks else ["python"]), name, *words])
    return f"{KERNELS}={shlex.quote(_GIVEN)} {line}" if _GIVEN else line


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the wall seconds of `work`, the device's own work included."""
    wait_for(device)
    begun = perf_counter()
    work()
    wait_for(device)
    return perf_counter() - begun


def spread(values: list[float]) -> dict[str, float]:
    """Return minimum, median and maximum."""
    return {"min": min(values), "median": median(values), "max": max(values)}


def check_json(path: Path | None, option: str = "--json") -> None:
    """Raise DataError where the file that `option` names could not be written: before the minutes of work for it."""
    if path is None:
        return
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise DataError(f"{path} cannot be written; choose another {option}, in a folder that exists")


def write_json(path: Path | None, result: dict[str, Any]) -> None:
    """Write a result with the machine's description and this process's command; raises DataError when the file cannot be."""
    if path is None:
        return
    made = {"machine": describe(), "command": _command(), **result}
    try:
        path.write_text(json.dumps(made, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; choose another --json") from error
