"""Folders of images that are no images, packed as users pack them, and what a source gives of them."""

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NEEDS_TAR = pytest.mark.skipif(not shutil.which("tar"), reason="needs the tar command")
CLASSES = {
    "n01440764": ["n01440764_10.JPEG", "n01440764_2.JPEG", "with space.JPEG", "deep/er/1.png", "deep-er/2.png"],
    "n01440764-b": ["ünï.JPEG", f"{'long' * 40}.JPEG", f"{'folder' * 16}/{'name' * 20}.JPEG", ".hidden.JPEG", ".git/a"],
    "zebra": [os.fsdecode(b"\xff\xfe.JPEG"), "\ue000.JPEG", "b.JPEG", "a.JPEG"],
}


def files(folder, names):
    """Write a file of its own content for each name; the folder is returned."""
    for name in names:
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{name}\n".encode(errors="surrogateescape") * (1 + len(name) % 40))
    return Path(folder)


def class_folders(folder, classes=CLASSES):
    return files(folder, [f"{name}/{image}" for name, images in classes.items() for image in images])


def by_python(path, folder, names=(".",), tar_format=tarfile.GNU_FORMAT):
    """Pack with the tarfile module, in an order that is not the sorted one."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name in names:
            paths = sorted((Path(folder) / name).rglob("*"), key=lambda found: os.fsencode(found)[::-1])
            tar.add(Path(folder) / name, name, recursive=False)
            for found in paths:
                tar.add(found, str(found.relative_to(folder)), recursive=False)
    return path


def by_command(path, folder, names=(".",), tar_format="gnu"):
    subprocess.run(["tar", f"--format={tar_format}", "-C", folder, "-cf", path, *names], check=True)
    return path


PACKERS = [
    pytest.param(by_python, id="python-gnu"),
    pytest.param(lambda *arguments: by_python(*arguments, tar_format=tarfile.PAX_FORMAT), id="python-pax"),
    pytest.param(by_command, id="tar-gnu", marks=NEEDS_TAR),
    pytest.param(lambda *arguments: by_command(*arguments, tar_format="pax"), id="tar-pax", marks=NEEDS_TAR),
]


def class_tars(folder, unpacked, pack=by_python, names=None):
    """Make CLASS.tar of every class folder, as ImageNet's are made: the images lie at the top of their tar."""
    folder.mkdir(parents=True)
    for path in unpacked.iterdir():
        pack(folder / f"{path.name}.tar", path, names or sorted(os.listdir(path))[::-1])
    return folder


def tar_of(path, *entries, tar_format=tarfile.GNU_FORMAT):
    """Make a tar of (name, bytes) pairs, and of TarInfos as they are, in this order."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                tar.addfile(info, io.BytesIO(entry[1]))
    return path


def special(name, kind, target=""):
    """A member without bytes: a link, a folder, a device."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tar_bytes(*entries):
    """The bytes of a tar of these entries."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def sequence(source):
    """All that a build sees of a source."""
    records = [(source.names[i], int(source.labels[i]), source.place(i).read()) for i in range(len(source))]
    return records, source.classes, source.digest()
