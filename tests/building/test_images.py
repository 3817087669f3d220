import struct

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from fastirv2.building import images, resize
from fastirv2.building.images import BadImageError, Preparer, Resize, Task, prepare, verify_jpeg
from fastirv2.building.resize import Stacks, resized
from fastirv2.building.sources import Place
from fastirv2.data.datum import Datum

from .samples import encoded, jpeg, opened, pixels, png_header


def kept(data):
    return prepare(data, Resize(), 95)


def with_orientation(array, orientation, file_format="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(array, file_format, exif=exif.tobytes())


def assert_baseline_rgb(data, width, height):
    assert simplejpeg.decode_jpeg_header(data) == (height, width, "YCbCr", "420")
    assert b"\xff\xc0" in data
    assert b"\xff\xc2" not in data


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(jpeg(), id="baseline"),
        pytest.param(encoded(pixels(), "JPEG", "L"), id="gray"),
        pytest.param(with_orientation(pixels(), 1), id="upright EXIF"),
        pytest.param(with_orientation(pixels(), 77), id="an orientation that does not exist"),
        pytest.param(jpeg() + b"appended", id="bytes behind the end"),
    ],
)
def test_an_upright_jpeg_keeps_its_bytes(data):
    assert kept(data) == (data, 48, 32, "")


@pytest.mark.parametrize("between", [b"\xff\xff\xff", b"\xff\x01"])
def test_bytes_that_fill_up_before_a_marker_do_no_harm(between):
    data = jpeg()[:2] + between + jpeg()[2:]
    assert kept(data) == (data, 48, 32, "")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_rejected_wherever_it_ends(progressive):
    data = encoded(pixels(), "JPEG", progressive=progressive)
    for length in [*range(2, len(data), 97), len(data) - 2, len(data) - 1]:
        with pytest.raises(BadImageError):
            kept(data[:length])


def test_a_jpeg_cut_inside_but_with_an_end_marker_is_rejected():
    data = jpeg(200, 150)
    with pytest.raises(BadImageError, match="premature end of data segment"):
        kept(data[: len(data) * 3 // 4] + b"\xff\xd9")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"no image at all\n" * 20, "no image of a known format"),
        (bytes(5000), "no image of a known format"),
        (b"<html><body>404 Not Found</body></html>", "no image of a known format"),
        (encoded(pixels(), "PNG")[:-200], "truncated|broken"),
        (encoded(pixels(), "WEBP")[:-20], "."),
        (encoded(pixels(), "GIF")[:400], "."),
        (b"\xff\xd8\xff\xe0", "."),
        (png_header(20_000, 10_000), "over 178 megapixels"),
    ],
)
def test_what_is_no_whole_image_is_rejected_with_a_reason(data, reason):
    with pytest.raises(BadImageError, match=reason) as caught:
        kept(data)
    assert " at 0x" not in str(caught.value)


def test_a_jpeg_that_says_it_is_huge_is_rejected_before_it_is_decoded():
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 20_000, 20_000)
    with pytest.raises(BadImageError, match="over 178 megapixels"):
        kept(bytes(data))


def test_verifying_at_an_eighth_finds_what_a_full_decode_finds():
    data = jpeg(120, 90)
    random = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        broken = bytearray(data)
        for position in random.integers(600, len(data), 2):
            broken[position] ^= 1 << int(random.integers(8))
        try:
            simplejpeg.decode_jpeg(bytes(broken))
            verify_jpeg(bytes(broken))
        except ValueError:
            found += 1
            with pytest.raises(BadImageError):
                verify_jpeg(bytes(broken))
    assert found > 30


def test_what_a_flipped_bit_leaves_over_is_not_taken_for_padding():
    data = jpeg(200, 150)
    random = np.random.default_rng(0)
    noticed = 0
    for _ in range(600):
        broken = bytearray(data)
        broken[random.integers(data.index(b"\xff\xda") + 14, len(data) - 2)] ^= 1 << int(random.integers(8))
        try:
            simplejpeg.decode_jpeg(bytes(broken))
        except ValueError as error:
            noticed += "extraneous bytes before marker 0xd9" in str(error)
            with pytest.raises(BadImageError):
                kept(bytes(broken))
    assert noticed > 30


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_other_formats_become_baseline_rgb_jpegs(file_format):
    data = encoded(pixels(), file_format)
    image = kept(data)
    assert_baseline_rgb(image.data, 48, 32)
    assert image[1:] == (48, 32, f"{file_format} instead of JPEG")
    assert np.abs(opened(image.data).astype(int) - opened(data)).mean() < (8 if file_format == "GIF" else 4)


