"""Turn a TF-slim checkpoint of Inception-ResNet-v2 into a safetensors file that `fastirv2.models.load_weights` reads.

    python convert_tf_slim.py inception_resnet_v2_2016_08_30.ckpt inception_resnet_v2.safetensors

Run it where TensorFlow is: besides that it needs numpy and safetensors and nothing of this package, so the file may be copied
there alone. Only numbers are read from the checkpoint, no graph. All of its classes are kept, the background first.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Protocol

import numpy as np

# The auxiliary classifier, which the network does without once it is trained, and what a trainer keeps.
NOT_TAKEN = re.compile(
    r"InceptionResnetV2/AuxLogits/.*|(.*/)?(global_step|beta[12]_power)"
    r"|.*/(Momentum|RMSProp(_\d)?|Adam(_\d)?|Adagrad|Adadelta(_\d)?|Ftrl(_\d)?|ExponentialMovingAverage)"
)
STEM = {"1a_3x3": "1a", "2a_3x3": "2a", "2b_3x3": "2b", "3b_1x1": "3b", "4a_3x3": "4a", "7b_1x1": "7b"}
MIXED_5B = {
    "Branch_0/Conv2d_1x1": "branch0", "Branch_1/Conv2d_0a_1x1": "branch1.0", "Branch_1/Conv2d_0b_5x5": "branch1.1",
    "Branch_2/Conv2d_0a_1x1": "branch2.0", "Branch_2/Conv2d_0b_3x3": "branch2.1", "Branch_2/Conv2d_0c_3x3": "branch2.2",
    "Branch_3/Conv2d_0b_1x1": "branch3.1",
}  # fmt: skip
BLOCK35 = {
    "Branch_0/Conv2d_1x1": "branch0", "Branch_1/Conv2d_0a_1x1": "branch1.0", "Branch_1/Conv2d_0b_3x3": "branch1.1",
    "Branch_2/Conv2d_0a_1x1": "branch2.0", "Branch_2/Conv2d_0b_3x3": "branch2.1", "Branch_2/Conv2d_0c_3x3": "branch2.2",
    "Conv2d_1x1": "conv2d",
}  # fmt: skip
MIXED_6A = {
    "Branch_0/Conv2d_1a_3x3": "branch0", "Branch_1/Conv2d_0a_1x1": "branch1.0", "Branch_1/Conv2d_0b_3x3": "branch1.1",
    "Branch_1/Conv2d_1a_3x3": "branch1.2",
}  # fmt: skip
BLOCK17 = {
    "Branch_0/Conv2d_1x1": "branch0", "Branch_1/Conv2d_0a_1x1": "branch1.0", "Branch_1/Conv2d_0b_1x7": "branch1.1",
    "Branch_1/Conv2d_0c_7x1": "branch1.2", "Conv2d_1x1": "conv2d",
}  # fmt: skip
MIXED_7A = {
    "Branch_0/Conv2d_0a_1x1": "branch0.0", "Branch_0/Conv2d_1a_3x3": "branch0.1", "Branch_1/Conv2d_0a_1x1": "branch1.0",
    "Branch_1/Conv2d_1a_3x3": "branch1.1", "Branch_2/Conv2d_0a_1x1": "branch2.0", "Branch_2/Conv2d_0b_3x3": "branch2.1",
    "Branch_2/Conv2d_1a_3x3": "branch2.2",
}  # fmt: skip
BLOCK8 = {
    "Branch_0/Conv2d_1x1": "branch0", "Branch_1/Conv2d_0a_1x1": "branch1.0", "Branch_1/Conv2d_0b_1x3": "branch1.1",
    "Branch_1/Conv2d_0c_3x1": "branch1.2", "Conv2d_1x1": "conv2d",
}  # fmt: skip
PLAIN = {"weights": "weight", "biases": "bias"}
NORMALISED = {
    "weights": "conv.weight", "BatchNorm/beta": "bn.bias", "BatchNorm/moving_mean": "bn.running_mean",
    "BatchNorm/moving_variance": "bn.running_var",
}  # fmt: skip
GAMMA = {"BatchNorm/gamma": "bn.weight"}  # TF-slim's own network has none


class Reader(Protocol):
    """What tf.train.load_checkpoint returns."""

    def get_variable_to_shape_map(self) -> dict[str, list[int]]:
        """Return the shapes of all variables by name."""

    def get_tensor(self, name: str) -> np.ndarray:
        """Return a variable's values."""


