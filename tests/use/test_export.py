"""What is exported is read back to the bit, by timm's names, and computes the same as ONNX."""

import io
import json
import math
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from fastirv2 import export
from fastirv2.data.samples import InputConfig
from fastirv2.errors import DataError
from fastirv2.exporting import onnx_form
from fastirv2.exporting.card import card
from fastirv2.exporting.timm_form import crop_share, timm_config
from fastirv2.trained import Trained, open_trained
from tests.processes import run_python
from tests.trained import make_network, write_run

BLOCKS = {"repeat": 10, "repeat_1": 20, "repeat_2": 9}


@pytest.fixture(scope="module")
def slim_run(tmp_path_factory, files):
    model = make_network("slim", 2, files)
    changes = {"resize": 83, "resize_mode": "short", "interpolation": "bicubic"}
    return write_run(tmp_path_factory.mktemp("slim") / "run", model, "slim", ["cat", "dog"], averaged=False, **changes)


def state_of(run):
    return torch.load(run / "checkpoints/best.pt", weights_only=True, mmap=True)


def assert_equal(state, expected):
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_as_processes_export_and_predict_end_well(paper_run, images, tmp_path):
    """To the end of the interpreter, which the other tests do not see."""
    file = tmp_path / "m.safetensors"
    lines = (["export", paper_run, file, "--format", "safetensors"], ["predict", file, images / "cat/02.jpg"])
    for command, *arguments in lines:
        done = run_python("-m", f"fastirv2.{command}", *arguments)
        assert (done.returncode, done.stderr) == (0, "")


def test_safetensors_come_back_with_all_that_was_known(command, paper_run, tmp_path):
    out = tmp_path / "new/mine.safetensors"
    result = command(export, paper_run, out, "--format", "safetensors")
    assert (result.code, result.err) == (0, "")
    assert [line.split(":")[0] for line in result.out.splitlines()] == [str(out), f"{out}.md"]
    before, after = open_trained(paper_run), open_trained(out)
    assert_equal(after.model.state_dict(), state_of(paper_run)["ema"]["weights"])
    for known in ("arch", "classes", "input", "results"):
        assert getattr(after, known) == getattr(before, known)
    with safe_open(out, "pt") as opened:
        assert opened.metadata()["format"] == "pt"  # which other readers ask for
    card = out.with_name("mine.safetensors.md").read_text()
    for known in (
        "Classes: 2: cat, dog", "running averages, after epoch 2, step 6", "Recipe: mine", "Training data: digest 1234",
        "Top-1 error: 30.000 %", "warped to 82², central 75²", 'fastirv2.load("mine.safetensors")',
    ):  # fmt: skip
        assert known in card
    assert "Top-5" not in card


def test_the_weights_as_they_were_trained_by_option_over_what_is_there(command, paper_run, tmp_path):
    out = tmp_path / "mine.safetensors"
    out.write_text("an older one")
    result = command(export, paper_run, out, "--format", "safetensors", "--weights", "raw", "--overwrite")
    assert (result.code, result.err) == (0, "")
    assert_equal(load_file(out), state_of(paper_run)["model"])


def test_what_is_there_is_not_overwritten_unasked(command, paper_run, tmp_path):
    (tmp_path / "mine.safetensors.md").write_text("my own notes")
    result = command(export, paper_run, tmp_path / "mine.safetensors", "--format", "safetensors")
    assert (result.code, result.out) == (65, "")
    assert f"{tmp_path}/mine.safetensors.md exists already; give --overwrite" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors.md"]


def timm_names():
    """The layers of timm's inception_resnet_v2 with a bias or normalisation of their own: its blocks and how they branch."""
    units = [f"conv2d_{name}" for name in ("1a", "2a", "2b", "3b", "4a", "7b")]
    units += [f"mixed_5b.{name}" for name in ("branch0", "branch1.0", "branch1.1", "branch2.0", "branch2.1", "branch2.2")]
    units += ["mixed_5b.branch3.1", *(f"mixed_6a.{name}" for name in ("branch0", "branch1.0", "branch1.1", "branch1.2"))]
    units += [f"mixed_7a.branch{branch}.{i}" for branch, count in enumerate((2, 2, 3)) for i in range(count)]
    blocks = [f"{stage}.{i}" for stage, count in BLOCKS.items() for i in range(count)] + ["block8"]
    for block in blocks:
        units += [f"{block}.branch0", *(f"{block}.branch1.{i}" for i in range(3 if "repeat." not in block else 2))]
        units += [f"{block}.branch2.{i}" for i in range(3)] if "repeat." in block else []
    plain = [f"{block}.conv2d" for block in blocks] + ["classif"]
    normalised = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
    return {f"{unit}.{leaf}" for unit in units for leaf in normalised} | {
        f"{layer}.{leaf}" for layer in plain for leaf in ("weight", "bias")
    }


