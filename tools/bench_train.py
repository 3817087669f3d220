"""Measure training: the trainer's loop on real data, beside the same step on a batch that lies on the device, on 1, 2, … ranks.

Both are taken in turn in one process a rank, with the loader alone as the third (`train_rates.py`). Medians and the 95th
percentile are of steps on the slowest rank; warm-up and batches that were made ahead are left out. Options that are not
listed here are the trainer's: `bench_train.py --recipe fast --train.compile off`. Under torchrun its ranks are measured, with
--data.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import photographs
import tyro
from train_rates import Loop, measure, opened_run
from train_trace import check_nsight, show_to_nsight, write_trace

from fastirv2.errors import UsageError, UserError, run_command
from fastirv2.report.machine import check_json, write_json

PROGRAM = "bench_train"


@dataclass(frozen=True)
class Options:
    """Measure how many images a second a run trains on this machine, from records to updated weights."""

    recipe: str = "setting1"
    """A recipe of the trainer's, or a file."""
    data: str = ""
    """Training data as the trainer takes it; unless given, an LMDB of JPEGs like ImageNet's is made."""
    images: int = 2000
    """JPEGs to make, of 500 × 375 pixels and about 100 KB."""
    build_resize: str = "none"
    """How fastirv2-build-lmdb resizes those, as 328x328."""
    batch: int = 0
    """Images a rank holds in one pass, and the global batch a rank; 0: 8 on a CPU, 128 on a GPU."""
    ranks: str = "1"
    """Numbers of ranks to measure one after the other, as 1,2,4,8; the global batch grows with them."""
    seconds: float = 5.0
    """Length of one turn, about."""
    rounds: int = 3
    """Turns of each."""
    nvtx: bool = False
    """Take some steps with NVTX ranges, for nsys profile --capture-range cudaProfilerApi."""
    trace: Path | None = None
    """Write a Chrome trace of some steps of rank 0, of the last number of ranks, into this file."""
    json: Path | None = None
    """Write the result into this file too."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or not self.seconds > 0 or self.images < 1 or self.batch < 0:
            raise UsageError(
                "--rounds and --images must be at least 1, --seconds more than 0 and --batch not negative; got "
                f"{self.rounds}, {self.images}, {self.seconds}, {self.batch}"
            )

    def numbers(self) -> list[int]:
        """Return the numbers of ranks; raises UsageError."""
        words = self.ranks.split(",")
        if not all(word.strip().isdigit() and int(word) for word in words):
            raise UsageError(f"--ranks {self.ranks} is no list of numbers as 1,2,4")
        return [int(word) for word in words]


def trainer_arguments(options: Options, data: str, world: int, rest: list[str]) -> list[str]:
    """Return the trainer's arguments: with statistics over each rank's pass, unless told otherwise."""
    batch = options.batch or default_batch()
    sizes = ("--train.global-batch", batch * world, "--train.batch", batch, "--train.bn-batch", batch)
    paths = ("--recipe", options.recipe, "--train", data, "--val", data)
    return [str(word) for word in (*paths, *sizes, *rest)]


def default_batch() -> int:
    """Return the images of a pass unless some are given."""
    import torch

    return 128 if torch.cuda.is_available() else 8


def make_data(folder: Path, images: int, resize: str) -> str:
    """Make JPEGs like ImageNet's and an LMDB of them; return its folder."""
    photographs.write_photographs(photographs.Options(folder / "images", images))
    line = [sys.executable, "-m", "fastirv2.build_lmdb", folder / "images", folder / "lmdb", "--resize", resize]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise failed(done)
    return str(folder / "lmdb")


def failed(done: subprocess.CompletedProcess[str]) -> UserError:
    """Return the error of a process of ours that failed: its own sentence, where it has one."""
    said = [line for line in done.stderr.splitlines() if line.startswith(("fastirv2", PROGRAM))]
    error = UserError(said[0].split(": ", 1)[1] if said else f"a process failed:\n{done.stderr[-2000:]}")
    error.exit_code = done.returncode
    return error


