"""Features of a frozen encoder: computed once for each window, then read from the disk.

A run directory holds the features of one model, in two files for each part. `<part>-<model and data>-<windows>.features`
holds the float32 rows in the order of the part. The same name with `.json` is the header: format, key, dimensions and the
CRC-32 of each block of rows. It is written last. Features are used only after every block was read and compared with its
checksum. This also brings the file into the page cache, so random rows of it are as fast as memory. The sum of the bits of
each row stays in memory, and every row is compared with it whenever it is used.

The cache only saves time: if anything is wrong with it, the log has one line and the features are computed again. One
process at a time writes into a directory.

Shapes: B batch, W windows of the part; features are (W, …), the output of `TimerXLForClassification.pool`.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llueve.model.batch import device_of
from llueve.model.classifier import TimerXLForClassification
from llueve.model.kernels.matmul import quick_products
from llueve.panel import FloatArray
from llueve.samples.split import Part
from llueve.samples.windows import Windows
from llueve.training.batches.feature_files import FeatureFiles, UnusableFiles, bit_sums, release_pages

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the files: raised when they, or the output of `TimerXLForClassification.pool`, change."""
RESIDENT_BYTES = 16 * 2**20
"""Bytes gathered before the mapped pages are released. Without it an epoch in random order would bring the whole file into
memory, because a system maps several pages around each one that is read."""
MOST_MENDED = 8
"""Most damaged blocks that are computed again and kept in memory."""


class DamagedFeatures(Exception):
    """Features on the disk, or in the memory of the machine, have changed since they were checked."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        super().__init__(f"{len(rows)} row(s) of cached features have changed since they were checked")
        self.rows = rows
        """Positions of the windows in the part."""


@dataclass
class FeatureCache:
    """Features of every window of one part."""

    rows: FloatArray
    """(W, …), mapped from the disk."""
    non_finite: NDArray[np.intp]
    """Positions of windows with a non-finite feature; the features are stored unchanged, and the guard decides."""
    sums: NDArray[np.int64]
    """Sum of the bits of each row when it was checked, (W,)."""
    compute: Callable[[int], FloatArray]
    """Computes a block again, by its number."""
    block: int
    """Rows of a block."""
    mended: dict[int, FloatArray] = field(default_factory=dict)
    """Blocks that were computed again, by their numbers."""
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
        files = FeatureFiles(directory / f"{part.name}-{key[:16]}-{key[64:80]}.features", shape, about)

        def compute(number: int) -> FloatArray:
            rows = slice(number * compute_batch, (number + 1) * compute_batch)
            return next(_computed(model, windows, part[rows], compute_batch, None))

        try:
            if not write:
                return cls(*files.read(), compute, compute_batch) if files.exist else None
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
            return cls(*found, compute, compute_batch)
        except (OSError, UnusableFiles) as error:
            reason = getattr(error, "strerror", None) or error
            logger.warning("%s: features are not kept, and computed in each step instead: %s", directory, reason)
            return None

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, chosen: NDArray[np.intp] | slice) -> Tensor:
        """Return a copy of the features (B, …) of the windows at these positions of the part.

        Raises:
            DamagedFeatures: some of them have changed since they were checked; `mend` computes them again.
        """
        picked = self.rows[chosen].copy() if isinstance(chosen, slice) else self.rows.take(chosen, axis=0)
        places = np.arange(len(self))[chosen]
        if self.mended:
            for row in np.flatnonzero(np.isin(places // self.block, list(self.mended))):
                picked[row] = self.mended[places[row] // self.block][places[row] % self.block]
        wrong = bit_sums(picked) != self.sums[places]
        if wrong.any():
            raise DamagedFeatures(places[wrong])
        self.taken += picked.nbytes
        if self.taken > RESIDENT_BYTES:
            self.taken = 0
            release_pages(self.rows)
        return torch.from_numpy(picked)

    def mend(self, damage: DamagedFeatures) -> None:
        """Compute damaged blocks again, and use these instead of the file.

        Raises:
            UnusableFiles: too many blocks are damaged, or the computed ones are not those of before.
        """
        for number in np.unique(damage.rows // self.block).tolist():
            again = self.compute(number)
            if len(self.mended) >= MOST_MENDED or not np.array_equal(
                bit_sums(again), self.sums[number * self.block : (number + 1) * self.block]
            ):
                raise UnusableFiles(
                    f"{damage}, and computing them again does not give what they were, or too many changed"
                )
            self.mended[number] = again
        logger.warning("%s: damaged memory or a damaged disk; they were computed again", damage)


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
        "step_hours": model.step_hours,
        "seen": getattr(model.encoder, "seen", None),
        "encoder": {name: _settings(module) for name, module in model.encoder.named_modules()},
    }
    weights = {**model.encoder.state_dict(prefix="encoder."), "gap_embedding_D": model.gap_embedding_D.detach()}
    arrays = [(name, tensor.cpu().numpy()) for name, tensor in sorted(weights.items())]
    arrays += [("values", windows.values_STC), ("observed", windows.observed_STC)]
    if windows.place is not None:
        times = windows.place.times_T.astype("datetime64[s]").astype(np.int64)
        arrays += [("times", times), ("positions", windows.place.position_S2)]
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
            values_BCL, observed_BCL, facts_BF = windows.batch(part[start : start + size])
            x_BLC, observed_BLC = (
                torch.from_numpy(np.ascontiguousarray(each)).to(device).mT for each in (values_BCL, observed_BCL)
            )
            with torch.inference_mode(), model.encoder.computing_in(torch.float32), quick_products():
                pooled = model.pool(x_BLC, observed_BLC, torch.from_numpy(facts_BF).to(device))
            yield pooled.cpu().contiguous().numpy()
            if progress is not None:
                progress(min(start + size, len(part)), len(part))
    finally:
        model.encoder.train(training)
