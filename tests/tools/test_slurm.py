"""The Slurm scripts: parts of a build, and training on several nodes, with srun and scontrol stood in for."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fastirv2.data.records import open_records
from tests.tools.test_stage_lmdb import stand_in
from tests.tools.test_tools import TOOLS
from tests.train.conftest import RECIPE, metrics

LAUNCH = TOOLS / "launch"
SCRIPTS = [path for path in sorted(LAUNCH.iterdir()) if path.suffix in (".sh", ".slurm")]

SCONTROL = """#!/bin/sh
case $1 in
  show) for host in $(echo "$3" | tr , ' '); do echo "$host"; done ;;
  requeue) echo "$2" >>"$REQUEUED" ;;
esac
"""
SRUN = f"""#!{sys.executable}
import contextlib, os, signal, subprocess, sys
options = [word for word in sys.argv[1:] if word.startswith("--")]
line = sys.argv[1:][next(i for i, word in enumerate(sys.argv[1:]) if not word.startswith("-")):]
count = int(next(word for word in options if word.startswith("--ntasks=")).partition("=")[2])
nodes = [{{**os.environ, "SLURM_NODEID": str(node)}} for node in range(count)]
tasks = [subprocess.Popen(line, env=environment, start_new_session=True) for environment in nodes]
with open(os.environ["TASKS"] + ".new", "w") as file:
    file.write(" ".join(str(task.pid) for task in tasks))
os.rename(os.environ["TASKS"] + ".new", os.environ["TASKS"])
codes = [task.wait() for task in tasks]
for task in tasks:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(task.pid, signal.SIGKILL)
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""


