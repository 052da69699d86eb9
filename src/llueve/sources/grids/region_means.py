"""Means over regions, computed in blocks of times, so that memory does not grow with the archive.

Shapes: t times of one block, T times, U cells that some region uses, R regions.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import dask.base
import numpy as np
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from llueve.errors import DataError
from llueve.panel import BoolArray
from llueve.sources.grids.fields import Field, reading
from llueve.sources.grids.regions import Integers, Region
from llueve.sources.grids.times import Floats

BLOCK_BYTES = 16 * 2**20
"""Size of a block as float32: large enough to hide its scheduling, small enough to hold several at once."""
WORKERS = 4
"""Threads on this machine. Files are read under one lock, so more threads would only use more memory."""
CLUSTER_SECONDS = 10
"""Longest wait for a cluster."""
HUGE = 1e12
"""Far above any quantity of ERA5, and far below an undeclared fill value (9.97e36, 1e20)."""
MISSING_MARKS = (-99.9, -999.0, -999.9, -9999.0, -9999.9, -32767.0, -32768.0, -99999.0, -999999.0)
"""Common marks of a missing value."""
ROUNDING = 1e-6
"""Relative error of such a mark in float32."""

ValueAt = tuple[float, int]
"""A value, and the position of its time in the block."""
Refusal = Literal["mark", "huge", "negative"]
"""A mark of a missing value, far from all others; an infinite or impossibly large value; a sum below zero beyond the noise."""
Compute = Callable[[Sequence[Any]], Any]
"""Computes delayed work."""


@dataclass(frozen=True)
class CellSelection:
    """The cells of a grid that are read, and the cells of each region among them."""

    rows: slice
    columns: slice
    """The box of the grid that holds every used cell."""
    cells: Integers
    """Used cells (U,), as positions in the flattened box."""
    by_region: tuple[Integers, ...]
    """Per region, its cells as positions in `cells`."""
    weights: tuple[Floats, ...]
    """Per region, the weights of its cells."""

    @classmethod
    def of(cls, regions: Sequence[Region], shape: tuple[int, int]) -> "CellSelection":
        """The selection for some regions on a grid of that shape."""
        used = np.unique(np.concatenate([region.cells for region in regions]))
        row, column = np.divmod(used, shape[1])
        rows, columns = slice(row.min(), row.max() + 1), slice(column.min(), column.max() + 1)
        cells = (row - row.min()) * (columns.stop - columns.start) + column - column.min()
        by_region = tuple(np.searchsorted(used, region.cells) for region in regions)
        return cls(rows, columns, cells, by_region, tuple(region.weights for region in regions))

    def flattened(self, values: NDArray[Any]) -> NDArray[Any]:
        """The used cells (t, U) of values by (t, rows, columns)."""
        x_tU = values.reshape(values.shape[0], -1)
        return x_tU if len(self.cells) == x_tU.shape[1] else x_tU[:, self.cells]


@dataclass(frozen=True)
class ValidValues:
    """The valid values of a variable."""

    least: float | None
    """Negative values down to this one are noise and become 0; None if negative values are valid."""
    sentinels: tuple[float, ...] = ()
    """Numbers that mean missing."""


@dataclass(frozen=True)
class BlockMeans:
    """The means of some times of one field, and what their values show."""

    mean_tR: Floats
    """Mean over the cells with a value at that time."""
    cells_tR: NDArray[np.int32]
    """Number of these cells."""
    present_U: NDArray[np.int64]
    """Number of times with a value, by cell."""
    sketch_t2: Floats
    """Two random sums over the cells, which differ for fields with equal means; NaN if not computed."""
    filled_t: BoolArray
    """True for each time with preliminary values in place of absent final ones."""
    rounded: int
    """Negative values within the noise of packing, which became 0."""
    sentinels: int
    """Cells with one of `data.sentinels`, which count as missing."""
    refused: tuple[Refusal, ValueAt] | None
    """A value that the variable cannot have."""


def reduce_block(
    values: NDArray[Any], fallback: NDArray[Any] | None, selection: CellSelection, valid: ValidValues, sketch: bool
) -> BlockMeans:
    """Reduce some times of a field, (t, rows, columns) of the selection's box, NaN where missing, to means over regions.

    Values of `fallback` replace missing ones. `sketch` is True to compute the random sums too.
    """
    least = valid.least
    values, marked = _without_sentinels(values, valid.sentinels)
    x_tU = selection.flattened(values)
    times = len(x_tU)
    filled_t = np.zeros(times, np.bool_)
    if fallback is not None:
        other_tU = selection.flattened(_without_sentinels(fallback, valid.sentinels)[0])
        takes = np.isnan(x_tU) & ~np.isnan(other_tU)
        filled_t = takes.any(axis=1)
        x_tU = np.where(takes, other_tU, x_tU)
    mark = _mark(x_tU)
    refused: tuple[Refusal, ValueAt] | None = None
    rounded = 0
    if least is not None and (below := x_tU < 0).any():
        within_noise = below & (x_tU >= least)
        rounded = int(within_noise.sum())
        lowest = int(np.nanargmin(x_tU))
        if x_tU.flat[lowest] < least:
            refused = "negative", (float(x_tU.flat[lowest]), lowest // x_tU.shape[1])
        x_tU = np.where(within_noise, x_tU.dtype.type(0), x_tU)
    with np.errstate(invalid="ignore", over="ignore"):
        mean_tR = _means(x_tU, selection)
        cells_tR = np.broadcast_to([len(cells) for cells in selection.by_region], mean_tR.shape).astype(np.int32)
        present_U = np.full(x_tU.shape[1], times, np.int64)
        # A missing or huge cell shows in the mean, so that complete blocks need no further pass.
        if not (np.abs(mean_tR) < HUGE).all():
            present_tU = ~np.isnan(x_tU)
            odd = np.flatnonzero(present_tU & ~(np.abs(x_tU) < HUGE))
            if len(odd):
                refused = "huge", (float(x_tU.flat[odd[0]]), int(odd[0]) // x_tU.shape[1])
            x_tU = np.where(present_tU, x_tU, x_tU.dtype.type(0))
            mean_tR, cells_tR = _means_of_present(x_tU, present_tU, selection)
            present_U = present_tU.sum(axis=0)
        sketch_t2 = np.full((times, 2), np.nan)
        if sketch:
            random_2U = np.random.default_rng(0).uniform(0.5, 1.5, (2, x_tU.shape[1]))
            sketch_t2 = np.einsum("tu,ku->tk", x_tU.astype(np.float64), random_2U)
    refused = refused if mark is None else ("mark", mark)
    return BlockMeans(mean_tR, cells_tR, present_U, sketch_t2, filled_t, rounded, marked, refused)


def _without_sentinels(values: NDArray[Any], sentinels: tuple[float, ...]) -> tuple[NDArray[Any], int]:
    """The values with NaN for each sentinel, and the number of sentinels."""
    if not sentinels:
        return values, 0
    values = values if values.dtype.kind == "f" else values.astype(np.float64)
    hit = np.any([np.abs(values - sentinel) <= ROUNDING * abs(sentinel) for sentinel in sentinels], axis=0)
    return np.where(hit, values.dtype.type(np.nan), values), int(hit.sum())


def _mark(x_tU: NDArray[Any]) -> ValueAt | None:
    """The least value and its time, if it is a mark of a missing value and far from all others.

    Far means: the only value below zero, or farther from the others than their whole range. A -999 may be a flux among
    fluxes, but it is neither a temperature of 290 K nor an energy that cannot be negative.
    """
    lowest = float(np.fmin.reduce(x_tU, axis=None))
    if not any(abs(lowest - mark) <= ROUNDING * abs(mark) for mark in MISSING_MARKS):
        return None
    others = x_tU[(x_tU > lowest) & (x_tU < HUGE)]
    if len(others) and others.min() < 0 and float(others.min()) - lowest <= float(others.max() - others.min()):
        return None
    return lowest, int(np.flatnonzero(x_tU == lowest)[0]) // x_tU.shape[1]


def _means(x_tU: NDArray[Any], selection: CellSelection) -> Floats:
    """Weighted means, each time by itself in float64, so that they do not depend on the division into blocks."""
    mean_tR = np.empty((x_tU.shape[0], len(selection.by_region)))
    for region, (cells, weight) in enumerate(zip(selection.by_region, selection.weights, strict=True)):
        if len(cells) == 1:
            mean_tR[:, region] = x_tU[:, cells[0]]
        else:
            mean_tR[:, region] = np.einsum("tu,u->t", x_tU[:, cells].astype(np.float64), weight / weight.sum())
    return mean_tR


def _means_of_present(
    x_tU: NDArray[Any], present_tU: BoolArray, selection: CellSelection
) -> tuple[Floats, NDArray[np.int32]]:
    """Weighted means over the cells with a value, and their number; NaN without any."""
    mean_tR = np.empty((x_tU.shape[0], len(selection.by_region)))
    cells_tR = np.empty(mean_tR.shape, np.int32)
    for region, (cells, weight) in enumerate(zip(selection.by_region, selection.weights, strict=True)):
        present = present_tU[:, cells]
        cells_tR[:, region] = present.sum(axis=1)
        total = np.einsum("tu,u->t", x_tU[:, cells].astype(np.float64), weight)
        weights = np.einsum("tu,u->t", present.astype(np.float64), weight)
        mean_tR[:, region] = np.divide(total, weights, out=np.full(len(total), np.nan), where=weights > 0)
    return mean_tR, cells_tR


def block_means(
    field: Field, chosen: slice, selection: CellSelection, valid: ValidValues, sketch: bool, compute: Compute
) -> list[BlockMeans]:
    """Reduce the chosen times of a field, at least one, in blocks in order of time; `compute` comes from `workers`."""
    time, latitude, longitude = field.dims
    arrays = []
    for source in (field.array, field.fallback):
        if source is None:
            continue
        box = source.isel({time: chosen, latitude: selection.rows, longitude: selection.columns})
        chunked = box.chunk({time: _times_per_block(box, source, time), latitude: -1, longitude: -1})
        arrays.append(chunked.transpose(time, latitude, longitude).data.to_delayed().ravel())
    others = arrays[1] if len(arrays) > 1 else [None] * len(arrays[0])
    work, shared = delayed(reduce_block), delayed(selection, traverse=False)
    blocks = [work(one, other, shared, valid, sketch) for one, other in zip(arrays[0], others, strict=True)]
    with reading(field.label, " (the workers of a cluster must see the same files)"):
        return list(compute(blocks))


def _times_per_block(box: xr.DataArray, source: xr.DataArray, time: Any) -> int:
    """Times of one block: a multiple of a stored chunk, because a part of a chunk costs as much as all of it."""
    stored = max(1, int((source.encoding.get("preferred_chunks") or {}).get(time, 1)))
    bytes_per_time = 4 * box.size // box.sizes[time]
    blocks = max(1, round(BLOCK_BYTES / (stored * bytes_per_time)))
    return min(box.sizes[time], stored * blocks)


@contextmanager
def workers(address: str | None) -> Iterator[Compute]:
    """A function that computes delayed work, on threads of this machine or on the cluster at `address`, which must answer."""
    if address is None:
        yield lambda work: dask.base.compute(*work, scheduler="threads", num_workers=WORKERS)
        return
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise DataError(f"data.dask = {address!r}: a cluster needs an extra: pip install 'llueve[zarr]'") from error
    try:
        client = Client(address, timeout=CLUSTER_SECONDS, set_as_default=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"data.dask = {address!r}: no cluster answers ({error}); start it or remove data.dask"
        ) from error

    def gathered(work: Sequence[Any]) -> Any:
        try:
            return client.gather(client.compute(work))
        except (KilledWorker, CancelledError, asyncio.CancelledError, TimeoutError, ConnectionError) as error:
            raise DataError(
                f"data.dask = {address!r}: the cluster lost the work ({type(error).__name__}): its workers stopped, for example "
                "for lack of memory, or it was shut down; read its log, or remove data.dask"
            ) from error

    try:
        yield gathered
    finally:
        client.close()
