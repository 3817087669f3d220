"""Whether a finished LMDB folder is what its build made: structure, counts, keys, labels, index, digest, and the images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import lmdb
import numpy as np

from fastirv2.building.jpeg import BadImageError, read_frame, verify_jpeg
from fastirv2.building.partial import check_name
from fastirv2.building.sources import Place
from fastirv2.building.workers import WorkerDiedError, Workers
from fastirv2.building.writer import FORMAT_VERSION, INDEX, classes_digest, key_digits
from fastirv2.data.datum import scan
from fastirv2.data.lmdb_file import OVERFLOW, PAGE_HEADER, Meta, check_size, value_extents
from fastirv2.errors import DataError
from fastirv2.files import read_npy

_RECORDS_A_CHUNK = 512
_MEND = "copy it again from where it was built, or build it again"


class Stored(NamedTuple):
    """An image to verify: where its bytes are, and the size in pixels that the index gives."""

    place: Place
    width: int
    height: int


@dataclass(frozen=True)
class Verifier:
    """The workers' job: a Stored to what is wrong with it, "" when nothing is."""

    def __call__(self, image: Stored) -> str:
        """Decode one stored image."""
        try:
            data = image.place.read()
            frame = read_frame(data)
            verify_jpeg(data, "CMYK" if len(frame.sampling) == 4 else "GRAY")
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        except BadImageError as error:
            return f"does not decode: {error}"
        width, height = frame.width, frame.height
        if (width, height) != (image.width, image.height):
            return f"is {width} × {height} pixels, but the index says {image.width} × {image.height}"
        return ""


def check(path: Path, *, decode: bool = False, workers: int = 1) -> str:
    """Return the line that says that all is well with the LMDB folder at `path`.

    Reads every record; with `decode`, decodes every image too. Raises DataError naming the first fault.
    """
    dataset = _read_dataset(path)
    meta = check_size(path)
    _compare(path, "dataset.json", dataset["count"], "data.mdb", meta.entries, "records")
    _compare(path, "dataset.json", dataset["pages"], "data.mdb", meta.pages, "pages")
    index = _read_index(path, meta.entries)
    extents = value_extents(path)
    data = np.memmap(path / "data.mdb", np.uint8, "r")
    _check_overflow_pages(path, data, extents, meta)
    digest = _check_records(path, data, extents, index, len(dataset["classes"]))
    if digest != dataset["digest"]:
        raise DataError(
            f"{path}: the records are not those that were built (digest {digest[:12]}…, dataset.json says "
            f"{dataset['digest'][:12]}…); --decode may name the image; {_MEND}"
        )
    _check_totals(path, index, dataset)
    _check_names(path, dataset)
    _check_settings(path, dataset)
    _check_lookups(path, meta.entries)
    if decode:
        _decode_all(path, index, workers)
    return f"{path} is whole: {meta.entries:,} records, {len(dataset['classes']):,} classes, digest {digest[:12]}…" + (
        ", every image decodes" if decode else ""
    )


