"""The input from cold pages: those of data.mdb are dropped from the page cache, and mincore says whether they are gone.

The kernel keeps pages that any process has mapped and touched, those on a RAM disk, and hides what it keeps of a file that is
neither ours nor ours to write: then there is no figure, and a sentence says so. What a virtual machine's host or a storage
server keeps in its own memory cannot be seen from here.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from input_stages import CutOff, Input, take

from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.report.machine import spread

BATCHES = 12  # of which the main thread's time is the median
KEPT = 0.01  # the share of a file's pages that may be left for it to be cold


def resident_share(file: Path) -> float:
    """Return the share of a file's pages that are in the page cache, by mincore."""
    libc = ctypes.CDLL(None, use_errno=True)
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        pages = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
        address, size, there = view.ctypes.data, ctypes.c_size_t(len(view)), pages.ctypes.data
        failed = libc.mincore(ctypes.c_void_p(address), size, ctypes.c_void_p(there))
        del view
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fspath(file))
    return float((pages & 1).mean())


def drop_pages(file: Path) -> float:
    """Drop a file's pages from the page cache; return the share of them that stayed."""
    gc.collect()  # a map that lies in a circle of objects keeps its pages
    opened = os.open(file, os.O_RDONLY)
    try:
        os.fsync(opened)
        os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(opened)
    return resident_share(file)


def main_thread_microseconds(given: Input, rounds: int, *, cold: bool) -> dict[str, float] | None:
    """Return the time in µs that drawing and feeding a record takes the loader's main thread; None if it cannot be cold."""
    records = open_records(given.data)
    medians = []
    for _ in range(rounds):
        if cold and drop_pages(given.data / "data.mdb") > KEPT:
            return None
        order, seconds = given.order(records), []
        for _ in range(BATCHES):
            begun = perf_counter()
            records.feed(order().numbers)
            seconds.append(perf_counter() - begun)
        medians.append(median(seconds) / given.batch * 1e6)
    return spread(medians)


def cold_rates(given: Input, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Return images/s of reading and of the loader from cold pages, with its ratio to the same from warm ones; or why not.

    Nothing else in this process may have the LMDB mapped. A loader is opened for each measurement, which ends before batches of
    the second epoch are being made: every record that counts was on cold pages.
    """
    config, epoch = given.config, len(open_records(given.data)) // given.batch
    most = epoch - 2 * config.prefetch - config.read_ahead
    if most < 1:
        needed = epoch - most + 1
        return _no_figure(f"an epoch has {epoch} batches and should have {needed}; it takes more records or a smaller --batch")
    rates: dict[str, list[float]] = {"read": [], "loader": [], "warm": []}
    for _ in range(rounds):
        for name, kind, batch in (
            ("read", partial(CutOff, "read"), CutOff.run),
            ("loader", Loader, Loader.__next__),
            ("warm", Loader, Loader.__next__),
        ):
            kept = drop_pages(given.data / "data.mdb") if name != "warm" else 0.0
            if kept > KEPT:
                why = "it lies on a RAM disk, another process has it mapped, or it is not ours to write"
                return _no_figure(f"{kept:.0%} of data.mdb stayed in the page cache: {why}")
            with closing(given.loader(kind)) as loader:
                taken = take(partial(batch, loader), given, settle=config.prefetch, seconds=seconds, most=most)
            rates[name].append(taken.images_per_second)
            del loader
    ratios = [cold / warm for cold, warm in zip(rates["loader"], rates["warm"], strict=True)]
    figures = {name: spread(rates[name]) for name in ("read", "loader")}
    return figures | {"loader, cold / warm": spread(ratios), "batches": most, "why_not": None}


def _no_figure(why: str) -> dict[str, Any]:
    """Return the result without its figures."""
    return {"read": None, "loader": None, "loader, cold / warm": None, "why_not": why}