def test_timm_gets_its_own_names_and_its_own_form_of_the_preprocessing(command, slim_run, tmp_path):
    out = tmp_path / "model.safetensors"
    assert command(export, slim_run, out, "--format", "timm").code == 0
    state = load_file(out)
    assert set(state) == timm_names()
    assert_equal(state, state_of(slim_run)["model"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["label_names"]) == ("inception_resnet_v2", 2, ["cat", "dog"])
    preprocessing = config["pretrained_cfg"]
    assert preprocessing["input_size"] == [3, 75, 75]
    assert (preprocessing["crop_mode"], preprocessing["interpolation"]) == ("center", "bicubic")
    assert math.floor(75 / preprocessing["crop_pct"]) == 83
    assert (preprocessing["mean"], preprocessing["std"]) == ([0.5] * 3, [0.5] * 3)
    again = open_trained(out)
    assert (again.arch, len(again.classes)) == ("slim", 2)
    assert_equal(again.model.state_dict(), state)
    form = export.timm_form(again, tmp_path / "weights.pth")
    assert_equal(torch.load(io.BytesIO(form.data), weights_only=True), state)


def test_timm_is_told_of_another_normalisation_and_of_warping():
    model = nn.Module()
    model.classif = nn.Linear(9, 2)
    own = InputConfig(resize=333, crop=299, normalise="imagenet", interpolation="bilinear")
    told = timm_config(Trained(model, "slim", ["cat", "dog"], own))["pretrained_cfg"]
    assert (told["mean"], told["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # as timm has them
    assert (told["crop_mode"], told["interpolation"]) == ("squash", "bilinear")


def test_a_card_has_the_errors_with_their_intervals_where_the_number_of_images_is_known():
    results = {"images": 263, "top1_correct": 182, "top5_correct": 263, "top1_error": 30.798, "top5_error": 0.0}
    lines = card(Trained(nn.Linear(9, 2), "slim", ["cat", "dog"], InputConfig(), results), "mine", [], {}).splitlines()
    assert "- Top-1 error: 30.798 %, 95 % interval 25.53 to 36.62 %, on 263 images" in lines
    assert "- Top-5 error: 0.000 %, 95 % interval 0.00 to 1.44 %, on 263 images" in lines


def test_timm_does_not_get_the_papers_network(command, paper_run, tmp_path):
    result = command(export, paper_run, tmp_path / "model.pth", "--format", "timm")
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "timm has the slim network only" in result.err
    assert not list(tmp_path.iterdir())


def test_timms_share_of_a_crop_brings_back_the_resize():
    assert crop_share(299, 333) == pytest.approx(299 / 333, abs=1e-4)
    for crop in range(75, 400, 7):
        assert all(math.floor(crop / crop_share(crop, resize)) == resize for resize in range(crop, crop + 130))


def shortened(trained):
    """The same network with one block of each kind, which is converted in a fraction of the time."""
    blocks = {"paper": ("block_a", "block_b", "block_c"), "slim": ("repeat", "repeat_1", "repeat_2")}[trained.arch]
    for name in blocks:
        setattr(trained.model, name, getattr(trained.model, name)[:1])
    return trained


@pytest.mark.parametrize("arch", ["paper", "slim"])
def test_onnx_computes_the_same_for_any_number_of_images(command, paper_run, slim_run, tmp_path, monkeypatch, arch):
    out, trained = tmp_path / "mine.onnx", shortened(open_trained({"paper": paper_run, "slim": slim_run}[arch]))
    monkeypatch.setattr(export, "open_trained", lambda *_: trained)
    result = command(export, "RUN", out, "--format", "onnx")
    assert (result.code, result.err) == (0, "")
    assert "of PyTorch's on batches of noise" in result.out.splitlines()[-1]
    model = onnx.load(out)
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    about = {each.key: each.value for each in model.metadata_props}
    assert json.loads(about["classes"]) == ["cat", "dog"]
    session = onnxruntime.InferenceSession(out)
    for count in (1, 5):
        images = torch.randn(count, 3, 75, 75)
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, trained.model(images).numpy(), atol=1e-4)
    last = next(each for each in model.graph.initializer if len(each.dims) == 2 and 2 in each.dims)
    last.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(last) + np.float32(0.01), last.name))
    monkeypatch.setattr(onnx_form, "_converted", lambda _: model)
    refused = command(export, "RUN", tmp_path / "other.onnx", "--format", "onnx")
    assert (refused.code, refused.out) == (65, "")
    assert "the logits of the ONNX model differ by " in refused.err
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(("size", "most"), [(0.5, 1e-4), (20, 2e-3)])
def test_onnx_may_differ_by_a_ten_thousandth_and_more_only_for_large_logits(size, most):
    def difference(off, count):
        def run(_, given):
            wrong = off if len(given["images"]) == count else 0.0
            return [np.full((len(given["images"]), 2), size + wrong, np.float32)]

        network = SimpleNamespace(model=lambda images: torch.full((len(images), 2), float(size)), input=InputConfig(crop=9))
        return onnx_form._difference(network, SimpleNamespace(run=run))

    assert difference(0.9 * most, 1) == pytest.approx(0.9 * most, rel=0.01)
    for off, count in ((1.1 * most, 1), (-1.1 * most, 3), (math.nan, 1), (math.nan, 3)):
        with pytest.raises(DataError, match="the logits of the ONNX model differ by"):
            difference(off, count)


def test_a_file_is_to_be_called_what_it_is(command, paper_run, tmp_path):
    for form, name, suffixes in (("onnx", "model.pt", ".onnx"), ("safetensors", "model", ".safetensors")):
        result = command(export, paper_run, tmp_path / name, "--format", form)
        assert (result.code, result.err.count("\n")) == (2, 1)
        assert f"a file of format {form} is to end in {suffixes}" in result.err
