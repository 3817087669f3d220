"""A sentence instead of a core dump when mapped data is gone: cut or overwritten while it is being read."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence

from fastirv2.data.dataset import Records


def on_bus_error(data: Sequence[Records], end: Callable[[str], None]) -> None:
    """Have `end` called with a sentence, in a thread of its own, when a bus error (SIGBUS) comes; it must end the process.

    The thread that met the error meets it again and again until then. As long as that one is none of Python's, as the
    threads that decode are not, others run beside it. Call this from the main thread.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGBUS, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # written to at once, whatever the main thread does

    def watch() -> None:
        while signal.SIGBUS not in os.read(reading, 64):
            pass
        end(next(filter(None, (records.lost() for records in data)), _OTHER.format(" or ".join(r.path for r in data))))

    threading.Thread(target=watch, daemon=True, name="bus-error").start()


_OTHER = (
    "ended by a bus error: the disk failed under {}, or memory that processes share ran out; look into the kernel's log, and "
    "in a container give it more (docker run --shm-size 8g)"
)
