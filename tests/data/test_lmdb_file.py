import os
import shutil
import struct

import lmdb
import numpy as np
import pytest

from fastirv2.data import lmdb_file
from fastirv2.data.lmdb_file import BIG_DATA, BRANCH, OVERFLOW, check_size, read_meta, value_extents
from fastirv2.errors import DataError


def lmdb_of(folder, items, transactions=1, **options):
    with lmdb.open(str(folder), map_size=1 << 28, **options) as environment:
        for number in range(transactions):
            with environment.begin(write=True) as transaction:
                for key, value in items[number::transactions]:
                    transaction.put(key, value)
    return folder


def records(count, largest=9000):
    random = np.random.default_rng(3)
    sizes = random.integers(0, largest, count).tolist()
    return [(b"%08d" % number, random.bytes(size)) for number, size in enumerate(sizes)]


def stored(folder):
    """The (key, value) pairs at the extents that the walk found."""
    data = (folder / "data.mdb").read_bytes()
    return [
        (data[key : key + key_length], data[offset : offset + length])
        for offset, length, key, key_length in value_extents(folder).tolist()
    ]


def edit_heads(folder, at, data):
    """Write into both pages at the file's beginning, which say what is in it."""
    with (folder / "data.mdb").open("r+b") as file:
        for page in (0, 4096):
            file.seek(page + at)
            file.write(data)
    return folder


@pytest.mark.parametrize("count", [0, 1, 2, 40, 3000])
@pytest.mark.parametrize("largest", [60, 9000])
def test_extents_are_the_records_in_key_order(tmp_path, count, largest):
    items = records(count, largest)
    lmdb_of(tmp_path / "db", items)
    assert stored(tmp_path / "db") == items


def test_three_levels_of_pages_are_walked(tmp_path):
    items = [(b"%0100d" % number, b"v%d" % number) for number in range(5000)]
    lmdb_of(tmp_path / "db", items)
    assert read_meta(tmp_path / "db").depth >= 3
    assert stored(tmp_path / "db") == items


def test_trees_of_more_pages_than_are_read_at_once_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_file, "_PAGES_A_BLOCK", 3)
    items = records(3000, 60)
    assert stored(lmdb_of(tmp_path / "db", items)) == items


@pytest.mark.parametrize("size", [65_535, 65_536, 200_000])
def test_values_of_more_than_64_kilobytes_are_whole(tmp_path, size):
    items = [(b"%08d" % number, bytes([number]) * size) for number in range(3)]
    assert stored(lmdb_of(tmp_path / "db", items)) == items


def move_pages(data, page_size, hole):
    """Number all pages but the first two of an LMDB's bytes by `hole` higher, wherever a page is named."""

    def move(at):
        struct.pack_into("<Q", data, at, struct.unpack_from("<Q", data, at)[0] + hole)

    for head in (0, page_size):
        if struct.unpack_from("<Q", data, head + 128)[0] < len(data):  # the root: there is none in the first, empty tree
            move(head + 128)
        move(head + 136)
    page = 2 * page_size
    while page < len(data):
        move(page)
        kind, lower, _ = struct.unpack_from("<3H", data, page + 10)
        if kind == OVERFLOW:
            page += page_size * struct.unpack_from("<I", data, page + 12)[0]
            continue
        for (node,) in struct.iter_unpack("<H", data[page + 16 : page + lower]):
            low, high, top, key = struct.unpack_from("<4H", data, page + node)
            if kind == BRANCH:
                child = (low | high << 16 | top << 32) + hole
                struct.pack_into("<3H", data, page + node, child & 0xFFFF, child >> 16 & 0xFFFF, child >> 32)
            elif top & BIG_DATA:
                move(page + node + 8 + key)
        page += page_size


def test_pages_beyond_the_first_four_gigabytes_are_found(tmp_path):
    """As nearly all of ImageNet's are; here they lie behind a hole in the file."""
    folder, hole = lmdb_of(tmp_path / "db", records(600)), (1 << 20) + 3
    page_size, data = read_meta(folder).page_size, bytearray((folder / "data.mdb").read_bytes())
    move_pages(data, page_size, hole)
    with (tmp_path / "moved.mdb").open("wb") as file:
        file.write(data[: 2 * page_size])
        file.seek((2 + hole) * page_size)
        file.write(data[2 * page_size :])
    before, after = value_extents(folder), value_extents(tmp_path / "moved.mdb")
    for field in ("offset", "key_offset"):
        assert np.array_equal(after[field], before[field] + np.uint64(hole * page_size))
    assert np.array_equal(after[["length", "key_length"]], before[["length", "key_length"]])


def test_records_that_were_written_over_and_deleted_are_not_found(tmp_path):
    folder = lmdb_of(tmp_path / "db", records(600), transactions=4)
    with lmdb.open(str(folder)) as environment, environment.begin(write=True) as transaction:
        for number in range(0, 600, 3):
            transaction.delete(b"%08d" % number)
        transaction.put(b"00000001", b"new")
        left = [(bytes(key), bytes(value)) for key, value in transaction.cursor()]
    assert stored(folder) == left


