"""Batches as torch tensors: records are fed to the DALI graph, and what it puts out is handed over without a copy."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from fastirv2.data import sampler
from fastirv2.data.augment import Windows, centre_crops, random_crops
from fastirv2.data.dataset import Records
from fastirv2.errors import DataError, UsageError
from fastirv2.host import available_cpus
from fastirv2.pipelines.images import decoding_error, image_pipeline

LARGEST_RESIZE = 4096  # pixels a side


@dataclass(frozen=True)
class InputConfig:
    """What becomes of an image before the network sees it, and what may work on it."""

    resize: int = 328
    """Side in pixels that images are warped to."""
    crop: int = 299
    """Side in pixels of the crop: random in training, central in validation."""
    threads: int = 0
    """Host threads of a rank's input pipeline; 0: its share of the processors it may use."""
    prefetch: int = 2
    """Batches made ahead."""
    hw_decoder_load: float = 0.65
    """Share of a batch that goes to a GPU's JPEG engines; 0 makes pixels repeat exactly."""

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise UsageError(f"--input.crop {self.crop} must lie between 1 and --input.resize {self.resize}")
        if self.resize > LARGEST_RESIZE:
            raise UsageError(f"--input.resize {self.resize} is beyond all use; at most {LARGEST_RESIZE} pixels")
        if self.threads < 0 or self.prefetch < 1 or not 0 <= self.hw_decoder_load <= 1:
            raise UsageError(
                "input: threads must not be negative, prefetch at least 1, hw-decoder-load between 0 and 1; "
                f"got {self.threads}, {self.prefetch}, {self.hw_decoder_load}"
            )


class Batch(NamedTuple):
    """Images uint8 (B, 3, H, W), channels last; labels int64 (B,), both on the device; how many of the B are no padding."""

    images: torch.Tensor
    labels: torch.Tensor
    valid: int


class Fed(NamedTuple):
    """The records of one batch, int64 (B,), their windows, and how many of the B are no padding."""

    numbers: np.ndarray
    windows: Windows
    valid: int


class TrainOrder:
    """The batches of one rank from an optimizer step on, without end: `parts` passes of equal size a step."""

    def __init__(
        self, count: int, config: InputConfig, *, seed: int, global_batch: int, world: int, rank: int, parts: int, step: int
    ) -> None:
        self._where = (global_batch, world, rank)
        self._config, self._seed, self._count, self._parts = config, seed, count, parts
        self._step, self._pending = step, deque[Fed]()

    def __call__(self) -> Fed:
        """Return the next batch."""
        if not self._pending:
            self._pending.extend(self._draw(self._step))
            self._step += 1
        return self._pending.popleft()

    def _draw(self, step: int) -> list[Fed]:
        numbers = sampler.batch(self._seed, step, self._count, *self._where)
        epochs = sampler.positions(step, *self._where) // self._count
        windows = random_crops(self._seed, epochs, numbers, self._config.resize, self._config.crop)
        split = zip(*(np.split(a, self._parts) for a in (numbers, windows.start, windows.end)), strict=True)
        return [Fed(part, Windows(start, end), len(part)) for part, start, end in split]


class ValidationOrder:
    """The batches of one rank over all records in order, padded to one shape; after the last it begins again."""

    def __init__(self, count: int, config: InputConfig, *, batch: int, world: int, rank: int) -> None:
        self.steps = sampler.steps_in_validation(count, batch, world)
        self._where = (count, batch, world, rank)
        self._windows = centre_crops(batch, config.resize, config.crop)
        self._step = 0

    def __call__(self) -> Fed:
        """Return the next batch."""
        numbers, valid = sampler.validation_batch(self._step, *self._where)
        self._step = (self._step + 1) % self.steps
        return Fed(numbers, self._windows, valid)


class Loader:
    """An endless iterator of batches on a device, made ahead of time.

    `wait_seconds()` is the time since its last call in which the device (on a CPU: the caller) had to wait for a batch.
    """

    def __init__(
        self,
        records: Records,
        order: Callable[[], Fed],
        config: InputConfig,
        *,
        batch: int,
        device: torch.device,
        local_world: int,
    ) -> None:
        self.threads = config.threads or max(1, available_cpus() // local_world)
        self._records, self._order, self._device = records, order, device
        self._fed: deque[tuple[Fed, list[Any]]] = deque()
        self._gone: deque[tuple[Fed, list[Any]]] = deque(maxlen=2)
        self._used: deque[tuple[Batch, torch.cuda.Event]] = deque()
        self._clock = _GpuClock() if device.type == "cuda" else _HostClock()
        self._last: Batch | None = None
        self._pipeline = image_pipeline(
            self._feed,
            batch=batch,
            crop=config.crop,
            device_id=device.index if device.type == "cuda" else None,
            threads=self.threads,
            prefetch=config.prefetch,
            form=records.form,
            hw_decoder_load=config.hw_decoder_load,
        )
        self._pipeline.build()

    def _feed(self) -> list[Any]:
        """Give the graph its next batch; it does not copy the arrays, so they are kept until the batch has come out."""
        fed = self._order()
        arrays = [self._records.feed(fed.numbers), fed.windows.start, fed.windows.end, self._records.labels[fed.numbers]]
        self._fed.append((fed, arrays))
        return arrays

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> Batch:
        """Return the next batch; raises DataError, naming the record, when an image cannot be decoded."""
        self._retire()
        with self._clock:
            try:
                outputs = self._pipeline.run(*self._stream())
            except RuntimeError as error:
                raise self._explained(error) from error
        images, labels = (torch.from_dlpack(output.as_tensor()) for output in outputs)
        self._gone.append(self._fed.popleft())
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

    def _explained(self, error: RuntimeError) -> Exception:
        """Find the image that cannot be decoded among those fed, since DALI often does not name it."""
        for fed, _ in self._fed:
            for number in fed.numbers.tolist():
                reason = _undecodable(self._records, number)
                if reason:
                    return DataError(
                        f"{self._records.where(number)} cannot be decoded ({reason}); remove it, or build an LMDB with "
                        "fastirv2-build-lmdb, which checks every image"
                    )
        return RuntimeError(f"the input pipeline over {self._records.path} failed: {error}")

    def wait_seconds(self) -> float:
        """Return the seconds waited for batches since the last call."""
        return self._clock.take()

    def close(self) -> None:
        """Stop the pipeline's threads; the records must outlive them."""
        self._last = None
        self._used.clear()
        self._pipeline = None
        self._fed.clear()


def _undecodable(records: Records, number: int) -> str:
    """Return why a record's image cannot be decoded, or an empty string."""
    try:
        data = records[number][0]
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError:
        return "it is no image"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return str(error)
    return f"{image.format} is not decoded here" if decoding_error(np.frombuffer(data, np.uint8)) else ""


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
