"""The builder's bench measures whole commands beside yardsticks that do what they say."""

import ctypes
import json
import sys

import lmdb
import pytest
import simplejpeg

from fastirv2.data.datum import scan
from fastirv2.errors import DataError
from tests.processes import run_python
from tests.tools.test_tools import TOOLS, result

sys.path.insert(0, str(TOOLS))

import bench_build
import bench_memory
import photographs


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What the command said and wrote."""
    options = ("--images", "12", "--rounds", "2", "--workers", "2", "--gpu-rate", "1000")
    return result(tmp_path_factory.mktemp("bench"), "bench_data.py", "--build", *options)


def written(tmp_path, *options):
    """What the mode measures, without a process of its own."""
    bench_build.main([*map(str, options), "--json", str(tmp_path / "result.json")])
    return json.loads((tmp_path / "result.json").read_text())


def test_build_is_measured_beside_its_yardsticks(measured):
    said, figures = measured
    assert (figures["images"], figures["workers"], figures["rounds"]) == (12, 2, 2)
    for resize, yardstick in (("none", "decode"), ("328x328", "pillow")):
        speed = figures["speed"][resize]
        assert set(speed["seconds"]) == {"12", "3"}
        assert set(speed["whole"]["images_per_second"]) == {"builder", yardstick}
        ratio = speed["whole"]["ratio"]
        assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
        assert set(speed["marginal"]) == set(speed["processor"]) == {"images_per_second", "ratio"}
    assert "none / decode, whole" in said
    assert {"cpu", "torch", "dali"} <= set(figures["machine"])


def test_the_size_table_follows_from_the_ratio_and_the_rate(measured):
    said, figures = measured
    imagenet = figures["sizes"]["imagenet"]
    rows = {row["resize"]: row for row in figures["sizes"]["rows"]}
    assert list(rows) == list(bench_build.RESIZES)
    assert rows["none"]["ratio"] == 1
    assert rows["256x256"]["ratio"] < rows["328x328"]["ratio"] < 1
    whole = rows["none"]
    assert imagenet["jpeg_gigabytes"] < whole["imagenet_gigabytes"] < 1.05 * imagenet["jpeg_gigabytes"]
    one, eight = whole["read_gigabytes_per_second"].values()
    assert eight == pytest.approx(8 * one)
    assert one == pytest.approx(1000 * whole["imagenet_gigabytes"] / imagenet["images"])
    assert "an assumed 1,000 images/s a GPU" in said


def test_ones_own_images_are_measured_and_left_alone(tmp_path, images):
    before = sorted((path, path.stat().st_size) for path in images.rglob("*"))
    figures = written(tmp_path, "--source", images, "--images", "20", "--rounds", "1")
    assert (figures["images"], figures["source"]) == (20, str(images))
    assert sorted((path, path.stat().st_size) for path in images.rglob("*")) == before
    with pytest.raises(DataError, match="holds 23 images; give --images from 4 to 23"):
        bench_build.main(["--source", str(images), "--images", "24"])


def spent(seconds, processor=None):
    """Commands that took so many seconds, and processor seconds (four times as many unless given)."""
    return [bench_build.Spent(*both) for both in zip(seconds, processor or [4 * value for value in seconds], strict=True)]


def test_rates_are_of_whole_commands_and_of_what_more_images_take():
    builder = {100: spent([2.0, 3.0, 2.5], [4.0, 5.0, 6.0]), 25: spent([1.0, 1.0, 1.0], [2.0, 3.0, 2.0])}
    pillow = {100: spent([5.0, 3.0, 5.0]), 25: spent([2.0, 2.0, 2.0])}
    compared = bench_build.compare({"builder": builder, "pillow": pillow}, 100, 25)
    assert compared["whole"]["images_per_second"]["builder"]["median"] == 40
    assert compared["whole"]["ratio"] == {"min": 1, "median": 2, "max": 2.5}
    assert compared["marginal"] == {"images_per_second": {"builder": 50, "pillow": 25}, "ratio": 2}
    assert compared["processor"] == {"images_per_second": {"builder": 25, "pillow": 6.25}, "ratio": 4}


def test_processor_seconds_are_those_of_grandchildren_that_outlive_the_command_too():
    work = "import time\nwhile time.process_time() < 1: pass"
    leave = f"import subprocess as s, sys; s.Popen([sys.executable, '-c', {work!r}], stdout=s.DEVNULL, stderr=s.DEVNULL)"
    taken = bench_build.run([sys.executable, "-c", leave])
    is_adopting = ctypes.c_int()
    ctypes.CDLL(None).prctl(37, ctypes.byref(is_adopting))  # PR_GET_CHILD_SUBREAPER
    assert not is_adopting.value
    assert taken.processor_seconds > 1


def test_no_marginal_rate_is_given_where_noise_hides_it():
    builder, decode = {8: spent([1.0]), 2: spent([1.1])}, {8: spent([1.2]), 2: spent([1.0])}
    compared = bench_build.compare({"builder": builder, "decode": decode}, 8, 2)
    assert compared["marginal"]["images_per_second"]["builder"] is None
    assert compared["marginal"]["ratio"] is None


def test_memory_is_measured_over_folders_and_a_long_list(tmp_path, capsys):
    both = written(tmp_path, "--memory", "--images", "1200", "--lines", "12000")
    assert both["folders"]["built"] == 1200
    assert both["list"]["built"] == 10_000
    for name in ("folders", "list"):
        figures = both[name]
        assert 20 < figures["largest_process_megabytes"] < figures["peak_megabytes"] < 4000
        assert figures["processes"] >= 2
        assert figures["images_per_second"] > 0
    assert "images/s: at most" in capsys.readouterr().out


def test_memory_of_a_grandchild_counts(tmp_path):
    child = "held = bytearray(b'x' * 50_000_000); import time; time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    grandparent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {parent!r}])"
    seen = bench_memory.watch([sys.executable, "-c", grandparent], tmp_path / "log")
    assert seen["processes"] == 3
    assert 50 < seen["largest_process_megabytes"] < seen["peak_megabytes"] < 200


def test_photographs_are_the_same_every_time_and_as_large_as_imagenets(tmp_path):
    for name, workers in (("a", "1"), ("b", "2")):
        done = run_python(TOOLS / "photographs.py", tmp_path / name, "--images", "20", "--workers", workers)
        assert done.returncode == 0, done.stderr
    ours, theirs = (sorted((tmp_path / name).rglob("*.jpg")) for name in ("a", "b"))
    data = [path.read_bytes() for path in ours]
    assert data == [path.read_bytes() for path in theirs]
    assert len(set(data)) == len(data) == 20
    assert 90_000 < sum(map(len, data)) / 20 < 110_000
    assert {simplejpeg.decode_jpeg_header(image)[:2] for image in data} <= {(h, w) for w, h in photographs.SIZES}


def test_the_yardsticks_decode_every_file_and_write_every_record(tmp_path):
    run_python(TOOLS / "photographs.py", tmp_path / "source", "--images", "30", "--side", "64")
    line = (TOOLS / "build_yardsticks.py", "pillow", tmp_path / "source", tmp_path / "out", "--workers", "2", "--size", "40")
    done = run_python(*line)
    assert done.returncode == 0, done.stderr
    with lmdb.open(str(tmp_path / "out")) as environment, environment.begin() as transaction:
        records = [(scan(value), bytes(value)) for _, value in transaction.cursor()]
    assert len(records) == 30
    assert [fields.label for fields, _ in records] == sorted(fields.label for fields, _ in records)
    assert {simplejpeg.decode_jpeg_header(value[f.offset : f.offset + f.length])[:2] for f, value in records} == {(40, 40)}

    (tmp_path / "source/00/000000.jpg").write_bytes(b"\xff\xd8 no image")
    done = run_python(TOOLS / "build_yardsticks.py", "decode", tmp_path / "source", "--workers", "2")
    assert done.returncode != 0


def test_a_failing_build_ends_the_bench_with_its_reason(tmp_path):
    for number in range(4):
        (tmp_path / "empty" / "class").mkdir(parents=True, exist_ok=True)
        (tmp_path / "empty" / "class" / f"{number}.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="none of the 4 images can be used"):
        bench_build.main(["--source", str(tmp_path / "empty"), "--images", "4"])
    assert (tmp_path / "empty/class/0.jpg").read_bytes() == b"no image"
