"""Lists of validation images by name or number, several right labels an image, and classes matched by name."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from fastirv2.data.records import open_records
from fastirv2.errors import DataError
from fastirv2.scoring.lists import labels_among, read_excluded, read_real
from tests.conftest import build, photograph


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Class folders of six images under ImageNet's validation names, of which number 4 is missing."""
    folder = tmp_path_factory.mktemp("imagenet") / "val"
    for number, name in ((1, "wolf"), (2, "ant"), (3, "wolf"), (5, "ant"), (6, "owl"), (7, "ant")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        photograph(number, 40, 30).save(folder / name / f"ILSVRC2012_val_{number:08}.JPEG")
    return folder


@pytest.fixture(scope="module")
def forms(imagenet, tmp_path_factory):
    out = tmp_path_factory.mktemp("forms")
    parts = ",".join(str(build(imagenet, out / f"part{part}", "--part", f"{part}/2")) for part in (1, 2))
    return [open_records(path) for path in (imagenet, build(imagenet, out / "lmdb", "--seed", "3"), parts)]


def numbers(records):
    return np.array([int(name[-13:-5]) for name in records.names])


def written(tmp_path, text):
    (tmp_path / "list").write_text(text)
    return str(tmp_path / "list")


@pytest.mark.parametrize(
    "text",
    [
        "2\n7\n4\n",
        "ILSVRC2012_val_00000002.JPEG\nILSVRC2012_val_00000007\nn01/ILSVRC2012_val_00000004.jpg\n",
        "\ufeffILSVRC2012_val_00000002.JPEG\nILSVRC2012_val_00000007\nILSVRC2012_val_00000004\n",
    ],
)
def test_images_are_left_out_by_number_or_name_in_every_form_and_order(forms, tmp_path, text):
    for records in forms:
        excluded = read_excluded(written(tmp_path, text), records)
        assert sorted(numbers(records)[excluded.records]) == [2, 7]
        assert excluded.absent == 1


@pytest.fixture
def namesakes(tmp_path):
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/3.5_a.jpg"):
        (tmp_path / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        photograph(1, 40, 30).save(tmp_path / "val" / name)
    return open_records(tmp_path / "val")


@pytest.mark.parametrize(
    ("text", "left_out", "absent"),
    [
        ("cat/1.jpg\nnone.jpg", ["cat/1.jpg"], 1),
        ("/data/val/dog/1.jpg\ndog/1\n2.jpg", ["cat/2.jpg", "dog/1.jpg"], 0),
        ("3.5_a\nx", ["dog/3.5_a.jpg"], 1),
        ("dog/3.5_a.png\n", ["dog/3.5_a.jpg"], 0),
        ("bird/1.jpg\ndog/2.jpg\nat/2.jpg\n/val/cat/2.jpg", ["cat/2.jpg"], 3),
    ],
)
def test_images_of_one_name_are_told_apart_by_their_paths(namesakes, tmp_path, text, left_out, absent):
    excluded = read_excluded(written(tmp_path, text), namesakes)
    assert sorted(np.array(list(namesakes.names))[excluded.records]) == left_out
    assert excluded.absent == absent


class Named(list):
    """Records of which the names are known."""

    path = "val"
    names = property(list)


@pytest.mark.parametrize(
    ("names", "entry", "left_out"),
    [
        (["n01/a.jpg", "n02/a.png"], "/data/n01/a", "n01/a.jpg"),
        (["a/x.jpg", "b/a/x.jpg"], "a/x.jpg", "a/x.jpg"),
        (["x.jpg", "sub/x.jpg"], "x.jpg", "x.jpg"),
        (["x.jpg", "sub/x.jpg"], "/data/sub/x.jpg", "sub/x.jpg"),
        (["val/cat/1.jpg", "val/dog/1.jpg"], "dog/1.jpg", "val/dog/1.jpg"),
    ],
)
def test_a_path_means_the_image_that_it_says_most_of(tmp_path, names, entry, left_out):
    excluded = read_excluded(written(tmp_path, entry), Named(names))
    assert [name for name, out in zip(names, excluded.records, strict=True) if out] == [left_out]


def test_entries_that_may_mean_several_images_are_refused(namesakes, tmp_path):
    with pytest.raises(DataError, match=r"lists 1.jpg, but .*val has several images called so: give their paths in it"):
        read_excluded(written(tmp_path, "1.jpg\n2.jpg"), namesakes)
    with pytest.raises(DataError, match=r"lists 2, but .*val has an image called so: give all names with their suffixes"):
        read_excluded(written(tmp_path, "2\n"), namesakes)


def test_real_labels_are_each_records_own_in_every_form_and_order(forms, tmp_path):
    file = written(tmp_path, json.dumps([[1], [], [1, 2], [0], [5], [0, 1, 4], [3], [9]]))
    for records in forms:
        labels, has = read_real(file, records, 10)
        found = {number: set(own.tolist()) for number, own in zip(numbers(records), labels, strict=True)}
        assert {number: found[number] for number in (1, 3, 5, 6, 7)} == {1: {1}, 3: {1, 2}, 5: {5}, 6: {0, 1, 4}, 7: {3}}
        assert sorted(numbers(records)[~has]) == [2]


def test_other_names_say_their_order_where_all_images_are_there(tmp_path):
    for number, name in enumerate(["b.jpg", "a.jpg", "c.jpg"]):
        (tmp_path / f"val/{number % 2}").mkdir(parents=True, exist_ok=True)
        photograph(number, 40, 30).save(tmp_path / f"val/{number % 2}/{name}")
    records = open_records(tmp_path / "val")
    file = written(tmp_path, "[[0], [1], [1]]")
    labels, _ = read_real(file, records, 2)
    assert {name[-5]: int(label) for name, (label,) in zip(records.names, labels, strict=True)} == {"a": 0, "b": 1, "c": 1}
    assert read_excluded(written(tmp_path, "1\n"), records).records.tolist() == [name[-5] == "a" for name in records.names]
    with pytest.raises(DataError, match=r"is for 2 images, but .* holds 3, whose names do not say which they are"):
        read_real(written(tmp_path, "[[0], [1]]"), records, 2)


@pytest.mark.parametrize("text", ["{", "{}", "[[0], [2]]", "[[0], 1]", "[]", "[[], []]", "[[true], [0]]", '[["0"], [0]]'])
def test_labels_that_make_no_sense_are_refused(forms, tmp_path, text):
    with pytest.raises(DataError, match="is no JSON"):
        read_real(written(tmp_path, text), forms[0], 2)


def test_lists_that_do_not_go_with_the_records_are_refused(forms, tmp_path):
    for count in (3, 6):
        with pytest.raises(DataError, match=rf"is for {count} images, but .* has one that is number 7"):
            read_real(written(tmp_path, json.dumps([[0]] * count)), forms[0], 2)
    with pytest.raises(DataError, match=r"none of the 2 images that .* lists, as x.jpg, is in"):
        read_excluded(written(tmp_path, "x.jpg\ny.jpg"), forms[0])
    with pytest.raises(DataError, match="is empty"):
        read_excluded(written(tmp_path, "\n"), forms[0])
    with pytest.raises(DataError, match="lists the number 0, but images are counted from 1"):
        read_excluded(written(tmp_path, "2\n00\n"), forms[0])


def test_an_lmdb_that_has_lost_the_names_cannot_be_matched(imagenet, tmp_path):
    copy = build(imagenet, tmp_path / "lmdb")
    (copy / "names.jsonl").unlink()
    with pytest.raises(DataError, match="does not say which images its records are"):
        read_excluded(written(tmp_path, "1\n"), open_records(copy))


def test_classes_are_matched_by_name(forms):
    records = forms[0]
    assert records.classes == ["ant", "owl", "wolf"]
    labels = labels_among(["zebra", "wolf", "owl", "ant"], records, "mine.pt")
    assert labels.tolist() == [[3, 2, 1][label] for label in records.labels]
    assert labels_among(["0", "1", "2"], records, "mine.pt") is records.labels
    with pytest.raises(DataError, match=r"the class 'wolf', which the network of mine\.pt does not know; did you mean 'wolff'"):
        labels_among(["ant", "owl", "wolff"], records, "mine.pt")
    with pytest.raises(DataError, match=r"has 3 classes, but the network of mine.pt has 1,000"):
        labels_among([str(label) for label in range(1000)], records, "mine.pt")


def test_where_records_have_numbers_for_names_the_network_may_have_more_classes_and_not_fewer():
    records = SimpleNamespace(classes=["0", "1", "2"], labels=np.array([2, 0, 1]), path="val")
    for classes in (["ant", "owl", "wolf"], ["ant", "owl", "wolf", "yak"], [*map(str, range(1000))]):
        assert labels_among(classes, records, "mine.pt") is records.labels
    for classes in (["ant", "owl"], ["0", "1"]):
        with pytest.raises(DataError, match=r"val has 3 classes, but the network of mine\.pt has 2"):
            labels_among(classes, records, "mine.pt")


def test_names_that_are_numbers_of_something_else_are_matched_as_names():
    records = SimpleNamespace(classes=["0", "10", "2"], labels=np.array([0, 1, 2, 1]), path="val")
    assert labels_among(["0", "2", "10"], records, "mine.pt").tolist() == [0, 2, 1, 2]
