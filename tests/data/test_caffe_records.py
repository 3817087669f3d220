"""LMDBs of Datum records that other programs wrote, encoded or raw, used for training as they are."""

import errno
import io
import os
import shutil

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from fastirv2.data import caffe_index
from fastirv2.data.datum import Datum
from fastirv2.data.lmdb_records import CaffeRecords
from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, TrainOrder
from fastirv2.errors import DataError
from tests.building.samples import with_segment
from tests.conftest import photograph

SIZE = InputConfig(resize=48, crop=40, threads=1, hw_decoder_load=0.0)


def picture(number, side=48):
    return np.asarray(photograph(number, side, side))


def raw(number):
    """As convert_imageset without --encoded writes it: planes in the order blue, green, red."""
    planes = picture(number)[:, :, ::-1].transpose(2, 0, 1)
    return Datum(channels=3, height=48, width=48, data=planes.tobytes(), label=number % 3, encoded=False)


def encoded(number, quality=100, **exif):
    """As convert_imageset --encoded writes it: no sizes."""
    stream = io.BytesIO()
    Image.fromarray(picture(number)).save(stream, "JPEG", quality=quality, subsampling=0, **exif)
    return Datum(data=stream.getvalue(), label=number % 3, encoded=True)


def write(folder, datums, key="{:08d}_ILSVRC/img {}.JPEG"):
    with lmdb.open(os.fspath(folder), map_size=1 << 28) as environment, environment.begin(write=True) as transaction:
        for number, datum in enumerate(datums):
            transaction.put(key.format(number, number).encode(), datum.SerializeToString())
    return folder


def batches(path, count=3):
    records = open_records(path)
    order = TrainOrder(records, SIZE, seed=5, global_batch=8, world=1, rank=0, parts=1, step=0)
    loader = Loader(records, order, SIZE, batch=8, device=torch.device("cpu"), cpus=2)
    got = [(images.clone(), labels.clone()) for images, labels, _ in (next(loader) for _ in range(count))]
    loader.close()
    return got


def refusal(path):
    with pytest.raises(DataError) as error:
        open_records(path)
    return str(error.value)


@pytest.fixture
def raw_lmdb(tmp_path):
    return write(tmp_path / "raw", [raw(number) for number in range(13)])


def test_raw_and_encoded_lmdbs_of_the_same_images_give_the_same_batches(raw_lmdb, tmp_path):
    jpegs = write(tmp_path / "jpegs", [encoded(number) for number in range(13)])
    for (planes, labels), (decoded, same_labels) in zip(batches(raw_lmdb), batches(jpegs), strict=True):
        assert labels.tolist() == same_labels.tolist()
        difference = (planes.int() - decoded.int()).abs().float()
        assert difference.mean() < 1.5  # what JPEG costs, and far less than exchanged colours would
        assert difference.max() <= 16


def test_raw_images_are_told_apart_by_their_pixels(raw_lmdb, tmp_path):
    brighter = raw(4)
    brighter.data = bytes(255 - value for value in brighter.data)
    other = write(tmp_path / "other", [brighter if number == 4 else raw(number) for number in range(13)])
    same = write(tmp_path / "same", [raw(number) for number in range(13)])
    assert open_records(same).digest == open_records(raw_lmdb).digest != open_records(other).digest


def test_raw_images_are_the_pictures_themselves(tmp_path):
    raw_lmdb = write(tmp_path / "raw", [raw(4)] * 8)
    config = InputConfig(resize=48, crop=48, threads=1, hw_decoder_load=0.0)
    records = open_records(raw_lmdb)
    order = TrainOrder(records, config, seed=5, global_batch=8, world=1, rank=0, parts=1, step=0)
    loader = Loader(records, order, config, batch=8, device=torch.device("cpu"), cpus=2)
    images = next(loader).images.permute(0, 2, 3, 1).numpy()
    assert all(np.array_equal(image, picture(4)) or np.array_equal(image, picture(4)[:, ::-1]) for image in images)
    loader.close()


