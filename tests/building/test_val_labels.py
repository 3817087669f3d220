"""Images in one folder, or a tar of them, whose labels stand in a file beside them."""

import random
import re

import pytest

from fastirv2.building.sources import open_source
from fastirv2.errors import DataError, UsageError

from .tar_samples import PACKERS, by_python, class_folders, class_tars, files, sequence

NAMES = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 8)]
SYNSETS = ["n02", "n01", "n02", "n10", "n01", "n02", "n01"]


@pytest.fixture
def folder(tmp_path):
    shuffled = random.Random(0).sample(NAMES, len(NAMES))
    return files(tmp_path / "val", [*shuffled, ".hidden.JPEG"])


def labels(folder, lines, end="\n"):
    path = folder.parent / "labels.txt"
    path.write_text("".join(f"{line}{end}" for line in lines))
    return str(path)


def classes(folder, text):
    (folder.parent / "classes.txt").write_text(text)
    return str(folder.parent / "classes.txt")


def refusal(*arguments, **options):
    with pytest.raises(DataError) as error:
        open_source(*map(str, arguments), **options)
    return str(error.value)


def test_names_are_the_sorted_classes_of_the_images_in_sorted_order(folder):
    source = open_source(str(folder), val_labels=labels(folder, SYNSETS))
    assert list(source.names) == NAMES
    assert source.classes == ["n01", "n02", "n10"]
    assert source.labels.tolist() == [1, 0, 1, 2, 0, 1, 0]
    assert source.labels.dtype == "int32"
    assert not source.packed


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("names", [["."], ["val"], ["./val"]])
def test_a_tar_of_the_images_is_their_folder(folder, pack, names, tmp_path):
    (folder.parent / "dataset").mkdir()
    lines = labels(folder, SYNSETS)
    path = pack(tmp_path / "val.tar", folder if names == ["."] else folder.parent, names)
    source = open_source(str(path), val_labels=lines)
    assert sequence(source) == sequence(open_source(str(folder), val_labels=lines))
    assert source.packed


@pytest.mark.parametrize(
    "line", ["{name}.JPEG {label}", "{name},{label} 85 1 499 272 {label} 0 0 9 9 ", "imagenet/val/{name}.JPEG\t{label}"]
)
@pytest.mark.parametrize("header", [[], ["ImageId,PredictionString"]])
def test_lines_that_name_the_images_may_come_in_any_order(folder, line, header):
    """As in Kaggle's LOC_val_solution.csv, whose order is another and whose names have no suffix."""
    lines = [line.format(name=name.removesuffix(".JPEG"), label=label) for name, label in zip(NAMES, SYNSETS, strict=True)]
    named = open_source(str(folder), val_labels=labels(folder, header + lines[::-1]))
    assert sequence(named) == sequence(open_source(str(folder), val_labels=labels(folder, SYNSETS)))


def test_a_line_that_is_an_images_whole_name_means_no_image_whose_stem_it_is(tmp_path):
    folder = files(tmp_path / "val", ["a.jpg", "a.jpg.png", "b.png"])
    source = open_source(str(folder), val_labels=labels(folder, ["b n03", "a.jpg.png n02", "a.jpg n01"]))
    assert (list(source.names), source.labels.tolist()) == (["a.jpg", "a.jpg.png", "b.png"], [0, 1, 2])


@pytest.mark.parametrize("between", [",", " ", ", "])
def test_names_of_classes_may_hold_spaces_beside_the_images_too(folder, between):
    classes = ["tiger shark", "tiger cat", *["tiger shark"] * 5]
    lines = [f"{name}{between}{each}" for name, each in zip(NAMES, classes, strict=True)]
    source = open_source(str(folder), val_labels=labels(folder, lines))
    assert source.classes == ["tiger cat", "tiger shark"]
    assert source.labels.tolist() == [1, 0, 1, 1, 1, 1, 1]


def test_the_folders_above_the_images_are_stripped(tmp_path):
    folder = files(tmp_path / "imagenet/val", NAMES)
    lines = labels(tmp_path / "x", SYNSETS)
    path = by_python(tmp_path / "val.tar", tmp_path, ["imagenet"])
    assert sequence(open_source(str(path), val_labels=lines)) == sequence(open_source(str(folder), val_labels=lines))


def test_numbers_without_names_are_the_classes(folder):
    source = open_source(str(folder), val_labels=labels(folder, [3, 0, 1, 1, 3, 3, 0]))
    assert (source.labels.tolist(), source.classes) == ([3, 0, 1, 1, 3, 3, 0], ["0", "1", "2", "3"])


def test_a_classes_file_numbers_the_names_or_names_the_numbers(folder):
    order = classes(folder, "n10\nn02\nn00\nn01\n")
    by_name = open_source(str(folder), classes_file=order, val_labels=labels(folder, SYNSETS))
    assert by_name.classes == ["n10", "n02", "n00", "n01"]
    assert by_name.labels.tolist() == [1, 3, 1, 0, 3, 1, 3]
    by_number = open_source(str(folder), classes_file=order, val_labels=labels(folder, [1, 3, 1, 0, 3, 1, 3]))
    assert by_number.digest() == by_name.digest()


def test_digits_that_are_all_names_of_the_classes_file_are_names(folder):
    source = open_source(
        str(folder), classes_file=classes(folder, "2\n1\n0\n3\n"), val_labels=labels(folder, [0, 1, 2, 3, 0, 1, 2])
    )
    assert source.labels.tolist() == [2, 1, 0, 3, 2, 1, 0]


