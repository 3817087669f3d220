"""Errors with their intervals, and tables of the classes."""

import csv
import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from fastirv2.errors import DataError
from fastirv2.report.accuracy import Score, wilson
from fastirv2.report.classes import ByClass, write_tables
from tests.processes import full_disk

NAMES = ["ant", "owl", "cost $5", "yak"]


def test_intervals_are_wilsons():
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for wrong, images, low, high in ((81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0, 16.11), (1, 29, 0.61, 17.18)):
        assert wilson(wrong, images) == pytest.approx((low, high), abs=0.005)
        assert wilson(images - wrong, images) == pytest.approx((100 - high, 100 - low), abs=0.005)


def test_a_score_is_said_as_errors():
    score = Score(263, 182, 263, 0.5)
    assert score.lines() == [
        "top-1 error 30.798 %, 95 % interval 25.53 to 36.62 %: 81 of 263 images",
        "top-5 error 0.000 %, 95 % interval 0.00 to 1.44 %: 0 of 263 images",
        "loss 0.5000",
    ]
    table = score.table()
    assert (table["top1_error"], table["top5_error"]) == pytest.approx((100 * 81 / 263, 0))
    assert table["top1_interval"] == pytest.approx([25.53, 36.62], abs=0.005)
    assert table["top5_interval"] == pytest.approx([0, 1.44], abs=0.005)
    assert Score(263, 182, 263, math.inf).table()["loss"] is None


def found():
    labels, predicted = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2]), np.array([1, 2, 1, 1, 1, 0, 2, 2, 2])
    confidence = np.linspace(0.1, 0.9, 9)
    return ByClass(NAMES, np.arange(9) + 10, labels, predicted, confidence, labels == predicted, np.arange(9) != 2)


def test_the_worst_class_comes_first_with_what_it_is_taken_for(tmp_path):
    asked = []

    def picture(record):
        asked.append(record)
        return Image.new("RGB", (30, 20))

    write_tables(found(), tmp_path / "new", picture)
    rows = list(csv.DictReader((tmp_path / "new/classes.csv").open()))
    assert [(row["class"], row["images"], row["top1_error"], row["taken_for"], row["times"]) for row in rows] == [
        ("ant", "3", "100.000", "owl", "2"), ("cost $5", "4", "25.000", "ant", "1"), ("owl", "2", "0.000", "", "0")
    ]  # fmt: skip
    assert [(row["top1_correct"], row["top5_correct"], row["top5_error"]) for row in rows] == [
        ("0", "2", "33.333"), ("3", "4", "0.000"), ("2", "2", "0.000")
    ]  # fmt: skip
    pairs = [tuple(row.values()) for row in csv.DictReader((tmp_path / "new/confusion.csv").open())]
    assert pairs == [
        ("ant", "owl", "2"), ("ant", "cost $5", "1"), ("owl", "owl", "2"), ("cost $5", "cost $5", "3"), ("cost $5", "ant", "1")
    ]  # fmt: skip
    assert asked == [12, 11, 10, 15]  # the surest errors first
    with Image.open(tmp_path / "new/worst.png") as drawn:
        assert drawn.height > 300


def test_an_error_in_the_picture_is_called_what_the_network_took_it_for(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda _, text, **__: titles.append(text))
    write_tables(found(), tmp_path, lambda _: Image.new("RGB", (3, 2)))
    assert titles == ["owl\n30 %", "cost \\$5\n20 %", "owl\n10 %", "ant\n60 %"]


def test_where_all_is_right_there_is_no_picture(tmp_path):
    (tmp_path / "worst.png").write_bytes(b"of an older score")
    right = found()
    right = ByClass(NAMES, right.records, right.labels, right.labels, right.confidence, right.labels >= 0, right.top5)
    write_tables(right, tmp_path, lambda record: pytest.fail(f"record {record} was drawn"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.csv", "confusion.csv"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    with full_disk(), pytest.raises(DataError, match="choose another --tables"):
        write_tables(found(), tmp_path / "new", lambda _: Image.new("RGB", (3, 2)))
