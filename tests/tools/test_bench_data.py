"""The input's bench says where the loader's time goes, beside other ways to its batches, and judges what it measured."""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig
from fastirv2.errors import DataError, UsageError
from tests.conftest import build
from tests.data.test_caffe_records import raw
from tests.data.test_caffe_records import write as write_caffe
from tests.tools.test_tools import TOOLS, result

sys.path.insert(0, str(TOOLS))

import bench_data
import input_pages
from input_stages import CutOff, Input, cut_off, summed_up, take
from input_trace import BATCHES, write_trace
from input_verdict import DISK, Figures, binding, first_knob, verdict

SMALL = ("--batch", "4", "--resize", "88", "--crop", "80", "--device", "cpu")
SMALL += ("--threads", "1", "--read-ahead", "0", "--prefetch", "1")
CONFIG = InputConfig(resize=88, crop=80, prefetch=1, read_ahead=0)
SLOW_DECODE = {"read": 50_000.0, "decode": 700.0, "resize/crop": 600.0, "hand-over": 600.0}
SLOW_RESIZE = {"read": 50_000.0, "decode": 2_000.0, "resize/crop": 600.0, "hand-over": 600.0}


def small_input(folder, **changes):
    return Input(folder, InputConfig(**{**CONFIG.__dict__, **changes}), 4, torch.device("cpu"), 2)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What the command said and wrote over images that it made."""
    folder = tmp_path_factory.mktemp("bench")
    options = ("--images", "40", "--side", "100", "--seconds", "0.2", "--rounds", "2", "--need", "100")
    return result(folder, "bench_data.py", *SMALL, *options, "--trace", folder / "trace.json"), folder / "trace.json"


def pages_can_be_dropped(folder):
    """Whether the kernel lets go of pages of files there, as it does not on a RAM disk."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(bytes(100_000))
        file.flush()
        return input_pages.drop_pages(Path(file.name)) == 0


@pytest.fixture
def on_a_disk(tmp_path, lmdb_folder):
    """A copy of the LMDB whose pages the kernel can let go."""
    folder = tmp_path / "lmdb"
    folder.mkdir()
    for name in ("data.mdb", "index.npy", "dataset.json"):
        (folder / name).write_bytes((lmdb_folder / name).read_bytes())
    if not pages_can_be_dropped(folder):
        pytest.skip("the pages of files here cannot be dropped, as on a RAM disk")
    return folder


def test_the_loader_is_measured_beside_other_ways_to_the_same_batches(measured):
    (said, figures), _ = measured
    rates, ratios = figures["images_per_second"], figures["ratios"]
    ours = {"loader", "loader, resized", "reading"}
    assert set(rates) == {*ours, "readers.caffe", "readers.caffe, reading", "Pillow", "Pillow, resized"}
    assert all(rate["median"] > 0 for rate in rates.values())
    assert len(ratios) == 5
    assert figures["resident_share"] == 1
    assert all(ratio["min"] <= ratio["median"] <= ratio["max"] for ratio in ratios.values())
    assert all(name in said for name in (*rates, *ratios))
    assert set(figures["main_thread_microseconds_per_record"]) == {"warm", "cold"}
    assert {"cpu", "torch", "dali"} <= set(figures["machine"])


def test_each_stage_has_its_rate_its_milliseconds_and_its_share_of_the_cpus(measured):
    (said, figures), _ = measured
    assert list(figures["stages"]) == ["read", "decode", "resize/crop", "hand-over"]
    for stage in figures["stages"].values():
        batch = stage["milliseconds_per_batch"]
        assert 0 < batch["p50"] <= batch["p99"]
        assert batch["batches"] >= 2
        assert 0 < stage["cpu_share"] < 1.5
    assert figures["stages"]["hand-over"]["images_per_second"] == figures["images_per_second"]["loader"]
    assert all(name in said for name in ("read", "+ decode", "+ resize, crop", "+ hand-over to torch", "p50 ms", "p99 ms"))


def test_cold_pages_have_figures_after_all_else_let_go_of_them(measured):
    (said, figures), _ = measured
    cold = figures["cold"]
    if pages_can_be_dropped(Path(tempfile.gettempdir())):
        assert cold["why_not"] is None
        assert min(cold["loader"]["min"], cold["read"]["min"], cold["loader, cold / warm"]["min"]) > 0
        assert figures["main_thread_microseconds_per_record"]["cold"]["min"] > 0
        assert f"{cold['read']['median']:,.0f}" in said
    else:
        assert (cold["loader"], cold["read"]) == (None, None)
        assert f"cold pages: not measured, {cold['why_not']}" in said


