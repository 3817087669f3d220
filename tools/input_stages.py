"""The loader in stages, each with all that comes before it, and what is measured of any way to batches.

read         the records' bytes through the graph's threads, copied once: every page is touched, nothing is decoded
decode       the same bytes decoded; it is no stage of its own where the product decodes only what it cuts out
resize/crop  the product's whole graph
hand-over    the trainer's loader as it is: batches of torch tensors

Every stage is fed by the loader's own feeding, with its order, its read-ahead and its options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types

from fastirv2.data.dataset import Records
from fastirv2.data.loader import Loader, threads_of
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, Order, TrainOrder
from fastirv2.pipelines.images import DECODERS
from fastirv2.report.machine import spread, wait_for

LAST = "hand-over"
AnyLoader = TypeVar("AnyLoader", bound=Loader)


@dataclass(frozen=True)
class Input:
    """What loaders are made of: an LMDB, the input's options, and what this process may use."""

    data: Path
    config: InputConfig
    batch: int
    device: torch.device
    cpus: int

    @property
    def threads(self) -> int:
        """Host threads of a loader."""
        return threads_of(self.config, self.cpus, self.device)

    def order(self, records: Records) -> TrainOrder:
        """Return the order of training, from its first step on."""
        return TrainOrder(records, self.config, seed=0, global_batch=self.batch, world=1, rank=0, parts=1, step=0)

    def loader(self, kind: Callable[..., AnyLoader]) -> AnyLoader:
        """Return a loader over the LMDB, opened anew: the trainer's own, or a kind of it."""
        records = open_records(self.data)
        return kind(records, self.order(records), self.config, batch=self.batch, device=self.device, cpus=self.cpus)


class CutOff(Loader):
    """The trainer's loader up to a stage: nothing is handed over to torch, and before "resize/crop" its graph is another."""

    def __init__(self, stage: str, records: Records, order: Order, config: InputConfig, **where: Any) -> None:
        super().__init__(records, order, config, **where)
        self._stage = stage
        if stage != "resize/crop":
            self._make_pipeline = partial(self._cut_off_graph, where["batch"], config)
            self._pipeline = self._make_pipeline()
            self._pipeline.build()

    def _cut_off_graph(self, batch: int, config: InputConfig) -> Pipeline:
        """Return the graph that ends after reading or after decoding, not built."""
        on_gpu = self._device.type == "cuda" and self._stage != "read"
        graph = Pipeline(
            batch_size=batch,
            num_threads=self.threads,
            device_id=self._device.index if on_gpu else None,
            prefetch_queue_depth=config.prefetch,
            exec_dynamic=True,
        )
        decoder = {"device": "mixed", "hw_decoder_load": config.hw_decoder_load} if on_gpu else {"device": "cpu"}
        with graph:
            stored = fn.external_source(source=lambda: self._feed()[0], batch=True, no_copy=True)
            if self._stage == "read":
                graph.set_outputs(fn.copy(stored))
            else:
                graph.set_outputs(DECODERS.image(stored, output_type=types.RGB, jpeg_fancy_upsampling=True, **decoder))
        return graph

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that there are over these records, without the last."""
        whole_images_are_decoded = self._records.form != "planes" and not self._whole
        return ("read", "decode", "resize/crop") if whole_images_are_decoded else ("read", "resize/crop")

    def run(self) -> Any:
        """Return the graph's next outputs; what it was fed is kept for as long as the loader keeps it."""
        outputs = self._outputs()
        self._gone.append(self._fed.popleft())
        return outputs

    def _stream(self) -> list[torch.cuda.Stream]:
        return [] if self._stage == "read" else super()._stream()


def cut_off(given: Input) -> dict[str, CutOff]:
    """Return the loader cut off after each stage but the last."""
    whole = given.loader(partial(CutOff, "resize/crop"))
    return {stage: whole if stage == "resize/crop" else given.loader(partial(CutOff, stage)) for stage in whole.stages}


class Taken(NamedTuple):
    """What was measured of batches that were taken one after the other; milliseconds lie between one batch and the next."""

    images_per_second: float
    milliseconds: list[float]
    cpu_share: float


def take(batch: Callable[[], object], given: Input, *, settle: int, seconds: float, most: int | None = None) -> Taken:
    """Measure batches for so many seconds, and at most so many, after the `settle` batches that were made ahead.

    On a GPU the time between two batches is that between events on the stream that they are handed over to, so that nothing
    waits for them while they are taken. The CPU share is of all threads of this process, and of the CPUs that it may use.
    """
    for _ in range(settle):
        batch()
    wait_for(given.device)
    stamps, begun, cpu_begun = [_stamp(given.device)], perf_counter(), process_time()
    while perf_counter() - begun < seconds and (most is None or len(stamps) <= most):
        batch()
        stamps.append(_stamp(given.device))
    wait_for(given.device)
    wall, cpu = perf_counter() - begun, process_time() - cpu_begun
    milliseconds = [_milliseconds(one, other) for one, other in pairwise(stamps)]
    return Taken(len(milliseconds) * given.batch / wall, milliseconds, cpu / (wall * given.cpus))


def _stamp(device: torch.device) -> Any:
    """Return this instant: of the GPU's current stream, or of the host."""
    if device.type == "cpu":
        return perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _milliseconds(one: Any, other: Any) -> float:
    """Return the time between two stamps."""
    return (other - one) * 1000 if isinstance(one, float) else one.elapsed_time(other)


def summed_up(rounds: list[Taken]) -> dict[str, Any]:
    """Return the rounds of a stage as figures: rates and CPU shares of the rounds, percentiles of all their batches."""
    milliseconds = [value for taken in rounds for value in taken.milliseconds]
    p50, p99 = np.percentile(milliseconds, [50, 99]).tolist()
    return {
        "images_per_second": spread([taken.images_per_second for taken in rounds]),
        "milliseconds_per_batch": {"p50": p50, "p99": p99, "batches": len(milliseconds)},
        "cpu_share": median(taken.cpu_share for taken in rounds),
    }
