"""Runs with every kind of input, through the real command."""

import shutil

import pytest
import torch

from tests.conftest import build
from tests.train.conftest import assert_done, latest, learned

INPUTS = {
    "resnet": ("--input.augment", "resnet", "--input.normalise", "imagenet", "--input.resize-mode", "short"),
    "inception": ("--input.augment", "inception", "--data.block", "3"),
    "growing": ("--input.sizes", "1:75", "2:80", "--input.resize", "88", "--input.crop", "80"),
}


@pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS)
def test_stopped_and_gone_on_it_ends_with_the_same_bits(trainer, tmp_path, options):
    options = ("--train.epochs", "2", *options)
    for run, steps in (("whole", [6]), ("parts", [2, 6])):
        for stop in steps:
            assert_done(trainer(tmp_path / run, "--train.stop-after", str(stop), *options))
    assert learned(tmp_path / "parts") == learned(tmp_path / "whole")
    weights = [latest(tmp_path / run)["model"] for run in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_another_input_is_another_run(trainer, tmp_path):
    assert_done(trainer(tmp_path / "run", "--train.stop-after", "1"))
    refused = trainer(tmp_path / "run", "--input.augment", "inception", "--input.sizes", "1:75")
    assert_done(refused, 2)
    assert "input.augment: crop → inception" in refused.stderr


def test_a_run_of_an_older_version_goes_on(trainer, tmp_path):
    """What its config.toml does not say yet was done as the defaults have it."""
    assert_done(trainer(tmp_path / "run", "--train.stop-after", "1"))
    config = tmp_path / "run/config.toml"
    new = ("resize_mode", "augment", "normalise", "sizes", "read_ahead", "block")
    config.write_text("".join(line for line in config.read_text().splitlines(True) if line.split(" = ")[0] not in new))
    assert_done(trainer(tmp_path / "run", "--dry-run"))
    refused = trainer(tmp_path / "run", "--dry-run", "--input.augment", "resnet")
    assert_done(refused, 2)
    assert "(input.augment: crop → resnet)" in refused.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--input.sizes", "1:75", "9:80"), "--input.sizes: epoch 9 is beyond the run's end, --train.epochs 3"),
        (("--input.sizes", "2:75"), "--input.sizes 2:75: the epochs must rise from 1"),
        (("--input.sizes", "1:80", "2:9999"), "crops must lie between 1 and 4096 pixels"),
        (("--input.sizes", "75"), "--input.sizes 75 is not EPOCH:CROP, as in 1:192 31:299"),
        (("--input.sizes", "1:60"), "--input.sizes 60 is too small for this network; it needs 75 pixels"),
    ],
)
def test_nonsense_sizes_are_refused(trainer, tmp_path, options, sentence):
    refused = trainer(tmp_path / "run", "--dry-run", *options)
    assert_done(refused, 2)
    assert sentence in refused.stderr


def test_a_file_without_a_size_ends_all_ranks_with_one_sentence(trainer, images, tmp_path):
    copy = shutil.copytree(images, tmp_path / "images")
    (copy / "dog/03.jpg").write_bytes(b"no image")
    refused = trainer(tmp_path / "run", "--input.augment", "resnet", train=copy, ranks=2)
    assert refused.returncode != 0
    assert refused.stderr.count("dog/03.jpg holds no header of an image; remove it") == 1
    assert not (tmp_path / "run").exists()


def test_a_warped_lmdb_cannot_keep_an_aspect(trainer, images, tmp_path):
    warped = build(images, tmp_path / "warped", "--resize", "96x96")
    refused = trainer(tmp_path / "run", "--input.resize-mode", "short", train=warped)
    assert_done(refused, 65)
    assert refused.stderr.count("\n") == 1
    assert "was built with --resize 96x96, so that the aspect of its images is lost" in refused.stderr
    assert not (tmp_path / "run").exists()
