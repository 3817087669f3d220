"""The demo's image folders: what is in them, and when they are written."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastirv2 import demo
from fastirv2.errors import DataError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "images"
    demo.write_demo(root, seed=0)
    return root


def run(*arguments):
    command = [sys.executable, "-m", "fastirv2.demo", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_each_of_16_classes_has_40_training_and_10_validation_images(written):
    for split, views in (("train", 40), ("val", 10)):
        folders = sorted((written / split).iterdir())
        assert len(folders) == 16
        assert {len(list(folder.glob("*.jpg"))) for folder in folders} == {views}
    assert len(contents(written)) == 16 * (40 + 10) + 1


def test_images_are_whole_rgb_jpegs_160_to_200_pixels_square(written):
    sizes = set()
    for path in written.rglob("*.jpg"):
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert image.width == image.height
            sizes.add(image.width)
    assert min(sizes) >= 160
    assert max(sizes) <= 200
    assert len(sizes) > 20


def test_no_two_images_are_the_same(written):
    images = [data for path, data in contents(written).items() if path.suffix == ".jpg"]
    assert len(set(images)) == len(images)


def test_views_show_no_invented_borders():
    white = Image.new("RGB", (300, 200), "white")
    for number in range(200):
        view = demo.cut_view(white, np.random.Generator(np.random.PCG64(number)))
        assert view.getextrema() == ((255, 255),) * 3


def test_a_view_covers_15_to_70_percent_of_the_largest_square_at_its_angle():
    # Each pixel says where it lies: red is x and green is y, so that a view's own colours tell which square was cut.
    rows, columns = np.mgrid[0:256, 0:256]
    ramp = Image.fromarray(np.stack([columns, rows, rows * 0], axis=2).astype(np.uint8))
    shares, angles = [], []
    for number in range(300):
        view = np.asarray(demo.cut_view(ramp, np.random.Generator(np.random.PCG64(number))), dtype=float)
        edge = view[5, -6, :2] - view[5, 5, :2]
        side = math.hypot(*edge) * view.shape[0] / (view.shape[0] - 11)
        angle = math.atan2(edge[1], edge[0])
        largest = 256 / (math.cos(angle) + abs(math.sin(angle)))
        shares.append((side / largest) ** 2)
        angles.append(math.degrees(angle))
    assert 0.13 < min(shares) < 0.2
    assert 0.65 < max(shares) < 0.73
    assert -21.5 < min(angles) < -17
    assert 17 < max(angles) < 21.5


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(written, tmp_path):
    demo.write_demo(tmp_path / "again", seed=0)
    assert contents(tmp_path / "again") == contents(written)
    sample = demo.samples()[0]
    demo.write_sample(sample, tmp_path, demo.photograph_folder(), seed=1)
    assert (tmp_path / sample.file).read_bytes() != (written / sample.file).read_bytes()


def test_a_second_call_says_that_it_is_done_and_writes_nothing(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    result = run(written)
    assert (result.returncode, result.stdout) == (0, f"{written} is done already\n")
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


def test_an_interrupted_call_is_completed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "VIEWS", {"train": 2, "val": 1})
    root, undisturbed = tmp_path / "images", tmp_path / "undisturbed"
    demo.write_demo(undisturbed, seed=0)
    write_sample, calls = demo.write_sample, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) > 20:
            (root / demo.ASIDE).write_bytes(b"half an image")
            raise KeyboardInterrupt
        write_sample(*arguments)

    monkeypatch.setattr(demo, "write_sample", interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.write_demo(root, seed=0)
    monkeypatch.setattr(demo, "write_sample", write_sample)
    monkeypatch.setattr(sys, "argv", ["demo", str(root)])
    demo.main()
    assert contents(root) == contents(undisturbed)


def test_a_call_mends_a_folder_that_lost_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "VIEWS", {"train": 2, "val": 1})
    monkeypatch.setattr(sys, "argv", ["demo", str(tmp_path)])
    demo.main()
    before = contents(tmp_path)
    (tmp_path / "val/moon/0000.jpg").unlink()
    demo.main()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("foreign", ["thesis.txt", "train/holiday/beach.jpg", "val/moon/0010.jpg"])
def test_a_folder_with_other_content_is_refused_and_left_alone(tmp_path, foreign):
    path = tmp_path / foreign
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    result = run(tmp_path)
    assert result.returncode == 65
    assert len(result.stderr.splitlines()) == 1
    assert "a folder of its own" in result.stderr
    assert contents(tmp_path) == {path.relative_to(tmp_path): b"mine"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / "images"
    path.write_text("mine")
    result = run(path)
    assert (result.returncode, path.read_text()) == (65, "mine")


def test_another_seed_than_the_written_one_is_refused(written):
    result = run(written, "--seed", 1)
    assert result.returncode == 65
    assert "the demo of seed 0, not 1" in result.stderr


def test_a_negative_seed_is_wrong_usage(tmp_path):
    assert run(tmp_path, "--seed=-1").returncode == 2


def test_make_demo_ends_with_what_is_in_two_validation_pictures():
    make = ["make", "--no-print-directory", "--dry-run", "demo"]  # make test says which directory it is in
    made = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = made.stdout.splitlines()
    command, files = lines[-1], {f".demo/images/{sample.file}" for sample in demo.samples() if sample.file.parts[0] == "val"}
    assert "-m fastirv2.predict .demo/run " in command
    assert len(files & set(command.split())) == 2


def test_without_scikit_image_the_error_names_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(DataError, match="pip install scikit-image"):
        demo.photograph_folder()
