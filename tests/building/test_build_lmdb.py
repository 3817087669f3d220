import errno
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import numpy as np
import pytest

from fastirv2.build_lmdb import Options
from fastirv2.building.check import check
from fastirv2.building.images import Result
from fastirv2.building.sources import open_source
from fastirv2.data.counter import permutation
from fastirv2.data.datum import Datum
from fastirv2.errors import DataError

from .samples import built, class_folders, command, encoded, jpeg, opened, pixels


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("source"), {"ant": 30, "owl": 25, "zebra": 20})


@pytest.fixture(scope="module")
def out(source, tmp_path_factory):
    return built(source, tmp_path_factory.mktemp("built") / "db", workers=2)


def records(folder):
    with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return [(bytes(key), Datum.FromString(value)) for key, value in transaction.cursor()]


def images(folder):
    """(label, JPEG) of every record, in order."""
    return [(datum.label, datum.data) for _, datum in records(folder)]


def dataset(folder):
    return json.loads((folder / "dataset.json").read_text())


def report(folder):
    return [json.loads(line) for line in (folder / "rejected.jsonl").open()]


def in_source_order(folder):
    return [
        (label, path.read_bytes()) for label, name in enumerate(sorted(folder.iterdir())) for path in sorted(name.iterdir())
    ]


def test_records_are_the_files_in_one_random_order(source, out):
    files = in_source_order(source)
    order = permutation(0, 0, len(files)).tolist()
    assert images(out) == [files[position] for position in order]
    assert order != sorted(order)


def test_keys_sizes_and_fields_are_those_of_the_contract(out):
    for number, (key, datum) in enumerate(records(out)):
        assert key == b"%08d" % number
        assert (datum.channels, datum.height, datum.width, datum.encoded) == (3, 32, 48, True)
    index = np.load(out / "index.npy")
    assert index.dtype.names == ("offset", "length", "label", "width", "height")
    assert [index.dtype[name].str for name in index.dtype.names] == ["<u8", "<u4", "<i4", "<u2", "<u2"]
    data = (out / "data.mdb").read_bytes()
    assert [(row["label"], data[row["offset"] :][: row["length"]]) for row in index] == images(out)


def fields_of(value):
    """A message's fields by number, read as Protocol Buffers write them: a reader that is none of the program's own."""
    fields, at = {}, 0

    def number():
        nonlocal at
        total = shift = 0
        while True:
            byte = value[at]
            at, total, shift = at + 1, total | (byte & 127) << shift, shift + 7
            if byte < 128:
                return total

    while at < len(value):
        tag = number()
        if tag & 7 == 0:
            fields[tag >> 3] = number()
        else:
            assert tag & 7 == 2, "neither a number nor bytes"
            length = number()
            fields[tag >> 3], at = value[at : at + length], at + length
    return fields


def test_a_reader_of_caffes_field_numbers_takes_every_record(out):
    channels, height, width, data, label, encoded = 1, 2, 3, 4, 5, 7
    with lmdb.open(str(out), readonly=True, lock=False) as environment, environment.begin() as transaction:
        read = [fields_of(value) for _, value in transaction.cursor()]
    assert [(fields[label], fields[data]) for fields in read] == images(out)
    assert all((fields[channels], fields[height], fields[width], fields[encoded]) == (3, 32, 48, 1) for fields in read)


def test_the_folder_holds_what_the_contract_names(out):
    assert {path.name for path in out.iterdir()} == {
        "data.mdb", "lock.mdb", "index.npy", "names.jsonl", "dataset.json", "rejected.jsonl"
    }  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["db"]
    described = dataset(out)
    assert (described["format_version"], described["count"], described["classes"]) == (1, 75, ["ant", "owl", "zebra"])
    assert (described["images_per_class"], described["part"]) == ([30, 25, 20], None)
    assert (described["resize"], described["quality"], described["seed"]) == ("none", 95, 0)


