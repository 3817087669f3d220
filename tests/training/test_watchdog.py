"""A rank that hangs ends the job with a sentence, and ranks do not outlive their launcher."""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from fastirv2.training import watchdog
from fastirv2.training.signals import LAUNCHER_DIED
from fastirv2.training.watchdog import Sign, Watchdog, account
from tests.processes import gone, lines, start_ranks

SCRIPT = ("-m", "tests.training.watched_rank")


def until(process, word):
    for line in process.stdout:
        if word in line:
            return
    pytest.fail(process.stderr.read())


def test_a_rank_that_is_stopped_ends_the_others_with_one_sentence_that_names_it():
    ranks = start_ranks(3, *SCRIPT, "0.03", "9999")
    for rank in ranks:
        until(rank, "trains")
    ranks[1].send_signal(signal.SIGSTOP)
    said = [rank.communicate(timeout=120)[1] for rank in (ranks[0], ranks[2])]
    assert [ranks[0].returncode, ranks[2].returncode] == [75, 75]
    (line,) = [line for part in said for line in part.splitlines() if line.startswith("watched:")]
    assert line.startswith("watched: no progress for 0.03 minutes (--train.timeout): rank 1 silent since ")
    assert "; ranks 0, 2 waiting after step " in line
    assert "in training/distributed.py:" in line
    assert line.endswith("; the same command goes on from the last checkpoint")
    ranks[1].kill()
    ranks[1].communicate()


def test_a_rank_whose_work_hangs_is_told_from_those_that_wait_for_it():
    hangs, waits = start_ranks(2, *SCRIPT, "0.03", "9999", last=("0.03", "5"))[::-1]
    said = hangs.communicate(timeout=120)[1] + waits.communicate(timeout=120)[1]
    assert hangs.returncode == waits.returncode == 75
    (line,) = [line for line in said.splitlines() if line.startswith("watched:")]
    assert "rank 0 waiting after step 6, in training/distributed.py:" in line
    assert "rank 1 waiting after step 5, in errors.py:" in line


@pytest.mark.soak
def test_a_run_that_hangs_before_its_first_step_is_not_to_be_tried_again_by_itself():
    (rank,) = start_ranks(1, *SCRIPT, "0.01", "0")
    _, said = rank.communicate(timeout=120)
    assert rank.returncode == 70
    assert said.startswith("watched: no progress for 0.06 minutes (--train.timeout): rank 0 waiting after step 0, in ")
    assert said.endswith("; what takes so long needs a longer --train.timeout\n")


@pytest.mark.soak
def test_a_job_that_was_suspended_for_longer_than_the_timeout_goes_on():
    (rank,) = start_ranks(1, *SCRIPT, "0.03", "9999")
    until(rank, "trains")
    rank.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    rank.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    rank.terminate()
    said, complaint = rank.communicate(timeout=60)
    assert (rank.returncode, said, complaint) == (75, "stopped by SIGTERM\n", "")


def test_ranks_whose_launcher_is_killed_stop_at_the_same_step():
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *SCRIPT, "1", "9999"]
    process = subprocess.Popen(launcher, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pids = [int(line) for line in islice(lines(process.stdout), 2)]
    until(process, "trains")
    process.kill()
    said = process.communicate(timeout=60)[0]
    assert said.count("stopped by the death of its launcher") == 2
    assert all(gone(pid) for pid in pids)


def orphan(**options):
    """Run a rank whose launcher has died before it could look: its parent is a shell, as it might be init."""
    shell = f"(sleep 0.1; exec {sys.executable} {' '.join(SCRIPT)} 1 9999); exit $?"
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "9", "TORCHELASTIC_RUN_ID": "gone"}
    return subprocess.run(["bash", "-c", shell], env=os.environ | ranks, text=True, check=False, timeout=120, **options)


def test_a_rank_whose_launcher_died_before_it_could_look_ends_at_once():
    done = orphan(capture_output=True)
    assert done.returncode == 75, done.stderr
    assert done.stderr == "watched: its launcher has died at its start: nothing is lost, the same command goes on\n"


def test_a_rank_that_the_first_process_has_adopted_ends_at_once(tmp_path):
    with contextlib.suppress(OSError):
        if Path(os.readlink("/proc/1/exe")).name.startswith("python"):
            pytest.skip("the first process here is Python, as torchrun is")
    said = tmp_path / "said"
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "9", "TORCHELASTIC_RUN_ID": "gone"}
    shell = f"{sys.executable} {' '.join(SCRIPT)} 1 9999 >/dev/null 2>{said} & echo $!"
    pid = int(subprocess.run(["bash", "-c", shell], env=os.environ | ranks, stdout=subprocess.PIPE, check=True).stdout)
    try:
        end = time.monotonic() + 60
        while not gone(pid) and time.monotonic() < end:
            time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert said.read_text() == "watched: its launcher has died at its start: nothing is lost, the same command goes on\n"


def test_it_ends_even_if_whoever_read_what_it_says_has_died_too():
    read, write = os.pipe()
    os.close(read)
    assert orphan(stderr=write).returncode == 75
    os.close(write)