def test_labels_classes_and_sizes_are_those_of_the_records(raw_lmdb):
    records = open_records(raw_lmdb)
    assert isinstance(records, CaffeRecords)
    assert (len(records), records.form, records.classes) == (13, "planes", ["0", "1", "2"])
    assert records.labels.tolist() == [number % 3 for number in range(13)]
    assert records.sizes.tolist() == [[48, 48]] * 13
    assert bytes(records[5][0]) == raw(5).data
    assert records.where(5) == f"record 00000005 of {raw_lmdb}"


def test_a_label_that_is_left_out_is_0_and_any_order_of_fields_is_read(tmp_path):
    data = encoded(7).data
    folder = tmp_path / "lmdb"
    reordered = b"\x38\x01" + b"\x28\x02" + b"\x22" + varint(len(data)) + data  # encoded, label, data
    with lmdb.open(os.fspath(folder)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"a", Datum(data=data, encoded=True).SerializeToString())
        transaction.put(b"b", reordered)
    records = open_records(folder)
    assert records.labels.tolist() == [0, 2]
    assert bytes(records[1][0]) == data


def varint(number):
    low, high = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def test_sizes_of_encoded_images_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    photograph(1, 60, 40).save(stream, "JPEG", exif=exif)
    wide, tall = encoded(0), Datum(data=stream.getvalue(), encoded=True)
    png = io.BytesIO()
    photograph(1, 30, 20).save(png, "PNG")
    records = open_records(write(tmp_path / "lmdb", [wide, tall, Datum(data=png.getvalue(), encoded=True)]))
    assert records.sizes.tolist() == [[48, 48], [60, 40], [20, 30]]


def test_a_header_behind_64_kilobytes_of_comments_is_found(tmp_path):
    datum = Datum(data=with_segment(encoded(0).data, bytes(65_533), 0xFE), encoded=True)
    assert open_records(write(tmp_path / "lmdb", [datum])).sizes.tolist() == [[48, 48]]


def test_jpegs_that_do_not_say_that_they_are_encoded_are_told_from_planes(tmp_path):
    silent = [Datum(data=encoded(number).data, label=number, channels=3, height=48, width=48) for number in range(2)]
    records = open_records(write(tmp_path / "silent", silent))
    assert (records.form, records.sizes.tolist()) == ("encoded", [[48, 48]] * 2)
    planes = raw(0)
    planes.data = b"\xff\xd8" + planes.data[2:]  # as the first two pixels may be
    assert open_records(write(tmp_path / "planes", [planes])).form == "planes"


def test_records_are_indexed_over_the_ends_of_what_is_read_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr(caffe_index, "_RECORDS_AHEAD", 4)
    datums = [encoded(number, quality=40 + 4 * number) for number in range(13)]
    records = open_records(write(tmp_path / "lmdb", datums))
    assert [bytes(records[number][0]) for number in range(13)] == [datum.data for datum in datums]


def test_the_index_is_made_once_and_anew_when_the_lmdb_changes(raw_lmdb, monkeypatch):
    first = open_records(raw_lmdb)
    assert (raw_lmdb / "fastirv2-index.npz").exists()
    built = []
    build = caffe_index._build
    monkeypatch.setattr(caffe_index, "_build", lambda *arguments: built.append(1) or build(*arguments))
    again = open_records(raw_lmdb)
    assert (built, again.digest) == ([], first.digest)
    with lmdb.open(os.fspath(raw_lmdb), map_size=1 << 28) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"zz", raw(14).SerializeToString())
    assert (len(open_records(raw_lmdb)), built) == (14, [1])
    (raw_lmdb / "fastirv2-index.npz").write_bytes(b"cut off")
    assert (len(open_records(raw_lmdb)), built) == (14, [1, 1])


def test_another_lmdb_of_the_same_counts_is_indexed_anew(raw_lmdb, tmp_path):
    other = write(tmp_path / "other", [raw(number) for number in reversed(range(13))])
    before = open_records(raw_lmdb).labels.tolist()
    shutil.copyfile(other / "data.mdb", raw_lmdb / "data.mdb")
    assert open_records(raw_lmdb).labels.tolist() == before[::-1]


