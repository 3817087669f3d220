"""run_ranks.py: signals reach the ranks, crashed ranks are started again, stopped ones are not; and the Kubernetes job."""

import os
import re
import signal
import subprocess
import sys
from itertools import islice

import pytest
import torch
import yaml

from fastirv2 import config, train
from fastirv2.errors import DataError, DivergedError, UsageError
from tests.processes import gone, lines, run_python
from tests.tools.test_tools import TOOLS

LAUNCH = TOOLS / "launch"
RANKS = [sys.executable, str(LAUNCH / "run_ranks.py"), "--standalone", "--nproc-per-node", "2", "--max-restarts", "3"]


@pytest.fixture
def job():
    line = ["nohup", *RANKS, "-m", "tests.training.watched_rank", "1", "9999"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TOOLS.parent)
    yield process
    process.kill()
    process.communicate()


def running(job):
    """Wait until both ranks train and return their process numbers."""
    said = [line.strip() for line in islice(lines(job.stdout), 4)]
    assert said.count("trains") == 2
    return [int(line) for line in said if line != "trains"]


@pytest.mark.soak
def test_a_rank_that_is_killed_is_started_again_and_one_that_a_signal_stopped_is_not(job):
    first = running(job)
    os.kill(first[1], signal.SIGKILL)
    second = running(job)
    assert not set(first) & set(second)
    assert all(gone(pid) for pid in first)
    job.send_signal(signal.SIGUSR1)
    said, complaints = job.communicate(timeout=120)
    assert job.returncode == 75, complaints
    assert list(lines(said)) == ["stopped by SIGUSR1\n"] * 2
    assert re.search(r"run_ranks: rank \d ended with exit code 75\n", complaints)


def test_sigterm_is_passed_on_as_well_its_exit_code_is_that_of_the_ranks_and_nohup_holds(job):
    running(job)
    job.send_signal(signal.SIGHUP)
    job.terminate()
    said, complaints = job.communicate(timeout=120)
    assert job.returncode == 75, complaints
    assert list(lines(said)) == ["stopped by SIGTERM\n"] * 2


def test_the_kubernetes_job_starts_a_command_that_exists_and_goes_on_by_itself():
    (job,) = yaml.safe_load_all((LAUNCH / "train.k8s.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"][1].endswith("/tools/launch/run_ranks.py")
    options = container["args"][container["args"].index("fastirv2.train") + 1 :]
    train.check_usage(config.parse(options, silent=True))
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounted)
    assert mounted["shm"] == "/dev/shm"
    ignore, fail = job["spec"]["podFailurePolicy"]["rules"]
    assert pod["restartPolicy"] == "Never"
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert fail["onExitCodes"]["containerName"] == container["name"]
    assert set(fail["onExitCodes"]["values"]) == {error.exit_code for error in (UsageError, DataError, DivergedError)}


def test_ranks_for_gpus_that_are_not_there_are_refused_in_a_sentence():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = run_python(LAUNCH / "run_ranks.py", "--standalone", "--nproc-per-node", "gpu", "-m", "fastirv2.train")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "run_ranks: --nproc-per-node gpu: Cuda is not available.\n"
