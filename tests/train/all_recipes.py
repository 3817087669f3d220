"""Runs every recipe in one process, since starting one is most of a short run's time; arguments: TRAIN VAL OUT."""

import os
import shutil
import sys
from pathlib import Path

from fastirv2 import models, train
from fastirv2.config import recipe_names
from tests.train.small_network import SmallNetwork

STEPS, BATCH = 20, 4
# One recipe of each network trains it; the others a small one, as far as their networks are not the point. `make soak` has
# every recipe train its own.
OWN = recipe_names() if "OWN_NETWORKS" in os.environ else ["paper", "finetune"]
SMALL = {"input.crop": 75, "input.resize": 82, "input.threads": 1, "train.amp": "fp32", "train.epochs": 1, "log.every": 1}
SMALL |= {"train.global-batch": BATCH, "train.bn-batch": BATCH}


def run(recipe, train_path, val_path, out):
    """Train one epoch with the real command; of what the run leaves only its checkpoints, large ones, are deleted."""
    options = [text for name, value in SMALL.items() for text in (f"--{name}", str(value))]
    if recipe == "fast":
        options += ["--input.sizes", "1:75"]  # its own begin beyond this run's end
    paths = ["--train", train_path, "--val", val_path, "--out", str(out)]
    sys.argv = ["train", "--recipe", recipe, *paths, *options]
    assert train.command() == 0
    assert (out / "checkpoints/latest.pt").exists()
    shutil.rmtree(out / "checkpoints")


if __name__ == "__main__":
    train_path, val_path, folder = sys.argv[1:]
    own, small = dict(models.ARCHITECTURES), dict.fromkeys(models.ARCHITECTURES, SmallNetwork)
    for name in recipe_names():
        models.ARCHITECTURES.update(own if name in OWN else small)
        run(name, train_path, val_path, Path(folder, name))
