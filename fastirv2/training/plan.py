"""How a global batch is divided: ranks, passes of a rank, and the images that normalisation statistics span."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fastirv2.errors import UsageError
from fastirv2.models.freezing import Freeze

LARGEST_DEFAULT_BATCH = 256  # images in one pass of a device unless --train.batch says otherwise

SyncBN = Literal["auto", "on", "off", "local"]
Compile = Literal["auto", "off", "regional", "full"]
Amp = Literal["auto", "bf16", "fp16", "tf32", "fp32", "fp64"]


@dataclass(frozen=True)
class TrainConfig:
    """How much is trained, in which precision, and how the work is divided."""

    epochs: int = 90
    """Passes over the training set."""
    global_batch: int = 64
    """Images an optimizer step, over all ranks and passes."""
    batch: int | Literal["auto"] = 0
    """Images that a device holds in one pass; 0: all of its share that fits the rest, at most 256; auto: the most that its
    memory holds."""
    bn_batch: int = 32
    """Images that batch-normalisation statistics are taken over with sync-bn auto; 0: a device's own pass."""
    sync_bn: SyncBN = "auto"
    """Statistics over bn-batch images whatever the number of devices (auto), over all ranks (on), or over each rank's own
    pass: with running statistics averaged over the ranks (local), or those of rank 0 (off)."""
    amp: Amp = "auto"
    """Precision: bf16 or fp16 autocast, tf32 or fp32 or fp64 throughout; auto: bf16 where the device computes in it, else
    fp32."""
    compile: Compile = "auto"
    """torch.compile: each kind of block once (regional) or the network as a whole (full); auto: regional on a GPU, off on a
    CPU."""
    recompute: int = 0
    """Stages of the network, of 3 from its input on, whose activations are computed again in the backward pass and not kept:
    less memory and a slower step."""
    cuda_graph: Literal["off", "on"] = "off"
    """on: replay each step as one CUDA graph, for few images on one GPU, where starting kernels takes longer than running
    them."""
    deterministic: bool = False
    """Use only algorithms that give the same bits every time: slower on a GPU. On a CPU they do anyway."""
    patience: int = 20
    """Steps in a row whose gradient is not finite, and which do not count, until the run ends."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU for each rank if there are any, else the CPU."""
    recalibrate: int = 0
    """Training batches over which normalisation statistics are taken anew before the last validation; 0: as they were."""
    init_from: str = ""
    """Weights to begin from: a run folder (its best), a checkpoint, a safetensors file, or one of timm's, Cadene's or Keras'.
    The last layer begins anew where its classes differ. A run that goes on does so from its own checkpoint."""
    freeze: Freeze = "none"
    """What of the weights begun from does not learn: the stem, with its normalisation; the running statistics, by which
    normalisation then goes in training too; or both."""
    label_smoothing: float = 0.0
    """Share of a label spread evenly over all classes (Szegedy et al. 2015, section 7). The training loss that is logged is
    that of the smoothed labels; validation's is plain."""
    seed: int = 0
    """Seed of the weights, of the order of the records, and of all that is random about them."""
    stop_after: int = 0
    """Stop with a checkpoint after this step, as if interrupted; 0: at the end. Without it, the same command goes on."""
    timeout: float = 10.0
    """Minutes without a step or a batch of validation after which a run that hangs is ended; six times as many until the
    first step is done; 0: never."""

    def __post_init__(self) -> None:
        batch = 0 if self.batch == "auto" else self.batch
        small = min(batch, self.bn_batch, self.recalibrate, self.stop_after, self.seed) < 0
        if small or min(self.epochs, self.global_batch, self.patience) < 1 or self.seed >= 2**63:
            raise UsageError(
                "train: epochs, global-batch and patience must be positive; batch, bn-batch, recalibrate, stop-after and seed "
                f"(< 2^63) at least 0; got {self.epochs}, {self.global_batch}, {self.patience}; {self.batch}, {self.bn_batch}, "
                f"{self.recalibrate}, {self.stop_after}, {self.seed}"
            )
        if not 0 <= self.recompute <= 3:
            raise UsageError(f"--train.recompute {self.recompute} must be 0 to 3 stages")
        if self.recompute and self.compile == "full":
            raise UsageError("--train.recompute goes with --train.compile regional or off, not with full")
        if self.freeze != "none" and not self.init_from:
            raise UsageError(f"--train.freeze {self.freeze} keeps what was learned before: say with --train.init-from where")
        if self.freeze in ("statistics", "both") and self.recalibrate:
            raise UsageError(f"--train.recalibrate takes anew the statistics that --train.freeze {self.freeze} keeps: give one")
        if not 0 <= self.timeout < math.inf:
            raise UsageError(f"--train.timeout must be at least 0 minutes (0: never); got {self.timeout}")
        if not 0 <= self.label_smoothing < 1:
            raise UsageError(f"--train.label-smoothing must lie in [0, 1); got {self.label_smoothing}")


