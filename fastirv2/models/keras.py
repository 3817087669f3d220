"""Keras' weights of InceptionResNetV2, from .h5, .weights.h5 and .keras files, under timm's names."""

from __future__ import annotations

import functools
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from fastirv2.errors import DataError
from fastirv2.models.slim import Slim

HDF5 = b"\x89HDF\r\n\x1a\n"
WEIGHTS_IN_ARCHIVE = "model.weights.h5"
_NUMBERED = re.compile(r"(conv2d|batch_normalization|dense)(?:_(\d+))?")  # named by its class, and counted
_BLOCK = re.compile(r"block(35|17|8)_(\d+)_conv")
_BLOCKS = {"35": "repeat", "17": "repeat_1", "8": "repeat_2"}
_BRANCH = re.compile(r"(.+)\.branch(\d)(?:\.(\d))?")
_NORM = ("bias", "running_mean", "running_var")  # beta, moving mean, moving variance: in the order of Keras' variables

Layers = dict[str, list[torch.Tensor]]  # by name, each layer's variables in Keras' order


def read_keras(file: Path) -> dict[str, torch.Tensor]:
    """Return what a file of Keras' holds under timm's names; layers that are not the network's under their own.

    Raises:
        DataError: h5py is missing, the file is damaged, or one of its layers has other variables than are known.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{file} is Keras', which takes h5py to read: pip install h5py") from error
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive, h5py.File(io.BytesIO(archive.read(WEIGHTS_IN_ARCHIVE)), "r") as opened:
                layers = _layers(opened)
        else:
            with h5py.File(file, "r") as opened:
                layers = _layers(opened)
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, zipfile.BadZipFile) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
        raise DataError(f"{file} cannot be read as Keras' weights ({reason})") from error
    return renamed(layers)


def _layers(opened: Any) -> Layers:
    """Return the layers that have variables, of any of Keras' forms of HDF5, under the names they have in the model."""
    root = opened.get("model_weights", opened)
    if "layer_names" in root.attrs:
        return _of_named_groups(root)
    groups = opened.get("layers", opened.get("_layer_checkpoint_dependencies"))  # the second is TensorFlow 2.12's
    if groups is None:
        raise ValueError("it has no layers")
    filled = {name: group["vars"] for name, group in groups.items() if "vars" in group and len(group["vars"])}
    found = {name: [_tensor(group[key]) for key in sorted(group, key=int)] for name, group in filled.items()}
    if all("name" in group.attrs for group in filled.values()):
        return {str(group.attrs["name"]): found[name] for name, group in filled.items()}
    return _named(found)


def _of_named_groups(root: Any) -> Layers:
    """Return the layers of the older form: groups by the layers' names, which list the names of their variables."""
    layers = {}
    for name in map(_text, root.attrs["layer_names"]):
        variables = [_tensor(root[name][_text(variable)]) for variable in root[name].attrs["weight_names"]]
        if variables:
            layers[name] = variables
    return layers


def _named(counted: Layers) -> Layers:
    """Give layers that are counted by class, in the order in which a model keeps them, the names they had when they were made.

    A model keeps its layers by their distance from its end, not in the order in which they were made.
    """
    made = made_in_order()
    kept = [*kept_in_order(), "conv_7b"]
    convolutions = [f"conv2d_{made.index(name)}" if name in made else name for name in kept]
    norms = [*(f"batch_normalization_{made.index(name)}" for name in kept if name in made), "conv_7b_bn"]
    names: dict[str, str] = {}
    for kind, wanted in (("conv2d", convolutions), ("batch_normalization", norms), ("dense", ["predictions"])):
        names |= dict(zip(_of_kind(counted, kind), wanted, strict=False))
    return {names.get(name, name): variables for name, variables in counted.items()}


