"""Two ranks train what one trains."""

import shutil

import pytest
import torch

from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, ValidationOrder
from fastirv2.training.pixels import unit
from tests.processes import run_ranks
from tests.train import validation_ranks
from tests.train.conftest import RECIPE, Trainer, assert_done, assert_the_same, latest, metrics
from tests.train.small_network import SmallNetwork

SIZE = InputConfig(resize=82, crop=75, threads=1)


FIVE = ("--train.amp", "fp64", "--train.global-batch", "16", "--schedule.warmup-epochs", "3", "--train.stop-after", "5")
CASES = {  # the command, what both have, and what the two ranks have besides
    "shared": ("fastirv2.train", ("--train.bn-batch", "16"), ()),
    "local": ("tests.train.small_network", ("--train.bn-batch", "8"), ("--train.sync-bn", "local")),
}


@pytest.fixture(scope="module")
def five_steps(file_list, tmp_path_factory):
    """Five steps in float64 on one rank and on two, in each case: the folder of a number of ranks and a case."""
    folder = tmp_path_factory.mktemp("five_steps")
    (folder / "small.toml").write_text(RECIPE)
    many = folder / "many.txt"  # no epoch ends
    many.write_text("".join(f"{file_list.parent}/{line}\n" for line in file_list.read_text().splitlines()) * 5)
    for name, (command, both, two) in CASES.items():
        trainer = Trainer(folder / "small.toml", many, command)
        assert_done(trainer(folder / f"1-{name}", *FIVE, *both))
        assert_done(trainer(folder / f"2-{name}", *FIVE, *both, *two, ranks=2))
    return lambda ranks, name: folder / f"{ranks}-{name}"


@pytest.mark.parametrize("name", CASES)
def test_in_float64_five_steps_on_two_ranks_are_those_on_one(five_steps, name):
    """With dropout, whose masks are the samples' own, and statistics over all 16 images, or over 8 and 8."""
    one, two = (latest(five_steps(ranks, name)) for ranks in (1, 2))
    assert one["step"] == two["step"] == 5
    weights = {key: value for key, value in one["model"].items() if value.is_floating_point()}
    assert {value.dtype for value in weights.values()} == {torch.float64}
    for key, value in weights.items():
        torch.testing.assert_close(two["model"][key], value, rtol=1e-9, atol=1e-9, msg=key)


def test_a_run_begun_on_two_ranks_goes_on_there_to_the_bit_and_on_one_with_every_image_validated_once(light, tmp_path):
    """With statistics of each rank's own, which the two of them go on with."""
    run, parts, own = tmp_path / "run", tmp_path / "parts", ("--train.bn-batch", "4", "--ema.decay", "0.9")
    assert_done(light(run, *own, "--train.stop-after", "4", ranks=2))
    for step in ("2", "4"):
        assert_done(light(parts, *own, "--train.stop-after", step, ranks=2))
    assert_the_same(parts, run)

    done = light(run, *own)
    assert_done(done)
    assert "going on after step 4" in done.stdout
    assert [line["step"] for line in metrics(run, "train")] == list(range(1, 10))
    assert [line["images"] for line in metrics(run, "val")] == 6 * [23]
    assert sum(line["images"] for line in metrics(run, "train")) == 9 * 8


def test_validation_of_103_images_is_that_of_a_plain_loop_on_1_2_3_and_4_ranks(images, tmp_path):
    """Whose batches of 12, 6, 4 and 3 images end with padding."""
    files = sorted(images.rglob("*.jpg"))
    path = tmp_path / "val.txt"
    path.write_text("".join(f"{files[i % 23]} {i % validation_ranks.CLASSES}\n" for i in range(103)))
    done = run_ranks(4, "-m", "tests.train.validation_ranks", path, tmp_path)
    assert done.returncode == 0, done.stderr

    model = validation_ranks.network().eval()
    loader, _ = validation_ranks.batches(path, batch=103)
    pixels, labels, _ = next(loader)
    loss = top1 = top5 = 0
    with torch.inference_mode():
        for image, label in zip(pixels, labels, strict=True):
            logits = model(image[None].double() / 127.5 - 1)[0]
            loss += float(torch.nn.functional.cross_entropy(logits, label))
            top1 += int(logits.argmax() == label)
            top5 += int(label in logits.topk(5).indices)
    loader.close()
    assert 0 < top1 < top5 < 103
    for world in range(1, 5):
        for rank in range(world):
            sums = torch.load(tmp_path / f"{world}-{rank}.pt").tolist()
            assert sums[1:] == [top1, top5, 103]
            assert sums[0] == pytest.approx(loss, rel=1e-9)


def test_ranks_that_do_not_divide_the_batch_get_one_sentence(light, tmp_path):
    refused = light(tmp_path / "run", "--train.global-batch", "9", ranks=2, launched=True)
    assert refused.returncode != 0
    said = [line for line in refused.stderr.splitlines() if "do not divide" in line]
    assert said == ["fastirv2.train: 2 ranks do not divide a global batch of 9 images; --train.global-batch 8 or 10 would do"]
    assert not (tmp_path / "run").exists()


def test_an_image_that_one_rank_cannot_decode_ends_all_with_one_sentence(light, images, tmp_path):
    copy = shutil.copytree(images, tmp_path / "images")
    (copy / "dog/09.jpg").write_bytes(b"no image")
    refused = light(tmp_path / "run", ranks=2, launched=True, train=copy)
    sentence = f"{copy}/dog/09.jpg cannot be decoded (it is no image)"
    assert [line for line in refused.stderr.splitlines() if sentence in line]
    assert "Connection closed" not in refused.stderr
    assert "fastirv2/training" not in refused.stderr


def test_what_two_ranks_validate_is_the_network_of_the_checkpoint(light, tmp_path):
    """Each rank normalises alone, so their running statistics differ until they are united."""
    options = ("--train.sync-bn", "local", "--train.epochs", "1", "--train.amp", "fp64", "--schedule.rate", "0.001")
    assert_done(light(tmp_path / "run", *options, ranks=2))
    (line,) = metrics(tmp_path / "run", "val")
    model = SmallNetwork(2, 0.2).double().eval()
    model.load_state_dict(latest(tmp_path / "run")["model"])
    order = ValidationOrder(open_records(light.data), SIZE, batch=23, world=1, rank=0)
    loader = Loader(open_records(light.data), order, SIZE, batch=23, device=torch.device("cpu"), cpus=2)
    images, labels, _ = next(loader)
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(model(unit(torch.float64, images.device)(images)), labels)
    loader.close()
    assert line["images"] == 23
    assert line["loss"] == pytest.approx(float(loss), rel=1e-9)


def test_missing_data_on_two_ranks_is_said_once(light, tmp_path):
    refused = light(tmp_path / "run", ranks=2, launched=True, train=tmp_path / "none")
    assert refused.stderr.count(f"{tmp_path / 'none'} does not exist") == 1
    assert "exitcode  : 65" in refused.stderr
