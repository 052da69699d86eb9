"""What a frozen encoder gives for each window, computed once and read from the disk ever after.

Each part has two files: `<part>-<model and data>-<windows>.features`, the float32 rows in the order of the part, and the
same with `.json`: format, key, dimensions and the CRC-32 of each block of rows. They are written under a temporary name,
flushed and renamed, the header last; what a kill leaves is replaced at the next opening. A file is believed only after
every block was read and compared, which also brings it into the page cache: random rows of it are then as quick as memory.

The cache only saves time: whatever is wrong with it is one line in the log, and the features are computed again. One
process at a time writes into a directory.

Shapes: B batch, W windows of the part; features are (W, …) as `TimerXLForClassification.pool` gives them.
"""

import hashlib
import json
import logging
import math
import mmap
import os
import re
import shutil
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llueve.model.classifier import TimerXLForClassification
from llueve.model.products import quick_products
from llueve.panel import FloatArray
from llueve.run import FEATURES_NAME
from llueve.windows import Part, Windows

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised when the files, or what `pool` computes, change."""
HEADER_BYTES, MOST_SUM_BYTES = 1024, 12
"""At most, of a header and of one checksum in it."""
LARGEST_HEADER = 64 * 2**20
RESIDENT_BYTES = 16 * 2**20
"""Of features that are gathered before their pages are let go: an epoch at random would bring all of them into memory, and a
system maps several pages around each that is asked for."""
NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class _Unusable(Exception):
    """A cache file that is there cannot be believed."""


@dataclass
class FeatureCache:
    """The features of every window of one part."""

    rows: FloatArray
    """(W, …), mapped from the disk."""
    non_finite: NDArray[np.intp]
    """Positions in the part of windows with a feature that is not finite; they are stored as they are, for the guard."""
    taken: int = 0
    """Bytes gathered since pages were last let go."""

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
        """The cache of a part: the one that is there if model, data and windows are the same, else a new one.

        Features are computed in evaluation mode and float32, `compute_batch` windows of the part at a time in its order,
        so that they depend neither on who asks nor on what is asked for later.

        Args:
            directory: made if need be; files in it that are no cache are left alone.
            limit_bytes: of all caches of the directory together. Those of other models go first, the oldest before the
                newer ones; those of other parts with the same model stay.
            progress: called with the windows done and their total while features are computed.
            write: without it only what another process has written is taken, and nothing there is changed.

        Returns:
            The cache; None, with a line in the log, if there is no room for it, or it cannot be written or read.
        """
        place = _Place(directory, part.name, *_keys(model, windows, part, compute_batch))
        shape = (len(part), *model.pooled_shape(windows.values_STC.shape[2]))
        try:
            if not write:
                found = place.read(shape, compute_batch)
                return None if found is None else cls(*found)
            place.prepare()
            try:
                found = place.read(shape, compute_batch)
            except _Unusable as error:
                logger.warning("%s: %s; the features are computed again", place.features, error)
                found = None
            if found is None:
                place.remove()
            if refusal := place.refusal(shape, limit_bytes, new=found is None):
                logger.warning("%s: features are not kept, and computed in each step instead: %s", directory, refusal)
                place.remove()
                return None
            if found is None:
                place.write(shape, compute_batch, _computed(model, windows, part, compute_batch, progress))
                found = place.read(shape, compute_batch)
        except (OSError, _Unusable) as error:
            what = getattr(error, "strerror", None) or error
            logger.warning("%s: features are not kept, and computed in each step instead: %s", directory, what)
            return None
        assert found is not None  # it was written just now
        return cls(*found)

    def __len__(self) -> int:
        return len(self.rows)

    def share(self, here: slice) -> "FeatureCache":
        """The features of a stretch of the part's windows; `non_finite` stays that of all."""
        return FeatureCache(self.rows[here], self.non_finite)

    def batch(self, chosen: NDArray[np.intp] | slice) -> Tensor:
        """Features (B, …) of the windows at these positions of the part, in memory of their own."""
        picked = self.rows[chosen].copy() if isinstance(chosen, slice) else self.rows.take(chosen, axis=0)
        self.taken += picked.nbytes
        if self.taken > RESIDENT_BYTES:
            self.taken = 0
            _let_go(self.rows)
        return torch.from_numpy(picked)


