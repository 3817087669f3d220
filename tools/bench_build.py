"""Measure fastirv2-build-lmdb as whole commands, beside yardsticks from the same run: `bench_data.py --build`.

--resize none     beside strict libjpeg-turbo decoding of the same files, with nothing written: the least that verifying takes.
--resize 328x328  beside the script that everyone writes: Pillow, an LMDB, a commit every 1,000 (build_yardsticks.py).

All are processes with the same number of workers, on files in the page cache, taken in turn. Each rate comes in three kinds:
whole      images / seconds from the command's start to its exit, Python's start and imports included; `ratio` is of these.
marginal   images more / seconds more, from the median seconds of the images and of a quarter of them: what a build of millions
           comes to, where the start no longer counts.
processor  as marginal, but of the processor seconds that all of the command's processes take: what other programs on the
           machine do at the same time changes these least.

The size table says what a --resize makes of the images' size, and from that ratio what it makes of ImageNet-1k, read by GPUs at
an assumed --gpu-rate. With --memory, bench_memory.py measures the memory of builds of many images instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import bench_memory
import tyro
from photographs import link_files

from fastirv2.errors import DataError
from fastirv2.host import available_cpus
from fastirv2.report.machine import check_json, spread, write_json

TOOLS = Path(__file__).resolve().parent
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: orphans become children of this process
PAIRS = {"none": "decode", "328x328": "pillow"}
RESIZES = ("none", "short:400", "short:328", "328x328", "short:256", "256x256")
IMAGENET_IMAGES = 1_281_167
IMAGENET_TAR_BYTES = 147_897_477_120  # ILSVRC2012_img_train.tar
IMAGENET_BYTES = IMAGENET_TAR_BYTES - IMAGENET_IMAGES * (512 + 256)  # without each file's header and its padding to 512


@dataclass(frozen=True)
class Options:
    """Measure fastirv2-build-lmdb."""

    source: Path | None = None
    """A folder of class folders to take the images from; without it they are made, like ImageNet's in pixels and bytes."""
    images: int | None = None
    """How many images: 1,000 unless given, 200,000 with --memory."""
    workers: int | None = None
    """Processes that decode; as many as there are CPUs unless given."""
    rounds: int = 5
    """Measurements of each, taken in turn."""
    gpu_rate: float = 3000.0
    """Images/s that a GPU is assumed to read, for the size table."""
    memory: bool = False
    """Measure the memory of builds of many small images, and of a long list, instead."""
    lines: int = 3_000_000
    """With --memory: lines of the list file."""
    json: Path | None = None
    """Write the result into this file too."""


def builder(source: Path, out: Path, *options: str) -> list[str]:
    """Return the command that builds."""
    return [sys.executable, "-m", "fastirv2.build_lmdb", str(source), str(out), *options]


class Spent(NamedTuple):
    """Seconds from a command's start to its exit, and processor seconds of all its processes."""

    seconds: float
    processor_seconds: float


