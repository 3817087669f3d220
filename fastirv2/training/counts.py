"""What is counted of the images that pass through the network, on the device until it is asked for."""

from __future__ import annotations

import torch

from fastirv2.training.distributed import sum_over_ranks

_TOP = 5


class Counts:
    """Sums over images: loss, top-1 and top-5 correct, images; float64 (4,) on the device, so counts stay exact integers."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, logits: torch.Tensor, labels: torch.Tensor, losses: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Add a batch: logits (B, C), labels int64 (B,), losses (B,); `mask` bool (B,) leaves padding out.

        A sample is right within the first k when fewer than k other classes are not below its own; ties and NaN are errors.
        """
        own = logits.gather(1, labels[:, None])
        others = (~(logits < own)).sum(1) - 1
        if logits.shape[1] <= _TOP:  # among so few, NaN would be too
            others = others.masked_fill(own[:, 0].isnan(), _TOP)
        rows = torch.stack([losses.double(), others < 1, others < _TOP, torch.ones_like(labels)]).double()
        self.sums += (rows if mask is None else torch.where(mask, rows, 0)).sum(1)

    def add_sums(self, sums: torch.Tensor) -> None:
        """Add sums that `take` returned."""
        self.sums += sums.to(self.sums.device)

    def take(self) -> torch.Tensor:
        """Return the sums over all ranks, float64 (4,) on the CPU, and begin again at zero. Every rank calls this."""
        total = sum_over_ranks(self.sums.clone()).cpu()  # a CPU–GPU sync point
        self.sums.zero_()
        return total
