"""Processes that do a job on many tasks: results in the order of the tasks, a bounded look-ahead, and no hang when one dies."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from fastirv2.building.channel import Ring, receive, send
from fastirv2.errors import DataError

CHUNK = 32  # tasks a message, or
_CHUNKS_A_WORKER = 16  # fewer, so that each worker gets so many messages: all end at about the same time
_HELD = 2  # chunks that a worker holds, so that it never waits for the next one
_AHEAD = 4  # chunks per worker that may be under way, and
_AHEAD_AT_LEAST = 32  # so many whatever the number of workers: they go on while the writer waits for the disk
_AHEAD_BYTES = 96 << 20  # of results that wait for an earlier one, and as many again that wait to be taken
_MESSAGE_BYTES = 1 << 20  # of results after which a worker sends what it has
_FILES_A_WORKER, _FILES_BESIDES = 6, 256  # descriptors: pipe, shared memory, and what the fork server keeps for each
_DEATHS = 8  # that a pool outlives: on a machine without memory each replacement would die in its turn


class WorkerDiedError(RuntimeError):
    """A worker process ended without an answer; `task` is what it was working on, `how` says what ended it."""

    def __init__(self, task: Any, process: int | None, exit_code: int | None) -> None:
        self.task = task
        self.process = process
        self.exit_code = exit_code
        self.how = f"killed by signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
        super().__init__(f"worker process {process} ended ({self.how}) while working on {task}")


@dataclass
class _Chunk:
    """Some neighbouring tasks, how many are done, and the results, of so many bytes, that wait to be passed on."""

    number: int
    tasks: list[Any]
    done: int = 0
    results: list[Any] = field(default_factory=list)
    size: int = 0

    def left(self) -> list[Any]:
        """Return the tasks that are not done yet."""
        return self.tasks[self.done :]


@dataclass
class _Worker:
    """A process, our end of the connection to it, the task it is at, counted from 0, and the chunks that it was sent."""

    process: Any
    connection: Connection
    ring: Ring
    at: Any
    received: int = 0
    chunks: deque[_Chunk] = field(default_factory=deque)

    def send(self, chunk: _Chunk) -> None:
        """Hand over what is left of a chunk."""
        self.chunks.append(chunk)
        with contextlib.suppress(OSError):  # a worker that is gone shows when its answer is read
            self.connection.send(chunk.left())

    def current_task(self) -> Any:
        """Return what it is working on, or was when it ended."""
        tasks = [task for chunk in self.chunks for task in chunk.left()]
        return tasks[min(self.at.value - self.received, len(tasks) - 1)]


class Workers:
    """`count` processes that each run `job` (picklable, Task → result) on the tasks given to `map`; a context manager.

    A job may have a method `of_chunk` that takes some neighbouring tasks, at most `CHUNK`, and yields their results in order;
    it calls its second argument with the place of the task that it works on, so that a worker's death can be laid to it.
    What a result holds as `pickle.PickleBuffer` arrives as bytes, by way of shared memory.
    `modules` are loaded once, before the processes are forked; `weigh` gives a result's size in bytes, which bounds what
    is made ahead. When a process ends by itself, `on_death` is called and another one tries its tasks again. Where no process
    can be started, that is a DataError.
    """

    def __init__(
        self,
        job: Callable[[Any], Any],
        count: int,
        *,
        modules: Sequence[str] = (),
        weigh: Callable[[Any], int] | None = None,
        on_death: Callable[[WorkerDiedError], None] | None = None,
    ) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["__main__", *_neighbours(), *modules])
        self._job, self._count, self._weigh, self._on_death = job, count, weigh, on_death
        self._ahead = max(count * _AHEAD, _AHEAD_AT_LEAST)
        self._closed = False
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._tried_again: set[int] = set()

    def __enter__(self) -> Workers:
        _allow_files(_FILES_A_WORKER * self._count + _FILES_BESIDES)
        # Ctrl-C goes to every process of the terminal: workers inherit that it is blocked, and end when the builder does.
        resource_tracker.ensure_running()  # which would let it through again when it starts
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(self._count):
                self._start()
        except BaseException:
            self.__exit__()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()

    def map(self, tasks: Iterable[Any], total: int | None = None) -> Iterator[list[Any]]:
        """Yield the results in the order of the tasks, several at a time; `total` is their number, where it is known.

        Raises WorkerDiedError when processes end that work on the same tasks twice, and RuntimeError with the traceback
        when the job itself fails.
        """
        buffer = _Buffer(self._ahead // 2)
        chunk = CHUNK if total is None else max(1, min(CHUNK, total // (_CHUNKS_A_WORKER * self._count)))
        rest = iter(tasks)
        chunks = iter(lambda: list(islice(rest, chunk)), [])
        threading.Thread(target=self._deliver, args=(chunks, buffer), daemon=True).start()
        try:
            while (item := buffer.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            buffer.close()

    def _start(self) -> _Worker:
        """Add a process."""
        ours, theirs = self._context.Pipe()
        at, ring = self._context.RawValue("q", 0), Ring()
        process = self._context.Process(target=_work, args=(theirs, ring, self._job, self._weigh, at), daemon=True)
        worker = _Worker(process, ours, ring, at)
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            try:
                process.start()
            except (OSError, EOFError) as error:
                raise DataError(_why_none_starts(error)) from error
            self._workers.append(worker)
        theirs.close()
        return worker

    def _deliver(self, chunks: Iterator[list[Any]], buffer: _Buffer) -> None:
        """Hand out chunks of tasks and put what comes back into the buffer, in order; then None, or why it ended."""
        try:
            for results, size in self._exchange(chunks):
                if not buffer.put(results, size):
                    return
            buffer.put(None, 0)
        except Exception as error:
            buffer.put(error, 0)

    def _exchange(self, chunks: Iterator[list[Any]]) -> Iterator[tuple[list[Any], int]]:
        """Keep every worker busy and yield results in order, with their size in bytes.

        While many bytes wait, only the worker is listened to that the next results come from: the others have to wait.
        """
        under_way: dict[int, _Chunk] = {}
        sent = due = waiting_bytes = 0
        active = list(self._workers)
        while True:
            for worker in active:
                while (
                    len(worker.chunks) < _HELD
                    and sent - due < self._ahead
                    and waiting_bytes < _AHEAD_BYTES
                    and (tasks := next(chunks, None))
                ):
                    under_way[sent] = _Chunk(sent, tasks)
                    worker.send(under_way[sent])
                    sent += 1
            if not under_way:
                return
            busy = {
                worker.connection: worker
                for worker in active
                if worker.chunks and (waiting_bytes < _AHEAD_BYTES or worker.chunks[0].number == due)
            }
            for connection in wait(list(busy)):
                worker = busy[connection]
                answer = self._receive(worker)
                if answer is None:
                    active[active.index(worker)] = self._replace(worker)
                else:
                    waiting_bytes += self._note(worker, answer)
            while chunk := under_way.get(due):
                if chunk.results:
                    yield chunk.results, chunk.size
                    waiting_bytes -= chunk.size
                    chunk.results, chunk.size = [], 0
                if chunk.left():
                    break
                del under_way[due]
                due += 1

    def _receive(self, worker: _Worker) -> list[Any] | None:
        """Return the results that a worker has sent; None when it is gone."""
        try:
            answer = receive(worker.connection, worker.ring)
        except (EOFError, OSError):
            return None
        if isinstance(answer, str):
            raise RuntimeError(f"a worker failed on one of {worker.chunks[0].tasks}:\n{answer}")
        return answer

    def _note(self, worker: _Worker, results: list[Any]) -> int:
        """Add results to the oldest chunk that a worker holds, and return their size in bytes."""
        chunk, size = worker.chunks[0], sum(map(self._weigh, results)) if self._weigh else 0
        chunk.results += results
        chunk.done += len(results)
        chunk.size += size
        worker.received += len(results)
        if not chunk.left():
            worker.chunks.popleft()
        return size

    def _replace(self, dead: _Worker) -> _Worker:
        """Start another worker on the tasks of one that is gone; raises WorkerDiedError when they were tried twice."""
        dead.process.join(timeout=5)
        error = WorkerDiedError(dead.current_task(), dead.process.pid, dead.process.exitcode)
        first = dead.chunks[0].number
        if self._closed or first in self._tried_again or len(self._tried_again) == _DEATHS:
            raise error
        self._tried_again.add(first)
        if self._on_death:
            self._on_death(error)
        worker = self._start()
        for chunk in dead.chunks:
            worker.send(chunk)
        return worker


class _Buffer:
    """Chunks of results on their way to the thread that takes them, bounded in number and in bytes."""

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks
        self._items: deque[tuple[Any, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Any, weight: int) -> bool:
        """Wait until there is room and add an item; False when nobody will take it any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (len(self._items) < self._chunks and self._bytes < _AHEAD_BYTES))
            self._items.append((item, weight))
            self._bytes += weight
            self._changed.notify_all()
            return not self._closed

    def get(self) -> Any:
        """Wait for the next item."""
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            item, weight = self._items.popleft()
            self._bytes -= weight
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Let the thread that fills it end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _work(connection: Connection, ring: Ring, job: Callable[[Any], Any], weigh: Callable[[Any], int] | None, at: Any) -> None:
    """Answer chunks of tasks until the builder closes the connection or is gone; `at` says which task is worked on."""
    for number in (signal.SIGINT, signal.SIGTERM):  # schedulers send it to every process: the builder decides what follows
        signal.signal(number, signal.SIG_IGN)
    run_chunk = getattr(job, "of_chunk", None) or functools.partial(_one_by_one, job)
    with contextlib.suppress(EOFError, OSError):
        while True:
            tasks, first = connection.recv(), at.value
            outcomes = run_chunk(tasks, lambda number, first=first: setattr(at, "value", first + number))
            results, size = [], 0
            for _ in tasks:
                results.append(_attempt(outcomes, connection, ring))
                size += weigh(results[-1]) if weigh else 0
                if size >= _MESSAGE_BYTES:
                    send(connection, ring, results)
                    results, size = [], 0
            at.value = first + len(tasks)
            if results:
                send(connection, ring, results)