def test_without_a_launcher_a_run_outlives_the_process_that_started_it():
    shell = f"{sys.executable} {' '.join(SCRIPT)} 1 9999 & read line"
    process = subprocess.Popen(
        ["bash", "-c", shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pid = int(process.stdout.readline())
    process.stdin.write("go\n")
    process.stdin.flush()
    process.wait(timeout=60)
    until(process, "trains")
    time.sleep(1.5)
    os.kill(pid, signal.SIGTERM)
    assert process.stdout.read() == "stopped by SIGTERM\n"


def test_ranks_that_share_a_fate_share_words():
    first = {0: Sign(4, "", "a"), 1: Sign(3, "10:00:01", "b"), 2: Sign(3, "10:00:02", "a"), 4: Sign(3, "10:00:02", "a")}
    second = {**first, 2: Sign(5, "10:00:12", "a"), 4: Sign(6, "10:00:12", "a")}
    assert account(first, second, 5) == ("rank 1 silent since 10:00:01, b; rank 3 never heard from; ranks 0, 2, 4 waiting a")
    everybody = {rank: Sign(1, "", "a") for rank in range(8)}
    assert account(everybody, everybody, 8) == "ranks 0-7 waiting a"


def asleep(minutes):
    """A watchdog that does not look by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watchdog, "_watch", lambda _: None)
        return Watchdog("watched", minutes, SimpleNamespace(training=False, received=0))


@pytest.fixture
def watch(monkeypatch):
    """Have a watchdog look once a second by a clock of our own; return it, and when and how it has ended its process.

    The run gives signs of life until a second of that clock, if at all, and is suspended for some seconds at the 30th.
    """

    def run(minutes, *, until=None, compiling=False, suspended=0, orphaned=False, seconds=5000):
        dog, now, ended = asleep(minutes), 0, []
        dog.compiling = lambda: compiling
        dog._launcher = -1 if orphaned else 0

        def wait(_):
            nonlocal now
            if until is not None and now <= until:
                dog.beat()
            now += 1 + (suspended if now == 30 else 0)
            return bool(ended) or now > seconds

        monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: now, strftime=lambda _: "10:00:00"))
        monkeypatch.setattr(dog, "_stopped", SimpleNamespace(wait=wait))
        monkeypatch.setattr(dog, "end", lambda sentence, code: ended.append((now, sentence, code)))
        dog._watch()
        return dog, ended

    return run


@pytest.mark.parametrize(
    ("until", "minutes", "code", "hint"),
    [
        (None, 6, 70, "what takes so long needs a longer --train.timeout"),
        (0, 1, 75, "the same command goes on from the last checkpoint"),
        (1000, 1, 75, "the same command goes on from the last checkpoint"),
    ],
)
def test_a_hang_before_the_first_step_ends_after_six_timeouts_and_not_to_be_tried_again(watch, until, minutes, code, hint):
    _, [(seconds, sentence, ended)] = watch(1, until=until)
    assert 0 <= seconds - (until or 0) - 60 * minutes <= 30  # in which it looks twice at the other ranks
    assert sentence.startswith(f"no progress for {minutes} minutes (--train.timeout): rank 0 waiting ")
    assert sentence.endswith(hint)
    assert ended == code


def test_what_is_compiled_later_may_take_as_long_as_the_first_step(watch):
    _, [(seconds, sentence, _)] = watch(1, until=0, compiling=True)
    assert 360 <= seconds <= 390
    assert sentence.startswith("no progress for 6 minutes ")


def test_time_in_which_a_job_is_suspended_does_not_count(watch):
    _, [(seconds, *_)] = watch(1, until=0, suspended=1000)
    assert seconds > 1000 + 60


def test_without_a_timeout_a_run_may_hang_for_ever_unless_its_launcher_dies(watch):
    assert watch(0, until=0)[1] == []
    dog, [(seconds, _, code)] = watch(0, until=0, orphaned=True)
    assert dog.signals.received == LAUNCHER_DIED
    assert (600 <= seconds <= 630, code) == (True, 75)


def test_collectives_wait_longer_than_the_watchdog_and_not_for_ever(watch):
    dog, [(seconds, *_)] = watch(10)
    assert seconds < dog.collective_seconds < math.inf
    assert 0 < asleep(0).collective_seconds < math.inf


@pytest.fixture
def store(monkeypatch):
    """The store of two ranks, of which this process is the first."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(store.port)}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    return store


@pytest.mark.usefixtures("store")
def test_a_rank_that_never_began_is_named_and_its_host_doubted(watch):
    _, [(_, sentence, code)] = watch(1)
    assert "(--train.timeout): rank 1 never heard from; rank 0 waiting at its start" in sentence
    assert sentence.endswith("; can the hosts reach each other?")
    assert code == 70


@pytest.mark.usefixtures("store")
def test_a_rank_that_waits_for_one_that_failed_ends_with_its_exit_code(watch, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    failed = asleep(1)
    failed.tell(65)
    assert failed.told() is None  # its own failure is no news
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as exited:
        watch(1, until=0)
    assert exited.value.code == 65
