"""A record that does not decode ends the run with its state saved, or is skipped, on one rank and on several."""

import os
import shutil

import pytest

from tests.train.conftest import assert_done, latest, metrics, wait_for_line


def spoil(path):
    """Leave nothing of an image but its header."""
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\xff\xda")])
    return path


@pytest.fixture
def spoilt(images, tmp_path):
    """Images of which one cannot be decoded, and its path."""
    copy = shutil.copytree(images, tmp_path / "images")
    return copy, spoil(copy / "cat/05.jpg")


def test_it_stops_with_the_state_saved_and_goes_on_without_the_record(light, spoilt, tmp_path):
    data, bad = spoilt
    run = tmp_path / "run"
    stopped = light(run, train=data, ranks=2, launched=True)
    assert f"fastirv2.train: {bad} cannot be decoded (" in stopped.stderr
    assert stopped.stderr.count("cannot be decoded") == 1
    assert "--data.on-bad skip" in stopped.stderr
    step = latest(run)["step"]
    assert 0 < step < 9

    done = light(run, "--data.on-bad", "skip", train=data, ranks=2)
    assert_done(done)
    assert f"going on after step {step}" in done.stdout
    assert [line["step"] for line in metrics(run, "train")] == list(range(1, 10))
    (told,) = metrics(run, "bad")
    assert told["record"].startswith(f"{bad} cannot be decoded (")
    assert done.stderr.count("cannot be decoded") == 1
    assert "it is left out" in done.stderr


def test_in_validation_it_stops_too_and_the_epoch_is_validated_when_it_goes_on(light, spoilt, tmp_path):
    run = tmp_path / "run"
    assert_done(light(run, val=spoilt[0]), 65)
    assert latest(run)["step"] in (3, 4)
    assert_done(light(run, "--data.on-bad", "skip", val=spoilt[0]))
    assert [(line["epoch"], line["images"]) for line in metrics(run, "val")] == [(1, 22), (2, 22), (3, 22)]


def test_the_last_record_of_a_validation_by_two_ranks_is_skipped_and_named_though_nothing_comes_after(light, images, tmp_path):
    data = shutil.copytree(images, tmp_path / "images")
    bad = max(data.rglob("*.jpg"))
    bad.write_bytes(b"no image")  # nor a header
    run = tmp_path / "run"
    assert_done(light(run, "--data.on-bad", "skip", "--train.epochs", "1", val=data, ranks=2))
    assert [line["record"] for line in metrics(run, "bad")] == [f"{bad} cannot be decoded (it is no image)"]
    assert [line["images"] for line in metrics(run, "val")] == [22]


def test_in_the_last_step_it_is_not_lost(light, spoilt, tmp_path):
    run = tmp_path / "run"
    assert_done(light(run, "--train.global-batch", "23", "--train.bn-batch", "23", "--train.epochs", "1", train=spoilt[0]), 65)
    assert latest(run)["step"] == 1


def test_more_than_a_thousandth_is_not_skipped(light, spoilt, tmp_path):
    data, _ = spoilt
    for name in ("cat/01.jpg", "dog/02.jpg"):
        spoil(data / name)
    ended = light(tmp_path / "run", "--data.on-bad", "skip", train=data)
    assert_done(ended, 65)
    assert "records cannot be decoded, more than 0.1 % of an epoch" in ended.stderr
    assert latest(tmp_path / "run")["step"] > 0


def test_an_lmdb_that_is_cut_under_a_running_job_ends_it_with_a_sentence(light, lmdb_folder, tmp_path):
    data = shutil.copytree(lmdb_folder, tmp_path / "lmdb")
    run = tmp_path / "run"
    process = light.start(run, "--train", str(data), "--train.epochs", "200", "--checkpoint.steps", "1")
    wait_for_line(run, '"step": 2,', process)
    os.truncate(data / "data.mdb", 4096)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said.count("\n")) == (65, 1), said
    assert f"{data}/data.mdb was cut or overwritten while it was being read" in said
    assert latest(run)["step"] >= 1
