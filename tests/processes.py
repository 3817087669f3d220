"""Commands as processes, alone or under torchrun, the way users start them."""

import contextlib
import os
import resource
import subprocess
import sys

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def run_python(*arguments, timeout=300, **options):
    """Run `python ARGUMENTS` and return the finished process with its output as text."""
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=timeout, **options)


def torchrun(ranks, *arguments, timeout=300, **options):
    """Run `torchrun --nproc-per-node RANKS ARGUMENTS` on a port of its own."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks)
    return run_python(*launcher, *arguments, timeout=timeout, **options)


@contextlib.contextmanager
def full_disk(most=0, process=0):
    """Let no file of a process (this one, unless given) grow beyond `most` bytes: a write fails half way, as on a full disk."""
    old = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (most, old[1]))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, old)
