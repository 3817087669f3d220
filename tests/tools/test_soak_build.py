"""The builder's soak stops builds at any moment, and sees when one differs or leaves something behind."""

import json
import shutil
import signal
import subprocess
import sys

import pytest

from fastirv2.errors import DataError
from tests.conftest import build
from tests.tools.test_tools import TOOLS, result

sys.path.insert(0, str(TOOLS))

import soak_build

KILL, TERM = soak_build.Blow(signal.SIGKILL), soak_build.Blow(signal.SIGTERM)
ALONE = soak_build.Blow(signal.SIGKILL, alone=True)


def test_stopped_builds_end_as_an_undisturbed_one(tmp_path):
    said, soaked = result(tmp_path, "soak.py", "--what", "build", "--images", "100", "--kills", "2")
    assert soaked["signals"] == {"SIGKILL": 2, "SIGKILL alone": 1, "SIGTERM": 1, "SIGINT": 1}
    assert soaked["same"]
    assert soaked["builds"] >= 1
    assert 0 < soaked["rejected"] == 100 - soaked["records"]
    moments = ("before_first_commit", "after_first_commit", "after_publishing")
    assert sum(soaked[moment] for moment in moments) == len(soaked["stops"]) == 5
    assert all(stop["seconds"] <= soaked["undisturbed_seconds"] for stop in soaked["stops"])
    assert "ended exactly as the undisturbed one" in said
    assert {"cpu", "torch", "dali"} <= set(soaked["machine"])


def test_another_order_is_a_difference(images, tmp_path):
    calm, other = build(images, tmp_path / "calm"), build(images, tmp_path / "other", "--seed", "1")
    with pytest.raises(DataError, match=r"in the digest and index\.npy and names\.jsonl$"):
        soak_build.compare(calm, other)


def test_a_changed_report_and_a_damaged_image_are_differences(lmdb_folder, tmp_path):
    copy = shutil.copytree(lmdb_folder, tmp_path / "copy")
    soak_build.compare(lmdb_folder, copy)
    (copy / "rejected.jsonl").write_text(json.dumps({"path": "a", "reason": "b", "action": "rejected"}) + "\n")
    with pytest.raises(DataError, match=r"in rejected\.jsonl$"):
        soak_build.compare(lmdb_folder, copy)
    shutil.copy(lmdb_folder / "rejected.jsonl", copy)
    (tmp_path / "copy.partial").mkdir()
    with pytest.raises(DataError, match=r"left copy\.partial behind"):
        soak_build.compare(lmdb_folder, copy)


def test_a_process_that_stays_is_found_and_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(soak_build, "END_SECONDS", 0.5)
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with pytest.raises(DataError, match="a process of the build was still there"):
        soak_build.stop_once([sys.executable, "-c", parent], TERM, 1)
    with pytest.raises(DataError, match="a process of the build was still there"):
        soak_build.stop_once([sys.executable, "-c", parent], ALONE, 1)


def test_how_a_stopped_command_ended_is_told():
    assert soak_build.stop_once([sys.executable, "-c", "import time; time.sleep(60)"], KILL, 0.1) == -signal.SIGKILL
    assert soak_build.stop_once([sys.executable, "-c", ""], KILL, 60) is None
    with pytest.raises(DataError, match="ended by itself with exit code 3: why"):
        soak_build.stop_once([sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"], KILL, 60)


def test_members_of_a_group_are_found_and_the_dead_are_not():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as process:
        assert soak_build.members(process.pid) == [process.pid]
        process.kill()
        process.wait()
        assert soak_build.members(process.pid) == []