def _keys(model: TimerXLForClassification, windows: Windows, part: Part, compute_batch: int) -> tuple[str, str]:
    """SHA-256 of everything that features depend on besides the windows of the part, and of those windows."""
    about = {
        "format": FORMAT,
        "torch": torch.__version__,
        "device": model.encoder.forecasting.weight.device.type,
        "batch": compute_batch,
        "head": type(model.head).__name__,
        "instance_norm": model.instance_norm,
        "context": windows.context,
        "encoder": {name: _settings(module) for name, module in model.encoder.named_modules()},
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    weights = {**model.encoder.state_dict(prefix="encoder."), "gap_embedding_D": model.gap_embedding_D.detach()}
    for name, tensor in sorted(weights.items()):
        _feed(digest, name, tensor.cpu().numpy())
    _feed(digest, "values", windows.values_STC)
    _feed(digest, "observed", windows.observed_STC)
    of_part = hashlib.sha256()
    _feed(of_part, "site", part.site.astype(np.int64))
    _feed(of_part, "end", part.end.astype(np.int64))
    return digest.hexdigest(), of_part.hexdigest()


def _settings(module: torch.nn.Module) -> dict[str, object]:
    """What a module is besides its weights: its class and its plain numbers, such as heads or ε."""
    plain = {name: each for name, each in vars(module).items() if isinstance(each, int | float | str)}
    return {"class": type(module).__name__, **{name: each for name, each in plain.items() if name != "training"}}


def _feed(digest: "hashlib._Hash", name: str, array: NDArray[Any]) -> None:
    digest.update(f"{name} {array.dtype} {array.shape}".encode())
    for each in array if array.ndim == 3 else (array,):  # by sites, for a panel that is not contiguous
        digest.update(np.ascontiguousarray(each).data)


def _computed(
    model: TimerXLForClassification,
    windows: Windows,
    part: Part,
    size: int,
    progress: Callable[[int, int], object] | None,
) -> Iterator[FloatArray]:
    """The features in blocks of `size` windows, computed as they are asked for."""
    device = model.encoder.forecasting.weight.device
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


@dataclass(frozen=True)
class _Place:
    """The two files of one part, and their neighbours."""

    directory: Path
    part: str
    model_key: str
    part_key: str

    @property
    def features(self) -> Path:
        return self.directory / f"{self._stem}.features"

    @property
    def header(self) -> Path:
        return self.directory / f"{self._stem}.json"

    @property
    def _stem(self) -> str:
        return f"{self.part}-{self.model_key[:16]}-{self.part_key[:16]}"

    def prepare(self) -> None:
        """Make the directory; remove what kills left, and this part's features of another model or of other windows.

        Raises:
            OSError: it cannot be made, or is a link.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.directory.is_symlink():
            raise OSError("the directory is a link, which is not followed")
        for path, match in self._caches():
            if match["part"] == self.part and path not in (self.features, self.header):
                if not path.name.endswith(".part"):
                    logger.info("%s: is of another model, data or windows; removed", path)
                path.unlink()

    def _caches(self) -> list[tuple[Path, re.Match[str]]]:
        """Every file that has a cache's name, oldest first."""
        found = [(path, match) for path in self.directory.iterdir() if (match := FEATURES_NAME.fullmatch(path.name))]
        plain = [each for each in found if stat.S_ISREG(each[0].lstat().st_mode) or each[0].is_symlink()]
        return sorted(plain, key=lambda each: each[0].lstat().st_mtime)

    def _used(self) -> int:
        """Bytes of all caches of the directory."""
        return sum(path.lstat().st_size for path, _ in self._caches())

    def remove(self) -> None:
        """Remove both files of this part, whole or not."""
        for path in (self.features, self.header):
            for each in (path, path.with_name(f"{path.name}.part")):
                each.unlink(missing_ok=True)

    def read(self, shape: tuple[int, ...], block: int) -> tuple[FloatArray, NDArray[np.intp]] | None:
        """The rows, every block of them compared, and where they are not finite; None if there are no files.

        Raises:
            _Unusable: the files are damaged. OSError: they cannot be read.
        """
        if not (os.path.lexists(self.features) or os.path.lexists(self.header)):
            return None
        try:
            with _opened(self.header) as file:
                header = json.loads(file.read(LARGEST_HEADER))
            with _opened(self.features) as file:
                size = os.fstat(file.fileno()).st_size
                if size != (expected := 4 * math.prod(shape)):
                    raise _Unusable(f"has {size:,} bytes, expected {expected:,}")
                rows: FloatArray = np.asarray(np.memmap(file, np.float32, "r", shape=shape))
        except FileNotFoundError as error:
            raise _Unusable(f"{Path(error.filename).name} is not there") from error
        except (ValueError, RecursionError) as error:
            raise _Unusable(f"its header is damaged ({error})") from error
        sums = header.pop("crc32", None) if isinstance(header, dict) else None
        if header != self._about(shape, block) or not isinstance(sums, list) or len(sums) != -(-shape[0] // block):
            raise _Unusable("its header does not describe it")
        bad: list[NDArray[np.intp]] = []
        for number, known in enumerate(sums):
            start = number * block
            some = rows[start : start + block]
            if zlib.crc32(some.data) != known:
                raise _Unusable(f"is damaged (block {number} is not as it was written)")
            bad.append(start + np.nonzero(~np.isfinite(some.reshape(len(some), -1)).all(axis=1))[0])
            if some.nbytes * (number + 1) // RESIDENT_BYTES > some.nbytes * number // RESIDENT_BYTES:
                _let_go(rows)
        _let_go(rows)
        return rows, np.concatenate(bad)

    def refusal(self, shape: tuple[int, ...], limit_bytes: int, new: bool) -> str | None:
        """Why this part's files, which are `new` or counted already, have no room; other models' are removed for them."""
        size = 4 * math.prod(shape) + HEADER_BYTES + MOST_SUM_BYTES * shape[0]
        if size > limit_bytes:
            return f"they have {size:,} bytes, at most {limit_bytes:,} may be kept"
        more = size if new else 0
        for path, match in self._caches():
            if self._used() + more <= limit_bytes:
                break
            if match["model"] != self.model_key[:16]:
                logger.info("%s: removed to make room", path)
                path.unlink()
        if (used := self._used()) + more > limit_bytes:
            return (
                f"they would have {used + more:,} bytes with those of other parts, at most {limit_bytes:,} may be kept"
            )
        if more > (free := shutil.disk_usage(self.directory).free) // 2:
            return f"they have {size:,} bytes and the disk has {free:,} left, half of which are for the run"
        return None

    def write(self, shape: tuple[int, ...], block: int, blocks: Iterator[FloatArray]) -> None:
        """Write both files, the header last; if that fails, nothing stays.

        Raises:
            OSError: the disk is full or read-only.
        """
        sums: list[int] = []

        def fill(file: BinaryIO) -> None:
            for some in blocks:
                _write(file, some.data)
                sums.append(zlib.crc32(some.data))

        try:
            _placed(self.features, fill)
            header = json.dumps({**self._about(shape, block), "crc32": sums})
            _placed(self.header, lambda file: _write(file, header.encode()))
        except BaseException:
            with suppress(OSError):
                self.remove()
            raise

    def _about(self, shape: tuple[int, ...], block: int) -> dict[str, object]:
        return {
            "format": FORMAT,
            "key": self.model_key + self.part_key,
            "shape": list(shape),
            "dtype": "float32",
            "block": block,
        }


def _let_go(rows: FloatArray) -> None:
    """Pages of the mapped file leave this process's memory; the system keeps them, so that they come back without the disk."""
    mapped = getattr(rows.base, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _opened(path: Path) -> BinaryIO:
    """A plain file for reading; a link is not followed.

    Raises:
        _Unusable: it is no plain file. OSError: it cannot be read.
    """
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise _Unusable(f"{path.name} is no plain file; links are not followed")
    return os.fdopen(os.open(path, os.O_RDONLY | NO_LINKS), "rb")


def _placed(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Fill a new file under a temporary name, flush it to the disk, and put it in place."""
    temporary = path.with_name(f"{path.name}.part")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINKS, 0o644)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        fill(file)
        os.fsync(file.fileno())
    temporary.replace(path)


def _write(file: BinaryIO, content: bytes | memoryview) -> None:
    """All of the content: one call may write less."""
    rest = memoryview(content).cast("B")
    while rest:
        rest = rest[file.write(rest) :]
