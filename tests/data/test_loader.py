"""From records to tensors: the right pixels and labels, in order, without copies, the same for every form of data."""

import io
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from fastirv2.data import sampler
from fastirv2.data.augment import random_crops
from fastirv2.data.loader import Loader, _HostClock, _in_pixels
from fastirv2.data.records import open_records
from fastirv2.data.samples import Fed, InputConfig, TrainOrder, ValidationOrder
from fastirv2.errors import UsageError
from tests.conftest import build

SIZE = InputConfig(resize=88, crop=80, threads=2, hw_decoder_load=0.0)
CPU = torch.device("cpu")


def training(config=SIZE, *, world=1, rank=0, step=0, parts=1, global_batch=8):
    """What makes the order of some records."""
    where = {"global_batch": global_batch, "world": world, "rank": rank}
    return lambda records: TrainOrder(records, config, seed=5, parts=parts, step=step, **where)


def validation(config=SIZE, *, batch=8):
    return lambda records: ValidationOrder(records, config, batch=batch, world=1, rank=0)


def loading(path, order, batch=8, device=CPU, config=SIZE):
    records = open_records(path)
    return Loader(records, order(records), config, batch=batch, device=device, cpus=2)


def take(path, order, batches, batch=8, device=CPU, config=SIZE):
    loader = loading(path, order, batch, device, config)
    got = [(images.clone(), labels.clone(), valid) for images, labels, valid in (next(loader) for _ in range(batches))]
    loader.close()
    return got


def expected(record, corner, mirrored):
    """Warp to 88² and crop with Pillow, whose antialiased bilinear filter is DALI's."""
    image = Image.open(io.BytesIO(record)).convert("RGB").resize((88, 88), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)[corner[0] : corner[0] + 80, corner[1] : corner[1] + 80]
    return pixels[:, ::-1] if mirrored else pixels


def test_training_images_are_the_warped_cropped_and_mirrored_records(lmdb_folder):
    records = open_records(lmdb_folder)
    for step, (images, labels, valid) in enumerate(take(lmdb_folder, training(), 6)):
        numbers = sampler.batch(5, step, 23, 8, 1, 0)
        windows = random_crops(5, np.arange(step * 8, step * 8 + 8) // 23, numbers, 88, 80)
        assert labels.tolist() == records.labels[numbers].tolist()
        assert valid == 8
        for i, number in enumerate(numbers):
            mirrored = windows.end[i, 1] < windows.start[i, 1]
            corner = (windows.start[i, 0] * 88, (windows.end if mirrored else windows.start)[i, 1] * 88)
            want = expected(records[number][0], [round(float(c)) for c in corner], mirrored)
            difference = np.abs(images[i].permute(1, 2, 0).numpy().astype(int) - want)
            assert difference.mean() < 0.6
            assert difference.max() <= 4


def test_batches_are_channels_last_uint8_that_torch_did_not_copy(lmdb_folder):
    loader = loading(lmdb_folder, training(), device=CPU)
    images, labels, _ = next(loader)
    assert (images.dtype, images.shape) == (torch.uint8, (8, 3, 80, 80))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (labels.dtype, labels.shape) == (torch.int64, (8,))
    kept = images.clone()
    for _ in range(6):
        next(loader)
    assert torch.equal(images, kept)
    loader.close()


def test_every_form_of_data_gives_the_same_validation_batches(images, lmdb_folder, file_list):
    order = validation()
    from_files = take(images, order, 3)
    from_list = take(file_list, validation(), 3)
    for (a, labels_a, valid_a), (b, labels_b, valid_b) in zip(from_files, from_list, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(labels_a, labels_b)
        assert valid_a == valid_b
    assert [valid for _, _, valid in from_files] == [8, 8, 7]
    stored = take(lmdb_folder, validation(), 3)
    assert pixel_sums(stored) == pixel_sums(from_files)


def pixel_sums(batches):
    return sorted((int(images[i].sum()), int(labels[i])) for images, labels, valid in batches for i in range(valid))


def test_validation_begins_again_after_its_last_batch(lmdb_folder):
    twice = take(lmdb_folder, validation(), 6)
    assert all(torch.equal(twice[i][0], twice[i + 3][0]) for i in range(3))


INPUTS = {
    "crop": SIZE,
    "crop that keeps the aspect": replace(SIZE, resize_mode="short"),
    "area": replace(SIZE, augment="area"),
    "resnet": replace(SIZE, augment="resnet"),
    "inception": replace(SIZE, augment="inception"),
    "growing": replace(SIZE, sizes=("1:40", "2:64")),
}


@pytest.mark.parametrize("config", INPUTS.values(), ids=INPUTS)
@settings(max_examples=15, deadline=None)
@example(world=4, parts=1, step=2)  # in which the second epoch begins, and with it a larger crop
@given(world=st.sampled_from([1, 2, 4]), parts=st.sampled_from([1, 2]), step=st.integers(0, 10_000))
def test_ranks_and_passes_together_see_the_images_of_one_rank(lmdb_folder, config, world, parts, step):
    whole = take(lmdb_folder, training(config, step=step), 2, config=config)
    size = 8 // world // parts
    ranks = [
        take(lmdb_folder, training(config, world=world, rank=rank, parts=parts, step=step), 2 * parts, size, config=config)
        for rank in range(world)
    ]
    for index, (images, labels, _) in enumerate(whole):
        pieces = [batch for batches in ranks for batch in batches[index * parts : (index + 1) * parts]]
        assert torch.equal(torch.cat([images for images, _, _ in pieces]), images)
        assert torch.equal(torch.cat([labels for _, labels, _ in pieces]), labels)


@pytest.mark.parametrize("config", INPUTS.values(), ids=INPUTS)
def test_an_order_begun_at_a_step_goes_on_as_if_it_had_run(lmdb_folder, config):
    whole = take(lmdb_folder, training(config), 7, config=config)
    resumed = take(lmdb_folder, training(config, step=4), 3, config=config)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[4:], resumed, strict=True))