@pytest.mark.parametrize("copier", ["cp -r", "rsync -a", "tar"])
def test_the_folder_copies_without_growing(out, tmp_path, copier):
    """LMDB's map may be larger than its file, and must not be in the file as a hole that copies fill."""
    if not shutil.which(copier.split()[0]):
        pytest.skip(f"{copier.split()[0]} is not installed")
    copy = tmp_path / "copy"
    if copier == "tar":
        copy.mkdir()
        subprocess.run(f"tar -C {out} -cf - . | tar -C {copy} -xf -", shell=True, check=True)
    else:
        subprocess.run([*copier.split(), f"{out}/", str(copy)], check=True)
    for file in ("data.mdb", "index.npy"):
        status = (copy / file).stat()
        assert status.st_size == (out / file).stat().st_size
        assert status.st_blocks * 512 <= (out / file).stat().st_blocks * 512 + (64 << 10)
    assert (out / "data.mdb").stat().st_size == dataset(out)["pages"] * 4096
    assert check(copy)


def test_dali_reads_the_same_bytes_and_labels(out):
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=25, num_threads=1, device_id=None)
    def reader():
        encoded_images, labels = fn.readers.caffe(path=str(out))
        return encoded_images, fn.decoders.image(encoded_images), labels

    pipeline = reader()
    pipeline.build()
    read = []
    for _ in range(3):
        encoded_images, decoded, labels = pipeline.run()
        for i in range(25):
            data = bytes(np.asarray(encoded_images[i]))
            assert np.abs(np.asarray(decoded[i]).astype(int) - opened(data)).max() <= 2
            read.append((int(np.asarray(labels[i])[0]), data))
    assert read == images(out)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_nothing(source, out, tmp_path, workers):
    again = built(source, tmp_path / "again", workers=workers)
    assert dataset(again) == dataset(out)
    assert (again / "data.mdb").read_bytes() == (out / "data.mdb").read_bytes()


def test_another_seed_is_another_order(source, out, tmp_path):
    other = built(source, tmp_path / "other", seed=1)
    assert images(other) != images(out)
    assert sorted(images(other)) == sorted(images(out))


def test_limit_takes_the_first_and_parts_are_its_slices(source, out, tmp_path):
    first = built(source, tmp_path / "first", limit=23)
    assert images(first) == images(out)[:23]
    parts = [built(source, tmp_path / f"part{i}", limit=23, part=f"{i}/3") for i in (1, 2, 3)]
    assert [image for part in parts for image in images(part)] == images(first)
    assert dataset(parts[1])["part"] == "2/3"
    assert {len(images(part)) for part in parts} == {7, 8}


def test_a_list_gives_the_same_records_as_its_folder(source, out, tmp_path):
    lines = [f"{path.relative_to(source)} {label}" for label, name in enumerate(sorted(source.iterdir()))
             for path in sorted(name.iterdir())]  # fmt: skip
    (tmp_path / "list.txt").write_text("\n".join(lines))
    (tmp_path / "classes").write_text("ant\nowl\nzebra\n")
    listed = built(tmp_path / "list.txt", tmp_path / "db", root=str(source), classes=str(tmp_path / "classes"))
    assert dataset(listed)["digest"] == dataset(out)["digest"]
    assert dataset(listed)["classes"] == dataset(out)["classes"]


def test_bad_images_are_left_out_and_others_repaired_with_a_line_each(tmp_path):
    folder = class_folders(tmp_path / "source", {"ant": 6})
    (folder / "ant/cut.jpg").write_bytes(jpeg()[:-2])
    (folder / "ant/empty.jpg").write_bytes(b"")
    (folder / "ant/photo.jpg").write_bytes(encoded(pixels(), "PNG"))
    db = built(folder, tmp_path / "db", max_bad=0.3, workers=2)
    lines = {line["path"]: (line["action"], line["reason"]) for line in report(db)}
    assert lines == {
        "ant/cut.jpg": ("rejected", "Premature end of JPEG file"),
        "ant/empty.jpg": ("rejected", "the file is empty"),
        "ant/photo.jpg": ("repaired", "PNG instead of JPEG"),
    }
    assert [key for key, _ in records(db)] == [b"%08d" % number for number in range(7)]
    assert check(db, decode=True)


def test_resized_records_say_their_own_size(source, tmp_path):
    db = built(source, tmp_path / "db", resize="short:16", limit=5)
    assert {(datum.width, datum.height) for _, datum in records(db)} == {(24, 16)}
    assert (dataset(db)["resize"], report(db)) == ("short:16", [])
    assert check(db, decode=True)


