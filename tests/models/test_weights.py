"""Weights of timm's, Cadene's and Keras' layouts load with nothing left over, and nothing in a file is run."""

import json
import os
import shutil
import sys

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastirv2 import models
from fastirv2.errors import DataError, UsageError
from fastirv2.models import load_weights
from fastirv2.models.keras import renamed
from fastirv2.models.layers import Classifier
from fastirv2.models.weight_files import Contents, read_contents
from fastirv2.models.weights import begin_from, check_architecture, classes_of, named
from tests.models import foreign


@pytest.fixture(scope="module")
def slim():
    return models.create("slim", 1000)


def without_counters(model):
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}


def assert_holds(model, expected):
    own = without_counters(model)
    assert own.keys() == expected.keys()
    assert [name for name, tensor in own.items() if not torch.equal(tensor, expected[name].expand_as(tensor))] == []


@pytest.mark.parametrize("classes", [1000, 1001])
@pytest.mark.parametrize("form", ["plain", "cadene", "wrapped", "compiled in parallel"])
def test_a_state_dict_of_timms_or_cadenes_loads_without_the_background(slim, tmp_path, classes, form):
    tensors = foreign.constants(foreign.timm_shapes(classes))
    tensors["classif.bias"] = torch.arange(float(classes))
    kept = dict(tensors)
    if form == "cadene":
        tensors = {name.replace("classif", "last_linear"): tensor for name, tensor in tensors.items()}
    if form == "wrapped":
        counters = {name.replace("weight", "num_batches_tracked"): torch.tensor(7) for name in tensors if "bn.weight" in name}
        tensors = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in (tensors | counters).items()}}
    if form == "compiled in parallel":
        tensors = {"model": {f"_orig_mod.module.{name}": tensor for name, tensor in tensors.items()}}
    torch.save(tensors, tmp_path / "weights.pth")
    load_weights(slim, tmp_path / "weights.pth")
    assert_holds(slim, {name: tensor[-1000:] if name.startswith("classif") else tensor for name, tensor in kept.items()})


KERAS = {
    "new": lambda path, values: foreign.new_keras(path, 1000, values, names=True),
    "new, without names": lambda path, values: foreign.new_keras(path, 1000, values, names=False),
    "archive": lambda path, values: foreign.keras_archive(path, 1000, values),
    "old": lambda path, values: foreign.old_keras(path, 1000, values, first=1),
    "old, the second of a process": lambda path, values: foreign.old_keras(
        path, 1000, values, within="model_weights", first=204
    ),
}


@pytest.mark.parametrize("form", KERAS)
def test_every_layer_of_a_keras_file_finds_its_place(slim, tmp_path, form):
    square, head = "repeat.3.branch1.1.conv.weight", "classif.weight"  # whose shapes do not say which way they are turned
    expected = foreign.constants(foreign.timm_shapes(1000))
    kernel, dense = foreign.ordered((3, 3, 32, 32)), foreign.ordered((1536, 1000))
    numbers = {name: tensor.flatten()[0] for name, tensor in expected.items()}
    KERAS[form](tmp_path / "weights", {"numbers": numbers, square: kernel, head: dense})
    load_weights(slim, tmp_path / "weights")
    expected |= {square: torch.from_numpy(kernel.transpose(3, 2, 0, 1)), head: torch.from_numpy(dense.T)}
    expected |= {name: torch.ones(()) for name in expected if name.endswith("bn.weight")}
    assert_holds(slim, expected)


@pytest.fixture(params=[True, False], ids=["names", "no names"])
def keras(tmp_path, request):
    """A file of Keras 3 for 4 classes, with the layers' names or without."""
    numbers = dict.fromkeys(foreign.timm_shapes(4), 1.0)
    foreign.new_keras(tmp_path / "keras", 4, {"numbers": numbers}, names=request.param)
    return tmp_path / "keras"


