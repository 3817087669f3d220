"""Two ranks train what one trains."""

import shutil

import pytest
import torch

from fastirv2 import models
from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, ValidationOrder
from fastirv2.training.engine import unit
from tests.train.conftest import assert_done, latest, metrics

SIZE = InputConfig(resize=82, crop=75, threads=1)


def floats(state):
    return {name: value for name, value in state["model"].items() if value.is_floating_point()}


def assert_the_same_weights(one, two, steps):
    one, two = latest(one), latest(two)
    assert one["step"] == two["step"] == steps
    for name, value in floats(one).items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(floats(two)[name], value, rtol=1e-9, atol=1e-9, msg=name)


FIVE = ("--train.amp", "fp64", "--train.global-batch", "16", "--schedule.warmup-epochs", "3", "--train.stop-after", "5")


@pytest.mark.parametrize(
    ("both", "two"),
    [
        pytest.param(("--train.bn-batch", "16"), (), id="shared"),
        pytest.param(("--train.bn-batch", "8"), ("--train.sync-bn", "local"), id="local", marks=pytest.mark.soak),
    ],
)
def test_in_float64_five_steps_on_two_ranks_are_those_on_one(trainer, tmp_path, both, two):
    """With dropout, whose masks are the samples' own, and statistics over all 16 images, or over 8 and 8."""
    assert_done(trainer(tmp_path / "1", *FIVE, *both))
    assert_done(trainer(tmp_path / "2", *FIVE, *both, *two, ranks=2))
    assert_the_same_weights(tmp_path / "1", tmp_path / "2", 5)


def test_a_run_begun_on_two_ranks_goes_on_on_one_and_every_image_is_validated_once(trainer, tmp_path):
    run = tmp_path / "run"
    assert_done(trainer(run, "--train.stop-after", "4", ranks=2))
    done = trainer(run)
    assert_done(done)
    assert "going on after step 4" in done.stdout
    assert [line["step"] for line in metrics(run, "train")] == list(range(1, 10))
    assert [line["images"] for line in metrics(run, "val")] == [23, 23, 23]
    assert sum(line["images"] for line in metrics(run, "train")) == 9 * 8


def test_validation_of_103_images_counts_the_same_on_three_ranks(trainer, images, tmp_path):
    """With nothing learned (a rate too small to change a weight's bits) the counts depend on the images alone."""
    files = sorted(images.rglob("*.jpg"))
    for name, count in (("train", 12), ("val", 103)):
        lines = [f"{files[i % 23]} {i % 2}\n" for i in range(count)]
        (tmp_path / name).write_text("".join(lines))
    options = ("--schedule.rate", "1e-30", "--optimizer.weight-decay", "0", "--train.epochs", "1", "--train.amp", "fp64")
    batches = ("--train.global-batch", "12", "--train.bn-batch", "12")
    lists = {"train": tmp_path / "train", "val": tmp_path / "val"}
    for ranks in (1, 3):
        assert_done(trainer(tmp_path / f"{ranks}", *options, *batches, ranks=ranks, **lists))
    found = [metrics(tmp_path / f"{ranks}", "val")[0] for ranks in (1, 3)]
    assert {line["images"] for line in found} == {103}
    assert len({(line["top1_correct"], line["top5_correct"]) for line in found}) == 1

    model = models.create("paper", 2).double().eval()
    model.load_state_dict(latest(tmp_path / "1")["model"])
    records = open_records(tmp_path / "val")
    order = ValidationOrder(records, SIZE, batch=103, world=1, rank=0)
    loader = Loader(records, order, SIZE, batch=103, device=torch.device("cpu"), cpus=2)
    pixels, labels, _ = next(loader)
    with torch.inference_mode():
        logits = model(unit(pixels, torch.float64))
    assert int((logits.argmax(1) == labels).sum()) == found[0]["top1_correct"]
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    loader.close()
    assert all(line["loss"] == pytest.approx(loss, rel=1e-9) for line in found)


def test_ranks_that_do_not_divide_the_batch_get_one_sentence(trainer, tmp_path):
    refused = trainer(tmp_path / "run", "--train.global-batch", "9", ranks=2)
    assert refused.returncode != 0
    said = [line for line in refused.stderr.splitlines() if "do not divide" in line]
    assert said == [
        "fastirv2.train: 2 ranks do not divide a global batch of 9 images; --train.global-batch 8 or 10 would do"
    ]
    assert not (tmp_path / "run").exists()


def test_an_image_that_one_rank_cannot_decode_ends_all_with_one_sentence(trainer, images, tmp_path):
    copy = shutil.copytree(images, tmp_path / "images")
    (copy / "dog/09.jpg").write_bytes(b"no image")
    refused = trainer(tmp_path / "run", ranks=2, train=copy)
    sentence = f"{copy}/dog/09.jpg cannot be decoded (it is no image)"
    assert [line for line in refused.stderr.splitlines() if sentence in line]
    assert "Connection closed" not in refused.stderr
    assert "fastirv2/training" not in refused.stderr


def test_what_two_ranks_validate_is_the_network_of_the_checkpoint(trainer, tmp_path):
    """Each rank normalises alone, so their running statistics differ until they are united."""
    options = ("--train.sync-bn", "local", "--train.epochs", "1", "--train.amp", "fp64", "--schedule.rate", "0.001")
    assert_done(trainer(tmp_path / "run", *options, ranks=2))
    (line,) = metrics(tmp_path / "run", "val")
    model = models.create("paper", 2).double().eval()
    model.load_state_dict(latest(tmp_path / "run")["model"])
    order = ValidationOrder(open_records(trainer.data), SIZE, batch=23, world=1, rank=0)
    loader = Loader(open_records(trainer.data), order, SIZE, batch=23, device=torch.device("cpu"), cpus=2)
    images, labels, _ = next(loader)
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(model(unit(images, torch.float64)), labels)
    loader.close()
    assert line["images"] == 23
    assert line["loss"] == pytest.approx(float(loss), rel=1e-9)


def test_missing_data_on_two_ranks_is_said_once(trainer, tmp_path):
    refused = trainer(tmp_path / "run", ranks=2, train=tmp_path / "none")
    assert refused.stderr.count(f"{tmp_path / 'none'} does not exist") == 1
    assert "exitcode  : 65" in refused.stderr