def test_too_many_bad_images_keep_the_report_and_a_larger_share_goes_on(tmp_path):
    folder = class_folders(tmp_path / "source", {"ant": 9})
    (folder / "ant/bad.jpg").write_bytes(b"bad")
    refused = command(folder, tmp_path / "db")
    assert refused.returncode == 65
    kept = tmp_path / "db.partial/rejected.jsonl"
    assert f"1 of 10 images were rejected, more than --max-bad 0.001 allows; the reasons are in {kept}" in refused.stderr
    assert [line["path"] for line in report(kept.parent)] == ["ant/bad.jpg"]
    assert not (tmp_path / "db").exists()
    accepted = command(folder, tmp_path / "db", "--max-bad", "0.1")
    assert accepted.returncode == 0
    assert re.search(r"\n9 images, 1 rejected, 0 repaired, [\d.]+ kB, [\d.]+ s: .*db\n$", accepted.stdout)


def test_a_table_at_the_end_sums_up_what_was_built(tmp_path):
    folder = class_folders(tmp_path / "source", {"ant": 2, "cat": 1, "owl": 5})
    (folder / "ant/bad.jpg").write_bytes(b"")
    for number in range(3):
        (folder / f"cat/{number}.png").write_bytes(encoded(pixels(90, 70, seed=number), "PNG"))
    (tmp_path / "classes").write_text("ant\ncat\ndog\nowl\n")
    done = command(folder, tmp_path / "db", "--max-bad", 1, "--classes", tmp_path / "classes")
    rows = [re.split(r"  +", line.strip()) for line in done.stdout.splitlines()[:-1] if line.strip()]
    assert rows[:4] == [
        ["images", "11"],
        ["classes", "4, 1 of them empty"],
        ["smallest class", "dog, 0 images"],
        ["largest class", "owl, 5 images"],
    ]
    assert re.fullmatch(r"48 × 32 pixels, [\d.]+ k?B", rows[4][1])
    assert rows[5:9] == [["repaired", "3"], ["3 × PNG instead of JPEG"], ["rejected", "1"], ["1 × the file is empty"]]
    assert [row[0] for row in rows[9:]] == ["size", "time"]


def test_images_that_are_all_bad_make_no_lmdb(tmp_path):
    (tmp_path / "source/ant").mkdir(parents=True)
    (tmp_path / "source/ant/bad.jpg").write_bytes(b"bad")
    with pytest.raises(DataError, match="none of the 1 images can be used"):
        built(tmp_path / "source", tmp_path / "db", max_bad=1.0)


DYING = """
import os, pathlib, signal, sys
import fastirv2.build_lmdb as command
import fastirv2.building.partial as partial
import fastirv2.building.writer as writer
import fastirv2.files as files

def dying(function, calls):
    def wrapper(*arguments, **options):
        wrapper.calls -= 1
        if wrapper.calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    wrapper.calls = calls
    return wrapper

writer.COMMIT_RECORDS = 7
owner, name, calls = eval(sys.argv[1]), sys.argv[2], int(sys.argv[3])
setattr(owner, name, dying(getattr(owner, name), calls))
command.build(command.parse_options(sys.argv[4:]))
"""