def start(tmp_path, script, *arguments, **slurm):
    """Run a job script as Slurm does: a copy of it, from wherever, with the job in the environment."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        path = stand_in(tmp_path / "bin", name, text)
    copy = Path(shutil.copy(LAUNCH / script, tempfile.mkdtemp(dir=tmp_path)))  # its own: bash reads it while it runs
    ours = {"PYTHON": sys.executable, "REQUEUED": str(tmp_path / "requeued"), "TASKS": str(tmp_path / "tasks")}
    environment = {**os.environ, **path, **ours, "PYTHONPATH": str(TOOLS.parent), **{k: str(v) for k, v in slurm.items()}}
    line = ["bash", copy, *map(str, arguments)]
    return subprocess.Popen(line, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(process, timeout=240):
    said = process.communicate(timeout=timeout)[0]
    return process.returncode, said


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(process.communicate()[0])
        time.sleep(0.02)


def requeued(tmp_path):
    path = tmp_path / "requeued"
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_valid_and_strict(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert "\nset -euo pipefail\n" in script.read_text()
    assert os.access(script, os.X_OK)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def part(tmp_path, number, *arguments):
    return start(tmp_path, "build_parts.slurm", *arguments, SLURM_ARRAY_TASK_ID=number, SLURM_ARRAY_JOB_ID=77)


def test_the_parts_hold_each_image_once(tmp_path, images):
    line = (3, images, tmp_path / "out", "--resize", "40x40")
    for code, said in map(ended, [part(tmp_path, number, *line) for number in (1, 2, 3)]):
        assert code == 0, said
    held = [json.loads((tmp_path / f"out-{number}/dataset.json").read_bytes()) for number in (1, 2, 3)]
    assert [dataset["part"] for dataset in held] == ["1/3", "2/3", "3/3"]
    assert sum(dataset["count"] for dataset in held) == 23
    assert [sum(counts) for counts in zip(*(dataset["images_per_class"] for dataset in held), strict=True)] == [13, 10]
    stored = [open_records(tmp_path / f"out-{number}") for number in (1, 2, 3)]
    assert len({bytes(records[i][0]) for records in stored for i in range(len(records))}) == 23

    code, said = ended(part(tmp_path, 2, *line))
    assert (code, said) == (0, f"build_parts.slurm: {tmp_path}/out-2 is done already\n")
    code, said = ended(part(tmp_path, 2, 4, *line[1:]))
    assert code == 65
    assert "out-2 is not part 2 of 4" in said


def slow_part(tmp_path, images):
    """Start a build that takes seconds, and return when it has begun."""
    process = part(tmp_path, 1, 1, images, tmp_path / "out", "--resize", "3000x3000", "--workers", "1")
    wait_for((tmp_path / "out-1.partial/build.json").exists, process)
    return process


def test_a_part_that_is_stopped_by_the_time_limit_goes_on_from_the_queue(tmp_path, images):
    process = slow_part(tmp_path, images)
    process.send_signal(signal.SIGUSR1)
    code, said = ended(process)
    assert code == 75, said
    assert "goes into the queue again" in said
    assert requeued(tmp_path) == ["77_1"]
    code, said = ended(slow_part(tmp_path, images))
    assert code == 0, said
    assert len(open_records(tmp_path / "out-1")) == 23


def test_a_part_that_is_cancelled_stays_out_of_the_queue(tmp_path, images):
    process = slow_part(tmp_path, images)
    process.terminate()
    code, said = ended(process)
    assert code == 75, said
    assert requeued(tmp_path) == []


def test_a_part_that_fails_fails_and_says_why(tmp_path, images):
    for number, arguments, code, reason in (
        (1, (2, tmp_path / "none", tmp_path / "out"), 65, f"{tmp_path}/none does not exist"),
        (3, (2, images, tmp_path / "out"), 2, "there is no part 3 of 2; submit with --array=1-2"),
        (0, (2, images, tmp_path / "out"), 2, "there is no part 0 of 2"),
        (1, (images, tmp_path / "out"), 2, "give the number of parts, SOURCE and OUT"),
        (1, ("all", images, tmp_path / "out"), 2, "the number of parts is 'all'"),
        (1, (2, images, tmp_path / "out", "--overwrite"), 2, f"remove {tmp_path}/out-1, without --overwrite"),
    ):
        got, said = ended(part(tmp_path, number, *arguments))
        assert (got, reason in said) == (code, True), said
    assert requeued(tmp_path) == []


def job(tmp_path, data, *options, nodes=2, **slurm):
    (tmp_path / "small.toml").write_text(RECIPE)
    hosts = ",".join(["localhost"] * nodes)
    where = {"SLURM_JOB_ID": os.getpid(), "SLURM_JOB_NODELIST": hosts, "SLURM_SUBMIT_DIR": TOOLS.parent, **slurm}
    line = (data, data, "--recipe", tmp_path / "small.toml", "--out", tmp_path / "run", "--train.epochs", "4", *options)
    return start(tmp_path, "train.slurm", *line, **{"RANKS_PER_NODE": 1, "STAGE_TO": tmp_path / "nvme", **where})


def test_training_on_two_nodes_saves_before_the_time_limit_and_goes_on_from_the_queue(tmp_path, lmdb_folder):
    process = job(tmp_path, lmdb_folder)
    wait_for(lambda: (tmp_path / "run/metrics.jsonl").exists() and len(metrics(tmp_path / "run", "train")) > 1, process)
    for task in (tmp_path / "tasks").read_text().split():
        os.kill(int(task), signal.SIGUSR1)
    code, said = ended(process)
    assert code == 75, said
    assert "2 × CPU" in said
    assert "the state is saved and the same command goes on" in said
    assert "goes into the queue again" in said
    assert requeued(tmp_path) == [str(os.getpid())]
    before = len(metrics(tmp_path / "run", "train"))
    assert 0 < before < 12

    code, said = ended(job(tmp_path, lmdb_folder, SLURM_RESTART_COUNT=1))
    assert code == 0, said
    assert "restarted 1 times" in said
    assert [line["step"] for line in metrics(tmp_path / "run", "train")] == list(range(1, 13))
    assert requeued(tmp_path) == [str(os.getpid())]
    assert len(list((tmp_path / "nvme").glob("*/lmdb-*"))) == 1


def test_a_failed_run_ends_with_its_exit_code_and_stays_out_of_the_queue(tmp_path, lmdb_folder):
    code, said = ended(job(tmp_path, lmdb_folder, "--model.classes", "1", nodes=1, STAGE_TO="none"))
    assert code == 65, said
    assert said.count("the data has 2 classes") == 1
    assert "Traceback" not in said
    assert requeued(tmp_path) == []


def test_a_signal_before_there_is_anything_to_save_brings_the_job_into_the_queue_again(tmp_path, lmdb_folder):
    slow = stand_in(tmp_path / "slow", "cp", "#!/bin/sh\nsleep 60\n")
    process = job(tmp_path, lmdb_folder, nodes=1, PATH=f"{tmp_path / 'bin'}:{slow['PATH']}")
    wait_for(lambda: list((tmp_path / "nvme").glob("*/*.copying")), process)
    os.kill(int((tmp_path / "tasks").read_text()), signal.SIGUSR1)
    code, said = ended(process)
    assert code == 138, said
    assert requeued(tmp_path) == [str(os.getpid())]


@pytest.mark.parametrize(("times", "comes_back"), [(0, True), (4, True), (5, False)])
def test_a_run_that_crashed_comes_back_so_many_times(tmp_path, times, comes_back):
    broken = stand_in(tmp_path / "broken", "no-python", "#!/bin/sh\nkill -SEGV $$\n")
    options = {"STAGE_TO": "none", "PYTHON": shutil.which("no-python", path=broken["PATH"]), "SLURM_RESTART_COUNT": times}
    code, said = ended(job(tmp_path, tmp_path, nodes=1, **options))
    assert code == 139, said
    assert (requeued(tmp_path) == [str(os.getpid())]) is comes_back is ("goes into the queue again" in said)


def test_a_job_from_another_folder_is_refused(tmp_path, lmdb_folder):
    code, said = ended(job(tmp_path, lmdb_folder, SLURM_SUBMIT_DIR=tmp_path))
    assert (code, said) == (
        2, f"train.slurm: {tmp_path} has no tools/launch/train_node.sh; submit from the root of the checkout\n"
    )  # fmt: skip
