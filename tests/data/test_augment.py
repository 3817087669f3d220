"""What is random about a sample: uniform windows and mirrors that depend on seed, epoch and record alone."""

import numpy as np
import pytest

from fastirv2.data.augment import centre_crops, random_crops


def corners(windows, resize):
    left = np.minimum(windows.start[:, 1], windows.end[:, 1])
    return np.stack([windows.start[:, 0], left], axis=1) * resize


def test_windows_are_uniform_over_all_places_and_mirrored_half_of_the_time():
    records = np.arange(90_000)
    windows = random_crops(7, np.zeros_like(records), records, 328, 299)
    places = corners(windows, 328)
    assert np.abs(places - places.round()).max() < 1e-3
    for axis in (0, 1):
        counts = np.bincount(places[:, axis].round().astype(int))
        assert len(counts) == 30
        assert counts == pytest.approx(np.full(30, 3000), rel=0.1)
    assert np.corrcoef(places.T)[0, 1] == pytest.approx(0, abs=0.02)
    mirrored = windows.end[:, 1] < windows.start[:, 1]
    assert mirrored.mean() == pytest.approx(0.5, abs=0.01)
    assert np.corrcoef(mirrored, places[:, 1])[0, 1] == pytest.approx(0, abs=0.02)


def test_every_window_is_the_crop_and_lies_within_the_image():
    windows = random_crops(1, np.arange(1000) % 5, np.arange(1000), 123, 112)
    size = np.abs(windows.end - windows.start) * 123
    assert size == pytest.approx(112, abs=1e-3)
    both = np.concatenate([windows.start, windows.end])
    assert both.min() >= 0
    assert both.max() <= 1
    assert (windows.start.dtype, windows.start.shape) == (np.float32, (1000, 2))


def test_a_sample_draws_the_same_in_whatever_batch_it_is():
    records = np.array([5, 900, 31, 5])
    epochs = np.array([0, 0, 1, 2])
    together = random_crops(3, epochs, records, 328, 299)
    for i in range(4):
        alone = random_crops(3, epochs[i : i + 1], records[i : i + 1], 328, 299)
        assert np.array_equal(alone.start[0], together.start[i])
        assert np.array_equal(alone.end[0], together.end[i])


def test_epoch_record_and_seed_all_change_the_window():
    records = np.arange(500)
    base = random_crops(0, records * 0, records, 328, 299).start
    for seed, epoch in ((1, 0), (0, 1)):
        other = random_crops(seed, records * 0 + epoch, records, 328, 299).start
        assert (other == base).all(1).mean() < 0.05
    assert len(np.unique(base, axis=0)) > 350


def test_no_room_means_the_whole_image():
    windows = random_crops(0, np.zeros(64, int), np.arange(64), 299, 299)
    assert np.array_equal(np.minimum(windows.start, windows.end), np.zeros((64, 2), np.float32))
    assert np.array_equal(np.maximum(windows.start, windows.end), np.ones((64, 2), np.float32))


def test_the_centre_crop_of_328_begins_at_pixel_14():
    windows = centre_crops(2, 328, 299)
    assert windows.start * 328 == pytest.approx(14)
    assert windows.end * 328 == pytest.approx(313)