def test_a_failure_of_the_device_is_not_blamed_on_raw_images(raw_lmdb, monkeypatch):
    records = open_records(raw_lmdb)
    order = TrainOrder(records, SIZE, seed=5, global_batch=8, world=1, rank=0, parts=1, step=0)
    loader = Loader(records, order, SIZE, batch=8, device=torch.device("cpu"), cpus=1)
    next(loader)
    monkeypatch.setattr(loader._pipeline, "run", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match=r"the input pipeline over .* failed: out of memory"):
        next(loader)
    loader.close()


def test_the_index_of_a_folder_that_cannot_be_written_is_kept_in_the_cache(raw_lmdb, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    open_records(raw_lmdb)
    assert not (raw_lmdb / "fastirv2-index.npz").exists()
    (kept,) = (tmp_path / "cache/fastirv2").iterdir()
    assert kept.name.endswith("fastirv2-index.npz")


def test_an_index_for_which_the_disk_has_no_room_is_made_all_the_same(raw_lmdb, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(caffe_index, "write_file", full)
    assert len(open_records(raw_lmdb)) == 13


@pytest.mark.parametrize(
    ("datum", "sentence"),
    [
        (Datum(channels=2, height=2, width=2, float_data=[0.5] * 8, label=1), "holds numbers (float_data) and no image"),
        (Datum(label=1), "holds no image"),
        (Datum(channels=1, height=2, width=3, data=bytes(6)), "6 bytes of raw data for 1 × 2 × 3, but three planes"),
        (Datum(channels=3, height=2, width=3, data=bytes(17)), "17 bytes of raw data for 3 × 2 × 3, but three planes"),
        (Datum(data=b"no image", encoded=True), "holds no header of an image"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_record(tmp_path, datum, sentence):
    lmdb_folder = write(tmp_path / "lmdb", [raw(0), datum])
    refused = refusal(lmdb_folder)
    assert refused.startswith(f"{lmdb_folder}, record 1 ")
    assert sentence in refused
    assert "fastirv2-build-lmdb" in refused


def test_a_side_that_is_too_long_for_the_index_is_refused(tmp_path):
    wide = write(tmp_path / "wide", [raw(0), Datum(channels=3, height=1, width=70_000, data=bytes(210_000))])
    assert refusal(wide) == f"{wide}, record 1 is 70,000 × 1 pixels; at most 65,535 a side can be read"


def test_an_lmdb_of_something_else_is_refused(tmp_path):
    folder = tmp_path / "lmdb"
    with lmdb.open(os.fspath(folder)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"key", b"\x0b\xff")
    assert "record 0 is no Datum" in refusal(folder)
    with lmdb.open(os.fspath(tmp_path / "empty")) as environment:
        environment.sync(True)
    assert refusal(tmp_path / "empty") == f"{tmp_path}/empty holds no records"


def test_a_mixture_and_negative_labels_are_refused(tmp_path):
    assert "mixes 1 encoded and 2 raw images" in refusal(write(tmp_path / "mixed", [raw(0), encoded(1), raw(2)]))
    negative = encoded(0)
    negative.label = -3
    assert "holds the label -3" in refusal(write(tmp_path / "negative", [negative]))


def test_a_truncated_lmdb_is_refused(raw_lmdb):
    with (raw_lmdb / "data.mdb").open("r+b") as file:
        file.truncate(40_000)
    assert str(raw_lmdb / "data.mdb") in refusal(raw_lmdb)


def test_lmdbs_of_other_programs_are_joined_where_their_form_is_one(raw_lmdb, tmp_path):
    other = write(tmp_path / "other", [raw(number) for number in range(3, 5)])
    joined = open_records(f"{other},{raw_lmdb}")
    assert (len(joined), joined.classes, joined.form) == (15, ["0", "1", "2"], "planes")
    assert [view.shape for view in joined.feed(np.array([0, 14]))] == [(3, 48, 48)] * 2
    jpegs = write(tmp_path / "jpegs", [encoded(0)])
    assert "joins encoded and raw images" in refusal(f"{raw_lmdb},{jpegs}")
