"""Measure the input: where the loader's time goes, what cold pages cost it, and its images/s beside other ways to its batches.

Stages: read, + decode, + resize and crop, + hand-over to torch, each with all before it. Milliseconds lie between a batch and
the next; on a GPU, between events on the stream that batches are handed over to.
Yardsticks: DALI's own Caffe reader with the same operations, Pillow in a torch DataLoader with as many workers as the loader
has threads, and DALI's reader alone beside our feeding, from images of 500 × 375 pixels and from records of the size that
windows are cut from. The Python of the loader's main thread is timed for itself.
Cold: reading and the loader again, each round after the pages of data.mdb were dropped from the page cache and seen to be gone.

Each figure is the median of rounds that are taken in turn, after the batches that were made ahead.
`bench_data.py --build` measures fastirv2-build-lmdb instead; `--build --help` lists its options.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import bench_build
import photographs
import torch
import tyro
from input_pages import cold_rates, main_thread_microseconds, resident_share
from input_stages import LAST, Input, Taken, cut_off, summed_up, take
from input_table import print_result
from input_trace import write_trace
from input_verdict import Figures, verdict
from input_yardsticks import caffe_reader, pillow_loader, readers_alone

from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig
from fastirv2.errors import UsageError, run_command
from fastirv2.report.machine import check_json, spread, write_json
from fastirv2.training.distributed import Process, join

RATIOS = {  # of the first to the second
    "loader / readers.caffe": ("loader", "readers.caffe"),
    "loader / Pillow": ("loader", "Pillow"),
    "loader, resized / Pillow, resized": ("loader, resized", "Pillow, resized"),
    "loader, resized / Pillow": ("loader, resized", "Pillow"),
    "reading / readers.caffe, reading": ("reading", "readers.caffe, reading"),
}


@dataclass(frozen=True)
class Options:
    """Measure how many images a second the input makes ready for training on this machine."""

    data: Path | None = None
    """An LMDB folder to measure over, whose pages leave the page cache by it; unless given, JPEGs are made."""
    images: int = 1000
    """JPEGs to make, of 500 × 375 pixels and about 100 KB like ImageNet's."""
    side: int | None = None
    """The longer side of the images in pixels, if other."""
    batch: int = 64
    """Images a batch."""
    seconds: float = 3.0
    """Length of one measurement."""
    rounds: int = 5
    """Measurements of each, taken in turn."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to decode; auto: on a GPU if there is one."""
    input: tyro.conf.OmitArgPrefixes[InputConfig] = InputConfig()  # noqa: RUF009
    """The input's own options."""
    need: float | None = None
    """Images/s that one GPU needs, to say how many of them this host feeds."""
    trace: Path | None = None
    """Write a Chrome trace of some batches through the loader into this file."""
    json: Path | None = None
    """Write the result into this file too."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.batch < 1 or not self.seconds > 0:
            raise UsageError(
                "--rounds and --batch must be at least 1, --seconds more than 0; "
                f"got {self.rounds}, {self.batch}, {self.seconds:g}"
            )
        if self.need is not None and self.need <= 0:
            raise UsageError(f"--need {self.need:g} must be more than 0 images/s")
        if self.data is not None and not (self.data / "data.mdb").is_file():
            raise UsageError(f"--data {self.data} holds no data.mdb: give the folder of one LMDB")
        if self.data is None and self.images < self.batch:
            raise UsageError(f"--images {self.images} must be at least a batch, --batch {self.batch}")
        if self.input.augment != "crop" or self.input.resize_mode != "warp" or self.input.sizes:
            raise UsageError("the other ways warp, crop and mirror: leave --augment, --resize-mode and --sizes as they are")


@dataclass(frozen=True)
class Data:
    """The same images as an LMDB and as files, as they are, and warped to the size that windows are cut from."""

    lmdb: Path
    files: Path | None = None
    resized: Path | None = None
    resized_files: Path | None = None


def make_data(folder: Path, options: Options) -> Data:
    """Make the images and build the LMDBs."""
    lmdb, files, resized, resized_files = (folder / name for name in ("lmdb", "files", "resized", "resized-files"))
    photographs.write_photographs(photographs.Options(files, options.images, options.side))
    for out, resize in ((lmdb, "none"), (resized, f"{options.input.resize}x{options.input.resize}")):
        line = [sys.executable, "-m", "fastirv2.build_lmdb", files, out, "--resize", resize]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = open_records(resized)
    resized_files.mkdir()
    for number in range(len(records)):
        (resized_files / f"{number:06}.jpg").write_bytes(records[number][0])
    return Data(lmdb, files, resized, resized_files)


def ways_to_batches(data: Data, given: Input, open_loader: Callable[[Input], Loader]) -> dict[str, Callable[[], Any]]:
    """Return the ways that are measured: each gives one batch a call."""
    config = given.config
    sides = {"batch": given.batch, "resize": config.resize, "crop": config.crop}
    ways: dict[str, Callable[[], Any]] = {"loader": open_loader(given).__next__}
    records, gpu = open_records(data.lmdb), given.device.type == "cuda"
    if records.form == "encoded":  # its raw images have no size of their own in a graph
        load = config.hw_decoder_load
        ways["readers.caffe"] = caffe_reader(data.lmdb, threads=given.threads, hw_decoder_load=load, gpu=gpu, **sides)
    ways |= readers_alone(records, given.order(records), data.lmdb, batch=given.batch, threads=given.threads)
    if data.resized and data.files and data.resized_files:
        ways["loader, resized"] = open_loader(replace(given, data=data.resized)).__next__
        ways["Pillow"] = pillow_loader(data.files, workers=given.threads, device=given.device, **sides)
        ways["Pillow, resized"] = pillow_loader(data.resized_files, workers=given.threads, device=given.device, **sides)
    return ways


def measure_in_turn(data: Data, given: Input, options: Options) -> tuple[dict[str, list[Taken]], dict[str, list[Taken]]]:
    """Return the rounds of each stage and of each way; all is closed again, so that nothing has the LMDB mapped."""
    with ExitStack() as stack:

        def open_loader(of: Input) -> Loader:
            loader = of.loader(Loader)
            stack.callback(loader.close)
            return loader

        ways = ways_to_batches(data, given, open_loader)
        stages = {name: stack.enter_context(closing(loader)).run for name, loader in cut_off(given).items()}
        rounds: dict[str, list[Taken]] = {name: [] for name in (*stages, *ways)}
        settle = max(given.config.prefetch + 1, 2 * given.threads)  # as many as a DataLoader's workers make ahead
        for _ in range(options.rounds):
            for name, batch in (stages | ways).items():
                rounds[name].append(take(batch, given, settle=settle, seconds=options.seconds))
    return {name: rounds[name] for name in stages} | {LAST: rounds["loader"]}, {name: rounds[name] for name in ways}


def measure(data: Data, options: Options, process: Process) -> dict[str, Any]:
    """Measure everything; cold pages come last, since they take the warm ones away."""
    given = Input(data.lmdb, options.input, options.batch, process.device, process.cpus)
    if options.trace:
        write_trace(given, options.trace)
    python = {"warm": main_thread_microseconds(given, options.rounds, cold=False)}
    stages, ways = measure_in_turn(data, given, options)
    resident = resident_share(data.lmdb / "data.mdb")
    python["cold"] = main_thread_microseconds(given, options.rounds, cold=True)
    cold = cold_rates(given, rounds=options.rounds, seconds=options.seconds)
    rates = {name: [taken.images_per_second for taken in rounds] for name, rounds in ways.items()}
    ratios = {
        name: spread([ours / theirs for ours, theirs in zip(rates[one], rates[other], strict=True)])
        for name, (one, other) in RATIOS.items()
        if one in rates and other in rates
    }
    return {
        "batch": options.batch, "resize": options.input.resize, "crop": options.input.crop, "augment": options.input.augment,
        "threads": given.threads, "cpus": given.cpus, "records": len(open_records(data.lmdb)), "device": str(process.device),
        "seconds": options.seconds, "rounds": options.rounds, "resident_share": resident,
        "images_per_second": {name: spread(values) for name, values in rates.items()}, "ratios": ratios,
        "main_thread_microseconds_per_record": python,
        "stages": {name: summed_up(rounds) for name, rounds in stages.items()}, "cold": cold,
    }  # fmt: skip


def figures_of(result: dict[str, Any], data: Data, options: Options) -> Figures:
    """Return what the verdict rests on."""
    size, cold = f"{options.input.resize}x{options.input.resize}", result["cold"]
    return Figures(
        stages={name: stage["images_per_second"]["median"] for name, stage in result["stages"].items()},
        cpu_share=result["stages"][LAST]["cpu_share"],
        threads=result["threads"],
        cpus=result["cpus"],
        gpus=torch.cuda.device_count() if result["device"] != "cpu" else 0,
        hw_decoder_load=options.input.hw_decoder_load,
        build=None if open_records(data.lmdb).resizes == (size,) else size,
        cold=cold["loader"]["median"] if cold["loader"] else None,
        cold_ratio=cold["loader, cold / warm"]["median"] if cold["loader"] else 1.0,
    )


def main() -> None:
    """Read the command line, measure, print a table."""
    if "--build" in sys.argv[1:]:
        return bench_build.main([word for word in sys.argv[1:] if word != "--build"])
    options = tyro.cli(Options, description=__doc__)
    check_json(options.json)
    process, load = join(options.device), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench_data-") as folder:
        data = Data(options.data) if options.data else make_data(Path(folder), options)
        result = measure(data, options, process) | {"load_average": load}
        result["verdict"] = asdict(verdict(figures_of(result, data, options), options.need))
    print_result(result)
    return write_json(options.json, result)


if __name__ == "__main__":
    run_command(main, "bench_data")
