"""ImageNet as it is given out, through the real command: tars that nobody unpacks, and validation labels in a file."""

import json
import subprocess
import tarfile

from PIL import Image

from tests.building.samples import class_folders, command, jpeg, pixels
from tests.processes import run_python

SYNSETS = {"n01440764": 5, "n01443537": 4, "n01484850": 3}


def made(*arguments):
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    return json.loads((arguments[1] / "dataset.json").read_bytes())


def training_tar(folders, path):
    """A tar of a tar a class, as ILSVRC2012_img_train.tar is."""
    inner = path.parent / "inner"
    inner.mkdir()
    for folder in sorted(folders.iterdir()):
        with tarfile.open(inner / f"{folder.name}.tar", "w") as tar:
            for image in sorted(folder.iterdir()):
                tar.add(image, image.name)
    subprocess.run(["tar", "-C", inner, "-cf", path, "."], check=True)
    return inner


def test_the_training_tar_a_folder_of_its_tars_and_class_folders_give_one_digest(tmp_path):
    folders = class_folders(tmp_path / "train", SYNSETS)
    (folders / "n01443537/n01443537_bad.JPEG").write_bytes(jpeg()[:-40])
    inner = training_tar(folders, tmp_path / "train.tar")
    sources = {"folders": folders, "tar": tmp_path / "train.tar", "tars": inner}
    made_of = {name: made(source, tmp_path / name, "--max-bad", 1) for name, source in sources.items()}
    assert len({dataset["digest"] for dataset in made_of.values()}) == 1
    assert made_of["tar"] == made_of["folders"] == made_of["tars"]
    assert made_of["tar"]["classes"] == list(SYNSETS)
    assert len({(tmp_path / name / "rejected.jsonl").read_text() for name in sources}) == 1


def test_validation_images_take_their_labels_from_a_file_in_a_tar_too(tmp_path):
    flat = tmp_path / "val"
    flat.mkdir()
    for number in range(12):
        (flat / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(jpeg(seed=number))
    names = [list(SYNSETS)[number % 3] for number in range(12)]
    (tmp_path / "synsets").write_text("".join(f"{name}\n" for name in names))
    (tmp_path / "indexes").write_text("".join(f"{number % 3}\n" for number in range(12)))
    (tmp_path / "classes").write_text("".join(f"{name}\n" for name in SYNSETS))
    subprocess.run(["tar", "-C", flat, "-cf", tmp_path / "val.tar", *sorted(p.name for p in flat.iterdir())], check=True)
    by_name = made(flat, tmp_path / "a", "--val-labels", tmp_path / "synsets")
    from_tar = made(tmp_path / "val.tar", tmp_path / "b", "--val-labels", tmp_path / "synsets")
    by_index = made(flat, tmp_path / "c", "--val-labels", tmp_path / "indexes", "--classes", tmp_path / "classes")
    assert by_name == from_tar == by_index
    assert by_name["classes"] == list(SYNSETS)
    assert by_name["images_per_class"] == [4, 4, 4]


def test_validation_labels_in_another_numbering_are_refused(tmp_path, lmdb_folder):
    """The devkit counts from 1 in an order of its own; and numbers alone do not fit a training set that has names."""
    flat = tmp_path / "val"
    flat.mkdir()
    for number in range(4):
        (flat / f"{number}.JPEG").write_bytes(jpeg(seed=number))
    labels = tmp_path / "labels"
    labels.write_text("1\n2\n2\n1\n")
    refused = command(flat, tmp_path / "db", "--val-labels", labels)
    assert refused.returncode == 65
    assert "as the file in ImageNet's development kit does" in refused.stderr
    assert refused.stderr.count("\n") == 1
    labels.write_text("0\n1\n1\n0\n")
    made(flat, tmp_path / "db", "--val-labels", labels)
    paths = ("--train", lmdb_folder, "--val", tmp_path / "db")
    mismatch = run_python("-m", "fastirv2.train", "--recipe", "demo", *paths, "--dry-run")
    assert mismatch.returncode == 65
    assert "have different classes: label 0 is 'cat' and '0'" in mismatch.stderr


def test_progressive_images_in_a_tar_are_stored_as_baseline(tmp_path):
    (tmp_path / "train/owl").mkdir(parents=True)
    Image.fromarray(pixels()).save(tmp_path / "train/owl/1.jpg", progressive=True)
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "train.tar", "train"], check=True)
    made(tmp_path / "train.tar", tmp_path / "db")
    (line,) = (tmp_path / "db/rejected.jsonl").read_text().splitlines()
    assert json.loads(line) == {"path": "owl/1.jpg", "reason": "progressive JPEG", "action": "repaired"}