def test_the_verdict_ends_what_is_printed(measured):
    (said, figures), _ = measured
    binds, turn_first, feeds = said.strip().splitlines()[-3:]
    assert [line.split(":")[0] for line in (binds, turn_first, feeds)] == ["binds", "turn first", "feeds"]
    rate = figures["images_per_second"]["loader"]["median"]
    assert feeds.startswith(f"feeds: {rate / 100:.1f} GPUs of 100 images/s")
    assert figures["verdict"]["gpus_fed"] == pytest.approx(rate / 100)


def test_a_trace_has_the_feeding_and_the_waiting_of_each_batch(measured):
    _, trace = measured
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    times = {name: [e for e in events if e["name"] == name] for name in ("batch", "feed", "wait", "hand-over")}
    assert {name: len(found) for name, found in times.items()} == dict.fromkeys(times, BATCHES)
    inside = zip(*(sorted(found, key=lambda event: event["ts"]) for found in times.values()), strict=True)
    for batch, *parts in inside:
        assert all(batch["ts"] <= part["ts"] and part["tid"] == batch["tid"] for part in parts)
        assert sum(part["dur"] for part in parts) <= batch["dur"]
        assert [part["name"] for part in sorted(parts, key=lambda event: event["ts"])] == ["feed", "wait", "hand-over"]


def test_a_trace_shows_the_read_ahead_on_its_own_thread(tmp_path, lmdb_folder):
    write_trace(small_input(lmdb_folder, read_ahead=2), tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    threads = {name: {e["tid"] for e in events if e.get("name") == name} for name in ("read-ahead", "feed")}
    assert threads["read-ahead"]
    assert not threads["read-ahead"] & threads["feed"]


def test_a_trace_that_cannot_be_written_is_known_before_anything_is_measured(tmp_path, lmdb_folder):
    with pytest.raises(DataError, match="cannot be written: No such file or directory; choose another --trace"):
        write_trace(small_input(lmdb_folder), tmp_path / "none" / "trace.json")


def test_over_a_users_own_lmdb_there_are_the_ways_that_it_allows(tmp_path, lmdb_folder):
    said, figures = result(tmp_path, "bench_data.py", *SMALL, "--seconds", "0.1", "--rounds", "1", "--data", lmdb_folder)
    assert set(figures["ratios"]) == {"loader / readers.caffe", "reading / readers.caffe, reading"}
    assert "feeds:" not in said
    assert figures["verdict"]["gpus_fed"] is None


def test_over_raw_images_of_another_program_dalis_reader_is_measured_without_decoding(tmp_path):
    folder = write_caffe(tmp_path / "raw", [raw(number) for number in range(8)])
    sides = ("--batch", "4", "--resize", "48", "--crop", "40", "--device", "cpu", "--threads", "1")
    _, figures = result(tmp_path, "bench_data.py", *sides, "--seconds", "0.1", "--rounds", "1", "--data", folder)
    assert set(figures["ratios"]) == {"reading / readers.caffe, reading"}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rounds": 0}, "--rounds and --batch must be at least 1, --seconds more than 0; got 0, 64, 3"),
        ({"seconds": 0.0}, "got 5, 64, 0"),
        ({"batch": 0}, "got 5, 0, 3"),
        ({"need": 0}, "--need 0 must be more than 0 images/s"),
        ({"data": Path("nowhere")}, "--data nowhere holds no data.mdb: give the folder of one LMDB"),
        ({"images": 3}, "--images 3 must be at least a batch, --batch 64"),
        ({"input": InputConfig(augment="resnet")}, "leave --augment, --resize-mode and --sizes as they are"),
    ],
)
def test_nonsense_is_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        bench_data.Options(**options)


def test_reading_passes_every_byte_of_the_records_on_in_their_order(lmdb_folder):
    loader = small_input(lmdb_folder).loader(lambda *a, **k: CutOff("read", *a, **k))
    records = open_records(lmdb_folder)
    order = small_input(lmdb_folder).order(records)
    for _ in range(3):
        (out,) = loader.run()
        assert [bytes(np.array(out[i])) for i in range(4)] == [bytes(records[n][0]) for n in order().numbers.tolist()]
    loader.close()


