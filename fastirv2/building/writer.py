"""The one writer of a build: records appended in order, a journal to go on from after a kill, index.npy and dataset.json."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import lmdb
import numpy as np

from fastirv2.building.images import Result
from fastirv2.data.lmdb_file import check_size, read_meta, value_extents
from fastirv2.errors import DataError
from fastirv2.files import write_file

FORMAT_VERSION = 1
INDEX = np.dtype([("offset", "<u8"), ("length", "<u4"), ("label", "<i4"), ("width", "<u2"), ("height", "<u2")])
ROW = np.dtype(
    [
        ("stored", "u1"),
        ("label", "<i4"),
        ("length", "<u4"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("header", "<u2"),
        ("report_end", "<u8"),
        ("digest", "u1", 32),
    ]
)
COMMIT_BYTES = 64 << 20
COMMIT_RECORDS = 4096
MAP_BYTES = 1 << 30
_ROWS_A_PIECE = 1 << 18
_PACK = struct.Struct("<BiIHHHQ32s").pack


def key_digits(count: int) -> int:
    """Return how many digits the keys of `count` records have: 8, or as many as the last one needs."""
    return max(8, len(str(count - 1)))


class RecordWriter:
    """Appends results to `folder` (data.mdb, rejected.jsonl and a journal), going on after what is committed there.

    The journal has a row per image, stored or not, and reaches the disk before the records it describes do: after a kill
    it is cut back to what LMDB holds. `done`, `committed`, `stored` and `rejected` count images from the start of the
    build; everything raises OSError or lmdb.Error when the disk does.
    """

    def __init__(self, folder: Path, digits: int, map_bytes: int = MAP_BYTES) -> None:
        self.folder = folder
        self._digits = digits
        self._env = lmdb.open(os.fspath(folder), map_size=max(map_bytes, file_size(folder / "data.mdb")), max_dbs=0)
        self._items: list[tuple[bytes, bytes]] = []
        self._rows = bytearray()
        self._lines = bytearray()
        self._pending_bytes = 0
        rows = self._go_on()
        self._journal = (folder / "journal").open("ab", buffering=0)
        self._report = (folder / "rejected.jsonl").open("ab", buffering=0)
        self._report_end = self._report.tell()
        self.whole = True  # no image is half taken and no commit half done, as they are where a signal comes in between
        self.done = self.committed = len(rows)
        self.stored = int(rows["stored"].sum())
        self.rejected = self.done - self.stored

    def add(self, name: str, label: int, result: Result) -> None:
        """Take the next image's result; committed with others by `commit` at the latest."""
        self.whole = False
        if result.reason:
            self._note(name, result.reason, "rejected" if result.value is None else "repaired")
        digest = b""
        if result.value is None:
            self.rejected += 1
        else:
            key = b"%0*d" % (self._digits, self.stored)
            state = hashlib.sha256(key)
            state.update(result.value)
            digest = state.digest()
            self._items.append((key, result.value))
            self._pending_bytes += len(result.value)
            self.stored += 1
        self._rows += _PACK(
            result.value is not None, label, result.length, result.width, result.height, result.header, self._report_end, digest
        )
        self.done += 1
        if self._pending_bytes >= COMMIT_BYTES or len(self._items) >= COMMIT_RECORDS:
            self.commit()
        self.whole = True

    def commit(self) -> None:
        """Bring everything taken so far to the disk, in one transaction; the map grows when it is full."""
        self.whole = False
        for file, data in ((self._report, self._lines), (self._journal, self._rows)):
            if data:
                _write_all(file.fileno(), data)
                os.fdatasync(file.fileno())
                data.clear()
        while self._items and not self._put_items():
            self._env.set_mapsize(2 * self._env.info()["map_size"])
        self._items.clear()
        self._pending_bytes = 0
        self.committed = self.done
        self.whole = True

    def _put_items(self) -> bool:
        """Commit the records taken so far; False, and nothing done, when the map is too small for them."""
        try:
            with self._env.begin(write=True) as transaction:
                transaction.cursor().putmulti(self._items, append=True)
        except lmdb.MapFullError:
            return False
        return True

    def close(self) -> None:
        """Close the files without committing."""
        self._env.close()
        self._journal.close()
        self._report.close()

    def _note(self, name: str, reason: str, action: str) -> None:
        """Add a line to rejected.jsonl."""
        line = json.dumps({"path": name, "reason": reason, "action": action}).encode() + b"\n"
        self._lines += line
        self._report_end += len(line)

    def _go_on(self) -> np.ndarray:
        """Cut journal and report back to the records that LMDB holds, and return the journal's rows."""
        journal, report = self.folder / "journal", self.folder / "rejected.jsonl"
        journal.touch()
        report.touch()
        rows = read_journal(self.folder)
        counts = np.cumsum(rows["stored"], dtype=np.int64)
        entries = self._env.stat()["entries"]
        if entries > (counts[-1] if len(counts) else 0):
            raise DataError(f"{self.folder} holds {entries:,} records, more than its journal; remove it to begin anew")
        rows = rows[: int(np.searchsorted(counts, entries)) + 1 if entries else 0]
        os.truncate(journal, len(rows) * ROW.itemsize)
        os.truncate(report, int(rows["report_end"][-1]) if len(rows) else 0)
        return rows


