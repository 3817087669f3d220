"""LMDB's file format (version 1, 64 bit), as far as finding every value in it: for the index, and for safe opening.

The layout is that of `struct MDB_page`, `MDB_node`, `MDB_meta` and `MDB_db` in LMDB 0.9's mdb.c, little-endian.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastirv2.errors import DataError

EXTENT = np.dtype([("offset", "<u8"), ("length", "<u4"), ("key_offset", "<u8"), ("key_length", "<u2")])
PAGE_HEADER = 16
NODE_HEADER = 8
MAGIC = 0xBEEFC0DE
NO_PAGE = 2**64 - 1
BRANCH, LEAF, OVERFLOW = 0x01, 0x02, 0x04
BIG_DATA = 0x01
_META = struct.Struct("<IIQQ 48x 4xHHQQQQQ QQ")  # magic … map size, the free list, the main tree, last page, transaction
_PAGES_A_BLOCK = 4096


class Meta(NamedTuple):
    """The newest meta page: sizes in bytes, `pages` the number of pages in use, `root` a page number."""

    page_size: int
    entries: int
    pages: int
    root: int
    depth: int
    flags: int
    transaction: int


def data_file(path: str | os.PathLike[str]) -> Path:
    """Return the file of an LMDB given as its folder or as the file itself."""
    path = Path(path)
    return path / "data.mdb" if path.is_dir() else path


def read_meta(path: str | os.PathLike[str]) -> Meta:
    """Return what the newest valid meta page of an LMDB (folder or file) says.

    Raises DataError when the file is missing, cannot be read, or is no LMDB of format version 1.
    """
    file = data_file(path)
    try:
        with file.open("rb") as stream:
            first = stream.read(PAGE_HEADER + _META.size)
            page_size = _page_size(first, file)
            stream.seek(page_size)
            second = stream.read(PAGE_HEADER + _META.size)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    metas = [meta for meta in (_parse_meta(first, page_size), _parse_meta(second, page_size)) if meta]
    if not metas:
        raise DataError(f"{file} is cut off within its first two pages: copy or build it again")
    return max(metas, key=lambda meta: meta.transaction)


def check_size(path: str | os.PathLike[str]) -> Meta:
    """Return the meta page after making sure that every page it counts is in the file.

    Reading a page that is missing ends the process with SIGBUS. Raises DataError as `read_meta` does, and for a short file.
    """
    meta = read_meta(path)
    file = data_file(path)
    size = file.stat().st_size
    if size < meta.pages * meta.page_size:
        raise DataError(
            f"{file} has {size:,} bytes but its {meta.pages:,} pages need {meta.pages * meta.page_size:,}: "
            "the copy is incomplete; copy or build it again"
        )
    return meta


def value_extents(path: str | os.PathLike[str]) -> np.ndarray:
    """Return where each value and key lies in the file, in key order, without reading a value.

    A structured array (`EXTENT`): offset and length of the value, key_offset and key_length of the key, in bytes from
    the file's start. Raises DataError as `check_size` does, and when the tree is damaged or holds named or sorted-duplicate
    databases.
    """
    meta = check_size(path)
    file = data_file(path)
    if meta.entries == 0 or meta.root == NO_PAGE:
        return np.empty(0, EXTENT)
    pages = np.memmap(file, np.uint8, "r", shape=(meta.pages, meta.page_size))
    level = np.array([meta.root], np.uint64)
    for _ in range(meta.depth - 1):
        level = np.concatenate([_children(pages, block, file) for block in _blocks(level)])
    extents = np.concatenate([_leaf_extents(pages, block, file) for block in _blocks(level)])
    if len(extents) != meta.entries:
        raise DataError(f"{file} is damaged: its tree holds {len(extents):,} records, its header says {meta.entries:,}")
    return extents


def _page_size(first: bytes, file: Path) -> int:
    """Return the page size that the first meta page gives, after checking that this is an LMDB at all."""
    magic, version, page_size = struct.unpack_from("<II16xI", first.ljust(PAGE_HEADER + _META.size, b"\0"), PAGE_HEADER)
    if magic != MAGIC:
        raise DataError(f"{file} is no LMDB: it does not begin with LMDB's magic number")
    if version != 1:
        raise DataError(f"{file} is an LMDB of format version {version}; only version 1 (LMDB 0.9) can be read")
    if not 256 <= page_size <= 65536 or page_size & (page_size - 1):
        raise DataError(f"{file} is damaged: its header gives a page size of {page_size:,} bytes")
    return page_size


def _parse_meta(page: bytes, page_size: int) -> Meta | None:
    """Return the meta page in `page`, or None when it is none."""
    if len(page) < PAGE_HEADER + _META.size:
        return None
    magic, version, _, _, flags, depth, _, _, _, entries, root, last, transaction = _META.unpack_from(page, PAGE_HEADER)
    if magic != MAGIC or version != 1:
        return None
    return Meta(page_size, entries, last + 1, root, depth, flags, transaction)


def _blocks(numbers: np.ndarray) -> list[np.ndarray]:
    """Return page numbers in blocks small enough to copy."""
    return [numbers[start : start + _PAGES_A_BLOCK] for start in range(0, len(numbers), _PAGES_A_BLOCK)]


def _nodes(pages: np.ndarray, numbers: np.ndarray, kind: int, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the heads of all nodes of the given pages, in order: fields (N, 4) u2, and the offsets (N,) i8 in the file."""
    page_size = pages.shape[1]
    if len(numbers) and int(numbers.max()) >= len(pages):
        raise DataError(f"{file} is damaged: its tree points at page {int(numbers.max()):,} of {len(pages):,}")
    block = pages[numbers.astype(np.int64)]
    heads = np.ascontiguousarray(block[:, :PAGE_HEADER])
    halves = heads.view("<u2")
    counts = (halves[:, 6].astype(np.int64) - PAGE_HEADER) // 2
    sound = (heads.view("<u8")[:, 0] == numbers) & (halves[:, 5] == kind) & (counts >= 1) & (halves[:, 6] <= halves[:, 7])
    if not sound.all() or int(halves[:, 7].max()) > page_size:
        raise DataError(f"{file} is damaged at page {int(numbers[int(np.argmin(sound))]):,}: build it again")
    row = np.repeat(np.arange(len(numbers)), counts)
    column = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = block.view("<u2")[row, PAGE_HEADER // 2 + column].astype(np.int64)
    if int(start.max()) > page_size - NODE_HEADER:
        raise DataError(f"{file} is damaged: a node lies outside of its page")
    at = row * page_size + start
    fields = block.reshape(-1)[at[:, None] + np.arange(NODE_HEADER)].view("<u2")
    if (start + NODE_HEADER + fields[:, 3] > page_size).any():
        raise DataError(f"{file} is damaged: a key lies outside of its page")
    return fields, numbers.astype(np.int64)[row] * page_size + start


def _children(pages: np.ndarray, numbers: np.ndarray, file: Path) -> np.ndarray:
    """Return the page numbers that branch pages point at, in key order."""
    fields, _ = _nodes(pages, numbers, BRANCH, file)
    low, high, top = (fields[:, column].astype(np.uint64) for column in range(3))
    return low | high << np.uint64(16) | top << np.uint64(32)


def _leaf_extents(pages: np.ndarray, numbers: np.ndarray, file: Path) -> np.ndarray:
    """Return the extents of all records on the given leaf pages."""
    page_size = pages.shape[1]
    fields, start = _nodes(pages, numbers, LEAF, file)
    flags = fields[:, 2]
    if (flags & ~np.uint16(BIG_DATA)).any():
        raise DataError(f"{file} holds named databases or sorted duplicates: it is no LMDB of Datum records")
    extents = np.empty(len(fields), EXTENT)
    extents["length"] = fields[:, 0].astype(np.uint32) | fields[:, 1].astype(np.uint32) << np.uint32(16)
    extents["key_offset"] = start + NODE_HEADER
    extents["key_length"] = fields[:, 3]
    inline = start + NODE_HEADER + fields[:, 3]
    big = flags == BIG_DATA
    page_end = (start // page_size + 1) * page_size
    if (inline + np.where(big, 8, extents["length"]) > page_end).any():
        raise DataError(f"{file} is damaged: a record reaches over the end of its page")
    flat = pages.reshape(-1)
    overflow = flat[inline[big][:, None] + np.arange(8)].view("<u8")[:, 0]
    if len(overflow) and int(overflow.max()) >= len(pages):
        raise DataError(f"{file} is damaged: a record points at page {int(overflow.max()):,} of {len(pages):,}")
    extents["offset"] = inline
    extents["offset"][big] = overflow * np.uint64(page_size) + np.uint64(PAGE_HEADER)
    if (extents["offset"] + extents["length"] > len(pages) * page_size).any():
        raise DataError(f"{file} is damaged: a record reaches over the end of the file")
    return extents
