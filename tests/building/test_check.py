import json
import os
import shutil

import lmdb
import numpy as np
import pytest

from fastirv2.building import check as checking
from fastirv2.building.check import Stored, Verifier, check
from fastirv2.building.sources import Place
from fastirv2.data.datum import Datum
from fastirv2.data.lmdb_file import value_extents
from fastirv2.errors import DataError

from .samples import built, class_folders, command, jpeg


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return built(class_folders(folder / "source", {"ant": 9, "owl": 7}, width=60, height=50), folder / "db")


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def edit_dataset(folder, **fields):
    dataset = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**dataset, **fields}))


def edit_bytes(file, position, data):
    with file.open("r+b") as stream:
        stream.seek(position)
        stream.write(data)


def flip(file, position):
    with file.open("rb") as stream:
        stream.seek(position)
        byte = stream.read(1)[0]
    edit_bytes(file, position, bytes([byte ^ 0x10]))


@pytest.mark.parametrize("decode", [False, True])
def test_a_finished_build_is_whole(finished, decode):
    line = check(finished, decode=decode)
    assert "is whole: 16 records, 2 classes" in line
    assert ("every image decodes" in line) == decode


def test_names_that_are_not_those_that_were_built_are_found(copy):
    names = (copy / "names.jsonl").read_text()
    expected = {f"ant/{number:03}.jpg" for number in range(9)} | {f"owl/{number:03}.jpg" for number in range(7)}
    assert set(map(json.loads, names.splitlines())) == expected
    (copy / "names.jsonl").write_text(names.replace("ant", "bee", 1))
    with pytest.raises(DataError, match=r"names.jsonl does not hold the names that were built"):
        check(copy)
    (copy / "names.jsonl").unlink()
    with pytest.raises(DataError, match=r"names.jsonl cannot be read"):
        check(copy)


def test_the_command_line_answers_with_a_line_and_an_exit_code(copy):
    good = command("--check", copy, "--decode")
    assert (good.returncode, good.stdout.count("\n"), good.stderr) == (0, 1, "")
    os.truncate(copy / "data.mdb", 20_000)
    bad = command("--check", copy)
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (65, "", 1)
    assert "the copy is incomplete" in bad.stderr


@pytest.mark.parametrize("size", [0, 3000, 4096, 9000, -4096, -1])
def test_a_cut_file_is_found(copy, size):
    file = copy / "data.mdb"
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    with pytest.raises(DataError):
        check(copy)


def test_a_flipped_bit_is_found_in_any_record(copy):
    whole = (copy / "data.mdb").read_bytes()
    random = np.random.default_rng(2)
    for offset, length, key, key_length in value_extents(copy).tolist():
        for position in [
            key + key_length - 1,
            offset,
            offset + length - 1,
            *random.integers(offset, offset + length, 4).tolist(),
        ]:
            flip(copy / "data.mdb", position)
            with pytest.raises(DataError):
                check(copy)
            edit_bytes(copy / "data.mdb", position, whole[position : position + 1])
    assert check(copy)


def test_a_flipped_bit_in_the_page_that_a_record_begins_on_is_found(tmp_path):
    folder = built(class_folders(tmp_path / "source", {"ant": 3}, width=200, height=150), tmp_path / "db")
    whole = (folder / "data.mdb").read_bytes()
    for offset in value_extents(folder)["offset"].tolist():
        for position in (offset - 16, offset - 16 + 10, offset - 16 + 12):
            flip(folder / "data.mdb", position)
            with pytest.raises(DataError, match="damaged at page"):
                check(folder)
            edit_bytes(folder / "data.mdb", position, whole[position : position + 1])
    assert check(folder)


def test_a_wrong_key_is_named(copy):
    key = value_extents(copy)["key_offset"][4]
    edit_bytes(copy / "data.mdb", int(key), b"0000000x")
    with pytest.raises(DataError, match="record 4: its key is b'0000000x', not 00000004"):
        check(copy)


def test_records_are_counted_over_the_ends_of_what_a_thread_takes(copy, monkeypatch):
    monkeypatch.setattr(checking, "_RECORDS_A_CHUNK", 5)
    assert check(copy)
    edit_bytes(copy / "data.mdb", int(value_extents(copy)["key_offset"][13]), b"0000000x")
    with pytest.raises(DataError, match="record 13: its key is b'0000000x', not 00000013"):
        check(copy)


def test_a_record_that_says_that_it_is_not_encoded_is_found(copy):
    offset, length, *_ = value_extents(copy)[5].tolist()
    assert (copy / "data.mdb").read_bytes()[offset + length - 2 : offset + length] == b"\x38\1"  # field 7, encoded
    edit_bytes(copy / "data.mdb", offset + length - 1, b"\0")
    with pytest.raises(DataError, match="record 5: it is no encoded RGB image"):
        check(copy)


def test_a_flipped_bit_in_the_tree_is_found(tmp_path):
    """In every byte of pages' headers and nodes that LMDB reads on its way to a record, inner pages included."""
    folder = built(class_folders(tmp_path / "source", {"ant": 30}, width=8, height=8, quality=20), tmp_path / "db")
    file = folder / "data.mdb"
    whole = file.read_bytes()
    pages = len(whole) // 4096
    kinds = {page: int.from_bytes(whole[page * 4096 + 10 : page * 4096 + 12], "little") for page in range(2, pages)}
    assert 1 in kinds.values(), "there is an inner page"
    root = lmdb_root(folder)
    positions = [root * 4096 + offset for offset in (0, 10, 12, 16, 18)]
    lower = int.from_bytes(whole[root * 4096 + 12 : root * 4096 + 14], "little")
    nodes = [int.from_bytes(whole[root * 4096 + at : root * 4096 + at + 2], "little") for at in range(16, lower, 2)]
    positions += [root * 4096 + node + byte for node in nodes[1:] for byte in (0, 6, 8, 14)]
    for position in positions:
        flip(file, position)
        with pytest.raises(DataError):
            check(folder)
        edit_bytes(file, position, whole[position : position + 1])
    assert check(folder)


