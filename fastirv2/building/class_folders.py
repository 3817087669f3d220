"""Classes that are folders, or tars named after their class: labels by the order of the names, or of the --classes file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np

from fastirv2.building.folders import Contents, Images, collect
from fastirv2.building.listing import Names, Place, Ranges, Source
from fastirv2.building.tars import ContentsProgress, read_tar
from fastirv2.errors import DataError, nearest

_TAR = ".tar"
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # of a data set, as folders are called
_THREADS = 32  # a header at a time, each of which takes milliseconds to come from a network's file system


def open_class_folders(path: str, contents: Contents, classes: list[str] | None, *, packed: bool) -> Source:
    """Return the images of a folder of class folders, which is on the disk at `path` or `packed` in the tar at `path`.

    Raises DataError for a class that is not among `classes`, for no images, and for what cannot be read.
    """
    found = [name for name in contents.folders if name.lower() in _PARTS]
    if classes is None and len(found) == len(contents.folders) > 1:
        raise DataError(
            f"{path} holds {' and '.join(found)}, which are called like the parts of a data set: give one of them, as "
            f"{path}/{found[0]}; should they be classes, build an LMDB with fastirv2-build-lmdb, whose --classes says so"
        )
    parts = (collect(folder, f"{name}/", packed=packed) for name, folder in contents.folders.items())
    titles = {name: f"the class folder {folder.where}" for name, folder in contents.folders.items()}
    return _merge(path, titles, parts, classes)


def class_tars(contents: Contents) -> list[str]:
    """Return the names of the files in a folder that are tars by their names."""
    return [name for name in contents.files if name.lower().endswith(_TAR)]


def open_class_tars(path: str, contents: Contents, classes: list[str] | None, *, packed: bool) -> Source:
    """Return the images of a folder of CLASS.tar files, which is on the disk at `path` or `packed` in the tar at `path`.

    Raises DataError for a class that is not among `classes` or comes twice, for no images, and for a tar that cannot be read,
    is cut off, or damaged.
    """
    tars: dict[str, str] = {}
    for file in class_tars(contents):
        name = file[: -len(_TAR)]
        if name in tars or file in contents.repeated:
            raise DataError(f"{path} holds the class {name} twice, as {tars.get(name, file)} and {file}; take one of them away")
        tars[name] = file
    separator = ", class tar " if packed else "/"
    titles = {name: f"{path}{separator}{tars[name]}" for name in sorted(tars)}
    places = [contents.files[tars[name]] for name in titles]
    return _merge(path, titles, _read_all(path, titles, places), classes)


def _read_all(path: str, titles: dict[str, str], tars: list[Place]) -> Iterator[Images]:
    """Yield the images of every class tar, in order; they are read side by side."""
    progress, lock, done = ContentsProgress(path), Lock(), 0

    def read(tar: Place, name: str, title: str) -> Images:
        nonlocal done
        images = collect(read_tar(tar, title), f"{name}/", packed=True)
        if len(images.names) and all(image.lower().endswith(_TAR) for image in images.names):
            raise DataError(f"{title} holds nothing but tars itself, as {images.names[0]}; give it, or its folder, as SOURCE")
        with lock:
            done += 1
        progress.say(f"{done:,} of {len(tars):,} class tars")
        return images

    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(read, tars, titles, titles.values())


def _merge(path: str, titles: dict[str, str], parts: Iterable[Images], classes: list[str] | None) -> Source:
    """Return the source that holds the images of each class in turn; `titles` are what errors call the classes."""
    classes = classes if classes is not None else list(titles)
    number = {name: label for label, name in enumerate(classes)}
    for name, title in titles.items():
        if name not in number:
            raise DataError(f"{title} is not in the --classes file{nearest(name, classes)}")
    names, ranges, counts = Names(), Ranges(), []
    for part in parts:
        names.extend(part.names)
        counts.append(len(part.names))
        if part.ranges is not None:
            ranges.extend(part.ranges)
    if not names:
        raise DataError(f"{path} holds no images: its {len(titles):,} classes are empty")
    labels = np.repeat(np.array([number[name] for name in titles], np.int32), counts)
    return Source(path, names, labels, classes, ranges if len(ranges) else None)
