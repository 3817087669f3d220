"""What a run leaves for its reader: the report and the pictures."""

import json
import re
from datetime import datetime

import pytest

from fastirv2.errors import DataError
from fastirv2.report.curves import Curve, plot
from fastirv2.report.final import draw, report, sittings
from fastirv2.report.metrics import epochs
from fastirv2.report.published import Reference
from tests.report.test_metrics import LINES

TABLE = {
    "recipe": "setting1", "published": "24.407 / 7.407 % after 90 epochs", "reference": "lim0606_setting1", "band": 5.0,
    "model": {"arch": "paper", "classes": 1000}, "train": {"epochs": 3, "global_batch": 64, "amp": "bf16"},
    "input": {"crop": 299, "sizes": []},
}  # fmt: skip
BEGUN = datetime(2026, 3, 3, 18, 5).timestamp()


def train(step, epoch, time, *, seconds, images=6400, **more):
    rate = {"images": images, "images_per_second": images / seconds, "data_wait_share": 0.5 if epoch == 1 else 0.01, "lr": 0.1}
    return (
        {"kind": "train", "step": step, "epoch": epoch, "loss": 2.0, "top1_error": 50, "top5_error": 20, "time": time}
        | rate
        | more
    )


def val(step, epoch, time, error, **more):
    errors = {"loss": 1.0, "top1_error": error, "top5_error": error / 4}
    return {"kind": "val", "step": step, "epoch": epoch, "seconds": 10.0, "time": time, "weights": "raw"} | errors | more


def begin(step, time, ranks, device="NVIDIA H100"):
    return {"kind": "begin", "step": step, "ranks": ranks, "device": device, "time": time}


def week(device="NVIDIA H100", **more):
    """Three epochs in two sittings: 8 ranks for 1,500 seconds, a day of nothing, 4 ranks for 500."""
    later = BEGUN + 86400
    return [
        begin(0, BEGUN, 8, device), train(100, 1, BEGUN + 980, seconds=900, **more), val(100, 1, BEGUN + 990, 60),
        train(200, 2, BEGUN + 1490, seconds=400, **more), val(200, 2, BEGUN + 1500, 40),
        {"kind": "bad", "step": 200, "record": "x", "time": BEGUN + 1500},
        begin(200, later, 4, device), train(300, 3, later + 490, seconds=400, **more), val(300, 3, later + 500, 41),
    ]  # fmt: skip