def lmdb_root(folder):
    from fastirv2.data.lmdb_file import read_meta

    return read_meta(folder).root


def test_exchanged_records_are_found(copy):
    """Two images of one size and label change places on the disk: every count stays the same."""
    index = np.load(copy / "index.npy")
    data = (copy / "data.mdb").read_bytes()
    pairs = [
        (one, other)
        for one in index.tolist()
        for other in index.tolist()
        if one[0] < other[0] and one[2] == other[2] and abs(one[1] - other[1]) < 200
    ]
    one, other = pairs[0]
    length = min(one[1], other[1])
    edit_bytes(copy / "data.mdb", one[0], data[other[0] : other[0] + length])
    edit_bytes(copy / "data.mdb", other[0], data[one[0] : one[0] + length])
    with pytest.raises(DataError, match="the records are not those that were built"):
        check(copy)


@pytest.mark.parametrize("change", ["added", "removed", "other label"])
def test_a_record_changed_through_lmdb_is_found(copy, change):
    with lmdb.open(str(copy)) as environment, environment.begin(write=True) as transaction:
        value = transaction.get(b"00000003")
        if change == "added":
            transaction.put(b"00000016", value)
        elif change == "removed":
            transaction.delete(b"00000003")
        else:
            datum = Datum.FromString(value)
            datum.label = 1 - datum.label
            transaction.put(b"00000003", datum.SerializeToString())
    with pytest.raises(DataError):
        check(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 15}, r"dataset.json says 15 records but data.mdb holds 16"),
        ({"pages": 3}, "dataset.json says 3 pages"),
        ({"data_bytes": 1}, "dataset.json says 1 image bytes"),
        ({"classes": ["ant"]}, r"label 1 is not among the 1 classes"),
        ({"images_per_class": [8, 8]}, "images_per_class"),
        ({"digest": "0" * 64}, "the records are not those that were built"),
        ({"format_version": 2}, "format version"),
        ({"count": "16"}, "format version"),
    ],
)
def test_a_dataset_json_that_says_otherwise_is_found(copy, fields, message):
    edit_dataset(copy, **fields)
    with pytest.raises(DataError, match=message):
        check(copy)


@pytest.mark.parametrize(("name", "value"), [("resize", "48x48"), ("quality", 30), ("part", "1/2")])
def test_options_that_were_changed_are_found(copy, name, value):
    edit_dataset(copy, **{name: value})
    with pytest.raises(DataError, match=f"dataset.json: {name} is not what the LMDB was built with"):
        check(copy)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format_version": 1}'])
def test_a_dataset_json_of_nonsense_is_found(copy, content):
    (copy / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=r"dataset.json cannot be read"):
        check(copy)


@pytest.mark.parametrize("field", ["offset", "length", "label", "width", "height"])
def test_an_index_that_says_otherwise_is_found(copy, field):
    index = np.load(copy / "index.npy")
    index[field][11] += 1
    np.save(copy / "index.npy", index)
    with pytest.raises(DataError, match=r"record 11: index.npy and the record differ"):
        check(copy)


def test_a_missing_cut_or_foreign_index_is_found(copy):
    index = np.load(copy / "index.npy")
    for broken in (index[:-1], index["label"], index.reshape(2, 8)):
        np.save(copy / "index.npy", broken)
        with pytest.raises(DataError, match=r"index.npy"):
            check(copy)
    np.save(copy / "index.npy", index)
    for broken in (b"\x93NUMPY", (copy / "index.npy").read_bytes().replace(b"}", b"y", 1)):
        (copy / "index.npy").write_bytes(broken)
        with pytest.raises(DataError, match=r"index.npy cannot be read"):
            check(copy)
    (copy / "index.npy").unlink()
    with pytest.raises(DataError, match=r"index.npy cannot be read"):
        check(copy)


def test_decode_names_the_image_that_is_broken(copy):
    """A build that stored a broken image: all digests fit, only decoding tells."""
    offset, length, *_ = np.load(copy / "index.npy")[5].tolist()
    edit_bytes(copy / "data.mdb", offset + length - 2, b"\0\0")
    with pytest.raises(DataError) as caught:
        check(copy)
    edit_dataset(copy, digest=digest_of(copy))
    assert "--decode" in str(caught.value)
    assert check(copy)
    with pytest.raises(DataError, match=r"record 5 does not decode: Premature end of JPEG file"):
        check(copy, decode=True)


def test_an_image_of_another_size_than_the_index_says_is_found(tmp_path):
    (tmp_path / "image").write_bytes(jpeg())
    place = Place(str(tmp_path / "image"))
    assert Verifier()(Stored(place, 48, 32)) == ""
    assert Verifier()(Stored(place, 32, 48)) == "is 48 × 32 pixels, but the index says 32 × 48"


def digest_of(folder):
    import hashlib

    with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as transaction:
        hashes = [hashlib.sha256(key + value).digest() for key, value in transaction.cursor()]
    return hashlib.sha256(b"".join(hashes)).hexdigest()


def test_an_unfinished_build_is_called_so(copy, tmp_path):
    (copy / "dataset.json").unlink()
    with pytest.raises(DataError, match="unfinished"):
        check(copy)
    partial = copy.rename(tmp_path / "db.partial")
    for path in (partial, tmp_path / "db"):
        with pytest.raises(DataError, match="this build is unfinished"):
            check(path)


def test_what_is_no_lmdb_folder_is_called_so(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DataError, match="is no LMDB folder"):
            check(path)
