import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from fastirv2.building import transcode
from fastirv2.building.images import Resize, prepare
from fastirv2.building.jpeg import BadImageError, decode, read_frame, verify_jpeg
from fastirv2.building.memory_files import said_on_stderr

from .samples import by_libjpeg, encoded, in_three_scans, jpeg, pixels, turned, with_segment

SAMPLING = {
    "444": ((1, 1), (1, 1), (1, 1)),
    "422": ((1, 2), (1, 1), (1, 1)),
    "420": ((2, 2), (1, 1), (1, 1)),
    "440": ((2, 1), (1, 1), (1, 1)),
    "411": ((1, 4), (1, 1), (1, 1)),
}
CODINGS = {
    "progressive JPEG": ["+PROGRESSIVE_MODE"],
    "arithmetic-coded JPEG": ["+ARITH_CODE"],
    "arithmetic-coded progressive JPEG": ["+ARITH_CODE", "+PROGRESSIVE_MODE"],
}
COARSE = np.full((2, 8, 8), 300, np.uint16)


def kept(data):
    return prepare(data, Resize(), 95)


def assert_same_picture_as_baseline(data, repair):
    image = kept(data)
    assert image.repair == repair
    assert not read_frame(image.data).kind
    assert simplejpeg.decode_jpeg_header(image.data) == simplejpeg.decode_jpeg_header(data)
    assert np.array_equal(decode(image.data), decode(data))


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 17), (100, 75)])
@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("coding", CODINGS)
def test_another_coding_becomes_baseline_without_loss(coding, sampling, size):
    data = by_libjpeg(pixels(*size), *CODINGS[coding], sampling=SAMPLING[sampling])
    assert read_frame(data).kind == coding
    assert_same_picture_as_baseline(data, coding)


@pytest.mark.parametrize(
    ("data", "repair"),
    [
        pytest.param(encoded(pixels(), "JPEG", "L", progressive=True), "progressive JPEG", id="gray"),
        pytest.param(by_libjpeg(pixels()[..., :1], "+ARITH_CODE"), "arithmetic-coded JPEG", id="gray, arithmetic"),
        pytest.param(encoded(pixels(), "JPEG", progressive=True, keep_rgb=True), "progressive JPEG", id="RGB, Adobe's marker"),
        pytest.param(encoded(pixels(), "JPEG", progressive=True, restart_marker_blocks=1), "progressive JPEG", id="restarts"),
        pytest.param(encoded(pixels(), "JPEG", progressive=True) + b"more", "progressive JPEG", id="bytes behind the end"),
        pytest.param(jpeg().replace(b"\xff\xc0", b"\xff\xc1", 1), "extended JPEG", id="extended"),
        pytest.param(in_three_scans(pixels()), "JPEG of several scans", id="several scans"),
    ],
)
def test_every_kind_of_colour_and_structure_survives(data, repair):
    assert_same_picture_as_baseline(data, repair)


def test_an_image_coded_anew_has_huffman_tables_of_its_own():
    """With the standard ones it is a tenth larger, and a whole data set so many gigabytes."""
    array = pixels(400, 300)
    recoded = kept(encoded(array, "JPEG", progressive=True)).data
    assert len(recoded) <= len(encoded(array, "JPEG", optimize=True)) < len(encoded(array, "JPEG"))


def test_what_another_reader_could_turn_is_gone():
    data = with_segment(encoded(pixels(), "JPEG", progressive=True), turned(1))
    assert b"Exif" not in kept(data).data


def test_what_baseline_cannot_hold_is_encoded_with_loss():
    image = kept(by_libjpeg(pixels(), "+PROGRESSIVE_MODE", tables=COARSE))
    assert image.repair == "progressive JPEG, encoded with loss"
    assert not read_frame(image.data).kind


def test_a_huge_one_is_encoded_with_loss(monkeypatch):
    monkeypatch.setattr(transcode, "MAX_PIXELS", 1000)
    data = encoded(pixels(), "JPEG", "L", progressive=True)
    image = kept(data)
    assert image.repair == "progressive JPEG, encoded with loss"
    assert np.abs(decode(image.data).astype(int) - decode(data)).mean() < 2


def test_a_picture_that_changes_all_the_same_is_not_taken(monkeypatch):
    data = encoded(pixels(), "JPEG", progressive=True)
    monkeypatch.setattr(transcode, "_write", lambda source, target, *_: Path(target.path).write_bytes(jpeg(seed=1)))
    assert kept(data).repair == "progressive JPEG, encoded with loss"


def test_a_broken_one_is_rejected_and_not_rewritten():
    data = encoded(pixels(200, 150), "JPEG", progressive=True)
    with pytest.raises(BadImageError, match="premature end"):
        kept(data[: len(data) // 2] + b"\xff\xd9")


def test_nothing_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = encoded(pixels(500, 375), "JPEG", progressive=True)
    kept(data)
    files, memory = os.listdir("/proc/self/fd"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(60):
        kept(data)
    assert len(os.listdir("/proc/self/fd")) == len(files)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 20_000  # kB: a leak of one image's pixels is 34,000
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sampling", [((4, 1), (1, 1), (1, 1)), ((2, 2), (1, 2), (1, 1)), ((2, 4), (1, 1), (1, 1))])
def test_a_subsampling_that_turbojpeg_does_not_know_becomes_another(sampling):
    data = by_libjpeg(pixels(192, 128), sampling=sampling)
    image = kept(data)
    assert image[1:] == (192, 128, "unusual chroma subsampling")
    verify_jpeg(image.data)
    for damaged, reason in (
        (data[:-2], "Premature end|truncated"),
        (data[: len(data) // 2], "truncated"),
        (data[: len(data) // 2] + b"\xff\xd9", "premature end of data segment"),
        (data[:-2] + b"damage" * 3 + data[-2:], "extraneous bytes before marker 0xd9"),
    ):
        with pytest.raises(BadImageError, match=reason):
            kept(damaged)


def test_what_is_printed_meanwhile_is_taken_and_then_no_more(capfd):
    os.write(2, b"before ")
    with said_on_stderr() as said:
        os.write(2, b"meanwhile")
        assert said.read() == b"meanwhile"
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"


def test_a_closed_stderr_does_not_matter(tmp_path):
    (tmp_path / "image").write_bytes(encoded(pixels(), "JPEG", progressive=True))
    code = (
        "import os, sys; os.close(2); from fastirv2.building.images import Resize, prepare; "
        "print(prepare(open(sys.argv[1], 'rb').read(), Resize(), 95).repair)"
    )
    answer = subprocess.run([sys.executable, "-c", code, tmp_path / "image"], stdout=subprocess.PIPE, text=True, check=True)
    assert answer.stdout == "progressive JPEG\n"
