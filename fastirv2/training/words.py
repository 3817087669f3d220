"""What ranks leave for one another in the launcher's store, so that one that fails is heard when nothing else gets through."""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import torch.distributed as dist

SECONDS = 10  # in which the store answers, if it ever does


class Words:
    """Short texts by name, over a connection of their own: another thread may be waiting for ever in the process group's.

    Nothing here raises: where there is one rank only, or the store has gone, nobody hears and nobody answers.
    """

    def __init__(self) -> None:
        self._store: dist.Store | None = None
        self._open = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._lock = threading.Lock()

    def leave(self, name: str, text: str) -> bool:
        """Leave a text for the other ranks, and say whether it is there."""
        try:
            if store := self._connected():
                store.set(name, text)
                return True
        except RuntimeError:
            self._store = None
        return False

    def find(self, name: str) -> str | None:
        """Return what a rank has left under a name, or None."""
        try:
            store = self._connected()
            return store.get(name).decode() if store and store.check([name]) else None
        except RuntimeError:
            self._store = None
            return None

    def first(self, name: str) -> bool | None:
        """Say whether this rank is the first that asks for a name; None when nobody answers."""
        try:
            store = self._connected()
            return store.add(name, 1) == 1 if store else None
        except RuntimeError:
            self._store = None
            return None

    def close(self) -> None:
        """Ask no more: the store's host has ended."""
        self._open = False
        self._store = None

    def _connected(self) -> dist.Store | None:
        """Return torchrun's store, or rank 0's, with names of this attempt only."""
        with self._lock:
            if self._open and self._store is None:
                host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
                store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=SECONDS))
                attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
                self._store = dist.PrefixStore(f"fastirv2/{attempt}", store)
            return self._store
