import hashlib
import json
import os

import lmdb
import numpy as np
import pytest

from fastirv2.building import writer as writer_module
from fastirv2.building.images import Result
from fastirv2.building.writer import RecordWriter, key_digits, read_journal, write_dataset
from fastirv2.data.datum import data_offset, encode
from fastirv2.errors import DataError

SETTINGS = {"resize": "none", "quality": 95, "seed": 0, "part": None}


def result(number, size=500):
    data = bytes([number % 256]) * size
    value = encode(data, number % 3, 20, 30)
    return Result(value, data_offset(value), size, 30, 20, "")


REJECTED = Result(None, 0, 0, 0, 0, "broken")


def stored(folder):
    with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return [(bytes(key), bytes(value)) for key, value in transaction.cursor()]


def test_records_are_stored_under_ascending_keys(tmp_path):
    writer = RecordWriter(tmp_path, 8)
    for number in range(20):
        writer.add("name", number % 3, result(number))
    writer.commit()
    writer.close()
    assert stored(tmp_path) == [(b"%08d" % number, result(number).value) for number in range(20)]


def test_the_map_grows_when_it_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "COMMIT_RECORDS", 50)
    writer = RecordWriter(tmp_path, 8, map_bytes=1 << 16)
    for number in range(300):
        writer.add("name", 0, result(number, 9000))
    writer.commit()
    writer.close()
    assert [value for _, value in stored(tmp_path)] == [result(number, 9000).value for number in range(300)]
    size = (tmp_path / "data.mdb").stat()
    assert size.st_blocks * 512 >= size.st_size * 0.9, "the file is sparse"


def test_a_writer_goes_on_after_what_is_committed(tmp_path):
    first = RecordWriter(tmp_path, 8)
    for number in range(5):
        first.add("good", 0, result(number))
    first.add("bad", 0, REJECTED)
    first.add("good", 0, result(5))
    first.commit()
    first.add("lost", 0, result(6))
    first.add("lost", 0, REJECTED)
    first.close()

    second = RecordWriter(tmp_path, 8)
    assert (second.done, second.stored, second.rejected, second.committed) == (7, 6, 1, 7)
    second.add("good", 0, result(6))
    second.commit()
    second.close()
    assert len(stored(tmp_path)) == 7
    assert read_journal(tmp_path)["stored"].tolist() == [1] * 5 + [0, 1, 1]
    assert [json.loads(line)["path"] for line in (tmp_path / "rejected.jsonl").open()] == ["bad"]


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_journal_ahead_of_the_records_is_cut_back(tmp_path, monkeypatch, cut):
    """As after a kill between the journal's write and LMDB's commit, with the last row perhaps written in part."""
    writer = RecordWriter(tmp_path, 8)
    writer.add("good", 0, result(0))
    writer.commit()
    monkeypatch.setattr(writer, "_put_items", lambda: True)
    writer.add("bad", 0, REJECTED)
    writer.add("good", 0, result(1))
    writer.commit()
    writer.close()
    journal = tmp_path / "journal"
    os.truncate(journal, journal.stat().st_size - cut)

    again = RecordWriter(tmp_path, 8)
    assert (again.done, again.stored, again.rejected) == (1, 1, 0)
    again.close()
    assert (tmp_path / "rejected.jsonl").read_bytes() == b""


def test_records_without_a_journal_are_refused(tmp_path):
    writer = RecordWriter(tmp_path, 8)
    writer.add("good", 0, result(0))
    writer.commit()
    writer.close()
    os.truncate(tmp_path / "journal", 0)
    with pytest.raises(DataError, match="remove it to begin anew"):
        RecordWriter(tmp_path, 8)


def test_index_and_dataset_say_where_and_what_the_images_are(tmp_path):
    writer = RecordWriter(tmp_path, 8)
    sizes = [1, 100, 3000, 5000, 200_000, 20]
    for number, size in enumerate(sizes):
        writer.add("name", number % 3, result(number, size))
    writer.commit()
    writer.close()
    dataset = write_dataset(tmp_path, ["a", "b", "c", "d"], SETTINGS, ["name"] * 6)
    index = np.load(tmp_path / "index.npy")
    data = (tmp_path / "data.mdb").read_bytes()
    for number, (offset, length, label, width, height) in enumerate(index.tolist()):
        assert data[offset : offset + length] == bytes([number]) * sizes[number]
        assert (label, width, height) == (number % 3, 30, 20)
    hashes = [hashlib.sha256(key + value).digest() for key, value in stored(tmp_path)]
    assert dataset["digest"] == hashlib.sha256(b"".join(hashes)).hexdigest()
    assert (dataset["count"], dataset["data_bytes"], dataset["images_per_class"]) == (6, sum(sizes), [2, 2, 2, 0])
    assert dataset["pages"] * 4096 == len(data)
    assert json.loads((tmp_path / "dataset.json").read_text()) == dataset


@pytest.mark.parametrize(("count", "digits"), [(1, 8), (10**8, 8), (10**8 + 1, 9), (10**9, 9)])
def test_keys_have_eight_digits_or_as_many_as_the_last_one_needs(count, digits):
    assert key_digits(count) == digits


def test_what_a_disk_takes_in_part_is_written_whole(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(writer_module.os, "write", lambda file, data: write(file, data[:3]))
    with (tmp_path / "file").open("wb") as file:
        writer_module._write_all(file.fileno(), bytearray(b"12345678"))
    assert (tmp_path / "file").read_bytes() == b"12345678"
