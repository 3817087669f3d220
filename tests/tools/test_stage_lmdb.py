"""stage_lmdb.sh copies LMDBs to a node's disk: once, whole, by one process at a time."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastirv2.data.records import open_records
from tests.conftest import build
from tests.tools.test_tools import TOOLS

SCRIPT = TOOLS / "launch/stage_lmdb.sh"


def stand_in(folder, name, text):
    """Put a program of this name first on PATH; return the environment with it."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def slow_cp(tmp_path):
    """A cp that takes its time and tells what it copied."""
    return stand_in(tmp_path / "bin", "cp", f'#!/bin/sh\necho "$2" >>{tmp_path}/copied\nsleep 0.3\nexec /bin/cp "$@"\n')


def start(tmp_path, *arguments, environment=None):
    line = [SCRIPT, "--to", tmp_path / "nvme", *arguments]
    return subprocess.Popen(
        line,
        env={**os.environ, "PYTHON": sys.executable, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def stage(tmp_path, *arguments, environment=None):
    process = start(tmp_path, *arguments, environment=environment)
    said, complained = process.communicate(timeout=60)
    return process.returncode, said, complained


def staged(tmp_path, *arguments):
    code, said, complained = stage(tmp_path, *arguments)
    assert code == 0, complained
    assert said.count("\n") == 1
    return [Path(path) for path in said.strip().split(",")]


def copied(tmp_path):
    return sorted(Path(line).name for line in (tmp_path / "copied").read_text().splitlines())


def assert_equal(source, copy):
    for name in ("data.mdb", "dataset.json", "index.npy", "names.jsonl", "rejected.jsonl"):
        assert (copy / name).read_bytes() == (source / name).read_bytes()
    ours, theirs = open_records(copy), open_records(source)
    assert [(bytes(ours[i][0]), ours[i][1]) for i in range(len(ours))] == [
        (bytes(theirs[i][0]), theirs[i][1]) for i in range(len(theirs))
    ]


@pytest.fixture(scope="module")
def other_folder(images, tmp_path_factory):
    return build(images, tmp_path_factory.mktemp("other") / "lmdb", "--resize", "40x40")


def test_lmdbs_are_copied_and_their_places_printed_joined_by_commas(tmp_path, lmdb_folder, other_folder):
    for arguments in ((lmdb_folder, other_folder), (f"{lmdb_folder},{other_folder}",)):
        places = staged(tmp_path, *arguments)
        assert len(set(places)) == 2  # though both are called lmdb
        assert_equal(lmdb_folder, places[0])
        assert_equal(other_folder, places[1])


def test_what_is_there_is_not_copied_again(tmp_path, lmdb_folder):
    (place,) = staged(tmp_path, lmdb_folder)
    before = {path.name: path.stat().st_ino for path in place.iterdir()}
    assert staged(tmp_path, f"{lmdb_folder}/") == [place]
    assert {path.name: path.stat().st_ino for path in place.iterdir()} == before


def test_one_process_copies_and_the_others_wait_for_it(tmp_path, lmdb_folder):
    environment = slow_cp(tmp_path)
    processes = [start(tmp_path, lmdb_folder, environment=environment) for _ in range(3)]
    ends = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({said for said, _ in ends}) == 1
    assert copied(tmp_path) == ["data.mdb", "dataset.json", "index.npy", "names.jsonl", "rejected.jsonl"]
    assert any("waiting for another process" in complained for _, complained in ends)
    assert_equal(lmdb_folder, Path(ends[0][0].strip()))


def test_a_copy_that_was_interrupted_is_made_anew(tmp_path, lmdb_folder):
    process = start(tmp_path, lmdb_folder, environment=slow_cp(tmp_path))
    deadline = time.monotonic() + 30
    while not list((tmp_path / "nvme").glob("*/*.copying/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (left,) = (tmp_path / "nvme").glob("*/*.copying")
    (left / "data.mdb").write_bytes(b"half")
    (place,) = staged(tmp_path, lmdb_folder)
    assert_equal(lmdb_folder, place)
    assert not left.exists()


def test_a_copy_that_lost_a_part_is_replaced(tmp_path, lmdb_folder):
    (place,) = staged(tmp_path, lmdb_folder)
    os.truncate(place / "data.mdb", 4096)
    assert staged(tmp_path, lmdb_folder) == [place]
    (place / "index.npy").unlink()
    assert staged(tmp_path, lmdb_folder) == [place]
    assert_equal(lmdb_folder, place)


def test_another_build_at_the_same_path_is_copied_beside_the_first(tmp_path, lmdb_folder, other_folder):
    source = tmp_path / "lmdb"
    shutil.copytree(lmdb_folder, source)
    (first,) = staged(tmp_path, source)
    shutil.rmtree(source)
    shutil.copytree(other_folder, source)
    (second,) = staged(tmp_path, source)
    assert first != second
    assert_equal(lmdb_folder, first)
    assert_equal(other_folder, second)


def test_too_little_space_is_found_before_anything_is_copied(tmp_path, lmdb_folder, other_folder):
    held = (lmdb_folder / "data.mdb").stat().st_size
    environment = stand_in(tmp_path / "bin", "df", f"#!/bin/sh\necho Avail\necho {held}\n")
    code, said, complained = stage(tmp_path, lmdb_folder, other_folder, environment=environment)
    assert (code, said) == (65, "")
    assert " free, but " in complained
    assert "name another folder with --to" in complained
    assert not list((tmp_path / "nvme").glob("*/lmdb*"))


def test_a_disk_that_fills_while_copying_keeps_nothing(tmp_path, lmdb_folder):
    environment = stand_in(tmp_path / "bin", "cp", '#!/bin/sh\n/bin/cp "$@"\necho "cp: No space left on device" >&2\nexit 1\n')
    code, said, complained = stage(tmp_path, lmdb_folder, environment=environment)
    assert (code, said) == (65, "")
    assert "No space left on device" in complained
    assert "cannot be copied to" in complained
    assert not list((tmp_path / "nvme").glob("*/lmdb*"))


def test_check_refuses_a_damaged_image_and_leaves_no_copy(tmp_path, lmdb_folder):
    source = shutil.copytree(lmdb_folder, tmp_path / "lmdb")
    (place,) = staged(tmp_path, "--check", source)
    shutil.rmtree(place)
    with (source / "data.mdb").open("r+b") as file:
        file.seek(-3000, os.SEEK_END)
        file.write(bytes(200))
    code, said, complained = stage(tmp_path, "--check", source)
    assert (code, said) == (65, "")
    assert "is damaged" in complained
    assert not place.exists()


def test_what_cannot_be_staged_is_refused(tmp_path, lmdb_folder, images):
    for arguments, code, reason in (
        ((), 2, "name at least one LMDB folder"),
        (("--chekc", lmdb_folder), 2, "there is no option --chekc"),
        ((images,), 65, "is no finished LMDB folder of fastirv2-build-lmdb"),
        ((lmdb_folder, tmp_path / "none"), 65, f"{tmp_path}/none is no finished LMDB folder"),
        (("--to", tmp_path / "a,b", lmdb_folder), 2, "has a comma in its name"),
    ):
        ended, said, complained = stage(tmp_path, *arguments)
        assert (ended, said) == (code, "")
        assert reason in complained
