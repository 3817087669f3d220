"""The index of an LMDB that another program wrote: where each Datum's image is, built once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import sys
import time
from pathlib import Path

import numpy as np

from fastirv2.data.datum import DatumFields, scan
from fastirv2.data.image_size import upright_size
from fastirv2.data.lmdb_file import Meta, check_size, data_file, value_extents
from fastirv2.errors import DataError
from fastirv2.files import alone_in, cache_folder, write_file

INDEX = np.dtype(
    [("offset", "<u8"), ("length", "<u4"), ("label", "<i4"), ("width", "<u2"), ("height", "<u2"), ("encoded", "u1")]
)
_NAME = "fastirv2-index.npz"
_VERSION = 2
_RECORDS_AHEAD = 4096  # that the kernel is told about before they are looked at
_HEAD_BYTES = 4096  # of a record that its own fields and its image's header lie in, nearly always
_TAIL_BYTES = 32  # that the fields behind the image take at most
_SECONDS_A_LINE = 10


def open_index(path: str) -> np.ndarray:
    """Return the index (`INDEX`) of the LMDB at `path`, in key order: the kept one, or a new one, which is then kept.

    It is kept beside data.mdb or, where that folder cannot be written, in the user's cache folder.

    Raises:
        DataError: the LMDB is damaged or empty, or its values are no Datum of an encoded or raw 8-bit RGB image.
    """
    meta = check_size(path)
    file = os.stat(data_file(path))  # another build of the same images in another order has the same counts
    state = np.array([_VERSION, file.st_size, file.st_mtime_ns, meta.transaction, meta.entries], np.int64)
    if not meta.entries:
        raise DataError(f"{path} holds no records")
    kept = _keeping_place(Path(path))
    with alone_in(path):  # the ranks of a host all ask for it at once
        index = _load(kept, state)
        if index is None:
            index = _build(path, meta)
            with contextlib.suppress(OSError):
                write_file(kept, lambda stream: np.savez(stream, state=state, index=index))
    return index


def _keeping_place(path: Path) -> Path:
    """Return the file that the index is kept in."""
    if os.access(path, os.W_OK):
        return path / _NAME
    return cache_folder() / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]}-{_NAME}"


def _load(kept: Path, state: np.ndarray) -> np.ndarray | None:
    """Return the kept index when it is of this LMDB as it is now."""
    try:
        with np.load(kept, allow_pickle=False) as arrays:
            index = arrays["index"]
            fits = np.array_equal(arrays["state"], state) and index.dtype == INDEX and len(index) == state[-1]
    except Exception:  # damaged or cut off, which numpy and zipfile say in many ways: it is made again
        return None
    return index if fits else None


def _build(path: str, meta: Meta) -> np.ndarray:
    """Look at every record."""
    extents = value_extents(path)
    index = np.empty(len(extents), INDEX)
    offsets, lengths = extents["offset"].astype(np.int64), extents["length"].astype(np.int64)
    said = time.monotonic()
    with data_file(path).open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))  # closed with the last view of it
        _advise(file.fileno(), offsets[:_RECORDS_AHEAD], lengths[:_RECORDS_AHEAD])
        for start in range(0, len(index), _RECORDS_AHEAD):
            ahead = slice(start + _RECORDS_AHEAD, start + 2 * _RECORDS_AHEAD)
            _advise(file.fileno(), offsets[ahead], lengths[ahead])
            for number in range(start, min(start + _RECORDS_AHEAD, len(index))):
                offset = int(offsets[number])
                index[number] = _entry(f"{path}, record {number:,}", view[offset : offset + int(lengths[number])], offset)
            if time.monotonic() - said >= _SECONDS_A_LINE:
                said = time.monotonic()
                print(f"indexing {path}: {number + 1:,} of {meta.entries:,} records", file=sys.stderr, flush=True)
    return index


def _advise(descriptor: int, offsets: np.ndarray, lengths: np.ndarray) -> None:
    """Have the kernel read the beginnings and ends of records side by side, ahead of time."""
    for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True):
        os.posix_fadvise(descriptor, offset, min(length, _HEAD_BYTES), os.POSIX_FADV_WILLNEED)
        os.posix_fadvise(descriptor, offset + max(0, length - _TAIL_BYTES), _TAIL_BYTES, os.POSIX_FADV_WILLNEED)


def _entry(where: str, value: memoryview, offset: int) -> tuple[int, ...]:
    """Return a record's line of the index; `where` names it in errors."""
    try:
        fields = scan(value)
    except ValueError as error:
        raise DataError(f"{where} is no Datum ({error}); only LMDBs of Caffe's Datum can be read") from error
    image = value[fields.offset : fields.offset + fields.length]
    if not fields.length:
        kind = "numbers (float_data) and no" if len(value) > _TAIL_BYTES else "no"
        raise DataError(f"{where} holds {kind} image; build an LMDB of the images with fastirv2-build-lmdb")
    width, height = _encoded_size(where, image) if _is_encoded(fields, image) else _raw_size(where, fields)
    if max(width, height) > 65_535:
        raise DataError(f"{where} is {width:,} × {height:,} pixels; at most 65,535 a side can be read")
    return offset + fields.offset, fields.length, fields.label, width, height, _is_encoded(fields, image)


def _is_encoded(fields: DatumFields, image: memoryview) -> bool:
    """Return whether the image is a file's content: some writers do not say so, but their planes have another length."""
    return fields.encoded or (fields.length != fields.channels * fields.height * fields.width and image[:2] == b"\xff\xd8")


def _encoded_size(where: str, image: memoryview) -> tuple[int, int]:
    """Return width and height as the image's own header gives them: writers often leave the Datum's fields out."""
    try:
        return upright_size(image)
    except ValueError as error:
        raise DataError(f"{where} holds {error}; build an LMDB of the images with fastirv2-build-lmdb") from error


def _raw_size(where: str, fields: DatumFields) -> tuple[int, int]:
    """Return width and height of a raw image, which must be three planes of bytes."""
    shape = f"{fields.channels} × {fields.height} × {fields.width}"
    if fields.channels != 3 or fields.length != 3 * fields.height * fields.width:
        raise DataError(
            f"{where} holds {fields.length:,} bytes of raw data for {shape}, but three planes of bytes (blue, green, red) are "
            "needed; build an LMDB of the images with fastirv2-build-lmdb"
        )
    return fields.width, fields.height
