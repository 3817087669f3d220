"""Several views of an image, over which its softmax is averaged in validation: the windows of 12 and of 144 crops."""

from __future__ import annotations

import numpy as np

from fastirv2.data.augment import Windows, resized_sizes
from fastirv2.errors import UsageError

CROPS = (1, 12, 144)
_PLACES = np.array([(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)])  # of a crop in its square, in halves of the room: (y, x)
_VIEWS_OF_A_SQUARE = 2 * (len(_PLACES) + 1)
_SQUARES = 3
_SCALES, _SCALES_CROP = (320, 352, 384, 416), 299


def protocol(crops: int) -> tuple[int, int]:
    """Return how many views of an image are made at once, and in how many passes over the same images.

    Raises:
        UsageError: there is no protocol of that many crops.
    """
    if crops not in CROPS:
        raise UsageError(f"there is no validation with {crops} crops of an image; take 1, 12 or 144")
    return (1, 1) if crops == 1 else (_VIEWS_OF_A_SQUARE, crops // _VIEWS_OF_A_SQUARE)


def scales(crop: int) -> list[int]:
    """Return the shorter sides, in pixels and rising, that 144 crops of `crop` pixels resize an image to.

    They are 320, 352, 384 and 416 for 299, and for another crop in proportion, rounded. (Szegedy 2014 has 256, 288, 320 and
    352 for a crop of 224; the papers on 299 name none.)
    """
    return [round(crop * scale / _SCALES_CROP) for scale in _SCALES]


def twelve_crops(count: int, resize: int, crop: int, sizes: np.ndarray | None = None) -> Windows:
    """Return the 12 views of the square of `resize` pixels that each of `count` images is warped to.

    The views of a square are the `crop`² windows at its corners (top left, top right, bottom left, bottom right) and its
    centre, the whole square, and then the same six mirrored. arXiv 1602.07261 reports errors of 12 crops (table 3) without
    a word on which: these are what each square gives of its 144. The whole square comes straight from the image, sharper
    than if it were resized to its side first.

    Args:
        count: number of images.
        resize: side in pixels that images are warped to, or their shorter side where `sizes` are given.
        crop: side in pixels of the windows, at most `resize`.
        sizes: (count, 2), height and width of each image in pixels, for images that keep their aspect: the views are those
            of their central square.

    Returns:
        windows (count, 12, 2); all of them become `crop`² pixels.
    """
    resized = resized_sizes(count, resize, sizes)
    return _views((resized - resize) // 2, resize, crop, resized)


def pass_of_144_crops(turn: int, crop: int, sizes: np.ndarray) -> Windows:
    """Return the 12 views that one of the 12 passes of the 144-crop protocol takes of each image.

    The shorter side of an image is resized to each of four `scales`; at each the left, central and right square (of a
    portrait image the top, central and bottom one) give 12 views, as `twelve_crops` has them: Szegedy 2014 (arXiv
    1409.4842), section 7; 1512.00567 and 1602.07261 evaluate with its 144 crops. The squares of a square image coincide.

    Args:
        turn: number of the pass, 0 … 11: 3 × scale + square.
        crop: side in pixels of the windows.
        sizes: (B, 2), height and width of each image in pixels, upright.

    Returns:
        windows (B, 12, 2); all of them become `crop`² pixels.
    """
    scale, place = divmod(turn, _SQUARES)
    side = scales(crop)[scale]
    resized = resized_sizes(len(sizes), side, sizes)
    return _views((resized - side) * place // 2, side, crop, resized)


def _views(corner: np.ndarray, side: int, crop: int, resized: np.ndarray) -> Windows:
    """Return the 12 views of a square of `side` pixels of each image.

    Args:
        corner: int64 (B, 2), the square's top left corner in pixels of the resized image, (y, x).
        side: side of the square in pixels of the resized image.
        crop: side in pixels of the windows at its corners and centre.
        resized: int64 (B, 2), height and width of each resized image in pixels.
    """
    inner = np.concatenate([_PLACES * (side - crop) // 2, [[0, 0]]])
    length = np.array([crop] * len(_PLACES) + [side])[:, None]
    start = corner[:, None] + inner
    edges = np.stack([start, start + length], axis=2) / resized[:, None, None]  # (B, 6, start and end, (y, x))
    mirrored = edges.copy()
    mirrored[..., 1] = edges[:, :, ::-1, 1]
    views = np.concatenate([edges, mirrored], axis=1, dtype=np.float32)
    return Windows(*np.ascontiguousarray(np.moveaxis(views, 2, 0)))
