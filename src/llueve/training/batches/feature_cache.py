"""Features of a frozen encoder: computed once for each window, then read from the disk.

A run directory holds the features of one model, in two files for each part. `<part>-<model and data>-<windows>.features`
holds the float32 rows in the order of the part. The same name with `.json` is the header: format, key, dimensions and the
CRC-32 of each block of rows. It is written last. Features are used only after every block was read and compared with its
checksum. This also brings the file into the page cache, so random rows of it are as fast as memory.

The cache only saves time: if anything is wrong with it, the log has one line and the features are computed again. One
process at a time writes into a directory.

Shapes: B batch, W windows of the part; features are (W, …), the output of `TimerXLForClassification.pool`.
"""

import hashlib
import json
import logging
import math
import mmap
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llueve.errors import CheckpointError
from llueve.files import NO_LINKS, make_folder, read_small, write_whole
from llueve.model.batch import device_of
from llueve.model.classifier import TimerXLForClassification
from llueve.model.kernels.matmul import quick_products
from llueve.panel import FloatArray
from llueve.runs.directory import FEATURES_NAME
from llueve.samples.split import Part
from llueve.samples.windows import Windows

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the files: raised when they, or the output of `TimerXLForClassification.pool`, change."""
HEADER_BYTES, CHECKSUM_BYTES, LARGEST_HEADER = 1024, 12, 64 * 2**20
"""Largest size of a header without checksums, of one checksum in it, and of any header that is read."""
RESIDENT_BYTES = 16 * 2**20
"""Bytes gathered before the mapped pages are released. Without it an epoch in random order would bring the whole file into
memory, because a system maps several pages around each one that is read."""


class UnusableFiles(Exception):
    """The files of a part cannot be used, or have no room; the message says why."""


@dataclass
class FeatureCache:
    """Features of every window of one part."""

    rows: FloatArray
    """(W, …), mapped from the disk."""
    non_finite: NDArray[np.intp]
    """Positions of windows with a non-finite feature; the features are stored unchanged, and the guard decides."""
    taken: int = 0
    """Bytes gathered since pages were last released."""

    @classmethod
    def open(
        cls,
        directory: Path,
        model: TimerXLForClassification,
        windows: Windows,
        part: Part,
        *,
        limit_bytes: int,
        compute_batch: int = 256,
        progress: Callable[[int, int], object] | None = None,
        write: bool = True,
    ) -> Self | None:
        """Return the cache of a part: the existing one if model, data and windows are the same, otherwise a new one.

        Features are computed in evaluation mode and float32, in consecutive batches of the part, so they depend neither on
        the caller nor on the windows that are read later.

        Args:
            directory: made if it does not exist; files with other names than those of a cache are left alone.
            model: its encoder is frozen.
            windows, part: the windows whose features are returned.
            limit_bytes: largest size of the files of all parts together.
            compute_batch: windows computed together.
            progress: called with the number of windows done and their total while features are computed.
            write: False to read only the files that another process has written, and to change nothing.

        Returns:
            The cache; None, with a line in the log, if it has no room or cannot be written or read.
        """
        shape = (len(part), *model.pooled_shape(windows.values_STC.shape[2]))
        key = _key(model, windows, part, compute_batch)
        about = {"format": FORMAT, "key": key, "shape": list(shape), "dtype": "float32", "block": compute_batch}
        files = _Files(directory / f"{part.name}-{key[:16]}-{key[64:80]}.features", shape, about)
        try:
            if not write:
                return cls(*files.read()) if files.exist else None
            files.prepare()
            found = None
            if files.exist:
                try:
                    found = files.read()
                except UnusableFiles as error:
                    logger.warning("%s: %s; the features are computed again", files.features, error)
                    files.remove()
            files.require_room(limit_bytes, new=found is None)
            if found is None:
                files.write(_computed(model, windows, part, compute_batch, progress))
                found = files.read()
            return cls(*found)
        except (OSError, UnusableFiles) as error:
            reason = getattr(error, "strerror", None) or error
            logger.warning("%s: features are not kept, and computed in each step instead: %s", directory, reason)
            return None

    def __len__(self) -> int:
        return len(self.rows)

    def share(self, here: slice) -> "FeatureCache":
        """Return the features of some consecutive windows; `non_finite` stays that of the whole part."""
        return FeatureCache(self.rows[here], self.non_finite)

    def batch(self, chosen: NDArray[np.intp] | slice) -> Tensor:
        """Return a copy of the features (B, …) of the windows at these positions of the part."""
        picked = self.rows[chosen].copy() if isinstance(chosen, slice) else self.rows.take(chosen, axis=0)
        self.taken += picked.nbytes
        if self.taken > RESIDENT_BYTES:
            self.taken = 0
            _release_pages(self.rows)
        return torch.from_numpy(picked)


@dataclass(frozen=True)
class _Files:
    """The two files of one part."""

    features: Path
    shape: tuple[int, ...]
    about: dict[str, Any]
    """Content of the header, without the checksums."""

    @property
    def header(self) -> Path:
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

    def read(self) -> tuple[FloatArray, NDArray[np.intp]]:
        """Compare every block with its checksum, and return the rows and the positions of non-finite ones.

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
        for number, known in enumerate(sums):
            some = rows[number * block : (number + 1) * block]
            if zlib.crc32(some.data) != known:
                raise UnusableFiles(f"is damaged (the checksum of block {number} differs)")
            bad.append(number * block + np.nonzero(~np.isfinite(some.reshape(len(some), -1)).all(axis=1))[0])
            _release_pages(rows)
        return rows, np.concatenate(bad)

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


