import pytest

from fastirv2.building.lists import read_classes
from fastirv2.building.sources import open_source
from fastirv2.errors import DataError, UsageError


def files(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"image")
    return str(folder)


def listing(folder, text, *names):
    folder.mkdir(parents=True, exist_ok=True)
    files(folder, *names)
    (folder / "list.txt").write_text(text)
    return str(folder / "list.txt")


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


def test_classes_files_of_windows_are_read(tmp_path):
    (tmp_path / "classes").write_bytes(b"ant\r\nowl\r\n\r\n")
    assert read_classes(str(tmp_path / "classes")) == ["ant", "owl"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no images: it is empty"),
        (["1.jpg", "2.jpg"], "holds 2 files but no class folders"),
        (["a/.hidden"], "holds no images: its 1 classes are empty"),
    ],
)
def test_a_folder_without_classes_or_images_is_refused(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        open_source(files(tmp_path, *names))


def test_a_path_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(DataError, match="absent does not exist"):
        open_source(str(tmp_path / "absent"))


def test_root_goes_with_lists_only(tmp_path):
    with pytest.raises(UsageError, match="--root"):
        open_source(files(tmp_path, "a/1.jpg"), root="/")


def test_a_list_is_split_at_the_last_white_space(tmp_path):
    source = open_source(listing(tmp_path, "a b/1 2.jpg  3\n\nplain.jpg\t0\r\n", "a b/1 2.jpg", "plain.jpg"))
    assert (list(source.names), source.labels.tolist()) == (["a b/1 2.jpg", "plain.jpg"], [3, 0])
    assert source.classes == ["0", "1", "2", "3"]
    assert source.place(0).read() == b"image"


def test_a_list_is_relative_to_root_or_absolute(tmp_path):
    files(tmp_path / "images", "1.jpg", "2.jpg")
    path = listing(tmp_path / "lists", f"1.jpg 0\n{tmp_path}/images/2.jpg 1\n")
    source = open_source(path, root=str(tmp_path / "images"))
    assert [source.place(i).read() for i in range(2)] == [b"image"] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.jpg 0\n2.jpg 1\n", "line 2: there is no file .*2.jpg"),
        ("1.jpg 0\n\n1.jpg one\n", "line 3: the label 'one' is no integer"),
        ("1.jpg 1.0\n", "line 1: the label '1.0' is no integer"),
        ("1.jpg -1\n", "line 1: the label -1 is not between 0 and"),
        ("1.jpg 4294967296\n", "line 1: the label 4294967296 is not between 0 and"),
        ("1.jpg\n", "line 1: '1.jpg' is no 'path label'"),
        ("\n\n", "lists no images"),
        (". 0\n", "line 1: there is no file"),
    ],
)
def test_a_faulty_list_is_refused_with_the_number_of_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        open_source(listing(tmp_path, text, "1.jpg"))


def test_a_label_beyond_the_classes_file_is_refused(tmp_path):
    path = listing(tmp_path, "1.jpg 0\n1.jpg 2\n", "1.jpg")
    (tmp_path / "classes").write_text("ant\nowl\n")
    with pytest.raises(DataError, match="line 2: label 2 is not among the 2 names"):
        open_source(path, classes_file=str(tmp_path / "classes"))


def test_a_digest_tells_sources_apart_wherever_they_lie(tmp_path):
    one = open_source(files(tmp_path / "one", "a/1.jpg", "b/2.jpg"))
    same = open_source(files(tmp_path / "two", "a/1.jpg", "b/2.jpg"))
    other = open_source(files(tmp_path / "three", "a/1.jpg", "b/3.jpg"))
    relabelled = open_source(listing(tmp_path / "one", "a/1.jpg 1\nb/2.jpg 0\n"))
    assert one.digest() == same.digest()
    assert len({source.digest() for source in (one, other, relabelled)}) == 3


def test_names_that_are_no_utf8_are_taken(tmp_path):
    (tmp_path / "a").mkdir()
    with open(bytes(tmp_path) + b"/a/\xff\xfe.jpg", "wb") as file:
        file.write(b"image")
    source = open_source(str(tmp_path))
    assert source.place(0).read() == b"image"
    assert source.digest()
