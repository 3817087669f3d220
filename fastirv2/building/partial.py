"""The folder that a build works in: one builder at a time, the same settings when it goes on, its disk, its publication."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb

from fastirv2.building.summary import size_text
from fastirv2.building.writer import COMMIT_BYTES, file_size, read_journal
from fastirv2.errors import DataError
from fastirv2.files import HeldError, hold, sync_folder, write_file

_OPTIONS = {"resize": "--resize", "quality": "--quality", "seed": "--seed", "limit": "--limit", "part": "--part"}
_FINISHED = {"data.mdb", "lock.mdb", "index.npy", "names.jsonl", "dataset.json", "rejected.jsonl"}


def partial_folder(out: Path) -> Path:
    """Return where OUT is built."""
    return out.with_name(out.name + ".partial")


@contextlib.contextmanager
def only_builder(out: Path) -> Iterator[None]:
    """Hold the lock beside OUT; raises DataError naming the process that holds it."""
    path = out.with_name(out.name + ".lock")
    file = _lock(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _lock(path: Path) -> int:
    """Return a descriptor of the locked file."""
    try:
        return hold(path)
    except HeldError as error:
        raise DataError(f"process {error} is building {path.with_suffix('')} already; wait for it or end it") from error
    except OSError as error:
        raise DataError(f"{path} cannot be made and locked: {error.strerror}; choose another OUT") from error


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise DataError when OUT is there and may not be replaced."""
    try:
        there = out.exists()
    except OSError as error:
        raise DataError(f"{out} cannot be looked at: {error.strerror}; choose another OUT") from error
    if not there:
        return
    if not overwrite:
        raise DataError(f"{out} exists already; give --overwrite to replace it, or another OUT")
    if not out.is_dir() or not {name.name for name in out.iterdir()} <= _FINISHED:
        raise DataError(f"{out} is no LMDB folder of ours, so --overwrite leaves it alone; choose another OUT")


def open_partial(out: Path, settings: dict[str, Any], *, overwrite: bool) -> Path:
    """Return OUT.partial, made for a build with these settings or found as one left it.

    Raises DataError naming the difference when it was begun with others; with `overwrite` that one is thrown away.
    """
    folder = partial_folder(out)
    begun = _begun_settings(folder)
    difference = "holds no build that can go on" if begun is None else _difference(begun, settings)
    if folder.exists() and difference and any(folder.iterdir()):
        if not overwrite:
            raise DataError(f"{folder} {difference}; give the same command to go on, or --overwrite to begin anew")
        (folder / "build.json").unlink(missing_ok=True)  # first: half of it without its journal would not go on
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "dataset.json").exists():
        write_file(folder / "build.json", lambda stream: stream.write(json.dumps(settings, indent=1).encode() + b"\n"))
    return folder


@contextlib.contextmanager
def disk_errors(folder: Path, count: int) -> Iterator[None]:
    """Turn an error of the disk into a DataError that says what a build of `count` images needs when it is full."""
    try:
        yield
    except (OSError, lmdb.Error) as error:
        if has_room(folder):
            raise DataError(f"{folder}: {error}; when that is mended, the same command goes on") from error
        rows = read_journal(folder)
        needed = f"about {size_text(1.02 * rows['length'].mean() * count)}" if len(rows) else "more"
        held = size_text(file_size(folder / "data.mdb"))
        raise DataError(
            f"{folder} does not fit on its disk: the LMDB needs {needed}, it has {held} now and "
            f"{size_text(shutil.disk_usage(folder).free)} are free; make room and give the same command to go on"
        ) from error


def has_room(folder: Path) -> bool:
    """Return whether data.mdb could take another commit: LMDB calls a disk that is full an "Input/output error" at times."""
    data, probe = folder / "data.mdb", folder / "probe"
    try:
        with probe.open("wb") as file:
            os.posix_fallocate(file.fileno(), file_size(data), COMMIT_BYTES)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return True


def make_parent(out: Path) -> None:
    """Make the folder that OUT will be in."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out.parent} cannot be made for OUT: {error.strerror}; choose another OUT") from error
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise DataError(f"{out.parent} cannot be written to; choose another OUT")


def publish(out: Path) -> None:
    """Rename the finished OUT.partial to OUT, in place of an older OUT."""
    folder, old = partial_folder(out), out.with_name(out.name + ".replaced")
    for path in folder.iterdir():
        if path.name not in _FINISHED:
            path.unlink()
    sync_folder(folder)
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    folder.rename(out)
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _begun_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings that a partial build was begun with, None when there are none to be read."""
    for name in ("dataset.json", "build.json"):
        with contextlib.suppress(OSError, ValueError):
            content = json.loads((folder / name).read_bytes())
            return content["build"] if name == "dataset.json" else content
    return None


def _difference(begun: dict[str, Any], settings: dict[str, Any]) -> str:
    """Return how two builds differ, "" when they do not."""
    if begun.get("format_version") != settings["format_version"]:
        return "was begun by another version of the program"
    for name, option in _OPTIONS.items():
        if begun.get(name) != settings[name]:
            return f"was begun with {option} {begun.get(name)}, not {settings[name]}"
    if begun.get("images") != settings["images"]:
        return f"was begun from {begun.get('images')} images, not {settings['images']:,}"
    if begun.get("source") != settings["source"]:
        return "was begun from other images, labels or class names"
    return ""
