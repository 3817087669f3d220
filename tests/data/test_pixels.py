"""What the graph makes of pixels: decoding and cutting are Pillow's to the bit, resizing is to within what rounding costs."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastirv2.pipelines.images import image_pipeline
from tests.conftest import photograph

SAMPLINGS = ["444", "422", "420", "440", "gray"]
FEW = settings(max_examples=20, deadline=None)


def eight_sizes(smallest):
    """Heights and widths of a batch, even and odd."""
    return st.lists(st.tuples(st.integers(smallest, 70), st.integers(smallest, 70)), min_size=8, max_size=8)


def through_graph(encoded, *windows, whole, interpolation="linear"):
    """The graph's images of a batch, on the CPU."""
    arrays = [np.frombuffer(data, np.uint8) for data in encoded]
    pipeline = image_pipeline(
        lambda: [arrays, *windows, np.zeros(len(arrays), np.int64)],
        batch=len(arrays),
        device_id=None,
        threads=2,
        prefetch=1,
        form="encoded",
        colours="none",
        interpolation=interpolation,
        whole=whole,
        hw_decoder_load=0.0,
    )
    pipeline.build()
    images, _ = pipeline.run()
    return [np.asarray(images[i]) for i in range(len(arrays))]


def resized(encoded, sizes, start=0.0, end=1.0, **options):
    """The windows from `start` to `end`, as shares of each image, resized to `sizes`."""
    shape = (len(encoded), 2)
    shares = [np.broadcast_to(np.asarray(edge, np.float32), shape).copy() for edge in (start, end)]
    return through_graph(encoded, *shares, np.broadcast_to(np.float32(sizes), shape).copy(), whole=False, **options)


def noise(seed, height, width):
    """Half noise and half a photograph: every frequency that a filter may treat wrongly."""
    random = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return ((random + np.asarray(photograph(seed, width, height), int)) // 2).astype(np.uint8)


def jpeg(pixels, sampling="444", quality=90):
    """A baseline JPEG with this subsampling of its colours, or of one component."""
    if sampling == "gray":
        return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels[:, :, :1]), quality, "GRAY", "gray")
    return simplejpeg.encode_jpeg(pixels, quality, "RGB", sampling)


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def difference(image, other):
    return np.abs(image.astype(int) - other)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@FEW
@given(eight_sizes(1), st.integers(0, 1000), st.integers(30, 100))
def test_a_jpeg_is_decoded_as_pillow_does_bit_for_bit(sampling, sizes, seed, quality):
    encoded = [jpeg(noise(seed, *size), sampling, quality) for size in sizes]
    for image, data in zip(resized(encoded, sizes), encoded, strict=True):
        assert np.array_equal(image, pillow(data))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@FEW
@given(eight_sizes(2), st.integers(0, 1000), st.data())
def test_a_window_that_is_cut_is_pillows_bit_for_bit(sampling, sizes, seed, data):
    """Only the window is decoded, and its edges may lie inside of a block or of a pair of pixels that share their colour.

    Windows of 4:2:0 that are a single pixel wide are the one exception known: some of them differ.
    """
    encoded = [jpeg(noise(seed, *size), sampling) for size in sizes]
    corner = np.array([[data.draw(st.integers(0, side - 2)) for side in size] for size in sizes], np.int32)
    shape = np.array([[data.draw(st.integers(2, side)) for side in size] for size in np.array(sizes) - corner], np.int32)
    mirrored = np.arange(8, dtype=np.int32) % 2
    images = through_graph(encoded, corner, shape, mirrored, whole=True)
    for i, image in enumerate(images):
        (top, left), (height, width) = corner[i], shape[i]
        window = pillow(encoded[i])[top : top + height, left : left + width]
        assert np.array_equal(image, window[:, ::-1] if mirrored[i] else window)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@FEW
@given(
    st.tuples(st.integers(20, 200), st.integers(20, 200)),
    st.tuples(st.integers(20, 120), st.integers(20, 120)),
    st.integers(0, 1000),
    st.data(),
)
def test_resizing_a_window_is_resizing_and_then_cropping(interpolation, size, whole, seed, data):
    encoded = [jpeg(noise(seed, *size))]
    crop = data.draw(st.integers(1, min(whole)))
    top, left = (data.draw(st.integers(0, side - crop)) for side in whole)
    (expected,) = resized(encoded, whole, interpolation=interpolation)
    start, end = np.divide([top, left], whole), np.divide([top + crop, left + crop], whole)
    (image,) = resized(encoded, (crop, crop), start, end, interpolation=interpolation)
    assert difference(image, expected[top : top + crop, left : left + crop]).max() <= 1


@pytest.mark.parametrize(
    ("interpolation", "filter"), [("linear", Image.Resampling.BILINEAR), ("cubic", Image.Resampling.BICUBIC)]
)
@FEW
@given(
    st.tuples(st.integers(40, 300), st.integers(40, 300)),
    st.tuples(st.integers(40, 120), st.integers(40, 120)),
    st.integers(0, 99),
)
def test_resizing_is_pillows_antialiased_filter(interpolation, filter, size, to, seed):
    data = jpeg(np.asarray(photograph(seed, *size[::-1])), quality=95)
    (image,) = resized([data], to, interpolation=interpolation)
    expected = np.asarray(Image.open(io.BytesIO(data)).resize(to[::-1], filter))
    assert difference(image, expected).mean() < 0.25
    assert difference(image, expected).max() <= 1
