"""From times and sites by row to one regular axis: which cell of the panel each row of the file fills."""

import re
import zoneinfo
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llueve.config import DataConfig
from llueve.errors import DataError, listed
from llueve.panel import Finding, FloatArray
from llueve.sources.columns import Cells, Floats, Times, text_cells
from llueve.sources.files import Table

MOST_CELLS = 50_000_000
SECOND_NS = 1_000_000_000
HOUR_NS = 3600 * SECOND_NS
# A time zone can only follow a time of day: the `-01` that ends 2012-01-01 is a day.
AWARE = re.compile(r"[T ].*(?:Z|z|[+-][0-9]{2}(?::?[0-9]{2})?)$")
EARLIEST, LATEST = np.datetime64("1678-01-01", "us"), np.datetime64("2262-01-01", "us")

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """The panel's axes, and the cell (site * times + time) of each row of the file."""

    sites: list[str]
    times: Times
    step_hours: float
    site_of_row: Integers
    cell_of_row: Integers
    merge: str | None
    """`data.duplicates` where some cell has several rows."""

    def place(self, values: Floats, averaged: bool) -> FloatArray:
        """One value per row as (site, time), NaN where no row is.

        Of several rows of one cell the first is taken; with `mean`, their mean, or where not `averaged` the first
        observed value.
        """
        flat = np.full(len(self.sites) * len(self.times), np.nan)
        if self.merge is None:
            flat[self.cell_of_row] = values
            return self._shaped(flat)
        rows = np.arange(len(values)) if self.merge == "first" else np.flatnonzero(~np.isnan(values))
        cells, first, inverse, counts = np.unique(
            self.cell_of_row[rows], return_index=True, return_inverse=True, return_counts=True
        )
        if self.merge == "mean" and averaged:
            flat[cells] = np.bincount(inverse, weights=values[rows], minlength=len(cells)) / counts
        else:
            flat[cells] = values[rows[first]]
        return self._shaped(flat)

    def _shaped(self, flat: Floats) -> FloatArray:
        """One value per cell as (site, time)."""
        return flat.reshape(len(self.sites), len(self.times)).astype(np.float32)


