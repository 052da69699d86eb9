"""The two files of cached features: write them whole, read them only if every block has its checksum.

Shapes: W windows of the part.
"""

import json
import math
import mmap
import os
import shutil
import stat
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llueve.errors import CheckpointError
from llueve.files import NO_LINKS, make_folder, read_small, write_whole
from llueve.panel import FloatArray
from llueve.runs.directory import FEATURES_NAME

HEADER_BYTES, CHECKSUM_BYTES, LARGEST_HEADER = 1024, 12, 64 * 2**20
"""Largest size of a header without checksums, of one checksum in it, and of any header that is read."""


class UnusableFiles(Exception):
    """The files of a part cannot be used, or have no room; the message says why."""


@dataclass(frozen=True)
class FeatureFiles:
    """The two files of one part."""

    features: Path
    shape: tuple[int, ...]
    about: dict[str, Any]
    """Content of the header, without the checksums."""

    @property
    def header(self) -> Path:
        """The file that describes the rows."""
        return self.features.with_suffix(".json")

    @property
    def exist(self) -> bool:
        """True if one of the files exists."""
        return os.path.lexists(self.features) or os.path.lexists(self.header)

    def prepare(self) -> None:
        """Make the directory; remove incomplete files, and this part's features of another model, data or windows."""
        if self.features.parent.is_symlink():
            raise OSError("the directory is a link, which is not followed")
        make_folder(self.features.parent)
        self.remove(keep=(self.features, self.header))

    def remove(self, keep: tuple[Path, ...] = ()) -> None:
        """Remove the files of this part, complete or not and of any model, except those to keep."""
        part = self.features.name.partition("-")[0]
        for path in self._of_all_parts():
            if path.name.removeprefix(".").startswith(f"{part}-") and path not in keep:
                path.unlink()

    def _of_all_parts(self) -> list[Path]:
        """Files and links of every part in the directory, recognised by their names."""
        named = [path for path in self.features.parent.iterdir() if FEATURES_NAME.fullmatch(path.name)]
        return [path for path in named if path.is_symlink() or path.is_file()]

    def read(self) -> tuple[FloatArray, NDArray[np.intp], NDArray[np.int64]]:
        """Compare every block with its checksum; return the rows, the positions of non-finite ones, and the sums of the rows.

        Raises:
            UnusableFiles: the files are damaged, links, or cannot be read.
        """
        try:
            header = json.loads(read_small(self.header, LARGEST_HEADER))
            if not stat.S_ISREG(self.features.lstat().st_mode):
                raise UnusableFiles("is not a regular file; links are not followed")
            with os.fdopen(os.open(self.features, os.O_RDONLY | NO_LINKS), "rb") as file:
                size, expected = os.fstat(file.fileno()).st_size, 4 * math.prod(self.shape)
                if size != expected:
                    raise UnusableFiles(f"has {size:,} bytes, expected {expected:,}")
                rows: FloatArray = np.asarray(np.memmap(file, np.float32, "r", shape=self.shape))
        except (OSError, CheckpointError) as error:
            raise UnusableFiles(f"cannot be read ({error})") from error
        except (ValueError, RecursionError) as error:
            raise UnusableFiles(f"its header is damaged ({error})") from error
        sums, block = header.pop("crc32", None) if isinstance(header, dict) else None, self.about["block"]
        if header != self.about or not isinstance(sums, list) or len(sums) != -(-len(rows) // block):
            raise UnusableFiles("its header does not describe it")
        bad: list[NDArray[np.intp]] = []
        row_sums: list[NDArray[np.int64]] = []
        for number, known in enumerate(sums):
            some = rows[number * block : (number + 1) * block].copy()  # checked and summed as read once
            if zlib.crc32(some.data) != known:
                raise UnusableFiles(f"is damaged (the checksum of block {number} differs)")
            bad.append(number * block + np.nonzero(~np.isfinite(some.reshape(len(some), -1)).all(axis=1))[0])
            row_sums.append(bit_sums(some))
            release_pages(rows)
        return rows, np.concatenate(bad), np.concatenate(row_sums)

    def require_room(self, limit_bytes: int, new: bool) -> None:
        """Check the limit of all parts together and the free disk; files beyond the limit are removed.

        Raises:
            UnusableFiles: the limit is exceeded, or less than half of the free disk would remain after `new` files.
        """
        size = 4 * math.prod(self.shape) + HEADER_BYTES + CHECKSUM_BYTES * self.shape[0]
        total = sum(path.lstat().st_size for path in self._of_all_parts()) + (size if new else 0)
        free = shutil.disk_usage(self.features.parent).free
        if total > limit_bytes:
            self.remove()
            raise UnusableFiles(
                f"they would have {total:,} bytes with those of other parts, at most {limit_bytes:,} may be kept"
            )
        if new and size > free // 2:
            raise UnusableFiles(
                f"they have {size:,} bytes and the disk has {free:,} left, half of which stay free for the run"
            )

    def write(self, blocks: Iterator[FloatArray]) -> None:
        """Write both files, the header last; if that fails, neither stays."""
        sums: list[int] = []

        def counted() -> Iterator[memoryview]:
            for some in blocks:
                sums.append(zlib.crc32(some.data))
                yield some.data.cast("B")

        try:
            write_whole(self.features, counted())
            write_whole(self.header, [json.dumps({**self.about, "crc32": sums}).encode()])
        except BaseException:
            with suppress(OSError):
                self.remove()
            raise


def bit_sums(rows: FloatArray) -> NDArray[np.int64]:
    """The sum of the bits of each row, modulo 2⁶⁴: any flipped bit changes it."""
    flat = np.ascontiguousarray(rows).reshape(len(rows), math.prod(rows.shape[1:]))  # −1 fails without a row
    words = flat.view(np.int64) if flat.shape[1] % 2 == 0 else flat.view(np.int32)
    sums: NDArray[np.int64] = words.sum(axis=1, dtype=np.int64)
    return sums


def release_pages(rows: FloatArray) -> None:
    """Remove the pages of the mapped file from this process's memory; the page cache of the system keeps them."""
    mapped = getattr(rows.base, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
