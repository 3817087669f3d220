"""What a run reports, on its first rank and on the others."""

import json

from fastirv2.report.console import Console
from fastirv2.report.reporter import Reporter

TABLE = {"reference": "lim0606_setting1", "band": 5.0, "model": {"classes": 1000}}
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
        "warning: photo.jpg cannot be decoded; another record of its batch takes its place",
        "warning: after epoch 2 the top-1 error, 90.00 %, is 21.8 points above that of lim0606_setting1, 68.20 %: "
        "more than the recipe's band of 5; curves.png has both",
    ]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("begin", 0), ("bad", 7), ("val", 20)]


def test_within_the_band_nothing_is_warned_of(tmp_path, capsys):
    report(tmp_path, 70.0)
    assert "points above" not in capsys.readouterr().err


def test_other_ranks_write_nothing_and_say_nothing(tmp_path, capsys):
    report(tmp_path, 90.0, first=False)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")