def test_the_crop_grows_with_the_epochs_and_the_order_stays(lmdb_folder):
    config = INPUTS["growing"]
    growing, steady = take(lmdb_folder, training(config), 8, config=config), take(lmdb_folder, training(), 8)
    assert [images.shape[-1] for images, _, _ in growing] == [40, 40, 40, 64, 64, 64, 64, 64]  # 23 images are 2.9 batches
    assert all(torch.equal(a[1], b[1]) for a, b in zip(growing, steady, strict=True))


def test_area_crops_are_those_of_resnet_in_the_images_own_colours(lmdb_folder):
    records = open_records(lmdb_folder)
    shape = {"seed": 0, "global_batch": 8, "world": 1, "rank": 0, "parts": 1, "step": 3}
    plain, coloured = (TrainOrder(records, INPUTS[name], **shape)() for name in ("area", "resnet"))
    assert np.array_equal(plain.windows.start, coloured.windows.start)
    assert np.array_equal(plain.windows.end, coloured.windows.end)
    assert plain.colours == ()
    ((images, _, _),) = take(lmdb_folder, training(INPUTS["area"]), 1, config=INPUTS["area"])
    assert (images.dtype, images.shape[1:]) == (torch.uint8, (3, 80, 80))


def test_jittered_images_are_float16_and_leave_the_range_of_a_byte(lmdb_folder):
    config = INPUTS["resnet"]
    images = torch.cat([images for images, _, _ in take(lmdb_folder, training(config), 6, config=config)])
    assert (images.dtype, images.shape[1:]) == (torch.float16, (3, 80, 80))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.min() < 0
    assert images.max() > 255


def test_validation_that_keeps_the_aspect_is_pillows_shorter_side_and_centre_crop(lmdb_folder):
    config = replace(SIZE, resize_mode="short")
    ((images, _, _),) = take(lmdb_folder, validation(config, batch=23), 1, batch=23, config=config)
    for (data, _), image in zip(map(open_records(lmdb_folder).__getitem__, range(23)), images, strict=True):
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        width, height = (side * 88 // min(picture.size) for side in picture.size)
        left, top = (width - 80) // 2, (height - 80) // 2
        wanted = picture.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 80, top + 80))
        assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - np.asarray(wanted)).mean() < 0.5


def test_records_of_the_size_that_windows_are_cut_from_are_not_resized(images, tmp_path):
    """Only the window is decoded then, and it is to the pixel what the resize of it gives."""
    warped = build(images, tmp_path / "warped", "--resize", "88x88")
    config = replace(SIZE, sizes=("1:80", "9:40"))  # an order with two sizes takes the graph that resizes
    for order, resizing in ((training(), training(config)), (validation(), None)):
        loader = loading(warped, order)
        assert loader._whole
        loader.close()
        if resizing:
            pairs = zip(take(warped, order, 4), take(warped, resizing, 4, config=config), strict=True)
            assert all(torch.equal(cut[0], resized[0]) for cut, resized in pairs)
    ((validated, _, _),) = take(warped, validation(), 1)
    for (data, _), image in zip(map(open_records(warped).__getitem__, range(8)), validated, strict=True):
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), picture[4:84, 4:84])


