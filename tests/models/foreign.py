"""Files of weights as other programs write them, in a few kilobytes: every tensor has its full shape and one value throughout.

Names and shapes are written down here once more, from the programs' own sources, and not taken from the network.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass

import h5py
import numpy as np
import torch

from tests.models.test_slim import BLOCK8, BLOCK17, BLOCK35, MIXED_5B, MIXED_6A, MIXED_7A, STEM

# The normalised convolutions of each kind of block under timm's names, in the order in which Keras makes them.
MIXED = {
    "mixed_5b": ["0", "1.0", "1.1", "2.0", "2.1", "2.2", "3.1"],
    "mixed_6a": ["0", "1.0", "1.1", "1.2"],
    "mixed_7a": ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1", "2.2"],
}
RESIDUAL = {"block35": ["0", "1.0", "1.1", "2.0", "2.1", "2.2"], "block17": ["0", "1.0", "1.1", "1.2"]}
RESIDUAL["block8"] = RESIDUAL["block17"]
# The place of each among those of its block, in the order in which a model of Keras 3.15 keeps its layers.
KEPT = {
    "mixed_5b": [3, 1, 4, 0, 2, 5, 6], "block35": [3, 1, 4, 0, 2, 5], "mixed_6a": [1, 2, 0, 3], "block17": [1, 2, 0, 3],
    "mixed_7a": [4, 0, 2, 5, 1, 3, 6], "block8": [1, 2, 0, 3],
}  # fmt: skip
SHAPES = {"mixed_5b": MIXED_5B, "block35": BLOCK35, "mixed_6a": MIXED_6A, "block17": BLOCK17, "mixed_7a": MIXED_7A}
SHAPES["block8"] = BLOCK8
TIMM_BLOCKS = {"block35": "repeat", "block17": "repeat_1", "block8": "repeat_2"}
ORDER = [
    ("mixed_5b", 0), *(("block35", i) for i in range(1, 11)), ("mixed_6a", 0), *(("block17", i) for i in range(1, 21)),
    ("mixed_7a", 0), *(("block8", i) for i in range(1, 11)),
]  # fmt: skip


@dataclass
class Layer:
    """A layer of Keras': its class, its name unless it is counted, timm's name, its kernel (in, out, height, width)."""

    kind: str
    name: str
    timm: str
    shape: tuple[int, ...]


def block_layers(block: str, number: int) -> list[Layer]:
    """The convolutions of a block in the order in which they are made."""
    if block in MIXED:
        return [Layer("conv2d", "", f"{block}.branch{b}", s[:4]) for b, s in zip(MIXED[block], SHAPES[block], strict=True)]
    where = "block8" if (block, number) == ("block8", 10) else f"{TIMM_BLOCKS[block]}.{number - 1}"
    *inner, last = SHAPES[block]
    layers = [Layer("conv2d", "", f"{where}.branch{b}", s[:4]) for b, s in zip(RESIDUAL[block], inner, strict=True)]
    return [*layers, Layer("conv2d", f"{block}_{number}_conv", f"{where}.conv2d", last[:4])]


def keras_layers(classes: int, *, kept: bool) -> list[Layer]:
    """All convolutions and the last layer, as they are made or as a model keeps them."""
    layers = [Layer("conv2d", "", f"conv2d_{n}", s[:4]) for n, s in zip(("1a", "2a", "2b", "3b", "4a"), STEM, strict=True)]
    for block, number in ORDER:
        own = block_layers(block, number)
        layers += [own[i] for i in KEPT[block]] + own[len(KEPT[block]) :] if kept else own
    return [
        *layers,
        Layer("conv2d", "conv_7b", "conv2d_7b", (2080, 1536, 1, 1)),
        Layer("dense", "predictions", "", (1536, classes)),
    ]


def timm_shapes(classes: int) -> dict[str, tuple[int, ...]]:
    """Timm's names and their shapes, without the counters that old files do not have."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in keras_layers(classes, kept=False):
        if layer.kind == "dense":
            shapes |= {"classif.weight": layer.shape[::-1], "classif.bias": layer.shape[1:]}
            continue
        inputs, outputs, height, width = layer.shape
        if layer.timm.endswith(".conv2d"):
            shapes |= {f"{layer.timm}.weight": (outputs, inputs, height, width), f"{layer.timm}.bias": (outputs,)}
            continue
        shapes[f"{layer.timm}.conv.weight"] = (outputs, inputs, height, width)
        shapes |= {f"{layer.timm}.bn.{leaf}": (outputs,) for leaf in ("weight", "bias", "running_mean", "running_var")}
    return shapes


