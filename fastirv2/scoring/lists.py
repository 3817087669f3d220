"""Which label an image has for a network, and lists that speak of validation images by their order or name."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastirv2.data.dataset import Records
from fastirv2.errors import DataError, nearest

_IMAGENET = re.compile(r"ILSVRC2012_val_(\d{8})")  # whose names say their place in the order of file names


def labels_among(classes: list[str], records: Records, source: str) -> np.ndarray:
    """Return the label, int64 (N,), that each record has among the `classes` of the network from `source`: by name.

    Where one of the two has numbers for names the labels are taken as they are.

    Raises:
        DataError: the network does not know a class of the records.
    """
    ours, theirs = records.classes, classes
    if ours == theirs:
        return records.labels
    if _numbered(ours) or _numbered(theirs):
        if len(ours) > len(theirs) or (len(ours) < len(theirs) and not _numbered(ours)):
            raise DataError(f"{records.path} has {len(ours):,} classes, but the network of {source} has {len(theirs):,}")
        return records.labels
    label = {name: number for number, name in enumerate(theirs)}
    unknown = next((name for name in ours if name not in label), None)
    if unknown is not None:
        raise DataError(
            f"{records.path} has the class '{unknown}', which the network of {source} does not know{nearest(unknown, theirs)}"
        )
    return np.array([label[name] for name in ours], np.int64)[records.labels]


def _numbered(classes: list[str]) -> bool:
    return all(name == str(label) for label, name in enumerate(classes))


class Excluded(NamedTuple):
    """Which records a list excludes, bool (N,), and how many of its entries are of images that are not there."""

    records: np.ndarray
    absent: int


def read_excluded(file: str, records: Records) -> Excluded:
    """Read which images are to be left out: a line each, its name or its number in the order of file names, from 1.

    ImageNet's development kit lists the 1,762 blacklisted validation images by such numbers. Names may be paths; what
    counts is the last part, with or without its suffix, and where several images share one, the folders too.

    Raises:
        DataError: the list cannot be read, none of its images is there, or an entry may mean several.
    """
    entries = list(dict.fromkeys(line.strip() for line in _read(file).splitlines() if line.strip()))
    if not entries:
        raise DataError(f"{file} is empty: a name or number a line is needed")
    by_number = all(entry.isdecimal() for entry in entries)
    found = _numbered_places(entries, records, file) if by_number else _called(entries, records, file)
    if not found:
        raise DataError(f"none of the {len(entries):,} images that {file} lists, as {entries[0]}, is in {records.path}")
    excluded = np.zeros(len(records), bool)
    excluded[found] = True
    return Excluded(excluded, len(entries) - len(found))


def _numbered_places(entries: list[str], records: Records, file: str) -> list[int]:
    """Return the records that are at these places, counted from 1; what are names too is refused."""
    if namesake := {Path(name).stem for name in _names(records, file)}.intersection(entries):
        called = min(namesake)
        raise DataError(f"{file} lists {called}, but {records.path} has an image called so: give all names with their suffixes")
    if not all(map(int, entries)):
        raise DataError(f"{file} lists the number 0, but images are counted from 1, in the order of their names")
    record = {place + 1: number for number, place in enumerate(_places(records, None, file).tolist())}
    return [record[int(entry)] for entry in entries if int(entry) in record]


def _called(entries: list[str], records: Records, file: str) -> list[int]:
    """Return the record of each entry that is called so, in turn."""
    names = _names(records, file)
    known: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        for key in {Path(name).name, Path(name).stem}:
            known.setdefault(key, []).append(number)
    unique = len({Path(name).name for name in names}) == len(names)
    found = []
    for entry in entries:
        numbers = known.get(Path(entry).name) or known.get(Path(entry).stem, [])
        if "/" in entry and (len(numbers) > 1 or not unique):  # a unique name is enough, in whatever folder the image lay
            numbers = [each for each in numbers if _agree(entry, names[each])]
        if len(numbers) > 1:  # those whose whole path is given come first, and of these the longest
            whole = [each for each in numbers if _ends_with(entry, names[each])]
            deepest = max((names[each].count("/") for each in whole), default=0)
            numbers = [each for each in whole if names[each].count("/") == deepest] or numbers
        if len(numbers) > 1:
            raise DataError(f"{file} lists {entry}, but {records.path} has several images called so: give their paths in it")
        found += numbers
    return found


def _agree(one: str, other: str) -> bool:
    """Return whether one of two paths ends with the other."""
    return _ends_with(one, other) or _ends_with(other, one)


def _ends_with(path: str, end: str) -> bool:
    """Return whether a path ends with another, both with or without their suffixes."""
    paths, ends = ((f"/{each}", f"/{Path(each).with_suffix('')}") for each in (path, end))
    return any(a.endswith(b) for a, b in product(paths, ends))


def read_real(file: str, records: Records, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read several valid labels an image: a JSON list with a list of labels for each image, in the order of file names.

    That is the form of "Are we done with ImageNet?" (Beyer et al. 2020, arXiv 2006.07159), whose real.json leaves images
    without a valid label out.

    Returns:
        labels, int64 (N, K), each record's first one repeated where it has fewer; and bool (N,), whether it has any.

    Raises:
        DataError: the file is not of this form, or not for these records or classes.
    """
    try:
        lists = json.loads(_read(file))
        whole = isinstance(lists, list) and all(
            isinstance(each, list) and all(type(label) is int and 0 <= label < classes for label in each) for each in lists
        )
    except ValueError as error:
        raise DataError(f"{file} is no JSON: {error}") from error
    if not whole or not any(lists):
        raise DataError(f"{file} is no JSON list of lists of labels from 0 to {classes - 1}, one for each image")
    chosen = [lists[place] for place in _places(records, len(lists), file)]
    width = max(map(len, chosen)) or 1
    labels = np.array([(each + each[:1] * width if each else [0] * width)[:width] for each in chosen], np.int64)
    return labels, np.array([bool(each) for each in chosen])


def _places(records: Records, total: int | None, file: str) -> np.ndarray:
    """Return each record's place among all `total` images in the order of their file names, int64 (N,), from 0.

    ImageNet's names say it. Others do where the records are all the images, or as many as the list is for.
    """
    names = [name.rpartition("/")[2] for name in _names(records, file)]
    numbers = [_IMAGENET.match(name) for name in names]
    if all(numbers):
        places = np.array([int(number[1]) - 1 for number in numbers if number], np.int64)
        if total is not None and int(places.max()) >= total:
            raise DataError(f"{file} is for {total:,} images, but {records.path} has one that is number {places.max() + 1:,}")
        return places
    if total is not None and total != len(names):
        raise DataError(
            f"{file} is for {total:,} images, but {records.path} holds {len(names):,}, whose names do not say which they are"
        )
    if len(set(names)) != len(names):
        raise DataError(f"{records.path} has several images of one name, so that the order which {file} speaks of is not known")
    places = np.empty(len(names), np.int64)
    places[np.argsort(np.array(names, object), kind="stable")] = np.arange(len(names))
    return places


def _names(records: Records, file: str) -> list[str]:
    names = records.names
    if names is None:
        raise DataError(
            f"{records.path} does not say which images its records are, which {file} needs: build it anew with "
            "fastirv2-build-lmdb, or give the folder of the images or a list of them"
        )
    return list(names)


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from error
