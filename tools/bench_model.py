"""Measure the step: images/s of forward, backward and optimizer on a batch that lies on the device, beside a matrix product.

Several values of --batch, --compile, --merge or --norm are measured each with each; those of one batch take turns, step by
step, in one process. `--vs timm` adds timm's inception_resnet_v2 to them: it too runs channels last, under autocast, with the
fused optimizer and the same compile mode, and the ratio to it is the median of the rounds' own.

torchrun --nproc-per-node N tools/bench_model.py --norm local shared torch     measures what statistics over N ranks cost
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

import torch
import tyro
from step_ways import WARM_UP, Compile, Norm, Runner, Switch, Way, all_ways

from fastirv2.errors import UsageError, is_out_of_memory, run_command
from fastirv2.models import SMALLEST_INPUT, create, last_maps
from fastirv2.report.machine import check_json, device_name, seconds_of, spread, write_json
from fastirv2.report.utilisation import forward_flop, peak_tflops, training_flop
from fastirv2.training.distributed import Process, join, leave
from fastirv2.training.engine import choose_precision
from fastirv2.training.plan import Amp


@dataclass(frozen=True)
class Options:
    """Measure how many images a second the network trains, apart from its input."""

    arch: Literal["paper", "slim"] = "paper"
    """Which network."""
    batch: tuple[int, ...] = ()
    """Images a step and rank; by default 8 on a CPU, and 64, 128 and 256 on a GPU."""
    size: int = 299
    """Side of the images in pixels."""
    amp: Amp = "auto"
    """Precision, as in training."""
    compile: tuple[Compile, ...] = ("off",)
    """off: eager; regional: each kind of block compiled once; full: the network as one graph."""
    merge: tuple[Switch, ...] = ("on",)
    """Whether 1×1 convolutions that read the same input run as one."""
    norm: tuple[Norm, ...] = ("local",)
    """Normalisation by each rank's own statistics, by all ranks' (shared), or by torch's SyncBatchNorm (torch; GPUs, eager)."""
    vs: Literal["nothing", "timm"] = "nothing"
    """Also measure timm's inception_resnet_v2, which is the slim network (pip install --no-deps timm huggingface_hub)."""
    rounds: int = 10
    """Measured steps of each, after a warm-up of 3."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto: on a GPU if there is one."""
    json: Path | None = None
    """Write the result into this file too."""
    trace: Path | None = None
    """Write a Chrome trace of three steps of the first way, at the last batch, into this file."""

    def __post_init__(self) -> None:
        if self.size < SMALLEST_INPUT or self.rounds < 1 or min(self.batch, default=1) < 1:
            raise UsageError(
                f"--size must be at least {SMALLEST_INPUT}, --rounds and --batch at least 1; "
                f"got {self.size}, {self.rounds}, {self.batch}"
            )
        if not (self.compile and self.merge and self.norm):
            raise UsageError("--compile, --merge and --norm each need a value at least")
        if min(self.batch, default=2) * last_maps(self.size) ** 2 < 2:
            raise UsageError(f"--batch 1 at --size {self.size} leaves one value of a channel to normalise; give more")
        if self.vs == "timm" and self.arch != "slim":
            raise UsageError("--vs timm is about the slim network, which timm's is: give --arch slim too")


def product_rate(device: torch.device, amp: str, rounds: int) -> list[float]:
    """Return the yardstick: FLOP/s of a square matrix product in the step's precision."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}.get(amp, torch.float32)
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(WARM_UP):
        a @ b
    return [2 * side**3 / seconds_of(lambda: a @ b, device) for _ in range(rounds)]


def measure_batch(
    options: Options, process: Process, amp: Amp, batch: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Measure every way at one batch size, taking turns; return a row for each, and ratios to timm's network."""
    ways = all_ways(options.arch, options.compile, options.merge, options.norm, options.vs)
    runners = [Runner(way, process, amp, batch, options.size) for way in ways]
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for runner in runners:
            seconds[runner.way].append(runner.step_seconds())
    evaluations = [runner.forward_seconds(options.rounds) for runner in runners]
    if options.trace and batch == batches(options, process)[-1]:
        runners[0].write_trace(options.trace if process.first else None)
    images = batch * process.world
    rows = [
        runner.describe()
        | {
            "train": spread([images / s for s in seconds[runner.way]]),
            "step_seconds": {"median": median(seconds[runner.way]), "p95": percentile_95(seconds[runner.way])},
            "evaluate": spread([images / s for s in evaluation]),
        }
        for runner, evaluation in zip(runners, evaluations, strict=True)
    ]
    return rows, [ratio(way, batch, seconds) for way in ways if way.network != "timm" and options.vs == "timm"]


