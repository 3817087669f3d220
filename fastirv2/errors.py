"""The errors that a user can mend: one sentence each, and the exit code that it ends the process with."""

from __future__ import annotations

import contextlib
import difflib
import gc
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from typing import TextIO

_CHOICES = 60  # that a sentence lists
_SHORT_OF_MEMORY = (
    "out of memory", "ALLOC_FAILED", "unable to find an engine to execute this computation",  # torch, cuBLAS, cuDNN
    "ALLOCATION_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED", "CUDNN_STATUS_NOT_INITIALIZED",  # cuDNN 9; handles
    "CUDA allocation failed", "bytes on device",  # DALI
)  # fmt: skip


class UserError(Exception):
    """Something that the user can put right; the text says what is wrong, where, and what to do.

    `shared` marks an error that every process of a run raises together, so that only the first one says it.
    """

    exit_code = 2
    shared = False


class UsageError(UserError):
    """A wrong option, recipe or combination of them; found before any data is touched, by every process alike."""

    exit_code = 2
    shared = True


class DataError(UserError):
    """Bad or missing data: a path, labels, classes, a full disk, a folder that cannot be written."""

    exit_code = 65


class DivergedError(UserError):
    """The loss is no longer a finite number, which all processes of a run find together."""

    exit_code = 70
    shared = True


class StoppedError(BaseException):
    """A signal ended the run; its state is saved. All processes of a run stop at the same step.

    It is no `Exception`, as KeyboardInterrupt is none: it may come in the midst of anything, and what takes any exception of a
    library for damage in a file must let it pass.
    """

    exit_code = 75
    shared = True


SENTENCES = (UserError, StoppedError)  # what ends a command with a sentence and an exit code of its own


def is_out_of_memory(error: RuntimeError) -> bool:
    """Say whether a GPU's memory did not suffice: cuBLAS, DALI and cuDNN, which finds no algorithm, have their own words."""
    return type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _SHORT_OF_MEMORY)


def out_of_memory(error: RuntimeError, option: str) -> UsageError:
    """Return what to say where a GPU's memory did not suffice, and which option to give a smaller value."""
    reason = str(error).partition("\n")[0]
    said = UsageError(f"the GPU's memory does not suffice; give a smaller {option} ({reason})")
    said.shared = False  # only the ranks that ran short know
    return said


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the choice nearest to `name`, or the choices, the first of many, when none is near.

    Near is what differs little, whole or in what follows its last dot: --epochs is --train.epochs.
    """
    known = sorted(choices)
    called = {part: choice for choice in known for part in (choice.rpartition(".")[2], choice.lstrip("-"))}
    close = difflib.get_close_matches(name.lstrip("-"), called, n=1)
    if close:
        return f"; did you mean '{called[close[0]]}'?"
    more = f" and {len(known) - _CHOICES:,} more" if len(known) > _CHOICES else ""
    return f"; known are: {', '.join(known[:_CHOICES])}{more}"


def short_options(text: str) -> str:
    """Return a sentence with the names that options have outside of training: --resize for --input.resize."""
    return re.sub(r"--(?:train|input|data)\.(?=[a-z])", "--", text)


def run_command(main: Callable[[], int | None], program: str, *, short: bool = False) -> None:
    """Run a command's `main` and end the process with its exit code; an error of `SENTENCES` becomes one on stderr.

    `short` says that its options have no sections.
    """
    gc.freeze()  # or Python looks for cycles among all that was imported, again and again, most of it at the end
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as the package has it while it is imported
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _open_streams()
    try:
        code = main() or 0
    except SENTENCES as error:
        if not error.shared or os.environ.get("RANK", "0") == "0":
            say(f"{program}: {short_options(str(error)) if short else error}")
        code = error.exit_code
    except KeyboardInterrupt:
        say(f"{program}: stopped by Ctrl-C, nothing was saved")
        code = 128 + signal.SIGINT
    except BrokenPipeError:  # whoever read our output has seen enough
        _close(sys.stdout)
        code = 128 + signal.SIGPIPE
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends already
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:  # into a file on a full disk, say: Python would try again, and exit with 120
            _close(stream)
            if isinstance(error, BrokenPipeError) and stream is sys.stdout:
                code = code or 128 + signal.SIGPIPE
    gc.collect()  # what is still open in a cycle, as an input pipeline may be, ends before the libraries that it needs do
    if "triton" in sys.modules:  # it complains on stderr, in 31 lines, of its own objects that nobody collects (3.9)
        gc.unfreeze()
    else:
        gc.freeze()
    signal.signal(signal.SIGINT, handler or signal.SIG_DFL)  # None: it was not Python's
    sys.exit(code)


def _open_streams() -> None:
    """Have both streams take whatever is printed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process runs
        if isinstance(stream := getattr(sys, name), io.TextIOWrapper):  # as it is not in a notebook
            stream.reconfigure(errors="backslashreplace")  # names need not be text, nor locales know ours


def tell(text: str) -> None:
    """Print to stdout what a command has done; a file on a full disk misses it, but what is done is done.

    Raises:
        BrokenPipeError: nobody reads it.
    """
    try:
        print(text)
    except BrokenPipeError:
        raise
    except OSError:
        _close(sys.stdout)


def put(text: str) -> None:
    """Print to stdout, at once, what a command is for.

    Raises:
        BrokenPipeError: nobody reads it.
        DataError: it goes into a file, and the disk is full.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _close(sys.stdout)
        raise DataError(f"what was found cannot be written: {error.strerror}; send stdout to another place") from error


def _close(stream: TextIO) -> None:
    """Have what is still to be written to a stream go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str) -> None:
    """Print a line to stderr, whether or not anybody can read it."""
    with contextlib.suppress(OSError):  # into a file on a full disk: the exit code matters more
        print(text, file=sys.stderr, flush=True)
