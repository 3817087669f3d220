"""Run as a rank: normalise its share of a batch in several ways and save what came out."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from fastirv2.models.norm import BatchNorm2d, Statistics, flat_statistics, unite_running_statistics
from tests.models.norm_case import case, normalise


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    x, dy = (t.chunk(world)[rank] for t in case())
    pairs = [dist.new_group([first, first + 1]) for first in range(0, world, 2)]
    results = {}
    for name, statistics in (("all", Statistics(dist.group.WORLD)), ("pairs", Statistics(pairs[rank // 2]))):
        norm = BatchNorm2d(5).double()
        norm.statistics = statistics
        results[name] = normalise(norm, x, dy)
        flat = flat_statistics(norm)
        for way in (True, False):
            norm.running_mean.copy_(results[name]["mean"])
            unite_running_statistics(flat, average=way)
            results[name][f"mean_{way}"] = norm.running_mean.clone()
    torch.save(results, out / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
