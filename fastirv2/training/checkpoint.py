"""Checkpoints: written so that a kill at any instant leaves a whole one, and read so that no code in a file ever runs."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastirv2.errors import DataError, UsageError

FORMAT = 1
_NAME = re.compile(r"step-(\d+)\.pt")


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
        if self.minutes < 0 or self.steps < 0 or self.keep < 1 or self.keep_every < 0:
            raise UsageError(
                f"checkpoint: keep must be at least 1 and the others not negative; got minutes {self.minutes}, "
                f"steps {self.steps}, keep {self.keep}, keep-every {self.keep_every}"
            )


class Checkpoints:
    """The folder RUN/checkpoints: `step-00001234.pt`, and the relative links `latest.pt` and `best.pt`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any], step: int, *, best: bool) -> Path:
        """Write the state of `step` aside, flush it to disk, rename it; then point `latest.pt`, and `best.pt` if asked, to it.

        Raises:
            DataError: the disk is full or the folder cannot be written; the checkpoints before it are untouched.
        """
        path = self.folder / f"step-{step:08d}.pt"
        aside = path.with_suffix(".partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                torch.save({"format": FORMAT, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            aside.rename(path)
            for name in ["latest.pt", *(["best.pt"] if best else [])]:
                self._link(name, path.name)
            _flush_folder(self.folder)
        except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise DataError(
                f"checkpoint {path} cannot be written: {_reason(error)}; make room and give the same command again, "
                "it goes on from the checkpoint before"
            ) from error
        return path

    def _link(self, name: str, target: str) -> None:
        aside = self.folder / f".{name}.partial"
        aside.unlink(missing_ok=True)
        aside.symlink_to(target)
        aside.rename(self.folder / name)

    def prune(self, keep: int, kept_for_good: Callable[[int], bool]) -> None:
        """Delete all but the last `keep`, the best, and those whose step is `kept_for_good`."""
        best = self.folder / "best.pt"
        spared = {best.resolve().name} if best.is_symlink() else set()
        for step, path in self._numbered()[:-keep]:
            if path.name not in spared and not kept_for_good(step):
                path.unlink(missing_ok=True)

    def _numbered(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        matches = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted((int(match[1]), path) for match, path in matches if match)

    def load_latest(self, warn: Callable[[str], None]) -> dict[str, Any] | None:
        """Read the last whole checkpoint, or None if there is none; a cut one is passed over with a warning.

        Raises:
            DataError: there are checkpoints and none can be read.
        """
        found = self._numbered()
        for _, path in reversed(found):
            try:
                return read(path)
            except DataError as error:
                warn(f"{error}; the one before it is used")
        if found:
            raise DataError(f"none of the {len(found)} checkpoints in {self.folder} can be read; --fresh begins a new run")
        return None


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours onto the CPU; only tensors and plain values are unpickled.

    Raises:
        DataError: the file is missing, cut short, or no checkpoint of this format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError for a damaged file
        raise DataError(f"checkpoint {path} cannot be read ({_reason(error)})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DataError(f"{path} is not a checkpoint of this program's format {FORMAT}")
    return state


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0].rstrip(". ")


def _flush_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
