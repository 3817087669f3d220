"""Colours: what is drawn follows its formula, and the graph does what was drawn."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

from fastirv2.data import colour
from fastirv2.pipelines.images import image_pipeline
from tests.conftest import photograph

COUNT = 20_000
GRAY = np.array([0.299, 0.587, 0.114])
PICTURES = [np.asarray(photograph(seed, 40, 40)) for seed in range(12)]


def put_through(colours, *drawn, device_id=None):
    """The graph's output, float64 (B, H, W, 3), for pictures as raw planes that are neither cropped nor resized."""
    planes = [np.ascontiguousarray(picture[:, :, ::-1].transpose(2, 0, 1)) for picture in PICTURES]
    count = len(planes)
    whole = [np.zeros((count, 2), np.float32), np.ones((count, 2), np.float32), np.full((count, 2), 40, np.float32)]
    pipeline = image_pipeline(
        lambda: [planes, *whole, np.arange(count), *drawn],
        batch=count,
        device_id=device_id,
        threads=1,
        prefetch=1,
        form="planes",
        colours=colours,
        interpolation="linear",
        whole=False,
        hw_decoder_load=0.0,
    )
    pipeline.build()
    images, labels = (output.as_cpu() if device_id is not None else output for output in pipeline.run())
    assert np.asarray(labels.as_tensor()).ravel().tolist() == list(range(count))
    return np.asarray(images.as_tensor())


def jittered(picture, weights, order):
    """fb.resnet.torch's three blends, one after the other, on a float picture in 0 … 255."""
    for kind in order:
        gray = picture @ GRAY
        other = [np.zeros_like(picture), np.full_like(picture, gray.mean()), np.repeat(gray[..., None], 3, axis=2)][kind]
        picture = weights[kind] * picture + (1 - weights[kind]) * other
    return picture


def test_the_graph_blends_in_the_order_that_was_drawn():
    random = np.random.default_rng(1)
    orders = np.array([*itertools.permutations(range(3)), *itertools.permutations(range(3))])
    weights = random.uniform(0.6, 1.4, (12, 3))
    offset = random.uniform(-20, 20, (12, 3))
    of_pixel, of_mean = colour.compose(weights, orders)
    images = put_through("jitter", *(array.astype(np.float32) for array in (of_pixel, of_mean, offset)))
    assert images.dtype == np.float16
    for image, picture, weight, order, added in zip(images, PICTURES, weights, orders, offset, strict=True):
        expected = jittered(picture.astype(np.float64), weight, order) + added
        assert np.abs(image.astype(np.float64) - expected).max() < 0.3  # float16's spacing below 512


def test_what_jitter_draws_is_uniform_in_every_order():
    of_pixel, of_mean, _ = colour.jitter(3, np.zeros(COUNT, np.int64), np.arange(COUNT))
    ones = np.ones(3)
    # A gray image keeps its colour: its pixels are multiplied by brightness and contrast, its mean by brightness alone.
    pixel, mean = of_pixel @ ones, of_mean @ ones
    assert np.ptp(pixel, axis=1).max() < 1e-5
    brightness, both = (pixel + mean)[:, 0], pixel[:, 0]
    contrast = both / brightness
    for weights in (brightness, contrast):
        assert np.quantile(weights, np.linspace(0, 1, 11)) == pytest.approx(np.linspace(0.6, 1.4, 11), abs=0.012)
    assert np.corrcoef(brightness, contrast)[0, 1] == pytest.approx(0, abs=0.02)
    saturation = np.array([1.0, 0, -GRAY[0] / GRAY[2]])  # a colour without gray, which only saturation and the others scale
    strength = (of_pixel @ saturation)[:, 0] / both
    assert np.quantile(strength, np.linspace(0, 1, 11)) == pytest.approx(np.linspace(0.6, 1.4, 11), abs=0.012)


