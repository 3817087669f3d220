"""What is in images: files, folders and lists, with what cannot be read passed over."""

import io
import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from fastirv2 import predict
from fastirv2.building.other_formats import read_other
from fastirv2.data.datum import Datum
from fastirv2.data.loader import Loader
from fastirv2.data.picture_files import find_pictures
from fastirv2.data.pictures import UnreadableError, central_square, picture_of, read_picture
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, ValidationOrder
from fastirv2.errors import DataError, put
from fastirv2.scoring.stream import stream
from fastirv2.trained import open_trained
from tests.conftest import photograph
from tests.data.test_caffe_records import write as write_caffe
from tests.trained import pixels


@pytest.fixture
def mixed(images, tmp_path):
    """A folder that holds images of several kinds at several depths, a broken one, and what is none; and a list."""
    folder = tmp_path / "mixed"
    (folder / "below").mkdir(parents=True)
    with Image.open(images / "cat/00.jpg") as image:
        image.save(folder / "b.png")
        image.save(folder / "below/a.webp")
        image.convert("CMYK").save(folder / "c.JPEG")
    (folder / "broken.jpg").write_bytes((images / "cat/01.jpg").read_bytes()[:400])
    (folder / "notes.md").write_text("no image")
    (tmp_path / "list.txt").write_text(f"{images}/dog/01.jpg 1\n\nmixed/b.png\nmissing.jpg\n")
    return folder


def test_files_folders_and_lists_mean_their_images_in_order(mixed, tmp_path, images):
    found = list(find_pictures([str(mixed), f"{tmp_path}/list.txt", "gone.jpg", f"{mixed}/broken.jpg"]))
    inside = [f"{mixed}/{name}" for name in ("b.png", "broken.jpg", "c.JPEG", "notes.md", "below/a.webp")]
    listed = [f"{images}/dog/01.jpg", str(mixed / "b.png"), f"{tmp_path}/missing.jpg"]
    assert found == [*inside, *listed, "gone.jpg", f"{mixed}/broken.jpg"]


def test_folders_are_walked_in_the_order_of_their_names(tmp_path):
    for name in ("d", "b", "e", "a", "c"):
        (tmp_path / name).mkdir()
        for image in ("2.JPG", "1.jpg"):
            (tmp_path / name / image).touch()
    inside = [f"{tmp_path}/{name}/{image}" for name in "abcde" for image in ("1.jpg", "2.JPG")]
    assert list(find_pictures([str(tmp_path)])) == inside


