"""Errors with the interval that their number of images leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_Z = 1.959963984540054  # the normal distribution's quantile for a two-sided 95 %


def wilson(wrong: int, images: int) -> tuple[float, float]:
    """Return the 95 % interval of an error in percent (Wilson 1927; Brown, Cai, DasGupta 2001, equation 4)."""
    share, room = wrong / images, _Z**2 / images
    centre = (share + room / 2) / (1 + room)
    half = math.sqrt(share * (1 - share) * room + room**2 / 4) / (1 + room)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


@dataclass(frozen=True)
class Score:
    """How many of the images were right at once and within the first five, and their mean loss."""

    images: int
    top1_correct: int
    top5_correct: int
    loss: float

    def table(self) -> dict[str, Any]:
        """Return counts, errors and intervals as plain values."""
        values: dict[str, Any] = {"images": self.images, "top1_correct": self.top1_correct, "top5_correct": self.top5_correct}
        for name, correct in (("top1", self.top1_correct), ("top5", self.top5_correct)):
            wrong = self.images - correct
            values |= {f"{name}_error": 100 * wrong / self.images, f"{name}_interval": list(wilson(wrong, self.images))}
        return {**values, "loss": self.loss if math.isfinite(self.loss) else None}  # JSON has no other numbers

    def lines(self) -> list[str]:
        """Return it as lines for people."""
        lines = []
        for name, correct in (("top-1", self.top1_correct), ("top-5", self.top5_correct)):
            wrong = self.images - correct
            low, high = wilson(wrong, self.images)
            error = f"{name} error {100 * wrong / self.images:.3f} %"
            lines.append(f"{error}, 95 % interval {low:.2f} to {high:.2f} %: {wrong:,} of {self.images:,} images")
        return [*lines, f"loss {self.loss:.4f}"]
