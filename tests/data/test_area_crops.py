"""Area crops: the distribution of the formula that they follow, inside of the image, for each sample alone."""

import math

import numpy as np
import pytest

from fastirv2.data.augment import area_crops, centre_crops, distorted_crops, random_crops

COUNT = 20_000


def drawn(draw, size, count=COUNT, seed=3):
    """Top, left, height, width in pixels, and whether mirrored, of `count` samples of images of one size."""
    sizes = np.full((count, 2), size, np.uint16)
    windows = draw(seed, np.zeros(count, np.int64), np.arange(count), sizes)
    left, right = np.sort([windows.start[:, 1], windows.end[:, 1]], axis=0) * size[1]
    top, bottom = windows.start[:, 0] * size[0], windows.end[:, 0] * size[0]
    return np.stack([top, left, bottom - top, right - left], axis=1), windows.end[:, 1] < windows.start[:, 1]


def resnet(random, height, width):
    """torch7's RandomSizedCrop, as fb.resnet.torch writes it, for one sample."""
    for _ in range(10):
        area = random.uniform(0.08, 1) * height * width
        aspect = random.uniform(3 / 4, 4 / 3)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if random.uniform() < 0.5:
            w, h = h, w
        if h <= height and w <= width:
            return random.integers(0, height - h + 1), random.integers(0, width - w + 1), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def inception(random, height, width):
    """TensorFlow's sample_distorted_bounding_box with TF-slim's limits and the whole image for a box, for one sample."""
    for _ in range(100):
        aspect = random.uniform(0.75, 1.33)
        lowest, highest = (round(math.sqrt(share * height * width / aspect)) for share in (0.05, 1))
        while round(highest * aspect) > width or highest > height:
            highest -= 1
        h = random.integers(min(lowest, highest), highest + 1)
        w = round(h * aspect)
        if 0.1 * height * width <= h * w <= height * width:
            return random.integers(0, max(height - h, 1)), random.integers(0, max(width - w, 1)), h, w
    return 0, 0, height, width


LAWS = {"resnet": (area_crops, resnet), "inception": (distorted_crops, inception)}


@pytest.mark.parametrize("size", [(375, 500), (333, 500), (120, 400)])
@pytest.mark.parametrize(("draw", "law"), LAWS.values(), ids=LAWS)
def test_windows_follow_the_formula(size, draw, law):
    windows, mirrored = drawn(draw, size)
    random = np.random.default_rng(0)
    expected = np.array([law(random, *size) for _ in range(COUNT)], float)
    assert mirrored.mean() == pytest.approx(0.5, abs=0.015)
    for ours, theirs in zip(measures(windows, size), measures(expected, size), strict=True):
        quantiles = np.linspace(0.05, 0.95, 19)
        assert np.quantile(ours, quantiles) == pytest.approx(np.quantile(theirs, quantiles), abs=0.03)


def measures(windows, size):
    """Share of the area, logarithm of the aspect, and where the window lies in the room that it has."""
    top, left, height, width = windows.T
    yield height * width / (size[0] * size[1])
    yield np.log(width / height)
    yield top / np.maximum(size[0] - height, 1)
    yield left / np.maximum(size[1] - width, 1)


@pytest.mark.parametrize("draw", [area_crops, distorted_crops])
def test_windows_lie_on_whole_pixels_inside_of_the_image(draw):
    for size in ((375, 500), (500, 333), (3, 4), (1, 1), (1, 4000)):
        windows, _ = drawn(draw, size, 3000)
        assert np.abs(windows - windows.round()).max() < 1e-3
        assert windows[:, :2].min() >= -1e-3
        assert windows[:, 2:].min() >= 1 - 1e-3
        assert (windows[:, :2] + windows[:, 2:] <= np.array(size) + 1e-3).all()


def test_where_nothing_fits_it_is_the_central_square_or_the_whole_image():
    central, _ = drawn(area_crops, (20, 2000), 500)
    found = central[:, 2] != 20
    assert not found.all()
    assert central[~found] == pytest.approx(np.tile([0.0, 990.0, 20.0, 20.0], ((~found).sum(), 1)), abs=1e-3)
    whole, _ = drawn(distorted_crops, (20, 2000), 500)
    assert whole == pytest.approx(np.tile([0.0, 0.0, 20.0, 2000.0], (500, 1)), abs=1e-3)


def test_tf_slims_windows_cover_a_tenth_of_the_image():
    windows, _ = drawn(distorted_crops, (375, 500))
    share = windows[:, 2] * windows[:, 3] / (375 * 500)
    assert share.min() >= 0.1 - 1e-6
    assert share.max() > 0.9


@pytest.mark.parametrize("draw", [area_crops, distorted_crops])
def test_a_sample_draws_the_same_in_whatever_batch_it_is(draw):
    records, epochs = np.array([5, 900, 31, 5]), np.array([0, 0, 1, 2])
    sizes = np.array([[375, 500], [500, 375], [100, 90], [375, 500]], np.uint16)
    together = draw(3, epochs, records, sizes)
    for i in range(4):
        alone = draw(3, epochs[i : i + 1], records[i : i + 1], sizes[i : i + 1])
        assert np.array_equal(alone.start[0], together.start[i])
        assert np.array_equal(alone.end[0], together.end[i])
    assert len(np.unique(together.start, axis=0)) == 4


def test_random_crops_of_images_that_keep_their_aspect_are_uniform_over_all_places():
    sizes = np.tile(np.array([[164, 328]], np.uint16), (COUNT, 1))
    records = np.arange(COUNT)
    windows = random_crops(7, records * 0, records, 328, 299, sizes)
    left = np.minimum(windows.start[:, 1], windows.end[:, 1]) * 656
    assert (windows.end[:, 0] - windows.start[:, 0]) * 328 == pytest.approx(299, abs=1e-3)
    assert np.abs(windows.end[:, 1] - windows.start[:, 1]) * 656 == pytest.approx(299, abs=1e-3)
    assert np.bincount((windows.start[:, 0] * 328).round().astype(int)) == pytest.approx(np.full(30, COUNT / 30), rel=0.2)
    assert (left.min(), left.max()) == pytest.approx((0, 656 - 299), abs=0.01)
    assert left.mean() == pytest.approx((656 - 299) / 2, rel=0.02)


def test_the_centre_crop_of_a_wide_image_lies_in_its_middle():
    windows = centre_crops(2, 328, 299, np.array([[375, 500], [500, 375]], np.uint16))
    wide = 500 * 328 // 375
    assert windows.start[0] * (328, wide) == pytest.approx((14, (wide - 299) // 2), abs=1e-3)
    assert windows.end[1] * (wide, 328) == pytest.approx(((wide - 299) // 2 + 299, 313), abs=1e-3)


def test_most_strips_have_a_window_after_a_hundred_tries():
    windows = distorted_crops(0, np.zeros(500, np.int64), np.arange(500), np.tile([[60, 600]], (500, 1)))
    assert not (np.abs(windows.end - windows.start) == 1).all(1).any()
