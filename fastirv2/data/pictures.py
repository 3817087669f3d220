"""One image at a time, without a graph: what a file shows, and the square of it that a network sees in validation."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastirv2.building.other_formats import upright_rgb
from fastirv2.data.augment import centre_crops
from fastirv2.data.dataset import Records
from fastirv2.data.samples import InputConfig, needs_sizes

_FILTERS = {"linear": Image.Resampling.BILINEAR, "cubic": Image.Resampling.BICUBIC}


class UnreadableError(Exception):
    """An image that cannot be read; its text says why."""


def read_picture(file: str | io.BytesIO) -> Image.Image:
    """Return an image in RGB as a build would store it, turned as its EXIF block says.

    Raises:
        UnreadableError: it is missing, cut short, or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file) as image:
                return seen(image)
    except UnidentifiedImageError as error:
        raise UnreadableError("it is no image") from error
    except Exception as error:
        raise UnreadableError(_reason(error)) from error


def seen(image: Image.Image) -> Image.Image:
    """Return an image of Pillow's as `read_picture` does a file's; raises UnreadableError."""
    try:
        return upright_rgb(image)
    except Exception as error:  # Pillow's plugins raise whatever parsing a broken file comes to
        raise UnreadableError(_reason(error)) from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def picture_of(records: Records, number: int) -> Image.Image:
    """Return the image of a record in RGB, upright; raises UnreadableError."""
    data, _ = records[number]
    if records.form != "planes":
        return read_picture(io.BytesIO(data))
    height, width = records.sizes[number].tolist()
    planes = np.frombuffer(data, np.uint8).reshape(3, height, width)
    return Image.fromarray(np.ascontiguousarray(planes[::-1].transpose(1, 2, 0)))


def central_square(image: Image.Image, config: InputConfig) -> np.ndarray:
    """Return what a network sees of an image in validation: uint8 (crop, crop, 3).

    One resize of a window, as the graph of `pipelines/images.py` has it: the two differ by what rounding costs.
    """
    size = np.array([[image.height, image.width]])
    sizes = size if needs_sizes(config, training=False) else None
    windows = centre_crops(1, config.resize, config.crop, sizes)
    (top, left), (bottom, right) = (edge[0].astype(float) * size[0] for edge in (windows.start, windows.end))
    box = (left, top, min(right, image.width), min(bottom, image.height))
    return np.asarray(image.resize((config.crop, config.crop), _FILTERS[config.filter], box=box))
