"""What SOURCE is: class folders, class tars, a list, or one folder of images with labels beside it; in tars or unpacked."""

from __future__ import annotations

import os
import stat
import tarfile
from dataclasses import replace

from fastirv2.building.class_folders import class_tars, open_class_folders, open_class_tars
from fastirv2.building.folders import Contents, DiskFolder, Folder, holds_files
from fastirv2.building.listing import Place, Source
from fastirv2.building.lists import open_list, read_classes
from fastirv2.building.tar_headers import decompressor, is_tar
from fastirv2.building.tars import ContentsProgress, read_tar
from fastirv2.building.val_labels import open_flat
from fastirv2.errors import DataError, UsageError

__all__ = ["Place", "Source", "open_source"]

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
_COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


def open_source(path: str, root: str | None = None, classes_file: str | None = None, val_labels: str | None = None) -> Source:
    """Return the images of a source.

    Args:
        path: a folder of class folders or of CLASS.tar files, a tar of either, or a list of "path label" lines; with
            `val_labels` a folder of images, or a tar of them. Tars are read where they lie.
        root: the folder that the paths of a list are relative to, the list's own unless given.
        classes_file: holds the classes' names, a line each, in label order.
        val_labels: holds a class a line, by number or name, in the sorted order of the images' names.

    Raises:
        DataError: something is missing, cannot be read, or makes no sense.
        UsageError: `root` without a list, or `val_labels` with what has labels of its own.
    """
    classes = read_classes(classes_file) if classes_file else None
    kind = _kind(path)
    if kind == "list":
        if val_labels is not None:
            raise UsageError(f"--val-labels goes with images in one folder, but {path} is a list with labels; leave it out")
        return open_list(path, root or os.path.dirname(path) or ".", classes)
    if root is not None:
        raise UsageError(f"--root goes with a list file, but {path} is a {kind}; leave it out")
    if kind == "folder":
        return _open_folder(path, DiskFolder(path), classes, val_labels, packed=False)
    top = _strip_top(read_tar(Place(path), path, ContentsProgress(path)), flat=val_labels is not None)
    return _open_folder(path, top, classes, val_labels, packed=True)


def no_file(path: str) -> DataError:
    """Make the error for what is there and neither a file nor a folder."""
    return DataError(f"{path} is a device, pipe or socket, which cannot be read twice; give a file or a folder")


def _kind(path: str) -> str:
    """Return "folder", "tar" or "list", by what is there and not by its name; a compressed file goes with the tars."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return "folder"
        if not stat.S_ISREG(mode):
            raise no_file(path)
        with open(path, "rb") as file:
            beginning = file.read(tarfile.BLOCKSIZE)
    except FileNotFoundError as error:
        forms = "a folder of class folders, ImageNet's tars, or a list of 'path label' lines"
        raise DataError(f"{path} does not exist; give {forms}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return "tar" if is_tar(beginning) or decompressor(beginning) else "list"


def _strip_top(root: Folder, *, flat: bool) -> Folder:
    """Return the folder that a user would give after unpacking a tar: below what all of it was packed in.

    A folder of images only is that one when it is all that there is, or when the images are to be `flat`.
    """
    here, seen = root, set()
    while here.identity() not in seen:
        seen.add(here.identity())
        contents = here.read()
        if len(contents.folders) != 1 or contents.files:
            return here
        (below,) = contents.folders.values()
        inside = below.read()
        if inside.files and not inside.folders and not class_tars(inside):
            return below if flat or here is root else here
        if not (inside.folders or inside.files) or any(name.lower().endswith(IMAGE_SUFFIXES) for name in inside.files):
            return here
        here = below
    return here


def _open_folder(path: str, folder: Folder, classes: list[str] | None, val_labels: str | None, *, packed: bool) -> Source:
    """Return the images of a folder on the disk, or of one that is `packed` in the tar at `path`, whatever form it has."""
    contents = folder.read()
    tars = class_tars(contents)
    if val_labels is not None:
        _refuse_val_labels(path, contents, tars)
        return open_flat(path, folder, classes, val_labels, packed=packed)
    if tars and contents.folders:
        raise DataError(
            f"{path} holds both class folders, as {next(iter(contents.folders))}, and class tars, as {tars[0]}: "
            "take one kind of them away"
        )
    if tars:
        return _noting(path, contents, tars, open_class_tars(path, contents, classes, packed=packed))
    if contents.folders and not (contents.files and _labelled(contents) is None):
        return _noting(path, contents, tars, open_class_folders(path, contents, classes, packed=packed))
    raise _no_classes(path, list(contents.files))


def _no_classes(path: str, files: list[str]) -> DataError:
    """Return what is to be done about a folder that holds files only."""
    if not files:
        return DataError(f"{path} holds no images: it is empty")
    if compressed := next((name for name in files if name.lower().endswith(_COMPRESSED_TARS)), None):
        return DataError(
            f"{path} holds compressed tars, as {compressed}, in which no image can be found: decompress them first"
        )
    if "data.mdb" in files:
        return DataError(f"{path} is an LMDB already; give the images that one is to be built from")
    return DataError(
        f"{path} holds {len(files):,} files but no class folders; put every class's images into a folder of its own, "
        "give a list of 'path label' lines, or, if these are validation images, give fastirv2-build-lmdb their labels with "
        "--val-labels"
    )


def _noting(path: str, contents: Contents, tars: list[str], source: Source) -> Source:
    """Return the source with a note on the images beside its classes; raises DataError for a class in a compressed tar."""
    beside = sorted(set(contents.files) - set(tars))
    packed = next((name for name in beside if name.lower().endswith(_COMPRESSED_TARS)), None)
    if packed is not None and tars:
        raise DataError(f"{path} holds {packed} beside class tars: it cannot be read without unpacking it; decompress it first")
    images = [name for name in beside if name.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        return source
    note = f"left out what lies beside the classes of {path}: {len(images):,} images, as {images[0]}"
    return replace(source, notes=(note,))


def _refuse_val_labels(path: str, contents: Contents, tars: list[str]) -> None:
    """Raise UsageError where the labels are in the names already."""
    labelled = _labelled(contents)
    if tars or labelled is not None:
        kind = f"tars, as {tars[0]}; give it" if tars else f"folders with images, as {labelled}; give that"
        raise UsageError(
            f"--val-labels goes with images in one folder, but {path} holds {kind} as SOURCE, or leave --val-labels out"
        )


def _labelled(contents: Contents) -> str | None:
    """Return the first of the folders that holds a file, None when all are empty."""
    return next((name for name, below in contents.folders.items() if holds_files(below)), None)
