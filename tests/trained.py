"""Networks as training leaves them, made in a second: statistics of real images, so that their answers differ by image."""

import torch

from fastirv2 import models
from fastirv2.data.pictures import central_square, read_picture
from fastirv2.data.samples import InputConfig
from fastirv2.models.norm import BatchNorm2d
from fastirv2.training.pixels import NORMALISE

INPUT = {"resize": 82, "crop": 75, "normalise": "unit", "augment": "crop", "threads": 2}


def make_network(arch, classes, files, seed=0):
    """A network of drawn weights, whose normalisation has the statistics of some images, in evaluation mode."""
    torch.manual_seed(seed)
    model = models.create(arch, classes, dropout=0.0)
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(pixels(files))
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.momentum = 0.1
    return model.eval()


def pixels(files, **changes):
    """What the network is shown of image files: float32 (N, 3, crop, crop)."""
    config = InputConfig(**{**INPUT, **changes})
    squares = [torch.from_numpy(central_square(read_picture(str(file)), config).copy()) for file in files]
    return NORMALISE[config.normalise](torch.float32, torch.device("cpu"))(torch.stack(squares).permute(0, 3, 1, 2))


def write_run(run, model, arch, classes, *, averaged=True, **changes):
    """A run folder with `model` as its best checkpoint; where it averages, each tensor's average is a thousandth larger."""
    weights = model.state_dict()
    averages = {name: value * 1.001 if value.is_floating_point() else value for name, value in weights.items()}
    config = {
        "recipe": "mine", "model": {"arch": arch, "classes": len(classes), "dropout": 0.0}, "input": {**INPUT, **changes},
        "data": {"train": "/data/train", "train_digest": "1234", "val_digest": "5678"},
        "train": {"epochs": 3, "global_batch": 8, "amp": "fp32"},
    }  # fmt: skip
    state = {
        "format": 1, "step": 6, "best_step": 6, "best_epoch": 2, "best_error": 30.0, "classes": classes, "model": weights,
        "optimizer": {}, "gate": {}, "config": config,
    }  # fmt: skip
    if averaged:
        state["ema"] = {"updates": torch.tensor(6.0), "weights": averages}
    (run / "checkpoints").mkdir(parents=True)
    torch.save(state, run / "checkpoints/step-00000006.pt")
    (run / "checkpoints/best.pt").symlink_to("step-00000006.pt")
    return run
