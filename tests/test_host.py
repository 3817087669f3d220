"""How many threads a process may have."""

import os

import pytest

from fastirv2 import host


@pytest.fixture
def on(monkeypatch):
    """Say which CPUs this process may use, and what the cgroup grants."""

    def say(mask, quota=float("inf")):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(mask))
        monkeypatch.setattr(host, "_quota", lambda: quota)
        return frozenset(mask)

    return say


def test_ranks_that_may_run_anywhere_divide_all_cpus(on):
    everywhere = on(range(16))
    assert host.cpu_share([everywhere] * 4) == 4
    assert host.cpu_share([everywhere]) == 16
    assert host.cpu_share([everywhere] * 32) == 1


def test_ranks_that_are_bound_use_their_own_cores(on):
    mine = on(range(8, 16))
    assert host.cpu_share([frozenset(range(8)), mine]) == 8
    assert host.cpu_share([frozenset(range(8)), frozenset(range(8)), mine, mine]) == 4


def test_a_quota_is_divided_by_all(on):
    everywhere = on(range(64), quota=6.0)
    assert host.cpu_share([everywhere] * 3) == 2
    assert host.available_cpus() == 6
    on(range(64), quota=0.5)
    assert host.available_cpus() == host.cpu_share([everywhere] * 3) == 1
