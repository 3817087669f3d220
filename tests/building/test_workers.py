import operator
import os
import pickle
import signal
import threading
import time
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from fastirv2.building.channel import Ring
from fastirv2.building.workers import CHUNK, WorkerDiedError, Workers, _Buffer
from fastirv2.host import available_cpus


def results(job, tasks, workers):
    with Workers(job, workers) as pool:
        return [result for chunk in pool.map(tasks) for result in chunk]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("tasks", [0, 1, CHUNK, 10 * CHUNK + 3])
def test_results_come_in_the_order_of_the_tasks(workers, tasks):
    assert results(operator.neg, range(tasks), workers) == [-task for task in range(tasks)]


def test_tasks_are_taken_only_a_bounded_way_ahead():
    tasks = count()
    with Workers(operator.neg, 2) as pool:
        chunks = pool.map(tasks)
        for _ in range(100):
            next(chunks)
    ahead = next(tasks) - 100 * CHUNK
    assert 0 <= ahead <= 250 * CHUNK


def kill_once(flag):
    """Be killed when `flag` names a file, which is removed first; return what was given."""
    if flag and os.path.exists(flag):
        os.unlink(flag)
        os.kill(os.getpid(), signal.SIGKILL)
    return flag


def test_a_killed_worker_is_replaced_and_its_tasks_tried_again(tmp_path):
    tasks = [None] * (6 * CHUNK)
    for place in (5, 2 * CHUNK + 5, 4 * CHUNK):
        tasks[place] = str(tmp_path / str(place))
        (tmp_path / str(place)).touch()
    died = []
    with Workers(kill_once, 2, on_death=died.append) as pool:
        assert [result for chunk in pool.map(tasks) for result in chunk] == tasks
    assert sorted(error.task for error in died) == sorted(filter(None, tasks))
    assert {error.how for error in died} == {"killed by signal 9"}
    assert len({error.process for error in died}) == 3


def test_a_task_that_kills_two_workers_is_reported():
    tasks = [signal.SIGCONT] * (3 * CHUNK)
    tasks[2 * CHUNK + 5] = signal.SIGKILL
    with pytest.raises(WorkerDiedError, match="killed by signal 9") as caught:
        results(signal.raise_signal, tasks, 2)
    assert caught.value.task == signal.SIGKILL


def test_workers_that_die_on_everything_end_the_work():
    with pytest.raises(WorkerDiedError, match="killed by signal 9"):
        results(signal.raise_signal, [signal.SIGKILL] * (1000 * CHUNK), 2)


def test_a_worker_that_runs_out_of_memory_counts_as_dead():
    with pytest.raises(WorkerDiedError, match="exit code 137") as caught:
        results(bytearray, [10, 10, 1 << 62, 10], 1)
    assert caught.value.task == 1 << 62


def test_large_results_wait_in_bounded_memory():
    """The first task holds all others back, which may then not all be made ahead."""
    made, size, before = count(), 2 << 20, anonymous_bytes()
    tasks = (0.5 if next(made) == 0 else 0 for _ in range(1000))
    with Workers(partial(large, size), 2, weigh=len) as pool:
        chunks = pool.map(tasks)
        first = len(next(chunks))
        assert anonymous_bytes() - before < 150 << 20
        assert next(made) * size < 600 << 20
        assert sum(len(chunk) for chunk in chunks) == 1000 - first


@pytest.mark.parametrize(("weight", "held"), [(1, 3), (50 << 20, 2)])
def test_results_that_nobody_takes_yet_are_bounded_in_number_and_in_bytes(weight, held):
    buffer = _Buffer(3)
    filling = threading.Thread(target=lambda: [buffer.put(number, weight) for number in range(held + 1)], daemon=True)
    filling.start()
    filling.join(0.2)
    assert filling.is_alive()
    assert [buffer.get() for _ in range(held + 1)] == list(range(held + 1))
    filling.join(60)
    assert not filling.is_alive()


def anonymous_bytes():
    """Return the memory that this process has to itself."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) << 10


@pytest.mark.parametrize("total", [1, 40, 100_000])
def test_few_tasks_are_shared_out_in_small_chunks(total):
    with Workers(operator.neg, 2) as pool:
        chunks = [len(chunk) for chunk in pool.map(range(total), total)]
    assert sum(chunks) == total
    assert max(chunks) == {1: 1, 40: 1, 100_000: CHUNK}[total]


def large(size, seconds):
    time.sleep(seconds)
    return bytes(size)


def test_a_job_that_fails_is_reported_with_its_traceback():
    with pytest.raises(RuntimeError, match="bad operand type"):
        results(operator.neg, [1, 2, "three"], 1)


def test_workers_end_with_the_pool():
    with Workers(operator.neg, 2) as pool:
        processes = [worker.process for worker in pool._workers]
        assert next(iter(pool.map(count())))
    assert all(process.exitcode is not None for process in processes)


def test_no_more_cpus_are_taken_than_the_process_may_use():
    allowed = os.sched_getaffinity(0)
    assert 1 <= available_cpus() <= len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("sizes", [[10], [3 << 20], [5 << 20], [1_500_000] * 40, [0, 1, 4 << 20, 7, (4 << 20) - 7, 8]])
def test_large_results_arrive_whole_whether_shared_memory_has_room_or_not(sizes):
    with Workers(shared, 2, weigh=len) as pool:
        got = [result for chunk in pool.map(enumerate(sizes)) for result in chunk]
    assert [len(value) for value in got] == sizes
    assert all(type(value) is bytes and value == pattern(*task) for value, task in zip(got, enumerate(sizes), strict=True))


def pattern(number, size):
    return bytes([(number * 37 + 11) % 256]) * size


def shared(task):
    return SizedBuffer(pattern(*task))


def test_room_in_shared_memory_is_not_left_to_others_before_it_is_copied():
    ring, whole = Ring(), memoryview(bytes(4 << 20))
    begins = ring.put([whole])
    assert ring.put([whole]) is None
    assert ring.take(begins, [len(whole)]) == [bytes(whole)]
    assert ring.put([whole]) is None
    assert ring.take([], []) == []
    assert ring.put([whole]) == [4 << 20]


class SizedBuffer:
    """What is weighed by its length and travels as a PickleBuffer."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __reduce_ex__(self, protocol):
        return bytes, (pickle.PickleBuffer(self.data),)