@dataclass(frozen=True)
class Plan:
    """Who computes what in one optimizer step."""

    global_batch: int  # images an optimizer step
    world: int  # ranks
    batch: int  # images of one pass of one rank
    accumulation: int  # passes of a rank in a step
    bn_ranks: int  # neighbouring ranks that share normalisation statistics
    bn_splits: int  # parts of a rank's pass that are normalised each on its own
    count: int  # training records
    epochs: int

    def last_step(self, epoch: int) -> int:
        """Return the step that ends `epoch`, both counted from 1: ⌈epoch · count / global_batch⌉."""
        return -(-epoch * self.count // self.global_batch)

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 1, that `step`, from 1, is counted to."""
        return (step - 1) * self.global_batch // self.count + 1

    def ended_by(self, step: int) -> int:
        """Return the epoch that ends with `step` (the last of them where a step spans several), or 0."""
        epoch = min(step * self.global_batch // self.count, self.epochs)
        return epoch if epoch and self.last_step(epoch) == step else 0

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.last_step(self.epochs)

    @property
    def bn_images(self) -> int:
        """Images that one set of normalisation statistics is taken over."""
        return self.batch * self.bn_ranks // self.bn_splits


def make_plan(*, global_batch: int, world: int, batch: int, bn_batch: int, sync_bn: SyncBN, count: int, epochs: int) -> Plan:
    """Divide a global batch among ranks and passes.

    Args:
        global_batch: images an optimizer step.
        world: number of ranks.
        batch: images of one pass of a rank; 0 takes the largest that fits the rest, at most 256.
        bn_batch: images that normalisation statistics are taken over with sync_bn "auto"; 0: each rank's own pass.
        sync_bn: "auto" as `bn_batch` says, "on" over all ranks, "off" and "local" each rank over its own pass.
        count: training records.
        epochs: epochs of the run.

    Raises:
        UsageError: the ranks do not divide the global batch, the passes do not divide a rank's share, or `bn_batch` cannot
            be met; the sentence names numbers that would do.
    """
    if global_batch % world:
        below, above = global_batch // world * world, -(-global_batch // world) * world
        near = f"{below} or {above}" if below else f"{above}"
        raise UsageError(
            f"{world} ranks do not divide a global batch of {global_batch} images; --train.global-batch {near} would do"
        )
    share = global_batch // world
    divisors = _divisors(share)
    fitting = possible_batches(global_batch, world, bn_batch, sync_bn)
    if batch and batch not in divisors:
        raise UsageError(
            f"--train.batch {batch} does not divide the {share} images that each of {world} ranks has of a global batch of "
            f"{global_batch}; one of {_listed(fitting or divisors)} would do"
        )
    if not fitting or (batch and batch not in fitting):
        alone = batch or share
        others = "give a larger --train.batch"
        if alone > 1 or world > 1:
            others = f"--train.bn-batch {alone if alone > 1 else world} would do"
        hint = f"--train.batch {_listed(fitting)} would do" if fitting else others
        raise UsageError(
            f"normalisation over {bn_batch} images cannot be met by {world} ranks with passes of {batch or share} images; "
            f"{hint}"
        )
    chosen = batch or next((d for d in fitting if d <= LARGEST_DEFAULT_BATCH), fitting[-1])
    ranks, splits = {"auto": _bn_shape(chosen, world, bn_batch), "on": (world, 1)}.get(sync_bn) or (1, 1)
    plan = Plan(global_batch, world, chosen, share // chosen, ranks, splits, count, epochs)
    if plan.bn_images < 2:
        raise UsageError("normalisation statistics over a single image make no sense; use a larger batch")
    return plan


def possible_batches(global_batch: int, world: int, bn_batch: int, sync_bn: SyncBN) -> list[int]:
    """Return the images that a pass of a rank may have, the most first; none where `bn_batch` cannot be met."""
    return [d for d in _divisors(global_batch // world) if sync_bn != "auto" or _bn_shape(d, world, bn_batch)]


def _divisors(number: int) -> list[int]:
    return [d for d in range(number, 0, -1) if number % d == 0]


def _bn_shape(batch: int, world: int, bn_batch: int) -> tuple[int, int] | None:
    """Return (ranks, splits) that take statistics over `bn_batch` images with passes of `batch`, or None."""
    if not bn_batch:
        return 1, 1
    if batch % bn_batch == 0:
        return 1, batch // bn_batch
    if bn_batch % batch == 0 and world % (bn_batch // batch) == 0:
        return bn_batch // batch, 1
    return None


def _listed(numbers: list[int]) -> str:
    return ", ".join(str(n) for n in numbers[:8])
