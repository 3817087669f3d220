"""Random numbers that are a function of what they are for: a counter hash whose arithmetic no library release changes."""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def mix(x: np.ndarray) -> np.ndarray:
    """Return splitmix64's output function of each uint64 of `x` (Steele, Lea, Flood 2014, figure 16), any shape."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * _MIX1
        x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


def hashes(seed: int, *counters: np.ndarray | int) -> np.ndarray:
    """Hash the seed and the counters, one after the other, into uint64; counters (int64 or uint64) broadcast together."""
    state = mix(np.asarray(seed & 0xFFFF_FFFF_FFFF_FFFF, dtype=np.uint64))
    for counter in counters:
        with np.errstate(over="ignore"):
            state = mix((state ^ np.asarray(counter).astype(np.uint64)) + _GOLDEN)
    return state


def uniform(bits: np.ndarray) -> np.ndarray:
    """Map uint64 hashes to float64 in [0, 1), with 53 random bits each."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(bits: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """Map uint64 hashes to int64 in [0, bound), for bounds (one, or one each) far below 2^32 (bias < bound / 2^32)."""
    return ((bits >> np.uint64(32)) * np.asarray(bound).astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def normal(bits: np.ndarray) -> np.ndarray:
    """Map uint64 hashes to float64 of the standard normal distribution, with a second hash of each (Box, Muller 1958)."""
    radius = np.sqrt(-2 * np.log1p(-uniform(bits)))
    return radius * np.cos(2 * np.pi * uniform(mix(bits)))


def permutation(seed: int, stream: int, count: int) -> np.ndarray:
    """Return a permutation of 0 … count−1 (int64): the argsort of the hash of (seed, stream, i)."""
    return np.argsort(hashes(seed, stream, np.arange(count, dtype=np.uint64)), kind="stable")
