"""Weights into a network: from checkpoints of ours and from files of others, every tensor accounted for."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import nn

from fastirv2.errors import DataError, UsageError
from fastirv2.models.layers import Classifier
from fastirv2.models.weight_files import Contents, Tensors, Which, read_contents

_HEADS = ("classif", "classifier")  # of the slim and of the paper network
_CADENE = {"last_linear.weight": "classif.weight", "last_linear.bias": "classif.bias"}
_FIRST = {"conv2d_1a.conv.weight": "slim", "stem.conv1.conv.weight": "paper"}
_UNREAD = ".num_batches_tracked"  # kept for its place in state dicts: the momentum is fixed, so nothing reads it
_IMAGENET = 1000  # classes, beside which TensorFlow's networks have one more, the first: the background
_LISTED = 4  # names in a sentence


def load_weights(model: nn.Module, path: str | os.PathLike[str], weights: Which = "auto") -> None:
    """Load weights into a network of the same form and as many classes.

    Args:
        model: made by `fastirv2.models.create`; it keeps its device, dtype and memory layout.
        path: a run folder (its best), a checkpoint of ours or a safetensors file; for the slim network also a state dict of
            timm's or Cadene's, or Keras' .h5, .weights.h5 or .keras (which takes h5py). Where a file of others has 1001
            classes and the network 1000, the first, the background, is dropped.
        weights: which of a checkpoint's weights; see `read_contents`.

    Raises:
        DataError: the file cannot be read, or what it holds does not fit the network tensor by tensor.
        UsageError: averages are asked for and the file has none.
    """
    contents, count = read_contents(path, weights), classes_of(model.state_dict())
    tensors = named(contents, count)
    known = classes_of(tensors)
    if known not in (0, count):
        raise DataError(f"{contents.path} tells {known:,} classes apart, the network {count:,}: make it for {known:,}")
    put(model, tensors, str(contents.path))


def begin_from(model: nn.Module, contents: Contents, classes: Sequence[str]) -> str:
    """Load the weights that training begins from, its last layer too where it tells the same classes apart.

    Args:
        model: the network that is to be trained.
        contents: what a file holds.
        classes: the names of what it is to tell apart, or their numbers.

    Returns:
        a sentence for the user: what was loaded, and whether the last layer begins anew, and why.

    Raises:
        DataError: the rest does not fit the network tensor by tensor.
    """
    own = model.state_dict()
    tensors = named(contents, classes_of(own))
    reason = _why_a_new_head(contents, tensors, classes, classes_of(own))
    if reason:
        tensors = {name: tensor for name, tensor in tensors.items() if not _is_head(name)}
        tensors |= {name: tensor for name, tensor in own.items() if _is_head(name)}
    put(model, tensors, str(contents.path))
    which = {"ema": "the averaged weights", "raw": "the weights"}.get(contents.which, "the weights")
    return f"beginning from {which} of {contents.path}; {reason or 'its last layer is kept'}"


def named(contents: Contents, classes: int) -> Tensors:
    """Return what a file holds under our names, for a network of so many classes (0: of as many as the file has).

    Of a file that does not say what its classes are, a 1001st one, the background, is dropped for a network of 1000.
    """
    tensors = {_CADENE.get(name, name): tensor for name, tensor in contents.tensors.items() if not name.endswith(_UNREAD)}
    if contents.classes is None and classes in (0, _IMAGENET) and classes_of(tensors) == _IMAGENET + 1:
        tensors |= {name: tensor[1:] for name, tensor in tensors.items() if _is_head(name)}
    return tensors


def architecture_of(tensors: Tensors) -> str:
    """Return "slim" or "paper" by the names of the tensors, or "" for those of neither."""
    return next((arch for name, arch in _FIRST.items() if name in tensors), "")


def check_architecture(contents: Contents, arch: str) -> None:
    """Raise UsageError when a file holds the other network."""
    found = architecture_of(contents.tensors)
    if found not in ("", arch):
        raise UsageError(f"{contents.path} holds the {found} network, not the {arch} one: give --model.arch {found}")


def classes_of(tensors: Tensors) -> int:
    """Return how many classes the last layer tells apart, 0 when there is none."""
    return next((len(tensors[f"{head}.bias"]) for head in _HEADS if f"{head}.bias" in tensors), 0)


def head_of(model: nn.Module) -> nn.Module:
    """Return the network's last layer."""
    return next(module for module in model.modules() if isinstance(module, Classifier))


def is_numbered(classes: Sequence[str]) -> bool:
    """Say whether classes have numbers for names, and nothing is known of what they are."""
    return all(name == str(number) for number, name in enumerate(classes))


def _is_head(name: str) -> bool:
    return name.partition(".")[0] in _HEADS


def _why_a_new_head(contents: Contents, tensors: Tensors, classes: Sequence[str], count: int) -> str:
    """Say why the last layer is not that of the file; "" where it is."""
    known = classes_of(tensors)
    theirs = contents.classes or []
    if not known:
        return "it has no last layer: a new one begins"
    if known != count:
        return f"its last layer tells {known:,} classes apart and not {count:,}: a new one begins"
    if not is_numbered(theirs) and not is_numbered(classes) and list(classes) != theirs:
        return "its last layer tells other classes apart, or in another order: a new one begins"
    return ""


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
