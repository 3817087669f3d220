"""A tar that is cut off or damaged is an error that says where, and never a smaller data set."""

import os
import random
import struct
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastirv2.building.sources import open_source
from fastirv2.errors import DataError, StoppedError

from .tar_samples import by_python, class_folders, class_tars, files, sequence, tar_bytes, tar_of

IMAGES = {"ant": ["1.jpg", "2.jpg"], "bee": ["1.jpg", f"{'long' * 40}.jpg"], "owl": ["ü.jpg"]}


@pytest.fixture(scope="module", params=["class tars", "class folders, gnu", "class folders, pax"])
def packed(request, tmp_path_factory):
    """A tar's path, its bytes, and what it gives when it is whole."""
    folder = tmp_path_factory.mktemp("packed")
    unpacked = class_folders(folder / "train", IMAGES)
    if request.param == "class tars":
        path = by_python(folder / "t.tar", class_tars(folder / "tars", unpacked))
    else:
        tar_format = tarfile.GNU_FORMAT if request.param.endswith("gnu") else tarfile.PAX_FORMAT
        path = by_python(folder / "t.tar", unpacked, tar_format=tar_format)
    return path, path.read_bytes(), sequence(open_source(str(path)))


def outcome(path, data):
    """What a source gives of these bytes, or its error."""
    path.write_bytes(data)
    try:
        return sequence(open_source(str(path)))
    except DataError as error:
        return str(error)


def test_a_tar_cut_anywhere_is_refused_or_whole(packed, tmp_path):
    _, data, whole = packed
    wholes = 0
    for block in range(0, len(data), tarfile.BLOCKSIZE):
        for length in {block - 1, block, block + 1, block + 100} & set(range(len(data))):
            found = outcome(tmp_path / "t.tar", data[:length])
            assert found == whole or str(tmp_path / "t.tar") in found, length
            wholes += found == whole
    assert wholes > 0


@pytest.mark.parametrize("damage", [b"\0" * 512, b"\xff" * 512, None], ids=["zeros", "ones", "a flipped bit"])
def test_a_tar_damaged_in_any_block_is_refused_or_has_all_its_names(packed, tmp_path, damage):
    """What is wrong with an image's bytes is found when it is decoded; tar has no checksum for long names."""
    _, data, whole = packed
    names = [record[:2] for record in whole[0]]
    refused = 0
    for start in range(0, len(data), tarfile.BLOCKSIZE):
        if any(part in data[start : start + 512] for part in (b"bee/long", b"longlonglonglong.jpg", b" path=")):
            continue
        block = damage or bytes([data[start] ^ 1]) + data[start + 1 : start + 512]
        found = outcome(tmp_path / "t.tar", data[:start] + block + data[start + 512 :])
        if isinstance(found, str):
            refused += 1
            assert str(tmp_path / "t.tar") in found
        else:
            assert [record[:2] for record in found[0]] == names, start
    assert refused >= len(names) + len(IMAGES)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 6))
def test_no_garbage_in_a_header_is_more_than_a_sentence(tmp_path_factory, seed, count):
    """Also with a right checksum, which damage has one time in thousands."""
    chance = random.Random(seed)
    data = bytearray(tar_bytes(("ant/1.jpg", b"1" * 700), ("ant/2.jpg", b"2" * 100)))
    start = chance.choice([0, 1536])
    for _ in range(count):
        data[start + chance.randrange(512)] = chance.choice([0, 0x80, 0xFF, 0x2F, 0x37, *b"SLKgxXM57.", chance.randrange(256)])
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    outcome(tmp_path_factory.getbasetemp() / "garbage.tar", bytes(data))


def test_the_error_names_tar_and_byte(tmp_path):
    inner = tar_bytes(("1.jpg", b"1" * 100), ("2.jpg", b"2" * 100))
    path = tar_of(tmp_path / "t.tar", ("ant.tar", inner), ("owl.tar", inner))
    data = bytearray(path.read_bytes())
    owl = 512 + len(inner) + 512
    data[owl + 1024] ^= 1
    assert f"{path}, class tar owl.tar is damaged: what is at byte {owl + 1024:,} is no header" in outcome(path, bytes(data))
    assert f"{path} is cut off in its member owl.tar: it ends at byte 12,000" in outcome(path, bytes(data[:12000]))
    short = path.read_bytes()[: 512 + len(inner)]
    assert f"{path} is cut off: it ends at byte {512 + len(inner):,}" in outcome(path, short)


