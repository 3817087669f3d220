"""Commands as processes, alone, as ranks or under torchrun, the way users start them, many of them forked (`tests.nursery`)."""

import contextlib
import os
import resource
import socket
import subprocess
import time
from pathlib import Path

from tests import nursery

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def run_python(*arguments, timeout=300, env=None):
    """Run `python ARGUMENTS` and return the finished process with its output as text."""
    return _finished([nursery.start(*arguments, env=env)], timeout)


def run_ranks(count, *arguments, timeout=300, **environment):
    """Run `python ARGUMENTS` as so many ranks without a launcher, and return them as one finished process."""
    return _finished(start_ranks(count, *arguments, **environment), timeout)


def _finished(processes, timeout):
    try:
        texts = [process.communicate(timeout=timeout) for process in processes]
    except BaseException:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
        raise
    codes = [process.returncode for process in processes]
    code = next((code for code in codes if code < 0), max(codes))  # a crash is not to be hidden by what the others say of it
    return subprocess.CompletedProcess(processes[0].args, code, *map("".join, zip(*texts, strict=True)))


def torchrun(ranks, *arguments, **options):
    """Run `torchrun --nproc-per-node RANKS ARGUMENTS` on a port of its own."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks)
    return run_python(*launcher, *arguments, **options)


@contextlib.contextmanager
def full_disk(most=0, process=0):
    """Let no file of a process (this one, unless given) grow beyond `most` bytes: a write fails half way, as on a full disk."""
    old = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (most, old[1]))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, old)


def start_ranks(count, *arguments, last=(), **environment):
    """Start `python ARGUMENTS` as so many ranks without a launcher, so that each one's end can be seen.

    `last`, if given, takes the place of the last rank's last arguments.
    """
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(count):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        where = {name: str(value) for name, value in {**names, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items()}
        line = [*arguments[: len(arguments) - len(last)], *last] if rank == count - 1 else arguments
        ranks.append(nursery.start(*line, env={**os.environ, **where, **environment}))
    return ranks


def lines(stream):
    """Yield the lines of a text, or of a process's stdout, without blank ones and those that gloo of torch 2.8 writes there."""
    source = stream.splitlines(keepends=True) if isinstance(stream, str) else stream
    return (line for line in source if "[Gloo]" not in line and line.strip())


def gone(pid, seconds=60):
    """Wait until a process has ended, at most so long, and say whether it has; a zombie has."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False
