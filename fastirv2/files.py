"""Files that survive a kill and a power cut, and folders that only one process at a time may work in."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastirv2.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class HeldError(Exception):
    """Another process holds the lock; its text is that process's number (and host, if another), or "unknown"."""


def write_file(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file whole or not at all: aside, fsynced, and renamed; what cannot be written whole leaves nothing aside."""
    aside = path.with_name(path.name + ".new")
    try:
        with aside.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


class Log:
    """A file that grows by whole pieces; what a full disk refuses waits for the next call; each comes once, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.waiting: list[bytes] = []
        self._whole: int | None = None  # bytes before a piece that was refused, of which a part may be there

    def add(self, piece: bytes) -> None:
        """Write what waits and `piece`; what raises an OSError waits on."""
        self.waiting.append(piece)
        self.write()

    def write(self) -> None:
        """Write what waits; raises OSError if the disk still refuses."""
        if not self.waiting:
            return
        with self.path.open("ab") as file:
            size = file.seek(0, os.SEEK_END)
            self._whole = size if self._whole is None else min(size, self._whole)
            file.truncate(self._whole)
            file.write(b"".join(self.waiting))
        self.waiting, self._whole = [], None


def read_npy(path: Path) -> np.ndarray:
    """Read an array from a .npy file; code in it is not run.

    Raises:
        OSError: it cannot be read.
        ValueError: it is cut off or damaged, which numpy says in other ways too, as it takes the head for Python.
    """
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (EOFError, SyntaxError, tokenize.TokenError) as error:
        raise ValueError(str(error)) from error


@contextlib.contextmanager
def alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Let one process at a time work in a folder; where it cannot be locked, as on some network disks, all of them."""
    try:
        lock = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def cache_folder() -> Path:
    """Return the folder for what can be made again, made where that is possible."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastirv2"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def sync_folder(path: Path) -> None:
    """Bring a folder's names to the disk, where its file system can be asked to."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def hold(path: Path) -> int:
    """Lock a file for this process, writing its number and host into it, and return the descriptor; closing it lets go.

    Raises:
        HeldError: another process holds it.
        OSError: the file cannot be made or locked, is a link, or holds something else.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(file, 300).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise HeldError(holder.removesuffix(f" on {socket.gethostname()}")) from error
        except OSError:
            os.close(file)
            raise
        if not re.fullmatch(rb"(\d+( on [^\n]*)?\n?)?", os.pread(file, 300, 0)):
            os.close(file)
            raise OSError(errno.EEXIST, "it holds something else", str(path))
        if path.exists() and os.fstat(file).st_ino == path.stat().st_ino:  # its last holder may have removed it meanwhile
            os.ftruncate(file, 0)
            os.write(file, f"{os.getpid()} on {socket.gethostname()}\n".encode())
            return file
        os.close(file)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file, raising UsageError when it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as TOML: {error}") from error
