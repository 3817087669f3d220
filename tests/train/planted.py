"""The small network's trainer with a NaN in the first image of some steps; arguments: FIRST LAST RANK, then the trainer's."""

import sys

import torch.distributed as dist

from fastirv2 import models, train
from fastirv2.training import pixels
from tests.train.small_network import SmallNetwork

OWN = pixels.NORMALISE["unit"]


def main():
    first, last, rank = map(int, sys.argv[1:4])
    sys.argv[1:] = sys.argv[4:]
    taken = 0

    def spoilt(dtype, device):
        own = OWN(dtype, device)

        def normalise(images):
            nonlocal taken
            taken += 1
            images = own(images)
            if first <= taken <= last and rank in (-1, dist.get_rank() if dist.is_initialized() else 0):
                images[0, 0, 0, 0] = float("nan")
            return images

        return normalise

    pixels.NORMALISE["unit"] = spoilt
    models.ARCHITECTURES["paper"] = SmallNetwork
    train.run_command(train.command, train.PROGRAM)


if __name__ == "__main__":
    main()