def killed_at(owner, name, calls, *arguments):
    """Build in a process that kills itself with SIGKILL at that call of a function."""
    line = [sys.executable, "-c", DYING, owner, name, str(calls), *map(str, arguments)]
    assert subprocess.run(line, check=False, capture_output=True, timeout=120).returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A source with good, bad and repaired images, and the undisturbed build of it."""
    folder = class_folders(tmp_path_factory.mktemp("mixed") / "source", {"ant": 30, "owl": 20})
    for number in range(5):
        (folder / f"owl/bad{number}.jpg").write_bytes(jpeg()[: -2 - number])
        (folder / f"ant/png{number}.jpg").write_bytes(encoded(pixels(seed=100 + number), "PNG"))
    return folder, built(folder, folder.parent / "db", max_bad=1.0)


@pytest.mark.parametrize(
    ("owner", "name", "calls"),
    [
        pytest.param("os", "fdatasync", 0, id="before anything is on the disk"),
        pytest.param("writer.RecordWriter", "_put_items", 3, id="between journal and records"),
        pytest.param("writer.RecordWriter", "_go_on", 0, id="before the first image"),
        pytest.param("writer.RecordWriter", "add", 45, id="between two commits"),
        pytest.param("command", "write_dataset", 0, id="after the last image"),
        pytest.param("files", "sync_folder", 1, id="after index.npy"),
        pytest.param("partial", "sync_folder", 0, id="before the rename"),
        pytest.param("partial", "sync_folder", 1, id="after the rename"),
    ],
)
def test_a_killed_build_goes_on_to_the_same_end(mixed, tmp_path, owner, name, calls):
    folder, undisturbed = mixed
    killed_at(owner, name, calls, folder, tmp_path / "db", "--workers", 1, "--max-bad", 1)
    if (owner, name, calls) == ("partial", "sync_folder", 1):
        assert dataset(tmp_path / "db")["digest"] == dataset(undisturbed)["digest"]
        return
    assert not (tmp_path / "db").exists()
    db = built(folder, tmp_path / "db", max_bad=1.0)
    assert dataset(db)["digest"] == dataset(undisturbed)["digest"]
    assert report(db) == report(undisturbed)
    assert images(db) == images(undisturbed)
    assert {path.name for path in tmp_path.iterdir()} == {"db"}
    assert check(db)


def test_a_build_killed_twice_does_not_begin_again(mixed, tmp_path, monkeypatch):
    folder, undisturbed = mixed
    arguments = (folder, tmp_path / "db", "--workers", 1, "--max-bad", 1)
    killed_at("writer.RecordWriter", "add", 25, *arguments)
    killed_at("writer.RecordWriter", "add", 20, *arguments)
    rows = (tmp_path / "db.partial/journal").stat().st_size
    prepared = []
    record = command_module().RecordWriter.add
    monkeypatch.setattr(command_module().RecordWriter, "add", lambda *a: (prepared.append(a[1]), record(*a)))
    db = built(folder, tmp_path / "db", max_bad=1.0)
    assert rows > 0
    assert len(prepared) <= 60 - 35
    assert dataset(db)["digest"] == dataset(undisturbed)["digest"]


def command_module():
    import fastirv2.build_lmdb

    return fastirv2.build_lmdb


GATE = """
import builtins, os
really = builtins.open
def open(path, *rest, **options):
    if str(path).endswith("/held.jpg"):
        really(os.environ["GATE"], "rb").read()
    return really(path, *rest, **options)
builtins.open = open
"""


@pytest.fixture
def blocked(tmp_path):
    """A build that stands still since whoever opens one of its images reads a pipe first; the image, the pipe's other end."""
    folder = class_folders(tmp_path / "source", {"ant": 40})
    image, gate, site = folder / "ant/held.jpg", tmp_path / "gate", tmp_path / "site"
    image.write_bytes(jpeg())
    os.mkfifo(gate)
    site.mkdir()
    (site / "sitecustomize.py").write_text(GATE)
    line = [sys.executable, "-m", "fastirv2.build_lmdb", str(folder), str(tmp_path / "db"), "--workers", "2"]
    env = {**os.environ, "PYTHONPATH": f"{site}:{os.environ.get('PYTHONPATH', '')}", "GATE": str(gate)}
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True, env=env)
    writing = gate.open("wb")  # returns as soon as a worker opens it for reading
    yield process, image, writing
    writing.close()
    if process.poll() is None:
        process.kill()
    process.stderr.close()
    process.wait()


def readers(image):
    """The processes that are held at the image, without this one."""
    pipe = image.parents[2] / "gate"
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.samefile(pipe) and int(link.parts[2]) != os.getpid():
                found.add(int(link.parts[2]))
        except OSError:
            continue
    return found


