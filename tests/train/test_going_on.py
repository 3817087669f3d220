"""A run that was stopped, in whatever way, ends as one that was not."""

import csv
import dataclasses
import shutil
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from fastirv2.errors import StoppedError
from fastirv2.files import tomllib
from fastirv2.train import stop_for_signal
from tests.train.conftest import (
    assert_done,
    assert_the_same,
    goes_on_from_an_earlier_checkpoint,
    latest,
    learned,
    light_trainer,
    metrics,
    wait_for_line,
)
from tests.train.small_network import SmallNetwork


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, lmdb_folder):
    """A whole run, with a checkpoint at every step."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = light_trainer(folder, lmdb_folder)(folder / "run")
    assert_done(done)
    return folder / "run", done.stdout


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
    assert (run / "report.md").read_text() in said
    assert f"report.md and curves.png are in {run}" in said
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


def test_given_again_it_says_that_it_is_done(undisturbed, light, tmp_path):
    run = shutil.copytree(undisturbed[0], tmp_path / "run", symlinks=True)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.pt")}
    (run / "curves.png").unlink()
    again = light(run)
    assert_done(again)
    assert f"{run} is done: 3 epochs, best top-1 error" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.pt")} == before
    assert (run / "curves.png").exists()


def test_a_run_killed_before_its_first_checkpoint_begins_its_metrics_anew(undisturbed, light, tmp_path):
    run = tmp_path / "run"
    process = light.start(run)
    wait_for_line(run, '"step": 1,', process)
    process.kill()
    process.communicate()
    assert_done(light(run))
    assert_the_same(run, undisturbed[0])


def test_stopped_during_validation_it_saves_and_validates_when_it_goes_on(light, file_list, tmp_path):
    run, many = tmp_path / "run", tmp_path / "many.txt"
    images = file_list.parent
    many.write_text("".join(f"{images}/{line}\n" for line in file_list.read_text().splitlines()) * 20)
    options, val = ("--train.epochs", "1"), {"train": file_list, "val": many}
    process = light.start(run, *options, **val)
    wait_for_line(run, '"step": 3,', process)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert latest(run)["pending"] == 1
    assert metrics(run, "val") == []
    assert_done(light(run, *options, **val))
    assert [(line["epoch"], line["images"]) for line in metrics(run, "val")] == [(1, 460)]
    assert latest(run)["pending"] == 0
    assert (run / "curves.png").exists()


def test_a_second_trainer_on_a_run_is_told_who_holds_it(light, tmp_path):
    run, long = tmp_path / "run", ("--train.epochs", "99")
    process = light.start(run, *long)
    wait_for_line(run, '"step": 1,', process)
    refused = [light(run, *long), light(run, *long, "--fresh")]
    process.kill()
    process.communicate()
    sentence = f"process {process.pid} trains in {run} already; wait for it, end it, or give another --out"
    for each in refused:
        assert_done(each, 65)
        assert each.stderr == f"fastirv2.train: {sentence}\n"
    assert not (tmp_path / "run.1").exists()


def test_a_run_that_diverges_ends_with_70_and_keeps_only_finite_weights(light, tmp_path):
    run = tmp_path / "run"
    options = ("--schedule.rate", "1e12", "--log.every", "3", "--checkpoint.steps", "1", "--train.patience", "3")
    done = light(run, *options)
    assert_done(done, 70)
    assert "training diverged" in done.stderr
    for path in run.rglob("step-*.pt"):
        state = torch.load(path, weights_only=True)
        assert all(value.isfinite().all() for name, value in state["model"].items() if "running" not in name)


def test_its_config_is_a_recipe(undisturbed, light, tmp_path):
    table = tomllib.loads((undisturbed[0] / "config.toml").read_text())
    assert table["data"]["train"] == str(light.data)
    again = dataclasses.replace(light, recipe=undisturbed[0] / "config.toml")
    run = shutil.copytree(undisturbed[0], tmp_path / "run", symlinks=True)
    done = again(run)
    assert_done(done)
    assert "is done" in done.stdout


@pytest.fixture(scope="module")
def one_step(tmp_path_factory, lmdb_folder):
    """A run stopped after its first step, of twice the batch that its recipe is for; it averages its weights."""
    folder = tmp_path_factory.mktemp("one_step")
    options = ("--schedule.batch", "4", "--ema.decay", "0.3", "--train.stop-after", "1")
    command = partial(light_trainer(folder, lmdb_folder), folder / "run", *options)
    first = command()
    assert_done(first)
    return folder / "run", first.stdout, command


def test_stopped_after_a_step_it_says_so_and_has_nothing_more_to_do(one_step):
    run, said, command = one_step
    assert "stopped after step 1, as asked" in said
    again = command()
    assert_done(again)
    assert "stands after step 1: --train.stop-after 1 leaves nothing to do" in again.stdout
    assert latest(run)["step"] == 1


def test_weights_are_averaged_over_as_many_images_as_the_recipe_does(one_step):
    run, said, _ = one_step
    assert "weights averaged with decay 0.09 a step instead of 0.3" in said
    state = latest(run)
    torch.manual_seed(0)
    for name, before in SmallNetwork(2, 0.2).state_dict().items():
        if before.is_floating_point():
            after, average = state["model"][name], state["ema"]["weights"][name]
            torch.testing.assert_close(average, 0.09 * before + 0.91 * after, rtol=1e-5, atol=1e-6, msg=name)


def test_stopped_after_a_step_it_goes_on_to_the_same_bits(undisturbed, light, tmp_path):
    run = tmp_path / "run"
    for stop in ("2", "5"):
        assert_done(light(run, "--train.stop-after", stop))
    assert_done(light(run))
    assert_the_same(run, undisturbed[0])


@pytest.mark.parametrize(
    "options",
    [
        ("--optimizer.kind", "rmsprop", "--optimizer.clip", "0.5", "--ema.decay", "0.9", "--train.amp", "bf16"),
        ("--optimizer.kind", "lamb", "--train.batch", "4", "--train.bn-batch", "4", "--train.recalibrate", "2"),
    ],
    ids=["averaged in bf16", "accumulated"],
)
def test_whatever_it_keeps_goes_on_to_the_same_bits(light, tmp_path, options):
    goes_on_from_an_earlier_checkpoint(light, tmp_path, *options)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_it_saves_says_so_and_goes_on(undisturbed, light, tmp_path, number):
    run = tmp_path / "run"
    process = light.start(run)
    wait_for_line(run, '"step": 2,', process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    step = latest(run)["step"]
    stopped = f"stopped by {signal.Signals(number).name} after step {step}"
    assert said.strip() == f"fastirv2.train: {stopped}; the state is saved and the same command goes on"
    assert_done(light(run))
    assert_the_same(run, undisturbed[0])


def test_stopped_by_a_signal_its_picture_has_all_epochs():
    drawn = []
    run = SimpleNamespace(step=5, reporter=SimpleNamespace(draw=lambda *, last: drawn.append(last)))
    with pytest.raises(StoppedError, match="stopped by SIGTERM after step 5; the state is saved"):
        stop_for_signal(run, signal.SIGTERM)
    assert drawn == [True]


def test_a_picture_that_a_kill_has_left_out_is_drawn_where_the_run_stops_next_or_stands(light, tmp_path):
    run = tmp_path / "run"
    for step in ("3", "4", "4"):
        (run / "curves.png").unlink(missing_ok=True)
        assert_done(light(run, "--train.stop-after", step))
        assert (run / "curves.png").exists()


def test_a_cut_checkpoint_is_passed_over_for_the_one_before(undisturbed, light, tmp_path):
    run = shutil.copytree(undisturbed[0], tmp_path / "run", symlinks=True)
    last = run / "checkpoints/step-00000009.pt"
    last.write_bytes(last.read_bytes()[:1000])
    done = light(run)
    assert_done(done)
    assert f"warning: checkpoint {last} cannot be read" in done.stderr
    assert "it is set aside as step-00000009.broken, and the one before it is used" in done.stderr
    assert "going on after step 6" in done.stdout
    assert_the_same(run, undisturbed[0])


def test_other_settings_are_refused_with_the_differences(undisturbed, light, tmp_path):
    run = shutil.copytree(undisturbed[0], tmp_path / "run", symlinks=True)
    before = (run / "config.toml").read_text()
    refused = light(run, "--schedule.rate", "0.02", "--model.dropout", "0.5")
    assert_done(refused, 2)
    assert "model.dropout: 0.2 → 0.5" in refused.stderr
    assert "schedule.rate: 0.01 → 0.02" in refused.stderr
    assert (run / "config.toml").read_text() == before


def test_what_changes_no_result_may_change(undisturbed, light, tmp_path):
    run = shutil.copytree(undisturbed[0], tmp_path / "run", symlinks=True)
    moved = shutil.copytree(light.data, tmp_path / "moved")
    assert_done(light(run, "--log.every", "5", "--input.threads", "2", "--checkpoint.keep", "1", train=moved))


def test_fresh_moves_the_old_run_aside_once_a_job_and_deletes_nothing(undisturbed, light, tmp_path, monkeypatch):
    run = shutil.copytree(undisturbed[0], tmp_path / "run", symlinks=True)
    (tmp_path / "run.1").mkdir()
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # the first time it was killed before it came so far
    assert_done(light(run, "--fresh", "--train.stop-after", "1"))
    assert learned(tmp_path / "run.2") == learned(undisturbed[0])
    assert latest(run)["step"] == 1
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert "going on after step 1" in light(run, "--fresh", "--train.stop-after", "2").stdout
    assert not (tmp_path / "run.3").exists()


def test_under_nohup_a_lost_terminal_does_not_stop_it(light, tmp_path):
    run = tmp_path / "run"
    line = ["nohup", sys.executable, *light.arguments(run, "--train.epochs", "1")]
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_line(run, '"step": 1,', process)
    process.send_signal(signal.SIGHUP)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "done: best top-1 error" in said
