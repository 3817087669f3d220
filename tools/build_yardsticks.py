"""What a build is held against: the least that it could do, and the script that everyone writes.

decode  reads every file and decodes it strictly with libjpeg-turbo to RGB; nothing is written.
pillow  Pillow opens, converts, warps to --size (bilinear) and saves with quality 95; the main process puts the Datums into an
        LMDB, a commit every 1,000.
Both fork their processes, the quickest way to have them.
"""

from __future__ import annotations

import io
import multiprocessing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional

COMMIT = 1000
CHUNK = 16


@dataclass(frozen=True)
class Options:
    """Run one of them."""

    what: Positional[Literal["decode", "pillow"]]
    """Which."""
    source: Positional[Path]
    """A folder of class folders."""
    out: Positional[Path | None] = None
    """The LMDB folder that pillow writes."""
    workers: int = 1
    """Processes that decode."""
    size: int = 328
    """Width and height of pillow's images."""


def decode(path: Path) -> int:
    """Read and decode one file; return its pixels."""
    import simplejpeg

    return simplejpeg.decode_jpeg(path.read_bytes(), "RGB", strict=True).size


def resize(path: Path, size: int) -> bytes:
    """Return one image, warped and saved again."""
    from PIL import Image

    stream = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def store(files: list[Path], options: Options) -> None:
    """Write the LMDB."""
    import lmdb

    from fastirv2.data.datum import Datum

    labels = {name: label for label, name in enumerate(sorted({file.parent.name for file in files}))}
    context = multiprocessing.get_context("fork")
    with context.Pool(options.workers) as pool, lmdb.open(str(options.out), map_size=1 << 40) as environment:
        transaction = environment.begin(write=True)
        images = pool.imap(partial(resize, size=options.size), files, chunksize=CHUNK)
        for number, (file, image) in enumerate(zip(files, images, strict=True)):
            datum = Datum(channels=3, height=options.size, width=options.size, data=image)
            datum.label, datum.encoded = labels[file.parent.name], True
            transaction.put(b"%08d" % number, datum.SerializeToString(), append=True)
            if number % COMMIT == COMMIT - 1:
                transaction.commit()
                transaction = environment.begin(write=True)
        transaction.commit()


def main() -> None:
    """Read the command line and run one."""
    options = tyro.cli(Options, description=__doc__)
    files = sorted(path for path in options.source.rglob("*") if path.is_file())
    if options.what == "pillow":
        store(files, options)
        return
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        for _ in pool.imap_unordered(decode, files, chunksize=CHUNK):
            pass


if __name__ == "__main__":
    main()
