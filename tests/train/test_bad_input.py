"""A user's mistake is one sentence and an exit code, before anything is written."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.processes import run_python
from tests.train.conftest import assert_done


def train(*arguments):
    return run_python("-m", "fastirv2.train", *arguments)


def one_sentence(process, code):
    assert_done(process, code)
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("fastirv2.train: ")
    return lines[0].removeprefix("fastirv2.train: ")


USAGE = [
    (["--recipe", "dmo"], "there is no recipe 'dmo'; did you mean 'demo'?"),
    (["--recipe", "mine.toml"], "there is no file mine.toml; the recipes that come with the program are caffe, demo, "),
    (["--recipe", "demo", "--train.epoch", "3"], "there is no option --train.epoch; did you mean '--train.epochs'?"),
    (["--recipe", "demo", "--batch-size", "3"], "there is no option --batch-size; did you mean '--train.batch'?"),
    (["--recipe", "demo", "--lr", "3"], "there is no option --lr; known are: --checkpoint.keep, "),
    (["--recipe", "demo"], "--train is missing; see --help"),
    ([], "--recipe is missing; the recipes are caffe, demo, fast, finetune, long, paper"),
    (["--recipe", "demo", "--input.crop", "60"], "--input.crop 60 is too small for this network; it needs 75 pixels"),
    (["--recipe", "setting1", "--train", "a", "--val", "b", "--out", "RUN", "--train.batch", "16"], "would do"),
    (
        ["--recipe", "demo", "--input.sizes", "1:112", "17:128"],
        "--input.sizes: epoch 17 is beyond the run's end, --train.epochs 16",
    ),
    (
        ["--recipe", "demo", "--train", "a", "--val", "b", "--out", "RUN", "--train.device", "cpu", "--train.cuda-graph", "on"],
        "--train.cuda-graph on needs an NVIDIA GPU",
    ),
    (["--recipe", "demo", "--input.sizes", "2:112"], "--input.sizes 2:112: the epochs must rise from 1"),
    (["--recipe", "demo", "--input.sizes", "1:80", "2:9999"], "crops must lie between 1 and 4096 pixels"),
    (["--recipe", "demo", "--input.sizes", "75"], "--input.sizes 75 is not EPOCH:CROP, as in 1:192 31:299"),
    (["--recipe", "demo", "--input.sizes", "1:60"], "--input.sizes 60 is too small for this network; it needs 75 pixels"),
]


@pytest.mark.parametrize(("arguments", "sentence"), USAGE)
def test_usage(arguments, sentence, tmp_path):
    run = tmp_path / "run"
    assert sentence in one_sentence(train(*(run if word == "RUN" else word for word in arguments)), 2)
    assert not run.exists()


@pytest.mark.parametrize("arguments", [["--recipe", "fast", "--print-config"], ["--recipes"], ["--recipe", "schnell"]])
def test_in_a_locale_that_does_not_know_them_recipes_are_read_and_what_is_said_is_escaped(arguments):
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "fastirv2.train", *arguments]
    plain, asked = (
        subprocess.run(command, env=env, capture_output=True, check=False, text=True) for env in (os.environ, ascii_only)
    )
    said = [(text, text.encode("ascii", "backslashreplace").decode()) for text in (plain.stdout, plain.stderr)]
    assert (asked.returncode, asked.stdout, asked.stderr) == (plain.returncode, *(escaped for _, escaped in said))
    assert asked.returncode == (2 if "schnell" in arguments else 0)


def test_a_wrong_value_names_the_option_and_what_it_takes():
    refused = train("--recipe", "demo", "--train.amp", "fp8")
    assert_done(refused, 2)
    assert "--train.amp" in refused.stderr
    assert "'bf16'" in refused.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[train]\nepoch = 3", "[train]: there is no 'epoch' here; did you mean 'epochs'?"),
        ('[train]\nepochs = "3"', "[train]: epochs is '3', but a value of type int is needed"),
        ('[schedule]\nkind = "cosin"', "[schedule]: kind is 'cosin'; did you mean 'cosine'?"),
        ("[train", "cannot be read as TOML"),
    ],
)
def test_a_recipe_file_with_a_wrong_name_or_value(text, sentence, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    assert sentence in one_sentence(train("--recipe", tmp_path / "mine.toml"), 2)


def test_data(trainer, images, lmdb_folder, tmp_path):
    run = tmp_path / "run"
    other = shutil.copytree(images, tmp_path / "images")
    (other / "dog").rename(other / "duck")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text(f"{images}/cat/00.jpg cat\n")
    cases = [
        ({"train": tmp_path / "none"}, [], "none does not exist"),
        ({"val": tmp_path / "empty"}, [], "holds no images"),
        ({"train": tmp_path / "list.txt"}, [], "line 1: the label 'cat' is no integer"),
        ({"val": other}, [], "have different classes: label 1 is 'dog' and 'duck'"),
        ({}, ["--model.classes", "1"], "the data has 2 classes, but --model.classes is 1"),
        ({"train": lmdb_folder / "data.mdb"}, [], "data.mdb is an LMDB's file: give the folder that it lies in"),
    ]
    for paths, options, sentence in cases:
        assert sentence in one_sentence(trainer(run, *options, **paths), 65)
    assert not run.exists()


def test_a_run_folder_that_cannot_be_used(trainer, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("")
    assert "file/run cannot be written" in one_sentence(trainer(tmp_path / "file/run"), 65)
    assert "is not empty and no run" in one_sentence(trainer(tmp_path / "full"), 2)


def test_a_dry_run_says_what_would_be_done_and_what_it_takes_and_leaves_nothing(light, tmp_path):
    before = sorted(tmp_path.iterdir())
    planned = light(tmp_path / "runs/run", "--dry-run", "--input.sizes", "1:75", "2:90", ranks=2)
    assert_done(planned)
    assert "3 epochs = 9 steps of 8 images" in planned.stdout
    assert "a pass of 2 × 4 images takes" in planned.stdout
    assert f"s in {tmp_path} and read back in" in planned.stdout
    assert "3 epochs take" in planned.stdout
    assert "of gradients over all ranks" in planned.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_normalisation_over_two_values_is_warned_of(light, tmp_path):
    tried = light(tmp_path / "run", "--train.global-batch", "2", "--train.bn-batch", "2", "--dry-run")
    assert_done(tried)
    assert "last maps are 1 × 1, so that 2 images give normalisation 2 values of a channel: gradients explode" in tried.stderr


def test_a_dry_run_finds_an_image_that_cannot_be_decoded(light, images, tmp_path):
    copy = shutil.copytree(images, tmp_path / "images")
    for path in copy.rglob("*.jpg"):
        path.write_bytes(b"no image")
    assert "cannot be decoded" in one_sentence(light(tmp_path / "run", "--dry-run", val=copy), 65)


def test_the_recipes_are_listed_and_a_printed_configuration_is_a_recipe(tmp_path):
    listed = train("--recipes")
    assert_done(listed)
    assert "24.407 / 7.407" in listed.stdout
    printed = train("--recipe", "setting1", "--train.epochs", "7", "--print-config")
    assert_done(printed)
    (tmp_path / "mine.toml").write_text(printed.stdout)
    again = train("--recipe", tmp_path / "mine.toml", "--print-config")
    assert again.stdout == printed.stdout
    assert "epochs = 7" in printed.stdout
    assert "total_steps" not in printed.stdout  # which a run derives: said in a recipe it would do nothing
