"""A trained network with what it takes to use it: its classes, the input that it expects, and what is known of its errors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastirv2.data.pictures import UnreadableError, central_square, read_picture, seen
from fastirv2.data.samples import InputConfig
from fastirv2.errors import DataError, UsageError
from fastirv2.models import create
from fastirv2.models.weight_files import Contents, Which, read_contents
from fastirv2.models.weights import architecture_of, classes_of, named, put
from fastirv2.training.pixels import NORMALISE

# What public weights of the slim network are validated with: timm's config for them, crop_pct 0.8975 of 299.
PUBLIC_INPUT = InputConfig(resize=333, resize_mode="short", crop=299, interpolation="bicubic", normalise="unit")
Picture = str | os.PathLike[str] | Image.Image
_ERRORS = ("images", "top1_correct", "top5_correct", "top1_error", "top5_error", "loss")


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode on the CPU, in float32, and what is known of it.

    `classes` are names in label order, their numbers where the file has no names; `input` is what images become before the
    network sees them in validation; `results` holds, as far as the file knows: epoch, step, weights ("raw" or "ema"),
    images, top1_error, top5_error (percent) and loss of its validation, recipe, train_digest, val_digest; `source` is the
    file that it was read from.
    """

    model: nn.Module
    arch: str
    classes: list[str]
    input: InputConfig
    results: dict[str, Any] = field(default_factory=dict)
    source: str = ""


def open_trained(path: str | os.PathLike[str], arch: str | None = None, weights: Which = "auto") -> Trained:
    """Open a trained network.

    Args:
        path: a run folder (its best), a checkpoint of ours, a safetensors file, or a file of another program that
            `fastirv2.models.load_weights` reads.
        arch: "paper" or "slim", for a file that does not say it; None: as its tensors are named.
        weights: a checkpoint's own weights ("raw") or their running averages ("ema"); "auto": those that its run was
            validated with, the averages where it has any.

    Raises:
        DataError: the file is missing or damaged, holds more than tensors and plain values, or does not fit the network.
        UsageError: the file holds another network than `arch`, or averages are asked for and there are none.
    """
    contents = read_contents(path, weights)
    about = _about(contents)
    found = about.get("arch") or architecture_of(contents.tensors)
    if arch and found and arch != found:
        raise UsageError(f"{contents.path} holds the {found} network, not {arch}")
    name = arch or found
    if not name:
        raise UsageError(f"{contents.path} does not say which network it holds; give --arch slim or --arch paper")
    tensors = named(contents, classes=0)
    count = classes_of(tensors)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is written over
        model = create(name, max(count, 1), about.get("dropout", 0.2)).eval()
    put(model, tensors, str(contents.path))
    known = contents.classes or []
    classes = [*known, *map(str, range(len(known), count))]
    return Trained(model, name, classes, about.get("input", PUBLIC_INPUT), about.get("results", {}), str(contents.path))


class Preprocess:
    """Makes of images what a network takes: as they are in validation, one resize of a window, by Pillow."""

    def __init__(self, config: InputConfig) -> None:
        self.config = config

    def __call__(self, images: Picture | Iterable[Picture]) -> torch.Tensor:
        """Return images, given as Pillow's or by their paths, one or several, as float32 (N, 3, crop, crop).

        Raises:
            DataError: a path cannot be read as an image.
        """
        batch = [images] if isinstance(images, (str, os.PathLike, Image.Image)) else images
        squares = np.stack([central_square(_upright(image), self.config) for image in batch])
        normalise = NORMALISE[self.config.normalise](torch.float32, torch.device("cpu"))
        return normalise(torch.from_numpy(squares).permute(0, 3, 1, 2))


def _upright(image: Picture) -> Image.Image:
    try:
        return seen(image) if isinstance(image, Image.Image) else read_picture(os.fspath(image))
    except UnreadableError as error:
        what = "an image" if isinstance(image, Image.Image) else os.fspath(image)
        raise DataError(f"{what} cannot be read: {error}") from error


def load(path: str | os.PathLike[str], arch: str | None = None, weights: Which = "auto") -> nn.Module:
    """Open a trained network as `open_trained` does, and return it with `.preprocess`, `.classes` and `.results`."""
    trained = open_trained(path, arch, weights)
    model = trained.model
    model.preprocess, model.classes, model.results = Preprocess(trained.input), trained.classes, trained.results
    return model


def metadata(trained: Trained) -> dict[str, str]:
    """Return what a safetensors file's header is to hold so that `open_trained` finds it again: JSON texts by name."""
    own = asdict(trained.input)
    about = {"arch": trained.arch, "classes": trained.classes, "input": own, "results": trained.results}
    return {"format": "pt", **{name: json.dumps(value) for name, value in about.items()}}


def _about(contents: Contents) -> dict[str, Any]:
    """Return what a file says of its network: arch, dropout, classes, input and results, as far as it does."""
    if "config" in contents.about:
        return _of_checkpoint(contents)
    about = dict(contents.about)
    if "input" in about:
        about["input"] = _input(about["input"], contents.path)
    return about


def _of_checkpoint(contents: Contents) -> dict[str, Any]:
    state, config = contents.about, contents.about["config"]
    data = config.get("data", {})
    results = {"epoch": state["best_epoch"], "step": state["step"], "weights": contents.which, "recipe": config.get("recipe")}
    results |= {name: data[name] for name in ("train_digest", "val_digest") if name in data}
    if state["step"] == state["best_step"]:
        results["top1_error"] = state["best_error"]
    else:
        del results["epoch"]
    results |= _validated(contents.path.parent.parent / "metrics.jsonl", state["step"], contents.which)
    model = {"arch": config["model"]["arch"], "dropout": config["model"]["dropout"]}
    return model | {"input": _input(config["input"], contents.path), "results": results}


def _validated(log: Path, step: int, which: str) -> dict[str, Any]:
    """Return the errors that a run's log has for these weights of this step; nothing where there is no such log."""
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return {}
    wanted = {"kind": "val", "step": step, "weights": which}
    line = next((line for line in reversed(lines) if {name: line.get(name) for name in wanted} == wanted), {})
    return {name: line[name] for name in ("epoch", *_ERRORS) if name in line}


def _input(table: dict[str, Any], path: Path) -> InputConfig:
    """Make the input's configuration of the table that a file holds."""
    unknown = table.keys() - {each.name for each in fields(InputConfig)}
    if unknown:
        raise DataError(f"{path} is of a newer version: its input has '{min(unknown)}', which this one does not know")
    return InputConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in table.items()})
