"""The files that a run writes about itself."""

import csv
import json

import pytest

from fastirv2.errors import DataError, UsageError
from fastirv2.report.metrics import COLUMNS, LogConfig, Metrics, epochs, rates, read_metrics, used, write_summary


def train(step, epoch, images, loss, error, speed=100.0, wait=0.1):
    return {
        "kind": "train", "step": step, "epoch": epoch, "images": images, "loss": loss, "top1_error": error,
        "top5_error": error / 2, "lr": 0.1 / step, "images_per_second": speed, "data_wait_share": wait,
    }  # fmt: skip


def val(step, epoch, error):
    return {"kind": "val", "step": step, "epoch": epoch, "loss": 1.5, "top1_error": error, "top5_error": error / 4}


FIRST = [train(10, 1, 300, 2.0, 90), train(20, 1, 100, 1.0, 50, 50.0, 0.4), val(20, 1, 60)]
LINES = [*FIRST, train(30, 2, 400, 0.5, 30), val(30, 2, 40)]


@pytest.fixture
def run(tmp_path):
    for line in LINES:
        Metrics(tmp_path).add(line)
    return tmp_path


def test_errors_are_percent_of_the_images():
    assert rates([50.0, 30, 90, 100]) == {"loss": 0.5, "top1_error": 70.0, "top5_error": pytest.approx(10.0)}


def test_an_epochs_row_averages_over_its_images_and_its_time():
    first, second = epochs(LINES)
    assert first["train_loss"] == pytest.approx((300 * 2.0 + 100 * 1.0) / 400)
    assert first["train_top1_error"] == pytest.approx((300 * 90 + 100 * 50) / 400)
    assert first["images_per_second"] == pytest.approx(400 / (3 + 2))
    assert first["data_wait_share"] == pytest.approx((3 * 0.1 + 2 * 0.4) / 5)
    assert (first["train_seconds"], first["val_seconds"], first["flop_utilisation"]) == (pytest.approx(5), None, None)
    assert (first["val_top1_error"], first["step"], second["epoch"]) == (60, 20, 2)
    assert second["lr"] == pytest.approx(0.1 / 30)


def test_a_row_has_the_validation_of_the_averaged_weights_too():
    averaged = {**val(20, 1, 48), "weights": "ema", "seconds": 7.0}
    first, second = epochs([*FIRST, averaged, *LINES[3:]])
    assert (first["val_top1_error"], first["ema_top1_error"], first["val_seconds"]) == (60, 48, 7)
    assert [used(row, "top1_error") for row in (first, second)] == [48, 40]
    assert second["train_loss"] == 0.5


def test_lines_of_other_kinds_and_steps_that_did_not_count_disturb_nothing():
    others = [{"kind": kind, "step": step, "time": 0.0} for kind, step in (("begin", 0), ("bad", 20), ("diverged", 20))]
    nothing = train(15, 1, 64, None, 0) | {"top1_error": None, "top5_error": None, "images_per_second": 64e9}
    ours, theirs = epochs([*others, LINES[0], nothing, *LINES[1:]]), epochs(LINES)
    assert ours[0]["train_loss"] == theirs[0]["train_loss"]
    assert ours[1] == theirs[1]


def test_summary_has_a_row_an_epoch(run):
    write_summary(run, epochs(LINES))
    with (run / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["val_top1_error"] for row in rows] == ["60", "40"]
    assert sorted(path.name for path in run.iterdir()) == ["metrics.jsonl", "summary.csv"]


def test_a_loss_that_is_no_number_is_null_since_json_has_no_nan(tmp_path):
    Metrics(tmp_path).add({**val(1, 1, 50), "loss": float("nan")})
    assert '"loss": null' in (tmp_path / "metrics.jsonl").read_text()
    assert epochs(read_metrics(tmp_path / "metrics.jsonl"))[0]["val_loss"] is None


def test_cutting_drops_what_came_after_a_step(run):
    Metrics(run).cut(20, pending=False)
    assert read_metrics(run / "metrics.jsonl") == FIRST
    Metrics(run).cut(20, pending=True)
    assert read_metrics(run / "metrics.jsonl") == FIRST[:2]


def test_a_line_cut_by_a_kill_is_left_out_and_the_next_is_whole(run):
    path = run / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "train", "st')
    assert read_metrics(path) == LINES
    Metrics(run).cut(30, pending=False)
    Metrics(run).add(val(40, 3, 20))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20, 20, 30, 30, 40]


def test_metrics_that_cannot_be_written_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match="cannot be written: No such file or directory; make room, or mend that"):
        Metrics(tmp_path / "none").add(LINES[0])


def test_lines_come_at_least_every_step():
    with pytest.raises(UsageError, match=r"--log\.every 0"):
        LogConfig(every=0)


def test_lines_that_waited_come_once(tmp_path):
    lines = [{"kind": "bad", "step": step} for step in (1, 2, 3)]
    for line in lines[:2]:
        Metrics(tmp_path).add(line)
    written = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    Metrics(tmp_path).cut(3, pending=False, waiting=[written[1], '{"kind": "bad", "step": 3}\n'])
    assert read_metrics(tmp_path / "metrics.jsonl") == lines
