"""What a run reports, on its first rank and on the others."""

import json
import math

import tomli_w

from fastirv2.report.console import Console
from fastirv2.report.metrics import Metrics, epochs
from fastirv2.report.reporter import Reporter
from tests.report.test_final import TABLE

VAL = {"kind": "val", "step": 20, "epoch": 2, "images": 50000, "loss": 2.0, "top5_error": 50.0, "weights": "raw", "time": 9.0}


def report(folder, error, *, first=True):
    reporter = Reporter(folder, TABLE, Console(first=first), first=first)
    reporter.begin(0, ranks=8, device="CPU")
    reporter.bad("photo.jpg cannot be decoded", 7)
    reporter.epoch([VAL | {"top1_error": error}], best=True)
    reporter.close()


def test_an_epoch_above_the_band_is_warned_of_once(tmp_path, capsys):
    report(tmp_path, 90.0)
    said = capsys.readouterr()
    assert "epoch 2/0  error 90.000 / 50.000 % on 50,000 images, loss 2.0000, the best so far" in said.out
    assert said.err.splitlines() == [
        "warning: photo.jpg cannot be decoded; it is left out",
        "warning: after epoch 2 the top-1 error, 90.00 %, is 21.8 points above that of lim0606_setting1, 68.20 %: "
        "more than the recipe's band of 5; curves.png has both",
    ]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("begin", 0), ("bad", 7), ("val", 20)]


def test_within_the_band_nothing_is_warned_of(tmp_path, capsys):
    report(tmp_path, 70.0)
    assert "points above" not in capsys.readouterr().err


def test_the_picture_is_drawn_at_first_at_last_and_between_as_often_as_there_is_time(tmp_path, monkeypatch):
    monkeypatch.setattr("fastirv2.report.reporter.REPORT_SHARE", 1e9)
    (tmp_path / "config.toml").write_text(tomli_w.dumps(TABLE))
    reporter = Reporter(tmp_path, TABLE, Console(first=True), first=True)
    reporter.begin(0, ranks=8, device="CPU")

    def drawn(epoch, *, last=False):
        """Say whether the picture is drawn after another epoch, whose report always is written."""
        (tmp_path / "curves.png").unlink(missing_ok=True)
        reporter.epoch([VAL | {"top1_error": 70.0, "epoch": epoch, "step": 10 * epoch}], best=True)
        reporter.draw(last=last)
        assert f"after epoch {epoch} of" in (tmp_path / "report.md").read_text()
        assert len((tmp_path / "summary.csv").read_text().splitlines()) == 1 + epoch
        return (tmp_path / "curves.png").exists()

    assert [drawn(1), drawn(2), drawn(3)] == [True, False, False]  # a hundred times what it took has not gone by
    reporter.draw(last=True)
    assert (tmp_path / "curves.png").exists()
    (tmp_path / "curves.png").unlink()
    reporter.draw(last=True)
    assert not (tmp_path / "curves.png").exists()  # it had all epochs
    assert [drawn(4), drawn(5, last=True)] == [False, True]
    monkeypatch.setattr("fastirv2.report.reporter.PICTURE_SHARE", 1e9)
    assert [drawn(6, last=True), drawn(7)] == [True, True]


def test_the_report_waits_for_its_time_too(tmp_path, monkeypatch):
    (tmp_path / "config.toml").write_text(tomli_w.dumps(TABLE))
    monkeypatch.setattr("fastirv2.report.reporter.REPORT_SHARE", 1e-9)
    reporter = Reporter(tmp_path, TABLE, Console(first=True), first=True)
    reporter.begin(0, ranks=8, device="CPU")
    written = []
    for epoch in range(1, 5):
        reporter.epoch([VAL | {"top1_error": 70.0, "epoch": epoch, "step": 10 * epoch}], best=True)
        reporter.draw(last=epoch == 4)
        written.append(len((tmp_path / "summary.csv").read_text().splitlines()) - 1)
    assert written == [1, 2, 2, 4]  # with the picture, by itself, not again, at last


def test_an_epoch_is_averaged_over_all_its_steps_before_and_after_a_restart(tmp_path, monkeypatch):
    shown, rates = [], {"lr": 0.1, "images_per_second": 10.0}
    monkeypatch.setattr(Console, "epoch", lambda self, row, *_, **__: shown.append(row))
    for begun, steps in ((0, (5, 10, 20)), (20, (25,)), (25, (40, 45))):
        reporter = Reporter(tmp_path, TABLE, Console(first=True), first=True)
        reporter.begin(begun, ranks=1, device="CPU")
        for step in steps:
            loss = math.nan if step == 5 else float(step)
            reporter.write({"kind": "train", "step": step, "images": 100, "loss": loss, "top1_error": 90.0, **rates})
            if step in (10, 40):
                averaged = VAL | {"step": step, "top1_error": 60.0, "loss": math.inf, "weights": "ema"}
                reporter.epoch([VAL | {"step": step, "top1_error": 70.0}, averaged], best=True)
        reporter.close()
    assert [(row["train_loss"], row["train_seconds"]) for row in shown] == [(10.0, 20.0), (85 / 3, 30.0)]
    assert [row["ema_loss"] for row in shown] == [None, None]
    assert shown == epochs(Metrics(tmp_path).lines())


def test_other_ranks_write_nothing_and_say_nothing(tmp_path, capsys):
    report(tmp_path, 90.0, first=False)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")
