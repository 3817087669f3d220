import os
import socket

import pytest

from fastirv2.building.sources import open_source
from fastirv2.errors import DataError, UsageError


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"image")
    return str(folder)


def test_labels_are_the_class_folders_sorted_by_name(tmp_path):
    source = open_source(files(tmp_path, "b/1.jpg", "a/2.jpg", "B/3.jpg", "a10/4.jpg", "a9/5.jpg"))
    assert source.classes == ["B", "a", "a10", "a9", "b"]
    assert dict(zip(source.names, source.labels.tolist(), strict=True)) == {
        "B/3.jpg": 0, "a/2.jpg": 1, "a10/4.jpg": 2, "a9/5.jpg": 3, "b/1.jpg": 4,
    }  # fmt: skip


def test_images_lie_at_any_depth_and_hidden_files_are_no_images(tmp_path):
    folder = files(tmp_path, "a/1.jpg", "a/deep/er/2.png", "a/.hidden", "a/.git/3.jpg", ".cache/4.jpg", "stray.txt")
    source = open_source(folder)
    assert list(source.names) == ["a/1.jpg", "a/deep/er/2.png"]
    assert source.classes == ["a"]
    assert source.place(1).read() == b"image"


def test_links_are_followed_once(tmp_path):
    folder = files(tmp_path / "source", "a/1.jpg", "a/sub/2.jpg")
    files(tmp_path / "elsewhere", "3.jpg")
    (tmp_path / "source/a/loop").symlink_to(tmp_path / "source/a")
    (tmp_path / "source/a/sub/up").symlink_to("..")
    (tmp_path / "source/a/other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "source/a/sub/other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "source/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "source/a/9.jpg").symlink_to(tmp_path / "elsewhere/3.jpg")
    assert list(open_source(folder).names) == ["a/1.jpg", "a/9.jpg", "a/other/3.jpg", "a/sub/2.jpg", "b/3.jpg"]


def test_a_class_without_images_keeps_its_label(tmp_path):
    (tmp_path / "b").mkdir()
    source = open_source(files(tmp_path, "a/1.jpg", "c/2.jpg"))
    assert (source.classes, source.labels.tolist()) == (["a", "b", "c"], [0, 2])


def test_a_classes_file_gives_labels_by_line(tmp_path):
    (tmp_path / "classes").write_text("zebra\nant\nowl\n")
    source = open_source(files(tmp_path / "source", "ant/1.jpg", "zebra/2.jpg"), classes_file=str(tmp_path / "classes"))
    assert source.classes == ["zebra", "ant", "owl"]
    assert source.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zebra\nants\n", r"the class folder .*ant is not in the --classes file; did you mean 'ants'\?"),
        ("ant\n\nzebra\n", "line 2 is empty"),
        ("ant\nzebra\nant\n", "line 3: class 'ant' is on line 1 already"),
        ("", "classes is empty; it needs the name of a class"),
    ],
)
def test_a_classes_file_that_does_not_fit_is_refused(tmp_path, text, message):
    (tmp_path / "classes").write_text(text)
    folder = files(tmp_path / "source", "ant/1.jpg", "zebra/2.jpg")
    with pytest.raises(DataError, match=message):
        open_source(folder, classes_file=str(tmp_path / "classes"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no images: it is empty"),
        (["1.jpg", "2.jpg"], "holds 2 files but no class folders; .* give fastirv2-build-lmdb their labels with --val-labels"),
        (["data.mdb", "lock.mdb"], "is an LMDB already; give the images that one is to be built from"),
        (["a/.hidden"], "holds no images: its 1 classes are empty"),
        (["train/ant/1.jpg", "Val/ant/2.jpg"], "holds Val and train, which are called like .* as .*/Val; .* --classes says so"),
    ],
)
def test_a_folder_without_classes_or_images_is_refused(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        open_source(files(tmp_path, *names))


def test_classes_may_be_called_like_the_parts_of_a_data_set(tmp_path):
    (tmp_path / "classes").write_text("train\nval\n")
    folder = files(tmp_path / "named", "train/1.jpg", "val/2.jpg")
    assert open_source(folder, classes_file=str(tmp_path / "classes")).classes == ["train", "val"]
    assert open_source(files(tmp_path / "vehicles", "bus/1.jpg", "train/2.jpg")).classes == ["bus", "train"]


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match="absent does not exist"):
        open_source(str(tmp_path / "absent"))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))])
def test_a_pipe_or_socket_is_refused(tmp_path, make):
    make(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is a device, pipe or socket, which cannot be read twice"):
        open_source(str(tmp_path / "pipe"))


def test_a_source_below_a_file_or_in_a_circle_of_links_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    for name, reason in (("file/train", "Not a directory"), ("circle", "Too many levels of symbolic links")):
        with pytest.raises(DataError, match=f"{name} cannot be read: {reason}"):
            open_source(str(tmp_path / name))


def test_links_that_lead_nowhere_are_images_which_the_build_rejects(tmp_path):
    folder = files(tmp_path, "a/1.jpg")
    (tmp_path / "a/circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "a/gone.jpg").symlink_to("gone")
    assert list(open_source(folder).names) == ["a/1.jpg", "a/circle.jpg", "a/gone.jpg"]


def test_root_goes_with_lists_only(tmp_path):
    with pytest.raises(UsageError, match="--root"):
        open_source(files(tmp_path, "a/1.jpg"), root="/")


def test_a_digest_tells_sources_apart_wherever_they_lie(tmp_path):
    one = open_source(files(tmp_path / "one", "a/1.jpg", "b/2.jpg"))
    same = open_source(files(tmp_path / "two", "a/1.jpg", "b/2.jpg"))
    other = open_source(files(tmp_path / "three", "a/1.jpg", "b/3.jpg"))
    (tmp_path / "one/list.txt").write_text("a/1.jpg 1\nb/2.jpg 0\n")
    relabelled = open_source(str(tmp_path / "one/list.txt"))
    assert one.digest() == same.digest()
    assert len({source.digest() for source in (one, other, relabelled)}) == 3


def test_the_digest_is_that_of_earlier_versions(tmp_path):
    """A build that one of them began goes on only if it is."""
    folder = files(tmp_path / "source", "b/1.jpg", "a/ü.jpg")
    digest = "b6d668c7aacda086af143b7778fc38b77de993f2e610a5d21d6ffaf05e2ecd72"
    assert open_source(folder).digest() == digest


def test_names_that_are_no_utf8_are_taken(tmp_path):
    (tmp_path / "a").mkdir()
    with open(bytes(tmp_path) + b"/a/\xff\xfe.jpg", "wb") as file:
        file.write(b"image")
    source = open_source(str(tmp_path))
    assert source.place(0).read() == b"image"
    assert source.digest()
