"""What a build must not touch, what it refuses at its start, and where it stands still for nothing."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from fastirv2.build_lmdb import Options, build
from fastirv2.building.check import check
from fastirv2.building.partial import disk_errors, open_partial, size_in_lmdb, what_is_full
from fastirv2.building.progress import Progress
from fastirv2.building.writer import COMMIT_BYTES, read_journal
from fastirv2.errors import DataError, StoppedError

from .samples import built, class_folders, command

SETTINGS = dict.fromkeys(("resize", "quality", "seed", "limit", "part", "images", "source")) | {"format_version": 1}


@pytest.fixture
def source(tmp_path):
    return class_folders(tmp_path / "source", {"ant": 6, "owl": 5})


@pytest.mark.parametrize("end", ["partial", "replaced"])
def test_a_folder_beside_out_that_no_build_made_stays_as_it_is(source, tmp_path, end):
    built(source, tmp_path / "db")
    folder = tmp_path / f"db.{end}"
    folder.mkdir()
    (folder / "mine").write_text("precious")
    with pytest.raises(DataError, match=f"db.{end} holds mine, which no build has made; move it away"):
        built(source, tmp_path / "db", overwrite=True)
    assert (folder / "mine").read_text() == "precious"
    assert check(tmp_path / "db")


def test_images_are_not_taken_for_a_build_that_can_be_thrown_away(source, tmp_path):
    images = source.rename(tmp_path / "db.partial")
    for overwrite in (False, True):
        with pytest.raises(DataError, match=r"db.partial lies where OUT is built"):
            built(images, tmp_path / "db", overwrite=overwrite)
    assert len(list(images.rglob("*.jpg"))) == 11


def test_a_file_in_the_lock_s_place_stays_as_it_is(source, tmp_path):
    lock = tmp_path / "db.lock"
    lock.write_text("precious")
    with pytest.raises(DataError, match="it holds something else"):
        built(source, tmp_path / "db")
    assert lock.read_text() == "precious"
    lock.rename(tmp_path / "other")
    lock.symlink_to("other")
    with pytest.raises(DataError, match=r"db.lock cannot be made and locked"):
        built(source, tmp_path / "db")
    assert (tmp_path / "other").read_text() == "precious"


def test_the_lock_of_a_builder_that_was_killed_is_taken(source, tmp_path):
    (tmp_path / "db.lock").write_text("12345 on a-node\n")
    assert check(built(source, tmp_path / "db"))


def test_an_out_that_came_meanwhile_is_not_replaced(source, tmp_path, monkeypatch):
    def comes(*_):
        (tmp_path / "db").mkdir(exist_ok=True)

    monkeypatch.setattr(Progress, "show", comes)
    with pytest.raises(DataError, match="db exists already; give --overwrite"):
        built(source, tmp_path / "db")
    (tmp_path / "db").rmdir()
    assert check(built(source, tmp_path / "db"))


def test_a_build_killed_at_its_very_start_goes_on(source, tmp_path):
    (tmp_path / "db.partial").mkdir()
    (tmp_path / "db.partial/build.json.new").touch()
    assert check(built(source, tmp_path / "db"))


def test_a_build_of_another_format_does_not_go_on(tmp_path):
    folder = open_partial(tmp_path / "db", SETTINGS, overwrite=False)
    (folder / "journal").touch()
    assert open_partial(tmp_path / "db", SETTINGS, overwrite=False) == folder
    with pytest.raises(DataError, match="was begun by another version of the program; give the same command to go on, or"):
        open_partial(tmp_path / "db", SETTINGS | {"format_version": 2}, overwrite=False)


def test_a_build_that_was_half_thrown_away_does_not_go_on(tmp_path, monkeypatch):
    def killed(_):
        raise KeyboardInterrupt

    folder = open_partial(tmp_path / "db", SETTINGS, overwrite=False)
    (folder / "data.mdb").touch()
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        open_partial(tmp_path / "db", SETTINGS | {"seed": 1}, overwrite=True)
    with pytest.raises(DataError, match=r"db.partial holds no build that can go on; give --overwrite to begin anew"):
        open_partial(tmp_path / "db", SETTINGS, overwrite=False)


def test_a_stopped_build_keeps_what_is_done(source, tmp_path, monkeypatch):
    def stopped(*_):
        raise StoppedError("stopped by SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "show", stopped)
        with pytest.raises(StoppedError, match=r"stopped with ([1-9]|1[01]) of 11 images"):
            build(Options(source=str(source), out=str(tmp_path / "db"), workers=1))
    kept = len(read_journal(tmp_path / "db.partial"))
    assert kept >= 1
    whole = json.loads((built(source, tmp_path / "whole") / "dataset.json").read_text())
    assert json.loads((built(source, tmp_path / "db") / "dataset.json").read_text())["digest"] == whole["digest"]


def test_a_stop_in_the_midst_of_a_commit_writes_nothing_twice(source, tmp_path, monkeypatch):
    def stopped(_):
        raise StoppedError("stopped by SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", stopped)
        with pytest.raises(StoppedError, match="stopped with 0 of 11 images"):
            build(Options(source=str(source), out=str(tmp_path / "db"), workers=1))
    assert len(read_journal(tmp_path / "db.partial")) <= 11
    assert json.loads((built(source, tmp_path / "db") / "dataset.json").read_text())["count"] == 11


def test_a_pipe_among_the_images_is_left_out_and_not_waited_for(source, tmp_path):
    os.mkfifo(source / "ant/pipe.jpg")
    db = built(source, tmp_path / "db", max_bad=0.5)
    (line,) = (db / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "cannot be read: is a device, pipe or socket"
    assert json.loads((db / "dataset.json").read_text())["count"] == 11


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (b"db\xff", "is no text in UTF-8"),
        (b"db.partial", "choose an OUT that does not end in .partial"),
        (b"circle", "is a link that leads to itself"),
    ],
)
def test_an_out_that_will_not_do_is_refused_at_the_start(source, tmp_path, name, message):
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(DataError, match=message):
        built(source, tmp_path / os.fsdecode(name))


def test_class_names_and_options_that_were_changed_are_found(source, tmp_path):
    file = built(source, tmp_path / "db") / "dataset.json"
    text = file.read_text()
    for name, changed in (("classes", text.replace('"ant"', '"emu"', 1)), ("seed", text.replace('"seed": 0', '"seed": 1', 1))):
        file.write_text(changed)
        with pytest.raises(DataError, match=f"{name} is not what the LMDB was built with"):
            check(tmp_path / "db")
    old = json.loads(text)
    del old["classes_digest"]
    file.write_text(json.dumps(old))
    assert check(tmp_path / "db")


def test_the_size_that_an_lmdb_needs_is_foretold(tmp_path):
    for side in (24, 48, 200):
        folder = class_folders(tmp_path / f"source{side}", {"ant": 150}, width=side, height=side)
        db = built(folder, tmp_path / f"db{side}")
        lengths = np.load(db / "index.npy")["length"]
        assert (db / "data.mdb").stat().st_size == pytest.approx(150 * size_in_lmdb(lengths), rel=0.1)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"does not fit on its disk: the LMDB needs more, it has 0 B now and .* are free; make room and"),
        (errno.EDQUOT, r"does not fit in your quota there: the LMDB needs more, it has 0 B now; make room and give the same"),
        (errno.EIO, r"Input/output error; when that is mended, the same command goes on"),
    ],
)
def test_what_is_full_is_said_and_what_to_do(tmp_path, monkeypatch, number, words):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refused)
    with pytest.raises(DataError, match=words), disk_errors(tmp_path, 7):
        refused()


def test_what_is_full_is_what_cannot_take_more_behind_what_it_holds(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (COMMIT_BYTES + 4096, limits[1]))
    try:
        (tmp_path / "data.mdb").write_bytes(bytes(4096))
        assert what_is_full(tmp_path) is None
        (tmp_path / "data.mdb").write_bytes(bytes(8192))
        assert what_is_full(tmp_path) == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    ("streams", "code"), [(">&-", 0), ("2>&-", 0), (">/dev/full", 0), ("2>/dev/full", 0), ("| true", 141)]
)
def test_a_build_whose_words_nobody_can_read_is_done_nevertheless(source, tmp_path, streams, code):
    line = f"set -o pipefail; {sys.executable} -m fastirv2.build_lmdb {source} {tmp_path / 'db'} {streams}"
    done = subprocess.run(["bash", "-c", line], check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert check(tmp_path / "db")


def test_a_long_temporary_folder_is_named(source, tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    done = command(source, tmp_path / "db", env={**os.environ, "TMPDIR": str(deep)})
    assert done.returncode == 65
    assert f"{deep} is too long a path" in done.stderr
    assert "Traceback" not in done.stderr