def test_a_keras_file_without_its_top_holds_all_but_the_last_layer(keras):
    with h5py.File(keras, "r+") as file:
        del file["layers/dense"]
    assert read_contents(keras).tensors.keys() == {name for name in foreign.timm_shapes(4) if "classif" not in name}


def test_tensorflow_2_12_has_another_name_for_the_layers(keras):
    with h5py.File(keras, "r+") as file:
        file.move("layers", "_layer_checkpoint_dependencies")
    assert read_contents(keras).tensors.keys() == foreign.timm_shapes(4).keys()


def test_layers_of_other_networks_are_left_over(keras):
    with h5py.File(keras, "r+") as file:
        file["layers/mine/vars/0"] = [1.0]
        file["layers/mine"].attrs["name"] = "mine"
    assert read_contents(keras).tensors.keys() - foreign.timm_shapes(4).keys() == {"mine/0"}


def test_a_normalisation_of_keras_that_has_a_gamma_has_it_first():
    tensors = renamed({"conv_7b_bn": [torch.tensor([number]) for number in range(4)]})
    leaves = ("weight", "bias", "running_mean", "running_var")
    assert {name: int(tensor) for name, tensor in tensors.items()} == {f"conv2d_7b.bn.{leaves[i]}": i for i in range(4)}


