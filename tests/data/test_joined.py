"""Several LMDBs as one data set: the parts of one build hold each image once, in one order."""

import json
import os
import shutil

import numpy as np
import pytest

from fastirv2.data.joined import JoinedRecords
from fastirv2.data.lmdb_records import MappedRecords
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, check_input
from fastirv2.errors import DataError
from tests.conftest import build


@pytest.fixture(scope="module")
def parts(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return [build(images, folder / f"part{i}", "--part", f"{i}/3") for i in (1, 2, 3)]


def joined(*folders):
    return ",".join(map(str, folders))


def refusal(path):
    with pytest.raises(DataError) as error:
        open_records(path)
    return str(error.value)


def edited(folder, copy, **fields):
    """A copy of an LMDB whose dataset.json says otherwise; fields that are None are left out."""
    shutil.copytree(folder, copy)
    about = json.loads((copy / "dataset.json").read_text()) | fields
    (copy / "dataset.json").write_text(json.dumps({name: value for name, value in about.items() if value is not None}))
    return copy


def built_with(folder, **options):
    return json.loads((folder / "dataset.json").read_text())["build"] | options


def test_all_parts_together_are_the_whole_build_record_by_record(parts, lmdb_folder):
    whole, together = open_records(lmdb_folder), open_records(joined(*parts))
    assert isinstance(together, JoinedRecords)
    assert together.classes == whole.classes
    assert together.labels.tolist() == whole.labels.tolist()
    assert together.sizes.tolist() == whole.sizes.tolist()
    assert together.names == list(whole.names)
    assert together.warnings == ()
    assert together.data_bytes == whole.data_bytes
    assert [(bytes(data), label) for data, label in map(together.__getitem__, range(23))] == [
        (bytes(data), label) for data, label in map(whole.__getitem__, range(23))
    ]


def test_a_batch_is_fed_from_all_maps_in_its_own_order_without_a_copy(parts, lmdb_folder):
    whole, together = open_records(lmdb_folder), open_records(joined(*parts))
    numbers = np.random.default_rng(0).permutation(23)
    fed = together.feed(numbers)
    assert [bytes(view) for view in fed] == [bytes(view) for view in whole.feed(numbers)]
    assert not any(view.flags.owndata for view in fed)


def test_each_folder_reads_ahead_its_own_records(parts, monkeypatch):
    told, first = [], len(open_records(parts[0]))
    monkeypatch.setattr(MappedRecords, "read_ahead", lambda folder, numbers: told.append((folder.path, numbers.tolist())))
    open_records(joined(*parts)).read_ahead(np.array([first + 1, 0, first]))
    assert told == [(str(parts[0]), [0]), (str(parts[1]), [1, 0])]


def test_a_folder_that_is_cut_while_it_is_read_is_named(parts, tmp_path):
    copy = shutil.copytree(parts[1], tmp_path / "copy")
    together = open_records(joined(parts[0], copy))
    assert together.lost() == ""
    os.truncate(copy / "data.mdb", 4096)
    assert together.lost().startswith(f"{copy}/data.mdb was cut or overwritten")


def test_a_record_is_named_by_its_own_folder_and_key(parts):
    first = len(open_records(parts[0]))
    together = open_records(joined(*parts))
    assert together.where(first - 1) == f"record {first - 1:08d} of {parts[0]}"
    assert together.where(first) == f"record 00000000 of {parts[1]}"


def test_the_digest_is_that_of_the_parts_in_their_order(parts):
    assert open_records(joined(*parts)).digest == open_records(joined(*parts)).digest
    assert open_records(joined(*parts)).digest != open_records(joined(*parts[::-1])).digest
    assert open_records(joined(*parts[:2])).digest != open_records(joined(parts[0], parts[2])).digest


def test_missing_parts_are_warned_about(parts):
    (warning,) = open_records(joined(parts[2], parts[0])).warnings
    assert warning == f"of the images that {parts[2]} and {parts[0]} were built from, part 2/3 is missing"
    assert open_records(parts[1]).warnings == (f"{parts[1]} is only part 2/3 of the images it was built from",)


def test_what_would_hold_images_twice_is_refused(parts, lmdb_folder, images, tmp_path):
    copy = shutil.copytree(parts[0], tmp_path / "copy")
    for paths in ((parts[0], copy), (parts[0], parts[1], copy)):
        assert refusal(joined(*paths)) == f"{parts[0]} and {copy} hold the same records; give each LMDB once"
    assert "not as parts of one order: --seed 0 --part 1/3 and --seed 0 --part 1/1" in refusal(joined(parts[0], lmdb_folder))
    smaller = build(images, tmp_path / "smaller", "--part", "1/3", "--resize", "40x40")
    assert "are the same part of the same images: --seed 0 --part 1/3" in refusal(joined(parts[0], smaller))
    other = build(images, tmp_path / "other", "--part", "2/3", "--seed", "1")
    assert "--seed 0 --part 1/3 and --seed 1 --part 2/3" in refusal(joined(parts[0], other))
    fewer = edited(parts[1], tmp_path / "fewer", build=built_with(parts[1], limit=9))
    assert "--seed 0 --part 1/3 and --seed 0 --limit 9 --part 2/3" in refusal(joined(parts[0], fewer))


def test_lmdbs_of_different_images_are_joined_whatever_part_each_is(parts, tmp_path):
    other = edited(parts[0], tmp_path / "other", digest="0" * 64, build=built_with(parts[0], source="other images"))
    assert len(open_records(joined(parts[0], other))) == 2 * len(open_records(parts[0]))


def test_an_lmdb_that_says_nothing_of_its_build_is_joined(parts, tmp_path):
    old = edited(parts[1], tmp_path / "old", build=None)
    count = len(open_records(parts[0])) + len(open_records(parts[1]))
    assert len(open_records(joined(parts[0], old))) == len(open_records(joined(old, parts[0]))) == count


def test_names_are_not_known_where_one_of_the_joined_has_none(parts, tmp_path):
    old = shutil.copytree(parts[1], tmp_path / "old")
    (old / "names.jsonl").unlink()
    assert open_records(joined(parts[0], old)).names is None


def test_what_cannot_be_joined_is_refused(parts, images, tmp_path):
    assert "there is nothing before, after or between commas" in refusal(f"{parts[0]},")
    assert refusal(joined(parts[0], images)).startswith(f"{images}, one of several joined by commas, is no LMDB folder")
    assert refusal(joined(parts[0], tmp_path / "none")) == f"{tmp_path}/none does not exist"
    renamed = edited(parts[1], tmp_path / "renamed", classes=["cat", "wolf"])
    assert "have different classes: label 1 is 'dog' and 'wolf'" in refusal(joined(parts[0], renamed))


def test_a_folder_with_a_comma_in_its_name_is_opened_as_it_is(lmdb_folder, tmp_path):
    copy = shutil.copytree(lmdb_folder, tmp_path / "a,b")
    assert open_records(copy).path == str(copy)


def test_what_is_lost_on_records_that_were_resized_is_said(images, parts, tmp_path):
    small = build(images, tmp_path / "small", "--resize", "100x60", "--part", "1/3")
    short = build(images, tmp_path / "short", "--resize", "short:80", "--part", "2/3")

    def said(path, *, training=True, **options):
        return check_input(open_records(path), InputConfig(crop=50, **options), training=training)

    assert said(parts[0], resize=4096, resize_mode="short") == said(parts[0], augment="resnet") == []
    assert said(small, resize=60) == said(short, resize=80) == said(short, resize=80, resize_mode="short") == []
    (warning,) = said(small, resize=61)
    assert warning.startswith(f"{small} was built with --resize 100x60: its images are enlarged to 61 pixels")
    (warning,) = said(short, resize=70, sizes=("1:50", "9:60"))  # 84 pixels, of which 60 are cut, as of 70 are 50
    assert warning.endswith("enlarged to 84 pixels; build it with at least 84, or take a smaller --input.sizes")
    assert said(short, resize=70, sizes=("1:50", "9:60"), training=False) == []
    (warning,) = said(small, augment="inception")
    assert "the area crops of --input.augment inception are distorted by as much" in warning
    assert len(said(small, augment="resnet", training=False)) == 1  # validation is not augmented, and here enlarged
    three = said(joined(small, short), resize=82)
    assert len(three) == 3
    assert "joins LMDBs built with different --resize: 100x60 and short:80" in three[2]


def test_keeping_the_aspect_of_records_that_have_lost_it_is_refused(images, tmp_path):
    warped = build(images, tmp_path / "warped", "--resize", "64x64")
    with pytest.raises(DataError, match="was built with --resize 64x64, so that the aspect of its images is lost, which"):
        check_input(open_records(warped), InputConfig(resize=64, crop=60, resize_mode="short"), training=False)
