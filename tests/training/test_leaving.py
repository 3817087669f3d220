"""Ranks leave the process group together: one that fails alone would wait there for all others."""

import contextlib

import pytest

from fastirv2.errors import DataError, StoppedError
from fastirv2.training import distributed


@pytest.mark.parametrize(("error", "leaves"), [(None, 1), (StoppedError(), 1), (DataError(), 0), (ValueError(), 0)])
def test_a_rank_that_fails_alone_stays(monkeypatch, error, leaves):
    left = []
    monkeypatch.setattr(distributed, "leave", lambda: left.append(1))
    with pytest.raises(type(error)) if error else contextlib.nullcontext(), distributed.leaving():
        if error:
            raise error
    assert len(left) == leaves
