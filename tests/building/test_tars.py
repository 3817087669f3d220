"""Tars are read where they lie, and give what the folders give that they would be unpacked to."""

import os
import subprocess
import tarfile

import pytest

from fastirv2.building.sources import open_source
from fastirv2.errors import DataError, UsageError

from .samples import built
from .samples import class_folders as photographs
from .tar_samples import (
    CLASSES,
    NEEDS_TAR,
    PACKERS,
    by_python,
    class_folders,
    class_tars,
    files,
    sequence,
    special,
    tar_bytes,
    tar_of,
)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("unpacked") / "train")


@pytest.mark.parametrize("pack", PACKERS)
def test_a_tar_of_class_tars_is_its_unpacked_folders(unpacked, tmp_path, pack):
    tars = class_tars(tmp_path / "tars", unpacked, pack)
    path = pack(tmp_path / "train.tar", tars, sorted(os.listdir(tars))[::-1])
    source = open_source(str(path))
    assert sequence(source) == sequence(open_source(str(unpacked)))
    assert source.packed
    assert {source.place(i).path for i in range(len(source))} == {str(path)}
    assert len(source) == sum(len(names) for names in CLASSES.values()) - 2


@pytest.mark.parametrize("pack", PACKERS)
def test_a_folder_of_class_tars_is_its_unpacked_folders(unpacked, tmp_path, pack):
    tars = class_tars(tmp_path / "tars", unpacked, pack, ["."])
    (tars / "MD5SUMS").write_text("stray")
    (tars / "zebra.tar").rename(tars / "zebra.TAR")
    source = open_source(str(tars))
    assert sequence(source) == sequence(open_source(str(unpacked)))
    assert source.packed


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("names", [["."], ["train"], ["./train"], ["train/zebra", "train/n01440764-b", "train/n01440764"]])
def test_a_tar_of_class_folders_is_its_unpacked_folders(unpacked, tmp_path, pack, names):
    folder = unpacked if names == ["."] else unpacked.parent
    source = open_source(str(pack(tmp_path / "any.name", folder, names)))
    assert sequence(source) == sequence(open_source(str(unpacked)))


@pytest.mark.parametrize("names", [["."], ["data"]])
def test_all_that_class_folders_or_tars_are_packed_in_is_stripped(unpacked, tmp_path, names):
    (tmp_path / "data/imagenet").mkdir(parents=True)
    (tmp_path / "data/imagenet/train").symlink_to(unpacked)
    subprocess.run(["cp", "-rL", "data", "copy"], cwd=tmp_path, check=True)
    (tmp_path / "copy/imagenet/train/README.txt").write_text("stray")
    copied = by_python(tmp_path / "folders.tar", tmp_path / "copy")
    class_tars(tmp_path / "data/imagenet/tars", unpacked)
    (tmp_path / "data/imagenet/train").unlink()
    tars = by_python(tmp_path / "tars.tar", tmp_path, names if names == ["data"] else ["data/imagenet"])
    assert sequence(open_source(str(copied))) == sequence(open_source(str(tars))) == sequence(open_source(str(unpacked)))


def test_one_class_is_not_taken_for_what_it_is_packed_in(tmp_path):
    one = class_folders(tmp_path / "train", {"ant": ["1.jpg", "deep/er/2.png"]})
    for folder, name in ((one, "."), (tmp_path, "train")):
        assert sequence(open_source(str(by_python(tmp_path / "t.tar", folder, [name])))) == sequence(open_source(str(one)))
    flat = class_folders(tmp_path / "flat", {"ant": ["1.jpg", "2.jpg"]})
    packed = by_python(tmp_path / "t.tar", tmp_path, ["flat"])
    assert sequence(open_source(str(packed))) == sequence(open_source(str(flat)))


