"""Commands in processes that need not import torch anew, which takes longer than most of them do: one that has forks them.

Run as a module it is that process, the nursery. What it forks is a process like any other, with a pid, arguments, environment
and pipes of its own, which runs a module as `python -m` does. What torchrun and the tools start is not forked.
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from functools import cache
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

MODULES = re.compile(r"fastirv2\.train|tests\.(models|train)\.\w+")  # what is run so
IMPORTED = (
    "fastirv2.assembly", "matplotlib.backends.backend_agg", "tensorboard.compat.proto.event_pb2",
    "tensorboard.summary.writer.record_writer", "torch._dynamo",
)  # fmt: skip
AT_IMPORT = ("CUDA_", "GOMP_", "KMP_", "LD_", "MKL_", "MPL", "OMP_", "OPENBLAS_", "PYTHON", "PYTORCH_", "TORCH")  # is read then
_started = count()


def start(*arguments, env=None):
    """Start `python ARGUMENTS` with pipes for its text, forked from the nursery where that comes to the same."""
    arguments, env = [*map(str, arguments)], dict(os.environ if env is None else env)
    if arguments[0] == "-m" and MODULES.fullmatch(arguments[1]):
        nursery = _nursery(next(_started) % 2)
        if _at_import(env) == nursery.env:
            return Forked(arguments[1:], env, nursery.control)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], env=env, **pipes)


def _at_import(env):
    return {name: value for name, value in env.items() if name.startswith(AT_IMPORT)}


class Forked:
    """What tests use of subprocess.Popen, for a process that the nursery has forked."""

    def __init__(self, args, env, control):
        self.args, self.returncode = args, None
        (out, said), (err, complained), (self._end, ended) = (os.pipe() for _ in range(3))
        socket.send_fds(control, [json.dumps([args, env, os.getcwd()]).encode()], [said, complained, ended])
        for written in (said, complained, ended):
            os.close(written)
        self.pid = int(control.recv(32))
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = os.waitstatus_to_exitcode(int(os.read(self._end, 32)))
            os.close(self._end)
        return self.returncode

    def communicate(self, timeout=None):
        begun, streams, texts = time.monotonic(), (self.stdout, self.stderr), ["", ""]

        def read(which):
            texts[which] = streams[which].read()

        readers = [threading.Thread(target=read, args=(which,), daemon=True) for which in range(2)]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader, stream in zip(readers, streams, strict=True):
            reader.join(timeout and max(0, timeout - (time.monotonic() - begun)))
            if reader.is_alive():  # a child of it has not ended
                raise subprocess.TimeoutExpired(self.args, timeout)
            stream.close()
        return tuple(texts)

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)


class Nursery(NamedTuple):
    """The socket on which a process is asked to fork, without whose other end it ends, and what it was imported with."""

    control: socket.socket
    env: dict[str, str]


@cache
def _nursery(_):
    """Start a nursery; there are several because what they fork has one seed of Python's hashes, and ranks are to differ."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        line = [sys.executable, "-m", "tests.nursery", str(its.fileno())]
        subprocess.Popen(line, cwd=Path(__file__).parents[1], pass_fds=[its.fileno()])
    return Nursery(ours, _at_import(os.environ))


def serve(control):
    """Fork what is asked for until nobody is left to ask; return, in what is forked, the module to run and its arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # else collecting garbage would copy every page
    while True:
        message, pipes, *_ = socket.recv_fds(control, 1 << 20, 3)
        if not message:
            sys.exit()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if (pid := os.fork()) == 0:
                break
            _wait(pid, control, pipes)
        for pipe in pipes:
            os.close(pipe)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    control.close()
    for number, pipe in enumerate([os.open(os.devnull, os.O_RDONLY), *pipes[:2]]):
        os.dup2(pipe, number)
        os.close(pipe)
    os.close(pipes[2])
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "wb", closefd=False), stream.encoding, stream.errors, write_through=True)
        for number, stream in ((1, sys.stdout), (2, sys.stderr))
    )  # the old ones may take what is written to now for a file that one can go back in
    arguments, env, folder = json.loads(message)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    np.random.seed()  # as in each process of its own
    return arguments


def _wait(pid, control, pipes):
    """Say which process it is, and once it has ended, how."""
    control.send(str(pid).encode())
    control.close()
    for pipe in pipes[:2]:
        os.close(pipe)
    os.write(pipes[2], str(os.waitpid(pid, 0)[1]).encode())
    os._exit(0)


def run(arguments):
    """Run a module with its arguments, and end the process but for the interpreter's taking down of all that was imported."""
    sys.argv, code = arguments, 0
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run(serve(socket.socket(fileno=int(sys.argv[1]))))
