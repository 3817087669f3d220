"""Kill a run again and again, at any instant, and hold its end against a run that nobody disturbed; or a build."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import soak_build as build
import soak_train as train
import tyro

from fastirv2.errors import run_command
from fastirv2.report.machine import check_json, write_json


@dataclass(frozen=True)
class Options:
    """Kill training runs, or builds, at any instant, and check that they still end as undisturbed ones, to the bit."""

    what: Literal["train", "build"] = "train"
    """What is killed: training runs, or fastirv2-build-lmdb."""
    kills: int = 30
    """How many times by kill -9: one of a run's ranks, or torchrun. Builds are stopped by other signals between, too."""
    steps: int = 60
    """train: steps of a run."""
    ranks: int = 2
    """train: processes of a run."""
    data: Path | None = None
    """train: a folder with LMDBs, train and val; the demo's images unless given."""
    images: int = 20_000
    """build: small images; LMDB gets them in commits of some thousands."""
    seed: int = 0
    """Seed of the times and signals."""
    json: Path | None = None
    """Write the result into this file too."""


def demo_data(folder: Path) -> Path:
    """Make the demo's images and their LMDBs."""
    subprocess.run([sys.executable, "-m", "fastirv2.demo", folder / "images"], check=True)
    for name, images in (("train", "120"), ("val", "40")):  # few, so that runs of 60 steps validate twice
        source = [folder / "images" / name, folder / name, "--limit", images]
        subprocess.run([sys.executable, "-m", "fastirv2.build_lmdb", *source], check=True, capture_output=True)
    return folder


def soak_train(folder: Path, options: Options) -> None:
    """Kill training runs and compare each."""
    data = options.data or demo_data(folder / "data")
    result = train.soak(folder, train.Case(data, options.steps, options.ranks), kills=options.kills, seed=options.seed)
    write_json(options.json, result)
    print(
        f"after {len(result['stops'])} kills, {result['runs']} runs of {options.steps} steps on {options.ranks} ranks ended "
        f"exactly as the undisturbed one: {result['tensors']} tensors and {result['lines']} lines are the same"
    )


def soak_build(folder: Path, options: Options) -> None:
    """Stop builds and compare each."""
    result = build.soak(folder, images=options.images, kills=options.kills, seed=options.seed)
    write_json(options.json, result)
    print(
        f"after {len(result['stops'])} stops, {result['before_first_commit']} of them before the first commit, "
        f"{result['builds']} builds ended exactly as the undisturbed one: {result['records']:,} records, the same digest"
    )


def main() -> None:
    """Read the command line and soak what it says."""
    options = tyro.cli(Options, description=__doc__)
    check_json(options.json)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        (soak_build if options.what == "build" else soak_train)(Path(folder), options)


if __name__ == "__main__":
    run_command(main, "soak")