def test_a_killed_worker_is_named_and_its_images_are_tried_once_more(blocked):
    process, image, _ = blocked
    (worker,) = readers(image)
    os.kill(worker, signal.SIGKILL)
    notice = process.stderr.readline()
    assert notice == (
        f"worker process {worker} ended (killed by signal 9; out of memory?) while working on {image}; "
        "another one tries again\n"
    )
    (second,) = wait_for_reader(image)
    assert second != worker
    os.kill(second, signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 65
    assert errors.count("\n") == 1
    assert f"worker process {second} ended (killed by signal 9; out of memory?) while working on {image}, as others" in errors
    assert "give the same command to go on" in errors


def test_images_that_are_gone_for_a_while_are_not_left_out(blocked, tmp_path):
    """A disk that fails ends the build; when it is back, the same command has every image."""
    process, image, writing = blocked
    classes = image.parent
    classes.rename(tmp_path / "away")
    writing.close()
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 65
    assert f"{classes}/" in errors
    assert "cannot be read: No such file or directory; when that is mended, the same command goes on" in errors
    (tmp_path / "away").rename(classes)
    db = built(classes.parent, tmp_path / "db", max_bad=0.0)
    assert dataset(db)["count"] == 41


def test_a_class_tar_that_is_gone_ends_the_build(tmp_path, monkeypatch):
    tars = tmp_path / "tars"
    tars.mkdir()
    for name in ("ant", "owl"):
        folder = class_folders(tmp_path / name, {name: 3}) / name
        subprocess.run(["tar", "-C", folder, "-cf", tars / f"{name}.tar", "."], check=True)
    listing = command_module().open_source
    monkeypatch.setattr(command_module(), "open_source", lambda *a: (listing(*a), (tars / "owl.tar").rename(tmp_path / "o"))[0])
    with pytest.raises(DataError, match=r"owl\.tar cannot be read: .*; when that is mended, the same command goes on"):
        built(tars, tmp_path / "db", max_bad=1.0)
    monkeypatch.undo()
    (tmp_path / "o").rename(tars / "owl.tar")
    assert dataset(built(tars, tmp_path / "db"))["images_per_class"] == [3, 3]


def test_a_folder_that_may_no_longer_be_read_ends_the_build(tmp_path, monkeypatch):
    """As where a network disk's ticket expires."""
    folder = class_folders(tmp_path / "source", {"ant": 1})
    source, refused = open_source(str(folder)), Result(None, 0, 0, 0, 0, "cannot be read: Permission denied", 0, errno.EACCES)
    command_module().check_source(source, 0, refused)
    monkeypatch.setattr(os, "access", lambda path, _: path != str(folder / "ant"))
    with pytest.raises(DataError, match=r"Permission denied; when that is mended, the same command goes on"):
        command_module().check_source(source, 0, refused)


def test_an_image_that_alone_is_gone_is_left_out(tmp_path):
    folder = class_folders(tmp_path / "source", {"ant": 4})
    (folder / "ant/link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert report(built(folder, tmp_path / "db", max_bad=1.0)) == [
        {"path": "ant/link.jpg", "reason": "cannot be read: No such file or directory", "action": "rejected"}
    ]


def test_ctrl_c_while_workers_start_is_not_lost(tmp_path):
    folder = class_folders(tmp_path / "source", {"ant": 3000}, width=8, height=8)
    line = [sys.executable, "-m", "fastirv2.build_lmdb", str(folder), str(tmp_path / "db"), "--workers", "12"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "db.partial/journal").exists() and process.poll() is None:
        time.sleep(0.005)  # the writer is there, and the workers are next
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 75
    assert "give the same command to go on" in errors
    assert "Traceback" not in errors


def test_more_workers_than_a_process_may_have_files_are_no_mistake(tmp_path):
    folder = class_folders(tmp_path / "source", {"ant": 200}, width=8, height=8)
    done = command(folder, tmp_path / "db", "--workers", 40, preexec_fn=limit_open_files)
    assert done.returncode == 0, done.stderr


def limit_open_files():
    import resource

    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def test_an_out_that_another_builder_finished_meanwhile_is_left_alone(tmp_path, monkeypatch):
    folder = class_folders(tmp_path / "source", {"ant": 3})
    listing = command_module().open_source

    def slow(*arguments):
        built(folder, tmp_path / "db", seed=1) if not (tmp_path / "db").exists() else None
        return listing(*arguments)

    monkeypatch.setattr(command_module(), "open_source", lambda *a: (monkeypatch.undo(), slow(*a))[1])
    with pytest.raises(DataError, match="exists already"):
        built(folder, tmp_path / "db")
    assert dataset(tmp_path / "db")["seed"] == 1


def test_an_out_that_is_a_link_is_built_where_it_leads(tmp_path):
    folder = class_folders(tmp_path / "source", {"ant": 3})
    (tmp_path / "disk").mkdir()
    (tmp_path / "db").symlink_to(tmp_path / "disk/db")
    built(folder, tmp_path / "db")
    built(folder, tmp_path / "db", overwrite=True)
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"db"}
    assert (tmp_path / "db").is_symlink()
    assert check(tmp_path / "db")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(DataError, match="lies inside of SOURCE"):
        built(tmp_path / "link", folder / "db")


