"""A training run on several ranks, one of which, or torchrun itself, is killed by SIGKILL at random moments, again and again.

Killed anywhere, the command is given again until the run ends; then its weights, their averages, optimizer and metrics are held
against those of a run that nobody disturbed, bit by bit. Runs are begun anew until all kills are spent.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import torch

from fastirv2.errors import DataError
from fastirv2.report.metrics import read_metrics

CLOCK = ("time", "seconds", "images_per_second", "data_wait_share", "data_wait_rank", "flop_utilisation", "memory_bytes")
OF_THE_RUN = ("config", "interval_seconds")  # what a checkpoint holds of the run and not of what it has learned
SMALL = (
    "--input.resize", "82", "--input.crop", "75", "--input.threads", "1", "--train.global-batch", "4", "--train.bn-batch", "4",
    "--train.amp", "fp32", "--ema.decay", "0.99", "--log.every", "3", "--checkpoint.steps", "8", "--checkpoint.keep", "1",
    "--train.device", "cpu",  # where bits repeat, on any number of ranks
)  # fmt: skip
END_SECONDS = 300.0  # in which all processes of a killed run have to be gone


@dataclass(frozen=True)
class Case:
    """What is run."""

    data: Path
    steps: int
    ranks: int
    module: str = "fastirv2.train"

    def command(self, run: Path) -> list[str]:
        """Return the training command for a run folder."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.ranks)]
        paths = ["--train", str(self.data / "train"), "--val", str(self.data / "val"), "--out", str(run)]
        start = [sys.executable, *launcher, "-m", self.module, "--recipe", "demo", *paths, *SMALL]
        return [*start, "--train.stop-after", str(self.steps)]


def ranks_of(launcher: int) -> list[int]:
    """Return the processes that a launcher has started."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{launcher}/task").glob("*/children"):
            found += [int(word) for word in path.read_text().split()]
    return found


def alive(process: int) -> bool:
    """Say whether a process is there; a zombie is not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def logged(run: Path) -> int:
    """Return the last step that a run has logged."""
    with contextlib.suppress(OSError, ValueError):  # not yet made, or a line that is being written
        return max((line["step"] for line in read_metrics(run / "metrics.jsonl") if "step" in line), default=0)
    return 0


def kill_once(case: Case, run: Path, seconds: float, choose: random.Random, errors: Path) -> dict[str, Any] | None:
    """Start the command and kill one of its processes after so many seconds; None when it ended before."""
    with errors.open("w") as file:
        process = subprocess.Popen(case.command(run), stdout=file, stderr=file)
    try:
        code = process.wait(seconds)
        if code:
            raise DataError(f"the run ended by itself with exit code {code}: {errors.read_text()[-2000:]}")
        return None
    except subprocess.TimeoutExpired:
        ranks = ranks_of(process.pid)
        named = [("torchrun", process.pid), *((f"rank {number}", rank) for number, rank in enumerate(ranks))]
        name, victim = choose.choice(named)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        begun = monotonic()
        while process.poll() is None or any(alive(rank) for rank in ranks):
            if monotonic() - begun > END_SECONDS:
                raise DataError(f"{END_SECONDS:g} s after {name} was killed, others of its run are still there") from None
            sleep(0.05)
        return {"killed": name, "seconds": seconds, "step": logged(run), "gone_after_seconds": monotonic() - begun}


def finish(case: Case, run: Path) -> float:
    """Run the command to its end and return the seconds that it took."""
    begun = monotonic()
    done = subprocess.run(case.command(run), capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"the run ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    return monotonic() - begun


def compare(calm: Path, disturbed: Path) -> dict[str, int]:
    """Return how much is the same; raises DataError where two runs differ in a bit, or a step is not logged once."""
    lines = [measured(run) for run in (calm, disturbed)]
    states = [torch.load(run / "checkpoints/latest.pt", weights_only=True) for run in (calm, disturbed)]
    for state in states:
        for name in OF_THE_RUN:
            state.pop(name, None)
    different = [*differences(states[0], states[1], "state"), *(["metrics.jsonl"] if lines[0] != lines[1] else [])]
    steps = Counter((line["kind"], line["step"], line.get("weights")) for line in lines[1])
    different += [f"{kind} lines of step {step}: {count}" for (kind, step, _), count in steps.items() if count > 1]
    if different:
        raise DataError(f"a run that was killed and went on differs from an undisturbed one in {', '.join(different[:5])}")
    return {"lines": len(lines[0]), "tensors": count_tensors(states[0])}


def measured(run: Path) -> list[dict[str, Any]]:
    """Return what a run has measured, without what depends on the clock and the machine, or on how often it was started."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] != "begin"]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def differences(ours: Any, theirs: Any, name: str) -> list[str]:
    """Return the names of what differs between two nested states, tensors by their bits."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return [found for key in ours for found in differences(ours[key], theirs[key], f"{name}.{key}")]
    if isinstance(ours, (list, tuple)) and type(ours) is type(theirs) and len(ours) == len(theirs):
        return [found for i, pair in enumerate(zip(ours, theirs, strict=True)) for found in differences(*pair, f"{name}.{i}")]
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return [] if ours.dtype == theirs.dtype and torch.equal(ours, theirs) else [name]
    return [] if ours == theirs else [name]


def count_tensors(state: Any) -> int:
    """Return how many tensors a nested state holds."""
    if isinstance(state, dict):
        state = list(state.values())
    if isinstance(state, (list, tuple)):
        return sum(count_tensors(part) for part in state)
    return isinstance(state, torch.Tensor)


def soak(folder: Path, case: Case, *, kills: int, seed: int) -> dict[str, Any]:
    """Do it all in `folder` and return what was done. Raises DataError at the first difference."""
    choose = random.Random(seed)
    seconds = finish(case, folder / "calm")
    stops: list[dict[str, Any]] = []
    runs, same = 0, {"lines": 0, "tensors": 0}
    while len(stops) < kills:
        run = folder / f"disturbed-{runs}"
        while len(stops) < kills:
            stop = kill_once(case, run, choose.uniform(0, 0.8 * seconds), choose, folder / "errors.txt")
            if stop is None:
                break
            stops.append(stop | {"run": runs})
            print(f"{len(stops):3}: {stop['killed']} after {stop['seconds']:.1f} s, step {stop['step']}", flush=True)
        finish(case, run)
        same = compare(folder / "calm", run)
        shutil.rmtree(run)
        runs += 1
    return {
        "what": __doc__, "steps": case.steps, "ranks": case.ranks, "seed": seed, "undisturbed_seconds": seconds, "runs": runs,
        "killed": dict(Counter(stop["killed"] for stop in stops)), "same": True, **same, "stops": stops,
    }  # fmt: skip
