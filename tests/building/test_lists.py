"""Lists of "path label" lines and --classes files: which file a line means, and what is said of a faulty one."""

import os

import lmdb
import pytest

from fastirv2.building.lists import read_classes
from fastirv2.building.sources import open_source
from fastirv2.errors import DataError


def listing(folder, text, *names):
    """Write a list, and the files of these names beside it; the list's path is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(os.fsencode(name))
    (folder / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / "list.txt")


def test_a_list_is_split_at_the_last_white_space(tmp_path):
    source = open_source(listing(tmp_path, "a b/1 2.jpg  3\n\nplain.jpg\t0\r\n", "a b/1 2.jpg", "plain.jpg"))
    assert (list(source.names), source.labels.tolist()) == (["a b/1 2.jpg", "plain.jpg"], [3, 0])
    assert source.classes == ["0", "1", "2", "3"]
    assert source.place(0).read() == b"a b/1 2.jpg"


def test_a_list_is_relative_to_root_or_absolute(tmp_path):
    listing(tmp_path / "images", "", "1.jpg", "2.jpg")
    path = listing(tmp_path / "lists", f"1.jpg 0\n{tmp_path}/images/2.jpg 1\n")
    source = open_source(path, root=str(tmp_path / "images"))
    assert [source.place(i).read() for i in range(2)] == [b"1.jpg", b"2.jpg"]


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


@pytest.mark.parametrize(
    "name", ["a b.jpg", 'say "a".jpg', "it's.jpg", "ünï.jpg", "a\xa0b.jpg", os.fsdecode(b"\xff\xfe.jpg"), "a\\b"]
)
def test_a_path_is_what_the_file_system_has(tmp_path, name):
    source = open_source(listing(tmp_path, os.fsencode(name) + b" 0\n", name))
    assert list(source.names) == [name]
    assert source.place(0).read() == os.fsencode(name)


def test_quotes_around_a_path_belong_to_it_only_when_its_file_has_them(tmp_path):
    text = '"a b.jpg" 0\n"c.jpg" 1\n"d.jpg 2\n"e" f".jpg 3\n'
    path = listing(tmp_path, text, "a b.jpg", "c.jpg", '"c.jpg"', '"d.jpg', '"e" f".jpg')
    assert list(open_source(path).names) == ["a b.jpg", '"c.jpg"', '"d.jpg', '"e" f".jpg']


@pytest.mark.parametrize("first", ["plain.jpg", '"quoted one.jpg"'])
def test_quotes_are_taken_off_behind_the_lines_that_are_looked_up_too(tmp_path, first):
    text = f"{first} 0\n" * 1500 + '"quoted one.jpg" 1\n"absent.jpg" 2\n'
    source = open_source(listing(tmp_path, text, "plain.jpg", "quoted one.jpg"))
    assert source.names[1500] == "quoted one.jpg"
    assert source.names[1501] == "absent.jpg"


def test_only_the_first_thousand_files_are_looked_up(tmp_path):
    """Millions take an hour on a network's file system; the build names what is missing."""
    path = listing(tmp_path, "1.jpg 0\n\n" * 1000 + "absent.jpg 0\n", "1.jpg")
    assert open_source(path).names[1000] == "absent.jpg"
    with pytest.raises(DataError, match=r"list.txt, line 1999: there is no file .*absent.jpg; paths are relative to the"):
        open_source(listing(tmp_path, "1.jpg 0\n\n" * 999 + "absent.jpg 0\n", "1.jpg"))


def test_a_byte_order_mark_and_windows_ends_are_tolerated(tmp_path):
    source = open_source(listing(tmp_path, "\ufeff1.jpg 0\r\n2.jpg 1\r\n\r\n", "1.jpg", "2.jpg"))
    assert (list(source.names), source.labels.tolist()) == (["1.jpg", "2.jpg"], [0, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1.jpg 0\n".encode("utf-16"), "list.txt, line 1 is no text"),
        (b"1.jpg 0\n" * 20000 + b"\0 0\n", "list.txt, line 20001 is no text"),
        (b"1.jpg 0 " * 20000, "list.txt, line 1 is no text"),
        (b"1.jpg 0\n1.jpg " + b"9" * 5000, "list.txt, line 2: the label 9{200}... is not between 0 and 999,999"),
        (b"1.jpg 0\n1.jpg \xff0\n", "list.txt, line 2: the label .* is no integer"),
        (b"1.jpg 1000000\n", "line 1: the label 1000000 is not between 0 and 999,999"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        open_source(listing(tmp_path, content, "1.jpg"))


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("data.mdb", "data.mdb is an LMDB's file: give the folder that it lies in"),
        ("one.lmdb", "one.lmdb is an LMDB in one file: name it data.mdb in a folder of its own, and give that folder"),
    ],
)
def test_an_lmdbs_file_in_place_of_its_folder_is_spoken_of(tmp_path, file, message):
    with lmdb.open(str(tmp_path / file), subdir=False) as environment:
        environment.sync(True)
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / file))


def test_files_with_two_labels_are_told_of_and_what_is_listed_again_with_the_same_is_not(tmp_path):
    names = ("a.jpg", "b.jpg", "c.jpg")
    path = listing(tmp_path, "a.jpg 0\nb.jpg 1\nc.jpg 1\nb.jpg 1\n", *names)
    assert open_source(path).notes == ()
    listing(tmp_path, "a.jpg 0\nb.jpg 1\nc.jpg 1\nb.jpg 2\n")
    assert open_source(path).notes == (f"{path} lists a file with two labels, as b.jpg with 1 and 2",)
    listing(tmp_path, "c.jpg 0\nb.jpg 1\nc.jpg 1\nb.jpg 2\n")
    (note,) = open_source(path).notes
    assert note.startswith(f"{path} lists 2 files with two labels, as ")


@pytest.mark.parametrize("lines", ["b.jpg 0\nb.jpg 1\na.jpg 1\nb.jpg 2\n", "b.jpg 0\na.jpg 1\n./b.jpg 1\n"])
def test_a_file_of_three_labels_is_one_and_so_is_one_that_is_written_in_two_ways(tmp_path, lines):
    path = listing(tmp_path, lines, "a.jpg", "b.jpg")
    (note,) = open_source(path).notes
    assert note.startswith(f"{path} lists a file with two labels, as ")


def test_labels_may_have_zeros_in_front(tmp_path):
    assert open_source(listing(tmp_path, "1.jpg 0000000012\n", "1.jpg")).labels.tolist() == [12]


def test_a_list_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="absent cannot be read: No such file or directory"):
        open_source(listing(tmp_path, "1.jpg 0\n", "1.jpg"), classes_file=str(tmp_path / "absent"))
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        open_source(listing(tmp_path, "1.jpg 0\n", "1.jpg"), classes_file=str(tmp_path))


def test_classes_files_of_windows_are_read(tmp_path):
    (tmp_path / "classes").write_bytes(b"\xef\xbb\xbfant\r\nowl\r\n\r\n")
    assert read_classes(str(tmp_path / "classes")) == ["ant", "owl"]
