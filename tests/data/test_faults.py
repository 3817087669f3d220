"""Records that do not decode are named and left out of their batch; data that is cut ends in a sentence."""

import errno
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastirv2.data import file_sizes
from fastirv2.data.faults import Faults
from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, TrainOrder, ValidationOrder
from fastirv2.errors import DataError, is_out_of_memory
from tests.building.samples import png_header
from tests.conftest import build
from tests.data.test_loader import CPU, SIZE, loading, training, validation
from tests.processes import run_python

AREA = InputConfig(resize=88, crop=80, threads=2, augment="inception")


@pytest.fixture
def copy(images, tmp_path):
    return shutil.copytree(images, tmp_path / "images")


def spoil(folder, *numbers):
    """Leave nothing but the headers of some images in class folders; return where they are."""
    paths = [Path(open_records(folder).where(number)) for number in numbers]
    for path in paths:
        data = path.read_bytes()
        path.write_bytes(data[: data.index(b"\xff\xda")])
    return paths


def batches(loader, count):
    return [(images.clone(), labels.tolist()) for images, labels, _ in (next(loader) for _ in range(count))]


def test_a_bad_record_is_named_and_told_what_to_do_about(copy):
    (bad,) = spoil(copy, 16)
    loader = loading(copy, validation())
    assert loader.faults.error is None
    batches(loader, 3)
    assert isinstance(loader.faults.error, DataError)
    assert str(loader.faults.error).startswith(f"{bad} cannot be decoded (")
    assert "fastirv2-build-lmdb" in str(loader.faults.error)
    assert loader.faults.untold() == []


@pytest.mark.parametrize("config", [SIZE, AREA], ids=["crop", "area"])
def test_those_after_a_bad_record_move_up_and_the_last_is_shown_again(images, copy, config):
    order = TrainOrder(open_records(images), config, seed=5, global_batch=8, world=1, rank=0, parts=1, step=0)
    places = [(step, place) for step, place in ((1, 4), (1, 5), (3, 0))]
    numbers = [order().numbers for _ in range(5)]
    bad = [int(numbers[step][place]) for step, place in places]
    spoil(copy, *bad)
    wanted = batches(loading(images, training(config), config=config), 5)
    records = open_records(copy)
    skipping = Loader(records, training(config)(records), config, batch=8, device=CPU, cpus=2, on_bad="skip")
    found = batches(skipping, 5)
    for step, (pixels, labels) in enumerate(wanted):
        good = [place for place in range(8) if numbers[step][place] not in bad]
        takes = good + good[-1:] * (8 - len(good))
        assert torch.equal(found[step][0], pixels[takes])
        assert found[step][1] == [labels[take] for take in takes]
    assert len(skipping.faults.untold()) == 3
    assert skipping.faults.untold() == []
    assert skipping.faults.error is None


def test_a_validation_counts_every_good_record_once_and_no_bad_one(images, copy):
    def counted(folder):
        loader = loading(folder, validation())
        return [image for pixels, _, valid in (next(loader) for _ in range(3)) for image in pixels[:valid].clone()]

    bad = (3, 4, 8, 15, 22)
    wanted = counted(images)
    spoil(copy, *bad)
    found = counted(copy)
    assert len(wanted) == 23
    good = [image for number, image in enumerate(wanted) if number not in bad]
    assert torch.equal(torch.stack(found), torch.stack(good))


def test_each_validation_counts_the_same(copy):
    spoil(copy, 5, 22)
    loader = loading(copy, validation())
    assert [next(loader).valid for _ in range(6)] == [7, 8, 6] * 2


def test_an_image_that_only_other_programs_decode_is_bad_too(copy):
    (bad,) = spoil(copy, 3)
    Image.new("RGB", (90, 90)).save(bad, "GIF")
    loader = loading(copy, validation())
    batches(loader, 1)
    assert "(GIF is not decoded here)" in str(loader.faults.error)


def test_a_batch_without_a_good_record_shows_the_nearest_one_that_is(images, copy):
    whole = batches(loading(images, validation()), 2)
    spoil(copy, *range(8))
    loader = loading(copy, validation())
    ((pixels, labels),) = batches(loader, 1)
    assert all(torch.equal(image, whole[1][0][0]) for image in pixels)
    assert labels == [whole[1][1][0]] * 8
    assert "cannot be decoded" in str(loader.faults.error)


def test_padding_by_a_bad_record_stays_padding(copy):
    spoil(copy, 22)

    def order(records):
        return ValidationOrder(records, SIZE, batch=11, world=1, rank=0)

    loader = loading(copy, order, batch=11)
    assert [next(loader).valid for _ in range(3)] == [11, 11, 0]  # the last has nothing but the bad record and its padding


def test_a_data_set_without_a_good_record_ends_it(copy):
    spoil(copy, *range(23))
    loader = loading(copy, validation())
    with pytest.raises(DataError, match=r"all 23 records cannot be decoded; build it anew"):
        batches(loader, 3)


