"""Processes that do a job on many tasks: results in the order of the tasks, a bounded look-ahead, and no hang when one dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

CHUNK = 8  # tasks a message
_HELD = 2  # chunks that a worker holds, so that it never waits for the next one
_AHEAD = 4  # chunks per worker that may be under way, and
_AHEAD_AT_LEAST = 32  # so many whatever the number of workers: they go on while the writer waits for the disk


class WorkerDiedError(RuntimeError):
    """A worker process ended without an answer; `task` is what it was working on."""

    def __init__(self, task: Any, exit_code: int | None) -> None:
        self.task = task
        self.how = f"killed by signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"exit code {exit_code}"
        super().__init__(f"a worker process ended ({self.how}) while working on {task}")


class Workers:
    """`count` processes that each run `job` (picklable, Task → result) on the tasks given to `map`; a context manager."""

    def __init__(self, job: Callable[[Any], Any], count: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._job = job
        self._count = count
        self._ahead = max(count * _AHEAD, _AHEAD_AT_LEAST)
        self._closed = threading.Event()
        self._processes: dict[Connection, Any] = {}
        self._done: dict[Connection, Any] = {}
        self._received: dict[Connection, int] = {}

    def __enter__(self) -> Workers:
        # Ctrl-C goes to every process of the terminal: workers inherit that it is ignored, and end when the builder does.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if _in_main_thread() else None
        try:
            for _ in range(self._count):
                ours, theirs = self._context.Pipe()
                done = self._context.RawValue("q", 0)
                process = self._context.Process(target=_work, args=(theirs, self._job, done), daemon=True)
                process.start()
                theirs.close()
                self._processes[ours], self._done[ours], self._received[ours] = process, done, 0
        finally:
            if handler is not None:
                signal.signal(signal.SIGINT, handler)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()

    def map(self, tasks: Iterable[Any]) -> Iterator[list[Any]]:
        """Yield the results in the order of the tasks, several at a time.

        Raises WorkerDiedError when a process ends, and RuntimeError with the traceback when the job itself fails.
        """
        results: queue.Queue[Any] = queue.Queue(maxsize=self._ahead // 2)
        threading.Thread(target=self._deliver, args=(iter(tasks), results), daemon=True).start()
        while (item := results.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _deliver(self, tasks: Iterator[Any], results: queue.Queue[Any]) -> None:
        """Hand out chunks and put what comes back into `results`, in order; then None, or the exception that ended it."""
        try:
            for result in self._exchange(tasks):
                if not self._put(results, result):
                    return
            self._put(results, None)
        except Exception as error:
            self._put(results, error)

    def _exchange(self, tasks: Iterator[Any]) -> Iterator[list[Any]]:
        """Keep every worker busy and yield the chunks of results in order."""
        held: dict[Connection, deque[tuple[int, list[Any]]]] = {connection: deque() for connection in self._processes}
        ready: dict[int, list[Any]] = {}
        sent = due = 0
        while True:
            for connection, chunks in held.items():
                while len(chunks) < _HELD and sent - due < self._ahead and (chunk := list(islice(tasks, CHUNK))):
                    chunks.append((sent, chunk))
                    sent += 1
                    with contextlib.suppress(OSError):  # a worker that is gone shows when its answer is read
                        connection.send(chunk)
            if sent == due:
                return
            for connection in wait([connection for connection, chunks in held.items() if chunks]):
                answer = self._receive(connection, held[connection])
                number, chunk = held[connection].popleft()
                self._received[connection] += len(chunk)
                ready[number] = answer
            while due in ready:
                yield ready.pop(due)
                due += 1

    def _receive(self, connection: Connection, chunks: deque[tuple[int, list[Any]]]) -> list[Any]:
        """Return a worker's results for the oldest of the `chunks` that it holds."""
        try:
            answer = connection.recv()
        except (EOFError, OSError) as error:
            process = self._processes[connection]
            if not self._closed.is_set():
                process.join(timeout=5)
            tasks = [task for _, chunk in chunks for task in chunk]
            finished = self._done[connection].value - self._received[connection]
            raise WorkerDiedError(tasks[min(finished, len(tasks) - 1)], process.exitcode) from error
        if isinstance(answer, str):
            raise RuntimeError(f"a worker failed on one of {chunks[0][1]}:\n{answer}")
        return answer

    def _put(self, results: queue.Queue[Any], item: object) -> bool:
        """Wait until `results` takes the item; False when nobody will take it any more."""
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                results.put(item, timeout=0.2)
                return True
        return False


def _work(connection: Connection, job: Callable[[Any], Any], done: Any) -> None:
    """Answer chunks of tasks until the builder closes the connection or is gone; `done` counts the tasks."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers send it to every process: the builder decides what follows
    with contextlib.suppress(EOFError, OSError):
        while True:
            chunk = connection.recv()
            results = []
            try:
                for task in chunk:
                    results.append(job(task))
                    done.value += 1
            except MemoryError:
                os._exit(137)  # as the kernel's out-of-memory killer ends a process: not to be taken for a fault of the task
            except Exception:
                connection.send(traceback.format_exc())
                return
            connection.send(results)


def _in_main_thread() -> bool:
    """Return whether signal handlers can be set here."""
    return threading.current_thread() is threading.main_thread()