def test_a_folder_without_files_is_refused(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below/.hidden").touch()
    with pytest.raises(DataError, match=f"{tmp_path} holds no files"):
        list(find_pictures([str(tmp_path)]))


def test_a_folder_means_what_an_lmdb_would_be_built_from(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    for name in ("here/a.jfif", "here/no suffix", "here/.hidden.jpg", "elsewhere/c.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "here/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "here")
    found = [os.path.relpath(path, tmp_path / "here") for path in find_pictures([str(tmp_path / "here")])]
    assert found == ["a.jfif", "no suffix", "linked/c.jpg"]


@pytest.mark.parametrize("before", ["", "x"])
def test_a_list_is_one_wherever_the_reading_cuts_a_letter(tmp_path, before):
    (tmp_path / "list").write_text(before + "\n".join(f"{'ü' * 20}{number}.png" for number in range(200)))
    assert len(list(find_pictures([f"{tmp_path}/list"]))) == 200


@pytest.mark.parametrize(
    ("name", "content"),
    [("page.jpg", b"<html>\nnot found\n</html>\n"), ("empty", b" \n"), ("zeros", bytes(99)), ("latin", b"\xfc.png\n")],
)
def test_what_is_no_text_or_called_an_image_is_no_list(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert list(find_pictures([f"{tmp_path}/{name}"])) == [f"{tmp_path}/{name}"]


def test_every_image_that_can_be_read_has_a_line_and_a_row_of_features(command, paper_run, mixed, tmp_path):
    out = tmp_path / "features.npy"
    arguments = (mixed, tmp_path / "list.txt", "--json", "--features", out, "--batch", 2, "--amp", "fp32", "--top", 9)
    result = command(predict, paper_run, *arguments)
    assert result.code == 0
    lines = [json.loads(line) for line in result.out.splitlines()]
    files = [line["path"] for line in lines]
    assert [name.rpartition("/")[2] for name in files] == ["b.png", "c.JPEG", "a.webp", "01.jpg", "b.png"]
    broken, notes, missing, sum_of_it = result.err.splitlines()
    assert broken.startswith(f"fastirv2.predict: {mixed}/broken.jpg cannot be read: ")
    assert notes.startswith(f"fastirv2.predict: {mixed}/notes.md cannot be read: ")
    assert missing == f"fastirv2.predict: {tmp_path}/missing.jpg cannot be read: No such file or directory"
    assert sum_of_it == "fastirv2.predict: 3 of 8 images were passed over"
    trained = open_trained(paper_run)
    rows = []
    trained.model.pool.register_forward_hook(lambda _, __, features: rows.append(features))
    with torch.no_grad():
        expected = trained.model(pixels(files)).softmax(1)
    for line, probabilities in zip(lines, expected, strict=True):
        assert [each["class"] for each in line["top"]] == [["cat", "dog"][each["label"]] for each in line["top"]]
        assert [each["label"] for each in line["top"]] == probabilities.argsort(descending=True).tolist()
        found = [each["probability"] for each in line["top"]]
        assert found == pytest.approx(probabilities.sort(descending=True).values.tolist(), abs=1e-4)
    features = np.load(out)
    assert (features.shape, features.dtype) == ((5, 2048), np.float32)
    np.testing.assert_allclose(features, rows[0].numpy(), rtol=1e-3, atol=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.npy", "list.txt", "mixed"]


def test_people_get_a_percentage_and_a_name_a_line(command, paper_run, images):
    result = command(predict, paper_run, images / "cat/02.jpg", "--top", 1)
    path, line = result.out.splitlines()
    assert (result.code, result.err, path) == (0, "", str(images / "cat/02.jpg"))
    assert line.split()[1:] in (["%", "cat"], ["%", "dog"])


def test_what_a_file_does_not_say_of_its_input_is_said(command, paper_run, images, tmp_path):
    torch.save(open_trained(paper_run).model.state_dict(), tmp_path / "w.pth")
    result = command(predict, tmp_path / "w.pth", images / "cat/02.jpg", "--top", 1)
    assert (result.code, result.out.splitlines()[1].split()[2] in "01") == (0, True)
    assert result.err.endswith("w.pth does not say what its network was shown; it is shown what public weights are: "
                               "shorter side 333 and cropped to 299 pixels\n")  # fmt: skip


def test_files_are_taken_only_two_batches_ahead(tmp_path):
    taken, ahead = [], []
    files = (taken.append(number) or str(tmp_path / f"{number}.jpg") for number in range(50))

    def refuse(_file, _why):
        ahead.append(len(taken) - len(ahead))

    assert list(stream(files, InputConfig(), batch=3, threads=1, refuse=refuse)) == []
    assert len(ahead) == 50
    assert max(ahead) == 6


def test_where_no_image_can_be_read_nothing_is_written(command, paper_run, mixed, tmp_path):
    out = tmp_path / "features.npy"
    result = command(predict, paper_run, mixed / "broken.jpg", tmp_path / "gone.jpg", "--features", out)
    assert (result.code, result.out) == (65, "")
    assert result.err.splitlines()[-1] == "fastirv2.predict: none of the images could be read"
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("--top", 0), 2, "--top must be at least 1"),
        (("--features", "/none/f.npy"), 65, "/none/f.npy cannot be written"),
    ],
)
def test_a_mistake_is_a_sentence(command, paper_run, images, options, code, sentence):
    result = command(predict, paper_run, images, *options)
    assert (result.code, result.out, result.err.count("\n")) == (code, "", 1), result.err
    assert sentence in result.err


def test_pictures_are_upright_and_what_is_none_is_refused():
    lying = Image.Exif()
    lying[0x0112] = 6
    data = io.BytesIO()
    Image.new("RGB", (40, 20)).save(data, "JPEG", exif=lying)
    assert read_picture(io.BytesIO(data.getvalue())).size == (20, 40)
    for broken, reason in ((data.getvalue()[:200], r"(?i)truncated"), (b"GIF89a", "."), (b"", "no image")):
        with pytest.raises(UnreadableError, match=reason):
            read_picture(io.BytesIO(broken))


def deep_gray():
    return Image.fromarray((np.arange(48 * 40, dtype=np.uint16) * 34).reshape(40, 48))


def see_through():
    image = Image.new("RGBA", (48, 40), (200, 30, 60, 255))
    image.paste((0, 0, 0, 0), (0, 0, 20, 20))
    return image


@pytest.mark.parametrize("picture", [deep_gray, see_through])
def test_a_picture_is_what_a_build_makes_of_it(picture):
    data = io.BytesIO()
    picture().save(data, "PNG")
    built = read_other(data.getvalue()).pixels
    assert np.array_equal(np.asarray(read_picture(io.BytesIO(data.getvalue()))), built)
    assert built.std() > 40


@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them_and_an_odd_exif_block_is_no_matter(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = io.BytesIO()
    photograph(3, 40, 30).save(data, "JPEG", exif=exif.tobytes() + b"\xff" * 9)
    with Image.open(io.BytesIO(data.getvalue())) as image:
        assert np.array_equal(np.asarray(read_picture(io.BytesIO(data.getvalue()))), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize(
    "changes", [{}, {"resize_mode": "short"}, {"interpolation": "bicubic"}], ids=["warp", "short", "cubic"]
)
def test_a_network_is_shown_in_predictions_what_it_is_in_validation(images, changes):
    config = replace(InputConfig(resize=88, crop=80, threads=1), **changes)
    records = open_records(images)
    order = ValidationOrder(records, config, batch=8, world=1, rank=0)
    loader = Loader(records, order, config, batch=8, device=torch.device("cpu"), cpus=1)
    validated = next(loader).images.permute(0, 2, 3, 1).numpy().astype(int)
    loader.close()
    for number, expected in enumerate(validated):
        difference = np.abs(central_square(read_picture(records.where(number)), config) - expected)
        assert difference.mean() < 0.3
        assert difference.max() <= 2


def test_a_picture_of_raw_planes_has_its_own_colours_and_sides(tmp_path):
    picture = np.asarray(photograph(1, 60, 40))
    planes = picture[:, :, ::-1].transpose(2, 0, 1).tobytes()  # blue, green, red
    folder = write_caffe(tmp_path / "raw", [Datum(channels=3, height=40, width=60, data=planes)])
    assert np.array_equal(np.asarray(picture_of(open_records(folder), 0)), picture)


def test_numbers_of_32_bits_are_refused():
    data = io.BytesIO()
    Image.new("F", (9, 9), 3.5).save(data, "TIFF")
    with pytest.raises(UnreadableError, match="more than 16 bits a channel"):
        read_picture(io.BytesIO(data.getvalue()))


@pytest.mark.parametrize("line", ["one.jpg\n", "one.jpg\t3\r\n", '"one.jpg" 3\n', '"one.jpg"'])
def test_a_list_may_begin_with_a_byte_order_mark_and_be_any_that_the_builder_takes(tmp_path, line):
    photograph(3, 40, 30).save(tmp_path / "one.jpg")
    (tmp_path / "list.txt").write_text(line, encoding="utf-8-sig")
    assert [os.path.basename(path) for path in find_pictures([str(tmp_path / "list.txt")])] == ["one.jpg"]


def test_a_line_ends_where_the_line_ends(tmp_path):
    photograph(3, 40, 30).save(tmp_path / "a\u2028b.jpg")
    (tmp_path / "list.txt").write_text("a\u2028b.jpg 1\n", encoding="utf-8")
    assert list(find_pictures([str(tmp_path / "list.txt")])) == [str(tmp_path / "a\u2028b.jpg")]


def test_a_pipe_is_refused_before_any_of_it_is_lost(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is a device, pipe or socket, which cannot be read twice"):
        list(find_pictures([str(tmp_path / "pipe")]))


def test_what_a_full_disk_does_not_take_is_an_error(monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(DataError, match=r"what was found cannot be written: No space left on device; send stdout"):
            put("99 %  owl")
        monkeypatch.undo()
