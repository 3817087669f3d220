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
import numpy as np

from fastirv2.building.summary import size_text
from fastirv2.building.writer import COMMIT_BYTES, file_size, read_journal
from fastirv2.errors import DataError
from fastirv2.files import HeldError, hold, sync_folder, write_file

_OPTIONS = {"resize": "--resize", "quality": "--quality", "seed": "--seed", "limit": "--limit", "part": "--part"}
_FINISHED = {"data.mdb", "lock.mdb", "index.npy", "names.jsonl", "dataset.json", "rejected.jsonl"}
_UNFINISHED = {"build.json", "journal", "probe"}
_OURS = {name + end for name in _FINISHED | _UNFINISHED for end in ("", ".new")}
_NOTHING_YET = {"build.json.new", "probe"}  # what a build that was killed at its very start leaves


def partial_folder(out: Path) -> Path:
    """Return where OUT is built."""
    return out.with_name(out.name + ".partial")


def replaced_folder(out: Path) -> Path:
    """Return where an older OUT is while a new one takes its place."""
    return out.with_name(out.name + ".replaced")


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
    """Raise DataError when OUT cannot be made: it is there and may not be replaced, or its name will not do."""
    check_name(out)
    if out.name.endswith(".partial"):
        raise DataError(f"{out} would be taken for an unfinished build; choose an OUT that does not end in .partial")
    _leave_alone(replaced_folder(out), _FINISHED)
    if not os.path.lexists(out):
        return
    if out.is_symlink():  # its target was resolved: this one has none
        raise DataError(f"{out} is a link that leads to itself; choose another OUT")
    if not overwrite:
        raise DataError(f"{out} exists already; give --overwrite to replace it, or another OUT")
    if not out.is_dir() or not _names(out) <= _FINISHED:
        raise DataError(f"{out} is no LMDB folder of ours, so --overwrite leaves it alone; choose another OUT")


def check_name(out: Path) -> None:
    """Raise DataError for a path that LMDB cannot take."""
    try:
        os.fspath(out).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{str(out)!a} is no text in UTF-8, which LMDB wants a path to be; choose another one") from error


def check_apart(source: str, out: Path) -> None:
    """Raise DataError where SOURCE lies in a folder that a build of OUT uses, or in front of OUT."""
    there = Path(os.path.realpath(source))
    if any(there.is_relative_to(folder) for folder in (out, partial_folder(out), replaced_folder(out))):
        raise DataError(f"{source} lies where OUT is built or will be; choose another OUT")
    if there.is_dir() and out.is_relative_to(there):
        raise DataError(f"{out} lies inside of SOURCE, which would become a class; choose an OUT elsewhere")


def _names(folder: Path) -> set[str]:
    """Return the names in a folder, none where there is no folder."""
    try:
        return {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; make it readable, or choose another OUT") from error


def _leave_alone(folder: Path, ours: set[str]) -> None:
    """Raise DataError where a folder that a build would remove holds what none has made."""
    others = sorted(_names(folder) - ours)
    if others:
        raise DataError(f"{folder} holds {others[0]}, which no build has made; move it away, or choose another OUT")


def open_partial(out: Path, settings: dict[str, Any], *, overwrite: bool) -> Path:
    """Return OUT.partial, made for a build with these settings or found as one left it.

    Raises DataError naming the difference when it was begun with others; with `overwrite` that one is thrown away.
    """
    folder = partial_folder(out)
    begun = _begun_settings(folder)
    _leave_alone(folder, _OURS)
    if begun is None:
        difference, remedy = "holds no build that can go on", "give --overwrite to begin anew"
    else:
        difference, remedy = _difference(begun, settings), "give the same command to go on, or --overwrite to begin anew"
    if difference and _names(folder) - _NOTHING_YET:
        if not overwrite:
            raise DataError(f"{folder} {difference}; {remedy}")
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
        limit = what_is_full(folder)
        if limit is None:
            raise DataError(f"{folder}: {error}; when that is mended, the same command goes on") from error
        rows = read_journal(folder)
        needed = f"about {size_text(size_in_lmdb(rows['length']) * count)}" if len(rows) else "more"
        held = size_text(file_size(folder / "data.mdb"))
        free = size_text(shutil.disk_usage(folder).free)
        where, has, remedy = {
            errno.EDQUOT: ("in your quota there", "", "make room"),
            errno.EFBIG: ("in a file as large as ulimit -f allows", "", "raise that limit"),
        }.get(limit, ("on its disk", f" and {free} are free", "make room"))
        raise DataError(
            f"{folder} does not fit {where}: the LMDB needs {needed}, it has {held} now{has}; {remedy} and give the same "
            "command to go on"
        ) from error


def size_in_lmdb(lengths: np.ndarray) -> float:
    """Return the bytes that a record takes in LMDB's file, on average, for images of these `lengths` in bytes.

    A large one takes whole pages of 4 KiB, and of small ones as many lie in a page as fit it.
    """
    node = lengths.astype(np.int64) + 32  # with its key and heads
    pages = np.where(node <= 2040, 1 / (4080 // np.minimum(node, 2040)), np.ceil((node + 8) / 4096))
    return float(1.02 * 4096 * pages.mean())


def what_is_full(folder: Path) -> int | None:
    """Return why data.mdb could not take another commit (ENOSPC, EDQUOT or EFBIG), or None if it could.

    LMDB calls a disk that is full an "Input/output error" at times.
    """
    data, probe = folder / "data.mdb", folder / "probe"
    try:
        with probe.open("wb") as file:
            os.posix_fallocate(file.fileno(), file_size(data), COMMIT_BYTES)
    except OSError as error:
        return error.errno if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return None


def make_parent(out: Path) -> None:
    """Make the folder that OUT will be in."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out.parent} cannot be made for OUT: {error.strerror}; choose another OUT") from error
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise DataError(f"{out.parent} cannot be written to; choose another OUT")


def publish(out: Path, *, overwrite: bool) -> None:
    """Rename the finished OUT.partial to OUT, in place of an older OUT, if that may be replaced; else raises DataError."""
    folder, old = partial_folder(out), replaced_folder(out)
    check_out(out, overwrite=overwrite)  # it may have come while the build went on
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
            before, now = begun.get(name), settings[name]
            if before is None:
                return f"was begun without {option}, not with {now}"
            return f"was begun with {option} {before}, not {'without' if now is None else now}"
    if begun.get("images") != settings["images"]:
        return f"was begun from {begun.get('images')} images, not {settings['images']:,}"
    if begun.get("source") != settings["source"]:
        return "was begun from other images, labels or class names"
    return ""