def test_what_is_no_image_by_its_first_bytes_never_comes_to_the_decoder_which_may_crash_of_it(copy, monkeypatch):
    """In batches of more than four times its threads DALI 2.4 did."""
    paths = sorted(copy.rglob("*.jpg"))
    Image.new("P", (20, 20)).save(paths[0], "GIF")
    paths[9].write_text("<html>not found</html>")
    records = open_records(copy)
    assert records.headless == {0, 9}
    given = []
    feed = records.feed
    monkeypatch.setattr(records, "feed", lambda numbers: (given.append(set(numbers.tolist())), feed(numbers))[1])
    config = InputConfig(resize=88, crop=80, threads=1)
    order = ValidationOrder(records, config, batch=23, world=1, rank=0)
    loader = Loader(records, order, config, batch=23, device=CPU, cpus=1, on_bad="skip")
    next(loader)
    assert given[0] == set(range(23)) - {0, 9}
    assert loader.faults.untold() == [
        f"{paths[0]} cannot be decoded (GIF is not decoded here)", f"{paths[9]} cannot be decoded (it is no image)"
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"GIF is not decoded here\); remove it, .* or go on without it: --data.on-bad skip"):
        Faults(records, "stop").refuse_headless()
    Faults(records, "skip").refuse_headless()


def test_a_file_that_cannot_be_read_is_looked_at_again_another_time(copy, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = str(sorted(copy.rglob("*.jpg"))[3])

    def refused(file, *arguments, **options):
        if file == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return open(file, *arguments, **options)

    monkeypatch.setattr(file_sizes, "open", refused, raising=False)
    records = open_records(copy)
    assert [records.where(number) for number in records.headless] == [path]
    with pytest.raises(DataError, match=r"03.jpg cannot be decoded \(.*go on without it: --data.on-bad skip"):
        Faults(records, "stop").refuse_headless()
    monkeypatch.setattr(file_sizes, "open", open)
    assert not open_records(copy).headless


def test_files_without_a_size_are_given_that_of_another(copy):
    """Windows of them are drawn, before other images take their places."""
    for path in sorted(copy.rglob("*.jpg"))[:2]:
        path.write_bytes(b"nothing")
    records = open_records(copy)
    assert (records.sizes > 0).all()
    assert records.headless == {0, 1}


def test_a_decompression_bomb_is_named(copy):
    sorted(copy.rglob("*.jpg"))[3].write_bytes(png_header(20_000, 20_000))
    with pytest.raises(DataError, match=r"03.jpg cannot be decoded \(Image size .* exceeds limit"):
        Faults(open_records(copy), "stop").refuse_headless()


def test_where_a_gpus_memory_is_short_no_record_is_looked_for(copy, monkeypatch):
    def run(*_):
        raise RuntimeError("Critical error in pipeline:\nCan't allocate 1073741824 bytes on device 0.")

    loader = loading(copy, validation())
    monkeypatch.setattr(loader.faults, "find", pytest.fail)
    monkeypatch.setattr(loader._pipeline, "run", run)
    with pytest.raises(RuntimeError, match=r"Can't allocate") as raised:
        next(loader)
    assert is_out_of_memory(raised.value)


def test_all_crops_of_a_bad_image_are_left_out(images, copy):
    def order(records):
        return ValidationOrder(records, SIZE, batch=4, world=1, rank=0, crops=12)

    spoil(copy, 1)
    ((whole, _),) = batches(loading(images, order, batch=4), 1)
    ((spoilt, labels),) = batches(loading(copy, order, batch=4), 1)
    assert len(labels) == 4
    views = [0, 2, 3, 3]
    assert torch.equal(spoilt.unflatten(0, (4, 12)), whole.unflatten(0, (4, 12))[views])


CUT = """
import os, sys, torch
from fastirv2.data.bus_error import on_bus_error
from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, TrainOrder

def end(sentence):
    print(sentence, file=sys.stderr, flush=True)
    os._exit(65)

records = open_records(sys.argv[1])
on_bus_error([records], end)
order = TrainOrder(records, InputConfig(), seed=0, global_batch=8, world=1, rank=0, parts=1, step=0)
loader = Loader(records, order, InputConfig(), batch=8, device=torch.device("cpu"), cpus=2)
next(loader)
os.truncate(sys.argv[1].split(",")[-1] + "/data.mdb", 0)
for _ in range(20):
    next(loader)
"""


@pytest.mark.parametrize("parts", [1, 2])
def test_an_lmdb_that_is_cut_while_it_is_read_ends_it_with_a_sentence(images, tmp_path, parts):
    folders = [build(images, tmp_path / f"lmdb-{part}", "--part", f"{part}/{parts}") for part in range(1, parts + 1)]
    (tmp_path / "cut.py").write_text(CUT)
    path = ",".join(map(str, folders))
    done = run_python(tmp_path / "cut.py", path, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert (done.returncode, done.stderr.count("\n")) == (65, 1), done.stderr
    assert done.stderr.startswith(f"{folders[-1]}/data.mdb was cut or overwritten while it was being read")