def test_images_beside_the_classes_are_spoken_of(tmp_path):
    folder = class_folders(tmp_path / "source", {"ant": 3, "owl": 2})
    (folder / "loose.jpg").write_bytes(jpeg())
    (folder / "README.txt").write_text("no image")
    done = command(folder, tmp_path / "db")
    assert done.returncode == 0
    assert f"left out what lies beside the classes of {folder}: 1 images, as loose.jpg\n" in done.stderr


def test_a_class_in_a_compressed_tar_does_not_shift_the_labels_of_others(tmp_path):
    tars = tmp_path / "tars"
    tars.mkdir()
    for name, file in (("ant", "ant.tar"), ("cat", "cat.tar.gz"), ("owl", "owl.tar")):
        folder = class_folders(tmp_path / name, {name: 2}) / name
        subprocess.run(["tar", "-C", folder, "-caf", tars / file, "."], check=True)
    refused = command(tars, tmp_path / "db")
    assert refused.returncode == 65
    assert f"{tars} holds cat.tar.gz beside class tars: it cannot be read without unpacking it" in refused.stderr


def wait_for_reader(image):
    """Return the processes that have the pipe open, as soon as there is one."""
    deadline = time.monotonic() + 60
    while not (found := readers(image)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("to_group", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_build_with_one_sentence(blocked, number, to_group):
    process, image, _ = blocked
    (os.killpg if to_group else os.kill)(process.pid, number)
    errors = process.communicate(timeout=60)[1]
    assert (process.returncode, errors.count("\n")) == (75, 1), errors
    assert "give the same command to go on" in errors
    assert (image.parents[2] / "db.partial/build.json").exists()


def test_workers_end_when_their_builder_is_killed(blocked):
    process, _, writing = blocked
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    watched = [os.pidfd_open(int(child)) for child in children]
    process.kill()
    process.wait()
    writing.close()  # the worker reads to the end of the pipe, and finds nobody to answer
    for descriptor in watched:
        assert select.select([descriptor], [], [], 60)[0], "a worker outlives its builder"
        os.close(descriptor)


def test_a_second_builder_says_who_holds_the_folder(blocked):
    process, image, _ = blocked
    second = command(image.parents[1], image.parents[2] / "db")
    assert second.returncode == 65
    assert f"process {process.pid} is building {image.parents[2] / 'db'} already" in second.stderr


def test_a_partial_of_other_settings_is_refused_by_name(mixed, tmp_path):
    folder, _ = mixed
    arguments = (folder, tmp_path / "db", "--workers", 1, "--quality", 90)
    killed_at("writer.RecordWriter", "add", 30, *arguments)
    options = {"quality": 90, "max_bad": 1.0}
    for change, message in (
        ({"quality": 91}, "was begun with --quality 90, not 91"),
        ({"seed": 5}, "was begun with --seed 0, not 5"),
        ({"limit": 9}, "was begun without --limit, not with 9"),
        ({"resize": "8x8"}, "was begun with --resize none, not 8x8"),
        ({"part": "1/2"}, "was begun without --part, not with 1/2"),
    ):
        with pytest.raises(DataError, match=f"{message}.*--overwrite"):
            built(folder, tmp_path / "db", **{**options, **change})
    other = class_folders(tmp_path / "other", {"ant": 3})
    with pytest.raises(DataError, match="was begun from 60 images, not 3"):
        built(other, tmp_path / "db", **options)
    assert len(images(built(other, tmp_path / "db", overwrite=True, **options))) == 3


def test_a_partial_of_renamed_images_is_refused(tmp_path):
    folder = class_folders(tmp_path / "source", {"ant": 12})
    killed_at("writer.RecordWriter", "add", 10, folder, tmp_path / "db")
    (folder / "ant/000.jpg").rename(folder / "ant/999.jpg")
    with pytest.raises(DataError, match="was begun from other images, labels or class names"):
        built(folder, tmp_path / "db")


def test_an_existing_lmdb_is_replaced_only_when_asked_and_only_at_the_end(tmp_path):
    one = class_folders(tmp_path / "one", {"ant": 3})
    two = class_folders(tmp_path / "two", {"owl": 4})
    db = built(one, tmp_path / "db")
    before = (db / "data.mdb").read_bytes()
    with pytest.raises(DataError, match="exists already; give --overwrite"):
        built(two, db)
    killed_at("command", "write_dataset", 0, two, db, "--overwrite")
    assert (db / "data.mdb").read_bytes() == before
    killed_at("pathlib.Path", "rename", 1, two, db, "--overwrite")
    assert (tmp_path / "db.replaced/data.mdb").read_bytes() == before
    assert len(images(built(two, db, overwrite=True))) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "db"}


def test_overwrite_leaves_a_folder_of_other_things_alone(tmp_path):
    folder = class_folders(tmp_path / "source", {"ant": 3})
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").touch()
    with pytest.raises(DataError, match="is no LMDB folder of ours"):
        built(folder, tmp_path / "home", overwrite=True)
    assert (tmp_path / "home/thesis.tex").exists()


def test_a_disk_without_room_ends_the_build_with_what_is_needed(tmp_path):
    """The limit on a file's size stands for the disk's: the system refuses the write in the same way."""
    folder = class_folders(tmp_path / "source", {"ant": 60}, width=200, height=150, quality=98)
    size = sum(path.stat().st_size for path in folder.rglob("*.jpg"))
    limited = command(folder, tmp_path / "db", preexec_fn=lambda: limit_files(size // 2))
    assert limited.returncode == 65
    assert "Traceback" not in limited.stderr
    assert "does not fit in a file as large as ulimit -f allows: the LMDB needs" in limited.stderr.splitlines()[-1]
    assert (tmp_path / "db.partial/data.mdb").exists()
    assert command(folder, tmp_path / "db").returncode == 0


def limit_files(size):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give SOURCE and OUT, or --check OUT"),
        (["{source}", "{tmp}/db", "--colour"], 2, "--colour"),
        (["{source}", "{tmp}/db", "--resize", "big"], 2, "--resize big is none of"),
        (["{source}", "{tmp}/db", "--part", "0/3"], 2, "--part 0/3 must be i/n"),
        (["{source}", "{tmp}/db", "--part", "4/3"], 2, "--part 4/3 must be i/n"),
        (["{source}", "{tmp}/db", "--quality", "0"], 2, "--quality 0 must be between 1 and 100"),
        (["{source}", "{tmp}/db", "--max-bad", "nan"], 2, "--max-bad nan must be between 0 and 1"),
        (["{source}", "{tmp}/db", "--limit", "0"], 2, "--limit 0 must be at least 1"),
        (["{source}", "{tmp}/db", "--decode"], 2, "--decode goes with --check"),
        (["{source}", "{tmp}/db", "--check", "{tmp}/db"], 2, "--check takes its folder alone"),
        (["--check", "{tmp}/db", "--resize", "64x64"], 2, "--resize goes with building an LMDB; leave it out beside --check"),
        (["{tmp}/absent", "{tmp}/db"], 65, "absent does not exist"),
        (["{source}", "{source}/db"], 65, "lies inside of SOURCE"),
        (["{source}", "/dev/null/db"], 65, "cannot be"),
        (["{source}", "/proc/db"], 65, "cannot be"),
        (["{source}", "{tmp}/db", "--part", "80/80"], 65, None),
        (["{source}", "{tmp}/db", "--part", "1/80"], 65, "--part 1/80 of 75 images holds none"),
    ],
)
def test_a_mistake_is_one_sentence_with_an_exit_code(source, tmp_path, arguments, code, message):
    result = command(*(argument.format(source=source, tmp=tmp_path) for argument in arguments))
    if message is None:
        assert result.returncode == 0
        return
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_every_option_has_its_line_of_help():
    text = command("--help").stdout
    for name in Options.__dataclass_fields__:
        assert (name.upper() if name in ("source", "out") else f"--{name.replace('_', '-')}") in text