def read_times(table: Table, data: DataConfig) -> Times:
    """The time of each row, in UTC.

    Raises:
        DataError: an unknown time zone, a missing or unreadable time, or a local time that does not exist or exists
            twice.
    """
    try:
        zone = zoneinfo.ZoneInfo(data.time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise DataError(
            f"data.time_zone = {data.time_zone!r}: no such zone; expected a name such as Europe/Stockholm"
        ) from error
    cells, moments = _moments(table, data)
    parsed = moments.times
    written = f"the format {data.time_format!r}" if data.time_format else "ISO 8601, such as 2024-01-31T06:00"
    bad = np.isnat(parsed) | ~((parsed > EARLIEST) & (parsed < LATEST))
    advice = "mend or remove these rows, or set data.time_format"
    _refuse_times(table, data, cells, bad, f"times in {written}, from 1678 to 2261", advice)
    local = pd.DatetimeIndex(parsed).tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
    utc = np.where(moments.aware, parsed, local.tz_convert("UTC").tz_localize(None).to_numpy())
    expected = f"times that exist once in {data.time_zone}, where clocks change"
    advice = "give times in UTC, or with an offset as in 2024-10-27T02:30+01:00"
    _refuse_times(table, data, cells, np.isnat(utc), expected, advice)
    return utc.astype("datetime64[ns]")[cells.codes]


def read_sites(table: Table, data: DataConfig) -> Cells:
    """The site of each row, sites sorted by name.

    Raises:
        DataError: a row without a site.
    """
    if data.site is None:
        return Cells([data.site_name], np.zeros(len(table.rows), dtype=np.int64))
    cells = text_cells(table, data.site, data.missing)
    lost = cells.codes < 0
    if lost.any():
        raise DataError(
            f"{table.source}: column {data.site!r} (the site) is missing in {lost.sum()} of {len(lost)} rows "
            f"({table.at(lost)}); fill it in, or remove these rows"
        )
    order = sorted(range(len(cells.values)), key=cells.values.__getitem__)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return Cells([cells.values[i] for i in order], rank[cells.codes])


def make_grid(table: Table, data: DataConfig, times: Times, sites: Cells) -> tuple[Grid, list[Finding]]:
    """The regular axis that all rows fit, and what was met in laying it out.

    Raises:
        DataError: repeated times (unless `data.duplicates` merges them), mixed steps, times off the step's grid, or an
            axis so long that some time must be wrong.
    """
    nanoseconds = times.astype(np.int64)
    findings = _unordered(nanoseconds, sites)
    # lexsort is stable, so rows of one (site, time) stay in the order of the file.
    order = np.lexsort((nanoseconds, sites.codes)).astype(np.int64)
    same_site = np.diff(sites.codes[order]) == 0
    distances = np.diff(nanoseconds[order])
    repeats = same_site & (distances == 0)
    findings += _duplicated(table, data, times, sites, order, repeats)
    within = same_site & (distances > 0)
    step = _step(table, data, distances[within], order[1:][within])
    _check_phase(table, data, times, sites, step)
    start, end = int(nanoseconds.min()), int(nanoseconds.max())
    count = (end - start) // step + 1
    if count * len(sites.values) > MOST_CELLS:
        ends = int(nanoseconds.argmin()), int(nanoseconds.argmax())
        first, last = (f"{_iso(times[i])} (row {table.rows[i]})" for i in ends)
        raise DataError(
            f"{table.source}: from {first} to {last} are {count:,} steps of {_hours(step)} for {len(sites.values)} "
            f"sites, more than {MOST_CELLS:,} cells; one of the two times is probably wrong: mend it, or set "
            "data.step_hours"
        )
    axis = (start + step * np.arange(count, dtype=np.int64)).astype("datetime64[ns]")
    cell_of_row = sites.codes * count + (nanoseconds - start) // step
    merge = data.duplicates if repeats.any() else None
    grid = Grid(sites.values, axis, step / HOUR_NS, sites.codes, cell_of_row, merge)
    return grid, findings + _gaps(grid)


@dataclass(frozen=True)
class _Moments:
    """Times as written (UTC where they carried a zone), NaT where unreadable; and which of them carried a zone."""

    times: Times
    aware: NDArray[np.bool_]


def _moments(table: Table, data: DataConfig) -> tuple[Cells, _Moments]:
    """The distinct times of the column; a missing one is a distinct value here, so that it is refused too."""
    column = table.frame[data.time]
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        index = pd.DatetimeIndex(column)
        naive = index if index.tz is None else index.tz_convert("UTC").tz_localize(None)
        codes, found = pd.factorize(naive)
        distinct = pd.DatetimeIndex(found)
        cells = Cells([str(moment) for moment in distinct], codes.astype(np.int64))
        moments = _Moments(distinct.as_unit("us").to_numpy(), np.full(len(distinct), index.tz is not None))
    else:
        cells = text_cells(table, data.time, data.missing)
        moments = _parse_times(cells.values, table.source, data.time_format)
    lost = cells.codes < 0
    if lost.any():
        cells = Cells([*cells.values, "missing"], np.where(lost, len(cells.values), cells.codes))
        moments = _Moments(np.append(moments.times, np.datetime64("NaT", "us")), np.append(moments.aware, False))
    return cells, moments


def _parse_times(texts: list[str], source: str, time_format: str | None) -> _Moments:
    """Distinct texts as times; those with a zone are parsed apart, since pandas would take the rest as UTC."""
    if time_format is None:
        aware = np.array([AWARE.search(text) is not None for text in texts], dtype=bool)
    else:
        aware = np.full(len(texts), "%z" in time_format.lower())
    times = np.full(len(texts), np.datetime64("NaT", "us"), dtype="datetime64[us]")
    for utc, which in ((True, aware), (False, ~aware)):
        chosen = pd.Index([text for text, wanted in zip(texts, which, strict=True) if wanted], dtype=str)
        try:
            index = pd.DatetimeIndex(pd.to_datetime(chosen, format=time_format or "ISO8601", errors="coerce", utc=utc))
        except ValueError as error:
            raise DataError(
                f"{source}: data.time_format = {time_format!r} is not a format of times ({error})"
            ) from error
        times[which] = (index.tz_localize(None) if utc else index).as_unit("us").to_numpy()
    return _Moments(times, aware)


def _refuse_times(
    table: Table, data: DataConfig, cells: Cells, bad: NDArray[np.bool_], expected: str, advice: str
) -> None:
    """Raise if any row holds a refused time."""
    where = np.flatnonzero(bad[cells.codes])
    if len(where):
        texts = [repr(cells.values[code]) for code in dict.fromkeys(cells.codes[where].tolist())]
        raise DataError(
            f"{table.source}: column {data.time!r}: expected {expected}; found {listed(texts, 3)} in {len(where)} of "
            f"{len(cells.codes)} rows ({table.at(where)}); {advice}"
        )


def _unordered(nanoseconds: Integers, sites: Cells) -> list[Finding]:
    """Sites whose rows go back in time; the panel has them in order, but the user should know."""
    order = np.argsort(sites.codes, kind="stable")
    site, time = sites.codes[order], nanoseconds[order]
    back = (np.diff(site) == 0) & (np.diff(time) < 0)
    counts = np.bincount(site[1:][back], minlength=len(sites.values))
    return [
        Finding(
            "unordered_times",
            "warning",
            f"{name}: {count} rows are earlier than the row before them; they were put in order",
            site=name,
            count=int(count),
        )
        for name, count in zip(sites.values, counts, strict=True)
        if count
    ]


def _duplicated(
    table: Table, data: DataConfig, times: Times, sites: Cells, order: Integers, repeated: NDArray[np.bool_]
) -> list[Finding]:
    """Rows that repeat the (site, time) of another: refused, or merged and told."""
    earlier, later = order[:-1][repeated], order[1:][repeated]
    if len(later) and data.duplicates == "error":
        cases = [
            f"{sites.values[sites.codes[b]]} at {_iso(times[b])} (rows {table.rows[a]} and {table.rows[b]})"
            for a, b in zip(earlier[:3], later[:3], strict=True)
        ]
        more = f" and {len(later) - 3} more" if len(later) > 3 else ""
        raise DataError(
            f"{table.source}: expected one row per site and time, found {len(later)} repeated: "
            f"{'; '.join(cases)}{more}; remove "
            'them, name the column of sites in data.site, or set data.duplicates to "first" or "mean"'
        )
    findings = []
    for code in np.unique(sites.codes[later]).tolist():
        rows = later[sites.codes[later] == code]
        message = (
            f"{sites.values[code]}: {len(rows)} rows repeat a time; merged by data.duplicates = {data.duplicates!r}"
        )
        first, last = _iso(times[rows].min()), _iso(times[rows].max())
        name = sites.values[code]
        findings.append(
            Finding("duplicated_times", "warning", message, site=name, first=first, last=last, count=len(rows))
        )
    return findings


def _step(table: Table, data: DataConfig, distances: Integers, later: Integers) -> int:
    """The step in nanoseconds: as configured, or the distance that divides all others and is the most common."""
    if data.step_hours is not None:
        seconds = round(data.step_hours * 3600)
        if seconds == 0:
            raise DataError(f"data.step_hours = {data.step_hours}: expected at least one second")
        return seconds * SECOND_NS
    if len(distances) == 0:
        raise DataError(f"{table.source}: no site has two times, so the step cannot be told; set data.step_hours")
    step = int(np.gcd.reduce(distances))
    values, examples, counts = np.unique(distances, return_index=True, return_counts=True)
    if values[0] == step and counts[0] == counts.max() and step % SECOND_NS == 0:
        return step
    shown = np.argsort(-counts, kind="stable")[:5]
    found = [
        f"{_hours(int(values[i]))} {counts[i]} times (first before row {table.rows[later[examples[i]]]})" for i in shown
    ]
    clocks = f", give times in UTC since clocks change in {data.time_zone}" if data.time_zone != "UTC" else ""
    raise DataError(
        f"{table.source}: mixed steps: expected one distance between times that is the most common and divides all "
        f"others into whole seconds, found {'; '.join(found)}{'; …' if len(values) > 5 else ''}; set "
        f"data.step_hours{clocks}, or "
        "mend the times"
    )


def _check_phase(table: Table, data: DataConfig, times: Times, sites: Cells, step: int) -> None:
    """All times lie a whole number of steps apart, across sites too, since a panel has one time axis."""
    _, inverse, counts = np.unique(times.astype(np.int64) % step, return_inverse=True, return_counts=True)
    off = np.flatnonzero(inverse != counts.argmax())
    if len(off) == 0:
        return
    by_site = [f"{sites.values[sites.codes[i]]} at {_iso(times[i])}" for i in off[:3]]
    main = int(np.flatnonzero(inverse == counts.argmax())[0])
    origin = "data.step_hours" if data.step_hours is not None else "the most common distance"
    raise DataError(
        f"{table.source}: expected all times a whole number of steps of {_hours(step)} ({origin}) from "
        f"{_iso(times[main])}, the same for every site; found {len(off)} off this grid: "
        f"{', '.join(by_site)}{', …' if len(off) > 3 else ''} "
        f"({table.at(off)}); mend these times, or set data.step_hours to a step that fits all"
    )


def _gaps(grid: Grid) -> list[Finding]:
    """Steps that a site skips between its own first and last time."""
    findings = []
    for code, name in enumerate(grid.sites):
        present = np.unique(grid.cell_of_row[grid.site_of_row == code]) - code * len(grid.times)
        skipped = np.diff(present) - 1
        gaps = np.flatnonzero(skipped)
        if len(gaps) == 0:
            continue
        count, longest = int(skipped.sum()), int(skipped.argmax())
        first, last = _iso(grid.times[present[gaps[0]] + 1]), _iso(grid.times[present[gaps[-1] + 1] - 1])
        message = (
            f"{name}: {count} of {present[-1] - present[0] + 1} steps are not in the table and count as missing; the "
            f"longest of {len(gaps)} gaps is {skipped[longest]} steps from {_iso(grid.times[present[longest] + 1])}"
        )
        findings.append(Finding("gaps", "info", message, site=name, first=first, last=last, count=count))
    return findings


def _iso(time: np.datetime64) -> str:
    """`2024-01-31T06:00:00`."""
    return str(np.datetime_as_string(time, unit="s"))


def _hours(nanoseconds: int) -> str:
    """A distance in hours, `12 h`."""
    return f"{nanoseconds / HOUR_NS:.6g} h"
