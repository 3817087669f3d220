"""TF-slim's variables find their places, by the names and shapes that TensorFlow's reader gives; it is not needed here."""

import runpy

import numpy as np
import pytest

from tests.models.foreign import ORDER, timm_shapes
from tests.processes import run_python
from tests.tools.test_tools import TOOLS

TOOL = TOOLS / "convert_tf_slim.py"
NORM = {"weights": "conv.weight", "BatchNorm/beta": "bn.bias", "BatchNorm/moving_mean": "bn.running_mean"}
NORM["BatchNorm/moving_variance"] = "bn.running_var"


def layers():
    """(TF-slim's scope, timm's name) of every layer, as the network's source has them."""
    found = [("Logits/Logits", "classif")]
    stem = ("1a", "3x3"), ("2a", "3x3"), ("2b", "3x3"), ("3b", "1x1"), ("4a", "3x3"), ("7b", "1x1")
    found += [(f"Conv2d_{name}_{kernel}", f"conv2d_{name}") for name, kernel in stem]
    of = {
        "mixed_5b": (["1x1"], ["0a_1x1", "0b_5x5"], ["0a_1x1", "0b_3x3", "0c_3x3"], ["", "0b_1x1"]),
        "block35": (["1x1"], ["0a_1x1", "0b_3x3"], ["0a_1x1", "0b_3x3", "0c_3x3"]),
        "mixed_6a": (["1a_3x3"], ["0a_1x1", "0b_3x3", "1a_3x3"]),
        "block17": (["1x1"], ["0a_1x1", "0b_1x7", "0c_7x1"]),
        "mixed_7a": (["0a_1x1", "1a_3x3"], ["0a_1x1", "1a_3x3"], ["0a_1x1", "0b_3x3", "1a_3x3"]),
        "block8": (["1x1"], ["0a_1x1", "0b_1x3", "0c_3x1"]),
    }
    repeats = {"block35": ("Repeat", "repeat"), "block17": ("Repeat_1", "repeat_1"), "block8": ("Repeat_2", "repeat_2")}
    for block, number in ORDER:
        theirs, ours = block.capitalize(), block
        if block in repeats and (block, number) != ("block8", 10):
            theirs, ours = f"{repeats[block][0]}/{block}_{number}", f"{repeats[block][1]}.{number - 1}"
        for branch, kernels in enumerate(of[block]):
            places = [f"branch{branch}"] if len(kernels) == 1 else [f"branch{branch}.{i}" for i in range(len(kernels))]
            found += [
                (f"{theirs}/Branch_{branch}/Conv2d_{k}", f"{ours}.{p}") for k, p in zip(kernels, places, strict=True) if k
            ]
        if block in repeats:
            found.append((f"{theirs}/Conv2d_1x1", f"{ours}.conv2d"))
    return found


class Checkpoint:
    """What tf.train.load_checkpoint returns: each variable holds its number throughout, one of them numbers in order."""

    def __init__(self):
        kept_by_trainers = ("global_step", "beta1_power", "InceptionResnetV2/Logits/Logits/weights/Adagrad")
        self.shapes, self.numbers, self.timm = {name: [] for name in kept_by_trainers}, {}, {}
        shapes = timm_shapes(1001)
        for scope, place in layers():
            plain = {"weights": "weight", "biases": "bias"}
            for leaf, ours in (plain if f"{place}.weight" in shapes else NORM).items():
                name, shape = f"InceptionResnetV2/{scope}/{leaf}", shapes[f"{place}.{ours}"]
                self.shapes[name] = list(
                    shape if len(shape) == 1 else shape[::-1] if len(shape) == 2 else (*shape[2:], shape[1], shape[0])
                )
                self.numbers[name] = len(self.numbers) + 2
                self.timm[f"{place}.{ours}"] = self.numbers[name]
        for name in ("AuxLogits/Conv2d_1b_1x1/weights", "Conv2d_1a_3x3/weights/RMSProp", "Conv2d_1a_3x3/weights/RMSProp_1"):
            self.shapes[f"InceptionResnetV2/{name}"] = [1]

    def get_variable_to_shape_map(self):
        return self.shapes

    def get_tensor(self, name):
        shape = self.shapes[name]
        if name == "InceptionResnetV2/Conv2d_2a_3x3/weights":
            return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        return np.broadcast_to(np.float32(self.numbers[name]), shape)


@pytest.fixture(scope="module")
def convert():
    return runpy.run_path(str(TOOL))["convert"]


def test_every_variable_becomes_timms(convert):
    checkpoint = Checkpoint()
    tensors = convert(checkpoint)
    assert {name: values.shape for name, values in tensors.items()} == timm_shapes(1001)
    square = checkpoint.get_tensor("InceptionResnetV2/Conv2d_2a_3x3/weights")
    assert np.array_equal(tensors.pop("conv2d_2a.conv.weight"), square.transpose(3, 2, 0, 1))
    for name, values in tensors.items():
        assert (values == checkpoint.timm.get(name, 1)).all(), name
    assert sum(name not in checkpoint.timm for name in tensors) == 204


def test_what_is_missing_or_left_over_is_named(convert):
    checkpoint = Checkpoint()
    checkpoint.shapes["InceptionResnetV2/More/weights"] = checkpoint.shapes.pop("InceptionResnetV2/Block8/Conv2d_1x1/biases")
    with pytest.raises(
        ValueError, match=r"missing are InceptionResnetV2/Block8/Conv2d_1x1/biases .*left over are .*/More/weights"
    ):
        convert(checkpoint)


def test_without_tensorflow_it_says_where_to_run_it(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ImportError('none', name='tensorflow')")
    done = run_python(TOOL, "model.ckpt", tmp_path / "out.safetensors", env={"PYTHONPATH": str(tmp_path), "PATH": ""})
    assert done.returncode == 1
    assert (
        done.stderr
        == "convert_tf_slim: tensorflow is not installed here: run this where TensorFlow is, with safetensors beside it\n"
    )