def test_a_class_without_images_keeps_its_label_in_a_tar(tmp_path):
    folder = class_folders(tmp_path / "train", {"ant": ["1.jpg"], "owl": ["2.jpg"]})
    (folder / "bee").mkdir()
    expected = sequence(open_source(str(folder)))
    assert expected[1] == ["ant", "bee", "owl"]
    tars = class_tars(tmp_path / "tars", folder)
    assert sequence(open_source(str(tars))) == expected
    assert sequence(open_source(str(by_python(tmp_path / "tars.tar", tars)))) == expected
    assert sequence(open_source(str(by_python(tmp_path / "folders.tar", folder)))) == expected


def test_class_tars_are_sorted_by_their_classes_and_not_by_their_file_names(tmp_path):
    entries = [(f"{name}.tar", tar_bytes((f"{name}.jpg", name.encode()))) for name in ("a", "a-b", "a b", "a.c")]
    source = open_source(str(tar_of(tmp_path / "t.tar", *entries)))
    assert source.classes == ["a", "a b", "a-b", "a.c"] == [name.split("/")[0] for name in source.names]


def test_a_classes_file_gives_labels_to_class_tars(tmp_path):
    path = tar_of(tmp_path / "t.tar", *((f"{name}.tar", tar_bytes(("1.jpg", b"1"))) for name in ("ant", "owl")))
    (tmp_path / "classes").write_text("zebra\nowl\nant\n")
    source = open_source(str(path), classes_file=str(tmp_path / "classes"))
    assert (source.classes, source.labels.tolist()) == (["zebra", "owl", "ant"], [2, 1])
    (tmp_path / "classes").write_text("owl\nants\n")
    with pytest.raises(DataError, match=r"t.tar, class tar ant.tar is not in the --classes file; did you mean 'ants'\?"):
        open_source(str(path), classes_file=str(tmp_path / "classes"))


