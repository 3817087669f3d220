"""What a run says, on a terminal and elsewhere."""

import os
import pty
import subprocess
import sys

SCRIPT = """
from fastirv2.report.console import Console
console = Console(first={first})
console.begin(0, 40, 2)
for step in range(1, 21):
    console.advance(step)
console.train({{
    "step": 20, "epoch": 1, "loss": 1.25, "top1_error": 40.0, "top5_error": 10.0, "images_per_second": 1234.5,
    "data_wait_share": 0.07, "lr": 0.045, "memory_bytes": 3 * 2**30,
}})
console.validation({{"epoch": 1, "images": 50000, "top1_error": 24.407, "top5_error": 7.407, "loss": 1.0}}, best=True)
console.warn("checkpoint [a] is cut")
console.end()
"""
LINE = "loss 1.2500  error 40.0 / 10.0 %  1,234 images/s  wait 7 %  lr 0.04500  3.0 GiB"


def test_plain_lines_where_there_is_no_terminal():
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(first=True)], capture_output=True, text=True, check=True)
    train, validation = done.stdout.splitlines()
    assert train.startswith(f"epoch 1/2  step 20/40  {LINE}")
    assert train.endswith(" left")
    assert validation == (
        " * epoch 1/2 validated on 50,000 images: top-1 error 24.407 %, top-5 error 7.407 %, loss 1.0000, the best so far"
    )
    assert done.stderr == "warning: checkpoint [a] is cut\n"


def test_a_live_line_on_a_terminal():
    main, side = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    with subprocess.Popen([sys.executable, "-c", SCRIPT.format(first=True)], stdout=side, stderr=side, env=environment):
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
    assert "top-1 error 24.407 %" in text


def test_other_ranks_are_silent():
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(first=False)], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
