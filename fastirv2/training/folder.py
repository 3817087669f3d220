"""The run folder: entered by one run at a time, made with one set of settings, and taken up where it stands."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path
from typing import Any

import tomli_w

from fastirv2.errors import DataError, UsageError
from fastirv2.files import HeldError, hold, read_toml, write_file
from fastirv2.report.console import Console
from fastirv2.report.metrics import Metrics
from fastirv2.training.checkpoint import Checkpoints, read
from fastirv2.training.distributed import Process, same_on_all, together

# What may differ when a run goes on: it changes neither the batches nor the steps nor what is learned from them.
FREE = {
    "recipe", "about", "published", "reference", "band", "out", "data.train", "data.val", "statistics.images", "train.batch",
    "train.compile", "train.recompute", "train.cuda_graph", "train.device", "train.stop_after", "train.timeout",
    "input.threads", "input.prefetch", "input.read_ahead", "data.on_bad", "model.merge",
}  # fmt: skip
FREE_SECTIONS = {"checkpoint", "log", "device"}
_JOB = ".job"  # which job began RUN


def enter(folder: Path, table: dict[str, Any], defaults: dict[str, Any], *, fresh: bool) -> int:
    """Make RUN, or take up the one there; return the descriptor of its lock. `fresh` moves an old one aside first.

    Raises:
        UsageError: RUN is something else, or was made with other settings.
        DataError: RUN cannot be written, or another process trains in it.
    """
    try:
        if fresh and folder.exists():
            os.close(_hold(folder))  # not under a process that trains in it
            aside = (folder.with_name(f"{folder.name}.{number}") for number in range(1, 10**6))
            folder.rename(next(path for path in aside if not path.exists()))
        check_run(folder, table, defaults)
        begins = not (folder / "config.toml").exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = _hold(folder)
        write_file(folder / "config.toml", lambda file: file.write(tomli_w.dumps(table).encode()))
        if begins:
            (folder / _JOB).write_text(_job())
    except HeldError as error:
        raise DataError(f"process {error} trains in {folder} already; wait for it, end it, or give another --out") from error
    except OSError as error:
        raise DataError(f"the run folder {folder} cannot be written: {error.strerror}; choose another --out") from error
    return lock


def begun_by_this_job(folder: Path) -> bool:
    """Return whether torchrun or Slurm starts a command again as it was first given, and RUN is what it began then."""
    again = any(os.environ.get(name, "0") != "0" for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    with contextlib.suppress(OSError):
        return again and (folder / _JOB).read_text() == _job()
    return False


def _job() -> str:
    """Return what stays the same when this job is started again."""
    given = [os.environ.get(name, "") for name in ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID")]
    return next((each for each in given if each not in ("", "none")), f"{socket.gethostname()} {os.getppid()}")


def _hold(folder: Path) -> int:
    """Lock RUN; where the file system knows no locks, go on without."""
    try:
        return hold(folder / ".lock")
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        return os.open(folder, os.O_RDONLY)


def check_run(folder: Path, table: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Refuse a folder that is no run, or a run that was made with other settings; raises UsageError.

    What an older run's config.toml does not say yet was done as the `defaults` have it.
    """
    file = folder / "config.toml"
    if file.exists():
        changed = "; ".join(differences(read_toml(file), table, defaults))
        if changed:
            raise UsageError(f"{folder} was made with other settings ({changed}); give those, another --out, or --fresh")
    elif folder.exists() and (not folder.is_dir() or set(os.listdir(folder)) - {".lock", "config.toml.new"}):
        raise UsageError(f"{folder} is not empty and no run; give another --out, or --fresh to move it aside")


def differences(before: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """List what differs between two resolved configurations and must not when a run goes on: "name: before → now"."""
    old, new = _flat(defaults) | _flat(before), _flat(now)
    names = [n for n in {**old, **new} if n not in FREE and n.split(".")[0] not in FREE_SECTIONS]
    return [f"{n}: {old.get(n, 'unset')} → {new.get(n, 'unset')}" for n in names if old.get(n) != new.get(n)]


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


def take_up(folder: Path, process: Process, console: Console) -> dict[str, Any] | None:
    """Read the checkpoint to go on from, the one that rank 0 finds whole, on every rank; None when there is none.

    What was logged after it is dropped: it will be done again. Lines that a full disk kept out of the log come from it.

    Raises:
        DataError: there are checkpoints and none can be read, or a rank cannot read rank 0's.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    state = together(lambda: checkpoints.load_latest(console.warn) if process.first else None)
    step = same_on_all(state["step"] if state else 0)

    def follow() -> dict[str, Any] | None:
        if process.first:
            checkpoints.sweep()
            known = state or {}
            Metrics(folder).cut(step, pending=bool(known.get("pending")), waiting=known.get("unlogged", ()))
            return state
        return read(checkpoints.path(step)) if step else None

    return together(follow)
