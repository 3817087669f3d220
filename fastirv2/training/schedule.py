"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

from fastirv2.errors import UsageError


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over a run, as given for a global batch of `batch` images."""

    kind: Literal["exponential", "cosine"] = "exponential"
    """exponential: rate × factor^⌊step / interval⌋, or ⌊epochs done / interval-epochs⌋; cosine: half a cosine from rate to 0
    at the end of the run."""
    rate: float = 0.045
    """Learning rate at the beginning, for `batch` images a step."""
    factor: float = 0.96
    """exponential: factor of each interval."""
    interval: int = 12_800
    """exponential: steps of `batch` images between two factors; 0 where interval-epochs says it."""
    interval_epochs: float = 0.0
    """exponential: epochs between two factors; 0 where interval says it."""
    warmup_epochs: float = 0.0
    """Epochs at the beginning in which the rate rises linearly to what the schedule says."""
    batch: int = 64
    """Global batch that rate and interval are given for."""
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the rate follows another global batch; the interval always keeps its length in images."""
    global_batch: Annotated[int, tyro.conf.Suppress] = 0
    """The run's own global batch (0: the same as `batch`)."""
    total_steps: Annotated[int, tyro.conf.Suppress] = 0
    """Steps of the whole run."""
    warmup_steps: Annotated[int, tyro.conf.Suppress] = 0
    """Steps of the warm-up."""
    epoch_images: Annotated[int, tyro.conf.Suppress] = 0
    """Images of an epoch, where interval_epochs counts them; else 0."""

    def __post_init__(self) -> None:
        finite = 0 < self.rate < math.inf and 0 < self.factor <= 1
        lengths = 0 <= self.warmup_epochs < math.inf and 0 <= self.interval_epochs < math.inf and self.interval >= 0
        if not finite or not lengths or self.batch < 1:
            raise UsageError(
                "schedule: rate and batch must be positive, factor in (0, 1], interval, interval-epochs and warmup-epochs not "
                f"negative; got rate {self.rate}, batch {self.batch}, factor {self.factor}, interval {self.interval}, "
                f"interval-epochs {self.interval_epochs}, warmup-epochs {self.warmup_epochs}"
            )
        if self.kind == "exponential" and bool(self.interval) == bool(self.interval_epochs):
            raise UsageError(
                f"schedule: interval {self.interval} and interval-epochs {self.interval_epochs:g}: exactly one of the two says "
                "when the factor comes; set the other to 0"
            )


def for_run(config: ScheduleConfig, *, global_batch: int, count: int, total_steps: int) -> ScheduleConfig:
    """Return the schedule of a run with this global batch, `count` records an epoch and `total_steps` steps."""
    return replace(
        config,
        global_batch=global_batch,
        total_steps=total_steps,
        warmup_steps=math.ceil(config.warmup_epochs * count / global_batch),
        epoch_images=count if config.interval_epochs else 0,
    )


def scale(config: ScheduleConfig) -> float:
    """Return what the rate is multiplied by for the run's global batch (linear: Goyal et al. 2017, section 2.1; sqrt:
    Krizhevsky 2014)."""
    ratio = (config.global_batch or config.batch) / config.batch
    return {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[config.scaling]


def describe_schedule(config: ScheduleConfig) -> str:
    """Say in a few words how the rate runs, for the batch that it is given for."""
    epochs = f"{config.warmup_epochs:g} epoch{'' if config.warmup_epochs == 1 else 's'}"
    warmup = f", warm-up of {epochs}" if config.warmup_epochs else ""
    interval = f"{config.interval_epochs:g} epochs" if config.interval_epochs else f"{config.interval:,} steps"
    falling = "falling as a cosine" if config.kind == "cosine" else f"× {config.factor:g} every {interval}"
    return f"rate {config.rate:g} {falling}{warmup}"


def describe_scaling(config: ScheduleConfig) -> str:
    """Say how the run's global batch changes the recipe's numbers; "" where it is the recipe's own."""
    if config.global_batch in (0, config.batch):
        return ""
    rate = "not scaled" if config.scaling == "none" else f"scaled by {scale(config):.4g}"
    text = f"learning rate {rate} ({config.scaling}): batches of {config.global_batch} instead of the recipe's {config.batch}"
    if config.kind == "exponential" and config.interval:
        steps = config.interval * config.batch / config.global_batch
        text += f"; {steps:,.6g} steps between two factors instead of {config.interval:,}"
    return text


def learning_rate(step: int, config: ScheduleConfig) -> float:
    """Return the learning rate of optimizer step `step`, counted from 1.

    exponential: rate × factor^⌊step / interval⌋, changed every step as in the predecessor's training script, the step counted
    in batches of `config.batch` images; or rate × factor^⌊epochs / interval_epochs⌋, the epochs done before the step. cosine:
    rate × (1 + cos(π (step − 1) / total_steps)) / 2 (Loshchilov & Hutter 2016, equation 5, without restarts). In the warm-up
    all are multiplied by step / (warmup_steps + 1).

    Raises:
        UsageError: it falls by epochs, and `for_run` has not said how many images an epoch has.
    """
    global_batch = config.global_batch or config.batch
    rate = config.rate * scale(config)
    if config.kind == "cosine":
        rate *= (1 + math.cos(math.pi * min((step - 1) / max(config.total_steps, 1), 1.0))) / 2
    elif config.interval_epochs:
        if not config.epoch_images:
            raise UsageError("schedule: interval-epochs counts epochs, and for_run has not said how many images one has")
        rate *= config.factor ** math.floor((step - 1) * global_batch / (config.epoch_images * config.interval_epochs))
    else:
        rate *= config.factor ** (step * global_batch // (config.batch * config.interval))
    return rate * min(1.0, step / (config.warmup_steps + 1))
