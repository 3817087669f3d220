"""Lets a step count only if its gradient is finite: decided and carried out on the device, while the host goes on."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fastirv2.models.norm import flat_statistics

_FIRST_SCALE, _LARGEST_SCALE, _GROWTH_STEPS = 2.0**16, 2.0**32, 2000  # torch.amp.GradScaler's, but for the bound
_LATE = 2  # steps after which a device's answer is read: it has long been there


class Gate:
    """What stands between a gradient and the network's state.

    A step whose gradient has a number that is not finite, on any rank, leaves weights, the optimizer's state, running
    statistics and counts as they were, in every precision. In fp16 losses are multiplied by a scale that halves with each
    such step and doubles after 2,000 others (Micikevicius et al. 2018, section 3.2). A gradient longer than `clip` is
    shortened to it (Pascanu et al. 2013, algorithm 1; 0: never). Running statistics move once a step, by the mean of what
    its `passes` have: as they would in one pass over all the images, each part of which is normalised on its own.
    """

    def __init__(self, model: nn.Module, *, clip: float, scaled: bool, passes: int = 1) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        device = self._parameters[0].device
        self.statistics = flat_statistics(model)
        self._statistics_before = self.statistics.clone()
        self._statistics_mean = torch.zeros_like(self.statistics)
        self._passes = passes
        self._clip = clip
        self.scale = torch.tensor(_FIRST_SCALE, device=device) if scaled else None
        self._good = torch.zeros((), dtype=torch.int64, device=device)  # steps in a row
        self._bad = torch.zeros((), dtype=torch.int64, device=device)  # steps in a row
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._own = torch.zeros((), dtype=torch.int64, device=device)
        self._late: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque(maxlen=_LATE + 1)

    def open(self) -> None:
        """Note what a step may change before its gradient is known."""
        self._statistics_before.copy_(self.statistics)
        if self._passes > 1:
            self._statistics_mean.zero_()

    def close_pass(self, *, last: bool) -> None:
        """Take in how a pass moved the running statistics; the next one moves them from where the step began."""
        if self._passes > 1:
            self._statistics_mean.add_(self.statistics, alpha=1 / self._passes)
            self.statistics.copy_(self._statistics_mean if last else self._statistics_before)

    @contextlib.contextmanager
    def statistics_kept(self) -> Iterator[None]:
        """Have running statistics after the context as they were before: a forward pass that is done again moves them again."""
        kept = self.statistics.clone()
        yield
        self.statistics.copy_(kept)

    def watch(self, losses: torch.Tensor, step: int | torch.Tensor) -> None:
        """Note whether this rank's own losses (B,) are finite, before any gradient is averaged over the ranks."""
        self._own.copy_(torch.where(losses.isfinite().all(), self._own, step))

    def pass_through(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Take the optimizer's step, or none; return, as float32 () on the device, 1 where it was none.

        The optimizer reads `grad_scale` and `found_inf`, as torch's fused ones do for torch.amp.GradScaler.
        """
        norm = torch.linalg.vector_norm(norms([p.grad for p in self._parameters if p.grad is not None]))
        bad = ~norm.isfinite()
        optimizer.found_inf = found_inf = bad.float()
        optimizer.grad_scale = self._divisor(norm)
        optimizer.step()
        self.statistics.copy_(torch.where(bad, self._statistics_before, self.statistics))
        self._bad.add_(1).mul_(bad)
        self._skipped.add_(bad)
        if self.scale is not None:
            self._good.add_(1).mul_(~bad)
            grown = torch.where(self._good % _GROWTH_STEPS == 0, self.scale * 2, self.scale).clamp_(max=_LARGEST_SCALE)
            self.scale.copy_(torch.where(bad, self.scale / 2, grown))
        return found_inf

    def _divisor(self, norm: torch.Tensor) -> torch.Tensor | None:
        """Return what gradients are to be divided by: the scale of the losses, and what clipping asks for."""
        if not self._clip:
            return self.scale
        scale = norm.new_ones(()) if self.scale is None else self.scale.to(norm.dtype)
        return torch.maximum(norm / self._clip, scale).float()

    def send(self) -> None:
        """Have the count of bad steps in a row brought to the host, which does not wait; to be called after each step."""
        if self._bad.is_cuda:
            there = torch.empty((), dtype=torch.int64, pin_memory=True)
            there.copy_(self._bad, non_blocking=True)
            event = torch.cuda.Event(blocking=True)  # a host that spins takes a CPU from those who decode
            event.record()
            self._late.append((there, event))
        else:
            self._late.append((self._bad.clone(), None))

    def bad_in_a_row(self) -> int:
        """Return how many steps in a row did not count, as of two steps ago, the same on all ranks."""
        if len(self._late) <= _LATE:
            return 0
        count, event = self._late.popleft()
        if event:
            event.synchronize()
        return int(count)

    def own_bad_step(self) -> int:
        """Return the last step in which this rank's own loss was not finite, 0 when there was none; waits for the device."""
        return int(self._own)

    def take_skipped(self) -> int:
        """Return how many steps did not count since the last call; waits for the device."""
        count = int(self._skipped)
        self._skipped.zero_()
        return count

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"scale": self.scale, "good": self._good, "skipped": self._skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint holds; a run may go on in another precision, then the scale begins anew."""
        self._good.copy_(state["good"])
        self._skipped.copy_(state["skipped"])
        if self.scale is not None and state["scale"] is not None:
            self.scale.copy_(state["scale"])


def norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the 2-norms (n,) of tensors of one dtype and device, for which torch.nn.utils.get_total_norm would look first."""
    return torch.stack(torch._foreach_norm(tensors))


def all_finite(tensors: Sequence[torch.Tensor]) -> bool:
    """Say whether every number is; the host waits for the answer."""
    return bool(norms(tensors).isfinite().all())
