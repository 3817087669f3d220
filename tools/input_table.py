"""What bench_data.py prints: the stages, the ways to the same batches, cold pages, and the verdict."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 100  # where the output is no terminal, so that nothing is cut off
STAGES = {
    "read": "read",
    "decode": "+ decode",
    "resize/crop": "+ resize, crop",
    "hand-over": "+ hand-over to torch",
}


def print_result(result: dict[str, Any]) -> None:
    """Print what was measured as tables."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = WIDTH
    cached = result["resident_share"]
    console.print(
        f"{result['device']}, {result['threads']} threads, {result['cpus']} CPUs, batches of {result['batch']}, "
        f"{result['records']:,} records; {cached:.0%} of data.mdb was in the page cache"
    )
    if result["load_average"] > result["cpus"] / 4:
        load = f"{result['load_average']:.1f}"
        console.print(f"the load average was {load} before it began: where other processes run too, rates are less")
    for table in (_stages(result), _ways(result)):
        console.print(table)
    for line in _verdict_lines(result):
        console.print(line)


def _stages(result: dict[str, Any]) -> Table:
    """Return the stages, with what is left of them on cold pages."""
    table = _table("stage", "images/s", "p50 ms", "p99 ms", "CPUs", "cold images/s")
    cold = {"read": result["cold"]["read"], "hand-over": result["cold"]["loader"]}
    for stage, figures in result["stages"].items():
        batch = figures["milliseconds_per_batch"]
        rate = figures["images_per_second"]["median"]
        label = STAGES[stage] if stage != "resize/crop" or "decode" in result["stages"] else "+ decode what is cut"
        left = cold.get(stage)
        table.add_row(
            label, f"{rate:,.0f}", f"{batch['p50']:.1f}", f"{batch['p99']:.1f}", f"{figures['cpu_share']:.0%}",
            f"{left['median']:,.0f}" if left else "",
        )  # fmt: skip
    return table


def _ways(result: dict[str, Any]) -> Table:
    """Return rates and ratios, medians with their least and most."""
    table = _table("", "median", "", "least", "most")
    for name, figures in result["images_per_second"].items():
        table.add_row(name, f"{figures['median']:,.0f}", "images/s", f"{figures['min']:,.0f}", f"{figures['max']:,.0f}")
    for name, figures in result["ratios"].items():
        table.add_row(name, f"{figures['median']:.2f}", "×", f"{figures['min']:.2f}", f"{figures['max']:.2f}")
    for name, figures in result["main_thread_microseconds_per_record"].items():
        if figures:
            median, least, most = (f"{figures[key]:.2f}" for key in ("median", "min", "max"))
            table.add_row(f"main thread a record, {name}", median, "µs", least, most)
    return table


def _verdict_lines(result: dict[str, Any]) -> list[str]:
    """Return the lines below the tables."""
    why_not = result["cold"]["why_not"]
    return ([f"cold pages: not measured, {why_not}"] if why_not else []) + result["verdict"]["sentences"]


def _table(name: str, *columns: str) -> Table:
    """Return an empty table of a name and figures."""
    table = Table(name, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    return table
