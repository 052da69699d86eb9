"""Means over regions, block of times by block of times, so that memory does not grow with the archive.

Shapes: t times of one block, T times, U cells that some region uses, R regions.
"""

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask.base
import numpy as np
import xarray as xr
from dask.delayed import delayed
from numpy.typing import NDArray

from llueve.errors import DataError
from llueve.sources.gridded import DAMAGE, Field
from llueve.sources.regions import Integers, Region
from llueve.sources.timeline import Floats

BLOCK_BYTES = 16 * 2**20
"""Least size of a block as float32: large enough that its scheduling costs nothing, small enough for many at once."""
WORKERS = 4
"""Threads on this machine: files are read under one lock, so that more would only hold more memory."""
CLUSTER_SECONDS = 10
"""How long a cluster may take to answer."""
HUGE = 1e12
"""No quantity of ERA5 comes near; an undeclared fill value (9.97e36, 1e20) lies far above."""
MARKS = (-99.9, -999.0, -999.9, -9999.0, -9999.9, -32767.0, -32768.0, -99999.0, -999999.0)
"""Numbers that people write for "missing"."""
ROUNDING = 1e-6
"""Share by which float32 may move such a number."""


@dataclass(frozen=True)
class Layout:
    """Which cells of a grid are read, and which of these each region means."""

    rows: slice
    columns: slice
    """The box of the grid that holds every used cell."""
    cells: Integers
    """Used cells (U,), as positions in the flattened box."""
    members: tuple[Integers, ...]
    """Per region, its cells as positions in `cells`."""
    weights: tuple[Floats, ...]

    @classmethod
    def of(cls, regions: Sequence[Region], shape: tuple[int, int]) -> "Layout":
        """The layout of some regions on a grid of that shape."""
        used = np.unique(np.concatenate([region.cells for region in regions]))
        row, column = np.divmod(used, shape[1])
        rows, columns = slice(row.min(), row.max() + 1), slice(column.min(), column.max() + 1)
        cells = (row - row.min()) * (columns.stop - columns.start) + column - column.min()
        members = tuple(np.searchsorted(used, region.cells) for region in regions)
        return cls(rows, columns, cells, members, tuple(region.weights for region in regions))


@dataclass(frozen=True)
class Block:
    """What is known of some times of one field."""

    mean_tR: Floats
    """Over the cells that are there at that time."""
    cells_tR: NDArray[np.int32]
    """How many those are."""
    present_U: NDArray[np.int64]
    """At how many times each cell is there."""
    sketch_tU: Floats
    """Two random sums over the cells, (t, 2), which tell fields apart that share their means; NaN if not asked for."""
    filled: NDArray[np.bool_]
    """(t,) whether preliminary values stand in for absent final ones."""
    tiny: int
    """Negative values within the noise of packing, which became 0."""
    worst: tuple[float, int] | None
    """The most negative value beyond that noise, and its time in the block."""
    wild: tuple[float, int] | None
    """An infinite or absurdly large value, and its time in the block."""
    mark: tuple[float, int] | None
    """A number that people write for "missing", apart from all other values, and its time in the block."""
    marked: int
    """Cells that held one of `data.sentinels`, and are missing."""


