"""Dropout whose mask is a function of what each sample is, and not of the device or rank that has it."""

from __future__ import annotations

import torch
from torch import nn

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number: torch has no unsigned arithmetic, but the same bits
_INVERSE = -0xE217C1E66C88CC3  # 0xF1DE83E19937733D, by which _GOLDEN gives 1 in 64 bits
_MIX1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_DRAWS = 1 << 24


class Dropout(nn.Dropout):
    """Dropout of features (N, C); with `keys`, an int64 hash a sample (N,), each sample's mask is a function of its own.

    Feature c of a sample with key k is kept where the upper 24 bits of splitmix64's output function (Steele, Lea, Flood
    2014, figure 16) of k + (c + 1) · 0x9E3779B97F4A7C15, as a fraction, are `p` or more. Without keys, torch draws.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)
        self.keys: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop features of `x` in training and scale what is kept by 1 / (1 − p)."""
        if self.keys is None or not self.training or not self.p:
            return super().forward(x)
        # k + c · _GOLDEN, in this form: torch's compiler takes arange times a number for an index, of 32 bits on a GPU
        places = self.keys[:, None] * _INVERSE + torch.arange(1, x.shape[1] + 1, device=x.device)
        draws = _upper_24_bits(places * _GOLDEN)
        return torch.where(draws < round(self.p * _DRAWS), 0, x / (1 - self.p))


def sample_keys(base: int, start: int, count: int, device: torch.device) -> torch.Tensor:
    """Return the keys, int64 (count,), of the samples at places start … start + count − 1 of a batch; `base` is its hash."""
    places = torch.arange(start, start + count, device=device)
    return _mixed(places * _GOLDEN + (base - (1 << 64) if base >= 1 << 63 else base))


def _upper_24_bits(x: torch.Tensor) -> torch.Tensor:
    return _shifted(_mixed(x), 40)


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """Return splitmix64's output function of 64 bits each."""
    x = (x ^ _shifted(x, 30)) * _MIX1
    x = (x ^ _shifted(x, 27)) * _MIX2
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return 64 bits each, shifted to the right, zeros coming in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