def run(line: list[str]) -> Spent:
    """Run a command and return what it took."""
    others, before, begun = children(), processor_seconds(), perf_counter()
    with adopting():  # its server of processes ends by itself, after the command
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        seconds = perf_counter() - begun
        while orphans := children() - others:
            os.waitpid(orphans.pop(), 0)
    if done.returncode:
        raise DataError(f"{' '.join(line)} ended with exit code {done.returncode}: {done.stderr.strip()}")
    return Spent(seconds, processor_seconds() - before)


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Have what outlives the processes that this one starts become its own children."""
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)


def children() -> set[int]:
    """Return the processes that are children of this one."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def processor_seconds() -> float:
    """Return the processor seconds of all children that have ended, and of theirs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def make_sources(folder: Path, options: Options, workers: int) -> dict[int, Path]:
    """Return count → class folders with so many images, for all and a quarter of them; all are in the page cache."""
    count = options.images or 1000
    originals = options.source
    if originals is None:
        originals = folder / "photographs"
        run([sys.executable, str(TOOLS / "photographs.py"), str(originals), "--images", str(count), "--workers", str(workers)])
    files = sorted(path for path in originals.rglob("*") if path.is_file())
    if not 4 <= count <= len(files):
        raise DataError(f"{originals} holds {len(files):,} images; give --images from 4 to {len(files)}")
    sources = {}
    for number in (count, count // 4):
        chosen = [files[position * len(files) // number] for position in range(number)]
        sources[number] = link_files(chosen, folder / f"source-{number}", number)
        for file in chosen:
            file.read_bytes()
    return sources


def command(what: str, resize: str, source: Path, out: Path, workers: int) -> list[str]:
    """Return the command of the builder or of its yardstick."""
    if what == "builder":
        return builder(source, out, "--resize", resize, "--workers", str(workers), "--max-bad", "1")
    outs = [str(out)] if what == "pillow" else []
    return [sys.executable, str(TOOLS / "build_yardsticks.py"), what, str(source), *outs, "--workers", str(workers)]


def measure_speed(sources: dict[int, Path], out: Path, rounds: int, workers: int) -> dict[str, Any]:
    """Measure each pair on each number of images in turn, the first of a pair alternating."""
    pairs = {resize: {what: defaultdict(list) for what in ("builder", other)} for resize, other in PAIRS.items()}
    for number in range(rounds):
        for resize, spent in pairs.items():
            for count, source in sources.items():
                for what in list(spent) if number % 2 == 0 else list(spent)[::-1]:
                    spent[what][count].append(run(command(what, resize, source, out, workers)))
                    shutil.rmtree(out, ignore_errors=True)
    return {resize: compare(spent, max(sources), min(sources)) for resize, spent in pairs.items()}


def compare(spent: dict[str, dict[int, list[Spent]]], count: int, quarter: int) -> dict[str, Any]:
    """Return the kinds of rates, and the ratios, of the builder and its yardstick."""
    whole = {what: [count / taken.seconds for taken in runs[count]] for what, runs in spent.items()}
    return {
        "seconds": {
            str(n): {what: spread([taken.seconds for taken in runs[n]]) for what, runs in spent.items()}
            for n in (count, quarter)
        },
        "whole": {
            "images_per_second": {what: spread(rates) for what, rates in whole.items()},
            "ratio": spread([a / b for a, b in zip(*whole.values(), strict=True)]),
        },
        "marginal": compare_longer(spent, "seconds", count, quarter),
        "processor": compare_longer(spent, "processor_seconds", count, quarter),
    }


def compare_longer(spent: dict[str, dict[int, list[Spent]]], kind: str, count: int, quarter: int) -> dict[str, Any]:
    """Return images more per second more of one kind, None where noise hides it, and their ratio."""
    medians = {what: [median(getattr(t, kind) for t in runs[n]) for n in (count, quarter)] for what, runs in spent.items()}
    rates = {what: (count - quarter) / (long - short) if long > short else None for what, (long, short) in medians.items()}
    ours, theirs = rates.values()
    return {"images_per_second": rates, "ratio": ours / theirs if ours and theirs else None}


def measure_sizes(source: Path, out: Path, options: Options, workers: int) -> dict[str, Any]:
    """Build once with each --resize and return what it makes of the images' size, and of ImageNet-1k."""
    rows: list[dict[str, Any]] = []
    for resize in RESIZES:
        run(command("builder", resize, source, out, workers))
        dataset = json.loads((out / "dataset.json").read_bytes())
        mean = dataset["data_bytes"] / dataset["count"]
        beside = (out / "data.mdb").stat().st_size / dataset["count"] - mean  # LMDB's pages are not filled
        shutil.rmtree(out)
        ratio = mean / rows[0]["bytes_per_image"] if rows else 1.0
        record = ratio * IMAGENET_BYTES / IMAGENET_IMAGES + beside
        rows.append({
            "resize": resize, "bytes_per_image": mean, "ratio": ratio, "imagenet_gigabytes": record * IMAGENET_IMAGES / 1e9,
            "read_gigabytes_per_second": {gpus: int(gpus) * options.gpu_rate * record / 1e9 for gpus in ("1", "8")},
        })  # fmt: skip
    imagenet = {"images": IMAGENET_IMAGES, "jpeg_gigabytes": IMAGENET_BYTES / 1e9}
    return {"imagenet": imagenet, "assumed_images_per_second_of_a_gpu": options.gpu_rate, "rows": rows}


