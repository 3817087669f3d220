"""Results from a worker: small parts through a pipe, large ones through memory that both processes share."""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

_RING_BYTES = 4 << 20


class Ring:
    """Shared memory that one process writes pieces into and another takes them from, in the same order.

    A piece for which there is no room, since the other side has not taken enough yet, is sent through the pipe instead:
    nobody waits.
    """

    def __init__(self) -> None:
        file = os.memfd_create("ring")  # and not in /dev/shm, of which a container has 64 MB
        try:
            os.ftruncate(file, mmap.PAGESIZE + _RING_BYTES)
        except OSError:  # files are limited to less: then all goes through the pipe
            os.ftruncate(file, mmap.PAGESIZE)
        self.__setstate__(file)

    def __getstate__(self) -> Any:
        """Pass the memory to a process that is being started."""
        return reduction.DupFd(self._file)

    def __setstate__(self, file: Any) -> None:
        """Map the memory: a page with the count of bytes taken so far, then the ring."""
        self._file: int = file if isinstance(file, int) else file.detach()
        whole = mmap.mmap(self._file, 0)
        self._taken = ctypes.c_uint64.from_buffer(whole)
        self._memory = memoryview(whole)[mmap.PAGESIZE :]
        self._size = len(self._memory)
        self._end = self._copied = 0

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def put(self, pieces: list[memoryview]) -> list[int] | None:
        """Write the pieces one after the other and return where each begins; None, and nothing written, without room."""
        size = sum(piece.nbytes for piece in pieces)
        if size > self._size or not size:
            return None
        start = self._end if self._end % self._size + size <= self._size else -(-self._end // self._size) * self._size
        if start + size - self._taken.value > self._size:
            return None
        begins = []
        for piece in pieces:
            at = start % self._size
            self._memory[at : at + piece.nbytes] = piece
            begins.append(start)
            start += piece.nbytes
        self._end = start
        return begins

    def take(self, begins: list[int], sizes: list[int]) -> list[bytes]:
        """Return copies of pieces; their room is left to others when the next ones are taken.

        Not at once: not every processor shows a count only after the copies that were made before it.
        """
        self._taken.value = self._copied
        pieces = [bytes(self._memory[at % self._size :][:size]) for at, size in zip(begins, sizes, strict=True)]
        if begins:
            self._copied = begins[-1] + sizes[-1]
        return pieces


def send(connection: Connection, ring: Ring, results: Any) -> None:
    """Send results; what they hold as `pickle.PickleBuffer` goes through the ring where it has room."""
    buffers: list[pickle.PickleBuffer] = []
    small = pickle.dumps(results, protocol=5, buffer_callback=buffers.append)
    pieces = [buffer.raw() for buffer in buffers]
    begins = ring.put(pieces)
    if begins is None:
        connection.send_bytes(pickle.dumps(([], [], pickle.dumps(results, protocol=5))))
    else:
        connection.send_bytes(pickle.dumps((begins, [piece.nbytes for piece in pieces], small)))


def receive(connection: Connection, ring: Ring) -> Any:
    """Return results as `send` was given them, with bytes for each `pickle.PickleBuffer`; raises EOFError at the end."""
    begins, sizes, small = pickle.loads(connection.recv_bytes())
    return pickle.loads(small, buffers=ring.take(begins, sizes))