def renamed(layers: Layers) -> dict[str, torch.Tensor]:
    """Return Keras' layers under timm's names, in PyTorch's layouts; other layers' variables as "layer/number".

    Layers without a name of their own are numbered as they were made, wherever the count begins. There is no gamma: the
    weight of a normalisation is 1, unless it has one.
    """
    made = made_in_order()
    tensors: dict[str, torch.Tensor] = {}
    names = {f"conv_7b{suffix}": f"conv2d_7b{leaf}" for suffix, leaf in (("", ".conv"), ("_bn", ".bn"))}
    names |= {"predictions": "classif"}
    for kind, leaf in (("conv2d", ".conv"), ("batch_normalization", ".bn")):
        names |= {layer: name + leaf for layer, name in zip(_of_kind(layers, kind), made, strict=False)}
    for layer, variables in layers.items():
        block = _BLOCK.fullmatch(layer)
        name = _of_block(block[1], int(block[2])) if block else names.get(layer, "")
        leaves = _leaves(name, len(variables)) if name else []
        if len(leaves) != len(variables):
            tensors |= {f"{layer}/{number}": variable for number, variable in enumerate(variables)}
            continue
        tensors |= {leaf: _turned(variable) for leaf, variable in zip(leaves, variables, strict=True)}
        if name.endswith(".bn") and len(variables) == len(_NORM):
            tensors[f"{name}.weight"] = torch.ones_like(variables[0])
    return tensors


def _of_block(kind: str, number: int) -> str:
    return "block8.conv2d" if (kind, number) == ("8", 10) else f"{_BLOCKS[kind]}.{number - 1}.conv2d"


def _leaves(name: str, count: int) -> list[str]:
    """Return the names of a layer's variables in Keras' order."""
    if name.endswith(".bn"):
        return [f"{name}.{leaf}" for leaf in (_NORM if count == len(_NORM) else ("weight", *_NORM))]
    return [f"{name}.weight", f"{name}.bias"][: 1 if name.endswith(".conv") else 2]


def _turned(variable: torch.Tensor) -> torch.Tensor:
    """Bring a kernel (height, width, in, out) or (in, out) into PyTorch's order."""
    if variable.ndim == 4:
        return variable.permute(3, 2, 0, 1)
    return variable.t() if variable.ndim == 2 else variable


@functools.cache
def made_in_order() -> list[str]:
    """Return the normalised convolutions, but the last, in the order in which both Keras and timm make them."""
    with torch.device("meta"):
        names = Slim(1).state_dict()
    return [name.removesuffix(".conv.weight") for name in names if name.endswith(".conv.weight")][:-1]


def kept_in_order() -> list[str]:
    """Return all convolutions, but the last, in the order in which a Keras model keeps its layers.

    Those of the stem as they follow; within a block first what is farthest from its end, branch by branch; then the
    convolution of the sum, by Keras' name.
    """
    blocks: dict[str, list[list[str]]] = {}
    for name in made_in_order():
        match = _BRANCH.fullmatch(name)
        branches = blocks.setdefault(match[1] if match else name, [])
        if not match or len(branches) <= int(match[2]):
            branches.append([])
        branches[-1].append(name)
    order = []
    for block, branches in blocks.items():
        for distance in range(max(map(len, branches)), 0, -1):
            order += [branch[-distance] for branch in branches if len(branch) >= distance]
        order += _sum_of(block)
    return order


def _sum_of(block: str) -> list[str]:
    """Return Keras' name of the convolution that ends a residual block."""
    if block == "block8":
        return ["block8_10_conv"]
    part, _, number = block.partition(".")
    kind = {part: kind for kind, part in _BLOCKS.items()}.get(part)
    return [f"block{kind}_{int(number) + 1}_conv"] if kind else []


def _of_kind(layers: Layers, kind: str) -> list[str]:
    """Return the names of the layers that are named by their class and counted, in the order of the count."""
    found = [(int(match[2] or 0), name) for name in layers if (match := _NUMBERED.fullmatch(name)) and match[1] == kind]
    return [name for _, name in sorted(found)]


def _tensor(dataset: Any) -> torch.Tensor:
    if dataset.attrs.get("dtype") == "bfloat16":
        raise ValueError("it holds bfloat16, which is not read; save it in float32")
    return torch.from_numpy(dataset[()])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
