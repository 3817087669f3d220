"""Small real images, folders of them, and the builder as a process."""

import io
import subprocess
import sys

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
