"""A run outlives a full disk while it trains, and says so when it has to end on one."""

import resource
import subprocess
import sys

from tests.processes import full_disk
from tests.train.conftest import assert_done, latest, metrics

SMALL = 60_000  # bytes: logs fit, checkpoints do not


def test_a_run_outlives_a_full_disk(light, tmp_path):
    run = tmp_path / "run"
    process = light.start(run, "--checkpoint.steps", "1", "--train.epochs", "2")
    with full_disk(SMALL, process.pid):
        warning = process.stderr.readline()
        assert not (run / "checkpoints/latest.pt").exists()
    said, more = process.communicate(timeout=120)
    assert process.returncode == 0, more
    assert warning.startswith(f"warning: checkpoint {run}/checkpoints/step-0000000")
    assert "training goes on, and it is tried again each minute: make room" in warning
    assert more == ""
    assert said.count("is written: the disk takes it again") == 1
    assert latest(run)["step"] == 6
    assert [line["step"] for line in metrics(run, "train")] == list(range(1, 7))


def test_a_run_that_ends_on_a_full_disk_says_that_its_state_is_not_saved(light, tmp_path):
    line = [sys.executable, *light.arguments(tmp_path / "run", "--train.stop-after", "1")]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL, resource.RLIM_INFINITY))  # noqa: E731
    done = subprocess.run(line, preexec_fn=limit, capture_output=True, text=True, check=False, timeout=120)
    assert_done(done, 65)
    assert done.stderr.count("\n") == 1
    assert "step-00000001.pt cannot be written: File too large (it takes" in done.stderr
    assert "make room and give the same command again" in done.stderr
