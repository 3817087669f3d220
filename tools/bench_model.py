"""Measure the step: images/s of forward, backward and optimizer on a batch that lies on the device, beside a matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from torch import nn

from fastirv2.errors import run_command
from fastirv2.models import create
from fastirv2.report.machine import seconds_of, spread, write_json
from fastirv2.report.utilisation import forward_flop
from fastirv2.training.distributed import Process, join
from fastirv2.training.engine import Engine, choose_precision, unit
from fastirv2.training.optim import OptimizerConfig, create_optimizer, set_rate
from fastirv2.training.plan import Amp


@dataclass(frozen=True)
class Options:
    """Measure how many images a second the network trains, apart from its input."""

    arch: Literal["paper", "slim"] = "paper"
    """Which network."""
    batch: tuple[int, ...] = ()
    """Images a step, one measurement for each; by default 8 on a CPU, and 64, 128 and 256 on a GPU."""
    size: int = 299
    """Side of the images in pixels."""
    amp: Amp = "auto"
    """Precision, as in training."""
    rounds: int = 10
    """Steps measured, after a warm-up of 3."""
    device: str = "auto"
    """auto, cpu or cuda."""
    json: Path | None = None
    """Write the result into this file too."""


def product_rate(device: torch.device, amp: str, rounds: int) -> list[float]:
    """Return the yardstick: FLOP/s of a square matrix product in the step's precision."""
    dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(amp, torch.float32)
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    return [2 * side**3 / seconds_of(lambda: a @ b, device) for _ in range(rounds)]


def step_seconds(options: Options, process: Process, amp: Amp, batch: int) -> list[float]:
    """Return the seconds of whole training steps of `batch` images."""
    device = process.device
    engine = Engine(create(options.arch), process, amp=amp, accumulation=1, normalise=unit)
    optimizer = create_optimizer(engine.model, OptimizerConfig())
    set_rate(optimizer, 1e-3)
    shape = (batch, 3, options.size, options.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device).contiguous(memory_format=torch.channels_last)
    batches = repeat((images, torch.arange(batch, device=device) % 1000, batch))
    for _ in range(3):
        engine.step(batches, optimizer)
    return [seconds_of(lambda: engine.step(batches, optimizer), device) for _ in range(options.rounds)]


def forward_seconds(options: Options, process: Process, amp: Amp, batch: int) -> list[float]:
    """Return the seconds of forward passes in evaluation."""
    device = process.device
    engine = Engine(create(options.arch), process, amp=amp, accumulation=1, normalise=unit)
    images = torch.randn(batch, 3, options.size, options.size, device=device, dtype=engine.dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    model: nn.Module = engine.model.eval()
    with torch.inference_mode(), engine.autocast():
        for _ in range(3):
            model(images)
        return [seconds_of(lambda: model(images), device) for _ in range(options.rounds)]


def measure(options: Options) -> dict[str, Any]:
    """Measure every batch size, and the yardstick before and after."""
    process = join(options.device)
    amp = choose_precision(options.amp, process.device)
    batches = options.batch or ((64, 128, 256) if process.device.type == "cuda" else (8,))
    flops = forward_flop(lambda: create(options.arch), options.size)
    product = product_rate(process.device, amp, options.rounds)
    rows = []
    for batch in batches:
        if process.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        steps = step_seconds(options, process, amp, batch)
        forward = forward_seconds(options, process, amp, batch)
        memory = torch.cuda.max_memory_allocated() if process.device.type == "cuda" else None
        rows.append({
            "batch": batch, "train": spread([batch / s for s in steps]), "evaluate": spread([batch / s for s in forward]),
            "peak_memory_bytes": memory,
        })  # fmt: skip
    product += product_rate(process.device, amp, options.rounds)
    peak = spread(product)
    for row in rows:
        row["share_of_product"] = 3 * flops * row["train"]["median"] / peak["median"]
    return {
        "arch": options.arch, "size": options.size, "amp": amp, "device": str(process.device), "rounds": options.rounds,
        "forward_flop_per_image": flops, "product_flop_per_second": peak, "batches": rows,
    }  # fmt: skip


def main() -> None:
    """Read the command line, measure, print a table."""
    options = tyro.cli(Options, description=__doc__)
    result = measure(options)
    where = f"{result['amp']}, {result['device']}"
    steps = f"medians of {result['rounds']} steps"
    print(f"{result['arch']} network, {result['size']}², {where}, {steps}")
    print(f"matrix product: {result['product_flop_per_second']['median'] / 1e12:.2f} TFLOP/s")
    for row in result["batches"]:
        share = f"{100 * row['share_of_product']:.0f} % of the product's rate"
        print(
            f"batch {row['batch']:4}: training {row['train']['median']:9,.1f} images/s, {share}; "
            f"evaluation {row['evaluate']['median']:9,.1f} images/s"
        )
    write_json(options.json, result)


if __name__ == "__main__":
    run_command(main, "bench_model")