def _release_pages(rows: FloatArray) -> None:
    """Remove the pages of the mapped file from this process's memory; the page cache of the system keeps them."""
    mapped = getattr(rows.base, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _key(model: TimerXLForClassification, windows: Windows, part: Part, compute_batch: int) -> str:
    """SHA-256 of everything that features depend on except the windows of the part, then SHA-256 of these windows."""
    about = {
        "format": FORMAT,
        "torch": torch.__version__,
        "device": device_of(model).type,
        "batch": compute_batch,
        "head": type(model.head).__name__,
        "instance_norm": model.instance_norm,
        "context": windows.context,
        "encoder": {name: _settings(module) for name, module in model.encoder.named_modules()},
    }
    weights = {**model.encoder.state_dict(prefix="encoder."), "gap_embedding_D": model.gap_embedding_D.detach()}
    arrays = [(name, tensor.cpu().numpy()) for name, tensor in sorted(weights.items())]
    arrays += [("values", windows.values_STC), ("observed", windows.observed_STC)]
    own = [("site", part.site.astype(np.int64)), ("end", part.end.astype(np.int64))]
    return _sha256(json.dumps(about, sort_keys=True), arrays) + _sha256("", own)


def _settings(module: torch.nn.Module) -> dict[str, object]:
    """Class of a module and its plain numbers, such as heads or ε."""
    plain = {name: each for name, each in vars(module).items() if isinstance(each, int | float | str)}
    return {"class": type(module).__name__, **{name: each for name, each in plain.items() if name != "training"}}


def _sha256(text: str, arrays: list[tuple[str, NDArray[Any]]]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, array in arrays:
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        for each in array if array.ndim == 3 else (array,):  # site by site: a panel may not be contiguous
            digest.update(np.ascontiguousarray(each).data)
    return digest.hexdigest()


def _computed(
    model: TimerXLForClassification,
    windows: Windows,
    part: Part,
    size: int,
    progress: Callable[[int, int], object] | None,
) -> Iterator[FloatArray]:
    """The features in blocks of `size` windows, each computed when it is asked for."""
    device = device_of(model)
    training = model.encoder.training
    model.encoder.eval()
    try:
        for start in range(0, len(part), size):
            values_BCL, observed_BCL, _ = windows.batch(part[start : start + size])
            x_BLC, observed_BLC = (
                torch.from_numpy(np.ascontiguousarray(each)).to(device).mT for each in (values_BCL, observed_BCL)
            )
            with torch.inference_mode(), model.encoder.computing_in(torch.float32), quick_products():
                pooled = model.pool(x_BLC, observed_BLC)
            yield pooled.cpu().contiguous().numpy()
            if progress is not None:
                progress(min(start + size, len(part)), len(part))
    finally:
        model.encoder.train(training)
