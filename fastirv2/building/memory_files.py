"""Files that live in memory only, for C libraries that read and write paths and print what they have to say."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator


class MemoryFile:
    """A file in memory, with a `path` while it is open; gone with the process however that ends. A context manager."""

    def __init__(self, data: bytes = b"") -> None:
        first = os.memfd_create("image")
        self._descriptor = fcntl.fcntl(first, fcntl.F_DUPFD_CLOEXEC, 3)  # not 2, where stderr was closed: C prints there
        os.close(first)
        self.path = f"/proc/self/fd/{self._descriptor}"
        with open(self._descriptor, "wb", closefd=False) as stream:
            stream.write(data)

    def __enter__(self) -> MemoryFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self) -> bytes:
        """Return all that the file holds."""
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    @contextlib.contextmanager
    def as_stderr(self) -> Iterator[None]:
        """Take what C code of this process prints on stderr meanwhile, from all of its threads."""
        try:
            kept = os.dup(2)
        except OSError:  # closed: nothing can be printed on it
            yield
            return
        os.dup2(self._descriptor, 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def said_on_stderr() -> Iterator[MemoryFile]:
    """Give a file that takes what C code prints on stderr meanwhile, so that nothing of it reaches the terminal."""
    with MemoryFile() as said, said.as_stderr():
        yield said