def test_lighting_has_the_covariance_of_imagenets_colours():
    _, _, offset = colour.jitter(3, np.zeros(COUNT, np.int64), np.arange(COUNT))
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    expected = vectors @ np.diag((0.1 * np.array([0.2175, 0.0188, 0.0045])) ** 2) @ vectors.T
    assert np.cov(offset.T / 255) == pytest.approx(expected, rel=0.05)
    assert offset.mean(axis=0) == pytest.approx(0, abs=0.15)


def distorted(picture, before, factor, after):
    """TF's adjust_brightness and adjust_saturation on a float picture in 0 … 255, clipped at the end."""
    pixels = (picture + before) / 255
    low, high = pixels.min(), pixels.max()
    assert low >= 0
    assert high <= 1  # where matplotlib's conversion is defined
    hsv = rgb_to_hsv(pixels)
    hsv[..., 1] = np.clip(hsv[..., 1] * factor, 0, 1)
    return np.clip(hsv_to_rgb(hsv) * 255 + after, 0, 255)


def test_the_graph_distorts_as_hsv_does():
    random = np.random.default_rng(2)
    factor = random.uniform(0.5, 1.5, (12, 1)).astype(np.float32)
    room = np.array([[255 - picture.max() if i % 2 else -picture.min()] for i, picture in enumerate(PICTURES)], np.float32)
    before = room * (np.arange(12)[:, None] % 3 == 0)
    after = np.where(before == 0, random.uniform(-32, 32, (12, 1)), 0).astype(np.float32)
    images = put_through("distortion", before, factor, after)
    assert images.dtype == np.uint8
    for image, picture, *drawn in zip(images, PICTURES, before, factor, after, strict=True):
        assert np.abs(image - distorted(picture.astype(np.float64), *drawn)).max() <= 0.51


def test_gray_and_black_pixels_are_distorted_without_a_division_by_zero(monkeypatch):
    flat = [np.full((40, 40, 3), value, np.uint8) for value in (0, 1, 128, 255)]
    monkeypatch.setattr(f"{__name__}.PICTURES", flat)
    before, factor, after = (np.array(column, np.float32)[:, None] for column in ([-5] * 4, [1.5] * 4, [0] * 4))
    images = put_through("distortion", before, factor, after)
    assert [np.unique(image).tolist() for image in images] == [[0], [0], [123], [250]]


def test_what_distortion_draws_is_uniform_and_has_brightness_first_in_a_quarter():
    before, factor, after = colour.distortion(3, np.zeros(COUNT, np.int64), np.arange(COUNT))
    assert np.quantile(factor, np.linspace(0, 1, 11)) == pytest.approx(np.linspace(0.5, 1.5, 11), abs=0.015)
    assert ((before == 0) ^ (after == 0)).all()
    assert (before != 0).mean() == pytest.approx(0.25, abs=0.015)
    assert np.quantile(before + after, np.linspace(0, 1, 11)) == pytest.approx(np.linspace(-32, 32, 11), abs=1)


@pytest.mark.parametrize("draw", [colour.jitter, colour.distortion])
def test_a_sample_draws_the_same_in_whatever_batch_it_is(draw):
    records, epochs = np.array([5, 900, 31, 5]), np.array([0, 0, 1, 2])
    together = draw(3, epochs, records)
    for i in range(4):
        alone = draw(3, epochs[i : i + 1], records[i : i + 1])
        assert all(np.array_equal(a[0], t[i]) for a, t in zip(alone, together, strict=True))
    assert len({part.tobytes() for part in together[0]}) == 4 or draw is colour.distortion


@pytest.mark.gpu
def test_a_gpu_gives_the_colours_of_the_cpu():
    numbers = np.arange(12)
    for colours, draw in (("jitter", colour.jitter), ("distortion", colour.distortion)):
        drawn = draw(3, numbers * 0, numbers)
        difference = put_through(colours, *drawn).astype(float) - put_through(colours, *drawn, device_id=0)
        assert np.abs(difference).max() <= 1
