"""One optimizer step and one validation, with counts that stay on the device until they are asked for."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastirv2.errors import UsageError
from fastirv2.models.dropout import Dropout, sample_keys
from fastirv2.models.layers import GlobalPool
from fastirv2.models.norm import BatchNorm2d
from fastirv2.training.captured import CapturedStep, own_rate
from fastirv2.training.compiled import Compiler
from fastirv2.training.counts import Counts
from fastirv2.training.distributed import Process
from fastirv2.training.ema import Ema, EmaConfig
from fastirv2.training.gate import Gate, all_finite
from fastirv2.training.pixels import Normalise
from fastirv2.training.plan import Amp, Compile
from fastirv2.training.regions import Region, recompute_stages, regions

Batch = tuple[torch.Tensor, torch.Tensor, int]  # images (B, 3, H, W) channels last, labels int64 (B,), how many count


HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(amp: Amp, device: torch.device, *, deterministic: bool = False) -> Amp:
    """Resolve "auto" and set the switches of the device for the precision chosen.

    "auto" is bf16 autocast where the device computes in it (a GPU since Ampere, a CPU with AVX-512 BF16 or AMX), else fp32.
    TF32 is off in all but "tf32": fp32 means IEEE single precision.

    `deterministic` has only algorithms run that give the same bits every time.

    Raises:
        UsageError: "tf32" or "fp16" without a GPU, or "tf32" or "bf16" on one that is older than Ampere.
    """
    if amp == "auto":
        amp = "bf16" if _has_bf16(device) else "fp32"
    if amp in ("tf32", "fp16") and device.type != "cuda":
        raise UsageError(f"--train.amp {amp} needs an NVIDIA GPU; on a CPU use fp32 or bf16")
    if amp in ("tf32", "bf16") and device.type == "cuda" and not _has_bf16(device):
        raise UsageError(f"--train.amp {amp} needs a GPU since Ampere; here use fp16 or fp32")
    for advice in ("TensorFloat32 tensor cores", "Please use the new API settings to control TF32"):  # a rank each
        warnings.filterwarnings("ignore", message=advice)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = amp == "tf32"
    torch.backends.cudnn.benchmark = not deterministic  # shapes change with --input.sizes alone, so the search pays
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # it imports torch's compiler: two seconds
        torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads what was never written
    return amp


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class Engine:
    """Holds the network as it runs: channels last, in its precision, its gradients averaged over the ranks.

    It takes `model` over, which from then on is called with images as the input pipeline has them, (B, 3, H, W) in 0 … 255.
    """

    def __init__(
        self,
        model: nn.Module,
        process: Process,
        *,
        amp: Amp,
        accumulation: int,
        normalise: Callable[[torch.dtype, torch.device], Normalise],
        label_smoothing: float = 0.0,
        clip: float = 0.0,
        ema: EmaConfig | None = None,
        compile: Compile = "off",
        recompute: int = 0,
        capture: bool = False,
    ) -> None:
        self.device = process.device
        dtype = torch.float64 if amp == "fp64" else torch.float32
        self.model = model.to(self.device, dtype, memory_format=torch.channels_last)
        self.amp = amp
        self.accumulation = accumulation
        self.loss = functools.partial(nn.functional.cross_entropy, reduction="none", label_smoothing=label_smoothing)
        self.train_counts = Counts(self.device)
        self._counts_of_step = Counts(self.device)
        self.gate = Gate(self.model, clip=clip, scaled=amp == "fp16", passes=accumulation)
        self.ema = Ema(self.model, ema) if ema and ema.decay else None
        self._dropouts = [module for module in self.model.modules() if isinstance(module, Dropout)]
        self._pools = [module for module in self.model.modules() if isinstance(module, GlobalPool)]
        self._place = process.rank * accumulation  # of this rank's first pass in the global batch, in passes
        self._recomputed = recompute > 0
        pieces = regions(self.model, recomputed=self._recomputed) if compile == "regional" else [Region(self.model)]
        pieces[0].change(functools.partial(_of_pixels, normalise(dtype, self.device)))
        self.compiler = Compiler(pieces, cpus=process.cpus) if compile in ("regional", "full") else None
        recompute_stages(self.model, recompute)
        self._capture = capture
        self._whole = compile == "full"  # in one graph with the pool: looked at now and then, it would be compiled twice
        self._captured: CapturedStep | None = None
        self.parallel = self.model if process.world == 1 else _data_parallel(self.model, process, static=accumulation == 1)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context that forward passes run in."""
        return torch.autocast(self.device.type, HALF.get(self.amp), enabled=self.amp in HALF)

    def step(
        self,
        batches: Iterator[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        number: int = 0,
        draw: int = 0,
        watch: bool = False,
    ) -> None:
        """Take one optimizer step over `accumulation` batches of this rank; the gradient is that of the global batch's mean.

        `number` is the step's own, from 1, and `draw` a hash of it, uint64, that dropout's masks are drawn by; `watch` has
        `zero_share` known afterwards. Where the gradient is not finite the step leaves nothing behind (`Gate`).
        """
        for pool in self._pools:
            pool.watch = watch or self._capture or self._whole
        if self._capture:
            images, labels, _ = next(batches)
            self._captured_step(optimizer).step(images, labels, self._keys(draw, 0, len(labels)), number)
        else:
            self.gate.open()
            for part in range(self.accumulation):
                images, labels, _ = next(batches)
                last = part == self.accumulation - 1
                self._pass(images, labels, self._keys(draw, part, len(labels)), number, last=last)
                self.gate.close_pass(last=last)
            self._update(optimizer)
        self.gate.send()

    def _keys(self, draw: int, part: int, count: int) -> torch.Tensor:
        """Return the keys that dropout's masks of one pass are drawn by."""
        return sample_keys(draw, (self._place + part) * count, count, self.device)

    def _pass(
        self, images: torch.Tensor, labels: torch.Tensor, keys: torch.Tensor, number: int | torch.Tensor, *, last: bool
    ) -> None:
        """Add one pass to the gradient and to the step's counts."""
        for dropout in self._dropouts:
            dropout.keys = keys
        if self.compiler:
            self.compiler.meet(images)
        with nullcontext() if last or self.parallel is self.model else self.parallel.no_sync():
            with self.autocast():
                logits = self.parallel(images)
            losses = self.loss(logits, labels)
            self.gate.watch(losses.detach(), number)
            scale = 1.0 if self.gate.scale is None else self.gate.scale
            loss = losses.mean() / self.accumulation * scale
            with self.gate.statistics_kept() if self._recomputed else nullcontext():
                loss.backward()
        self._counts_of_step.add(logits, labels, losses)

    def _update(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the optimizer's step, if the gradient is finite, and count what was passed."""
        found_inf = self.gate.pass_through(optimizer)
        if self.ema:
            self.ema.update(found_inf)
        self.train_counts.sums += torch.where(found_inf > 0, 0, self._counts_of_step.sums)
        self._counts_of_step.sums.zero_()
        optimizer.zero_grad(set_to_none=True)

    def _captured_step(self, optimizer: torch.optim.Optimizer) -> CapturedStep:
        """Return what replays the steps of this optimizer, made in the first of them."""
        if self._captured is None:

            def work(images: torch.Tensor, labels: torch.Tensor, keys: torch.Tensor, number: torch.Tensor) -> None:
                self.gate.open()
                self._pass(images, labels, keys, number, last=True)
                self._update(optimizer)

            own_rate(optimizer)
            self._captured = CapturedStep(work)
        return self._captured

    @torch.no_grad()
    def recalibrate(self, batches: Iterator[Batch], count: int, stop: Callable[[], bool]) -> None:
        """Take the running statistics anew, of the weights and of their averages: means over `count` batches of every rank.

        Over fewer once `stop`, which is asked before each batch, says yes on all ranks.
        """
        layers = [module for module in self.model.modules() if isinstance(module, BatchNorm2d)]
        before = [layer.momentum for layer in layers]
        for number in range(1, count + 1):
            if stop():
                break
            for layer in layers:
                layer.momentum = 1 / number  # a mean of all so far
            images, _, _ = next(batches)
            for context in [nullcontext(), *([self.ema.in_place()] if self.ema else [])]:
                with context, self.autocast(), self.compiler.paused() if self.compiler else nullcontext():
                    self.model(images)  # not compiled: every momentum would be another graph
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum

    @torch.inference_mode()
    def validate(self, batches: Iterator[Batch], steps: int, stop: Callable[[], bool]) -> list[torch.Tensor] | None:
        """Run `steps` batches of every rank through the weights, and through their averages where there are any.

        Returns:
            loss, top-1 and top-5 correct, images, summed over all ranks and images: of the weights, and of the averages;
            None once `stop`, which is asked before each batch, says yes on all ranks.
        """
        self.model.eval()
        counts = [Counts(self.device) for _ in range(2 if self.ema else 1)]
        try:
            for _ in range(steps):
                if stop():
                    return None
                images, labels, valid = next(batches)
                mask = torch.arange(len(labels), device=self.device) < valid
                self._count(images, labels, mask, counts[0])
                if self.ema:
                    with self.ema.in_place():
                        self._count(images, labels, mask, counts[1])
        finally:
            self.model.train()
        return [each.take() for each in counts]

    def _count(self, images: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor, counts: Counts) -> None:
        """Add what the model makes of a batch."""
        if self.compiler:
            self.compiler.meet(images)
        with self.autocast():
            logits = self.model(images)
        counts.add(logits, labels, nn.functional.cross_entropy(logits, labels, reduction="none"), mask)

    def zero_share(self) -> float | None:
        """Return the share of zeros before the pool in the last pass that was watched; waits for the device."""
        return next((float(pool.zero_share) for pool in self._pools if pool.zero_share is not None), None)

    @torch.no_grad()
    def weights_are_finite(self) -> bool:
        """Say whether every parameter is; the host waits for the answer."""
        return all_finite(list(self.model.parameters()))


def _of_pixels(normalise: Normalise, forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what a network does first, for images as the input pipeline has them: one with it where it is compiled."""
    return lambda images: forward(normalise(images))


def _data_parallel(model: nn.Module, process: Process, *, static: bool) -> DistributedDataParallel:
    """Wrap the model; gradients live in the buckets, and running statistics are ours to average, not broadcast every step.

    `static` says that every pass has its gradients averaged, in which case what depends on what is looked up once.
    """
    devices = [process.device] if process.device.type == "cuda" else None
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # in torch 2.13
    buffers = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True, static_graph=static, **buffers)

