"""A run that was stopped, in whatever way, ends as one that was not."""

import csv
import shutil
import signal
import time

import pytest
import torch

from tests.train.conftest import assert_done, latest, learned, metrics


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, lmdb_folder):
    """A whole run, with a checkpoint at every step."""
    from tests.train.conftest import RECIPE, Trainer

    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "small.toml").write_text(RECIPE)
    done = Trainer(folder / "small.toml", lmdb_folder)(folder / "run")
    assert_done(done)
    return folder / "run", done.stdout


def assert_same_end(run, undisturbed):
    assert learned(run) == learned(undisturbed)
    ours, theirs = latest(run), latest(undisturbed)
    assert ours["step"] == theirs["step"]
    for name, value in theirs["model"].items():
        assert torch.equal(ours["model"][name], value), name
    for number, state in theirs["optimizer"]["state"].items():
        assert torch.equal(ours["optimizer"]["state"][number]["momentum_buffer"], state["momentum_buffer"])


def wait_for_line(run, text, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = run / "metrics.jsonl"
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.02)
    pytest.fail(f"no {text} within 120 s: {process.communicate()}")


def test_what_a_run_leaves(undisturbed):
    run, said = undisturbed
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    best = min(metrics(run, "val"), key=lambda line: line["top1_error"])
    assert kept == {"latest.pt", "best.pt", f"step-{best['step']:08}.pt", "step-00000006.pt", "step-00000009.pt"}
    with (run / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["val_top1_error"]) == pytest.approx(metrics(run, "val")[2]["top1_error"], rel=1e-5)
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "epoch 3/3  step 9/9  loss" in said
    assert f"curves in {run / 'curves.png'}" in said
    line = metrics(run, "train")[0]
    assert {"step", "epoch", "loss", "top1_error", "top5_error", "lr", "images_per_second", "memory_bytes", "time"} <= set(line)
    assert 0 <= line["data_wait_share"] <= 1
    assert line["top1_error"] == pytest.approx(100 - 100 * round(line["images"] * (100 - line["top1_error"]) / 100) / 8)


def test_tensorboard_shows_the_lines(undisturbed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = undisturbed
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    shown = {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in board.Tags()["scalars"]}
    assert shown["top1_error/val"] == [(line["step"], pytest.approx(line["top1_error"])) for line in metrics(run, "val")]
    assert shown["loss/train"] == [(line["step"], pytest.approx(line["loss"])) for line in metrics(run, "train")]


def test_given_again_it_says_that_it_is_done(undisturbed, trainer, tmp_path):
    run = shutil.copytree(undisturbed[0], tmp_path / "run", symlinks=True)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.pt")}
    again = trainer(run)
    assert_done(again)
    assert f"{run} is done: 3 epochs, best top-1 error" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.pt")} == before


def test_stopped_after_a_step_it_goes_on_to_the_same_bits(undisturbed, trainer, tmp_path):
    run = tmp_path / "run"
    for stop in ("2", "5"):
        assert_done(trainer(run, "--train.stop-after", stop))
    assert_done(trainer(run))
    assert_same_end(run, undisturbed[0])


def test_killed_it_goes_on_from_its_last_checkpoint_to_the_same_bits(undisturbed, trainer, tmp_path):
    run = tmp_path / "run"
    for step in (4, 7):
        process = trainer.start(run, "--checkpoint.steps", "3", "--log.every", "1")
        wait_for_line(run, f'"step": {step},', process)
        process.kill()
        process.communicate()
    assert_done(trainer(run))
    assert_same_end(run, undisturbed[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_it_saves_says_so_and_goes_on(undisturbed, trainer, tmp_path, number):
    run = tmp_path / "run"
    process = trainer.start(run)
    wait_for_line(run, '"step": 2,', process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    step = latest(run)["step"]
    stopped = f"stopped by {signal.Signals(number).name} after step {step}"
    assert said.strip() == f"fastirv2.train: {stopped}; the state is saved and the same command goes on"
    assert_done(trainer(run))
    assert_same_end(run, undisturbed[0])


def test_a_cut_checkpoint_is_passed_over_for_the_one_before(undisturbed, trainer, tmp_path):
    run = shutil.copytree(undisturbed[0], tmp_path / "run", symlinks=True)
    last = run / "checkpoints/step-00000009.pt"
    last.write_bytes(last.read_bytes()[:1000])
    done = trainer(run)
    assert_done(done)
    assert f"warning: checkpoint {last} cannot be read" in done.stderr
    assert "the one before it is used" in done.stderr
    assert "going on after step 6" in done.stdout
    assert_same_end(run, undisturbed[0])


def test_other_settings_are_refused_with_the_differences(undisturbed, trainer, tmp_path):
    run = shutil.copytree(undisturbed[0], tmp_path / "run", symlinks=True)
    before = (run / "config.toml").read_text()
    refused = trainer(run, "--schedule.rate", "0.02", "--model.dropout", "0.5")
    assert_done(refused, 2)
    assert "model.dropout: 0.2 → 0.5" in refused.stderr
    assert "schedule.rate: 0.01 → 0.02" in refused.stderr
    assert (run / "config.toml").read_text() == before


def test_what_changes_no_result_may_change(undisturbed, trainer, tmp_path):
    run = shutil.copytree(undisturbed[0], tmp_path / "run", symlinks=True)
    moved = shutil.copytree(trainer.data, tmp_path / "moved")
    assert_done(trainer(run, "--log.every", "5", "--input.threads", "2", "--checkpoint.keep", "1", train=moved))


def test_fresh_moves_the_old_run_aside_and_deletes_nothing(undisturbed, trainer, tmp_path):
    run = shutil.copytree(undisturbed[0], tmp_path / "run", symlinks=True)
    (tmp_path / "run.1").mkdir()
    assert_done(trainer(run, "--fresh", "--train.stop-after", "1"))
    assert learned(tmp_path / "run.2") == learned(undisturbed[0])
    assert latest(run)["step"] == 1
