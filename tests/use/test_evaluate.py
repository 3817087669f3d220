"""Scores: the probabilities of plain Pillow and PyTorch, training's counts, and the same on one rank and on two."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fastirv2 import evaluate
from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, ValidationOrder
from fastirv2.errors import UsageError
from fastirv2.scoring.network import Network
from fastirv2.scoring.outcomes import outcomes_of, score
from fastirv2.scoring.protocol import choose_protocol
from fastirv2.trained import open_trained
from fastirv2.training.distributed import Process
from fastirv2.training.engine import Engine
from fastirv2.training.pixels import unit
from tests.data.test_views import pillow_views
from tests.processes import ONE_THREAD, lines, start_ranks

CPU = torch.device("cpu")
ALONE = Process(0, 1, 0, 1, CPU, cpus=2)
TWO = ("--amp", "fp32", "--batch", 4)


@pytest.fixture(scope="module")
def trained(paper_run):
    return open_trained(paper_run)


@pytest.fixture(scope="module")
def few(images, tmp_path_factory):
    """Two images in the folders of their classes."""
    folder = tmp_path_factory.mktemp("few")
    for name in ("cat/03.jpg", "dog/07.jpg"):
        (folder / name).parent.mkdir()
        shutil.copy(images / name, folder / name)
    return folder


def plain(trained, image, crops, config):
    """Softmax of each of Pillow's views by PyTorch alone, averaged; one crop is the central window."""
    if crops == 1:
        left = (config.resize - config.crop) // 2
        square = image.resize((config.resize,) * 2, Image.Resampling.BILINEAR)
        views = np.asarray(square.crop((left, left, left + config.crop, left + config.crop)))[None]
    else:
        views = pillow_views(image, crops, config)
    batch = torch.from_numpy(np.array(views)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        return trained.model(batch).softmax(1).mean(0)


@pytest.mark.parametrize(("crops", "mode"), [(1, "warp"), (12, "warp"), (12, "short"), (144, None)])
def test_probabilities_are_those_of_pillow_and_pytorch(trained, few, crops, mode):
    protocol = choose_protocol(trained.input, crops=crops, resize=None if crops == 144 else 88, resize_mode=mode, crop=80)
    network, records, count = Network(trained, CPU, "fp32"), open_records(few), 1 if crops == 144 else 2
    order = ValidationOrder(records, protocol.input, batch=count, world=1, rank=0, crops=crops)
    loader = Loader(records, order, protocol.input, batch=count, device=CPU, cpus=2)
    numbers, scores = next(score(network, loader, order, 2, ALONE, count))
    loader.close()
    assert numbers.tolist() == list(range(count))
    for number, probabilities in zip(numbers, scores.exp(), strict=True):
        with Image.open(few / records.names[number]) as image:
            expected = plain(trained, image.convert("RGB"), crops, protocol.input)
        assert probabilities.sum() == pytest.approx(1)
        assert (probabilities - expected).abs().max() < 0.02


def test_one_crop_counts_what_validation_in_training_counts(trained, lmdb_folder):
    records, config = open_records(lmdb_folder), InputConfig(resize=82, crop=75, threads=2)
    order = ValidationOrder(records, config, batch=8, world=1, rank=0)
    loader = Loader(records, order, config, batch=8, device=CPU, cpus=2)
    engine = Engine(open_trained(trained.source).model, ALONE, amp="fp32", accumulation=1, normalise=unit)
    ((loss, top1, top5, images),) = engine.validate(loader, order.steps, lambda: False)
    loader.close()
    labels = records.labels
    network, protocol = Network(trained, CPU, "fp32"), choose_protocol(trained.input)
    outcomes, skipped = outcomes_of(network, records, labels, labels[:, None], protocol, ALONE, batch=8)
    assert skipped == []
    assert ((outcomes.place < 1).sum(), (outcomes.place < 5).sum(), len(labels)) == (top1, top5, images)
    assert 0 < top1 < images
    assert outcomes.loss.sum() == pytest.approx(float(loss), rel=1e-5)
    assert ((outcomes.predicted == labels) == (outcomes.place < 1)).all()


@pytest.mark.gpu
@pytest.mark.parametrize("crops", [1, 12, 144])
def test_a_gpu_scores_as_a_cpu_does(paper_run, few, crops):
    records, found = open_records(few), []
    for device in (CPU, torch.device("cuda", 0)):
        trained = open_trained(paper_run)
        protocol = choose_protocol(InputConfig(resize=82, crop=75, hw_decoder_load=0.0), crops=crops)
        where = Process(0, 1, 0, 1, device, cpus=2)
        labels = records.labels
        network = Network(trained, device, "fp32")
        found.append(outcomes_of(network, records, labels, labels[:, None], protocol, where, batch=24)[0])
    assert found[0].confidence == pytest.approx(found[1].confidence, abs=0.02)
    assert found[0].loss == pytest.approx(found[1].loss, abs=0.05)


def score_of(result):
    assert (result.code, result.err) == (0, "")
    return json.loads(result.out)


def test_two_ranks_score_as_one(command, paper_run, lmdb_folder):
    alone = command(evaluate, paper_run, "--val", lmdb_folder, *TWO, "--json")
    arguments = ("-m", "fastirv2.evaluate", paper_run, "--val", lmdb_folder, *TWO, "--json")
    (said, complained), (silent, _) = (rank.communicate(timeout=240) for rank in start_ranks(2, *arguments, **ONE_THREAD))
    assert (complained, "".join(lines(silent))) == ("", "")
    one, two = score_of(alone), json.loads("".join(lines(said)))
    assert two.pop("loss") == pytest.approx(one.pop("loss"), rel=1e-5)  # the number of threads may show in the last digits
    assert two == one
    assert one["images"] == 23


def test_a_score_is_said_with_its_protocol_and_written_as_tables(command, paper_run, images, tmp_path):
    tables = tmp_path / "tables"
    result = command(evaluate, paper_run, "--val", images, "--amp", "fp32", "--tables", tables, "--interpolation", "bicubic")
    who, what, how, top1, top5, loss = result.out.splitlines()
    assert who.endswith("best.pt: paper network, 2 classes, averaged weights, recipe mine, epoch 2")
    assert what == f"23 images of {images}"
    assert how == "1 crop, warped to 82², central 75²; bicubic; fp32"
    assert top1.startswith("top-1 error ")
    assert top1.endswith("of 23 images")
    assert top5 == "top-5 error 0.000 %, 95 % interval 0.00 to 14.31 %: 0 of 23 images"
    assert float(loss.removeprefix("loss ")) > 0
    rows = list(csv.DictReader((tables / "classes.csv").open()))
    wrong = sum(int(row["images"]) - int(row["top1_correct"]) for row in rows)
    assert f": {wrong} of 23 images" in top1
    assert sum(int(row["images"]) for row in csv.DictReader((tables / "confusion.csv").open())) == 23
    with Image.open(tables / "worst.png") as picture:
        assert picture.width > 500


def test_other_weights_images_and_labels_by_option(command, paper_run, lmdb_folder, tmp_path):
    names = open_records(lmdb_folder).names
    (tmp_path / "list.txt").write_text("".join(f"{number}\n" for number in range(1, 4)))
    (tmp_path / "named.txt").write_text("cat/00.jpg\ndog/03\nnone.jpg\n")
    ambiguous = command(evaluate, paper_run, "--val", lmdb_folder, *TWO, "--exclude", tmp_path / "list.txt")
    assert ambiguous.code == 65
    assert "has several images of one name" in ambiguous.err
    left = command(evaluate, paper_run, "--val", lmdb_folder, *TWO, "--exclude", tmp_path / "named.txt", "--weights", "raw")
    assert "21 images" in left.out
    assert "2 others left out" in left.out
    assert "named.txt lists, 1 are not in" in left.err
    assert "weights as trained" in left.out
    assert len(names) == 23


@pytest.fixture
def spoilt(images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "cat/05.jpg").write_bytes((folder / "cat/05.jpg").read_bytes()[:300])
    return folder


def test_an_image_that_does_not_decode_stops_or_is_left_out(command, paper_run, spoilt):
    stopped = command(evaluate, paper_run, "--val", spoilt, *TWO)
    assert (stopped.code, stopped.out, stopped.err.count("\n")) == (65, "", 1)
    assert "cat/05.jpg cannot be decoded" in stopped.err
    assert stopped.err.endswith("go on without it: --on-bad skip\n")
    skipped = command(evaluate, paper_run, "--val", spoilt, *TWO, "--on-bad", "skip")
    assert "22 images" in skipped.out
    assert skipped.err.startswith(f"warning: {spoilt}/cat/05.jpg cannot be decoded")


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--arch", "slim"), 2, "holds the paper network, not slim"),
        (("--crop", 90), 2, "--crop 90 must lie between 1 and --resize 82"),
        (("--batch", -1), 2, "--batch -1 must not be negative"),
        (("--amp", "tf32"), 2, "--amp tf32 needs an NVIDIA GPU"),
        (("--exclude", "/none"), 65, "/none cannot be read: No such file or directory"),
        (("--val", "/none"), 65, "/none does not exist"),
        (("--tables", "/dev/null/tables"), 65, "/dev/null/tables cannot be made: Not a directory; choose another --tables"),
    ],
)
def test_a_mistake_is_a_sentence(command, paper_run, images, options, code, sentence):
    result = command(evaluate, paper_run, "--val", images, *options)
    assert (result.code, result.out, result.err.count("\n")) == (code, "", 1), result.err
    assert sentence in result.err