def percentile_95(values: list[float]) -> float:
    """Return the 95th percentile, between the values next to it; of one value, that."""
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def ratio(way: Way, batch: int, seconds: dict[Way, list[float]]) -> dict[str, Any]:
    """Return how many times faster than timm's a way is, compiled alike: of each round's two steps."""
    theirs = seconds[Way("timm", way.compile, "off", "local")]
    return {**asdict(way), "batch": batch, "ratio": spread([b / a for a, b in zip(seconds[way], theirs, strict=True)])}


def batches(options: Options, process: Process) -> tuple[int, ...]:
    """Return the batch sizes to measure."""
    return options.batch or ((64, 128, 256) if process.device.type == "cuda" else (8,))


def measure(options: Options, process: Process) -> dict[str, Any]:
    """Measure every batch size, and the yardstick before and after; the JSON has what was measured so far."""
    amp = choose_precision(options.amp, process.device)
    flops, trained = (count(lambda: create(options.arch), options.size) for count in (forward_flop, training_flop))
    known = process.world * 1e12 * peak_tflops(device_name(process.device), amp)
    product = product_rate(process.device, amp, options.rounds)
    rows: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    too_large: list[int] = []

    def result() -> dict[str, Any]:
        peak = spread(product)
        for row in rows:
            rate = trained * row["train"]["median"]
            row["share_of_product"] = rate / (process.world * peak["median"])
            row["mfu"] = rate / known if known else None
        return {
            "arch": options.arch, "size": options.size, "amp": amp, "device": str(process.device), "ranks": process.world,
            "rounds": options.rounds, "forward_flop_per_image": flops, "product_flop_per_second": peak, "batches": rows,
            "times_timm": ratios, "out_of_memory": too_large,
        }  # fmt: skip

    for batch in batches(options, process):
        try:
            of_batch, to_timm = measure_batch(options, process, amp, batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            too_large.append(batch)
            continue
        rows += of_batch
        ratios += to_timm
        if process.first:
            write_json(options.json, result())
    if not rows:
        raise UsageError(f"the GPU's memory does not hold batches of {min(too_large)}; give a smaller --batch")
    product += product_rate(process.device, amp, options.rounds)
    return result()


def show(result: dict[str, Any]) -> None:
    """Print the result as a table."""
    where = f"{result['amp']}, {result['ranks']} × {result['device']}"
    print(f"{result['arch']} network, {result['size']}², {where}, medians of {result['rounds']} steps")
    print(f"matrix product: {result['product_flop_per_second']['median'] / 1e12:.2f} TFLOP/s")
    for row in result["batches"]:
        milliseconds = {name: 1000 * seconds for name, seconds in row["step_seconds"].items()}
        mfu = f", MFU {100 * row['mfu']:.1f} %" if row["mfu"] else ""
        memory = f", {row['peak_memory_bytes'] / 2**30:.1f} GiB" if row["peak_memory_bytes"] else ""
        graphs = " ({compiled} graphs compiled, {found} found)".format(**row["graphs"]) if row["graphs"] else ""
        print(
            f"batch {row['batch']:4}, {way_of(row)}: training {row['train']['median']:9,.1f} images/s, "
            f"{100 * row['share_of_product']:.0f} % of the product's rate{mfu}; {milliseconds['median']:,.0f} ms a step, "
            f"{milliseconds['p95']:,.0f} at the 95th percentile, the first {row['first_step_seconds']:.1f} s{graphs}{memory}; "
            f"evaluation {row['evaluate']['median']:9,.1f} images/s"
        )
    for batch in result["out_of_memory"]:
        print(f"batch {batch:4}: out of the GPU's memory")
    for row in result["times_timm"]:
        times = row["ratio"]
        print(
            f"batch {row['batch']:4}, {way_of(row)}: {times['median']:.2f} × timm's ({times['min']:.2f} to {times['max']:.2f})"
        )


def way_of(row: dict[str, Any]) -> Way:
    """Return the way that a row of the result is about."""
    return Way(row["network"], row["compile"], row["merge"], row["norm"])


def main() -> None:
    """Read the command line, measure, print a table."""
    options = tyro.cli(Options, description=__doc__)
    check_json(options.json)
    process = join(options.device)
    result = measure(options, process)
    if process.first:
        show(result)
        write_json(options.json, result)
    leave()


if __name__ == "__main__":
    run_command(main, "bench_model")
