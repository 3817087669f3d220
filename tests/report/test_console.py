"""What a run says, on a terminal and elsewhere."""

import contextlib
import os
import pty
import re
import subprocess
import sys
import time
from datetime import datetime

import pytest

from fastirv2.report.console import Console, clock, moment

SCRIPT = """
from fastirv2.report.console import Console
console = Console(first={first})
console.begin(0, 40, 2, ranks={ranks})
for step in range(1, 21):
    console.advance(step)
console.train({{
    "step": 20, "epoch": 1, "loss": 1.25, "top1_error": 40.0, "top5_error": 10.0, "images_per_second": 1234.5,
    "data_wait_share": {wait}, "data_wait_rank": 3, "lr": 0.045, "memory_bytes": 3 * 2**30, "flop_utilisation": 0.412,
}})
console.warn("checkpoint [a] is cut")
console.end()
"""
LINE = "loss 1.2500  error 40.0 / 10.0 %  1,234 images/s  MFU 41.2 %  wait 7 %  lr 0.045  3.0 GiB"
ROW = {
    "epoch": 1, "val_top1_error": 24.407, "val_top5_error": 7.407, "val_loss": 1.0, "ema_loss": None, "train_loss": 2.0,
    "train_top1_error": 30.04, "train_top5_error": 12.0, "images_per_second": 2950.4, "data_wait_share": 0.012,
    "train_seconds": 435.9, "val_seconds": 20.0,
}  # fmt: skip


def script(*, first=True, ranks=1, wait=0.07):
    return SCRIPT.format(first=first, ranks=ranks, wait=wait)


def run_script(**options):
    return subprocess.run([sys.executable, "-c", script(**options)], capture_output=True, text=True, check=True)


def test_plain_lines_where_there_is_no_terminal():
    done = run_script()
    assert re.fullmatch(
        rf"epoch 1/2  step 20/40  {re.escape(LINE)}  0:00:0\d left, ends \w+ \d+ \w+ \d\d:\d\d", done.stdout.strip()
    )
    assert done.stderr == "warning: checkpoint [a] is cut\n"


@pytest.mark.parametrize(("ranks", "wait", "said"), [(8, 0.07, "wait 7 % (rank 3)  lr"), (8, 0.04, "wait 4 %  lr")])
def test_the_rank_that_waits_most_is_named_when_that_is_much(ranks, wait, said):
    assert said in run_script(ranks=ranks, wait=wait).stdout


@pytest.mark.parametrize(
    ("more", "errors"),
    [
        ({}, "error 24.407 / 7.407 % on 50,000 images, loss 1.0000, the best so far"),
        (
            {"ema_top1_error": 23.5, "ema_top5_error": 7.0, "ema_loss": 0.9},
            "error 24.407 / 7.407 % on 50,000 images, loss 1.0000; "
            "with averaged weights 23.500 / 7.000 %, loss 0.9000, the best so far",
        ),
    ],
)
def test_a_line_an_epoch_says_it_all(capsys, more, errors):
    Console(first=True).epoch(ROW | more, 50000, best=True)
    training = "training 30.0 / 12.0 %, loss 2.0000; 2,950 images/s, wait 1 %; 0:07:15 + 0:00:20"
    assert capsys.readouterr().out == f" * epoch 1/0  {errors}; {training}\n"


def test_an_epoch_in_which_nothing_counted_is_told_too(capsys):
    nothing = dict.fromkeys(("train_loss", "train_top1_error", "train_top5_error", "val_loss"))
    Console(first=True).epoch(ROW | nothing, 50000, best=False)
    assert "loss none; training none / none %, loss none; 2,950 images/s" in capsys.readouterr().out


def test_the_end_is_told_at_the_rate_since_the_first_line_and_by_the_work_that_is_left(monkeypatch):
    """The first interval compiles; steps from 20 on take four times as long."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console = Console(first=True)
    console.begin(0, 40, 2, work=lambda step: step + 3 * max(0, step - 20))
    now += 500
    assert console._left(5).startswith("2:38:20 left")  # 95 of work at 5 in 500 seconds
    now += 10
    assert console._left(10).startswith("0:03:00 left")  # 90 of work at 5 in 10 seconds


def test_times_read_as_clock_and_calendar():
    assert [clock(seconds) for seconds in (0, 59.9, 3723, 360000)] == ["0:00:00", "0:00:59", "1:02:03", "100:00:00"]
    when = datetime(2026, 3, 3, 18, 5)
    assert moment(when.timestamp()) == f"{when:%a} 3 {when:%b} 18:05"
    assert moment(1e15) == "the end of time"


def test_a_live_line_on_a_terminal():
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen([sys.executable, "-c", script()], stdout=side, stderr=side, env=environment):
        os.close(side)
        shown = b""
        try:
            while part := os.read(main, 65536):
                shown += part
        except OSError:  # the other end is closed
            pass
    os.close(main)
    text = shown.decode()
    assert "20/40" in text
    assert LINE in text


def test_other_ranks_are_silent():
    done = run_script(first=False)
    assert done.stdout == done.stderr == ""


def test_a_run_falls_silent_where_nobody_reads_it_any_more(monkeypatch):
    """As where a Ctrl-C has ended the tee that it was piped into."""
    reading, writing = os.pipe()
    os.close(reading)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "w") as unread:
        monkeypatch.setattr(sys, "stdout", unread)
        console = Console(first=True)
        console.say("one")
        console.say("another")
        monkeypatch.undo()