def test_a_signal_while_a_tar_is_listed_is_no_damage(tmp_path, monkeypatch):
    def stopped(_):
        raise StoppedError("stopped by SIGTERM")

    monkeypatch.setattr(tarfile.TarInfo, "fromtarfile", stopped)
    with pytest.raises(StoppedError):
        outcome(tmp_path / "t.tar", tar_bytes(("ant/1.jpg", b"1"), ("owl/1.jpg", b"1")))


def test_a_tar_whose_first_header_is_damaged_is_still_called_a_tar(tmp_path):
    data = bytearray(tar_bytes(("ant/1.jpg", b"1"), ("owl/1.jpg", b"1")))
    data[0] ^= 1
    assert "t.tar is damaged: what is at byte 0 is no header of a tar" in outcome(tmp_path / "t.tar", data)


def test_a_class_tar_cut_off_on_the_disk_is_named(tmp_path):
    for name in ("ant", "owl"):
        tar_of(tmp_path / f"{name}.tar", ("1.jpg", b"1"), ("2.jpg", b"2"))
    os.truncate(tmp_path / "owl.tar", 1024)
    with pytest.raises(DataError, match=r"owl.tar is cut off: it ends at byte 1,024; copy or download it again"):
        open_source(str(tmp_path))


def test_an_unfinished_download_that_is_zeros_to_its_end_is_refused(tmp_path):
    path = tar_of(tmp_path / "t.tar", ("ant/1.jpg", b"1"), ("owl/1.jpg", b"1"))
    os.truncate(path, 1024)
    os.truncate(path, 5_000_000)
    with pytest.raises(DataError, match=r"t.tar has its end mark at byte 1,024, but goes on to byte 5,000,000: something is"):
        open_source(str(path))


def test_two_tars_in_one_file_are_refused(tmp_path):
    (tmp_path / "t.tar").write_bytes(tar_bytes(("ant/1.jpg", b"1")) + tar_bytes(("owl/1.jpg", b"1")))
    with pytest.raises(DataError, match=r"t.tar has its end mark at byte 1,024, but goes on to byte 20,480: .*two tars in one"):
        open_source(str(tmp_path / "t.tar"))


@pytest.mark.parametrize("zeros", [512, 1024, 1_000_000])
def test_any_usual_number_of_zeros_ends_a_tar(tmp_path, zeros):
    path = tar_of(tmp_path / "t.tar", ("ant/1.jpg", b"1"), ("owl/1.jpg", b"1"))
    path.write_bytes(path.read_bytes()[:2048] + bytes(zeros))
    assert len(open_source(str(path))) == 2


def sparse_header(name):
    info = tarfile.TarInfo(name)
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000\x0000000000000\0"
    header[483:495] = b"00000010000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def test_members_that_are_no_run_of_bytes_are_refused(tmp_path):
    end = bytes(10240)
    assert "holds ant/1.jpg with holes left out; unpack it" in outcome(tmp_path / "t.tar", sparse_header("ant/1.jpg") + end)
    volume = tarfile.TarInfo("ant/1.jpg")
    volume.type = b"M"
    found = outcome(tmp_path / "t.tar", volume.tobuf(tarfile.GNU_FORMAT) + end)
    assert "holds ant/1.jpg in several volumes; unpack it" in found


def test_a_header_of_a_wrong_size_is_refused_and_not_read_into_memory(tmp_path):
    name = tarfile.TarInfo("long")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    found = outcome(tmp_path / "t.tar", name.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    assert "t.tar is damaged: what is at byte 0 is no header of a tar" in found
    negative = bytearray(tarfile.TarInfo("ant/1.jpg").tobuf(tarfile.GNU_FORMAT))
    negative[124:136] = b"\xff\xff\xff\xff" + struct.pack(">q", -512)
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative)
    assert "t.tar is damaged: what is at byte 0" in outcome(tmp_path / "t.tar", bytes(negative) + bytes(10240))


def test_a_tar_that_vanishes_is_no_traceback(tmp_path):
    folder = files(tmp_path / "train", ["ant/1.jpg", "owl/1.jpg"])
    path = by_python(tmp_path / "t.tar", folder)
    source = open_source(str(path))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        source.place(0).read()
    with pytest.raises(DataError, match="does not exist"):
        open_source(str(path))
