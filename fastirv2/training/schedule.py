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
    """exponential: rate × factor^⌊step / interval⌋; cosine: half a cosine from rate to 0 at the end of the run."""
    rate: float = 0.045
    """Learning rate at the beginning, for `batch` images a step."""
    factor: float = 0.96
    """exponential: factor of each interval."""
    interval: int = 12_800
    """exponential: steps of `batch` images between two factors."""
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

    def __post_init__(self) -> None:
        finite = 0 < self.rate < math.inf and 0 < self.factor <= 1 and 0 <= self.warmup_epochs < math.inf
        if not finite or self.interval < 1 or self.batch < 1:
            raise UsageError(
                "schedule: rate, interval and batch must be positive, factor in (0, 1], warmup-epochs not negative; "
                f"got rate {self.rate}, factor {self.factor}, interval {self.interval}, batch {self.batch}, "
                f"warmup-epochs {self.warmup_epochs}"
            )


def for_run(config: ScheduleConfig, *, global_batch: int, count: int, total_steps: int) -> ScheduleConfig:
    """Return the schedule of a run with this global batch, `count` records an epoch and `total_steps` steps."""
    warmup = math.ceil(config.warmup_epochs * count / global_batch)
    return replace(config, global_batch=global_batch, total_steps=total_steps, warmup_steps=warmup)


def peak_rate(config: ScheduleConfig) -> float:
    """Return the rate scaled to the run's global batch (linear: Goyal et al. 2017, section 2.1; sqrt: Krizhevsky 2014)."""
    ratio = (config.global_batch or config.batch) / config.batch
    return config.rate * {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[config.scaling]


def learning_rate(step: int, config: ScheduleConfig) -> float:
    """Return the learning rate of optimizer step `step`, counted from 1.

    exponential: rate × factor^⌊step / interval⌋, changed every step as in the predecessor's training script, the step counted
    in batches of `config.batch` images. cosine: rate × (1 + cos(π (step − 1) / total_steps)) / 2 (Loshchilov & Hutter 2016,
    equation 5, without restarts). In the warm-up both are multiplied by step / (warmup_steps + 1).
    """
    rate = peak_rate(config)
    if config.kind == "exponential":
        rate *= config.factor ** (step * (config.global_batch or config.batch) // (config.batch * config.interval))
    else:
        rate *= (1 + math.cos(math.pi * min((step - 1) / max(config.total_steps, 1), 1.0))) / 2
    return rate * min(1.0, step / (config.warmup_steps + 1))
