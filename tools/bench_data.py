"""Measure the input: images/s of the loader, beside DALI's own Caffe reader over the same LMDB in the same run.

`bench_data.py --build` measures fastirv2-build-lmdb instead; `--build --help` lists its options.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import bench_build
import numpy as np
import torch
import tyro
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, TrainOrder
from fastirv2.errors import run_command
from fastirv2.report.machine import spread, write_json
from fastirv2.training.distributed import join


@dataclass(frozen=True)
class Options:
    """Measure how many images a second the input makes ready for training on this machine."""

    data: Path | None = None
    """An LMDB folder; without it one is made of synthetic JPEGs."""
    images: int = 1000
    """Synthetic JPEGs, of 500 × 375 pixels and about 100 KB like ImageNet's."""
    batch: int = 64
    """Images a batch."""
    seconds: float = 5.0
    """Length of one measurement."""
    rounds: int = 5
    """Measurements of each, taken in turn."""
    device: str = "auto"
    """auto, cpu or cuda."""
    input: tyro.conf.OmitArgPrefixes[InputConfig] = InputConfig()  # noqa: RUF009
    """The input's own options."""
    json: Path | None = None
    """Write the result into this file too."""


def synthetic_folder(folder: Path, images: int) -> Path:
    """Write JPEGs with the size, in pixels and bytes, of ImageNet's; return a class folder's parent."""
    classes = folder / "images"
    (classes / "0").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        noisy = np.clip(smooth + rng.integers(-24, 25, (375, 500, 1)), 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(noisy).save(stream, "JPEG", quality=90)
        (classes / "0" / f"{number:06}.jpg").write_bytes(stream.getvalue())
    return classes


def caffe_reader(data: Path, options: Options, device: torch.device, threads: int) -> Callable[[], object]:
    """Return the yardstick: DALI's reader with its own shuffle, then the same decode, warp, random crop and mirror."""
    gpu = device.type == "cuda"
    pipeline = Pipeline(
        batch_size=options.batch, num_threads=threads, device_id=device.index if gpu else None, prefetch_queue_depth=2, seed=1
    )
    with pipeline:
        encoded, labels = fn.readers.caffe(path=str(data), random_shuffle=True)
        decoder = {"device": "mixed", "hw_decoder_load": options.input.hw_decoder_load} if gpu else {"device": "cpu"}
        decoded = fn.decoders.image(encoded, output_type=types.RGB, jpeg_fancy_upsampling=True, **decoder)
        size, crop = options.input.resize, options.input.crop
        warped = fn.resize(decoded, size=(size, size))
        place = {"crop_pos_x": fn.random.uniform(range=(0, 1)), "crop_pos_y": fn.random.uniform(range=(0, 1))}
        images = fn.crop_mirror_normalize(
            warped, crop=(crop, crop), mirror=fn.random.coin_flip(), dtype=types.UINT8, output_layout="HWC", **place
        )
        pipeline.set_outputs(images, labels.gpu() if gpu else labels)
    pipeline.build()
    stream = [torch.cuda.current_stream(device)] if gpu else []  # handed over by streams, as the loader's batches are
    return lambda: pipeline.run(*stream)


def rate(batch: Callable[[], object], options: Options) -> float:
    """Return images/s over one measurement, counted in whole batches as they come out."""
    begun, batches = perf_counter(), 0
    while perf_counter() - begun < options.seconds:
        batch()
        batches += 1
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return batches * options.batch / (perf_counter() - begun)


def measure(data: Path, options: Options) -> dict[str, Any]:
    """Measure the loader and the yardstick in turn, each warmed up first."""
    process = join(options.device)
    records = open_records(data)
    order = TrainOrder(records, options.input, seed=0, global_batch=options.batch, world=1, rank=0, parts=1, step=0)
    loader = Loader(records, order, options.input, batch=options.batch, device=process.device, local_world=1)
    ways = {"loader": loader.__next__, "readers.caffe": caffe_reader(data, options, process.device, loader.threads)}
    for batch in ways.values():
        for _ in range(4):
            batch()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, batch in ways.items():
            rates[name].append(rate(batch, options))
    loader.close()
    ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
    return {
        "batch": options.batch, "resize": options.input.resize, "crop": options.input.crop, "threads": loader.threads,
        "records": len(records), "device": str(process.device), "seconds": options.seconds, "rounds": options.rounds,
        "images_per_second": {name: spread(values) for name, values in rates.items()}, "ratio": spread(ratios),
    }  # fmt: skip


def main() -> None:
    """Read the command line, measure, print a table."""
    if "--build" in sys.argv[1:]:
        return bench_build.main([word for word in sys.argv[1:] if word != "--build"])
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory(prefix="bench_data-") as folder:
        data = options.data
        if data is None:
            data = Path(folder) / "lmdb"
            source = synthetic_folder(Path(folder), options.images)
            subprocess.run([sys.executable, "-m", "fastirv2.build_lmdb", source, data], check=True, stdout=subprocess.DEVNULL)
        result = measure(data, options)
    print(f"{result['device']}, {result['threads']} threads, batches of {result['batch']}, {result['records']:,} records")
    for name, figures in result["images_per_second"].items():
        print(f"{name:14} {figures['median']:10,.0f} images/s   ({figures['min']:,.0f} to {figures['max']:,.0f})")
    ratio = result["ratio"]
    print(f"{'ratio':14} {ratio['median']:10.2f}            ({ratio['min']:.2f} to {ratio['max']:.2f})")
    write_json(options.json, result)


if __name__ == "__main__":
    run_command(main, "bench_data")
