"""Images that lie in one folder, with a file of their labels: ImageNet's validation set."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import numpy as np

from fastirv2.building.folders import Folder, collect
from fastirv2.building.listing import Names, Source
from fastirv2.building.lists import MAX_CLASSES, read_filled_lines
from fastirv2.errors import DataError, nearest

_BOXES = re.compile(r"(\s-?\d+){4}(\s.*)?$")  # which Kaggle's file has of the objects
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)


def open_flat(path: str, folder: Folder, classes: list[str] | None, val_labels: str, *, packed: bool) -> Source:
    """Return the images of a folder, which is on the disk at `path` or `packed` in the tar at `path`.

    The lines of the file `val_labels` are their classes, by number or by name, in the sorted order of the images' names; or
    they name the images, in any order. Without `classes`, these are the names that occur, sorted, or the numbers. Raises
    DataError for labels that do not fit.
    """
    names, ranges = collect(folder, "", packed=packed)
    if not names:
        raise DataError(f"{path} holds no images")
    labels = _Labels(val_labels, _in_order(val_labels, path, names))
    if len(labels) != len(names):
        raise DataError(
            f"{val_labels} holds {len(labels):,} labels, but {path} holds {len(names):,} files; "
            "a line for each, in the order of their names, is needed"
        )
    numbers, classes = labels.resolve(classes)
    return Source(path, names, numbers, classes, ranges)


def _in_order(path: str, folder: str, names: Names) -> Iterator[tuple[int, str]]:
    """Yield line numbers and labels of the file at `path`: as they come, or, where lines name the images, in their order.

    Raises DataError where lines name the images, and one has no line, or two, or a line no image.
    """
    lines = read_filled_lines(path)
    begin = list(islice(lines, 2))
    firsts = {name for _, text in begin for name, _ in _divisions(text)}
    if not any(called in firsts for name in names for called in (os.path.basename(name), _stem(name))):
        yield from chain(begin, lines)
        return
    image = {_stem(name): number for number, name in enumerate(names)}
    image |= {os.path.basename(name): number for number, name in enumerate(names)}
    found: list[tuple[int, str] | None] = [None] * len(names)
    has_header = not any(name in image for name, _ in _divisions(begin[0][1]))
    for number, text in chain(begin[has_header:], lines):
        name, label = next((each for each in _divisions(text) if each[0] in image), ("", ""))
        if not name:
            raise DataError(f"{path}, line {number}: '{text}' names no image of {folder}, or has no label")
        if before := found[image[name]]:
            raise DataError(f"{path}, line {number}: {name} is on line {before[0]} already")
        found[image[name]] = number, label
    for name, line in zip(names, found, strict=True):
        if line is None:
            raise DataError(f"{path} has no line for {name}; one for each of the {len(names):,} images of {folder} is needed")
        yield line


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]


def _divisions(text: str) -> Iterator[tuple[str, str]]:
    """Yield what a line may mean as an image's name and its label, which may both hold spaces.

    That is "name label", or "name,label" as in Kaggle's LOC_val_solution.csv, which has places of the objects behind it.
    """
    for name, between, label in (text.partition(","), text.rpartition(" "), text.rpartition("\t"), text.partition(" ")):
        if between and label.strip():
            yield os.path.basename(name.strip()), _BOXES.sub("", label).strip()


class _Labels:
    """The labels of a --val-labels file: what each says, and where it was said first."""

    def __init__(self, path: str, lines: Iterable[tuple[int, str]]) -> None:
        self._path = path
        self._codes = array("i")  # a line's number among the distinct texts
        self._first: dict[str, int] = {}  # text → its first line
        codes: dict[str, int] = {}
        for number, text in lines:
            self._codes.append(codes.setdefault(text, len(codes)))
            self._first.setdefault(text, number)

    def __len__(self) -> int:
        return len(self._codes)

    def resolve(self, classes: list[str] | None) -> tuple[np.ndarray, list[str]]:
        """Return the labels as int32 (N,), and the classes. Raises DataError naming the line that makes no sense."""
        names = classes if classes is not None else sorted(text for text in self._first if not _NUMBER.fullmatch(text))
        label = {name: number for number, name in enumerate(names)}
        if all(text in label for text in self._first):
            return self._of_lines([label[text] for text in self._first]), names
        for text in self._first:
            if not _is_index(text) and text not in label:
                what = "no number from 0" if classes is None else "neither a number from 0 nor a name in the --classes file"
                raise self._error(text, f"'{text}' is {what}{nearest(text, names) if names else ''}")
        name = next((text for text in self._first if not _is_index(text)), None)
        if name is not None:
            number = next(text for text in self._first if text not in label)
            raise self._error(number, f"'{number}' is a number, but line {self._first[name]} is the name '{name}'")
        return self._resolve_indexes(classes)

    def _resolve_indexes(self, classes: list[str] | None) -> tuple[np.ndarray, list[str]]:
        """Return labels and classes of lines that are all numbers."""
        for text in self._first:
            if len(text.lstrip("0")) >= len(str(MAX_CLASSES)):
                raise self._error(text, f"{text[:20]} is not between 0 and {MAX_CLASSES - 1:,}")
        numbers = [int(text) for text in self._first]
        largest = max(numbers)
        if min(numbers) > 0 and (largest == len(classes or ()) or (min(numbers) == 1 and largest == len(set(numbers)))):
            raise DataError(
                f"{self._path} counts the classes from 1 to {largest:,}, as the file in ImageNet's development kit does, whose "
                "order is not that of the training folders: give a line with the name of the class (n01440764) for each image"
            )
        if classes is not None and largest >= len(classes):
            text = next(text for text in self._first if int(text) == largest)
            names = f"the {len(classes):,} names of the --classes file, the last of which is {len(classes) - 1}"
            raise self._error(text, f"{largest} is not among {names}")
        return self._of_lines(numbers), classes if classes is not None else [str(number) for number in range(largest + 1)]

    def _of_lines(self, numbers: list[int]) -> np.ndarray:
        """Return each line's label; `numbers` are those of the distinct texts."""
        return np.array(numbers, np.int32)[np.frombuffer(self._codes, np.int32)]

    def _error(self, text: str, reason: str) -> DataError:
        return DataError(f"{self._path}, line {self._first[text]}: {reason}")


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit()