def reduce_block(
    values: NDArray[Any],
    fallback: NDArray[Any] | None,
    layout: Layout,
    least: float | None,
    sketch: bool,
    sentinels: tuple[float, ...] = (),
) -> Block:
    """Reduce some times of a field, (t, rows, columns) of the layout's box.

    Args:
        values: as stored, NaN where missing.
        fallback: values to take where they are missing.
        layout: the cells.
        least: negative values down to this one are noise and become 0; None where negatives are meant.
        sketch: whether to sum the cells at random too.
        sentinels: numbers that mean missing.
    """
    values, marked = _without_sentinels(values, sentinels)
    fallback = None if fallback is None else _without_sentinels(fallback, sentinels)[0]
    times = values.shape[0]
    x_tU = values.reshape(times, -1)
    whole = len(layout.cells) == x_tU.shape[1]
    x_tU = x_tU if whole else x_tU[:, layout.cells]
    filled = np.zeros(times, np.bool_)
    if fallback is not None:
        other_tU = fallback.reshape(times, -1)
        other_tU = other_tU if whole else other_tU[:, layout.cells]
        takes = np.isnan(x_tU) & ~np.isnan(other_tU)
        filled = takes.any(axis=1)
        x_tU = np.where(takes, other_tU, x_tU)
    mark = _mark(x_tU)
    tiny, worst = 0, None
    if least is not None and (below := x_tU < 0).any():
        tiny = int((below & (x_tU >= least)).sum())
        lowest = int(np.nanargmin(x_tU))
        if x_tU.flat[lowest] < least:
            worst = (float(x_tU.flat[lowest]), lowest // x_tU.shape[1])
        x_tU = np.where(below & (x_tU >= least), x_tU.dtype.type(0), x_tU)
    with np.errstate(invalid="ignore", over="ignore"):
        mean_tR = _means(x_tU, layout)
        cells_tR = np.broadcast_to([len(member) for member in layout.members], mean_tR.shape).astype(np.int32)
        present_U = np.full(x_tU.shape[1], times, np.int64)
        wild = None
        # A missing or absurd cell shows in the mean, so that clean blocks cost nothing more.
        if not (np.abs(mean_tR) < HUGE).all():
            there_tU = ~np.isnan(x_tU)
            odd = np.flatnonzero(there_tU & ~(np.abs(x_tU) < HUGE))
            wild = (float(x_tU.flat[odd[0]]), int(odd[0]) // x_tU.shape[1]) if len(odd) else None
            x_tU = np.where(there_tU, x_tU, x_tU.dtype.type(0))
            mean_tR, cells_tR = _means_of_present(x_tU, there_tU, layout)
            present_U = there_tU.sum(axis=0)
        random = np.random.default_rng(0).uniform(0.5, 1.5, (2, x_tU.shape[1])) if sketch else None
        sketch_tU = (
            np.full((times, 2), np.nan) if random is None else np.einsum("tu,ku->tk", x_tU.astype(np.float64), random)
        )
    return Block(mean_tR, cells_tR, present_U, sketch_tU, filled, tiny, worst, wild, mark, marked)


def _without_sentinels(values: NDArray[Any], sentinels: tuple[float, ...]) -> tuple[NDArray[Any], int]:
    """The values with NaN for each sentinel, and how many there were."""
    if not sentinels:
        return values, 0
    values = values if values.dtype.kind == "f" else values.astype(np.float64)
    hit = np.any([np.abs(values - sentinel) <= ROUNDING * abs(sentinel) for sentinel in sentinels], axis=0)
    return np.where(hit, values.dtype.type(np.nan), values), int(hit.sum())


def _mark(x_tU: NDArray[Any]) -> tuple[float, int] | None:
    """The least value and its time, if it is a number that means missing and lies apart from all others.

    Apart is the only one below zero, or farther than the others lie from each other: -999 may be a flux among fluxes, but is
    neither a temperature of 290 K nor an energy that is never negative.
    """
    lowest = float(np.fmin.reduce(x_tU, axis=None))
    if not any(abs(lowest - mark) <= ROUNDING * abs(mark) for mark in MARKS):
        return None
    others = x_tU[(x_tU > lowest) & (x_tU < HUGE)]
    if len(others) and others.min() < 0 and float(others.min()) - lowest <= float(others.max() - others.min()):
        return None
    return lowest, int(np.flatnonzero(x_tU == lowest)[0]) // x_tU.shape[1]


def _means(x_tU: NDArray[Any], layout: Layout) -> Floats:
    """Weighted means; every row by itself in float64, so that they do not depend on how times fall into blocks."""
    mean_tR = np.empty((x_tU.shape[0], len(layout.members)))
    for region, (member, weight) in enumerate(zip(layout.members, layout.weights, strict=True)):
        if len(member) == 1:
            mean_tR[:, region] = x_tU[:, member[0]]
        else:
            mean_tR[:, region] = np.einsum("tu,u->t", x_tU[:, member].astype(np.float64), weight / weight.sum())
    return mean_tR


def _means_of_present(
    x_tU: NDArray[Any], there_tU: NDArray[np.bool_], layout: Layout
) -> tuple[Floats, NDArray[np.int32]]:
    """Weighted means over the cells that are there, and their number; NaN where none is."""
    mean_tR = np.empty((x_tU.shape[0], len(layout.members)))
    cells_tR = np.empty(mean_tR.shape, np.int32)
    for region, (member, weight) in enumerate(zip(layout.members, layout.weights, strict=True)):
        there = there_tU[:, member]
        cells_tR[:, region] = there.sum(axis=1)
        total = np.einsum("tu,u->t", x_tU[:, member].astype(np.float64), weight)
        weights = np.einsum("tu,u->t", there.astype(np.float64), weight)
        mean_tR[:, region] = np.divide(total, weights, out=np.full(len(total), np.nan), where=weights > 0)
    return mean_tR, cells_tR


def delayed_blocks(
    field: Field, chosen: slice, layout: Layout, least: float | None, sketch: bool, sentinels: tuple[float, ...]
) -> list[Any]:
    """The field's blocks as work to be done, in the order of its times; `chosen` selects among them."""
    time, latitude, longitude = field.dims
    arrays = []
    for source in (field.array, field.fallback):
        if source is None:
            continue
        box = source.isel({time: chosen, latitude: layout.rows, longitude: layout.columns})
        if box.sizes[time] == 0:
            return []
        chunked = box.chunk({time: _times_per_block(box, source, time), latitude: -1, longitude: -1})
        arrays.append(chunked.transpose(time, latitude, longitude).data.to_delayed().ravel())
    others = arrays[1] if len(arrays) > 1 else [None] * len(arrays[0])
    work = delayed(reduce_block)
    shared = delayed(layout, traverse=False)
    return [work(one, other, shared, least, sketch, sentinels) for one, other in zip(arrays[0], others, strict=True)]


def _times_per_block(box: xr.DataArray, source: xr.DataArray, time: Any) -> int:
    """Times of one block: a multiple of what the file stores together, since a part of that costs as much as all."""
    told = source.encoding.get("preferred_chunks") or {}
    stored = max(1, int(told.get(time, 1)))
    bytes_per_time = max(1, 4 * box.size // max(1, box.sizes[time]))
    blocks = max(1, round(BLOCK_BYTES / (stored * bytes_per_time)))
    return min(box.sizes[time], stored * blocks)


@contextmanager
def workers(address: str | None) -> Iterator[Any]:
    """A function that does delayed work, on threads of this machine or on the cluster at `address`.

    Raises:
        DataError: no cluster there, or its extra is not installed.
    """
    if address is None:
        yield lambda work: dask.base.compute(*work, scheduler="threads", num_workers=WORKERS)
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise DataError(f"data.dask = {address!r}: a cluster needs an extra: pip install 'llueve[zarr]'") from error
    try:
        client = Client(address, timeout=CLUSTER_SECONDS, set_as_default=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"data.dask = {address!r}: no cluster answers there ({error}); start one, or leave it out"
        ) from error
    try:
        yield lambda work: _gathered(client, work, address)
    finally:
        client.close()


def _gathered(client: Any, work: Sequence[Any], address: str) -> Any:
    """The work done by a cluster, whose workers may die meanwhile."""
    from distributed import KilledWorker

    try:
        return client.gather(client.compute(list(work)))
    except (KilledWorker, CancelledError, asyncio.CancelledError, TimeoutError, ConnectionError) as error:
        raise DataError(
            f"data.dask = {address!r}: the cluster lost the work ({type(error).__name__}): its workers died, for want of memory "
            "say, or it was shut down; look into its log, or leave data.dask out"
        ) from error


def computed(work: Sequence[Any], compute: Any, label: str) -> list[Block]:
    """The blocks, done.

    Raises:
        DataError: the file could not be read.
    """
    try:
        return list(compute(work))
    except DAMAGE as error:
        text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{label}: its values cannot be read ({text}); it is cut off or damaged: fetch it again (workers of a cluster must "
            "see the same files)"
        ) from error