def test_an_animations_first_frame_is_taken():
    red, blue = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))
    frames = encoded(np.asarray(red), "GIF", save_all=True, append_images=[blue])
    assert opened(kept(frames).data)[8, 8].tolist() == pytest.approx([254, 0, 0], abs=3)


def test_cmyk_becomes_rgb():
    data = encoded(pixels(), "JPEG", "CMYK", quality=95)
    image = kept(data)
    assert_baseline_rgb(image.data, 48, 32)
    assert image.repair == "CMYK"
    assert np.abs(opened(image.data).astype(int) - pixels()).mean() < 5


def test_a_truncated_cmyk_jpeg_is_rejected():
    with pytest.raises(BadImageError):
        kept(encoded(pixels(), "JPEG", "CMYK")[:-2])


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("resize", ["none", "20x30", "short:16"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_exif_rotated_image_is_turned_upright(orientation, resize, file_format):
    turned = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
              6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}  # fmt: skip
    stored = pixels(96, 64)
    upright = np.ascontiguousarray(turned[orientation](stored))
    image = prepare(with_orientation(stored, orientation, file_format), Resize.parse(resize), 95)
    width, height = {"none": upright.shape[1::-1], "20x30": (20, 30)}.get(resize, (16, 24) if orientation >= 5 else (24, 16))
    assert (image.width, image.height) == (width, height)
    assert image.repair
    assert kept(image.data).repair == ""
    expected = Image.fromarray(upright).resize((width, height), Image.Resampling.LANCZOS)
    assert np.abs(opened(image.data).astype(int) - expected).mean() < 6


def test_transparency_is_laid_over_white():
    array = np.zeros((16, 32, 4), np.uint8)
    array[:, 16:, 3] = 255
    for file_format in ("PNG", "WEBP"):
        image = opened(kept(encoded(array, file_format, "RGBA")).data)
        assert image[8, 4].tolist() == pytest.approx([255, 255, 255], abs=3)
        assert image[8, 28].tolist() == pytest.approx([0, 0, 0], abs=3)


def test_a_transparent_palette_is_laid_over_white():
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    image = opened(kept(encoded(np.asarray(palette), "PNG", "P", transparency=0)).data)
    assert image[8, 8].tolist() == pytest.approx([255, 255, 255], abs=3)


def test_sixteen_bit_gray_keeps_its_brightness():
    deep = np.full((16, 16), 0x8000, np.uint16)
    image = opened(kept(encoded(deep, "PNG", "I;16")).data)
    assert image[8, 8].tolist() == pytest.approx([128, 128, 128], abs=2)


@pytest.mark.parametrize("size", [(40, 30), (150, 90), (640, 480)])
@pytest.mark.parametrize("text", ["64x64", "short:50", "300x17"])
def test_a_resized_image_is_what_antialiasing_at_full_size_gives(size, text):
    data = jpeg(*size, quality=95)
    image = prepare(data, Resize.parse(text), 95)
    target = Resize.parse(text).target(*size)
    assert simplejpeg.decode_jpeg_header(image.data)[:2] == target[::-1]
    assert (image.width, image.height, image.repair) == (*target, "")
    expected = Image.fromarray(opened(data)).resize(target, Image.Resampling.LANCZOS)
    assert np.abs(opened(image.data).astype(int) - expected).mean() < 3.5


def test_a_turned_image_is_decoded_large_enough_for_both_sides():
    stored = np.zeros((640, 160, 3), np.uint8)
    stored[:, np.arange(160) % 4 < 2] = 255
    image = prepare(with_orientation(stored, 6), Resize.parse("10x100"), 95)
    expected = Image.fromarray(np.ascontiguousarray(np.rot90(stored, -1))).resize((10, 100), Image.Resampling.LANCZOS)
    assert np.abs(opened(image.data).astype(int) - expected).mean() < 10


def test_what_is_decoded_smaller_stays_twice_as_large_as_asked_for():
    stripes = np.zeros((480, 640, 3), np.uint8)
    stripes[:, np.arange(640) % 4 < 2] = 255
    data = encoded(stripes, "JPEG", quality=95)
    expected = Image.fromarray(opened(data)).resize((150, 112), Image.Resampling.LANCZOS)
    image = prepare(data, Resize.parse("150x112"), 100)
    assert np.abs(opened(image.data).astype(int) - expected).max() <= 4


def test_an_image_of_the_asked_size_keeps_its_bytes():
    data = jpeg(64, 48)
    assert prepare(data, Resize.parse("64x48"), 50).data == prepare(data, Resize.parse("short:60"), 50).data == data


def test_quality_is_that_of_encoded_images():
    sizes = [len(prepare(jpeg(200, 150), Resize.parse("100x100"), quality).data) for quality in (30, 60, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


def test_the_job_answers_with_a_datum_or_a_reason(tmp_path):
    (tmp_path / "good").write_bytes(jpeg())
    (tmp_path / "bad").write_bytes(jpeg()[:-2])
    job = Preparer(Resize(), 95)
    tasks = [Task(Place(str(tmp_path / name)), 4) for name in ("good", "bad", "absent")]
    good, bad, absent = job.of_chunk(tasks, [].append)
    value = bytes(good.value)
    datum = Datum.FromString(value)
    assert (datum.data, datum.label, datum.width, datum.height) == (jpeg(), 4, 48, 32)
    assert value[good.header : good.header + good.length] == jpeg()
    assert (bad.value, bad.reason) == (None, "Premature end of JPEG file")
    assert (absent.value, absent.reason) == (None, "cannot be read: No such file or directory")
    assert (good.read, bad.read, absent.read) == (len(jpeg()), len(jpeg()) - 2, 0)


@pytest.mark.parametrize("resize", ["none", "64x48", "short:40", "60x90"])
def test_images_prepared_together_are_what_each_is_alone(tmp_path, resize):
    turned = with_orientation(pixels(100, 80), 6)
    images = [jpeg(100, 80, seed=1), jpeg(80, 100), jpeg(100, 80, seed=2), jpeg(100, 80)[:-9], turned, jpeg(64, 48)]
    images += [jpeg(100, 80, seed=3), jpeg(900, 700), encoded(pixels(100, 80), "PNG"), jpeg(100, 80, seed=4)]
    for number, data in enumerate(images):
        (tmp_path / str(number)).write_bytes(data)
    tasks, places = [Task(Place(str(tmp_path / str(number))), number) for number in range(len(images))], []
    job = Preparer(Resize.parse(resize), 90)
    for chunk in (slice(0, 8), slice(2, 10), slice(9, 10)):
        results = list(job.of_chunk(tasks[chunk], places.append))
        for number, result in zip(range(len(images))[chunk], results, strict=True):
            if number == 3:
                assert (result.value, result.reason) == (None, "Premature end of JPEG file")
                continue
            alone = prepare(images[number], Resize.parse(resize), 90)
            assert bytes(result.value)[result.header :].startswith(alone.data)
            assert result[2:6] == (len(alone.data), alone.width, alone.height, alone.repair)
    assert set(places) == set(range(8))


def test_what_finds_no_room_among_the_waiting_is_resized_alone(tmp_path, monkeypatch):
    sizes = [(100, 80), (100, 80), (60, 50), (100, 80), (400, 300)]
    for number, size in enumerate(sizes):
        (tmp_path / str(number)).write_bytes(jpeg(*size, seed=number))
    tasks = [Task(Place(str(tmp_path / str(number))), 0) for number in range(len(sizes))]
    job, calls = Preparer(Resize.parse("70x70"), 90), []
    monkeypatch.setattr(images, "_stacks", lambda: Stacks(2 * 100 * 80 * 3 + 60 * 50 * 3))
    monkeypatch.setattr(resize, "resized", lambda pixels, *target: calls.append(len(pixels)) or resized(pixels, *target))
    results = list(job.of_chunk(tasks, [].append))
    assert calls == [2, 1]
    for number, result in enumerate(results):
        alone = prepare((tmp_path / str(number)).read_bytes(), job.resize, job.quality)
        assert bytes(result.value)[result.header :].startswith(alone.data)


def test_files_are_read_ahead_in_bounded_memory(tmp_path, monkeypatch):
    (tmp_path / "image").write_bytes(jpeg())
    monkeypatch.setattr(images, "_HELD_BYTES", 2 * len(jpeg()))
    task, places = Task(Place(str(tmp_path / "image")), 0), []
    next(Preparer(Resize(), 95).of_chunk([task] * 8, places.append))
    assert places == [0, 1, 2, 0, 1, 2, 0]


def test_a_place_is_a_range_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    assert Place(str(tmp_path / "file")).read() == b"0123456789"
    assert Place(str(tmp_path / "file"), 3, 4).read() == b"3456"
