"""Images of files for a network: read by threads ahead of it, those that cannot be read passed over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from fastirv2.data.pictures import UnreadableError, central_square, read_picture
from fastirv2.data.samples import InputConfig

_AHEAD = 2  # batches


class Shown(NamedTuple):
    """Files, and what a network sees of them: uint8 (B, 3, crop, crop), channels last."""

    files: list[str]
    images: torch.Tensor


def stream(
    files: Iterable[str], config: InputConfig, *, batch: int, threads: int, refuse: Callable[[str, str], None]
) -> Iterator[Shown]:
    """Yield all images that can be read, in order, `batch` at a time; `refuse` is told of each other, and why."""
    ready: list[tuple[str, np.ndarray]] = []
    with ThreadPoolExecutor(threads) as pool:
        for file, square in _in_order(files, config, pool, _AHEAD * batch):
            try:
                ready.append((file, square.result()))
            except UnreadableError as error:
                refuse(file, str(error))
            if len(ready) == batch:
                yield _together(ready)
                ready = []
    if ready:
        yield _together(ready)


def _in_order(
    files: Iterable[str], config: InputConfig, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[str, Future[np.ndarray]]]:
    """Yield each file with its image to come, when it is its turn, so many ahead being worked on."""
    left = iter(files)
    waiting: deque[tuple[str, Future[np.ndarray]]] = deque()
    while True:
        waiting.extend((file, pool.submit(_square, file, config)) for file in islice(left, ahead - len(waiting)))
        if not waiting:
            return
        yield waiting.popleft()


def _square(file: str, config: InputConfig) -> np.ndarray:
    return central_square(read_picture(file), config)


def _together(ready: list[tuple[str, np.ndarray]]) -> Shown:
    files, squares = zip(*ready, strict=True)
    return Shown(list(files), torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2))
