"""Kill a run again and again, at any instant, and hold its end against a run that nobody disturbed; or a build."""

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
from typing import Any, Literal

import soak_build as build
import tyro

from fastirv2.errors import DataError, run_command
from fastirv2.report.machine import write_json
from fastirv2.report.metrics import read_metrics

CLOCK = ("time", "seconds", "images_per_second", "data_wait_share", "data_wait_rank", "flop_utilisation", "memory_bytes")
SMALL = (
    "--input.resize", "82", "--input.crop", "75", "--train.global-batch", "16", "--train.bn-batch", "16",
    "--checkpoint.steps", "7", "--log.every", "3",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Stop a small run, or builds, by kill -9, SIGTERM and Ctrl-C, and check that they still end as undisturbed ones."""

    what: Literal["train", "build"] = "train"
    """What is stopped: a training run, or fastirv2-build-lmdb."""
    kills: int = 20
    """How many times it is stopped; of builds, how many times by kill -9, with other signals between."""
    seconds: float = 15.0
    """train: the longest time between two stops. Builds are stopped at any moment of the time that one takes."""
    epochs: int = 4
    """train: epochs of the run."""
    ranks: int = 1
    """train: processes of the run, under torchrun when there are several."""
    images: int = 20_000
    """build: small images; LMDB gets them in commits of some thousands."""
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
    lines = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines if line["kind"] != "begin"]


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


def soak_train(folder: Path, options: Options) -> None:
    """Run both, compare."""
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


def soak_build(folder: Path, options: Options) -> None:
    """Stop builds and compare each."""
    result = build.soak(folder, images=options.images, kills=options.kills, seed=options.seed)
    write_json(options.json, result)
    print(
        f"after {len(result['stops'])} stops, {result['before_first_commit']} of them before the first commit, "
        f"{result['builds']} builds ended exactly as the undisturbed one: {result['records']:,} records, the same digest"
    )


def main() -> None:
    """Read the command line and soak what it says."""
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        (soak_build if options.what == "build" else soak_train)(Path(folder), options)


if __name__ == "__main__":
    run_command(main, "soak")
