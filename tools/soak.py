"""Kill a run again and again, at any instant, and hold its end against a run that nobody disturbed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from fastirv2.errors import DataError, run_command
from fastirv2.report.machine import write_json
from fastirv2.report.metrics import read_metrics

CLOCK = ("time", "images_per_second", "data_wait_share", "data_wait_rank", "memory_bytes")
SMALL = (
    "--input.resize", "82", "--input.crop", "75", "--train.global-batch", "16", "--train.bn-batch", "16",
    "--checkpoint.steps", "7", "--log.every", "3",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Stop a small run by kill -9, SIGTERM and Ctrl-C, and check that it still ends as an undisturbed one."""

    kills: int = 20
    """How many times the run is stopped; each time after a random number of seconds."""
    seconds: float = 15.0
    """The longest time between two stops."""
    epochs: int = 4
    """Epochs of the run."""
    ranks: int = 1
    """Processes of the run, under torchrun when there are several."""
    seed: int = 0
    """Seed of the times and signals."""
    json: Path | None = None
    """Write the result into this file too."""


def command(data: Path, run: Path, options: Options) -> list[str]:
    """Return the training command."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(options.ranks)]
    paths = ["--train", str(data / "train"), "--val", str(data / "val"), "--out", str(run)]
    start = [sys.executable, *(launcher if options.ranks > 1 else []), "-m", "fastirv2.train", "--recipe", "demo"]
    return [*start, *paths, "--train.epochs", str(options.epochs), *SMALL]


def learned(run: Path) -> list[dict[str, Any]]:
    """Return what a run measured, without what depends on the clock."""
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(run / "metrics.jsonl")]


def disturb(line: list[str], options: Options) -> list[str]:
    """Start the command and stop it, `kills` times or until it ends; return the signals sent."""
    choose, sent = random.Random(options.seed), []
    while len(sent) < options.kills:
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            if process.wait(choose.uniform(0, options.seconds)):
                raise DataError(f"the run ended by itself with exit code {process.returncode}; give its command to see why")
            break
        except subprocess.TimeoutExpired:
            number = choose.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
            stop(process, number)
            sent.append(number.name)
            print(f"{len(sent):3}: {number.name}, exit code {process.returncode}", flush=True)
    return sent


def stop(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal and wait for the end; SIGKILL goes to torchrun's ranks too, which would not notice its death."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    for child in children if number == signal.SIGKILL else []:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), number)
    process.wait()


def main() -> None:
    """Read the command line, run both, compare."""
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "fastirv2.demo", folder / "data"], check=True)
        for run in ("calm", "disturbed"):
            line = command(folder / "data", folder / run, options)
            sent = disturb(line, options) if run == "disturbed" else []
            subprocess.run(line, check=True)
        calm, disturbed = learned(folder / "calm"), learned(folder / "disturbed")
    write_json(options.json, {"signals": sent, "lines": len(calm), "same": calm == disturbed})
    if calm != disturbed:
        first = next((pair for pair in zip(calm, disturbed, strict=False) if pair[0] != pair[1]), None)
        raise DataError(f"after {len(sent)} stops the run measured something else, first {json.dumps(first)}")
    print(f"after {len(sent)} stops the run ended exactly as the undisturbed one: {len(calm)} lines are the same")


if __name__ == "__main__":
    run_command(main, "soak")