def test_decoding_gives_whole_images_and_resizing_gives_crops(lmdb_folder):
    stages = cut_off(small_input(lmdb_folder))
    assert list(stages) == ["read", "decode", "resize/crop"]
    records = open_records(lmdb_folder)
    numbers = small_input(lmdb_folder).order(records)().numbers
    (decoded,) = stages["decode"].run()
    assert [list(decoded[i].shape()) for i in range(4)] == [[*records.sizes[n].tolist(), 3] for n in numbers.tolist()]
    images, _ = stages["resize/crop"].run()
    assert images.as_tensor().shape() == [4, 80, 80, 3]
    for loader in stages.values():
        loader.close()


def test_a_stage_goes_on_without_a_record_that_cannot_be_decoded_as_the_loader_does(on_a_disk):
    records = open_records(on_a_disk)
    bad = small_input(on_a_disk).order(records)().numbers[1]
    image = bytes(records[bad][0])
    data = (on_a_disk / "data.mdb").read_bytes()
    assert data.count(image) == 1
    (on_a_disk / "data.mdb").write_bytes(data.replace(image, bytes(len(image))))
    stages = cut_off(small_input(on_a_disk))
    (decoded,) = stages["decode"].run()
    assert len(decoded) == 4
    for loader in stages.values():
        loader.close()


def test_records_that_only_windows_are_decoded_of_have_no_stage_of_decoding(tmp_path, images):
    stages = cut_off(small_input(build(images, tmp_path / "lmdb", "--resize", "88x88")))
    assert list(stages) == ["read", "resize/crop"]
    for loader in stages.values():
        loader.close()


@pytest.mark.parametrize(("device", "given", "taken"), [("cpu", 0, 96), ("cuda:0", 0, 32), ("cuda:0", 64, 64)])
def test_the_other_ways_have_as_many_threads_as_the_loader_takes(device, given, taken):
    setting = Input(Path("data"), InputConfig(threads=given), 8, torch.device(device), 96)
    assert setting.threads == taken


def test_batches_that_were_made_ahead_are_not_counted(lmdb_folder):
    given, calls = small_input(lmdb_folder), []
    taken = take(lambda: calls.append(1), given, settle=3, seconds=60, most=5)
    assert (len(calls), len(taken.milliseconds)) == (8, 5)
    figures = summed_up([taken, taken])
    assert figures["milliseconds_per_batch"]["batches"] == 10


def test_pages_are_cold_only_once_nobody_has_them_mapped(on_a_disk):
    file = on_a_disk / "data.mdb"
    records = open_records(on_a_disk)
    assert sum(len(bytes(records[n][0])) for n in range(len(records)))
    assert input_pages.drop_pages(file) > 0.5
    del records
    assert input_pages.drop_pages(file) == 0
    file.read_bytes()
    assert input_pages.resident_share(file) == 1


def test_cold_rates_are_of_dropped_pages(on_a_disk):
    figures = input_pages.cold_rates(small_input(on_a_disk), rounds=2, seconds=1)
    assert figures["why_not"] is None
    assert figures["batches"] == 23 // 4 - 2
    assert figures["loader"]["min"] > 0
    assert figures["loader, cold / warm"]["min"] > 0


def test_mapped_pages_give_a_sentence_in_place_of_figures(on_a_disk):
    records = open_records(on_a_disk)
    assert all(len(bytes(records[n][0])) for n in range(len(records)))
    figures = input_pages.cold_rates(small_input(on_a_disk), rounds=1, seconds=1)
    assert figures["loader"] is None
    assert "of data.mdb stayed in the page cache" in figures["why_not"]
    assert input_pages.main_thread_microseconds(small_input(on_a_disk), 1, cold=True) is None


def test_too_few_batches_for_a_cold_epoch_are_said(lmdb_folder):
    figures = input_pages.cold_rates(small_input(lmdb_folder, read_ahead=4), rounds=1, seconds=1)
    assert figures["why_not"].startswith("an epoch has 5 batches and should have 7;")


def figures(stages=SLOW_DECODE, cpu_share=0.98, threads=8, cpus=8, **more):
    return Figures(stages, cpu_share, threads, cpus, **more)


def test_the_stage_that_adds_most_time_binds():
    assert binding(figures())[0] == "decode"
    stage, share = binding(figures(SLOW_RESIZE))
    assert (stage, share) == ("resize/crop", pytest.approx(0.7))
    assert binding(figures({"read": 100.0, "resize/crop": 99.0, "hand-over": 98.0}))[0] == "read"