def places() -> dict[str, str]:
    """Return timm's name of each of the network's layers by TF-slim's."""
    blocks = {"Mixed_5b": ("mixed_5b", MIXED_5B), "Mixed_6a": ("mixed_6a", MIXED_6A), "Mixed_7a": ("mixed_7a", MIXED_7A)}
    for repeat, kind, count, layers in (("", 35, 10, BLOCK35), ("_1", 17, 20, BLOCK17), ("_2", 8, 9, BLOCK8)):
        blocks |= {f"Repeat{repeat}/block{kind}_{i + 1}": (f"repeat{repeat}.{i}", layers) for i in range(count)}
    blocks["Block8"] = ("block8", BLOCK8)
    found = {f"Conv2d_{theirs}": f"conv2d_{ours}" for theirs, ours in STEM.items()} | {"Logits/Logits": "classif"}
    for theirs, (ours, layers) in blocks.items():
        found |= {f"{theirs}/{layer}": f"{ours}.{place}" for layer, place in layers.items()}
    return {f"InceptionResnetV2/{theirs}": ours for theirs, ours in found.items()}


def convert(reader: Reader) -> dict[str, np.ndarray]:
    """Return the network's variables under timm's names, in PyTorch's layouts; normalisation without gamma has weights of 1.

    Raises:
        ValueError: the checkpoint lacks some of this network's variables, or holds others.
    """
    there = {name for name in reader.get_variable_to_shape_map() if not NOT_TAKEN.fullmatch(name)}
    names = {}
    for scope, place in places().items():
        plain = place == "classif" or place.endswith(".conv2d")
        leaves = PLAIN if plain else {**NORMALISED, **{g: leaf for g, leaf in GAMMA.items() if f"{scope}/{g}" in there}}
        names |= {f"{scope}/{leaf}": f"{place}.{ours}" for leaf, ours in leaves.items()}
    missing, left = sorted(names.keys() - there), sorted(there - names.keys())
    if missing or left:
        raise ValueError(f"is not the network's: missing are {', '.join(missing[:4])} …; left over are {', '.join(left[:4])} …")
    tensors = {ours: turned(np.asarray(reader.get_tensor(theirs), np.float32)) for theirs, ours in names.items()}
    norms = {name.replace("bias", "weight"): value for name, value in tensors.items() if name.endswith("bn.bias")}
    return {name: np.ones_like(value) for name, value in norms.items()} | tensors


def turned(values: np.ndarray) -> np.ndarray:
    """Bring a kernel (height, width, in, out) or (in, out) into PyTorch's order."""
    if values.ndim == 4:
        values = values.transpose(3, 2, 0, 1)
    return np.ascontiguousarray(values.T if values.ndim == 2 else values)


def main() -> str:
    """Read the command line and convert; return what is wrong, or nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="the checkpoint's name, without .index or .data-00000-of-00001 where it has these")
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    options = parser.parse_args()
    try:
        import tensorflow as tf
        from safetensors.numpy import save_file
    except ImportError as error:
        return f"{error.name} is not installed here: run this where TensorFlow is, with safetensors beside it"
    try:
        tensors = convert(tf.train.load_checkpoint(options.checkpoint))
        save_file(tensors, options.out, {"format": "pt"})
    except (ValueError, OSError, RuntimeError, tf.errors.OpError) as error:
        return f"{options.checkpoint}: {str(error).splitlines()[0]}"
    print(f"{options.out}: {len(tensors)} tensors, {len(tensors['classif.bias'])} classes; load them into the slim network")
    return ""


if __name__ == "__main__":
    if wrong := main():
        sys.exit(f"convert_tf_slim: {wrong}")