def test_keys_of_other_writers_are_found(tmp_path):
    items = sorted((f"{number}_n0144/{number}.JPEG".encode(), b"x" * number) for number in range(500))
    assert stored(lmdb_of(tmp_path / "db", items)) == items


@pytest.mark.parametrize("transactions", [1, 2, 3, 4])
def test_meta_says_what_lmdb_says_of_its_newest_tree(tmp_path, transactions):
    folder = lmdb_of(tmp_path / "db", records(500), transactions=transactions)
    with lmdb.open(str(folder), readonly=True) as environment:
        stat, info = environment.stat(), environment.info()
    meta = read_meta(folder)
    assert (meta.entries, meta.page_size, meta.depth) == (stat["entries"], stat["psize"], stat["depth"])
    assert (meta.pages, meta.transaction) == (info["last_pgno"] + 1, info["last_txnid"])


def test_the_file_itself_can_be_given(tmp_path):
    file = tmp_path / "single.mdb"
    lmdb_of(file, records(10), subdir=False)
    assert check_size(file).entries == len(value_extents(file)) == 10


def test_a_whole_file_passes_the_size_check_and_a_cut_one_does_not(tmp_path):
    folder = lmdb_of(tmp_path / "db", records(300))
    meta = check_size(folder)
    file = folder / "data.mdb"
    assert file.stat().st_size == meta.pages * meta.page_size
    os.truncate(file, file.stat().st_size - 1)
    for refuse in (check_size, value_extents):
        with pytest.raises(DataError, match=r"bytes but its [\d,]+ pages need [\d,]+: the copy is incomplete"):
            refuse(folder)


@pytest.mark.parametrize("size", [0, 10, 100, 4096, 4200])
def test_a_file_cut_within_its_first_pages_is_refused(tmp_path, size):
    folder = lmdb_of(tmp_path / "db", records(30))
    os.truncate(folder / "data.mdb", size)
    with pytest.raises(DataError):
        check_size(folder)


def test_what_is_no_lmdb_is_refused(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"hello " * 3000)
    with pytest.raises(DataError, match="is no LMDB"):
        check_size(tmp_path)
    with pytest.raises(DataError, match="cannot be read: No such file"):
        check_size(tmp_path / "absent")


def test_another_format_version_is_refused(tmp_path):
    folder = lmdb_of(tmp_path / "db", records(3))
    with (folder / "data.mdb").open("r+b") as file:
        file.seek(20)
        file.write(struct.pack("<I", 2))
    with pytest.raises(DataError, match="format version 2"):
        read_meta(folder)


@pytest.mark.parametrize("size", [0, 128, 4095, 1 << 20])
def test_a_page_size_of_nonsense_is_a_sentence(tmp_path, size):
    folder = edit_heads(lmdb_of(tmp_path / "db", records(30)), 40, struct.pack("<I", size))
    with pytest.raises(DataError, match=f"is damaged: its header gives a page size of {size:,} bytes"):
        value_extents(folder)


def test_a_header_that_says_otherwise_than_the_tree_is_found(tmp_path):
    folder = lmdb_of(tmp_path / "db", records(300))
    pages = read_meta(folder).pages
    with pytest.raises(DataError, match="its tree holds 300 records, its header says 301"):
        value_extents(edit_heads(folder, 120, struct.pack("<Q", 301)))
    with pytest.raises(DataError, match=f"its tree points at page {pages} of {pages}"):
        value_extents(edit_heads(folder, 128, struct.pack("<Q", pages)))


def test_named_databases_and_duplicates_are_refused(tmp_path):
    with lmdb.open(str(tmp_path / "db"), max_dbs=2) as environment:
        named = environment.open_db(b"named", dupsort=True)
        with environment.begin(write=True, db=named) as transaction:
            transaction.put(b"key", b"one")
            transaction.put(b"key", b"two")
    with pytest.raises(DataError, match="named databases or sorted duplicates"):
        value_extents(tmp_path / "db")


def test_any_flipped_byte_ends_in_an_answer_or_a_sentence(tmp_path):
    folder = lmdb_of(tmp_path / "db", records(120, 600))
    whole = (folder / "data.mdb").read_bytes()
    random = np.random.default_rng(1)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for position in [*range(4096, 4096 + 160), *random.integers(8192, len(whole), 600).tolist()]:
        broken = bytearray(whole)
        broken[position] ^= 1 << int(random.integers(8))
        (copy / "data.mdb").write_bytes(broken)
        try:
            extents = value_extents(copy)
        except DataError:
            continue
        assert (extents["offset"] + extents["length"] <= len(whole)).all()


def test_a_depth_of_nonsense_ends_in_a_sentence(tmp_path):
    folder = edit_heads(lmdb_of(tmp_path / "db", records(120, 600)), 94, struct.pack("<H", 60000))
    with pytest.raises(DataError, match="damaged"):
        value_extents(folder)
