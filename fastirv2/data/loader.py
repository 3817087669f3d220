"""Batches as torch tensors: records are fed to the DALI graph, and what it puts out is handed over without a copy."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from fastirv2.data.dataset import Records
from fastirv2.data.faults import Faults, OnBad
from fastirv2.data.samples import Fed, InputConfig, Order
from fastirv2.errors import DataError, is_out_of_memory
from fastirv2.pipelines.images import handles, image_pipeline

_ON_A_GPU = 32  # threads at most: each takes 16 MiB of the GPU's memory, and as much of the host's


class Batch(NamedTuple):
    """A batch on the device, and how many of its B records are no padding: the first ones.

    Images (B, 3, H, W) in RGB, channels last, 0 … 255, are uint8, or float16 where their colours were jittered; labels are
    int64 (B,). From an order with several views of an image they are (B × views, 3, H, W), those of one image in a row.
    """

    images: torch.Tensor
    labels: torch.Tensor
    valid: int


class Loader:
    """An endless iterator of batches on a device, made ahead of time.

    `wait_seconds()` is the time since its last call in which the device (on a CPU: the caller) had to wait for a batch.
    A record that cannot be decoded leaves its batch, which is padded in its stead; `faults` knows of it, and has the error
    that is to end the run unless `on_bad` is "skip".
    """

    def __init__(
        self,
        records: Records,
        order: Order,
        config: InputConfig,
        *,
        batch: int,
        device: torch.device,
        cpus: int,
        on_bad: OnBad = "stop",
    ) -> None:
        self.threads = threads_of(config, cpus, device)
        self.faults = Faults(records, on_bad)
        self._records, self._order, self._device = records, order, device
        self._planned: deque[Fed] = deque()
        self._ahead = config.read_ahead
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._fed: deque[tuple[Fed, list[Any]]] = deque()
        self._again: deque[Fed] = deque()
        self._gone: deque[tuple[Fed, list[Any]]] = deque(maxlen=2)
        self._used: deque[tuple[Batch, torch.cuda.Event]] = deque()
        self._clock = _GpuClock() if device.type == "cuda" else _HostClock()
        self._last: Batch | None = None
        self._resize = config.resize
        self._whole = _is_whole(records, order, config, device)
        self._make_pipeline = partial(
            image_pipeline,
            self._feed,
            batch=batch,
            device_id=device.index if device.type == "cuda" else None,
            threads=self.threads,
            prefetch=config.prefetch,
            form=records.form,
            colours=order.colours,
            interpolation=config.filter,
            whole=self._whole,
            views=order.views,
            hw_decoder_load=config.hw_decoder_load,
        )
        self._pipeline = self._make_pipeline()
        self._pipeline.build()

    def _feed(self) -> list[Any]:
        """Give the graph its next batch; it does not copy the arrays, so they are kept until the batch has come out."""
        fed = self.faults.repaired(self._again.popleft() if self._again else self._plan())
        windows = _in_pixels(fed, self._resize) if self._whole else _as_shares(fed)
        given = handles([self._records.feed(fed.numbers), *windows, self._records.labels[fed.numbers], *fed.colours])
        self._fed.append((fed, given))
        return given

    def _plan(self) -> Fed:
        """Return the next batch, after having the storage told of those that follow."""
        while len(self._planned) <= self._ahead:
            self._planned.append(self._order())
            if self._ahead:
                self._reader.submit(self._records.read_ahead, self._planned[-1].numbers)
        return self._planned.popleft()

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        """Return the next batch; raises DataError when the data is gone, or no image of a batch can be decoded."""
        self._retire()
        with self._clock:
            outputs = self._outputs()
        images, labels = (torch.from_dlpack(output.as_tensor()) for output in outputs)
        self._gone.append(self._fed.popleft())
        images = images.view(-1, *images.shape[-3:])
        self._last = Batch(images.permute(0, 3, 1, 2), labels, self._gone[-1][0].valid)
        return self._last

    def _stream(self) -> list[torch.cuda.Stream]:
        return [torch.cuda.current_stream(self._device)] if self._device.type == "cuda" else []

    def _retire(self) -> None:
        """On a GPU, keep each batch until the kernels that read it have run: an event says so, nothing waits."""
        if self._device.type == "cuda" and self._last is not None:
            event = torch.cuda.Event()
            event.record()
            self._used.append((self._last, event))
            while self._used and self._used[0][1].query():
                self._used.popleft()

    def _outputs(self) -> Any:
        """Return what the graph puts out next."""
        while True:
            try:
                return self._pipeline.run(*self._stream())
            except RuntimeError as error:
                failure = error.with_traceback(None)  # which would keep the graph and its threads
            self._begin_anew(failure)

    def _begin_anew(self, error: RuntimeError) -> None:
        """Feed a new graph what has not come out yet, without the images that cannot be decoded; raises where it is not them.

        DALI often does not name them, and a graph that has failed once is of no more use.
        """
        if lost := self._records.lost():
            raise DataError(lost) from error
        beyond_images = self._records.form == "planes" or is_out_of_memory(error)
        if beyond_images or not any(self.faults.find(fed) for fed, _ in self._fed):
            raise RuntimeError(f"the input pipeline over {self._records.path} failed: {error}") from error
        self._pipeline = None  # its threads end before the arrays that they read go
        self._again.extend(fed for fed, _ in self._fed)
        self._fed.clear()
        self._pipeline = self._make_pipeline()
        self._pipeline.build()

    def wait_seconds(self) -> float:
        """Return the seconds waited for batches since the last call."""
        return self._clock.take()

    def close(self) -> None:
        """Stop the pipeline's threads; the records must outlive them."""
        self._last = None
        self._used.clear()
        self._pipeline = None
        self._fed.clear()
        self._reader.shutdown(cancel_futures=True)