@NEEDS_TAR
@pytest.mark.parametrize("tar_format", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_links_in_a_tar_are_the_bytes_of_what_they_lead_to(tmp_path, tar_format):
    folder = class_folders(
        tmp_path / "train", {"ant": ["1.jpg", "sub/2.jpg", "z.jpg"], "owl": ["3.jpg"], "store/.x": ["4.jpg"]}
    )
    os.link(folder / "ant/1.jpg", folder / "ant/0 hard.jpg")
    os.link(folder / "owl/3.jpg", folder / "ant/other.jpg")
    for name, target in {
        "ant/soft.jpg": "sub/2.jpg",
        "ant/sub/chain.jpg": "../soft.jpg",
        "ant/hidden.jpg": "../store/.x/4.jpg",
        "ant/folder": "../owl",
        "ant/twice": "../owl/./",
        "ant/loop": "..//ant",
        "ant/gone.jpg": "nowhere.jpg",
        "ant/gone folder.jpg": "sub/2.jpg/1.jpg",
        "ant/self.jpg": "self.jpg",
        "bee": "owl",
    }.items():
        (folder / name).symlink_to(target)
    path = tmp_path / "train.tar"
    subprocess.run(["tar", f"--format={tar_format}", "-C", folder, "-cf", path, "."], check=True)
    ours, theirs = open_source(str(path)), open_source(str(folder))
    assert (list(ours.names), ours.classes, ours.digest()) == (list(theirs.names), theirs.classes, theirs.digest())
    assert {"ant/folder/3.jpg", "bee/3.jpg", "ant/sub/chain.jpg", "ant/gone.jpg"} <= set(ours.names)
    assert [read(ours, i) for i in range(len(ours))] == [read(theirs, i) for i in range(len(theirs))]


def read(source, number):
    try:
        return source.place(number).read()
    except OSError:
        return "cannot be read"


def test_a_link_out_of_the_tar_is_an_image_that_cannot_be_read(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    path = tar_of(
        tmp_path / "t.tar",
        ("a/1.jpg", b"1"),
        special("a/2.jpg", tarfile.SYMTYPE, "../../secret.jpg"),
        special("a/3.jpg", tarfile.SYMTYPE, str(tmp_path / "secret.jpg")),
        special("a/4.jpg", tarfile.LNKTYPE, "a/absent.jpg"),
        ("b/5.jpg", b"5"),
    )
    source = open_source(str(path))
    assert list(source.names) == ["a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg", "b/5.jpg"]
    for i in (1, 2, 3):
        with pytest.raises(FileNotFoundError):
            source.place(i).read()
    assert source.place(4).read() == b"5"


def test_the_last_of_a_name_counts_and_links_mean_what_came_before_them(tmp_path):
    path = tar_of(
        tmp_path / "t.tar",
        ("a/1.jpg", b"old"),
        ("b/1.jpg", b"b"),
        special("a/hard.jpg", tarfile.LNKTYPE, "a/1.jpg"),
        special("a/soft.jpg", tarfile.SYMTYPE, "1.jpg"),
        ("./a/1.jpg", b"new"),
        special("b/hard.jpg", tarfile.LNKTYPE, "a/soft.jpg"),
    )
    source = open_source(str(path))
    assert [record[::2] for record in sequence(source)[0]] == [
        ("a/1.jpg", b"new"), ("a/hard.jpg", b"old"), ("a/soft.jpg", b"new"), ("b/1.jpg", b"b"), ("b/hard.jpg", b"b"),
    ]  # fmt: skip


def test_a_file_and_a_folder_of_one_name_are_the_folder(tmp_path):
    source = open_source(str(tar_of(tmp_path / "t.tar", ("a/b", b"0"), ("a/b/1.jpg", b"1"), ("c/2.jpg", b"2"))))
    assert list(source.names) == ["a/b/1.jpg", "c/2.jpg"]


def test_devices_are_no_images_and_paths_begin_at_the_top(tmp_path):
    path = tar_of(
        tmp_path / "t.tar",
        special("a/pipe", tarfile.FIFOTYPE),
        special("a/device", tarfile.CHRTYPE),
        ("/a//./1.jpg", b"1"),
        ("../up/../b/2.jpg", b"2"),
    )
    source = open_source(str(path))
    assert list(source.names) == ["a/1.jpg", "b/2.jpg"]


def test_folders_are_walked_however_deep_they_are(tmp_path):
    deep = "/".join(["d"] * 5000)
    source = open_source(str(tar_of(tmp_path / "t.tar", (f"a/{deep}/1.jpg", b"1"), ("b/2.jpg", b"2"))))
    assert list(source.names) == [f"a/{deep}/1.jpg", "b/2.jpg"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "t.tar holds no images: it is empty"),
        ([special("a", tarfile.DIRTYPE)], "t.tar holds no images: its 1 classes are empty"),
        ([("a.tar", tar_bytes()), ("b.tar", tar_bytes())], "t.tar holds no images: its 2 classes are empty"),
        ([("a.tar", tar_bytes()), ("a.TAR", tar_bytes())], "t.tar holds the class a twice, as a.TAR and a.tar; take one"),
        ([("a.tar", tar_bytes()), ("a.tar", tar_bytes())], "t.tar holds the class a twice, as a.tar and a.tar; take one"),
        ([("a.tar", tar_bytes()), ("b/1.jpg", b"1")], "t.tar holds both class folders, as b, and class tars, as a.tar: take"),
        ([("1.jpg", b"1"), ("2.jpg", b"2")], "t.tar holds 2 files but no class folders; .* with --val-labels"),
        ([("val/1.jpg", b"1")], "t.tar holds 1 files but no class folders; .* with --val-labels"),
        ([("a.tar.gz", b"\x1f\x8b"), ("b.tar.gz", b"\x1f\x8b")], "t.tar holds compressed tars, as a.tar.gz, in which no image"),
        ([("a.tar", b"text" * 1000)], "t.tar, class tar a.tar is damaged: what is at byte 512 is no header of a tar"),
        ([("a.tar", b"text")], "t.tar, class tar a.tar is cut off: it ends at byte 516"),
        ([("a.tar", b"")], "t.tar, class tar a.tar is cut off: it ends at byte 512"),
        ([("a.tar", b"\x1f\x8b" + bytes(600))], "class tar a.tar is compressed.*decompress it first, with gzip --decomp"),
        ([("train.tar", tar_bytes(("a.tar", tar_bytes(("1.jpg", b"1")))))], "holds nothing but tars itself, as train/a.tar"),
    ],
)
def test_a_tar_that_makes_no_sense_is_one_sentence(tmp_path, entries, message):
    path = tar_of(tmp_path / "t.tar", *entries)
    with pytest.raises(DataError, match=message):
        open_source(str(path))


