"""Records of every form, and what is said when one cannot be used."""

import json
import shutil

import numpy as np
import pytest

from fastirv2.data.dataset import check_classes
from fastirv2.data.lmdb_records import LmdbRecords
from fastirv2.data.records import FileRecords, open_records
from fastirv2.errors import DataError
from tests.building.tar_samples import by_python
from tests.conftest import build


def contents(records):
    return sorted((bytes(data), label) for data, label in (records[i] for i in range(len(records))))


def test_all_forms_hold_the_same_images_and_labels(images, lmdb_folder, file_list):
    forms = [open_records(path) for path in (images, lmdb_folder, file_list)]
    assert [type(form) for form in forms] == [FileRecords, LmdbRecords, FileRecords]
    assert [len(form) for form in forms] == [23, 23, 23]
    assert contents(forms[0]) == contents(forms[1]) == contents(forms[2])
    assert forms[0].classes == forms[1].classes == ["cat", "dog"]
    assert forms[0].labels.tolist() == [0] * 13 + [1] * 10
    assert {form.data_bytes for form in forms} == {sum(path.stat().st_size for path in images.rglob("*.jpg"))}


def test_what_is_said_of_files_is_a_warning_of_their_records(images, tmp_path):
    folder = shutil.copytree(images, tmp_path / "images")
    assert open_records(folder).warnings == ()
    shutil.copy(folder / "cat/00.jpg", folder / "loose.jpg")
    assert open_records(folder).warnings == (f"left out what lies beside the classes of {folder}: 1 images, as loose.jpg",)


def test_an_lmdb_record_is_a_view_of_the_map_and_no_copy(lmdb_folder):
    records = open_records(lmdb_folder)
    view, _ = records[3]
    assert isinstance(view, memoryview)
    assert view.obj is records._map
    fed = records.feed(np.array([3, 4]))
    assert bytes(fed[0]) == bytes(view)
    assert not fed[0].flags.owndata
    assert np.shares_memory(fed[0], np.frombuffer(records._map, np.uint8))


def test_files_are_fed_as_paths(images):
    records = open_records(images)
    assert bytes(records.feed(np.array([0]))[0]).decode() == f"{images}/cat/00.jpg"
    assert records.where(0) == f"{images}/cat/00.jpg"


def test_the_digest_is_that_of_the_data_and_not_of_its_place(images, lmdb_folder, tmp_path):
    for path in (images, lmdb_folder):
        copy = tmp_path / path.name
        shutil.copytree(path, copy)
        assert open_records(copy).digest == open_records(path).digest
    (tmp_path / "images/cat/00.jpg").write_bytes(b"other")
    assert open_records(tmp_path / "images").digest != open_records(images).digest


@pytest.fixture
def copy(lmdb_folder, tmp_path):
    return shutil.copytree(lmdb_folder, tmp_path / "copy")


def refusal(path):
    with pytest.raises(DataError) as error:
        open_records(path)
    assert error.value.exit_code == 65
    return str(error.value)


def test_a_path_with_nothing(tmp_path):
    assert refusal(tmp_path / "none") == f"{tmp_path}/none does not exist"


def test_an_empty_folder(tmp_path):
    assert f"{tmp_path} holds no images" in refusal(tmp_path)


def test_a_truncated_lmdb(copy):
    size = (copy / "data.mdb").stat().st_size
    with (copy / "data.mdb").open("r+b") as file:
        file.truncate(size // 2)
    assert str(copy / "data.mdb") in refusal(copy)


def test_an_unfinished_build(copy):
    partial = copy.rename(copy.with_name("out.partial"))
    (partial / "dataset.json").unlink()
    assert "unfinished build" in refusal(partial)
    assert f"{partial} is an unfinished build" in refusal(copy.with_name("out"))


def test_a_build_that_was_killed_is_no_lmdb_of_another_program(copy):
    """Until its end it holds some of the records, and a journal in place of an index."""
    (copy / "dataset.json").unlink()
    (copy / "index.npy").rename(copy / "journal")
    partial = copy.rename(copy.with_name("out.partial"))
    assert refusal(partial).startswith(f"{partial} is an unfinished build; give its fastirv2-build-lmdb command again")


def test_a_slash_at_the_end_is_no_part_of_a_name(lmdb_folder, tmp_path):
    assert open_records(f"{lmdb_folder}/").path == str(lmdb_folder)
    (tmp_path / "out.partial").mkdir()
    assert f"{tmp_path}/out does not exist; {tmp_path}/out.partial is an unfinished build" in refusal(f"{tmp_path}/out/")


def test_a_tar_of_images(images, tmp_path):
    tar = by_python(tmp_path / "t.tar", images)
    assert refusal(tar).startswith(f"{tar}: images in tars are not read in training; build an LMDB of them")


def test_an_lmdb_of_ours_without_its_description(copy):
    (copy / "dataset.json").unlink()
    assert refusal(copy).startswith(f"{copy} has no dataset.json: the copy or the build is incomplete")


def test_another_format(copy):
    about = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**about, "format_version": 2}))
    assert "is of format 2, this program reads format 1" in refusal(copy)


def test_a_dataset_json_that_makes_no_sense(copy):
    (copy / "dataset.json").write_text("{")
    assert "dataset.json cannot be understood" in refusal(copy)


def test_an_index_of_another_copy(copy):
    np.save(copy / "index.npy", np.load(copy / "index.npy")[:-1])
    assert "index.npy holds 22 records but dataset.json says 23" in refusal(copy)


def test_an_index_that_points_past_the_end(copy):
    index = np.load(copy / "index.npy")
    index["offset"][5] += 2**30
    np.save(copy / "index.npy", index)
    assert "points past the end of data.mdb" in refusal(copy)


def test_labels_beyond_the_classes(copy):
    about = json.loads((copy / "dataset.json").read_text())
    (copy / "dataset.json").write_text(json.dumps({**about, "classes": ["cat"]}))
    assert "holds the label 1, but names 1 classes" in refusal(copy)


def test_every_form_that_was_made_by_us_says_what_an_image_was_called(images, lmdb_folder, file_list, tmp_path):
    files = {path.read_bytes(): str(path.relative_to(images)) for path in images.rglob("*.jpg")}
    parts = ",".join(str(build(images, tmp_path / f"part{part}", "--part", f"{part}/2")) for part in (1, 2))
    for path in (images, lmdb_folder, parts):
        records = open_records(path)
        assert list(records.names) == [files[bytes(records[number][0])] for number in range(23)]
    assert [name.removeprefix("images/") for name in open_records(file_list).names] == list(open_records(images).names)


def test_an_lmdb_of_an_older_version_says_no_names_and_too_few_are_refused(copy):
    text = (copy / "names.jsonl").read_text()
    (copy / "names.jsonl").write_text(text.partition("\n")[2])
    with pytest.raises(DataError, match=r"names\.jsonl holds 22 names for 23 records"):
        _ = open_records(copy).names
    (copy / "names.jsonl").unlink()
    assert open_records(copy).names is None


def test_different_classes_are_refused_with_the_first_difference(images, tmp_path):
    other = shutil.copytree(images, tmp_path / "images")
    (other / "dog").rename(other / "duck")
    with pytest.raises(DataError, match="label 1 is 'dog' and 'duck'"):
        check_classes([open_records(images), open_records(other)])
    shutil.rmtree(other / "duck")
    with pytest.raises(DataError, match="2 and 1"):
        check_classes([open_records(images), open_records(other)])