def rows(text):
    """The cells of each table row, by the first."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {first: rest for first, *rest in found}


def test_errors_stand_beside_those_that_were_published():
    found = rows(report("run", TABLE, week()))
    assert found["last epoch, 3"] == ["41.000", "10.250"]
    assert found["best epoch, 2"] == ["40.000", "10.000"]
    assert found["lim0606_setting1 at epoch 3"] == ["60.400", "33.800"]
    assert found["published for the recipe"] == ["24.407", "7.407"]
    diverged = rows(report("run", TABLE, [*week()[:-1], val(300, 3, BEGUN + 86900, 99.9, loss=None)]))
    assert diverged["last epoch, 3"] == ["99.900", "24.975"]  # though its loss was no number


def test_what_was_published_on_other_data_is_left_out():
    found = report("run", TABLE | {"model": {"arch": "paper", "classes": 16}}, week())
    assert "ublished" not in found
    assert "lim0606_setting1" not in found


def test_the_first_epoch_is_told_apart():
    found = rows(report("run", TABLE, week()))
    assert found["epoch 1 (cold cache)"] == [f"{6400 / 900:.1f}", "50.0", "0:15:00", "0:00:10"]
    assert found["epochs 2 to 3"] == ["16.0", "1.0", "0:13:20", "0:00:20"]
    assert found["all"][0] == f"{19200 / 1700:.1f}"


def test_sittings_add_up_and_the_time_between_them_does_not_count():
    assert [each.seconds for each in sittings(week())] == [1500, 500]
    assert "epoch 2" in rows(report("run", TABLE, week()[:5]))
    found = report("run", TABLE, week())
    assert "Mar 2026 18:05 to" in found
    hours = (8 * 1500 + 4 * 500) / 3600
    assert f": 0:33:20 in 2 sittings, {hours:.2f} GPU-hours (8 × NVIDIA H100, then 4 × NVIDIA H100), of which 85 %" in found
    assert "of which 85 % training and 2 % validation." in found
    assert "CPU-hours (8 × CPU, then 4 × CPU)" in report("run", TABLE, week("CPU"))


def test_the_rate_over_all_the_time_is_compared_with_the_predecessors():
    rate = 19200 / 2000
    sentence = (
        f"19,200 images in all that time are {rate:.1f} images/s, {rate / 63.5:.2f} × the 63.5 images/s of lim0606's setting 1"
    )
    assert f"{sentence} on two Titan X." in report("run", TABLE, week())
    small = report("run", TABLE | {"input": {"crop": 299, "sizes": ["1:192", "2:224"]}}, week())
    assert f"{sentence} on two Titan X; its images were 299², these 192² and 224²." in small


def test_utilisation_averaged_weights_and_skipped_records_are_told_where_there_are_any():
    plain = report("run", TABLE, week()[:5])
    assert "MFU" not in plain
    assert "skipped" not in plain
    averaged = val(300, 3, BEGUN + 86900, 38, weights="ema")
    found = report("run", TABLE, [*week(flop_utilisation=0.4), averaged])
    assert rows(found)["all"][1] == "40.0"
    assert rows(found)["last and best epoch, 3, averaged weights"] == ["38.000", "9.500"]
    assert found.startswith("# run: top-1 error 38.000 % after epoch 3 of 3\n")
    assert "skipped: 1; metrics.jsonl names them" in found


def test_a_log_of_an_older_version_is_reported_without_its_hours():
    found = report("run", TABLE, LINES)
    assert "hours" not in found
    assert "800 images in all that time are" in found


def test_tables_line_up_as_they_are():
    lines = report("run", TABLE, week()).splitlines()
    tables = "\n".join(line if line.startswith("|") else "" for line in lines)
    for table in filter(None, re.split(r"\n\n+", tables.strip())):
        assert len({len(line) for line in table.splitlines()}) == 1


def test_a_runs_folder_gets_its_report_summary_and_picture(tmp_path):
    import tomli_w

    (tmp_path / "config.toml").write_text(tomli_w.dumps(TABLE))
    draw(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in week()))
    draw(tmp_path)
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "report.md").read_text() == report(tmp_path.name, TABLE, week())
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 4
    assert not list(tmp_path.glob("*.new"))


def test_curves_of_any_columns_share_a_picture_that_names_them(tmp_path):
    few = Curve("old.log", [{"epoch": 0.5, "val_top1_error": 80.0, "train_loss": 9999.0}, {"epoch": 1.5, "train_loss": 1.0}])
    plot([Curve.of_reference(Reference("revilokeb")), Curve("new", epochs(LINES)), few], tmp_path / "curves.svg")
    drawing = (tmp_path / "curves.svg").read_text()
    for comment in (
        "revilokeb: 50.30 / 26.40 % at epoch 24",
        "new: 40.00 / 10.00 % at epoch 2",
        "old.log: 80.00 % at epoch 0.5",
    ):
        assert f"<!-- {comment} -->" in drawing
    for title in ("top-1 error (%)", "top-5 error (%)", "loss", "learning rate", "images/s", "training", "validation"):
        assert f"<!-- {title} -->" in drawing


def test_only_what_there_is_has_a_place_in_the_picture(tmp_path):
    plot([Curve("errors", [{"epoch": 1, "val_top1_error": 80.0}])], tmp_path / "curves.svg")
    drawing = (tmp_path / "curves.svg").read_text()
    assert "<!-- top-1 error (%) -->" in drawing
    assert "<!-- loss -->" not in drawing


def test_nothing_cannot_be_drawn(tmp_path):
    with pytest.raises(DataError, match="there is nothing to draw in empty"):
        plot([Curve("empty", [{"epoch": 1}])], tmp_path / "curves.png")


@pytest.mark.parametrize("name", ["curves.xyz", "none/curves.png"])
def test_a_picture_that_cannot_be_written_is_one_sentence(tmp_path, name):
    with pytest.raises(DataError, match="cannot be written"):
        plot([Curve("run", epochs(LINES))], tmp_path / name)