def rank(options: Options, rest: list[str]) -> None:
    """Measure as one of the ranks; rank 0 writes the result, or prints it."""
    world = int(os.environ["WORLD_SIZE"])
    with opened_run(trainer_arguments(options, options.data, world, rest), PROGRAM) as (run, config):
        if options.nvtx:
            check_nsight(run)
        result = measure(run, config, rounds=options.rounds, seconds=options.seconds)
        result |= {"device": str(run.engine.device), "amp": config.train.amp, "compile": config.train.compile}
        result |= {"arch": config.model.arch, "crop": run.crops[-1][1], "recompute": config.train.recompute}
        if run.process.first and options.json:
            options.json.write_text(json.dumps(result))
        elif run.process.first:
            print(show(result, result["both"]["images_per_second"]["median"] / result["ranks"]), flush=True)
        step = Loop(run, config.input.prefetch).both
        if options.nvtx:
            show_to_nsight(run, step)
        if options.trace:
            write_trace(run, step, options.trace)


def on_ranks(world: int, options: Options, data: str, rest: list[str], folder: Path, *, trace: bool) -> dict[str, Any]:
    """Start the ranks and return what they measured; they write the trace that is asked for, if any, where `trace`."""
    out = folder / f"{world}.json"
    plain = {"data": data, "json": out, "recipe": options.recipe, "batch": options.batch or default_batch()}
    plain |= {"seconds": options.seconds, "rounds": options.rounds, "images": options.images}
    words = [str(word) for name, value in plain.items() for word in (f"--{name}", value)]
    words += ["--nvtx"] if options.nvtx else []
    words += ["--trace", str(options.trace)] if options.trace and trace else []
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    line = [sys.executable, *(launcher if world > 1 else []), __file__, *words, *rest]
    names = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"} if world == 1 else {}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, **names})
    if done.returncode or not out.exists():
        raise failed(done)
    return json.loads(out.read_text())


def show(row: dict[str, Any], one: float) -> str:
    """Return a line about a number of ranks; `one` is the images/s of a rank alone, or of the fewest."""
    ratio, step = row["both_to_synthetic"], row["both"]["step_seconds"]
    rate, synthetic, alone = (row[name]["images_per_second"]["median"] for name in ("both", "synthetic", "input"))
    return (
        f"{row['ranks']:3} × {row['accumulation']} × {row['batch']} images: {rate:10,.1f} images/s, {ratio['median']:.3f} of "
        f"{synthetic:,.1f} without input ({ratio['min']:.3f} to {ratio['max']:.3f}); step {1000 * step['median']:,.1f} ms, p95 "
        f"{1000 * step['p95']:,.1f}; waits {100 * row['data_wait_share']:.0f} %; input alone {alone:,.0f}; first step "
        f"{row['first_step_seconds']:.1f} s; scaling {rate / row['ranks'] / one:.3f}"
    )


def main() -> None:
    """Read the command line, measure, print a line for each number of ranks."""
    options, rest = tyro.cli(Options, description=__doc__, return_unknown_args=True)
    check_json(options.json)
    check_json(options.trace, "--trace")
    if "RANK" in os.environ:
        if not options.data:
            raise UsageError("under torchrun --data must say what to train on: images are made for ranks that it starts itself")
        return rank(options, rest)
    numbers = options.numbers()
    with tempfile.TemporaryDirectory(prefix="bench_train-") as name:
        folder = Path(name)
        data = options.data or make_data(folder, options.images, options.build_resize)
        rows = [on_ranks(world, options, data, rest, folder, trace=world == numbers[-1]) for world in numbers]
    first = rows[0]
    print(f"{first['arch']} network, {first['crop']}², {first['amp']}, compile {first['compile']}, {first['device']}")
    one = first["both"]["images_per_second"]["median"] / first["ranks"]
    for row in rows:
        print(show(row, one))
    result = {"recipe": options.recipe, "data": options.data or f"{options.images} JPEGs, --resize {options.build_resize}"}
    return write_json(options.json, result | {"options": rest, "rows": rows})


if __name__ == "__main__":
    run_command(main, PROGRAM)
