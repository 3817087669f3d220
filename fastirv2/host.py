"""How much of this host is ours."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def available_cpus() -> int:
    """Return how many CPUs this process may use: its affinity mask, or its cgroup's quota when that is less."""
    cpus = len(os.sched_getaffinity(0))
    for path, parts in (("/sys/fs/cgroup/cpu.max", 2), ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", 1)):
        with contextlib.suppress(OSError, ValueError):
            words = Path(path).read_text().split()
            period = words[1] if parts == 2 else Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text()
            if int(words[0]) > 0:
                cpus = min(cpus, max(1, round(int(words[0]) / int(period))))
    return cpus