def threads_of(config: InputConfig, cpus: int, device: torch.device) -> int:
    """Return the host threads of a loader that may use so many CPUs."""
    return config.threads or (min(cpus, _ON_A_GPU) if device.type == "cuda" else cpus)


def _is_whole(records: Records, order: Order, config: InputConfig, device: torch.device) -> bool:
    """Return whether windows can be cut from images as they are stored: on a CPU that takes half of the time or less."""
    warped = records.resizes == (f"{config.resize}x{config.resize}",) or (
        records.form == "planes" and bool((records.sizes == config.resize).all())
    )
    return device.type == "cpu" and warped and order.cuts == {(config.resize, config.crop)}


def _as_shares(fed: Fed) -> list[np.ndarray]:
    """Return a batch's windows as shares of the image, and the sizes that they become."""
    return [fed.windows.start, fed.windows.end, np.full((len(fed.numbers), 2), fed.crop, np.float32)]


def _in_pixels(fed: Fed, resize: int) -> list[np.ndarray]:
    """Return a batch's windows as corners and sizes in pixels of images of `resize`², and which of them are mirrored."""
    left_top = np.minimum(fed.windows.start, fed.windows.end)
    shape = np.full((len(fed.numbers), 2), fed.crop, np.int32)
    mirrored = fed.windows.end[:, 1] < fed.windows.start[:, 1]
    return [np.rint(left_top * resize).astype(np.int32), shape, mirrored.astype(np.int32)]


class _HostClock:
    """Sums the seconds that the host spends inside the context."""

    def __init__(self) -> None:
        self._total = 0.0

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._total += time.perf_counter() - self._start

    def take(self) -> float:
        total, self._total = self._total, 0.0
        return total


class _GpuClock:
    """Sums the seconds that the current stream idles inside the context, from pairs of events that have passed."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def __enter__(self) -> None:
        self._pairs.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        self._pairs[-1][0].record()

    def __exit__(self, *_: object) -> None:
        self._pairs[-1][1].record()

    def take(self) -> float:
        total = 0.0
        while self._pairs and self._pairs[0][1].query():
            start, end = self._pairs.popleft()
            total += start.elapsed_time(end) / 1000
        return total
