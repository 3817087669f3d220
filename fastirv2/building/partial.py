"""The folder that a build works in: one builder at a time, the same settings when it goes on, and the rename at the end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastirv2.errors import DataError
from fastirv2.files import HeldError, hold, sync_folder, write_file

_OPTIONS = {"resize": "--resize", "quality": "--quality", "seed": "--seed", "limit": "--limit", "part": "--part"}
_FINISHED = {"data.mdb", "lock.mdb", "index.npy", "dataset.json", "rejected.jsonl"}


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
    if not out.exists():
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
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "dataset.json").exists():
        write_file(folder / "build.json", lambda stream: stream.write(json.dumps(settings, indent=1).encode() + b"\n"))
    return folder


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
    for name, option in _OPTIONS.items():
        if begun.get(name) != settings[name]:
            return f"was begun with {option} {begun.get(name)}, not {settings[name]}"
    if begun.get("images") != settings["images"]:
        return f"was begun from {begun.get('images'):,} images, not {settings['images']:,}"
    if begun.get("source") != settings["source"]:
        return "was begun from other images, labels or class names"
    return ""
