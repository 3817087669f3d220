"""Names and places in few bytes each are what lists of them would be."""

import hashlib
import os
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastirv2.building.listing import Column, Names, Place, Ranges, Source

NAME = st.binary(min_size=1, max_size=12).map(lambda data: os.fsdecode(data.replace(b"\0", b"/")))


@given(st.lists(NAME), st.lists(NAME))
def test_names_are_a_sequence_of_what_was_appended(first, second):
    names = Names(first)
    names.extend(Names(second))
    listed = first + second
    assert list(names) == listed
    assert len(names) == len(listed)
    assert [names[np.int64(i)] for i in range(-len(listed), len(listed))] == listed * 2
    with pytest.raises(IndexError):
        names[len(listed)]
    assert names.encoded == b"".join(os.fsencode(name) + b"\0" for name in listed)


@pytest.mark.parametrize("count", [999, 1000, 1001, 2000, 2345])
def test_many_names_are_gone_through_as_they_were_appended(count):
    listed = [f"{number}/\udce4ö.jpg" * (number % 3) for number in range(count)]
    assert list(Names(listed)) == listed


@pytest.mark.parametrize("folder", ["", "/", "data", "data/", "/data/train"])
def test_paths_are_those_of_the_places(folder):
    source = Source(folder, Names(["ant/1.jpg", "/elsewhere/2.jpg", "3.jpg"]), np.zeros(3, np.int32), ["ant"])
    assert list(source.paths()) == [source.place(number).path for number in range(3)]


@given(st.lists(st.integers(0, 2**34), max_size=20))
def test_a_column_holds_what_was_appended_however_large(values):
    column = Column()
    for value in values:
        column.append(value)
    assert [column[i] for i in range(len(column))] == values


@given(st.lists(st.builds(Place, st.sampled_from("ab"), st.integers(0, 2**40), st.integers(0, 2**33)), min_size=1), st.data())
def test_ranges_are_the_places_that_were_appended(places, data):
    cut = data.draw(st.integers(0, len(places)))
    ranges, others = Ranges(), Ranges()
    for place in places[:cut]:
        ranges.append(place)
    for place in places[cut:]:
        others.append(place)
    ranges.extend(others)
    assert [ranges[np.int64(i)] for i in range(len(ranges))] == places


@given(st.lists(st.tuples(NAME, st.integers(0, 99)), min_size=1), st.lists(NAME))
def test_the_digest_is_that_of_labels_classes_and_names_one_after_another(images, classes):
    names, numbers = zip(*images, strict=True)
    labels = np.array(numbers, np.int32)
    digest = hashlib.sha256(labels.astype("<i4").tobytes())
    for name in (*classes, "", *names):
        digest.update(os.fsencode(name) + b"\0")
    assert Source("", Names(names), labels, classes).digest() == digest.hexdigest()


def test_a_place_is_what_a_worker_is_sent(tmp_path):
    (tmp_path / "t").write_bytes(b"0123456789")
    names, ranges = Names(["1.jpg"]), Ranges()
    ranges.append(Place(str(tmp_path / "t"), 3, 4))
    source = Source(str(tmp_path), names, np.zeros(1, np.int32), ["a"], ranges)
    assert pickle.loads(pickle.dumps(source.place(np.int64(0)))).read() == b"3456"
    assert source.packed
