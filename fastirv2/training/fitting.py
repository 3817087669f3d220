"""`--train.batch auto`: the most images that a device's memory holds in one pass."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from fastirv2.errors import UsageError, is_out_of_memory
from fastirv2.host import available_memory
from fastirv2.training.distributed import Process, from_all
from fastirv2.training.engine import Engine
from fastirv2.training.fused import Begun

_SPARE = 0.1  # share of a GPU's memory that is left to the input pipeline, NCCL and fragments
_SPARE_PER_IMAGE = 4 << 20  # and bytes an image: decoded originals, and batches made ahead
_ON_A_CPU = 0.5  # share of the free memory that passes may take: the page cache needs its own
_MEASURED = 2  # images of the pass that is measured on a CPU
_GRADIENTS = 2.0  # what a pass takes at its peak on a CPU, over what its forward pass keeps

Make = Callable[[Process, int], tuple[Engine, Begun]]


def largest_batch(candidates: Sequence[int], make: Make, process: Process, crop: int) -> tuple[int, str]:
    """Return the largest of `candidates` (descending) that fits on every rank, and what to say of it. Every rank calls this.

    On a GPU whole steps are tried, from the largest on, without compiling, which takes about as much; on a CPU, which would
    swap rather than refuse, a pass over two images is measured.

    Args:
        candidates: images a pass.
        make: makes an engine and an optimizer for a process and a pass of so many images, as the run will have them;
            0: with statistics over whatever a pass has.
        process: this rank; what is tried is tried by each rank alone.
        crop: side of the largest images of the run, in pixels.

    Raises:
        UsageError: not even the smallest fits.
    """
    alone = replace(process, rank=0, world=1)
    fit = _on_gpu if process.device.type == "cuda" else _on_cpu
    found = min(from_all(fit(candidates, make, alone, crop, process.world)))
    if not found:
        raise UsageError(
            f"--train.batch auto: the memory does not hold {candidates[-1]} images of {crop} pixels; use more ranks, a smaller "
            "--train.bn-batch, or --train.recompute 3"
        )
    return found, f"--train.batch auto: {found} images a pass, of the {candidates[0]} that a rank has in a step"


def _on_gpu(candidates: Sequence[int], make: Make, alone: Process, crop: int, world: int) -> int:
    free, whole = torch.cuda.mem_get_info(alone.device)
    for batch in candidates:
        most = free - _SPARE * whole - _SPARE_PER_IMAGE * batch
        try:
            if _peak_of_steps(make, alone, batch, crop, copies=world > 1) <= most:
                return batch
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        finally:
            gc.collect()
            torch.cuda.empty_cache()
    return 0


def _peak_of_steps(make: Make, alone: Process, batch: int, crop: int, *, copies: bool) -> int:
    """Return the bytes reserved at the peak of a step; `copies` adds the buckets that gradients are averaged in.

    It is the second step: in the first, cuDNN tries its algorithms with all the memory that is free.
    """
    before = torch.cuda.memory_reserved(alone.device)
    engine, optimizer = make(alone, batch)
    for _ in range(2):
        torch.cuda.synchronize(alone.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(alone.device)
        engine.step(iter([_noise(batch, crop, alone.device)]), optimizer)
    torch.cuda.synchronize(alone.device)
    gradients = sum(p.numel() * p.element_size() for p in engine.model.parameters()) if copies else 0
    return torch.cuda.max_memory_reserved(alone.device) - before + gradients


def _on_cpu(candidates: Sequence[int], make: Make, alone: Process, crop: int, world: int) -> int:
    engine, _ = make(alone, 0)
    most = _ON_A_CPU * available_memory() / alone.local_world
    kept = _bytes_kept(engine, crop)
    return next((batch for batch in candidates if _GRADIENTS * kept * batch <= most), 0)


def _bytes_kept(engine: Engine, crop: int) -> float:
    """Return the bytes that a forward pass keeps of an image for the backward pass."""
    found: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in engine.model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    images, _, count = _noise(_MEASURED, crop, engine.device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), engine.autocast():
        logits = engine.model(images)
    del logits  # until here all that was kept is alive, at addresses of its own
    return sum(found.values()) / count


def _noise(batch: int, crop: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return a batch of random images uint8 (B, 3, crop, crop), channels last, and labels of class 0."""
    images = torch.randint(0, 256, (batch, 3, crop, crop), dtype=torch.uint8, device=device)
    return images.contiguous(memory_format=torch.channels_last), torch.zeros(batch, dtype=torch.int64, device=device), batch
