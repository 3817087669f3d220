"""Files as they come: each goes through the builder, and what it stores is the picture that Pillow sees, or a reason."""

import io
import json
import struct
import zlib

import lmdb
import numpy as np
import pytest
import simplejpeg
from nvidia.dali import fn, pipeline_def, types
from PIL import Image, ImageOps

from fastirv2.building.jpeg import orientation, read_frame, verify_jpeg
from fastirv2.data.datum import Datum

from .samples import built, by_libjpeg, encoded, exif, in_three_scans, turned, with_segment

KEPT = ""
END = b"\xff\xd9"


def smooth(width=96, height=64):
    """A picture that coding at quality 95 hardly changes, different in each corner."""
    corners = np.array([[[230, 60, 40], [40, 200, 90]], [[30, 60, 220], [240, 230, 60]]], np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR))


SMOOTH = smooth()
BASELINE = encoded(SMOOTH, "JPEG", quality=95)
PROGRESSIVE = encoded(SMOOTH, "JPEG", quality=95, progressive=True)
FADED = np.dstack([SMOOTH, np.linspace(0, 255, 96 * 64).reshape(64, 96).astype(np.uint8)])
DEEP = (SMOOTH.astype(np.uint16) * 257)[..., 0] // 2 + 8000  # clipping at 255 would turn it white


def saved(image, file_format, **options):
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def transparent(array, file_format, **options):
    return saved(Image.fromarray(array), file_format, **options)


def palette(**options):
    image = Image.new("P", (96, 64), 0)
    image.putpalette([230, 60, 40, 40, 200, 90, 30, 60, 220])
    image.paste(1, (48, 0, 96, 32))
    image.paste(2, (0, 32, 48, 64))
    return saved(image, "PNG", **options)


def rotated(value, file_format="JPEG", order="<"):
    return encoded(SMOOTH, file_format, quality=95, exif=turned(value, order))


