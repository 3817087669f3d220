"""Records of an LMDB folder, ours or of another writer: views of its map at the places that its index gives."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastirv2.data.caffe_index import open_index
from fastirv2.data.dataset import Records
from fastirv2.data.lmdb_file import check_size
from fastirv2.errors import DataError
from fastirv2.files import read_npy

FORMAT_VERSION = 1
_LOOKED_AT = 256  # raw images that an LMDB is known by
_FIELDS = {"offset", "length", "label", "width", "height"}


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


class MappedRecords(Records):
    """Records of one data.mdb, mapped whole: a record is a view of the map."""

    build: Build | None = None
    _file: int | None = None

    def __init__(self, path: str, index: np.ndarray, classes: list[str], digest: str) -> None:
        super().__init__(path, index["label"].astype(np.int64), classes, digest)
        self._sizes = np.stack([index["height"], index["width"]], axis=1)
        self._offsets = index["offset"].astype(np.int64)
        self._lengths = index["length"].astype(np.int64)
        self._file = os.open(os.path.join(path, "data.mdb"), os.O_RDONLY)
        self._map = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        self._view = memoryview(self._map)

    def __getitem__(self, number: int) -> tuple[memoryview, int]:
        """Return a view of the image's bytes, without a copy, and the label."""
        start = self._offsets[number]
        return self._view[start : start + self._lengths[number]], int(self.labels[number])

    def feed(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Return views of the map as uint8 arrays."""
        places = zip(self._lengths[numbers].tolist(), self._offsets[numbers].tolist(), strict=True)
        return [np.frombuffer(self._view, np.uint8, length, offset) for length, offset in places]

    def lost(self) -> str:
        """Say so when the file has been cut since it was mapped, as it is when another one is copied over it."""
        if self._file is None or os.fstat(self._file).st_size >= len(self._map):
            return ""
        return f"{self.path}/data.mdb was cut or overwritten while it was being read; put it back, and the same command goes on"

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)

    @property
    def sizes(self) -> np.ndarray:
        """From the index."""
        return self._sizes

    @property
    def data_bytes(self) -> int:
        """From the index."""
        return int(self._lengths.sum())

    def read_ahead(self, numbers: np.ndarray) -> None:
        """Have the kernel read the records into the page cache."""
        for offset, length in zip(self._offsets[numbers].tolist(), self._lengths[numbers].tolist(), strict=True):
            os.posix_fadvise(self._file, offset, length, os.POSIX_FADV_WILLNEED)

    def where(self, number: int) -> str:
        """Name the record by its number in key order, which is the key where the LMDB is ours."""
        return f"record {number:08d} of {self.path}"


class LmdbRecords(MappedRecords):
    """An LMDB folder of fastirv2-build-lmdb, with index.npy and dataset.json."""

    def __init__(self, path: str) -> None:
        about = _read_about(path)
        meta = check_size(path)
        index = _read_index(path, about["count"])
        if not len(index):
            raise DataError(f"{path} holds no records; build it again from images that can be read")
        super().__init__(path, index, about["classes"], about["digest"])
        ends = index["offset"] + index["length"]
        if int(ends.max()) > meta.pages * meta.page_size:
            raise DataError(f"{path}/index.npy points past the end of data.mdb; run fastirv2-build-lmdb --check {path}")
        self.resizes = (about["resize"],)
        self.build = _read_build(about.get("build"))
        if self.build is not None and self.build.parts > 1:
            self.warnings = (f"{path} is only part {self.build.part}/{self.build.parts} of the images it was built from",)

    @property
    def names(self) -> list[str] | None:
        """From names.jsonl, which LMDBs of older versions lack."""
        file = Path(self.path) / "names.jsonl"
        if not file.exists():
            return None
        try:
            names = [json.loads(line) for line in file.read_bytes().splitlines()]
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read ({error}); copy the folder again or build it anew") from error
        if len(names) != len(self):
            counts = f"{len(names):,} names for {len(self):,} records"
            raise DataError(f"{file} holds {counts}; run fastirv2-build-lmdb --check {self.path}")
        return names


class CaffeRecords(MappedRecords):
    """An LMDB of Datum records that another program wrote, as Caffe's convert_imageset does: encoded images, or raw planes.

    Its classes have numbers for names. Raw images are three planes of bytes in the order blue, green, red.
    """

    def __init__(self, path: str) -> None:
        index = open_index(path)
        encoded = index["encoded"].astype(bool)
        if encoded.any() and not encoded.all():
            kinds = f"{int(encoded.sum()):,} encoded and {int((~encoded).sum()):,} raw images"
            raise DataError(f"{path} mixes {kinds}; build an LMDB of the images with fastirv2-build-lmdb")
        labels = index["label"]
        if int(labels.min()) < 0:
            raise DataError(f"{path} holds the label {int(labels.min())}; labels must not be negative")
        digest = hashlib.sha256(b"".join(index[name].tobytes() for name in ("label", "length", "width", "height", "encoded")))
        super().__init__(path, index, [str(label) for label in range(int(labels.max()) + 1)], digest.hexdigest())
        if not encoded.all():
            self.form = "planes"
            for number in np.linspace(0, len(self) - 1, min(len(self), _LOOKED_AT), dtype=np.int64):  # their sizes say nothing
                digest.update(self[number][0])
            self.digest = digest.hexdigest()

    def feed(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Return views of the map: uint8 arrays of encoded images, or (3, height, width) ones of raw images."""
        views = super().feed(numbers)
        if self.form != "planes":
            return views
        return [view.reshape(3, *size) for view, size in zip(views, self._sizes[numbers].tolist(), strict=True)]


def _read_about(path: str) -> dict[str, Any]:
    """Return dataset.json, after making sure that it says what is needed."""
    file = Path(path) / "dataset.json"
    if not file.exists():
        if path.endswith(".partial"):
            raise DataError(f"{path} is an unfinished build; give its fastirv2-build-lmdb command again, it goes on from there")
        raise DataError(f"{path} has no dataset.json: the copy or the build is incomplete; copy it or build it again")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
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
        index = read_npy(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); copy the folder again or build it anew") from error
    if index.ndim != 1 or not _FIELDS.issubset(index.dtype.names or ()):
        raise DataError(f"{file} is no index of fastirv2-build-lmdb; copy the folder again or build it anew")
    if len(index) != count:
        raise DataError(
            f"{file} holds {len(index):,} records but dataset.json says {count:,}: the copy is incomplete; "
            f"run fastirv2-build-lmdb --check {path}"
        )
    return index
