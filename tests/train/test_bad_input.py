"""A user's mistake is one sentence and an exit code, before anything is written."""

import shutil

import pytest

from tests.processes import run_python
from tests.train.conftest import assert_done


def one_sentence(process, code):
    assert_done(process, code)
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith("fastirv2.train: ")
    return lines[0].removeprefix("fastirv2.train: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--recipe", "dmo"], "there is no recipe 'dmo'; did you mean 'demo'?"),
        (["--recipe", "demo", "--train.epoch", "3"], "there is no option --train.epoch; did you mean '--train.epochs'?"),
        (["--recipe", "demo"], "--train is missing; see --help"),
        ([], "--recipe is missing; the recipes are caffe, demo, fast, finetune, long, paper"),
        (["--recipe", "demo", "--input.crop", "60"], "--input.crop 60 is too small for this network; it needs 75 pixels"),
        (["--recipe", "setting1", "--train", "a", "--val", "b", "--out", "c", "--train.batch", "16"], "would do"),
    ],
)
def test_usage(arguments, sentence, tmp_path):
    assert sentence in one_sentence(run_python("-m", "fastirv2.train", *arguments, cwd=tmp_path), 2)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_value_names_the_option_and_what_it_takes():
    refused = run_python("-m", "fastirv2.train", "--recipe", "demo", "--train.amp", "fp8")
    assert_done(refused, 2)
    assert "--train.amp" in refused.stderr
    assert "'bf16'" in refused.stderr


def test_a_recipe_file_with_a_wrong_name_or_value(tmp_path):
    recipe = tmp_path / "mine.toml"
    for text, sentence in [
        ("[train]\nepoch = 3", "[train]: there is no 'epoch' here; did you mean 'epochs'?"),
        ('[train]\nepochs = "3"', "[train]: epochs is '3', but a value of type int is needed"),
        ('[schedule]\nkind = "cosin"', "[schedule]: kind is 'cosin'; did you mean 'cosine'?"),
        ("[train", "cannot be read as TOML"),
    ]:
        recipe.write_text(text)
        assert sentence in one_sentence(run_python("-m", "fastirv2.train", "--recipe", recipe), 2)


def test_data(trainer, images, tmp_path):
    run = tmp_path / "run"
    other = shutil.copytree(images, tmp_path / "images")
    (other / "dog").rename(other / "duck")
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text(f"{images}/cat/00.jpg cat\n")
    for paths, options, sentence in [
        ({"train": tmp_path / "none"}, [], "none does not exist"),
        ({"val": tmp_path / "empty"}, [], "holds no images"),
        ({"train": tmp_path / "list.txt"}, [], "line 1: the label 'cat' is no integer"),
        ({"val": other}, [], "have different classes: label 1 is 'dog' and 'duck'"),
        ({}, ["--model.classes", "1"], "the data has 2 classes, but --model.classes is 1"),
    ]:
        assert sentence in one_sentence(trainer(run, *options, **paths), 65)
        assert not run.exists()


def test_a_data_mdb_or_a_tar_is_not_read_as_a_list(trainer, lmdb_folder, tmp_path):
    refused = one_sentence(trainer(tmp_path / "run", train=lmdb_folder / "data.mdb"), 65)
    assert "data.mdb, line 1 is no text; give the folder of an LMDB" in refused


def test_a_run_folder_that_cannot_be_used(trainer, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file/run cannot be written" in one_sentence(trainer(tmp_path / "file/run"), 65)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("")
    assert "is not empty and no run" in one_sentence(trainer(tmp_path / "full"), 2)


def test_a_dry_run_says_what_would_be_done_and_what_it_takes_and_leaves_nothing(trainer, tmp_path):
    before = sorted(tmp_path.iterdir())
    planned = trainer(tmp_path / "runs/run", "--dry-run", "--input.sizes", "1:75", "2:90", ranks=2)
    assert_done(planned)
    assert "3 epochs = 9 steps of 8 images" in planned.stdout
    assert "a pass of 2 × 4 images takes" in planned.stdout
    assert f"s in {tmp_path} and read back in" in planned.stdout
    assert "3 epochs take" in planned.stdout
    assert "of gradients over all ranks" in planned.stdout
    assert sorted(tmp_path.iterdir()) == before


def test_a_dry_run_finds_an_image_that_cannot_be_decoded(trainer, images, tmp_path):
    copy = shutil.copytree(images, tmp_path / "images")
    for path in copy.rglob("*.jpg"):
        path.write_bytes(b"no image")
    assert "cannot be decoded" in one_sentence(trainer(tmp_path / "run", "--dry-run", val=copy), 65)


def test_the_recipes_are_listed_and_a_printed_configuration_is_a_recipe(tmp_path):
    listed = run_python("-m", "fastirv2.train", "--recipes")
    assert_done(listed)
    assert "24.407 / 7.407" in listed.stdout
    printed = run_python("-m", "fastirv2.train", "--recipe", "setting1", "--train.epochs", "7", "--print-config")
    assert_done(printed)
    (tmp_path / "mine.toml").write_text(printed.stdout)
    again = run_python("-m", "fastirv2.train", "--recipe", tmp_path / "mine.toml", "--print-config")
    assert again.stdout == printed.stdout
    assert "epochs = 7" in printed.stdout
