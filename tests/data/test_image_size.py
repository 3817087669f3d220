"""The size of an image from its header: as it is seen upright, for what the graph decodes, and kept from run to run."""

import errno
import io
import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastirv2.data import file_sizes
from fastirv2.data.file_sizes import read_sizes
from fastirv2.data.image_size import upright_size
from fastirv2.pipelines.images import decoding_error
from tests.building.samples import encoded, jpeg, pixels, png_header, turned, with_segment


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_a_size_is_that_of_the_image_upright(file_format, turn):
    data = encoded(pixels(), file_format, exif=turned(turn))
    assert upright_size(data) == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_every_format_that_the_graph_decodes_has_a_size(file_format):
    data = encoded(pixels(), file_format)
    assert not decoding_error(np.frombuffer(data, np.uint8))
    assert upright_size(data) == (48, 32)


def test_a_decompression_bomb_has_no_size():
    with pytest.raises(ValueError, match="no header of an image"):
        upright_size(png_header(20_000, 20_000))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The paths of any number of images by turns: one, one that is too wide, one whose header lies behind 64 kB of comments."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number, data in enumerate([jpeg(), png_header(70_000, 1), with_segment(jpeg(), bytes(65_533), 0xFE)]):
        (tmp_path / str(number)).write_bytes(data)
    return lambda number: str(tmp_path / str(number % 3))


SIZES = [[32, 48], [0, 0], [32, 48]]


def test_sizes_of_many_files_are_each_its_own(files, monkeypatch):
    monkeypatch.setattr(file_sizes, "_THREADS", 1)  # 64 files at once
    assert read_sizes(files, 130, "a" * 64).tolist() == (SIZES * 44)[:130]


def test_sizes_are_kept_by_digest(files):
    read_sizes(files, 2, "a" * 64)
    assert read_sizes(lambda number: files(number + 1), 2, "b" * 64).tolist() == SIZES[1:]


def test_a_damaged_file_of_sizes_is_made_again(files, tmp_path):
    assert read_sizes(files, 3, "a" * 64).tolist() == SIZES
    (kept,) = (tmp_path / "cache/fastirv2").iterdir()
    whole = kept.read_bytes()
    shorter = io.BytesIO()
    np.save(shorter, np.load(kept)[:2])
    for damaged in (b"", whole[:40], whole[:-3], shorter.getvalue()):
        kept.write_bytes(damaged)
        assert read_sizes(files, 3, "a" * 64).tolist() == SIZES
        assert kept.read_bytes() == whole


def test_sizes_for_which_the_disk_has_no_room_are_read_all_the_same(files, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(file_sizes, "write_file", full)
    assert read_sizes(files, 3, "a" * 64).tolist() == SIZES
