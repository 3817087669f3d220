"""The members of a tar, one header after another, and no end before the tar's own: what is cut off or damaged is an error."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterator

from fastirv2.building.listing import Place
from fastirv2.errors import DataError

_LONGEST_HEADER = 1 << 20  # with the long names behind it; a larger one is damage, and would be read into memory
_LONGEST_TAIL = 1 << 20  # zeros that fill a tar up to its blocking factor, ten kilobytes as a rule
_MEND = "copy or download it again"
_COMPRESSIONS = (
    (0, b"\x1f\x8b", "gzip --decompress --keep"),
    (4, b"1AY&SY", "bzip2 --decompress --keep"),
    (0, b"\xfd7zXZ\0", "xz --decompress --keep"),
    (0, b"\x28\xb5\x2f\xfd", "zstd --decompress"),
    (0, b"\x04\x22\x4d\x18", "lz4 -d"),
    (0, b"PK\x03\x04", "unzip"),
)


def decompressor(beginning: bytes) -> str:
    """Return the command that unpacks a compressed file with these first bytes, "" when it is not compressed."""
    return next((command for at, magic, command in _COMPRESSIONS if beginning[at:].startswith(magic)), "")


def is_tar(beginning: bytes) -> bool:
    """Return whether a file with these first 512 bytes is a tar, perhaps an empty one or one with a damaged header."""
    if b"\0" not in beginning:
        return False
    try:
        tarfile.TarInfo.frombuf(beginning, tarfile.ENCODING, "surrogateescape")
    except tarfile.EOFHeaderError:
        return True
    except tarfile.HeaderError:
        return beginning[257:262] == b"ustar"
    return True


def members(tar: Place, title: str) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar that is a file or lies in one; `offset_data` counts from the tar's own beginning.

    Raises DataError, naming `title` and the byte, for a tar that cannot be read, is compressed, cut off, damaged, or holds
    what is no run of bytes.
    """
    try:
        descriptor = os.open(tar.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for its writer
    except OSError as error:
        raise DataError(f"{title} cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DataError(f"{title} is no file, and so no tar; take it away")
        # the kernel would read on behind each header, which makes the whole tar of it
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        length = tar.length if tar.length is not None else os.fstat(descriptor).st_size - tar.offset
        window = _Window(descriptor, tar.offset, length)
        _check_uncompressed(window, title)
        archive = tarfile.TarFile(fileobj=io.BytesIO(bytes(tarfile.BLOCKSIZE)))  # an empty one, whose file is replaced
        archive.fileobj = window
        while (member := _next_member(archive, window, title)) is not None:
            yield member
        _check_tail(window, archive.offset, title)
    except OSError as error:
        raise DataError(f"{title} cannot be read: {error.strerror}") from error
    finally:
        os.close(descriptor)


class _Window:
    """A part of an open file, as a file."""

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor = descriptor
        self._position = 0
        self.offset = offset
        self.length = length

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        if size > _LONGEST_HEADER:
            raise tarfile.ReadError("a header is never that long")
        size = max(0, min(size, self.length - self._position))
        data = os.pread(self._descriptor, size, self.offset + self._position) if size else b""
        self._position += len(data)
        return data

    def seek(self, position: int) -> None:
        """Go to a position, which may lie behind the end."""
        self._position = position

    def tell(self) -> int:
        """Return the position."""
        return self._position


def _check_uncompressed(window: _Window, title: str) -> None:
    """Make sure that the file is not a compressed one."""
    beginning = window.read(tarfile.BLOCKSIZE)
    if not is_tar(beginning) and (command := decompressor(beginning)):
        raise DataError(f"{title} is compressed, so that no image in it can be found: decompress it first, with {command}")


def _next_member(archive: tarfile.TarFile, window: _Window, title: str) -> tarfile.TarInfo | None:
    """Return the member at the archive's offset, None at the end mark.

    Not by TarFile.next(), which takes a damaged header and the end of a file that is cut off for the end mark.
    """
    start = archive.offset
    window.seek(start)
    try:
        member = tarfile.TarInfo.fromtarfile(archive)
    except tarfile.EOFHeaderError:
        return None
    except OSError:
        raise
    except Exception as error:  # tarfile meets damage with IndexError, ValueError and others beside its own
        if window.tell() >= window.length:
            raise _cut_off(window, title) from error
        raise _damaged(window, start, title) from error
    if member.size < 0 or archive.offset <= start or not member.name or "\0" in member.name:
        raise _damaged(window, start, title)
    if archive.offset > window.length:
        raise _cut_off(window, title, f" in its member {member.name}")
    if member.issparse() or member.type == b"M":
        kind = "with holes left out" if member.issparse() else "in several volumes"
        raise DataError(f"{title} holds {member.name} {kind}; unpack it and give the folder, or pack it anew without that")
    return member


def _check_tail(window: _Window, start: int, title: str) -> None:
    """Make sure that nothing but a few zeros follows the end mark."""
    whole = window.length - start <= _LONGEST_TAIL + tarfile.BLOCKSIZE
    window.seek(start)
    while whole and (tail := window.read(_LONGEST_HEADER)):
        whole = tail.count(0) == len(tail)
    if not whole:
        raise DataError(
            f"{title} has its end mark at byte {window.offset + start:,}, but goes on to byte "
            f"{window.offset + window.length:,}: something is missing there, or it is two tars in one; {_MEND}"
        )


def _cut_off(window: _Window, title: str, where: str = "") -> DataError:
    return DataError(f"{title} is cut off{where}: it ends at byte {window.offset + window.length:,}; {_MEND}")


def _damaged(window: _Window, start: int, title: str) -> DataError:
    return DataError(f"{title} is damaged: what is at byte {window.offset + start:,} is no header of a tar; {_MEND}")