def _read_dataset(path: Path) -> dict[str, Any]:
    """Return dataset.json with the fields that the check needs."""
    file = path / "dataset.json"
    partial = f"{os.path.abspath(path)}.partial"
    check_name(path)
    if (path.name.endswith(".partial") and not os.path.exists(file)) or (not os.path.exists(path) and os.path.exists(partial)):
        raise DataError(f"{path}: this build is unfinished; give its fastirv2-build-lmdb command again to go on with it")
    if not os.path.exists(path / "data.mdb"):
        raise DataError(f"{path} is no LMDB folder: there is no {path / 'data.mdb'}")
    if not os.path.exists(file):
        raise DataError(f"{path}: this build is unfinished, or of another program: it has no dataset.json; build it again")
    try:
        dataset = json.loads(file.read_bytes())
        version = dataset["format_version"]
        fields = [dataset[name] for name in ("count", "pages", "data_bytes", "classes", "images_per_class", "digest")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({error!r}); {_MEND}") from error
    if version != FORMAT_VERSION or [type(field) for field in fields] != [int, int, int, list, list, str]:
        raise DataError(f"{file} is not of format version {FORMAT_VERSION}; {_MEND}")
    return dataset


def _read_index(path: Path, count: int) -> np.ndarray:
    """Return index.npy."""
    file = path / "index.npy"
    try:
        index = read_npy(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); {_MEND}") from error
    if index.dtype != INDEX or index.ndim != 1:
        raise DataError(f"{file} is no index of this format: {index.dtype}; {_MEND}")
    _compare(path, "index.npy", len(index), "data.mdb", count, "records")
    return index


def _check_overflow_pages(path: Path, data: np.ndarray, extents: np.ndarray, meta: Meta) -> None:
    """Make sure that the pages which hold one large value each say so."""
    large = extents[extents["offset"] != extents["key_offset"] + extents["key_length"]]
    start = large["offset"].astype(np.int64) - PAGE_HEADER
    heads = data[start[:, None] + np.arange(PAGE_HEADER)] if len(large) else np.empty((0, PAGE_HEADER), np.uint8)
    needed = -(-(PAGE_HEADER + large["length"].astype(np.int64)) // meta.page_size)
    sound = (
        (heads.view("<u8")[:, 0] == start // meta.page_size)
        & (heads.view("<u2")[:, 5] == OVERFLOW)
        & (heads.view("<u4")[:, 3] == needed)
    )
    if not sound.all():
        page = int(start[int(np.argmin(sound))]) // meta.page_size
        raise DataError(f"{path / 'data.mdb'} is damaged at page {page:,}; {_MEND}")


def _check_records(path: Path, data: np.ndarray, extents: np.ndarray, index: np.ndarray, classes: int) -> str:
    """Compare every record with its key, its index entry and the classes; return the digest of all."""
    digits = key_digits(len(extents))
    view = memoryview(data)

    def chunk(start: int) -> bytes:
        rows = zip(
            extents[start : start + _RECORDS_A_CHUNK].tolist(), index[start : start + _RECORDS_A_CHUNK].tolist(), strict=True
        )
        return b"".join(
            _check_record(path, number, view, extent, entry, b"%0*d" % (digits, number), classes)
            for number, (extent, entry) in enumerate(rows, start)
        )

    digest = hashlib.sha256()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for part in threads.map(chunk, range(0, len(extents), _RECORDS_A_CHUNK)):
            digest.update(part)
    return digest.hexdigest()


def _check_record(
    path: Path, number: int, view: memoryview, extent: tuple[int, ...], entry: tuple[int, ...], key: bytes, classes: int
) -> bytes:
    """Return a record's sha256 after comparing it with its index entry."""
    offset, length, key_offset, key_length = extent
    where = f"{path}, record {number:,}"
    stored_key = bytes(view[key_offset : key_offset + key_length])
    if stored_key != key:
        raise DataError(f"{where}: its key is {stored_key!r}, not {key.decode()}; {_MEND}")
    value = view[offset : offset + length]
    try:
        fields = scan(value)
    except ValueError as error:
        raise DataError(f"{where}: its value is damaged ({error}); {_MEND}") from error
    if entry != (offset + fields.offset, fields.length, fields.label, fields.width, fields.height):
        raise DataError(f"{where}: index.npy and the record differ; {_MEND}")
    if not 0 <= fields.label < classes:
        raise DataError(f"{where}: label {fields.label} is not among the {classes:,} classes of dataset.json; {_MEND}")
    if not fields.encoded or fields.channels != 3:
        raise DataError(f"{where}: it is no encoded RGB image; {_MEND}")
    digest = hashlib.sha256(key)
    digest.update(value)
    return digest.digest()


def _check_totals(path: Path, index: np.ndarray, dataset: dict[str, Any]) -> None:
    """Compare what dataset.json sums up with the index."""
    per_class = np.bincount(index["label"], minlength=len(dataset["classes"])).tolist()
    if per_class != dataset["images_per_class"]:
        raise DataError(f"{path}: images_per_class in dataset.json is not what the records hold; {_MEND}")
    _compare(path, "dataset.json", dataset["data_bytes"], "index.npy", int(index["length"].sum(dtype=np.int64)), "image bytes")


def _check_names(path: Path, dataset: dict[str, Any]) -> None:
    """Make sure that the images' names are those that were built; older builds have none."""
    file = path / "names.jsonl"
    if "names_digest" not in dataset:
        return
    try:
        names = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}; {_MEND}") from error
    if hashlib.sha256(names).hexdigest() != dataset["names_digest"]:
        raise DataError(f"{file} does not hold the names that were built; {_MEND}")


def _check_settings(path: Path, dataset: dict[str, Any]) -> None:
    """Make sure that the classes' names and the build's options in dataset.json are those that it was written with."""
    classes, build = dataset["classes"], dataset.get("build", {})
    changed = [name for name in ("resize", "quality", "seed", "part") if name in build and dataset.get(name) != build[name]]
    if dataset.get("classes_digest", digest := classes_digest(classes)) != digest:  # older builds have none
        changed.append("classes")
    if changed:
        raise DataError(f"{path / 'dataset.json'}: {changed[0]} is not what the LMDB was built with; {_MEND}")


def _check_lookups(path: Path, count: int) -> None:
    """Make sure that LMDB itself finds every key: the tree's inner pages hold keys too."""
    digits = key_digits(count)
    try:
        with (
            lmdb.open(os.fspath(path), readonly=True, lock=False) as environment,
            environment.begin(buffers=True) as transaction,
        ):
            # not by a cursor, which looks at the page that it is on before it goes down from the root
            missing = next((n for n in range(count) if transaction.get(b"%0*d" % (digits, n)) is None), None)
    except lmdb.Error as error:
        raise DataError(f"{path} cannot be opened by LMDB ({error}); {_MEND}") from error
    if missing is not None:
        raise DataError(f"{path}: LMDB does not find the key of record {missing:,}; {_MEND}")


def _decode_all(path: Path, index: np.ndarray, workers: int) -> None:
    """Decode every image in parallel."""
    try:
        with Workers(Verifier(), min(workers, max(1, len(index)))) as pool:
            faults = (fault for results in pool.map(_stored_images(path, index), len(index)) for fault in results)
            bad = next(((number, fault) for number, fault in enumerate(faults) if fault), None)
    except WorkerDiedError as error:
        raise DataError(
            f"{path}: a worker process ended ({error.how}; out of memory?) while decoding; use fewer --workers"
        ) from error
    if bad is not None:
        raise DataError(f"{path}, record {bad[0]:,} {bad[1]}; {_MEND}")


def _stored_images(path: Path, index: np.ndarray) -> Iterator[Stored]:
    """Yield every image of the index, in order."""
    file = os.fspath(path / "data.mdb")
    for offset, length, _, width, height in index.tolist():
        yield Stored(Place(file, offset, length), width, height)


def _compare(path: Path, one: str, count_one: int, other: str, count_other: int, things: str) -> None:
    """Raise DataError when two counts differ."""
    if count_one != count_other:
        raise DataError(f"{path}: {one} says {count_one:,} {things} but {other} holds {count_other:,}; {_MEND}")
