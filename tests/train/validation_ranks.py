"""Run as one of four ranks: validates a list of images on 1, 2, 3 and 4 of them; arguments: LIST OUT."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn

from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, ValidationOrder
from fastirv2.models.layers import Classifier, ConvNorm, GlobalPool
from fastirv2.training.distributed import Process
from fastirv2.training.engine import Engine
from fastirv2.training.pixels import unit

CLASSES, CPU = 7, torch.device("cpu")
SIZE = InputConfig(resize=41, crop=37, threads=1)


def network():
    """A small network whose answers depend on the image."""
    torch.manual_seed(0)
    layers = [ConvNorm(3, 16, 5, stride=2), ConvNorm(16, 32, 3, stride=2), ConvNorm(32, 32, 3), GlobalPool()]
    return nn.Sequential(*layers, Classifier(32, CLASSES)).double()


def batches(path, *, batch, world=1, rank=0):
    """The batches of a rank, and how many a validation has."""
    records = open_records(path)
    order = ValidationOrder(records, SIZE, batch=batch, world=world, rank=rank)
    return Loader(records, order, SIZE, batch=batch, device=CPU, cpus=1), order.steps


def validate(path, world, rank):
    """Loss, top-1 and top-5 correct and images, summed over `world` ranks."""
    loader, steps = batches(path, batch=12 // world, world=world, rank=rank)
    engine = Engine(network(), Process(rank, world, rank, world, CPU), amp="fp64", accumulation=1, normalise=unit)
    (sums,) = engine.validate(loader, steps, lambda: False)
    loader.close()
    return sums


def main(path, out):
    rank = int(os.environ["RANK"])
    for world in range(1, 5):
        if rank < world:
            dist.init_process_group("gloo", init_method=f"file://{out}/store-{world}", rank=rank, world_size=world)
            torch.save(validate(path, world, rank), f"{out}/{world}-{rank}.pt")
            dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
