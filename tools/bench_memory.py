"""The memory of builds: all processes together, sampled while they run; called by `bench_data.py --build --memory`.

What is summed is RssAnon of the builder and of every process below it, each 50 ms: memory that is nobody else's. Pages that a
fork shares count once in every process, so that the sum says rather too much; the page cache, which a mapped LMDB is in, does
not count. Memory held for less than 50 ms can be missed.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from photographs import link_files

from fastirv2.errors import DataError

TOOLS = Path(__file__).resolve().parent
INTERVAL_SECONDS = 0.05
DISTINCT = 500  # files; all paths are links to them
SIDE = 64  # pixels: small images, so that what grows with their number shows
LIMIT = 10_000  # images built from the list file


@dataclass
class Peak:
    """The most that a run's samples held, in bytes, and in how many processes."""

    total: int = 0
    processes: int = 0
    largest: int = 0
    samples: int = 0

    def take(self, held: list[int]) -> None:
        """Take a sample: a number of bytes for each process."""
        self.samples += 1
        self.processes = max(self.processes, len(held))
        self.largest = max(self.largest, *held, 0)
        self.total = max(self.total, sum(held))


def family(process: int) -> list[int]:
    """Return a process and all below it: a fork server's children are its grandchildren."""
    found, left = [], [process]
    while left:
        found.append(left.pop())
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
                left += map(int, children.read_text().split())
    return found


def anonymous(process: int) -> int:
    """Return a process's RssAnon in bytes, 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return 1024 * int(line.split()[1])
    return 0


def watch(line: list[str], log: Path) -> dict[str, Any]:
    """Run a command and return its seconds and the peak of its memory."""
    peak, begun = Peak(), perf_counter()
    with log.open("w") as said, subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=said, stderr=said) as process:
        while process.poll() is None:
            peak.take([anonymous(number) for number in family(process.pid)])
            sleep(INTERVAL_SECONDS)
    seconds = perf_counter() - begun
    if process.returncode:
        raise DataError(f"{' '.join(line)} ended with exit code {process.returncode}: {log.read_text().strip()}")
    return {
        "seconds": seconds, "peak_megabytes": peak.total / 1e6, "largest_process_megabytes": peak.largest / 1e6,
        "processes": peak.processes, "samples": peak.samples,
    }  # fmt: skip


def write_list(path: Path, folder: Path, lines: int) -> None:
    """Write a list file with so many lines over the files of a folder, in turn."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    labels = {name: label for label, name in enumerate(sorted({file.parent.name for file in files}))}
    once = [f"{file.relative_to(folder)} {labels[file.parent.name]}\n" for file in files]
    with path.open("w") as stream:
        for _ in range(lines // len(once)):
            stream.writelines(once)
        stream.writelines(once[: lines % len(once)])


def measure(folder: Path, images: int, lines: int, workers: int) -> dict[str, Any]:
    """Build from `images` small images in class folders, and a part of a list of `lines`; return what each took."""
    originals, distinct = folder / "photographs", min(DISTINCT, images)
    make = [sys.executable, TOOLS / "photographs.py", originals, "--images", str(distinct), "--side", str(SIDE)]
    subprocess.run([*make, "--workers", str(workers)], check=True)
    link_files(sorted(originals.rglob("*.jpg")), folder / "images", images)
    write_list(folder / "list.txt", originals, lines)
    build = [sys.executable, "-m", "fastirv2.build_lmdb", "--workers", str(workers)]
    limit = min(LIMIT, lines)
    runs = {
        "folders": (images, [*build, str(folder / "images"), str(folder / "a")]),
        "list": (limit, [*build, str(folder / "list.txt"), str(folder / "b"), "--root", str(originals), "--limit", str(limit)]),
    }
    result: dict[str, Any] = {"what": __doc__, "side": SIDE, "workers": workers, "images": images, "lines": lines}
    for name, (count, line) in runs.items():
        result[name] = {"built": count, **watch(line, folder / "log")}
        result[name]["images_per_second"] = count / result[name]["seconds"]
    return result


def show(result: dict[str, Any]) -> None:
    """Print what each build took."""
    for name in ("folders", "list"):
        figures = result[name]
        print(
            f"{name:8} {figures['built']:9,} images in {figures['seconds']:.1f} s, "
            f"{figures['images_per_second']:,.0f} images/s: at most {figures['peak_megabytes']:,.0f} MB "
            f"in {figures['processes']} processes, {figures['largest_process_megabytes']:,.0f} MB the largest "
            f"({figures['samples']:,} samples)"
        )
