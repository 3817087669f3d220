"""The small network's trainer with a NaN in the first image of some steps; arguments: FIRST LAST RANK, then the trainer's."""

import sys

import torch.distributed as dist

from fastirv2 import models, train
from fastirv2.training import engine
from tests.train.small_network import SmallNetwork

OWN = engine.NORMALISE["unit"]


def main():
    first, last, rank = map(int, sys.argv[1:4])
    sys.argv[1:] = sys.argv[4:]
    taken = 0

    def spoilt(images, dtype):
        nonlocal taken
        taken += 1
        images = OWN(images, dtype)
        if first <= taken <= last and rank in (-1, dist.get_rank() if dist.is_initialized() else 0):
            images[0, 0, 0, 0] = float("nan")
        return images

    engine.NORMALISE["unit"] = spoilt
    models.ARCHITECTURES["paper"] = SmallNetwork
    train.run_command(train.command, train.PROGRAM)


if __name__ == "__main__":
    main()
