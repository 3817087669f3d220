"""Checkpoints: written so that a kill at any instant leaves a whole one, and read so that no code in a file ever runs."""

from __future__ import annotations

import contextlib
import errno
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastirv2.errors import DataError, UsageError
from fastirv2.files import sync_folder, write_file
from fastirv2.models.weight_files import damaged_member

FORMAT = 1
_NAME = re.compile(r"step-(\d+)\.pt")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}  # what file systems say that know none


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and which are kept besides the best and the latest."""

    minutes: float = 30.0
    """Minutes between checkpoints within an epoch; 0: none by time. One is always written at an epoch's end."""
    steps: int = 0
    """Steps between checkpoints; 0: none by steps."""
    keep: int = 2
    """How many of the last checkpoints are kept."""
    keep_every: int = 0
    """Keep the checkpoint of every so manyth epoch for good; 0: none."""

    def __post_init__(self) -> None:
        if not 0 <= self.minutes < math.inf or self.steps < 0 or self.keep < 1 or self.keep_every < 0:
            raise UsageError(
                f"checkpoint: keep must be at least 1 and the others not negative; got minutes {self.minutes}, "
                f"steps {self.steps}, keep {self.keep}, keep-every {self.keep_every}"
            )


class DamagedError(DataError):
    """A checkpoint that is cut short or is none."""


class RefusedError(DataError):
    """A checkpoint that the disk does not take; `remedy` is what a user can do."""

    def __init__(self, sentence: str, remedy: str) -> None:
        super().__init__(sentence)
        self.remedy = remedy


class Checkpoints:
    """The folder RUN/checkpoints: `step-00001234.pt`, and the relative links `latest.pt` and `best.pt`.

    Where the file system knows no links there are none: the numbers say which is the latest, and that says which is the best.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Return where the checkpoint of `step` is."""
        return self.folder / f"step-{step:08d}.pt"

    def save(self, state: dict[str, Any], step: int, best_step: int) -> None:
        """Write the state of `step` aside, flush it to disk, rename it; then point `latest.pt` and `best.pt` where they belong.

        Raises:
            RefusedError: the disk is full or the folder cannot be written; the checkpoints before it are untouched.
        """
        state = {"format": FORMAT, **state}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_file(self.path(step), lambda file: torch.save(state, file))
            self.link(step, best_step)
        except (OSError, RuntimeError) as error:  # torch's zip writer makes a RuntimeError of what its file raises
            refused = _of_the_system(error)
            if refused is None:
                raise
            sentence = f"checkpoint {self.path(step)} cannot be written: {_reason(refused)}"
            remedy = "make room" if refused.errno in _FULL else "mend that"
            raise RefusedError(f"{sentence} (it takes {_megabytes(_size(state))}{_free(self.folder)})", remedy) from error

    def link(self, latest_step: int, best_step: int) -> None:
        """Point `latest.pt` and `best.pt` to the checkpoints of these steps; a link whose file is not there goes."""
        for name, path in (("latest.pt", self.path(latest_step)), ("best.pt", self.path(best_step))):
            if not path.exists():
                (self.folder / name).unlink(missing_ok=True)
                continue
            aside = self.folder / f".{name}.new"
            aside.unlink(missing_ok=True)
            try:
                aside.symlink_to(path.name)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                (self.folder / name).unlink(missing_ok=True)  # a copy of a link, which would not follow
                continue
            aside.rename(self.folder / name)
        sync_folder(self.folder)

    def prune(self, keep: int, best_step: int, kept_for_good: Callable[[int], bool]) -> None:
        """Delete all but the last `keep`, the best, and those whose step is `kept_for_good`."""
        for step in self.steps()[:-keep]:
            if step != best_step and not kept_for_good(step):
                with contextlib.suppress(OSError):  # what cannot be deleted now is tried again after the next
                    self.path(step).unlink()

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints there, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(match[1]) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name)))

    def load_latest(self, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """Read the last whole checkpoint, or None if there is none; damaged ones after it are set aside with a warning.

        Raises:
            DataError: all checkpoints are damaged (they then stay) or gone, or one cannot be read for another reason.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                state = read(self.path(step))
            except DamagedError as error:
                damaged[step] = str(error)
                continue
            for later, reason in damaged.items():
                aside = self.path(later).with_suffix(".broken")
                warn(f"{reason}; it is set aside as {aside.name}, and the one before it is used")
                self.path(later).rename(aside)
            return state
        if damaged:
            raise DataError(f"none of the {len(damaged)} checkpoints in {self.folder} is whole; --fresh begins a new run")
        if (self.folder / "latest.pt").is_symlink():
            gone = (self.folder / "latest.pt").readlink()
            raise DataError(f"{gone}, the last in {self.folder}, is gone; bring it back, or --fresh begins a new run")
        return None

    def sweep(self) -> None:
        """Delete what killed processes left half written."""
        if self.folder.is_dir():
            for path in [*self.folder.glob("*.new"), *self.folder.glob(".*.new")]:
                path.unlink(missing_ok=True)


def _of_the_system(error: BaseException) -> OSError | None:
    """Return the system's error that this one is or comes from."""
    if isinstance(error, OSError):
        return error
    return _of_the_system(error.__context__) if error.__context__ else None


def _size(value: Any) -> int:
    """Return the bytes of all tensors in nested values."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return sum(map(_size, value))
    return value.nbytes if isinstance(value, torch.Tensor) else 0


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _free(folder: Path) -> str:
    try:
        return f", {_megabytes(shutil.disk_usage(folder).free)} are free"
    except OSError:
        return ""


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours onto the CPU; only tensors and plain values are unpickled.

    Raises:
        DamagedError: the file is cut short or changed, or holds something else than tensors and plain values.
        DataError: the file is missing, cannot be read at present, or is no checkpoint of this format.
    """
    if member := damaged_member(path):  # torch takes what it reads
        raise DamagedError(f"checkpoint {path} is damaged: {member} in it is not what was written")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to EINVAL, for a seek before the beginning, if it is cut
        sentence = f"checkpoint {path} cannot be read ({_reason(error)})"
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno != errno.EINVAL):
            raise DataError(f"{sentence}; mend that and give the same command again") from error
        raise DamagedError(sentence) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DataError(f"{path} is not a checkpoint of this program's format {FORMAT}")
    return state


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0].rstrip(". ")

