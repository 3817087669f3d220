"""A trained network is opened with what a run knew of it."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fastirv2
from fastirv2 import models
from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, ValidationOrder
from fastirv2.errors import DataError, UsageError
from fastirv2.pipelines import IMAGENET_STD
from fastirv2.trained import Preprocess, Trained, metadata, open_trained
from fastirv2.training.pixels import imagenet
from tests.processes import run_python

CPU = torch.device("cpu")

INPUT = {"resize": 82, "crop": 75, "normalise": "imagenet", "sizes": ["1:75"]}
COUNTS = {"epoch": 2, "images": 10, "top1_correct": 7, "top5_correct": 9}
VALIDATED = {**COUNTS, "top1_error": 30.0, "top5_error": 10.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder whose best checkpoint holds averages beside the weights: every tensor a little larger."""
    run = tmp_path_factory.mktemp("run")
    (run / "checkpoints").mkdir()
    torch.manual_seed(0)
    weights = models.create("paper", 2).state_dict()
    averages = {name: tensor + 1 for name, tensor in weights.items()}
    config = {"model": {"arch": "paper", "classes": 2, "dropout": 0.1}, "input": INPUT, "recipe": "mine"}
    state = {
        "format": 1, "step": 6, "best_step": 6, "best_epoch": 2, "best_error": 30.0, "classes": ["cat", "dog"],
        "model": weights, "ema": {"updates": torch.tensor(6.0), "weights": averages}, "optimizer": {}, "gate": {},
        "config": config | {"data": {"train_digest": "abc", "val_digest": "def", "train": "/data", "block": 1}},
    }  # fmt: skip
    torch.save(state, run / "checkpoints/step-00000006.pt")
    (run / "checkpoints/best.pt").symlink_to("step-00000006.pt")
    own = {"kind": "val", "step": 6, **VALIDATED}
    lines = [{**own, "weights": which, "loss": loss} for which, loss in (("raw", 2), ("ema", 1))]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_a_run_folder_is_its_best_weights_and_what_was_known_of_them(run):
    trained = open_trained(run)
    assert (trained.arch, trained.classes) == ("paper", ["cat", "dog"])
    assert trained.input == InputConfig(resize=82, crop=75, normalise="imagenet", sizes=("1:75",))
    assert trained.results == {
        **VALIDATED, "loss": 1, "step": 6, "weights": "ema", "recipe": "mine", "train_digest": "abc", "val_digest": "def"
    }  # fmt: skip
    assert not trained.model.training
    assert trained.model.classifier.weight.dtype == torch.float32


def test_the_averages_are_taken_unless_the_weights_are_asked_for(run):
    averages, weights = open_trained(run).model.state_dict(), open_trained(run, weights="raw").model.state_dict()
    assert open_trained(run, weights="raw").results["loss"] == 2
    assert all(torch.equal(averages[name], tensor + 1) for name, tensor in weights.items() if "num_batches" not in name)


def test_safetensors_give_back_what_their_header_was_given(run, tmp_path):
    trained = open_trained(run)
    save_file(trained.model.state_dict(), tmp_path / "mine.safetensors", metadata(trained))
    again = open_trained(tmp_path / "mine.safetensors")
    assert (again.arch, again.classes, again.input, again.results) == (
        trained.arch, trained.classes, trained.input, trained.results
    )  # fmt: skip


def test_another_network_than_the_files_is_refused(run, tmp_path):
    with pytest.raises(UsageError, match="holds the paper network, not slim"):
        open_trained(run, "slim")
    with pytest.raises(DataError, match="does not exist"):
        open_trained(tmp_path / "none.pt")


def test_importing_the_package_brings_no_torch():
    done = run_python("-c", "import sys, fastirv2; print('torch' in sys.modules, fastirv2.__version__)")
    assert done.stdout.split()[0] == "False", done.stderr


@pytest.mark.parametrize("mode", ["warp", "short"])
def test_a_loaded_network_is_shown_what_validation_shows(mode, images, tmp_path):
    """Through a safetensors file, whose header has the input; images by path and as Pillow's, one of them lying on its side."""
    config = InputConfig(resize=82, crop=75, resize_mode=mode, interpolation="bicubic", normalise="imagenet", threads=1)
    torch.manual_seed(0)
    trained = Trained(models.create("paper", 2).eval(), "paper", ["cat", "dog"], config, {"top1_error": 12.5})
    save_file(trained.model.state_dict(), tmp_path / "m.safetensors", metadata(trained))
    model = fastirv2.load(tmp_path / "m.safetensors")
    assert (model.classes, model.results, model.training) == (["cat", "dog"], {"top1_error": 12.5}, False)

    files = sorted(images.rglob("*.jpg"))[:5]
    turned = tmp_path / "turned/cat/0.jpg"
    turned.parent.mkdir(parents=True)
    lying = Image.Exif()
    lying[0x0112] = 6
    Image.open(files[0]).save(turned, quality=95, exif=lying)
    (tmp_path / "list.txt").write_text("".join(f"{file} 0\n" for file in [*files, turned]))
    records = open_records(tmp_path / "list.txt")
    loader = Loader(records, ValidationOrder(records, config, batch=6, world=1, rank=0), config, batch=6, device=CPU, cpus=1)
    expected = imagenet(torch.float32, CPU)(next(loader).images)
    loader.close()

    shown = model.preprocess([*map(str, files[:2]), *map(Image.open, files[2:]), turned])
    assert (shown.shape, shown.dtype) == ((6, 3, 75, 75), torch.float32)
    levels = (shown - expected).abs() * torch.tensor(IMAGENET_STD)[:, None, None]
    assert levels.mean((1, 2, 3)).max() < 0.25
    assert levels.max() < 1.01
    assert torch.equal(model.preprocess(files[1])[0], shown[1])
    with torch.inference_mode():
        assert model(shown).shape == (6, 2)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "none.jpg").write_bytes(b"no image")
    for path in (tmp_path / "none.jpg", tmp_path / "missing.jpg"):
        with pytest.raises(DataError, match=f"^{path} cannot be read: "):
            Preprocess(InputConfig())(path)
