"""12 and 144 views of an image: the protocols' windows, Pillow's pixels, each record once, from every form of data."""

import io
import os
from dataclasses import replace

import lmdb
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fastirv2.data.augment import centre_crops, resized_sizes
from fastirv2.data.datum import Datum
from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, ValidationOrder, check_input, needs_sizes
from fastirv2.data.views import pass_of_144_crops, protocol, scales, twelve_crops
from fastirv2.errors import UsageError
from tests.conftest import build, photograph

SIZE = InputConfig(resize=88, crop=80, threads=2, hw_decoder_load=0.0)
SHORT = replace(SIZE, resize_mode="short")
SCALES = (86, 94, 103, 111)  # 320, 352, 384 and 416 times 80 / 299
PICTURES = [(140, 90), (61, 170), (96, 96), (131, 97), (50, 40), (200, 99), (120, 84)]  # width, height
LYING = Image.Exif()
LYING[0x0112] = 6  # the last picture is stored lying on its side
BILINEAR = Image.Resampling.BILINEAR


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Class folders of one JPEG each, so that a label names a picture; the last one is turned by its EXIF block."""
    folder = tmp_path_factory.mktemp("views") / "images"
    for label, size in enumerate(PICTURES):
        (folder / f"class{label}").mkdir(parents=True)
        turned = {"exif": LYING} if label == len(PICTURES) - 1 else {}
        photograph(label, *size).save(folder / f"class{label}/0.jpg", quality=95, **turned)
    return folder


def upright(folder, label):
    return ImageOps.exif_transpose(Image.open(folder / f"class{label}/0.jpg")).convert("RGB")


def loading(path, crops, *, config=SIZE, batch=7, world=1, rank=0, device="cpu"):
    """A loader over one rank's share of `path`, and its order."""
    records = open_records(path)
    order = ValidationOrder(records, config, batch=batch, world=world, rank=rank, crops=crops)
    return Loader(records, order, config, batch=batch, device=torch.device(device), cpus=2), order


def validate(path, crops, **options):
    """One validation: (images (batch, crops, 80, 80, 3), labels, valid) of each batch of records."""
    loader, order = loading(path, crops, **options)
    batches = []
    for _ in range(order.steps):
        passes = [next(loader) for _ in range(order.passes)]
        views = [images.clone().unflatten(0, (-1, order.views)) for images, _, _ in passes]
        assert len({(tuple(labels.tolist()), valid) for _, labels, valid in passes}) == 1
        batches.append((torch.cat(views, 1).permute(0, 1, 3, 4, 2).cpu().numpy(), passes[0].labels.tolist(), passes[0].valid))
    loader.close()
    return batches


def by_label(path, crops, **options):
    """The views of each record, in the order of the labels, which are the records' own."""
    ((images, labels, valid),) = validate(path, crops, **options)
    assert sorted(labels) == list(range(valid)) == list(range(len(PICTURES)))
    return images[np.argsort(labels)]