def _one_by_one(job: Callable[[Any], Any], tasks: Sequence[Any], at: Callable[[int], None]) -> Iterator[Any]:
    for number, task in enumerate(tasks):
        at(number)
        yield job(task)


def _attempt(outcomes: Iterator[Any], connection: Connection, ring: Ring) -> Any:
    """Return the job's next result; when the job fails, send why and end the process."""
    try:
        return next(outcomes)
    except MemoryError:
        os._exit(137)  # as the kernel's out-of-memory killer ends a process: not to be taken for a fault of the task
    except Exception:
        send(connection, ring, traceback.format_exc())
        sys.exit(1)


def _why_none_starts(error: Exception) -> str:
    if "AF_UNIX" in str(error):
        return (
            f"worker processes cannot be started: {tempfile.gettempdir()} is too long a path for the socket by which they are "
            "asked; set TMPDIR to a shorter one, such as /tmp"
        )
    return (
        f"worker processes cannot be started ({error or type(error).__name__}); memory or open files (ulimit -n) may be "
        "scarce: give the same command with fewer --workers"
    )


def _neighbours() -> list[str]:
    """Return the modules of this package that are loaded: every worker would load them anew with the program's own."""
    return [name for name in sys.modules if name.startswith(f"{__package__}.")]


def _allow_files(count: int) -> None:
    """Raise the soft limit on open files to `count`, as far as the hard one allows: many systems have 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        most = count if hard == resource.RLIM_INFINITY else min(count, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
