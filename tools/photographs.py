"""JPEGs for measurements: the sizes, bytes and spectrum of photographs, the same ones every time.

A mix of two windows of random textures, whose amplitude falls with frequency as photographs' does, and grain: at 500 × 375
and the like they take 99.5 kB on average. What a resize and another JPEG make of their size lies between what it makes of
scikit-image's photographs at 500 pixels that were saved with quality 90 and with quality 95.
"""

from __future__ import annotations

import functools
import io
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from fastirv2.errors import DataError, run_command
from fastirv2.host import available_cpus

SIZES = ((500, 375),) * 5 + ((500, 333),) * 2 + ((375, 500),) * 2 + ((333, 500),)  # width × height, as most of ImageNet has
QUALITY = 91  # with which these take about 100 kB on average
CLASSES = 10
_TEXTURE = 1024
_SLOPE = 1.2  # amplitude falls with frequency to this power: photographs have 1.0 to 1.4
_CONTRAST = (52, 14, 14)  # standard deviation of brightness and of the two colour differences
_GRAIN = 8  # standard deviation of the noise of each pixel


@dataclass(frozen=True)
class Options:
    """Write photograph-like JPEGs into class folders."""

    folder: tyro.conf.Positional[Path]
    """The folder to make."""
    images: int = 1000
    """How many."""
    side: int | None = None
    """The longer side in pixels, up to 1,024; ImageNet's usual 500 unless given."""
    workers: int | None = None
    """Processes; as many as there are CPUs unless given."""


@functools.cache
def _textures() -> np.ndarray:
    """Return three periodic random fields (3, 1024, 1024), float32, standard deviation 1, with the spectrum of photographs."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(_TEXTURE)[:, None], np.fft.rfftfreq(_TEXTURE)[None])
    frequency[0, 0] = np.inf
    white = np.fft.rfft2(rng.standard_normal((3, _TEXTURE, _TEXTURE)))
    fields = np.fft.irfft2(white * frequency**-_SLOPE, s=(_TEXTURE, _TEXTURE))
    return (fields / fields.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def photograph(seed: int, width: int, height: int) -> np.ndarray:
    """Return a photograph-like image, (height, width, 3) uint8; sides up to 1,024 pixels."""
    rng = np.random.default_rng(seed)
    windows = np.zeros((3, height, width), np.float32)
    for _ in range(2):
        shift = rng.integers(0, _TEXTURE, 2)
        rows, columns = ((start + np.arange(side)) % _TEXTURE for start, side in zip(shift, (height, width), strict=True))
        windows += _textures()[:, rows[:, None], columns[None]]
    y, u, v = windows * (np.array(_CONTRAST, np.float32) / np.sqrt(2))[:, None, None]
    y += 128 + _GRAIN * rng.standard_normal((height, width), np.float32)
    return np.stack([y + u, y - (u + v) / 2, y + v], axis=-1).clip(0, 255).astype(np.uint8)


def encoded(seed: int, width: int, height: int, quality: int = QUALITY) -> bytes:
    """Return the JPEG of `photograph`."""
    stream = io.BytesIO()
    Image.fromarray(photograph(seed, width, height)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def write_photographs(options: Options) -> None:
    """Write the JPEGs, in parallel."""
    try:
        for label in range(min(CLASSES, options.images)):
            (options.folder / f"{label:02}").mkdir(parents=True)
    except FileExistsError as error:
        raise DataError(f"{options.folder} holds images already; name a folder that does not exist yet") from error
    tasks = ((options.folder, number, options.side) for number in range(options.images))
    with multiprocessing.get_context("spawn").Pool(options.workers or available_cpus()) as pool:
        pool.starmap(_write, tasks, chunksize=16)


def _write(folder: Path, number: int, side: int | None) -> None:
    """Write one image."""
    width, height = SIZES[number // CLASSES % len(SIZES)]
    if side:
        width, height = (max(1, pixels * side // max(width, height)) for pixels in (width, height))
    (folder / f"{number % CLASSES:02}" / f"{number:06}.jpg").write_bytes(encoded(number, width, height))


def link_files(files: list[Path], folder: Path, count: int, a_class: int = 1000) -> Path:
    """Give `files` `count` paths in all, in turn and `a_class` in each class folder, by links; return `folder`."""
    for number in range(count):
        label = folder / f"{number // a_class:05}"
        if number % a_class == 0:
            label.mkdir(parents=True)
        file = files[number % len(files)]
        path = label / f"{number:08}{file.suffix}"
        try:
            os.link(file, path)
        except OSError:  # another file system, or another user's files
            path.symlink_to(file.resolve())
    return folder


if __name__ == "__main__":
    run_command(lambda: write_photographs(tyro.cli(Options, description=__doc__)), "photographs")