def constants(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """A tensor of each shape that holds its own number throughout, and takes no space."""
    return {name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(shapes.items(), 1)}


def variables(layer: Layer) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name in the older form, timm's name and shape of the variables of a convolution and of the layer's normalisation."""
    inputs, outputs, height, width = layer.shape
    if layer.timm.endswith(".conv2d"):
        return [
            ("kernel:0", f"{layer.timm}.weight", (height, width, inputs, outputs)),
            ("bias:0", f"{layer.timm}.bias", (outputs,)),
        ]
    return [("kernel:0", f"{layer.timm}.conv.weight", (height, width, inputs, outputs))]


def keras_groups(classes: int, *, kept: bool, first: int = 0) -> list[tuple[str, str, list[tuple[str, str, tuple[int, ...]]]]]:
    """(class, name, variables) of each layer that has some; the count of those that are named by it begins at `first`."""
    made = [layer.timm for layer in keras_layers(classes, kept=False) if layer.kind == "conv2d" and not layer.name]
    groups = []
    for layer in keras_layers(classes, kept=kept):
        if layer.kind == "dense":
            own = [("kernel:0", "classif.weight", layer.shape), ("bias:0", "classif.bias", layer.shape[1:])]
            groups.append(("dense", layer.name, own))
            continue
        number = made.index(layer.timm) + first if layer.timm in made else 0
        counted = f"_{number}" if number else ""
        groups.append(("conv2d", layer.name or f"conv2d{counted}", variables(layer)))
        if not layer.timm.endswith(".conv2d"):
            leaves = (("beta:0", "bias"), ("moving_mean:0", "running_mean"), ("moving_variance:0", "running_var"))
            own = [(name, f"{layer.timm}.bn.{leaf}", layer.shape[1:2]) for name, leaf in leaves]
            groups.append(("batch_normalization", f"{layer.name}_bn" if layer.name else f"batch_normalization{counted}", own))
    return groups


def put(group, name, timm, shape, values):
    """Write a variable as one number throughout, or as what `values` has for it."""
    if timm in values:
        group.create_dataset(name, data=values[timm])
    else:
        group.create_dataset(name, shape=shape, dtype="f4", fillvalue=float(values["numbers"][timm]))


def old_keras(path, classes, values, *, within="", first=0):
    """The form before Keras 3: groups by the layers' names."""
    with h5py.File(path, "w") as file:
        root = file.create_group(within) if within else file
        groups = keras_groups(classes, kept=True, first=first)
        root.attrs["layer_names"] = [b"input_1", *(name.encode() for _, name, _ in groups)]
        root.create_group("input_1").attrs["weight_names"] = []
        for _, layer, own in groups:
            group = root.create_group(layer)
            group.attrs["weight_names"] = [f"{layer}/{name}".encode() for name, _, _ in own]
            for name, timm, shape in own:
                put(group, f"{layer}/{name}", timm, shape, values)


def new_keras(path, classes, values, *, names):
    """The form of Keras 3: groups counted by class, in the order in which the model keeps its layers, with names or without."""
    with h5py.File(path, "w") as file:
        file.create_group("vars")
        counts: dict[str, int] = {}
        for kind, layer, own in [("input_layer", "input_layer", []), *keras_groups(classes, kept=True)]:
            number = counts[kind] = counts.get(kind, -1) + 1
            group = file.create_group(f"layers/{kind}{f'_{number}' if number else ''}/vars")
            if names:
                group.attrs["name"] = layer
            for place, (_, timm, shape) in enumerate(own):
                put(group, str(place), timm, shape, values)


def keras_archive(path, classes, values):
    """A .keras file: a zip archive with the weights in it."""
    inner = io.BytesIO()
    new_keras(inner, classes, values, names=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", '{"keras_version": "3.15.1"}')
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", inner.getvalue())


def ordered(shape):
    """An array in which no two numbers are the same."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