class Small(nn.Module):
    """What the rules about names and last layers are shown on."""

    def __init__(self, classes):
        super().__init__()
        self.conv2d_1a = nn.Sequential()
        self.conv2d_1a.conv = nn.Conv2d(3, 2, 1, bias=False)
        self.classif = Classifier(2, classes)


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.mark.parametrize("before", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_what_others_put_around_names_and_tensors_is_taken_off(tmp_path, before):
    names = Small(3).state_dict().keys()
    state = {f"{before}{name}": tensor for name, tensor in Small(3).state_dict().items()}
    for content in (state, {"epoch": 3, "model": state}, {"state_dict": {"model": state}}):
        assert read_contents(saved(tmp_path / "w.pth", content)).tensors.keys() == names


def test_what_is_missing_and_left_over_is_named(tmp_path):
    state = Small(3).state_dict()
    state["conv2d_2a.conv.weight"] = state.pop("conv2d_1a.conv.weight")
    with pytest.raises(DataError, match=r"missing are conv2d_1a\.conv\.weight; left over are conv2d_2a\.conv\.weight$"):
        load_weights(Small(3), saved(tmp_path / "w.pth", state))
    state = Small(3).state_dict() | {f"extra{i}": torch.zeros(1) for i in range(6)}
    with pytest.raises(DataError, match=r"nothing is missing; left over are extra0, extra1, extra2, extra3 and 2 more$"):
        load_weights(Small(3), saved(tmp_path / "w.pth", state))
    state = Small(3).state_dict() | {"conv2d_1a.conv.weight": torch.zeros(2, 3, 3, 3)}
    with pytest.raises(DataError, match=r"conv2d_1a\.conv\.weight has the shape \(2, 3, 3, 3\) there and \(2, 3, 1, 1\) here"):
        load_weights(Small(3), saved(tmp_path / "w.pth", state))
    with pytest.raises(DataError, match="tells 4 classes apart, the network 3: make it for 4"):
        load_weights(Small(3), saved(tmp_path / "w.pth", Small(4).state_dict()))


def test_a_network_of_1001_classes_keeps_them_all(tmp_path):
    source, target = Small(1001), Small(1001)
    load_weights(target, saved(tmp_path / "w.pth", source.state_dict()))
    assert torch.equal(target.classif.bias, source.classif.bias)


def test_the_background_is_dropped_unless_the_file_says_what_its_classes_are():
    """Also for as many classes as the file has, as in predictions: all would be one off."""
    tensors = {"classif.weight": torch.zeros(1001, 2), "classif.bias": torch.arange(1001.0)}
    for classes in (0, 1000):
        assert named(Contents("w.pth", tensors), classes)["classif.bias"].tolist() == list(range(1, 1001))
    assert classes_of(named(Contents("w.pth", tensors), 1001)) == 1001
    assert classes_of(named(Contents("w.pth", tensors, classes=[*map(str, range(1001))]), 0)) == 1001


def test_weights_that_a_file_does_not_hold_are_refused(tmp_path):
    header = {"arch": '"slim"', "results": json.dumps({"weights": "raw"})}
    save_file(Small(3).state_dict(), tmp_path / "w.safetensors", header)
    assert read_contents(tmp_path / "w.safetensors", "raw").which == "raw"
    with pytest.raises(UsageError, match="holds raw weights alone, not ema ones"):
        read_contents(tmp_path / "w.safetensors", "ema")
    assert read_contents(saved(tmp_path / "w.pth", Small(3).state_dict()), "raw").which == ""  # which does not say
    state = {"format": 1, "model": Small(3).state_dict(), "config": {}, "classes": ["a", "b", "c"], "step": 1, "best_step": 1}
    with pytest.raises(UsageError, match="holds no averaged weights: its run kept none"):
        read_contents(saved(tmp_path / "checkpoint.pt", state), "ema")


def test_a_safetensors_header_of_others_is_let_be(tmp_path):
    source, target = Small(3), Small(3)
    save_file(source.state_dict(), tmp_path / "w.safetensors", {"format": "pt", "arch": "inception_resnet_v2", "classes": "3"})
    load_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(target.classif.bias, source.classif.bias)


class Touch:
    """A pickle of this makes a file when it is loaded by something that trusts it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_with_another_object_in_it_is_refused_and_does_not_run(tmp_path):
    for name, content in (
        ("bare", Touch(tmp_path / "ran")),
        ("within", Small(3).state_dict() | {"x": Touch(tmp_path / "ran")}),
    ):
        with pytest.raises(DataError, match=r"holds more than tensors and plain values.* it is not loaded") as refused:
            load_weights(Small(3), saved(tmp_path / name, content))
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "ran").exists()


def damaged_files(folder):
    """Files that hold no weights, or not all of them."""
    whole = saved(folder / "whole.pth", Small(3).state_dict()).read_bytes()
    foreign.new_keras(folder / "keras", 4, {"numbers": dict.fromkeys(foreign.timm_shapes(4), 0.0)}, names=True)
    hdf5 = (folder / "keras").read_bytes()
    contents = {
        "empty": b"", "cut.pth": whole[:-300], "cut.h5": hdf5[: len(hdf5) // 2], "text.pth": b"no weights at all\n" * 9,
        "cut.safetensors": (200).to_bytes(8, "little") + b'{"a": {', "header.safetensors": None, "list.pth": None,
        "no tensors.pth": None,
    }  # fmt: skip
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_bytes(content)
    saved(folder / "list.pth", [torch.zeros(2)])
    save_file(Small(3).state_dict(), folder / "header.safetensors", {"arch": '"slim"', "classes": "3"})
    saved(folder / "no tensors.pth", {"epoch": 3})
    return [folder / name for name in contents]


def test_a_file_that_is_damaged_or_no_weights_is_said_in_a_sentence(tmp_path):
    for path in [*damaged_files(tmp_path), tmp_path / "none.pth", tmp_path]:
        with pytest.raises(DataError) as refused:
            load_weights(Small(3), path)
        assert str(refused.value).startswith(str(path))
        assert "\n" not in str(refused.value)


def test_a_flipped_bit_is_found(tmp_path):
    model = Small(3)
    path = saved(tmp_path / "w.pth", model.state_dict())
    content = bytearray(path.read_bytes())
    content[content.index(model.classif.weight.detach().numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"w\.pth is damaged: .* in it is not what was written; copy it again"):
        load_weights(Small(3), path)


@pytest.mark.parametrize("keras", [True], indirect=True)
def test_a_keras_file_of_a_kind_that_is_not_read_is_said_in_a_sentence(keras):
    with h5py.File(keras, "r+") as file:
        file["layers/conv2d/vars/0"].attrs["dtype"] = "bfloat16"
    with pytest.raises(DataError, match="it holds bfloat16, which is not read; save it in float32"):
        read_contents(keras)
    with h5py.File(keras, "w") as file:
        file["numbers"] = [1.0]
    with pytest.raises(DataError, match=r"cannot be read as Keras' weights \(it has no layers\)"):
        read_contents(keras)


def test_without_h5py_a_keras_file_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match="takes h5py to read: pip install h5py"):
        load_weights(Small(3), tmp_path / "w.h5")


def beginning(source, model, classes, *, known=None, which=""):
    tensors = {name: tensor.clone() for name, tensor in source.items()}
    return begin_from(model, Contents("w.pth", tensors, classes=known, which=which), classes)


def test_training_begins_with_a_new_last_layer_where_the_classes_differ():
    source = {name: torch.full_like(tensor, 2) for name, tensor in Small(3).state_dict().items()}
    animals, others = ["cat", "dog", "hen"], ["car", "bus", "van"]
    for classes, known, said in (
        (animals, animals, "its last layer is kept"),
        (animals, None, "its last layer is kept"),
        (["0", "1", "2"], animals, "its last layer is kept"),
        (others, animals, "its last layer tells other classes apart, or in another order: a new one begins"),
        (["0", "10", "2"], ["0", "2", "10"], "its last layer tells other classes apart, or in another order: a new one begins"),
        (animals[:2], animals, "its last layer tells 3 classes apart and not 2: a new one begins"),
    ):
        model = Small(len(classes))
        fresh = model.classif.weight.clone()
        assert beginning(source, model, classes, known=known) == f"beginning from the weights of w.pth; {said}"
        assert (model.conv2d_1a.conv.weight == 2).all()
        assert torch.equal(model.classif.weight, fresh) == ("new one" in said)
    headless = {name: tensor for name, tensor in source.items() if "classif" not in name}
    assert "it has no last layer: a new one begins" in beginning(headless, Small(2), animals[:2])
    with pytest.raises(DataError, match="missing are classif"):
        models.weights.put(Small(3), headless, "w.pth")
    with pytest.raises(DataError, match=r"left over are mixed"):
        beginning(source | {"mixed": torch.zeros(1)}, Small(2), animals[:2])


def test_it_is_said_whether_training_begins_with_averaged_weights():
    for which, words in (("ema", "averaged weights"), ("raw", "weights"), ("", "weights")):
        said = beginning(Small(3).state_dict(), Small(3), ["cat", "dog", "hen"], which=which)
        assert said.startswith(f"beginning from the {words} of w.pth; ")


@pytest.mark.parametrize(("arch", "other"), [("slim", "paper"), ("paper", "slim")])
def test_the_other_network_is_named(arch, other):
    with torch.device("meta"):
        contents = Contents("w.pth", models.create(arch, 2).state_dict())
    check_architecture(contents, arch)
    with pytest.raises(UsageError, match=rf"holds the {arch} network, not the {other} one: give --model\.arch {arch}"):
        check_architecture(contents, other)
    check_architecture(Contents("w.pth", {"other": torch.zeros(1)}), arch)


def test_values_of_other_precisions_become_the_networks_own(tmp_path):
    state = {name: tensor.double() for name, tensor in Small(3).state_dict().items()}
    model = Small(3)
    load_weights(model, saved(tmp_path / "w.pth", state))
    assert model.classif.weight.dtype == torch.float32
    assert np.allclose(model.classif.weight.detach().numpy(), state["classif.weight"].numpy())
    shutil.move(tmp_path / "w.pth", tmp_path / "w.h5")  # what a file is, is in its content
    load_weights(Small(3), tmp_path / "w.h5")