def read_journal(folder: Path) -> np.ndarray:
    """Return the journal's whole rows (`ROW`) as a map of the file, none when there is no journal yet."""
    count = file_size(folder / "journal") // ROW.itemsize
    return np.memmap(folder / "journal", ROW, "r", shape=(count,)) if count else np.empty(0, ROW)


def write_dataset(folder: Path, classes: list[str], settings: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Write index.npy, names.jsonl and then dataset.json for the finished data.mdb in `folder`; return what the last says.

    `settings` (resize, quality, seed, part and what else tells one build from another) is stored with it; `names` are those
    of all the images that the writer was given, in order.
    """
    _pad(folder / "data.mdb")
    rows = read_journal(folder)
    count = int(rows["stored"].sum())
    extents = value_extents(folder)
    if len(extents) != count:
        raise DataError(f"{folder} and its journal differ: remove it to begin anew")
    digest, totals = hashlib.sha256(), np.zeros(len(classes), np.int64)
    write_file(folder / "index.npy", lambda stream: _write_index(stream, folder, rows, extents, digest, totals))
    names_digest = hashlib.sha256()
    write_file(folder / "names.jsonl", lambda stream: _write_names(stream, rows, names, names_digest))
    dataset = {
        "format_version": FORMAT_VERSION,
        "count": count,
        "pages": check_size(folder).pages,
        "data_bytes": sum(int(part["length"].sum(dtype=np.int64)) for part in _stored_rows(rows)),
        "classes": classes,
        "images_per_class": totals.tolist(),
        **{name: settings[name] for name in ("resize", "quality", "seed", "part")},
        "digest": digest.hexdigest(),
        "names_digest": names_digest.hexdigest(),
        "classes_digest": classes_digest(classes),
        "build": settings,
    }
    text = json.dumps(dataset, indent=1).encode() + b"\n"
    write_file(folder / "dataset.json", lambda stream: stream.write(text))
    return dataset


def classes_digest(classes: list[str]) -> str:
    """Return the sha256 over the classes' names, in label order."""
    return hashlib.sha256(json.dumps(classes).encode()).hexdigest()


def _write_index(
    stream: BinaryIO, folder: Path, rows: np.ndarray, extents: np.ndarray, digest: Any, images_per_class: np.ndarray
) -> None:
    """Write index.npy, a piece at a time; adds the records to the digest, and to the number of images of each class."""
    np.lib.format.write_array_header_1_0(
        stream, {"descr": np.lib.format.dtype_to_descr(INDEX), "fortran_order": False, "shape": (len(extents),)}
    )
    start = 0
    for part in _stored_rows(rows):
        places = extents[start : start + len(part)]
        start += len(part)
        if (places["length"] < part["length"] + part["header"]).any():
            raise DataError(f"{folder} and its journal differ: remove it to begin anew")
        index = np.empty(len(part), INDEX)
        index["offset"] = places["offset"] + part["header"]
        for field in ("length", "label", "width", "height"):
            index[field] = part[field]
        stream.write(index.tobytes())
        digest.update(part["digest"].tobytes())
        images_per_class += np.bincount(part["label"], minlength=len(images_per_class))


def _write_names(stream: BinaryIO, rows: np.ndarray, names: Iterable[str], digest: Any) -> None:
    """Write the name of each stored image as a line of JSON, in key order; adds the lines to the digest."""
    for stored, name in zip(rows["stored"], names, strict=True):
        if stored:
            line = json.dumps(name).encode() + b"\n"
            stream.write(line)
            digest.update(line)


def _stored_rows(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the journal's rows of images that are stored, piece by piece: all at once are a gigabyte for 14 million."""
    for start in range(0, len(rows), _ROWS_A_PIECE):
        piece = rows[start : start + _ROWS_A_PIECE]
        yield piece[piece["stored"] == 1]


def _pad(file: Path) -> None:
    """Make the file as long as its page count says: LMDB leaves it shorter when its last pages were never written."""
    meta = read_meta(file)
    with file.open("r+b") as stream:
        if file_size(file) < meta.pages * meta.page_size:
            stream.truncate(meta.pages * meta.page_size)
        os.fsync(stream.fileno())


def _write_all(descriptor: int, data: bytearray) -> None:
    """Write all of `data`; a full disk may take a part of it first."""
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.write(descriptor, view[written:])


def file_size(path: Path) -> int:
    """Return a file's size in bytes, 0 when it does not exist."""
    return path.stat().st_size if path.exists() else 0