def test_blank_lines_at_the_end_a_byte_order_mark_and_windows_ends_are_tolerated(folder):
    path = labels(folder, ["\ufeffn01", *SYNSETS[1:], "", "  "], end="\r\n")
    assert open_source(str(folder), val_labels=path).classes == ["n01", "n02", "n10"]


def test_empty_subfolders_and_names_with_spaces_do_no_harm(folder):
    (folder / "thumbnails/.cache").mkdir(parents=True)
    source = open_source(str(folder), val_labels=labels(folder, ["tench, Tinca tinca", *SYNSETS[1:]]))
    assert source.classes[-1] == "tench, Tinca tinca"


@pytest.mark.parametrize(
    ("lines", "names", "message"),
    [
        (SYNSETS[1:], None, "labels.txt holds 6 labels, but {folder} holds 7 files; a line for each"),
        ([], None, "labels.txt holds 0 labels, but {folder} holds 7 files"),
        (["n01", "", *SYNSETS[2:]], None, "labels.txt, line 2 is empty; blank lines may stand at the end only"),
        (
            [*SYNSETS[:-1], "n03"],
            "n01\nn02\nn10\n",
            "line 7: 'n03' is neither a number from 0 nor a name in the --classes file;",
        ),
        ([*SYNSETS[:-1], "n011"], "n01\nn02\nn10\n", "line 7: 'n011' is .*did you mean 'n01'"),
        (
            [0, 0, 0, 1, 1, 5, 2],
            "a\nb\nc\n",
            "line 6: 5 is not among the 3 names of the --classes file, the last of which is 2",
        ),
        ([0, 0, 0, 1, 1, 3, 2], "a\nb\nc\n", "line 6: 3 is not among the 3 names"),
        ([*SYNSETS[:-1], 5], None, "line 7: '5' is a number, but line 1 is the name 'n02'"),
        ([5, *SYNSETS[1:]], "n01\nn02\nn10\n", "line 1: '5' is a number, but line 2 is the name 'n01'"),
        ([0, 1, 2, 3, 4, 5, -1], None, "line 7: '-1' is no number from 0"),
        ([0, 1, 2, 3, 4, 5, "1.0"], None, "line 7: '1.0' is no number from 0"),
        ([0, 1, 2, 3, 4, 5, "1" * 5000], None, "line 7: 11111111111111111111 is not between 0 and 999,999"),
        ([1, 2, 3, 3, 1, 1, 2], None, "labels.txt counts the classes from 1 to 3, as the file in ImageNet's development kit"),
        ([1, 2, 3, 3, 1, 1, 2], "a\nb\nc\n", "counts the classes from 1 to 3.*give a line with the name of the class"),
        ([2, 2, 3, 3, 2, 2, 2], "a\nb\nc\n", "counts the classes from 1 to 3"),
        ([f"val/{name} 65" for name in NAMES[1:]], None, "has no line for ILSVRC2012_val_00000001.JPEG; one for each of the 7"),
        ([f"{NAMES[0]} a", f"val/{NAMES[0]} b"], None, f"line 2: {NAMES[0]} is on line 1 already"),
        ([f"{NAMES[0]} a", "other.JPEG b"], None, "line 2: 'other.JPEG b' names no image of {folder}"),
        ([f"{NAMES[0]} a", NAMES[1]], None, "line 2: 'ILSVRC2012_val_00000002.JPEG' names no image of .*, or has no"),
    ],
)
def test_labels_that_do_not_fit_are_refused(folder, lines, names, message):
    options = {"classes_file": classes(folder, names)} if names else {}
    found = refusal(folder, val_labels=labels(folder, lines), **options)
    assert re.search(message.format(folder=folder), found)


def test_numbers_from_1_that_leave_some_out_are_numbers_from_0(folder):
    source = open_source(str(folder), val_labels=labels(folder, [1, 2, 4, 4, 1, 1, 2]))
    assert source.classes == ["0", "1", "2", "3", "4"]


def test_images_without_labels_need_them_or_class_folders(folder, tmp_path):
    for path in (folder, by_python(tmp_path / "a.tar", folder), by_python(tmp_path / "b.tar", folder.parent, ["val"])):
        assert "holds 7 files but no class folders; put every class's images into a folder" in refusal(path)
        assert "--val-labels" in refusal(path)


def test_an_empty_subfolder_makes_no_class_folders_of_images(folder):
    (folder / "thumbnails").mkdir()
    assert "holds 7 files but no class folders" in refusal(folder)


def test_labels_beside_what_has_labels_are_wrong_usage(folder, tmp_path):
    lines = labels(folder, SYNSETS)
    train = class_folders(tmp_path / "train", {"ant": ["deep/1.jpg"], "owl": ["2.jpg"]})
    tars = class_tars(tmp_path / "tars", train)
    (tmp_path / "list.txt").write_text("1.jpg 0\n")
    for path in (train, tars, by_python(tmp_path / "a.tar", train), by_python(tmp_path / "b.tar", tars), tmp_path / "list.txt"):
        with pytest.raises(
            UsageError, match=r"--val-labels goes with images in one folder, but .* as SOURCE, or leave|is a list"
        ):
            open_source(str(path), val_labels=lines)


def test_a_missing_labels_file_is_named(folder):
    assert "absent.txt cannot be read: No such file or directory" in refusal(folder, val_labels=str(folder / "absent.txt"))


def test_an_empty_folder_or_tar_with_labels_is_refused(tmp_path):
    (tmp_path / "val").mkdir()
    lines = labels(tmp_path / "val", SYNSETS)
    for path in (tmp_path / "val", by_python(tmp_path / "val.tar", tmp_path / "val")):
        assert f"{path} holds no images" in refusal(path, val_labels=lines)
