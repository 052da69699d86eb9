"""Write a file whole or not at all, add to it, make folders, all flushed to the disk; read a small file with a bound."""

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from llueve.errors import CheckpointError

NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
"""Flags of `os.open` that refuse a symbolic link and keep bytes as they are."""


def write_whole(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it.

    A reader sees the old file or the new one, never a part of one. The folder is flushed too: the new name survives a
    power failure.

    Raises:
        OSError: the disk is full or read-only, or the folder does not exist. The old file is then unchanged.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINKS, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_small(path: Path, most_bytes: int) -> bytes:
    """Read a plain file of at most this size.

    Raises:
        CheckpointError: it is larger, a link, or cannot be read.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: is not a plain file; links are not followed")
        if status.st_size > most_bytes:
            raise CheckpointError(f"{path}: has {status.st_size:,} bytes, expected at most {most_bytes:,}")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


def write_result(path: Path, content: bytes) -> None:
    """Write a result where a user asked for it, whole or not at all; a link is followed.

    A device or a pipe receives the content, and is not replaced by a file.

    Raises:
        OSError: the disk is full or read-only, the folder does not exist, or the path is a folder.
    """
    place = path.resolve()
    if place.exists() and not place.is_file():
        with place.open("wb") as file:
            file.write(content)
    else:
        write_whole(place, [content])


def append(path: Path, content: bytes) -> None:
    """Add bytes at the end of a file, which is made if it does not exist, and flush it to the disk.

    Raises:
        OSError: the disk is full or read-only, or the path is a link.
    """
    is_new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_LINKS, 0o666)
    with os.fdopen(descriptor, "ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        flush_folder(path.parent)


def shorten(path: Path, size: int) -> None:
    """Remove everything after the first `size` bytes of a file, and flush it to the disk.

    Raises:
        OSError: the file does not exist, is a link, or cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | NO_LINKS)
    try:
        if os.fstat(descriptor).st_size > size:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and the folders above it, as far as they do not exist, and flush their names to the disk.

    Raises:
        OSError: it cannot be made, or the path is a file.
    """
    new = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in new:
        with suppress(PermissionError):  # a folder in which one may make another, but not read
            flush_folder(each.parent)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk."""
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