def test_class_folders_beside_class_tars_are_refused_on_the_disk_too(tmp_path):
    files(tmp_path, ["ant/1.jpg"])
    tar_of(tmp_path / "owl.tar", ("2.jpg", b"2"))
    with pytest.raises(DataError, match=r"holds both class folders, as ant, and class tars, as owl.tar"):
        open_source(str(tmp_path))


def test_a_class_tar_that_cannot_be_read_is_named(tmp_path):
    tar_of(tmp_path / "ant.tar", ("1.jpg", b"1"))
    (tmp_path / "owl.tar").symlink_to("absent")
    with pytest.raises(DataError, match=r"owl.tar cannot be read: No such file or directory"):
        open_source(str(tmp_path))


def test_a_pipe_among_the_class_tars_is_named_and_not_waited_for(tmp_path):
    tar_of(tmp_path / "ant.tar", ("1.jpg", b"1"))
    os.mkfifo(tmp_path / "owl.tar")
    with pytest.raises(DataError, match=r"owl.tar is no file, and so no tar"):
        open_source(str(tmp_path))


def test_an_lmdb_of_a_tar_is_that_of_its_unpacked_folders(tmp_path):
    folder = photographs(tmp_path / "train", {"ant": 4, "owl": 3})
    tars = by_python(tmp_path / "train.tar", class_tars(tmp_path / "tars", folder))
    packed, unpacked = (built(source, tmp_path / f"{source.name}.lmdb") for source in (tars, folder))
    assert (packed / "data.mdb").read_bytes() == (unpacked / "data.mdb").read_bytes()


def test_root_does_not_go_with_a_tar(tmp_path):
    with pytest.raises(UsageError, match=r"--root goes with a list file, but .*t.tar is a tar"):
        open_source(str(tar_of(tmp_path / "t.tar", ("a/1.jpg", b"1"))), root="/")


@pytest.mark.parametrize(
    ("kind", "command"), [("gz", "gzip --decompress"), ("bz2", "bzip2 --decompress"), ("xz", "xz --decompress")]
)
def test_a_compressed_tar_is_to_be_decompressed_first(tmp_path, kind, command):
    with tarfile.open(tmp_path / "t.tar", f"w:{kind}") as tar:
        tar.add(files(tmp_path / "a", ["1.jpg"]), "a")
    with pytest.raises(DataError, match=f"t.tar is compressed.*decompress it first, with {command}"):
        open_source(str(tmp_path / "t.tar"))


@pytest.mark.parametrize(
    ("beginning", "command"),
    [(b"\x28\xb5\x2f\xfd", "zstd --decompress"), (b"\x04\x22\x4d\x18", "lz4 -d"), (b"PK\3\4", "unzip")],
)
def test_an_archive_of_another_kind_is_to_be_decompressed_first(tmp_path, beginning, command):
    (tmp_path / "t.tar").write_bytes(beginning + bytes(range(200)) * 5)
    with pytest.raises(DataError, match=f"t.tar is compressed.*decompress it first, with {command}"):
        open_source(str(tmp_path / "t.tar"))


def test_progress_is_told_when_it_takes_long(tmp_path, monkeypatch, capsys):
    path = tar_of(tmp_path / "t.tar", *((f"{name}.tar", tar_bytes(("1.jpg", b"1"))) for name in "abc"))
    open_source(str(path))
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("fastirv2.building.tars.time.monotonic", lambda: next(clock))
    open_source(str(path))
    assert capsys.readouterr().err.splitlines() == [
        f"reading the table of contents of {path}: 1 of 3 class tars",
    ]
