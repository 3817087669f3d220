"""What a rehearsal makes of what it has measured: with stand-ins for clocks, since its numbers are times."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastirv2.errors import DataError
from fastirv2.training import rehearsal
from fastirv2.training.plan import Plan

PLAN = Plan(global_batch=8, world=1, batch=8, accumulation=1, bn_ranks=1, bn_splits=1, count=7200, epochs=10)


def test_the_hours_of_a_run_are_those_of_its_images_by_their_pixels():
    assert rehearsal._hours(PLAN, [(1, 333, 299)], rate=4.0) == pytest.approx(10 * 7200 / 4 / 3600)
    three = [(1, 112, 100), (5, 224, 200), (10, 448, 400)]  # 4 epochs, 5, and the last
    assert rehearsal._hours(PLAN, three, rate=2.0) == pytest.approx(4 / 16 + 5 / 4 + 1)


@pytest.mark.parametrize(
    ("hours", "words"), [(0.5, "30.0 minutes"), (1, "1.0 hours"), (47.9, "47.9 hours"), (48, "2.0 days"), (84, "3.5 days")]
)
def test_a_time_is_said_in_a_unit_that_suits_it(hours, words):
    assert rehearsal._duration(hours) == words


def rehearsed(monkeypatch, place, fault=None):
    """What a rehearsal says. A step takes 4 seconds, of which half is spent on waiting for data; a validation batch 9."""
    clock, waited = [0.0], [0.0]

    def taken(work, _):
        before = clock[0]
        work()
        return clock[0] - before

    def step(*_):
        clock[0], waited[0] = clock[0] + 4, waited[0] + 2

    def validate(*_):
        clock[0] += 9

    def wait_seconds():
        since, waited[0] = waited[0], 0.0
        return since

    monkeypatch.setattr(rehearsal, "seconds_of", taken)
    engine = SimpleNamespace(device=torch.device("cpu"), model=nn.Linear(1, 1), step=step, validate=validate)
    run = SimpleNamespace(
        engine=engine,
        optimizer=SimpleNamespace(state_dict=dict),
        train=SimpleNamespace(wait_seconds=wait_seconds),
        process=SimpleNamespace(world=1, rank=0, first=True),
        plan=PLAN,
        val=None,
        val_steps=40,
        fault=fault,
    )
    return rehearsal.rehearse(run, PLAN, [(1, 333, 299)], place, bytes_per_image=1e5)


def test_a_rehearsal_tells_rates_from_what_its_steps_took(monkeypatch, tmp_path):
    steps, _, reading, _, hours = rehearsed(monkeypatch, tmp_path)
    assert steps == (
        "a pass of 1 × 8 images takes 4 s (the very first 4 s): 2 images/s, 50 % of the time waiting for data; "
        "a validation batch 9 s"
    )
    assert reading == "reading the images as they are stored takes 0.2 MB/s, over all ranks"
    assert hours == "at this speed 10 epochs take 11.0 hours, 10 validations included"  # 10 hours, and 10 times 6 minutes
    assert not list(tmp_path.iterdir())


def test_a_record_that_a_rehearsal_could_not_decode_ends_it(monkeypatch, tmp_path):
    with pytest.raises(DataError, match=r"a\.jpg cannot be decoded"):
        rehearsed(monkeypatch, tmp_path, fault=DataError("a.jpg cannot be decoded"))
