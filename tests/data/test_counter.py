"""The counter hash: fixed for ever, even, and blind to nothing that it is given."""

import numpy as np
import pytest

from fastirv2.data import counter


def test_mix_is_splitmix64():
    """The first outputs of the published generator with seed 0, whose state counts up by the golden ratio."""
    states = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(x) for x in counter.mix(states).tolist()] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_hashes_and_permutation_never_change():
    """A run resumed with a later release must see the same order: these values are frozen."""
    assert counter.permutation(0, 1, 10).tolist() == [8, 6, 9, 0, 7, 3, 5, 2, 4, 1]
    assert int(counter.hashes(1, 2, 3)) == 0xB6DF6EE39F99F485


def test_numbers_of_every_kind_never_change():
    """A run resumed with a later release must draw the same crops: these values are frozen too."""
    bits = counter.hashes(7, np.arange(3))
    assert counter.uniform(bits).tolist() == [0.5243459416779314, 0.959969076023546, 0.47402332121653323]
    assert counter.integers(bits, 1000).tolist() == [524, 959, 474]
    assert counter.normal(bits).round(12).tolist() == [0.407619209685, -1.847505626056, -1.067055246774]


def test_hashes_differ_in_every_argument():
    values = {int(counter.hashes(*key)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0), (0, 0, 0, 0)]}
    assert len(values) == 6


def test_hashes_broadcast():
    table = counter.hashes(5, np.arange(3)[:, None], np.arange(4)[None])
    assert table.shape == (3, 4)
    assert table[2, 3] == counter.hashes(5, 2, 3)
    assert len(np.unique(table)) == 12


def test_uniform_and_integers_are_even():
    bits = counter.hashes(3, np.arange(100_000))
    share = np.histogram(counter.uniform(bits), 10, (0, 1))[0] / 1e5
    assert share == pytest.approx(np.full(10, 0.1), abs=0.005)
    counts = np.bincount(counter.integers(bits, 30), minlength=30)
    assert len(counts) == 30
    assert counts / 1e5 == pytest.approx(np.full(30, 1 / 30), abs=0.003)


def test_permutation_holds_every_number_once_and_differs_by_seed_and_stream():
    orders = [counter.permutation(seed, stream, 1000) for seed, stream in [(0, 0), (0, 1), (1, 0)]]
    assert all(np.array_equal(np.sort(order), np.arange(1000)) for order in orders)
    ranks = np.corrcoef(orders) - np.eye(3)
    assert np.abs(ranks).max() < 0.1
