"""Small real images, folders of them, and the builder as a process."""

import io
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import jpeglib
import numpy as np
import simplejpeg
from PIL import Image

from fastirv2.build_lmdb import Options, build


def pixels(width=48, height=32, seed=0):
    """A photograph-like (height, width, 3) uint8 array: smooth, with some noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return np.clip(np.asarray(coarse, np.int16) + random.integers(-6, 7, (height, width, 3)), 0, 255).astype(np.uint8)


def jpeg(width=48, height=32, seed=0, quality=90):
    return simplejpeg.encode_jpeg(pixels(width, height, seed), quality, "RGB", "420")


def encoded(array, file_format, mode="RGB", **options):
    """The file that Pillow writes of a (H, W, 3) array after converting it to `mode`."""
    stream = io.BytesIO()
    Image.fromarray(array).convert(mode).save(stream, file_format, **options)
    return stream.getvalue()


def png_header(width, height):
    """A PNG that says it is this large, with next to nothing in it."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def opened(data):
    """The (H, W, C) pixels of an image file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def class_folders(folder, counts, **options):
    """Write `counts[name]` JPEGs into each class folder; the folder is returned."""
    seed = 0
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / name / f"{number:03}.jpg").write_bytes(jpeg(seed=seed, **options))
            seed += 1
    return folder


def built(source, out, **options):
    """Build in this process (the workers are others) and return OUT."""
    build(Options(str(source), str(out), **{"workers": 1, **options}))
    return out


def command(*arguments, **options):
    """Start the command line and return its finished process."""
    line = [sys.executable, "-m", "fastirv2.build_lmdb", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120, **options)


def by_libjpeg(array, *flags, sampling=None, tables=None):
    """The JPEG that libjpeg writes of a (H, W, 3 or 1) array with jpeglib's `flags`, vertical and horizontal sampling
    factors and quantisation tables: arithmetic coding and other things that no other writer here has."""
    jpeglib.version.set("turbo210")
    image = jpeglib.from_spatial(np.ascontiguousarray(array))
    if sampling is not None:
        image.samp_factor = np.array(sampling)
    with tempfile.TemporaryDirectory() as folder:
        image.write_spatial(f"{folder}/image.jpg", flags=list(flags), **({} if tables is None else {"qt": tables}))
        return Path(folder, "image.jpg").read_bytes()


def in_three_scans(array):
    """A baseline 4:4:4 JPEG with a scan for each component: three gray JPEGs' scans under one header."""
    planes = np.asarray(Image.fromarray(array).convert("YCbCr"))
    grays = [simplejpeg.encode_jpeg(np.ascontiguousarray(planes[:, :, i, None]), 90, "GRAY", "Gray") for i in range(3)]
    frame, scan = grays[0].index(b"\xff\xc0"), grays[0].index(b"\xff\xda")
    height, width = array.shape[:2]
    header = struct.pack(">BBHBHHB", 0xFF, 0xC0, 17, 8, height, width, 3) + bytes([1, 17, 0, 2, 17, 0, 3, 17, 0])
    scans = (bytes([255, 218, 0, 8, 1, i + 1, 0, 0, 63, 0]) + gray[scan + 10 : -2] for i, gray in enumerate(grays))
    return grays[0][:frame] + header + grays[0][frame + 13 : scan] + b"".join(scans) + b"\xff\xd9"


def with_segment(data, body, marker=0xE1):
    """A JPEG with one more segment right behind its start."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[2:]


def exif(*entries, order="<"):
    """An EXIF block of (tag, type, count, value's bytes)."""
    packed = (struct.pack(order + "HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries))
    return b"Exif\0\0" + start + b"".join(packed) + bytes(4)


def turned(orientation, order="<"):
    """An EXIF block that says this orientation."""
    return exif((0x0112, 3, 1, struct.pack(order + "H", orientation)), order=order)