def squares(image, crops, config=SIZE):
    """Yield (width and height that the image is resized to, left, top, side) of each square of a protocol."""
    if crops == 12 and config.resize_mode == "warp":
        yield (88, 88), 0, 0, 88
        return
    for side in SCALES if crops == 144 else [88]:
        width, height = (length * side // min(image.size) for length in image.size)
        for place in (0, 1, 2) if crops == 144 else [1]:
            yield (width, height), (width - side) * place // 2, (height - side) * place // 2, side


def pillow_views(image, crops, config=SIZE):
    """The views as the protocols tell them, one step after the other: uint8 (crops, 80, 80, 3)."""
    views = []
    for size, left, top, side in squares(image, crops, config):
        square = image.resize(size, BILINEAR).crop((left, top, left + side, top + side))
        room = side - 80
        places = [(0, 0), (room, 0), (0, room), (room, room), (room // 2, room // 2)]
        six = [square.crop((x, y, x + 80, y + 80)) for x, y in places] + [square.resize((80, 80), BILINEAR)]
        views += six + [ImageOps.mirror(view) for view in six]
    return np.stack([np.asarray(view) for view in views])


def differences(images, others):
    """Of each pair of views, the mean and the largest difference of a colour, in 1/255."""
    difference = np.abs(images.astype(int) - others)
    return difference.mean(axis=(-3, -2, -1)), difference.max(axis=(-3, -2, -1))


def of_windows(values):
    """Divide the values of all views into those of windows of the crop's size and those of whole squares."""
    values = values.reshape(-1, 6)
    return values[:, :5], values[:, 5]


@pytest.mark.parametrize(("crops", "config"), [(12, SIZE), (12, SHORT), (144, SIZE)], ids=["12", "12 short", "144"])
def test_views_are_pillows_resize_crop_and_mirror(folder, crops, config):
    """A window differs by what rounding costs; the whole square, which Pillow resizes twice here, by a little more."""
    images = by_label(folder, crops, config=config)
    assert images.shape == (7, crops, 80, 80, 3)
    for label, views in enumerate(images):
        mean, largest = differences(views, pillow_views(upright(folder, label), crops, config))
        assert of_windows(mean)[0].max() < 0.25
        assert of_windows(largest)[0].max() <= 1
        assert of_windows(mean)[1].max() < 0.65
        assert of_windows(largest)[1].max() <= 4


@pytest.mark.parametrize("crops", [12, 144])
def test_the_whole_square_is_resized_once_from_the_image(folder, crops):
    for label, views in enumerate(by_label(folder, crops)):
        image = upright(folder, label)
        for (size, left, top, side), twelve in zip(squares(image, crops), np.split(views, crops // 12), strict=True):
            x, y = (length / resized for length, resized in zip(image.size, size, strict=True))
            box = (left * x, top * y, (left + side) * x, (top + side) * y)
            square = np.asarray(image.resize((80, 80), BILINEAR, box=box))
            mean, largest = differences(twelve[[5, 11]], np.stack([square, square[:, ::-1]]))
            assert mean.max() < 0.25
            assert largest.max() <= 1


def pixels(windows, *resized):
    """Top, left, bottom, right of the views of the first image in pixels of the resized one, and which are mirrored."""
    start, end = windows.start[0] * np.array(resized), windows.end[0] * np.array(resized)
    edges = np.concatenate([np.minimum(start, end), np.maximum(start, end)], axis=1)
    assert np.abs(edges - edges.round()).max() < 1e-3
    return edges.round().astype(int).tolist(), (end[:, 1] < start[:, 1]).tolist()


def test_the_twelve_windows_of_328_pixels():
    six = [[0, 0, 299, 299], [0, 29, 299, 328], [29, 0, 328, 299], [29, 29, 328, 328], [14, 14, 313, 313], [0, 0, 328, 328]]
    windows = twelve_crops(3, 328, 299)
    assert pixels(windows, 328, 328) == (six * 2, [False] * 6 + [True] * 6)
    assert (windows.start.shape, windows.end.shape, windows.start.dtype) == ((3, 12, 2), (3, 12, 2), np.float32)
    assert all(np.array_equal(edges[0], edges[i]) for edges in (windows.start, windows.end) for i in (1, 2))
    short = twelve_crops(1, 328, 299, np.array([(500, 250)], np.uint16))
    assert pixels(short, 656, 328)[0] == [[y + 164, x, bottom + 164, right] for y, x, bottom, right in six * 2]


SIX_OF_320 = [[0, 0, 299, 299], [0, 21, 299, 320], [21, 0, 320, 299], [21, 21, 320, 320], [10, 10, 309, 309], [0, 0, 320, 320]]
SIX_OF_416 = [
    [0, 0, 299, 299],
    [0, 117, 299, 416],
    [117, 0, 416, 299],
    [117, 117, 416, 416],
    [58, 58, 357, 357],
    [0, 0, 416, 416],
]


@pytest.mark.parametrize(
    ("size", "turn", "resized", "square", "six"),
    [
        ((250, 500), 0, (320, 640), (0, 0), SIX_OF_320),
        ((250, 500), 1, (320, 640), (0, 160), SIX_OF_320),
        ((250, 500), 2, (320, 640), (0, 320), SIX_OF_320),
        ((375, 500), 11, (416, 554), (0, 138), SIX_OF_416),
        ((500, 375), 10, (554, 416), (69, 0), SIX_OF_416),
        ((500, 333), 2, (480, 320), (160, 0), SIX_OF_320),
        ((60, 60), 0, (320, 320), (0, 0), SIX_OF_320),
        ((60, 60), 11, (416, 416), (0, 0), SIX_OF_416),
    ],
)
def test_the_windows_of_a_pass_of_144(size, turn, resized, square, six):
    views = pass_of_144_crops(turn, 299, np.array([size, (7, 7)], np.uint16))
    edges, mirrored = pixels(views, *resized)
    assert edges == [[y + square[0], x + square[1], bottom + square[0], right + square[1]] for y, x, bottom, right in six * 2]
    assert mirrored == [False] * 6 + [True] * 6


def test_scales_are_those_of_299_in_proportion():
    assert scales(299) == [320, 352, 384, 416]
    assert scales(80) == list(SCALES)
    assert scales(1) == [1, 1, 1, 1]


SIDES = st.integers(1, 8192)  # beyond, float32 shares cannot tell a single pixel from none


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=5), st.integers(1, 600), st.integers(0, 600), st.integers(0, 11))
def test_every_view_lies_within_its_image_and_is_its_own_affair(sizes, crop, room, turn):
    sizes = np.array(sizes, np.uint16)
    for draw in (
        lambda sizes: twelve_crops(len(sizes), crop + room, crop),
        lambda sizes: twelve_crops(len(sizes), crop + room, crop, sizes),
        lambda sizes: pass_of_144_crops(turn, crop, sizes),
    ):
        views = draw(sizes)
        for edges in (views.start, views.end):
            assert edges.shape == (len(sizes), 12, 2)
            assert 0 <= edges.min() <= edges.max() <= 1
        assert (views.start[:, :6] < views.end[:, :6]).all()
        assert np.array_equal(views.start[:, :6, 0], views.start[:, 6:, 0])
        assert np.array_equal(views.start[:, :6, 1], views.end[:, 6:, 1])
        for i in range(len(sizes)):
            assert np.array_equal(draw(sizes[i : i + 1]).start[0], views.start[i])


@given(st.integers(1, 600), st.integers(0, 600))
def test_the_fifth_of_twelve_views_is_the_window_of_one(crop, room):
    twelve, one = twelve_crops(2, crop + room, crop), centre_crops(2, crop + room, crop)
    assert np.array_equal(twelve.start[:, 4], one.start)
    assert np.array_equal(twelve.end[:, 4], one.end)


@given(SIDES, SIDES, st.integers(1, 600), st.integers(0, 3))
def test_the_three_squares_begin_and_end_with_the_image(height, width, crop, scale):
    size = np.array([(height, width)], np.uint16)
    first, _, last = (pass_of_144_crops(3 * scale + place, crop, size) for place in range(3))
    assert first.start[0, 5].tolist() == [0, 0]
    assert last.end[0, 5].tolist() == [1, 1]
    side = (first.end - first.start)[0, 5] * resized_sizes(1, scales(crop)[scale], size)[0]
    assert side == pytest.approx(scales(crop)[scale], rel=1e-5)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 3), st.sampled_from([1, 12, 144]))
def test_all_ranks_together_take_every_record_once_a_pass(lmdb_folder, batch, world, crops):
    records = open_records(lmdb_folder)
    taken = []
    for rank in range(world):
        order = ValidationOrder(records, SIZE, batch=batch, world=world, rank=rank, crops=crops)
        assert order.views * order.passes == crops
        for _ in range(order.steps):
            fed = [order() for _ in range(order.passes)]
            assert all(np.array_equal(one.numbers, fed[0].numbers) and one.valid == fed[0].valid for one in fed)
            assert {one.windows.start.shape for one in fed} == {(batch, 12, 2) if crops > 1 else (batch, 2)}
            if crops == 144:
                sizes = records.sizes[fed[0].numbers]
                expected = [pass_of_144_crops(turn, 80, sizes) for turn in range(12)]
                assert all(np.array_equal(one.windows.end, other.end) for one, other in zip(fed, expected, strict=True))
            taken += fed[0].numbers[: fed[0].valid].tolist()
        assert np.array_equal(order().numbers, ValidationOrder(records, SIZE, batch=batch, world=world, rank=rank)().numbers)
    assert sorted(taken) == list(range(23))


@pytest.mark.parametrize("crops", [12, 144])
def test_two_ranks_make_the_views_of_one_and_the_last_batch_is_padded(folder, crops):
    ((whole, labels, _),) = validate(folder, crops)
    ranks = [validate(folder, crops, batch=2, world=2, rank=rank) for rank in (0, 1)]
    batches = [ranks[rank][step] for step in (0, 1) for rank in (0, 1)]
    assert [valid for _, _, valid in batches] == [2, 2, 2, 1]
    assert [label for _, labels, _ in batches for label in labels] == [*labels, labels[-1]]
    assert np.array_equal(np.concatenate([images for images, _, _ in batches]), np.concatenate([whole, whole[-1:]]))


@pytest.fixture(scope="module")
def forms(folder, tmp_path_factory):
    """The same images as a list, raw planes, an LMDB, and one of two parts."""
    out = tmp_path_factory.mktemp("forms")
    (out / "list.txt").write_text("".join(f"{folder}/class{label}/0.jpg {label}\n" for label in range(len(PICTURES))))
    with lmdb.open(os.fspath(out / "raw"), map_size=1 << 26) as environment, environment.begin(write=True) as transaction:
        for label in range(len(PICTURES)):
            planes = np.asarray(upright(folder, label))[:, :, ::-1].transpose(2, 0, 1)
            shape = dict(zip(("channels", "height", "width"), planes.shape, strict=True))
            datum = Datum(**shape, data=planes.tobytes(), label=label, encoded=False)
            transaction.put(b"%08d" % label, datum.SerializeToString())
    parts = ",".join(str(build(folder, out / f"part{part}", "--part", f"{part}/2")) for part in (1, 2))
    return {"list": out / "list.txt", "planes": out / "raw", "lmdb": build(folder, out / "lmdb"), "parts": parts}


@pytest.mark.parametrize("crops", [12, 144])
def test_every_form_of_data_gives_the_same_views(folder, forms, crops):
    files, *others, stored, joined = (by_label(path, crops) for path in (folder, *forms.values()))
    assert open_records(forms["planes"]).form == "planes"
    assert all(np.array_equal(other, files) for other in others)
    assert np.array_equal(stored[:-1], files[:-1])
    assert differences(stored[-1], files[-1])[0].max() < 2  # the builder sets it upright and encodes it anew
    assert np.array_equal(joined, stored)


@pytest.fixture(scope="module")
def warped(folder, tmp_path_factory):
    return build(folder, tmp_path_factory.mktemp("warped") / "lmdb", "--resize", "88x88")


def test_records_stored_at_the_size_that_they_are_warped_to_give_the_right_views(warped):
    """The graph that cuts such records instead of resizing them is for one window of an image."""
    loader, order = loading(warped, 12)
    assert (loader._whole, order.cuts) == (False, set())
    loader.close()
    loader, _ = loading(warped, 1)
    assert loader._whole
    loader.close()
    stored = {label: bytes(data) for data, label in map(open_records(warped).__getitem__, range(len(PICTURES)))}
    for crops in (12, 144):
        for label, views in enumerate(by_label(warped, crops)):
            expected = pillow_views(Image.open(io.BytesIO(stored[label])).convert("RGB"), crops)
            mean, largest = differences(views, expected)
            assert of_windows(largest)[0].max() <= (0 if crops == 12 else 1)
            assert of_windows(mean)[1].max() < 0.65


def test_sizes_of_images_are_needed_for_144_crops_and_where_the_aspect_is_kept():
    assert [needs_sizes(SIZE, training=False, crops=crops) for crops in (1, 12, 144)] == [False, False, True]
    assert [needs_sizes(SHORT, training=False, crops=crops) for crops in (1, 12, 144)] == [True, True, True]


def test_what_144_crops_lose_of_warped_and_of_small_records_is_said(folder, warped, tmp_path):
    short = build(folder, tmp_path / "short", "--resize", "short:100")

    def said(path, crops):
        return check_input(open_records(path), SIZE, training=False, crops=crops)

    assert [said(path, crops) for path in (warped, short, folder) for crops in (1, 12)] == [[]] * 6
    assert said(folder, 144) == []
    (enlarged,) = said(short, 144)
    assert enlarged.endswith("its images are enlarged to 111 pixels; build it with at least 111, or take 12 crops")
    squares, enlarged = said(warped, 144)
    assert "the three squares that 144 crops take at each scale are one; build it with --resize none or short:N" in squares
    assert "enlarged to 111 pixels" in enlarged


@pytest.mark.parametrize("crops", [0, -1, 2, 10, 13, 143, 288])
def test_another_number_of_crops_is_refused(lmdb_folder, crops):
    with pytest.raises(UsageError, match=rf"no validation with {crops} crops of an image; take 1, 12 or 144"):
        ValidationOrder(open_records(lmdb_folder), SIZE, batch=8, world=1, rank=0, crops=crops)


def test_a_protocol_is_its_views_times_its_passes():
    assert [protocol(crops) for crops in (1, 12, 144)] == [(1, 1), (12, 1), (12, 12)]


@pytest.mark.gpu
@pytest.mark.parametrize("crops", [12, 144])
def test_a_gpu_gives_the_views_of_the_cpu(folder, crops):
    mean, largest = differences(by_label(folder, crops, device="cuda:0"), by_label(folder, crops))
    assert mean.max() < 1
    assert largest.max() <= 8