@pytest.mark.parametrize("config", INPUTS.values(), ids=INPUTS)
def test_files_and_records_give_the_same_augmented_images(images, lmdb_folder, config, tmp_path, monkeypatch):
    """The sizes that area crops need come from index.npy there and from the files' headers here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    records, files = open_records(lmdb_folder), {path.read_bytes(): path for path in images.rglob("*.jpg")}
    assert len(files) == len(records)
    stored = [records[number] for number in range(len(records))]
    lines = [f"{files[bytes(data)]} {label}\n" for data, label in stored]  # the files in the order of the records
    (tmp_path / "list.txt").write_text("".join(lines))
    listed = open_records(tmp_path / "list.txt")
    assert np.array_equal(listed.sizes, records.sizes)
    assert [tuple(size) for size in records.sizes[:, ::-1]] == [Image.open(io.BytesIO(data)).size for data, _ in stored]
    both = (take(path, training(config), 4, config=config) for path in (tmp_path / "list.txt", lmdb_folder))
    for (from_files, labels, _), (from_records, same_labels, _) in zip(*both, strict=True):
        assert torch.equal(from_files, from_records)
        assert torch.equal(labels, same_labels)


def test_the_sizes_of_files_are_read_once(images, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = open_records(images).sizes
    assert [path.suffix for path in (tmp_path / "fastirv2").iterdir()] == [".npy"]
    monkeypatch.setattr("fastirv2.data.file_sizes.upright_size", lambda _: pytest.fail("read again"))
    assert np.array_equal(open_records(images).sizes, sizes)


def test_the_order_is_that_of_blocks_where_they_are_asked_for(lmdb_folder):
    records = open_records(lmdb_folder)
    order = TrainOrder(records, SIZE, seed=5, global_batch=23, world=1, rank=0, parts=1, step=0, block=4)
    assert order().numbers.tolist() == sampler.batch(5, 0, 23, 23, 1, 0, block=4).tolist()


def test_the_memory_of_a_loader_stays_flat_over_20_epochs(lmdb_folder):
    loader = loading(lmdb_folder, training())
    used = []
    for epoch in range(20):
        for _ in range(3):
            next(loader)
        if epoch in (4, 19):
            used.append(resident_bytes())
    loader.close()
    assert used[1] - used[0] < 8 << 20


def resident_bytes():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) << 10


def test_the_storage_is_told_of_records_before_they_are_due(lmdb_folder):
    records, told = open_records(lmdb_folder), []
    advise = records.read_ahead
    records.read_ahead = lambda numbers: (told.append(numbers.tolist()), advise(numbers))
    config = replace(SIZE, prefetch=1, read_ahead=3)
    loader = Loader(records, training(config)(records), config, batch=8, device=CPU, cpus=2)
    for _ in range(5):
        next(loader)
    loader._reader.submit(lambda: None).result()
    loader.close()
    assert len(told) >= 5 + 3
    assert told == [sampler.batch(5, step, 23, 8, 1, 0).tolist() for step in range(len(told))]


def test_dalis_caffe_reader_gives_the_same_images_and_labels(lmdb_folder):
    """Our LMDB is any Datum reader's, and the fused window is DALI's own warp followed by its crop."""
    pipeline = Pipeline(batch_size=23, num_threads=2, device_id=None)
    with pipeline:
        encoded, labels = fn.readers.caffe(path=str(lmdb_folder))
        decoded = fn.decoders.image(encoded, output_type=types.RGB, jpeg_fancy_upsampling=True)
        warped = fn.resize(decoded, size=(88, 88))
        pipeline.set_outputs(fn.crop(warped, crop=(80, 80), crop_pos_x=0.5, crop_pos_y=0.5), labels)
    images, labels = (np.asarray(output.as_tensor()) for output in pipeline.run())
    ours = take(lmdb_folder, validation(batch=23), 1, batch=23)[0]
    assert ours[1].tolist() == labels.ravel().tolist()
    assert np.abs(ours[0].permute(0, 2, 3, 1).numpy().astype(int) - images).max() <= 1


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(UsageError, match=r"--input\.crop 300 must lie between 1 and --input.resize 299"):
        InputConfig(resize=299, crop=300)


@pytest.mark.gpu
def test_a_gpu_gives_the_pixels_of_the_cpu(lmdb_folder):
    on_cpu = take(lmdb_folder, training(), 3)
    on_gpu = take(lmdb_folder, training(), 3, device=torch.device("cuda", 0))
    for (a, labels_a, _), (b, labels_b, _) in zip(on_cpu, on_gpu, strict=True):
        assert b.is_cuda
        assert b.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(labels_a, labels_b.cpu())
        difference = (a.int() - b.cpu().int()).abs().float()
        assert difference.mean() < 1
        assert difference.max() <= 8


@pytest.mark.gpu
def test_a_gpu_batch_stays_whole_while_kernels_read_it(lmdb_folder):
    device = torch.device("cuda", 0)
    loader = loading(lmdb_folder, training(), device=device)
    sums = []
    for _ in range(30):
        images, _, _ = next(loader)
        torch.cuda._sleep(2_000_000)  # the host runs ahead of the kernels that read the batch
        sums.append(images.sum())
    loader.close()
    want = [int(images.sum()) for images, _, _ in take(lmdb_folder, training(), 30, device=device)]
    assert [int(s) for s in sums] == want


def test_windows_in_pixels_are_those_that_were_drawn():
    numbers = np.arange(1000)
    windows = random_crops(0, np.zeros(1000, np.int64), numbers, 328, 299)
    corners, shape, _ = _in_pixels(Fed(numbers, windows, 299, 1000), 328)
    ends = np.maximum(windows.start, windows.end).astype(np.float64) * 328
    assert np.abs(corners + shape - ends).max() < 0.01


def test_waiting_is_counted_once():
    clock = _HostClock()
    with clock:
        time.sleep(0.01)
    assert clock.take() >= 0.01
    assert clock.take() == 0
