"""From records to tensors: the right pixels and labels, in order, without copies, the same for every form of data."""

import io
import shutil

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from fastirv2.data import sampler
from fastirv2.data.augment import random_crops
from fastirv2.data.loader import InputConfig, Loader, TrainOrder, ValidationOrder
from fastirv2.data.records import open_records
from fastirv2.errors import DataError, UsageError

SIZE = InputConfig(resize=88, crop=80, threads=2, hw_decoder_load=0.0)
CPU = torch.device("cpu")


def train_order(count, *, world=1, rank=0, step=0, parts=1, global_batch=8):
    return TrainOrder(count, SIZE, seed=5, global_batch=global_batch, world=world, rank=rank, parts=parts, step=step)


def take(path, order, batches, batch=8, device=CPU):
    loader = Loader(open_records(path), order, SIZE, batch=batch, device=device, local_world=1)
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
    for step, (images, labels, valid) in enumerate(take(lmdb_folder, train_order(23), 6)):
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
    loader = Loader(open_records(lmdb_folder), train_order(23), SIZE, batch=8, device=CPU, local_world=1)
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
    order = ValidationOrder(23, SIZE, batch=8, world=1, rank=0)
    from_files = take(images, order, 3)
    from_list = take(file_list, ValidationOrder(23, SIZE, batch=8, world=1, rank=0), 3)
    for (a, labels_a, valid_a), (b, labels_b, valid_b) in zip(from_files, from_list, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(labels_a, labels_b)
        assert valid_a == valid_b
    assert [valid for _, _, valid in from_files] == [8, 8, 7]
    stored = take(lmdb_folder, ValidationOrder(23, SIZE, batch=8, world=1, rank=0), 3)
    assert pixel_sums(stored) == pixel_sums(from_files)


def pixel_sums(batches):
    return sorted((int(images[i].sum()), int(labels[i])) for images, labels, valid in batches for i in range(valid))


def test_validation_begins_again_after_its_last_batch(lmdb_folder):
    twice = take(lmdb_folder, ValidationOrder(23, SIZE, batch=8, world=1, rank=0), 6)
    assert all(torch.equal(twice[i][0], twice[i + 3][0]) for i in range(3))


def test_ranks_and_passes_together_are_the_batch_of_one_rank(lmdb_folder):
    whole = take(lmdb_folder, train_order(23), 4)
    for world, parts in ((2, 1), (4, 2), (1, 4)):
        size = 8 // world // parts
        ranks = [take(lmdb_folder, train_order(23, world=world, rank=r, parts=parts), 4 * parts, size) for r in range(world)]
        for step in range(4):
            pieces = [ranks[r][step * parts + p] for r in range(world) for p in range(parts)]
            assert torch.equal(torch.cat([images for images, _, _ in pieces]), whole[step][0])
            assert torch.equal(torch.cat([labels for _, labels, _ in pieces]), whole[step][1])


def test_an_order_begun_at_a_step_goes_on_as_if_it_had_run(lmdb_folder):
    whole = take(lmdb_folder, train_order(23), 7)
    resumed = take(lmdb_folder, train_order(23, step=4), 3)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[4:], resumed, strict=True))


def test_dalis_caffe_reader_gives_the_same_images_and_labels(lmdb_folder):
    """Our LMDB is any Datum reader's, and the fused window is DALI's own warp followed by its crop."""
    pipeline = Pipeline(batch_size=23, num_threads=2, device_id=None)
    with pipeline:
        encoded, labels = fn.readers.caffe(path=str(lmdb_folder))
        decoded = fn.decoders.image(encoded, output_type=types.RGB, jpeg_fancy_upsampling=True)
        warped = fn.resize(decoded, size=(88, 88))
        pipeline.set_outputs(fn.crop(warped, crop=(80, 80), crop_pos_x=0.5, crop_pos_y=0.5), labels)
    images, labels = (np.asarray(output.as_tensor()) for output in pipeline.run())
    ours = take(lmdb_folder, ValidationOrder(23, SIZE, batch=23, world=1, rank=0), 1, batch=23)[0]
    assert ours[1].tolist() == labels.ravel().tolist()
    assert np.abs(ours[0].permute(0, 2, 3, 1).numpy().astype(int) - images).max() <= 1


def test_an_image_that_cannot_be_decoded_is_named(images, tmp_path):
    copy = shutil.copytree(images, tmp_path / "images")
    (copy / "dog/03.jpg").write_bytes(b"\xff\xd8 this is no JPEG")
    with pytest.raises(DataError, match=r"dog/03\.jpg cannot be decoded .*fastirv2-build-lmdb"):
        take(copy, ValidationOrder(23, SIZE, batch=8, world=1, rank=0), 3)


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(UsageError, match=r"--input\.crop 300 must lie between 1 and --input.resize 299"):
        InputConfig(resize=299, crop=300)


@pytest.mark.gpu
def test_a_gpu_gives_the_pixels_of_the_cpu(lmdb_folder):
    on_cpu = take(lmdb_folder, train_order(23), 3)
    on_gpu = take(lmdb_folder, train_order(23), 3, device=torch.device("cuda", 0))
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
    loader = Loader(open_records(lmdb_folder), train_order(23), SIZE, batch=8, device=device, local_world=1)
    sums = []
    for _ in range(30):
        images, _, _ = next(loader)
        torch.cuda._sleep(2_000_000)  # the host runs ahead of the kernels that read the batch
        sums.append(images.sum())
    loader.close()
    want = [int(images.sum()) for images, _, _ in take(lmdb_folder, train_order(23), 30, device=device)]
    assert [int(s) for s in sums] == want
