"""Kill builds again and again, at any instant, and hold what they end with against a build that nobody disturbed.

An undisturbed build is timed first, so that every stop comes at a random moment of a build: SIGKILL to the whole process group
as often as asked; besides, a quarter as often each, SIGKILL to the builder alone, SIGTERM and SIGINT. Each time the same
command goes on with another number of workers. Whenever a build is done, it must be the undisturbed one's equal and pass
--check --decode, and the next one begins. Where a record lies in data.mdb may differ, as a stop commits what is done; that
index.npy says where it does lie is for --check.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any, NamedTuple

import numpy as np

from fastirv2.data.lmdb_file import read_meta
from fastirv2.errors import DataError
from fastirv2.host import available_cpus

TOOLS = Path(__file__).resolve().parent
EQUAL = ("names.jsonl", "rejected.jsonl")
OF_RECORDS = ["length", "label", "width", "height"]  # in index.npy
SIDE = 64  # pixels of the images before --resize
END_SECONDS = 60  # within which a stopped build and all its processes must have ended
STOPPED = 75


class Blow(NamedTuple):
    """A signal, to the whole process group or to the builder alone."""

    number: signal.Signals
    alone: bool = False

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.number.name + (" alone" if self.alone else "")


BESIDES = (Blow(signal.SIGKILL, alone=True), Blow(signal.SIGTERM), Blow(signal.SIGINT))


@dataclass
class Disturbed:
    """What was done to the builds."""

    stops: list[dict[str, Any]] = field(default_factory=list)
    builds: int = 0


def make_source(folder: Path, images: int) -> Path:
    """Return class folders with small distinct JPEGs; some are broken, some are PNGs, so that there is something to report."""
    source = folder / "source"
    make = [sys.executable, TOOLS / "photographs.py", source, "--images", str(images), "--side", str(SIDE)]
    subprocess.run(make, check=True)
    for number, path in enumerate(sorted(source.rglob("*.jpg"))):
        if number % 97 == 0:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif number % 89 == 0:
            rewrite(path)
    return source


def rewrite(path: Path) -> None:
    """Make a JPEG a PNG under the same name."""
    from PIL import Image

    Image.open(path).save(path, "PNG")


def command(source: Path, out: Path, workers: int) -> list[str]:
    """Return the building command."""
    options = ["--resize", "48x48", "--max-bad", "0.1", "--workers", str(workers)]
    return [sys.executable, "-m", "fastirv2.build_lmdb", str(source), str(out), *options]


def finish(line: list[str]) -> float:
    """Run a command to its end and return its seconds."""
    begun = perf_counter()
    done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"{' '.join(line)} ended with exit code {done.returncode}: {done.stderr.strip()}")
    return perf_counter() - begun


def stop_once(line: list[str], blow: Blow, seconds: float) -> int | None:
    """Start a build and stop it after so long; return its exit code, None when it was done before."""
    process = subprocess.Popen(
        line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        try:
            if process.wait(seconds):
                raise DataError(f"{' '.join(line)} ended by itself with exit code {process.returncode}: {_said(process)}")
            return None
        except subprocess.TimeoutExpired:
            (os.kill if blow.alone else os.killpg)(process.pid, blow.number)
            await_end(process, blow)
            if process.returncode not in (0, STOPPED, -blow.number, 128 + blow.number):
                raise DataError(f"after {blow.name} the build ended with {process.returncode}: {_said(process)}") from None
            return process.returncode


def await_end(process: subprocess.Popen[str], blow: Blow) -> None:
    """Wait until no process of a stopped build is left; raises DataError when one stays."""
    deadline = monotonic() + END_SECONDS
    while process.poll() is None or members(process.pid):
        if monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise DataError(f"{END_SECONDS:g} s after {blow.name} a process of the build was still there")
        sleep(0.02)


def members(group: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, number = path.read_text().rpartition(")")[2].split()[:3]
            if int(number) == group and state != "Z":
                found.append(int(path.parent.name))
    return found


def _said(process: subprocess.Popen[str]) -> str:
    """Return the last line of what a finished process said."""
    return (process.stderr.read() if process.stderr else "").strip().rpartition("\n")[2]


def records(out: Path) -> int:
    """Return how many records an unfinished or finished build has committed."""
    for folder in (out, out.with_name(out.name + ".partial")):
        with contextlib.suppress(DataError):
            return read_meta(folder).entries
    return 0


def disturb(source: Path, folder: Path, plan: list[Blow], seconds: float, choose: random.Random) -> Disturbed:
    """Stop builds as `plan` says, each within so many seconds of its start; finish and compare every one."""
    done = Disturbed()
    while plan:
        out = folder / f"disturbed-{done.builds}"
        while plan and not out.exists():
            workers, moment = choose.randint(1, 2 * available_cpus()), choose.uniform(0, seconds)
            code = stop_once(command(source, out, workers), plan[0], moment)
            if code is None:
                break
            stop = {"signal": plan.pop(0).name, "seconds": moment, "workers": workers, "exit_code": code}
            done.stops.append(stop | {"build": done.builds, "records": records(out), "published": out.exists()})
            print(f"{len(done.stops):3}: {stop['signal']} after {moment:.2f} s, {records(out):,} records", flush=True)
        if not out.exists():
            finish(command(source, out, choose.randint(1, 2 * available_cpus())))
        compare(folder / "calm", out)
        shutil.rmtree(out)
        done.builds += 1
    return done


def compare(calm: Path, disturbed: Path) -> None:
    """Raise DataError where a build differs from the undisturbed one, or when --check --decode finds a fault."""
    digests = [json.loads((folder / "dataset.json").read_bytes())["digest"] for folder in (calm, disturbed)]
    different = ["the digest"] if digests[0] != digests[1] else []
    calm_index, disturbed_index = (np.load(folder / "index.npy")[OF_RECORDS] for folder in (calm, disturbed))
    different += [] if np.array_equal(calm_index, disturbed_index) else ["index.npy"]
    different += [name for name in EQUAL if (calm / name).read_bytes() != (disturbed / name).read_bytes()]
    if different:
        raise DataError(f"a build that was stopped and went on differs from an undisturbed one in {' and '.join(different)}")
    left = sorted(path.name for path in disturbed.parent.glob(disturbed.name + ".*"))
    if left:
        raise DataError(f"a finished build left {', '.join(left)} behind")
    finish([sys.executable, "-m", "fastirv2.build_lmdb", "--check", str(disturbed), "--decode"])


def soak(folder: Path, *, images: int, kills: int, seed: int) -> dict[str, Any]:
    """Do it all in `folder` and return what was done. Raises DataError at the first difference."""
    choose = random.Random(seed)
    source = make_source(folder, images)
    seconds = min(finish(command(source, folder / name, available_cpus())) for name in ("cold", "calm"))
    stored = records(folder / "calm")
    plan = [Blow(signal.SIGKILL)] * kills + [blow for blow in BESIDES for _ in range(max(1, kills // 4))]
    choose.shuffle(plan)
    done = disturb(source, folder, plan, seconds, choose)
    return {
        "what": __doc__, "images": images, "records": stored, "rejected": images - stored, "seed": seed,
        "undisturbed_seconds": seconds, "signals": dict(Counter(stop["signal"] for stop in done.stops)), "builds": done.builds,
        "before_first_commit": sum(not stop["records"] for stop in done.stops),
        "after_first_commit": sum(stop["records"] > 0 and not stop["published"] for stop in done.stops),
        "after_publishing": sum(stop["published"] for stop in done.stops),
        "same": True, "stops": done.stops,
    }  # fmt: skip
