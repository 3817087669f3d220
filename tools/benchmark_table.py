"""The README's table of what was measured, made from benchmarks/*.json: `--write` puts it in place.

A file says what it is by what it holds; one that no row here is made for is an error, so that no measurement is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from fastirv2.errors import DataError, run_command

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- made by tools/benchmark_table.py from benchmarks/ -->", "<!-- end -->"
Measured = dict[str, Any]
Row = tuple[str, str]  # what was measured, and the result


@dataclass(frozen=True)
class Options:
    """Print the table of benchmarks/, or put it into README.md."""

    write: bool = False
    """Put it into README.md."""


def model_rows(found: Measured) -> list[Row]:
    """Rows of bench_model.py, one a batch and way."""
    rows = []
    for row in found["batches"]:
        images = (
            f"{_rate(row['train']['median'])} images/s, {100 * row['share_of_product']:.0f} % of the rate of a matrix product"
        )
        mfu = f", MFU {100 * row['mfu']:.1f} %" if row.get("mfu") else ""
        memory = f", {row['peak_memory_bytes'] / 2**30:.1f} GiB" if row.get("peak_memory_bytes") else ""
        ranks = f"{found['ranks']} × " if found.get("ranks", 1) > 1 else ""
        what = f"{_network(found, row)} at {found['size']}², batch {ranks}{row['batch']}, {found['amp']}{_way(row)}"
        rows.append((what, f"{images} in that precision{mfu}{memory}{_first_step(row)}"))
    for row in found.get("times_timm", []):
        what = f"the same at batch {row['batch']}{_way(row)}, beside timm's step, taking turns"
        rows.append((what, f"**{_ratio(row['ratio'])} timm's rate"))
    return rows


def _network(found: Measured, row: Measured) -> str:
    timms = row.get("network") == "timm"
    return "training step of timm's `inception_resnet_v2`" if timms else f"training step of `{found['arch']}`"


def _first_step(row: Measured) -> str:
    """Say what the first step took where it had to be compiled, and whether the kernels were there already."""
    graphs = row.get("graphs")
    if not graphs:
        return ""
    how = f"which compiled {graphs['compiled']} graphs" if graphs["compiled"] else "all graphs were there already"
    return f"; the first step {row['first_step_seconds']:.1f} s, {how}"


def _way(row: Measured) -> str:
    """Say how a step is run, as far as it is not the usual way."""
    compiled = f", compiled ({row['compile']})" if row.get("compile", "off") != "off" else ""
    drawn = ", branches as drawn" if row.get("merge") == "off" and row.get("network") != "timm" else ""
    norm = {"shared": ", statistics over all ranks", "torch": ", torch's SyncBatchNorm"}.get(row.get("norm", ""), "")
    return compiled + drawn + norm


def train_rows(found: Measured) -> list[Row]:
    """Rows of bench_train.py, one for each number of ranks."""
    rows = []
    for row in found["rows"]:
        ratio, step = row["both_to_synthetic"], row["both"]["step_seconds"]
        rate = _rate(row["both"]["images_per_second"]["median"])
        images = f"{row['ranks']} × {row['accumulation']} × {row['batch']} images"
        what = f"training `{row['arch']}` at {row['crop']}² from {found['data']}, {images}, {row['amp']}{_way(row)}"
        result = (
            f"{rate} images/s, **{ratio['median']:.3f} ×** the step on a batch that lies ready ({ratio['min']:.3f} to "
            f"{ratio['max']:.3f}); a step {1000 * step['median']:,.0f} ms, 95 % within {1000 * step['p95']:,.0f}; waiting "
            f"{100 * row['data_wait_share']:.0f} %; first step {row['first_step_seconds']:.1f} s"
        )
        rows.append((what, result))
    return rows


def data_rows(found: Measured) -> list[Row]:
    """Rows of bench_data.py."""
    rates = {name: _rate(rate["median"]) for name, rate in found["images_per_second"].items()}
    ratios = {name: _ratio(ratio) for name, ratio in found["ratios"].items()}
    far = found["ratios"]["loader, resized / Pillow"]["median"]
    return [
        (
            f"input from images of 500 × 375, {found['resize']} → {found['crop']}, batches of {found['batch']}",
            f"{rates['loader']} images/s, **{ratios['loader / readers.caffe']} DALI's own Caffe reader with the same "
            f"operations, **{ratios['loader / Pillow']} Pillow in a torch DataLoader with as many workers",
        ),
        (
            f"the same from records of {found['resize']}²",
            f"{rates['loader, resized']} images/s, **{ratios['loader, resized / Pillow, resized']} Pillow from the same "
            f"records, {far:.2f} × Pillow from the originals",
        ),
        (
            "bringing records into a graph",
            f"{rates['reading']} images/s, **{ratios['reading / readers.caffe, reading']} DALI's reader",
        ),
    ]


def build_rows(found: Measured) -> list[Row]:
    """Rows of bench_data.py --build."""
    plain, resized = (found["speed"][resize]["marginal"] for resize in ("none", "328x328"))
    whole = found["speed"]["328x328"]["whole"]["ratio"]["median"]
    return [
        (
            f"building from {found['bytes_per_image'] / 1000:.0f} kB JPEGs, nothing resized",
            f"{_rate(plain['images_per_second']['builder'])} images/s, {plain['ratio']:.2f} of strictly decoding the same "
            "files with as many processes and writing nothing",
        ),
        (
            "the same with `--resize 328x328`",
            f"{_rate(resized['images_per_second']['builder'])} images/s, **{resized['ratio']:.2f} ×** the usual script "
            "(Pillow: open, convert, bilinear resize, save, LMDB put); both without start-up, which makes it "
            f"{whole:.2f} × for all {found['images']:,}",
        ),
    ]


def memory_rows(found: Measured) -> list[Row]:
    """Rows of bench_data.py --build --memory."""
    folders, lines = found["folders"], found["list"]
    result = (
        f"{folders['peak_megabytes']:.0f} MB at most for {folders['built']:,} images, {lines['peak_megabytes']:.0f} MB for a "
        f"list of {found['lines'] / 1e6:g} million lines"
    )
    return [("memory of all of a builder's processes", result)]


def soak_build_rows(found: Measured) -> list[Row]:
    """Rows of soak.py --what build."""
    kills = found["signals"]["SIGKILL"]
    others = sum(found["signals"].values()) - kills
    how = "as the undisturbed one, `--check --decode` passed" if found["same"] else "NOT all as the undisturbed one"
    what = f"builds killed {kills} times by SIGKILL and {others} times otherwise, at random moments"
    return [(what, f"all {found['builds']} builds {how}")]


def soak_train_rows(found: Measured) -> list[Row]:
    """Rows of soak.py."""
    kills = sum(found["killed"].values())
    how = "to the bit as the undisturbed one" if found["same"] else "NOT all as the undisturbed one"
    what = f"training of {found['steps']} steps on {found['ranks']} ranks, a rank or torchrun killed {kills} times by SIGKILL"
    return [(what, f"all {found['runs']} runs {how}: {found['tensors']:,} tensors, {found['lines']} lines of metrics each")]


KINDS: tuple[tuple[str, Callable[[Measured], list[Row]]], ...] = (  # what only a file of that kind holds
    ("batches", model_rows),
    ("both_to_synthetic", train_rows),
    ("speed", build_rows),
    ("folders", memory_rows),
    ("killed", soak_train_rows),
    ("stops", soak_build_rows),
    ("ratios", data_rows),
)


def rows_of(file: Path) -> list[tuple[str, str, str, str]]:
    """Return a file's rows: what, result, machine, command.

    Raises:
        DataError: no row is known for what it holds, or it lacks machine or command.
    """
    found = json.loads(file.read_text())
    if not found.get("machine") or not found.get("command"):
        raise DataError(f"{file} does not say on which machine and by which command it was measured")
    held = set(found) | set((found.get("rows") or [{}])[0])
    make = next((make for key, make in KINDS if key in held), None)
    if make is None:
        raise DataError(f"{file} is of no kind that tools/benchmark_table.py knows")
    machine, command = _machine(found["machine"]), f"`{found['command']}`"
    return [(what, result, machine, command) for what, result in make(found)]


def _machine(machine: Measured) -> str:
    """Say in a few words what something was measured on."""
    if machine["gpus"]:
        return ", ".join(f"{machine['gpus'].count(name)} × {name}" for name in dict.fromkeys(machine["gpus"]))
    cores = "a core" if machine["cpus"] == 1 else f"{machine['cpus']} cores"
    return f"{cores}, {machine['cpu'].replace('(R)', '').removesuffix(' Processor')}"


def table(folder: Path) -> str:
    """Return the table of all files of a folder, one after the other, a command once."""
    lines, before = ["| what | result | on | command |", "|---|---|---|---|"], ""
    for file in sorted(folder.glob("*.json")):
        for what, result, machine, command in rows_of(file):
            lines.append(f"| {what} | {result} | {machine} | {'the same' if command == before else command} |")
            before = command
    return "\n".join(lines)


def put(readme: str, made: str) -> str:
    """Return a README with the table between its marks."""
    pattern = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n\n{made}\n\n{END}", readme)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ×** ({ratio['min']:.2f} to {ratio['max']:.2f})"


def main() -> None:
    """Read the command line; print the table or put it in place."""
    options, made = tyro.cli(Options, description=__doc__), table(ROOT / "benchmarks")
    if not options.write:
        return print(made)
    path = ROOT / "README.md"
    path.write_text(put(path.read_text(), made))
    return None


if __name__ == "__main__":
    run_command(main, "benchmark_table")
