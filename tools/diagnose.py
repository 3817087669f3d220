"""What bounds training on this machine: DATA alone, the step alone and both together for some minutes, and one screen about it.

The step's share of the GPU's peak (of a matrix product's rate, where that is not known) says how much there is to gain, and
the hours for ImageNet what it amounts to. Options that are not listed here are the trainer's. Under torchrun all ranks are
measured together: `torchrun --nproc-per-node 8 tools/diagnose.py DATA`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from bench_model import product_rate
from bench_train import default_batch
from train_rates import Loop, measure, opened_run
from train_trace import check_nsight, show_to_nsight, write_trace

from fastirv2.assembly import new_network
from fastirv2.config import Config
from fastirv2.errors import UsageError, run_command
from fastirv2.report.machine import check_json, device_name, write_json
from fastirv2.report.utilisation import peak_tflops, training_flop
from fastirv2.training.plan import Plan
from fastirv2.training.run import Run

PROGRAM = "diagnose"
IMAGES, EPOCHS = 1_281_167, 90  # of ImageNet's training set, and of lim0606's setting 1, which took 21 days
PREDECESSOR_HOURS = 21 * 24
NEAR = 0.95  # of the slower part's rate: where both together reach less, neither alone is to blame
ROUNDS = 3


@dataclass(frozen=True)
class Options:
    """Say what bounds a training run on this machine, and which option to try next."""

    data: tyro.conf.Positional[str]
    """Training data as the trainer takes it."""
    recipe: str = "setting1"
    """A recipe of the trainer's, or a file."""
    batch: int = 0
    """Images a rank holds in one pass; 0: 8 on a CPU, 128 on a GPU."""
    minutes: float = 3.0
    """About how long to measure, besides starting, warming up and compiling."""
    nvtx: bool = False
    """Take some steps with NVTX ranges, for nsys profile --capture-range cudaProfilerApi."""
    trace: Path | None = None
    """Write a Chrome trace of some steps of rank 0 into this file."""
    json: Path | None = None
    """Write the result into this file too."""

    def __post_init__(self) -> None:
        if not 0 < self.minutes < 1e4:
            raise UsageError(f"--minutes {self.minutes} must be more than 0")


@dataclass(frozen=True)
class Rates:
    """Images/s of a rank's input alone, of its step alone, and of both together."""

    input: float
    step: float
    both: float

    @property
    def bound(self) -> str:
        """What bounds the run: "input", "step", or "overlap" where both together are slower than the slower of the two."""
        slower = min(self.input, self.step)
        if self.both < NEAR * slower:
            return "overlap"
        return "input" if self.input < self.step else "step"

    @property
    def lost(self) -> float:
        """The share of the step's rate that is lost to input and overlap."""
        return max(0.0, 1 - self.both / self.step)


def hours(images_per_second: float, gpus: int) -> float:
    """Return the hours of 90 epochs of ImageNet on `gpus` that scale without loss."""
    return EPOCHS * IMAGES / images_per_second / gpus / 3600


def next_option(bound: str, config: Config, plan: Plan, device: str) -> str:
    """Return what to try next."""
    settings, resize = config.train, config.input.resize
    if device == "cpu":
        warped = config.input.augment == "crop" and config.input.resize_mode == "warp"
        smaller = f"{resize}x{resize}, of which windows are cut as they are" if warped else f"short:{resize}, or larger"
        return {
            "input": f"fastirv2-build-lmdb --resize {smaller}; tools/bench_data.py says which stage binds",
            "overlap": "fewer --input.threads: input and step want the same CPUs",
            "step": "a GPU",
        }[bound]
    of_the_step = [
        (settings.compile == "off", "--train.compile regional"),
        (
            plan.batch <= 16 and settings.cuda_graph == "off" and plan.world == plan.accumulation == 1,
            "--train.cuda-graph on: with so few images the GPU waits for the host",
        ),
        (plan.batch < 256, "--train.batch auto: more images a pass"),
        (config.model.merge == "off", "--model.merge on, which has not been measured on a GPU"),
        (settings.compile != "full", "--train.compile full, which has not been measured against regional"),
        (True, "--trace, which shows where the step's time goes"),
    ]
    return {
        "input": "tools/bench_data.py, which says which stage binds and what to turn; often --input.hw-decoder-load or threads",
        "overlap": f"--input.prefetch {2 * config.input.prefetch}; --trace shows where the GPU idles",
        "step": next(said for applies, said in of_the_step if applies),
    }[bound]


