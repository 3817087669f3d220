"""Runs with every kind of input, through the real command."""

import shutil

import pytest

from tests.conftest import build
from tests.train.conftest import assert_done, goes_on_from_an_earlier_checkpoint

INPUTS = {
    "resnet": ("--input.augment", "resnet", "--input.normalise", "imagenet", "--input.resize-mode", "short"),
    "inception": ("--input.augment", "inception", "--data.block", "3"),
    "growing": ("--input.sizes", "1:75", "2:80", "--input.resize", "88", "--input.crop", "80"),
}


@pytest.mark.parametrize("options", INPUTS.values(), ids=INPUTS)
def test_from_an_earlier_checkpoint_it_goes_on_to_the_same_bits(light, tmp_path, options):
    goes_on_from_an_earlier_checkpoint(light, tmp_path, "--train.epochs", "2", *options)


def test_a_run_of_an_older_version_goes_on_and_another_input_is_another_run(light, tmp_path):
    """What its config.toml does not say yet was done as the defaults have it."""
    assert_done(light(tmp_path / "run", "--train.stop-after", "1"))
    refused = light(tmp_path / "run", "--input.augment", "inception", "--input.sizes", "1:75")
    assert_done(refused, 2)
    assert "input.augment: crop → inception" in refused.stderr
    config = tmp_path / "run/config.toml"
    new = ("resize_mode", "augment", "normalise", "sizes", "read_ahead", "block")
    config.write_text("".join(line for line in config.read_text().splitlines(True) if line.split(" = ")[0] not in new))
    assert_done(light(tmp_path / "run", "--dry-run"))
    refused = light(tmp_path / "run", "--dry-run", "--input.augment", "resnet")
    assert_done(refused, 2)
    assert "(input.augment: crop → resnet)" in refused.stderr


def test_a_file_without_a_header_ends_all_ranks_with_one_sentence(light, images, tmp_path):
    copy = shutil.copytree(images, tmp_path / "images")
    (copy / "dog/03.jpg").write_bytes(b"no image")
    refused = light(tmp_path / "run", "--input.augment", "resnet", train=copy, ranks=2, launched=True)
    assert refused.returncode != 0
    assert refused.stderr.count("dog/03.jpg cannot be decoded (it is no image); remove it") == 1
    assert not (tmp_path / "run").exists()


def test_a_warped_lmdb_cannot_keep_an_aspect(light, images, tmp_path):
    warped = build(images, tmp_path / "warped", "--resize", "96x96")
    refused = light(tmp_path / "run", "--input.resize-mode", "short", train=warped)
    assert_done(refused, 65)
    assert refused.stderr.count("\n") == 1
    assert "was built with --resize 96x96, so that the aspect of its images is lost" in refused.stderr
    assert not (tmp_path / "run").exists()