def show_speed(result: dict[str, Any]) -> None:
    """Print all kinds of rates."""
    print(
        f"{result['images']:,} images of {result['bytes_per_image'] / 1000:.1f} kB, {result['workers']} workers, "
        f"medians of {result['rounds']} rounds"
    )
    print(f"{'images/s':24} {'builder':>10} {'yardstick':>10} {'ratio':>7}")
    for resize, yardstick in PAIRS.items():
        whole = result["speed"][resize]["whole"]
        ours, theirs = (whole["images_per_second"][what]["median"] for what in ("builder", yardstick))
        ratio = whole["ratio"]
        span = f"({ratio['min']:.2f} to {ratio['max']:.2f})"
        print(f"{f'{resize} / {yardstick}, whole':24} {ours:10,.0f} {theirs:10,.0f} {ratio['median']:7.2f}   {span}")
        for kind in ("marginal", "processor"):
            rates = result["speed"][resize][kind]
            ours, theirs, ratio = (value or float("nan") for value in (*rates["images_per_second"].values(), rates["ratio"]))
            print(f"{f'   {kind}':24} {ours:10,.0f} {theirs:10,.0f} {ratio:7.2f}")


def show_sizes(sizes: dict[str, Any]) -> None:
    """Print the size table."""
    imagenet, rate = sizes["imagenet"], sizes["assumed_images_per_second_of_a_gpu"]
    print(
        f"\nImageNet-1k ({imagenet['images']:,} images, {imagenet['jpeg_gigabytes']:.1f} GB of JPEGs) by the ratio of these "
        f"images, read at an assumed {rate:,.0f} images/s a GPU"
    )
    print(f"{'--resize':12} {'kB/image':>9} {'ratio':>7} {'GB':>7} {'GB/s, 1 GPU':>12} {'GB/s, 8 GPUs':>13}")
    for row in sizes["rows"]:
        one, eight = row["read_gigabytes_per_second"].values()
        stored = f"{row['bytes_per_image'] / 1000:9.1f} {row['ratio']:7.2f} {row['imagenet_gigabytes']:7.1f}"
        print(f"{row['resize']:12} {stored} {one:12.2f} {eight:13.2f}")


def measure(folder: Path, options: Options) -> dict[str, Any]:
    """Measure speed and sizes."""
    workers = options.workers or available_cpus()
    sources = make_sources(folder, options, workers)
    count, out = max(sources), folder / "out"
    sizes = measure_sizes(sources[count], out, options, workers)
    return {
        "what": __doc__,
        "images": count,
        "source": str(options.source) if options.source else "synthetic",
        "bytes_per_image": sizes["rows"][0]["bytes_per_image"],
        "workers": workers,
        "rounds": options.rounds,
        "speed": measure_speed(sources, out, options.rounds, workers),
        "sizes": sizes,
    }


def main(arguments: list[str]) -> None:
    """Read the command line and measure."""
    options = tyro.cli(Options, prog="bench_data.py --build", args=arguments, description=__doc__)
    check_json(options.json)
    with tempfile.TemporaryDirectory(prefix="bench_build-") as folder:
        if options.memory:
            images = options.images or 200_000
            result = bench_memory.measure(Path(folder), images, options.lines, options.workers or available_cpus())
        else:
            result = measure(Path(folder), options)
    write_json(options.json, result)  # first: whoever reads what is printed may leave before the end
    if options.memory:
        bench_memory.show(result)
    else:
        show_speed(result)
        show_sizes(result["sizes"])
