"""Records of an LMDB folder: views of its map at the places that index.npy gives."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastirv2.data.dataset import Records
from fastirv2.data.lmdb_file import check_size
from fastirv2.errors import DataError

FORMAT_VERSION = 1


class Build(NamedTuple):
    """Which images of a source an LMDB holds: part `part` of `parts` (from 1) of the first `limit` in `seed`'s order."""

    source: str
    seed: int
    limit: int | None
    part: int
    parts: int

    def __str__(self) -> str:
        limit = f" --limit {self.limit}" if self.limit is not None else ""
        return f"--seed {self.seed}{limit} --part {self.part}/{self.parts}"


class LmdbRecords(Records):
    """An LMDB folder of fastirv2-build-lmdb, mapped whole: a record is a view of the map at its place in `index.npy`."""

    def __init__(self, path: str) -> None:
        about = _read_about(path)
        meta = check_size(path)
        index = _read_index(path, about["count"])
        if not len(index):
            raise DataError(f"{path} holds no records; build it again from images that can be read")
        super().__init__(path, index["label"].astype(np.int64), about["classes"], about["digest"])
        self.resizes = (about["resize"],)
        self.build = _read_build(about.get("build"))
        if self.build is not None and self.build.parts > 1:
            self.warnings = (f"{path} is only part {self.build.part}/{self.build.parts} of the images it was built from",)
        ends = index["offset"] + index["length"]
        if int(ends.max()) > meta.pages * meta.page_size:
            raise DataError(f"{path}/index.npy points past the end of data.mdb; run fastirv2-build-lmdb --check {path}")
        self._offsets = index["offset"].astype(np.int64)
        self._lengths = index["length"].astype(np.int64)
        with open(os.path.join(path, "data.mdb"), "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)

    def __getitem__(self, number: int) -> tuple[memoryview, int]:
        """Return a view of the encoded image, without a copy, and the label."""
        start = self._offsets[number]
        return self._view[start : start + self._lengths[number]], int(self.labels[number])

    def feed(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Return views of the map as uint8 arrays."""
        places = zip(self._lengths[numbers].tolist(), self._offsets[numbers].tolist(), strict=True)
        return [np.frombuffer(self._view, np.uint8, length, offset) for length, offset in places]

    def where(self, number: int) -> str:
        """Name the record by its key."""
        return f"record {number:08d} of {self.path}"


def _read_about(path: str) -> dict[str, Any]:
    """Return dataset.json, after making sure that it says what is needed."""
    file = Path(path) / "dataset.json"
    if not file.exists():
        if path.endswith(".partial"):
            raise DataError(f"{path} is an unfinished build; give its fastirv2-build-lmdb command again, it goes on from there")
        raise DataError(f"{path} is an LMDB without dataset.json: it was not made by fastirv2-build-lmdb; build it with that")
    try:
        about = json.loads(file.read_text())
        version = about["format_version"]
        needed = {key: about[key] for key in ("count", "classes", "digest", "resize")} if version == FORMAT_VERSION else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be understood ({error!r}); copy the folder again or build it anew") from error
    if not needed:
        raise DataError(f"{file} is of format {version}, this program reads format {FORMAT_VERSION}; build it anew")
    return needed | {"build": about.get("build")}


def _read_build(settings: dict[str, Any] | None) -> Build | None:
    """Return what dataset.json says of the images an LMDB was built from, None when it says nothing of use."""
    try:
        part, parts = (settings["part"] or "1/1").split("/")
        return Build(settings["source"], settings["seed"], settings["limit"], int(part), int(parts))
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _read_index(path: str, count: int) -> np.ndarray:
    file = Path(path) / "index.npy"
    try:
        index = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DataError(f"{file} cannot be read ({error}); copy the folder again or build it anew") from error
    if index.ndim != 1 or index.dtype.names is None or not {"offset", "length", "label"} <= set(index.dtype.names):
        raise DataError(f"{file} is no index of fastirv2-build-lmdb; copy the folder again or build it anew")
    if len(index) != count:
        raise DataError(
            f"{file} holds {len(index):,} records but dataset.json says {count:,}: the copy is incomplete; "
            f"run fastirv2-build-lmdb --check {path}"
        )
    return index