def png(width, height, depth, colour, rows):
    """A PNG of raw rows, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    raw = b"".join(b"\0" + bytes(row) for row in rows)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b""))
    )


def deep_png(array, colour):
    height, width = array.shape[:2]
    return png(width, height, 16, colour, array.astype(">u2").reshape(height, -1).view(np.uint8))


def subsampled(name):
    return simplejpeg.encode_jpeg(SMOOTH, 95, "RGB", name)


def with_frame(at, replaced):
    """The baseline JPEG with some bytes of its SOF segment replaced."""
    start = BASELINE.index(b"\xff\xc0") + at
    return BASELINE[:start] + replaced + BASELINE[start + len(replaced) :]


def flipped(data):
    """A JPEG with one bit of its compressed data flipped: what follows is shifted, so that some of it is left over."""
    for at in range(data.index(b"\xff\xda") + 20, len(data) - 2):
        broken = data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]
        try:
            verify_jpeg(broken)
        except ValueError as error:
            if "extraneous bytes before marker 0xd9" in str(error):
                return broken
    raise AssertionError("no bit does that")


NOISE = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
FLIPPED = flipped(encoded(NOISE, "JPEG"))
GOOD = {
    "baseline": (BASELINE, KEPT),
    "gray": (encoded(SMOOTH, "JPEG", "L"), KEPT),
    "444": (subsampled("444"), KEPT),
    "422": (subsampled("422"), KEPT),
    "440": (subsampled("440"), KEPT),
    "411": (subsampled("411"), KEPT),
    "RGB with Adobe's marker": (encoded(SMOOTH, "JPEG", keep_rgb=True), KEPT),
    "restart markers": (encoded(SMOOTH, "JPEG", restart_marker_rows=1), KEPT),
    "one pixel": (encoded(SMOOTH[:1, :1], "JPEG"), KEPT),
    "trailing bytes": (BASELINE + b"appended by a camera" * 9, KEPT),
    "trailing JPEG": (BASELINE + encoded(SMOOTH[:32, :32], "JPEG"), KEPT),
    "thumbnail in EXIF": (with_segment(BASELINE, exif() + encoded(SMOOTH[:8, :8], "JPEG")), KEPT),
    "EXIF 1": (rotated(1), KEPT),
    "EXIF 1, big-endian": (rotated(1, order=">"), KEPT),
    "EXIF 77": (rotated(77), KEPT),
    "XMP says 6": (with_segment(BASELINE, b"http://ns.adobe.com/xap/1.0/\0" + b'<x tiff:Orientation="6"/>'), KEPT),
    "60 comments": (BASELINE[:2] + b"\xff\xfe\0\5abc" * 60 + BASELINE[2:], KEPT),
    "progressive": (PROGRESSIVE, "progressive JPEG"),
    "progressive gray": (encoded(SMOOTH, "JPEG", "L", progressive=True), "progressive JPEG"),
    "arithmetic": (by_libjpeg(SMOOTH, "+ARITH_CODE"), "arithmetic-coded JPEG"),
    "extended": (with_frame(1, b"\xc1"), "extended JPEG"),
    "three scans": (in_three_scans(SMOOTH), "JPEG of several scans"),
    "padding before the end": (BASELINE[:-2] + bytes(40) + END, "extraneous bytes before the end marker"),
    "padded progressive": (PROGRESSIVE[:-2] + bytes(40) + END, "progressive JPEG, extraneous bytes before the end marker"),
    "JFIF 2.1": (BASELINE.replace(b"JFIF\0\1\1", b"JFIF\0\2\1"), "unknown JFIF revision"),
    "441": (by_libjpeg(SMOOTH, sampling=((4, 1), (1, 1), (1, 1))), "unusual chroma subsampling"),
    "CMYK": (encoded(SMOOTH, "JPEG", "CMYK", quality=95), "CMYK"),
    **{f"EXIF {value}": (rotated(value), f"EXIF orientation {value}") for value in range(2, 9)},
    "EXIF 6, big-endian": (rotated(6, order=">"), "EXIF orientation 6"),
    "EXIF 6 behind a profile": (with_segment(rotated(6), bytes(65_000), 0xE2), "EXIF orientation 6"),
    "PNG": (encoded(SMOOTH, "PNG"), "PNG instead of JPEG"),
    "PNG, EXIF 6": (rotated(6, "PNG"), "PNG instead of JPEG, EXIF orientation 6"),
    "PNG of one bit": (encoded(SMOOTH, "PNG", "1"), "PNG instead of JPEG"),
    "PNG with alpha": (transparent(FADED, "PNG"), "PNG instead of JPEG"),
    "PNG, gray with alpha": (saved(Image.fromarray(FADED).convert("LA"), "PNG"), "PNG instead of JPEG"),
    "PNG with a palette": (palette(), "PNG instead of JPEG"),
    "PNG, transparent palette": (palette(transparency=1), "PNG instead of JPEG"),
    "WebP": (encoded(SMOOTH, "WEBP", quality=95), "WEBP instead of JPEG"),
    "WebP with alpha": (transparent(FADED, "WEBP", lossless=True), "WEBP instead of JPEG"),
    "BMP": (encoded(SMOOTH, "BMP"), "BMP instead of JPEG"),
    "GIF of two frames": (
        encoded(SMOOTH, "GIF", "L", save_all=True, append_images=[Image.new("L", (96, 64))]),
        "GIF instead of JPEG",
    ),
    "TIFF": (encoded(SMOOTH, "TIFF"), "TIFF instead of JPEG"),
    "TIFF, LZW": (encoded(SMOOTH, "TIFF", compression="tiff_lzw"), "TIFF instead of JPEG"),
    "TIFF, EXIF 6": (encoded(SMOOTH, "TIFF", tiffinfo={0x0112: 6}), "TIFF instead of JPEG"),
    "PPM": (encoded(SMOOTH, "PPM"), "PPM instead of JPEG"),
}
DEEP_ONES = {
    "16-bit PNG": (encoded(DEEP, "PNG", "I;16"), DEEP),
    "16-bit TIFF": (encoded(DEEP, "TIFF", "I;16"), DEEP),
    "16-bit PPM": (b"P5 96 64 65535\n" + DEEP.astype(">u2").tobytes(), DEEP),
    "16-bit PNG, RGB": (deep_png(np.dstack([DEEP, DEEP // 2, DEEP // 3]), 2), np.dstack([DEEP, DEEP // 2, DEEP // 3])),
    "16-bit PNG, gray with alpha": (deep_png(np.dstack([DEEP, np.full_like(DEEP, 65535)]), 4), DEEP),
}
BROKEN = "broken EXIF block"
SIX = struct.pack("<H", 6)
DOUBTFUL = {
    "orientation of no SHORT": with_segment(BASELINE, exif((0x0112, 1, 1, b"\6"))),
    "orientation that is none": with_segment(BASELINE, exif((0x0112, 3, 0, SIX))),
    "EXIF cut off": with_segment(BASELINE, exif((0x0112, 3, 1, SIX))[:-6]),
    "second EXIF block": with_segment(with_segment(BASELINE, turned(6)), turned(1)),
}
BAD = {
    "empty": (b"", "the file is empty"),
    "zeros": (bytes(5000), "no image of a known format"),
    "text": (b"a list of files\n" * 9, "no image of a known format"),
    "HTML": (b"<!DOCTYPE html><title>404 Not Found</title>", "no image of a known format"),
    "start only": (BASELINE[:2], "broken JPEG header"),
    "cut in the header": (BASELINE[:150], "broken JPEG header"),
    "truncated": (BASELINE[: len(BASELINE) // 2 + 200], "Premature end of JPEG file"),
    "no end marker": (BASELINE[:-2], "Premature end of JPEG file"),
    "truncated progressive": (PROGRESSIVE[:-100], "Premature end of JPEG file"),
    "truncated CMYK": (encoded(SMOOTH, "JPEG", "CMYK")[:-9], "Premature end of JPEG file"),
    "cut inside": (BASELINE[:-60] + END, "Corrupt JPEG data: premature end of data segment"),
    "bytes between segments": (
        BASELINE[:20] + b"damage" + BASELINE[20:],
        "Corrupt JPEG data: 6 extraneous bytes before marker 0xdb",
    ),
    "flipped marker": (BASELINE.replace(b"\xff\xda", b"\xff\x5a"), "broken JPEG header"),
    "flipped bit": (FLIPPED, "Corrupt JPEG data: 86 extraneous bytes before marker 0xd9"),
    "bomb, JPEG": (with_frame(5, struct.pack(">HH", 20_000, 20_000)), "over 178 megapixels"),
    "bomb, PNG": (png(20_000, 10_000, 8, 2, [b""]), "over 178 megapixels"),
    "12 bits": (with_frame(4, b"\x0c"), "12-bit JPEG is not supported"),
    "lossless": (with_frame(1, b"\xc3"), "lossless JPEG is not supported"),
    "hierarchical": (with_frame(1, b"\xc5"), "hierarchical JPEG is not supported"),
    "JPEG-LS": (with_frame(1, b"\xf7"), "JPEG-LS is not supported"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(99), "JPEG 2000 is not supported"),
    "JPEG XL": (b"\xff\x0a" + bytes(99), "JPEG XL is not supported"),
    "AVIF": (b"\0\0\0\x1cftypavif" + bytes(99), "AVIF is not supported"),
    "truncated PNG": (encoded(SMOOTH, "PNG")[:-200], "broken PNG: image file is truncated"),
    "truncated WebP": (encoded(SMOOTH, "WEBP")[:-20], "broken image: could not create decoder object"),
    "truncated BMP": (encoded(SMOOTH, "BMP")[:-99], "broken BMP: image file is truncated (189 bytes not processed)"),
    "truncated TIFF": (encoded(SMOOTH, "TIFF", compression="tiff_lzw")[:-400], "no image of a known format"),
    "too long a side": (png(70_000, 1, 1, 0, [bytes(8750)]), "70,000 × 1 pixels are more than a JPEG can have (65,500 a side)"),
    "floating-point TIFF": (encoded(SMOOTH, "TIFF", "F"), "32-bit TIFF is not supported"),
}


def build_each(folder, files, **options):
    """Build an LMDB with a class for each file: name → its stored JPEG, and name → its line in rejected.jsonl."""
    for name, data in files.items():
        (folder / "source" / name).mkdir(parents=True)
        (folder / "source" / name / "photo.JPEG").write_bytes(data)
    out = built(folder / "source", folder / "out", max_bad=1, **options)
    names = json.loads((out / "dataset.json").read_text())["classes"]
    with lmdb.open(str(out), readonly=True, lock=False) as environment, environment.begin() as transaction:
        records = [Datum.FromString(value) for _, value in transaction.cursor()]
    lines = [json.loads(line) for line in (out / "rejected.jsonl").open()]
    assert len({line["path"] for line in lines}) == len(lines)
    return {names[record.label]: record for record in records}, {line["path"].split("/")[0]: line for line in lines}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    files = {name: data for name, (data, _) in (GOOD | DEEP_ONES | BAD).items()} | DOUBTFUL
    return build_each(tmp_path_factory.mktemp("odd"), files)


def seen(data):
    """What Pillow shows of a file: upright, over white; (H, W, 3)."""
    image = Image.open(io.BytesIO(data))
    image.info.pop("xmp", None)  # which no decoder follows
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB")).astype(int)


def assert_stored_well(record, picture, tolerance=2):
    assert not read_frame(record.data).kind
    assert orientation(record.data, read_frame(record.data)) == (1, False)
    verify_jpeg(record.data)
    stored = np.asarray(Image.open(io.BytesIO(record.data)).convert("RGB"))
    assert stored.shape == picture.shape == (record.height, record.width, 3)
    assert np.abs(stored - picture).mean() <= tolerance


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_is_stored_as_pillow_shows_it(name, outcome):
    records, lines = outcome
    data, repair = GOOD[name]
    if repair == KEPT:
        assert records[name].data == data
        assert name not in lines
    else:
        assert lines[name] == {"path": f"{name}/photo.JPEG", "reason": repair, "action": "repaired"}
    assert_stored_well(records[name], seen(data))


@pytest.mark.parametrize("name", DEEP_ONES)
def test_sixteen_bits_are_scaled_and_not_clipped(name, outcome):
    records, lines = outcome
    kind = name.split(",")[0]
    assert lines[name] == {"path": f"{name}/photo.JPEG", "reason": f"{kind} instead of JPEG", "action": "repaired"}
    deep = np.atleast_3d(DEEP_ONES[name][1]) / 257
    assert_stored_well(records[name], np.broadcast_to(deep.round().astype(int), (64, 96, 3)))


@pytest.mark.parametrize("name", DOUBTFUL)
def test_an_exif_block_that_readers_may_take_for_a_turn_is_dropped(name, outcome):
    records, lines = outcome
    assert lines[name] == {"path": f"{name}/photo.JPEG", "reason": BROKEN, "action": "repaired"}
    assert b"Exif" not in records[name].data
    assert_stored_well(records[name], seen(BASELINE))


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_rejected_with_its_reason(name, outcome):
    records, lines = outcome
    assert name not in records
    assert lines[name] == {"path": f"{name}/photo.JPEG", "reason": BAD[name][1], "action": "rejected"}


def test_dali_sees_in_every_record_what_pillow_sees(outcome):
    jpegs = [np.frombuffer(record.data, np.uint8) for record in outcome[0].values()]

    @pipeline_def(batch_size=len(jpegs), num_threads=2, device_id=None)
    def decoding():
        return fn.decoders.image(fn.external_source([jpegs], batch=True, cycle=True), device="cpu", output_type=types.RGB)

    pipeline = decoding()
    pipeline.build()
    (images,) = pipeline.run()
    for data, image in zip(jpegs, map(np.asarray, images), strict=True):
        expected = np.asarray(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))
        assert image.shape == expected.shape
        assert np.abs(image.astype(int) - expected).max() <= 1


def test_resized_ones_are_the_same_whatever_the_number_of_workers(outcome, tmp_path):
    files = {name: data for name, (data, _) in GOOD.items()}
    digests = set()
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        records, lines = build_each(folder, files, resize="40x40", workers=workers)
        assert {(record.width, record.height) for record in records.values()} == {(40, 40)}
        assert lines["PNG"]["reason"] == GOOD["PNG"][1]
        assert "progressive" not in lines
        digests.add(json.loads((folder / "out/dataset.json").read_text())["digest"])
    assert len(digests) == 1
    for name, (data, _) in GOOD.items():
        expected = Image.fromarray(seen(data).astype(np.uint8)).resize((40, 40), Image.Resampling.LANCZOS)
        assert_stored_well(records[name], np.asarray(expected).astype(int), tolerance=4)  # steeper, so more is lost


def test_what_is_odd_in_imagenet_itself_is_repaired(tmp_path):
    large = np.broadcast_to(np.repeat(np.arange(240, dtype=np.uint8), 20)[None, :, None], (4400, 4800, 3))
    files = {f"n{number:08}": encoded(SMOOTH, "JPEG", "CMYK", quality=95) for number in range(22)}
    files |= {"n02105855": encoded(SMOOTH, "PNG"), "n03000000": rotated(6), "n04000000": rotated(3), "n05000000": BASELINE}
    files["n04152593"] = simplejpeg.encode_jpeg(np.ascontiguousarray(large), 95, "RGB", "420")
    records, lines = build_each(tmp_path, files)
    assert {name: line["reason"] for name, line in lines.items()} == {
        **dict.fromkeys(list(files)[:22], "CMYK"),
        "n02105855": "PNG instead of JPEG",
        "n03000000": "EXIF orientation 6",
        "n04000000": "EXIF orientation 3",
    }
    assert {line["action"] for line in lines.values()} == {"repaired"}
    assert len(records) == 27
    assert records.pop("n04152593").data == files["n04152593"]
    for name, record in records.items():
        assert_stored_well(record, seen(files[name]))
