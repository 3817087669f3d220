"""Run as one of several ranks: meets the others again and again, as training does, under a watchdog, until told to stop."""

import os
import sys
import time

from fastirv2.errors import run_command
from fastirv2.training.distributed import Agreement, join, leave
from fastirv2.training.signals import Signals, name
from fastirv2.training.watchdog import Watchdog


def say(text):
    sys.stdout.write(f"{text}\n")  # as one piece: torchrun's ranks do not buffer
    sys.stdout.flush()


def main():
    minutes, steps = float(sys.argv[1]), int(sys.argv[2])
    watchdog = Watchdog("watched", minutes, Signals())
    join("cpu", watchdog.collective_seconds)
    agreement, step = Agreement(watchdog), 0
    watchdog.describe = lambda: f"after step {step}"
    say(os.getpid())
    while step != steps:
        try:
            agreed, step = agreement.reach(), step + 1
        except RuntimeError:
            return watchdog.told() or 1
        if step == 20:
            say("trains")
        if agreed.signal:
            say(f"stopped by {name(agreed.signal)}")
            agreement.close()
            leave()
            return 75
        time.sleep(0.05)
    time.sleep(1000)
    return 0


if __name__ == "__main__":
    run_command(main, "watched")