def diagnose(run: Run, config: Config, minutes: float) -> dict[str, Any]:
    """Measure, and judge."""
    measured = measure(run, config, rounds=ROUNDS, seconds=60 * minutes / (3 * ROUNDS))
    ranks, device = measured["ranks"], run.engine.device
    alone = {name: measured[name]["images_per_second"]["median"] for name in ("input", "synthetic", "both")}
    rates = Rates(*(rate / ranks for rate in alone.values()))
    crop = run.crops[-1][1]
    flop = training_flop(partial(new_network, config), crop)
    known = config.device.peak_tflops or peak_tflops(device_name(device), config.train.amp)
    best = known * 1e12 or median(product_rate(device, config.train.amp, ROUNDS))
    return {
        "device": device_name(device), "arch": config.model.arch, "crop": crop, "amp": config.train.amp,
        "compile": config.train.compile, "bound": rates.bound, "lost_share": rates.lost,
        "images_per_second_a_rank": {"input": rates.input, "step": rates.step, "both": rates.both},
        "yardstick": "peak" if known else "matrix product", "yardstick_flop_per_second": best,
        "share_of_yardstick": {"step": rates.step * flop / best, "both": rates.both * flop / best},
        "roofline_images_per_second": best / flop,
        "hours_of_90_epochs": {str(gpus): hours(rates.both, gpus) for gpus in (1, 8, 64)},
        "try_next": next_option(rates.bound, config, run.plan, device.type), "measured": measured,
    }  # fmt: skip


def screen(found: dict[str, Any]) -> str:
    """Return the one screen."""
    rates, measured, share = found["images_per_second_a_rank"], found["measured"], found["share_of_yardstick"]
    step = measured["both"]["step_seconds"]
    said = {
        "input": "the input: it makes fewer images than the step takes",
        "step": "the step: the input keeps up with it",
        "overlap": "their overlap: together they are slower than either alone, so that they want the same resource",
    }[found["bound"]]
    need = "model FLOP utilisation" if found["yardstick"] == "peak" else "the rate of a matrix product here"
    times = "; ".join(f"{gpus}: {_duration(value)}" for gpus, value in found["hours_of_90_epochs"].items())
    return "\n".join([
        f"{found['arch']} network, {found['crop']}², {found['amp']}, compile {found['compile']}: {measured['ranks']} × "
        f"{found['device']}, {measured['accumulation']} × {measured['batch']} images each",
        f"images/s a device     input alone {rates['input']:,.1f}, step alone {rates['step']:,.1f}, both {rates['both']:,.1f}",
        f"step with input       median {1000 * step['median']:,.1f} ms, p95 {1000 * step['p95']:,.1f} ms",
        f"bound by              {said}",
        f"lost to input         {percent(found['lost_share'])} of the step's rate; the device waits for data in "
        f"{percent(measured['data_wait_share'])} of the time",
        f"roofline              {found['roofline_images_per_second']:,.0f} images/s ({need}): the step alone reaches "
        f"{percent(share['step'])} of it, with its input {percent(share['both'])}",
        f"90 epochs of ImageNet on so many of these, scaling without loss   {times}",
        f"                      lim0606's two Titan X took 21 days = {PREDECESSOR_HOURS} hours",
        f"try next              {found['try_next']}",
    ])  # fmt: skip


def percent(share: float) -> str:
    """Return a share in percent, with a digit after the point."""
    return f"{100 * share:.1f} %"


def _duration(value: float) -> str:
    return f"{value:,.1f} hours" if value < 100 else f"{value / 24:,.1f} days"


def main() -> None:
    """Read the command line, measure, print the screen."""
    options, rest = tyro.cli(Options, description=__doc__, return_unknown_args=True)
    check_json(options.json)
    check_json(options.trace, "--trace")
    batch = options.batch or default_batch()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    sizes = ("--train.global-batch", batch * world, "--train.batch", batch, "--train.bn-batch", batch)
    paths = ("--recipe", options.recipe, "--train", options.data, "--val", options.data)
    arguments = [str(word) for word in (*paths, *sizes, *rest)]
    with opened_run(arguments, PROGRAM) as (run, config):
        if options.nvtx:
            check_nsight(run)
        found = diagnose(run, config, options.minutes)
        if run.process.first:
            print(screen(found), flush=True)
            write_json(options.json, found)
        step = Loop(run, config.input.prefetch).both
        if options.nvtx:
            show_to_nsight(run, step)
        if options.trace:
            write_trace(run, step, options.trace)


if __name__ == "__main__":
    run_command(main, PROGRAM)