def test_where_only_windows_are_decoded_decoding_and_cropping_are_one_stage():
    judged = verdict(figures({"read": 50_000.0, "resize/crop": 2_000.0, "hand-over": 2_000.0}))
    assert judged.sentences[0].startswith("binds: decoding and cropping, 96% of an image's time;")


def test_the_disk_binds_where_cold_pages_cost_a_fifth():
    assert binding(figures(cold=300.0, cold_ratio=0.5)) == (DISK, 0.5)
    assert binding(figures(cold=480.0, cold_ratio=0.79))[0] == DISK
    assert binding(figures(cold=490.0, cold_ratio=0.81))[0] == "decode"


@pytest.mark.parametrize(
    ("stage", "given", "words"),
    [
        (DISK, {"build": "328x328"}, "tools/launch/stage_lmdb.sh"),
        (DISK, {}, "--input.read-ahead"),
        ("decode", {"build": "328x328"}, "build the LMDB with --resize 328x328"),
        ("resize/crop", {"build": "192x192"}, "build the LMDB with --resize 192x192"),
        ("resize/crop", {}, "give it more CPUs: it has 8"),
        ("decode", {"build": "328x328", "cpu_share": 0.3, "threads": 2}, "raise --input.threads from 2 to 8"),
        ("resize/crop", {"cpu_share": 0.5}, "raise --input.prefetch"),
        ("read", {}, "give it more CPUs"),
        ("read", {"cpu_share": 0.86}, "give it more CPUs"),
        ("read", {"cpu_share": 0.84}, "raise --input.prefetch"),
        ("hand-over", {"cpu_share": 0.2}, "raise --input.prefetch"),
        ("decode", {"gpus": 8, "build": "328x328", "cpu_share": 0.2}, "raise --input.hw-decoder-load from 0.65, or lower it"),
        ("decode", {"gpus": 8, "build": "328x328"}, "raise --input.hw-decoder-load from 0.65, which spares the CPUs"),
        ("decode", {"gpus": 8, "cpu_share": 0.2, "hw_decoder_load": 1.0}, "lower --input.hw-decoder-load from 1"),
        ("decode", {"gpus": 8, "build": "328x328", "hw_decoder_load": 1.0}, "build the LMDB with --resize 328x328"),
        ("decode", {"gpus": 8, "cpu_share": 0.2, "hw_decoder_load": 0.0}, "load from 0, the GPU's JPEG engines decode"),
        ("resize/crop", {"gpus": 8, "build": "328x328", "cpu_share": 0.2}, "build the LMDB with --resize 328x328"),
    ],
)
def test_what_to_turn_first_follows_from_what_binds(stage, given, words):
    assert words in first_knob(stage, figures(**given))


def test_a_host_without_a_gpu_feeds_what_its_cpus_decode():
    judged = verdict(figures(cold=450.0, cold_ratio=0.75), need=3000)
    assert (judged.gpus_fed, judged.gpus_fed_cold, judged.gpus_fed_by_all) == (0.2, 0.15, None)
    assert judged.sentences[-1].startswith("feeds: 0.2 GPUs of 3,000 images/s, 0.1 from cold pages; decoded by CPUs alone")


@pytest.mark.parametrize(("gpus", "cpu_share", "by_all"), [(8, 0.25, 6.0), (2, 0.25, 3.0), (1, 0.9, 1.5)])
def test_with_gpus_the_pipeline_of_one_is_reckoned_up_to_gpus_or_cpus(gpus, cpu_share, by_all):
    fast = {"read": 90_000.0, "decode": 5_000.0, "resize/crop": 4_500.0, "hand-over": 4_500.0}
    judged = verdict(figures(fast, cpu_share, gpus=gpus), need=3000)
    assert (judged.gpus_fed, judged.gpus_fed_by_all) == (1.5, by_all)
    assert "measured with the pipeline of one GPU" in judged.sentences[-1]
    assert f"this host's {gpus} it would be {by_all}, reckoned" in judged.sentences[-1]


def test_without_a_need_no_gpus_are_counted():
    judged = verdict(figures())
    assert judged.gpus_fed is None
    assert [line.split(":")[0] for line in judged.sentences] == ["binds", "turn first"]


def test_what_the_verdict_rests_on_comes_from_the_result(measured, lmdb_folder):
    (_, written), _ = measured
    options = bench_data.Options(input=InputConfig(resize=88, crop=80))
    rests = bench_data.figures_of(written, bench_data.Data(lmdb_folder), options)
    assert list(rests.stages) == list(written["stages"])
    assert (rests.build, rests.gpus, rests.cpus) == ("88x88", 0, written["cpus"])
