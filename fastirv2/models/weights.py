"""Weights into a network: from checkpoints of ours and from files of others, every tensor accounted for."""

from __future__ import annotations

import os

import torch
from torch import nn

from fastirv2.errors import DataError
from fastirv2.models.weight_files import Contents, Tensors, Which, read_contents

_HEADS = {"slim": "classif", "paper": "classifier"}
_FIRST = {"conv2d_1a.conv.weight": "slim", "stem.conv1.conv.weight": "paper"}
_UNREAD = ".num_batches_tracked"  # kept for its place in state dicts: the momentum is fixed, so nothing reads it
_LISTED = 4  # names in a sentence


def load_weights(model: nn.Module, path: str | os.PathLike[str], weights: Which = "auto") -> None:
    """Load weights into a network of the same form and as many classes.

    Args:
        model: made by `fastirv2.models.create`; it keeps its device, dtype and memory layout.
        path: a run folder (its best), a checkpoint of ours, a safetensors file, or for the slim network a state dict of
            timm's or Cadene's, whose 1001st class, the background, is dropped where the network has 1000.
        weights: which of a checkpoint's weights; see `read_contents`.

    Raises:
        DataError: the file cannot be read, or what it holds does not fit the network tensor by tensor.
        UsageError: averages are asked for and the file has none.
    """
    put(model, fitted(read_contents(path, weights), classes=None), str(path))


def fitted(contents: Contents, classes: int | None) -> Tensors:
    """Return tensors under our names."""
    return {name: tensor for name, tensor in contents.tensors.items() if not name.endswith(_UNREAD)}


def architecture_of(tensors: Tensors) -> str:
    """Return "slim" or "paper" by the names of the tensors, or "" for those of neither."""
    return next((arch for name, arch in _FIRST.items() if name in tensors), "")


def classes_of(tensors: Tensors) -> int:
    """Return how many classes the last layer tells apart, 0 when there is none."""
    return next((len(tensors[f"{head}.bias"]) for head in _HEADS.values() if f"{head}.bias" in tensors), 0)


@torch.no_grad()
def put(model: nn.Module, tensors: Tensors, source: str) -> None:
    """Copy tensors into the model's; raises DataError unless each of either side has its like, by name and shape."""
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_UNREAD)}
    missing, left = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or left:
        raise DataError(f"{source} does not fit the network: {_told('missing', missing)}; {_told('left over', left)}")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise DataError(
                f"{source} does not fit the network: {name} has the shape {tuple(tensors[name].shape)} there and "
                f"{tuple(tensor.shape)} here"
            )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def _told(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return f"{what} are {', '.join(names[:_LISTED])}{more}" if names else f"nothing is {what}"
