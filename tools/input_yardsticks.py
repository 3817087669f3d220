"""What the input is held against: DALI's own Caffe reader, and the Pillow data set that everyone writes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from fastirv2.data.dataset import Records
from fastirv2.data.samples import Order
from fastirv2.pipelines.images import handles


def caffe_reader(
    data: Path, *, batch: int, resize: int, crop: int, threads: int, hw_decoder_load: float, gpu: bool
) -> Callable[[], Any]:
    """Return DALI's reader of encoded images with its own shuffle, then decode, warp, random crop and mirror."""
    pipeline = _pipeline(batch, threads, gpu)
    with pipeline:
        encoded, labels = fn.readers.caffe(path=str(data), random_shuffle=True)
        decoder = {"device": "mixed", "hw_decoder_load": hw_decoder_load} if gpu else {"device": "cpu"}
        decoded = fn.decoders.image(encoded, output_type=types.RGB, jpeg_fancy_upsampling=True, **decoder)
        warped = fn.resize(decoded, size=(resize, resize))
        place = {"crop_pos_x": fn.random.uniform(range=(0, 1)), "crop_pos_y": fn.random.uniform(range=(0, 1))}
        images = fn.crop_mirror_normalize(
            warped, crop=(crop, crop), mirror=fn.random.coin_flip(), dtype=types.UINT8, output_layout="HWC", **place
        )
        pipeline.set_outputs(images, labels.gpu() if gpu else labels)
    pipeline.build()
    stream = [torch.cuda.current_stream()] if gpu else []  # handed over by streams, as the loader's batches are
    return lambda: pipeline.run(*stream)


def readers_alone(records: Records, order: Order, data: Path, *, batch: int, threads: int) -> dict[str, Callable[[], Any]]:
    """Return what brings encoded images and labels into a graph and does nothing with them: our feeding, and DALI's reader."""

    kept: deque[list[Any]] = deque(maxlen=4)

    def fed() -> list[Any]:
        numbers = order().numbers
        kept.append(handles([records.feed(numbers), records.labels[numbers]]))
        return kept[-1]

    ours, theirs = _pipeline(batch, threads, gpu=False), _pipeline(batch, threads, gpu=False)
    with ours:
        ours.set_outputs(*fn.external_source(source=fed, num_outputs=2, batch=True, no_copy=True))
    with theirs:
        theirs.set_outputs(*fn.readers.caffe(path=str(data), random_shuffle=True))
    for pipeline in (ours, theirs):
        pipeline.build()
    return {"reading": ours.run, "readers.caffe, reading": theirs.run}


def _pipeline(batch: int, threads: int, gpu: bool) -> Pipeline:
    """Return an empty graph."""
    device = torch.cuda.current_device() if gpu else None
    return Pipeline(batch_size=batch, num_threads=threads, device_id=device, prefetch_queue_depth=2, seed=1, exec_dynamic=True)


class PillowImages(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Files through Pillow: open, convert, warp, random crop, mirror, to a tensor (3, crop, crop) uint8."""

    def __init__(self, files: list[str], resize: int, crop: int) -> None:
        self._files, self._resize, self._crop = files, resize, crop

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        image = Image.open(self._files[number]).convert("RGB").resize((self._resize, self._resize), Image.Resampling.BILINEAR)
        left, top = torch.randint(0, self._resize - self._crop + 1, (2,)).tolist()
        image = image.crop((left, top, left + self._crop, top + self._crop))
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), 0


def pillow_loader(
    folder: Path, *, batch: int, resize: int, crop: int, workers: int, device: torch.device
) -> Callable[[], Any]:
    """Return a torch DataLoader over the files below a folder, with worker processes that stay; batches come to `device`."""
    images = PillowImages([str(path) for path in sorted(folder.rglob("*.jpg"))], resize, crop)
    loader = torch.utils.data.DataLoader(
        images,
        batch,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="spawn",
        pin_memory=device.type == "cuda",
    )
    batches = _endless(loader)
    return lambda: [part.to(device, non_blocking=True) for part in next(batches)]


def _endless(loader: Any) -> Iterator[Any]:
    """Yield the batches of one epoch after the other."""
    while True:
        yield from loader
