"""How much of this host is ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def available_cpus() -> int:
    """Return how many CPUs this process may use: its affinity mask, or its cgroup's quota when that is less."""
    return max(1, round(min(len(os.sched_getaffinity(0)), _quota())))


def cpu_share(masks: Iterable[frozenset[int]]) -> int:
    """Return how many CPUs one of several processes on this host should use, at least 1.

    `masks` are the affinity masks of them all, this one's among them. Who may use a CPU shares it with all who may: ranks
    that are each bound to their own cores use these, and ranks that may run anywhere divide all. A quota of the cgroup is
    divided by all.
    """
    masks = list(masks)
    mine = os.sched_getaffinity(0)
    share = sum(1 / max(1, sum(cpu in mask for mask in masks)) for cpu in mine)
    return max(1, int(min(share, _quota() / len(masks)) + 1e-6))


def _quota() -> float:
    """Return how many CPUs the cgroup (version 2 or 1) grants in time, infinity without a limit."""
    for path, parts in (("/sys/fs/cgroup/cpu.max", 2), ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", 1)):
        with contextlib.suppress(OSError, ValueError):
            words = Path(path).read_text().split()
            period = words[1] if parts == 2 else Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text()
            if int(words[0]) > 0:
                return int(words[0]) / int(period)
    return float("inf")


def available_memory() -> int:
    """Return the bytes that processes here can still take: of the host, or of the cgroup when that is less."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            root = Path("/sys/fs/cgroup")
            free = min(free, int((root / limit).read_text()) - int((root / used).read_text()))
    return max(0, free)
