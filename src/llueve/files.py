"""Write a file whole or not at all; read a small file with a bound on its size."""

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
        _flush_folder(path.parent)
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


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
