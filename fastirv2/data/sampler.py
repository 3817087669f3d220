"""The order of the records: one endless stream, a fresh permutation each epoch, a pure function of seed and step."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import numpy as np

from fastirv2.data import counter
from fastirv2.errors import UsageError

_ORDER_STREAM = 0x6F72646572  # "order": keeps the permutation's hashes apart from the augmentation's


@dataclass(frozen=True)
class DataConfig:
    """In which order records are read, and what becomes of those that cannot be decoded."""

    block: int = 1
    """Neighbouring records that stay together when an epoch is shuffled: more than 1 for disks that seek badly."""
    on_bad: Literal["stop", "skip"] = "stop"
    """A record that cannot be decoded ends the run, or is left out, for at most 0.1 % of them."""

    def __post_init__(self) -> None:
        if not 1 <= self.block <= 1 << 20:
            raise UsageError(f"--data.block {self.block} must lie between 1 and {1 << 20:,}")


class _Permutations:
    """Keeps the last few permutations asked for; the following epoch's is made in a thread before it is needed."""

    _KEPT = 8

    def __init__(self) -> None:
        self._made: dict[tuple[int, int, int, int], Future[np.ndarray]] = {}
        self._lock = Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="permutation")

    def get(self, seed: int, epoch: int, count: int, block: int) -> np.ndarray:
        with self._lock:
            wanted = self._request(seed, epoch, count, block)
            self._request(seed, epoch + 1, count, block)
            while len(self._made) > self._KEPT:
                self._made.pop(next(iter(self._made)))
        return wanted.result()

    def _request(self, seed: int, epoch: int, count: int, block: int) -> Future[np.ndarray]:
        key = (seed, epoch, count, block)
        if key not in self._made:
            self._made[key] = self._worker.submit(_permute, *key)
        return self._made[key]


def _permute(seed: int, epoch: int, count: int, block: int) -> np.ndarray:
    """Return an epoch's permutation of 0 … count−1, in which each `block` neighbours stay together."""
    blocks = counter.permutation(seed ^ _ORDER_STREAM, epoch, -(-count // block))
    if block == 1:
        return blocks
    records = (blocks[:, None] * block + np.arange(block)).ravel()
    return records[records < count]


_permutations = _Permutations()


def positions(step: int, global_batch: int, world: int, rank: int) -> np.ndarray:
    """Return this rank's places in the endless stream at `step` (from 0): int64 (global_batch // world,)."""
    share = global_batch // world
    start = step * global_batch + rank * share
    return np.arange(start, start + share, dtype=np.int64)


def batch(seed: int, step: int, count: int, global_batch: int, world: int, rank: int, *, block: int = 1) -> np.ndarray:
    """Return the record numbers of this rank's share of a global batch.

    Position p = step × global_batch + i of the stream belongs to epoch p // count, and every epoch is a permutation
    of all `count` records: each record comes exactly once an epoch over all ranks, whatever divides the batch.

    Args:
        seed: seed of the order.
        step: optimizer step, from 0.
        count: number of records.
        global_batch: images an optimizer step, over all ranks; `world` divides it.
        world: number of ranks.
        rank: this rank, 0 … world−1; it gets positions r·n … r·n+n−1 of the global batch, n = global_batch // world.
        block: this many neighbouring records stay together, for disks that seek badly.

    Returns:
        int64 array (global_batch // world,). A call costs O(batch) once the epoch's permutation is there.

    Raises:
        ValueError: the ranks do not divide the batch, or there are no records.
    """
    if count < 1 or world < 1 or global_batch % world or not 0 <= rank < world:
        raise ValueError(f"no batch of {global_batch} images from {count} records for rank {rank} of {world}")
    places = positions(step, global_batch, world, rank)
    epochs, inside = places // count, places % count
    if epochs[0] == epochs[-1]:
        return _permutations.get(seed, int(epochs[0]), count, block)[inside]
    records = np.empty_like(places)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        records[here] = _permutations.get(seed, epoch, count, block)[inside[here]]
    return records


def validation_batch(step: int, count: int, batch: int, world: int, rank: int) -> tuple[np.ndarray, int]:
    """Return the record numbers of a validation batch and how many of them count.

    The records are taken in order, `batch` a rank and step; past the end the last record is repeated as padding, so that
    every batch has the same shape, on a rank with nothing left too.

    Returns:
        int64 array (batch,) and the number of leading entries that are no padding, 0 … batch.
    """
    start = (step * world + rank) * batch
    places = np.arange(start, start + batch, dtype=np.int64)
    return np.minimum(places, count - 1), int(np.clip(count - start, 0, batch))


def steps_in_validation(count: int, batch: int, world: int) -> int:
    """Return the number of validation steps that every rank takes so that each record comes once."""
    return -(-count // (batch * world))