OWN = InputConfig(resize=82, crop=75, augment="resnet", sizes=("1:75",), normalise="imagenet")


def test_a_protocol_is_the_networks_own_unless_told_otherwise():
    assert str(choose_protocol(OWN)) == "1 crop, warped to 82², central 75²; bicubic"
    told = choose_protocol(OWN, resize=100, resize_mode="short", crop=90, interpolation="bilinear")
    assert str(told) == "1 crop, shorter side 100, central 90²; bilinear"
    assert told.input == InputConfig(resize=100, crop=90, resize_mode="short", interpolation="bilinear", normalise="imagenet")
    sides = choose_protocol(OWN, crops=144, crop=299)
    assert str(sides).startswith(
        "144 crops, shorter side 320, 352, 384, 416, three squares of each: 299² windows at the corners"
    )
    own = {"crops": 1, "resize": 100, "resize_mode": "short", "crop": 90, "interpolation": "bilinear"}
    of_144 = {"crops": 144, "sides": [320, 352, 384, 416], "resize_mode": "short", "crop": 299, "interpolation": "bicubic"}
    assert (told.table(), sides.table()) == (own, of_144)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"crops": 144, "resize": 90}, "144 crops resize images to 80, 88, 96, 104; leave --resize and --resize-mode out"),
        ({"crops": 144, "resize_mode": "warp", "crop": 299}, "144 crops resize images to 320, 352, 384, 416; leave"),
        ({"crop": 60}, "--crop 60 is too small for this network; it needs 75 pixels"),
        ({"resize": 70}, "--resize 70 is too small"),
        ({"resize": 5000}, "--input.resize 5000 is beyond all use"),
    ],
)
def test_a_protocol_that_makes_no_sense_is_refused(options, sentence):
    with pytest.raises(UsageError, match=re.escape(sentence)):
        choose_protocol(OWN, **options)
