"""Place the rows of a table on one regular time axis: the cell of the panel that each row fills."""

import re
import zoneinfo
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llueve.config import DataConfig
from llueve.errors import DataError, listed, shortened
from llueve.panel import Finding, FloatArray
from llueve.sources.findings import finding_at, time_text
from llueve.sources.tables.columns import Floats, TextColumn, Times, refuse_texts, text_column
from llueve.sources.tables.raw_table import MOST_NAME, RawTable

MOST_CELLS = 50_000_000
SECOND_NS = 1_000_000_000
HOUR_NS = 3600 * SECOND_NS
# A time zone can only follow a time of day: the `-01` that ends 2012-01-01 is a day.
WITH_ZONE = re.compile(r"[T ].*(?:Z|z|[+-][0-9]{2}(?::?[0-9]{2})?)$")
EARLIEST, LATEST = np.datetime64("1678-01-01", "us"), np.datetime64("2262-01-01", "us")

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class PanelAxes:
    """The sites and times of the panel, and the cell (site * times + time) of each row of the file."""

    sites: list[str]
    times: Times
    step_hours: float
    site_of_row: Integers
    cell_of_row: Integers
    merge: str | None
    """`data.duplicates` if some cell has several rows."""

    def place(self, values: Floats, averaged: bool) -> FloatArray:
        """One value per row as (site, time), NaN without a row.

        Of several rows of one cell, `first` takes the first. `mean` takes their mean if `averaged`, else the first
        observed value.
        """
        flat = np.full(len(self.sites) * len(self.times), np.nan)
        if self.merge is None:
            flat[self.cell_of_row] = values
            return flat.reshape(len(self.sites), -1).astype(np.float32)
        rows = np.arange(len(values)) if self.merge == "first" else np.flatnonzero(~np.isnan(values))
        cells, first, inverse, counts = np.unique(
            self.cell_of_row[rows], return_index=True, return_inverse=True, return_counts=True
        )
        if self.merge == "mean" and averaged:
            flat[cells] = np.bincount(inverse, weights=values[rows], minlength=len(cells)) / counts
        else:
            flat[cells] = values[rows[first]]
        return flat.reshape(len(self.sites), -1).astype(np.float32)

    def recorded(self) -> NDArray[np.bool_]:
        """True (site, time) where the file has a row."""
        has_row = np.zeros((len(self.sites), len(self.times)), dtype=np.bool_)
        has_row.flat[self.cell_of_row] = True
        return has_row


def read_times(table: RawTable, data: DataConfig) -> Times:
    """The time of each row, in UTC.

    Raises:
        DataError: an unknown time zone, a missing or unreadable time, or a local time that does not exist or exists
            twice.
    """
    try:
        zone = zoneinfo.ZoneInfo(data.time_zone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise DataError(
            f"data.time_zone = {data.time_zone!r}: unknown zone; expected one such as Europe/Stockholm"
        ) from error
    column, parsed, with_zone = _distinct_times(table, data)
    form = f"the format {data.time_format!r}" if data.time_format else "ISO 8601, such as 2024-01-31T06:00"
    bad = np.isnat(parsed) | ~((parsed > EARLIEST) & (parsed < LATEST))
    advice = "correct or remove these rows, or set data.time_format"
    refuse_texts(table, data.time, column, bad, f"expected times in {form}, from 1678 to 2261", advice)
    local = pd.DatetimeIndex(parsed).tz_localize(zone, ambiguous="NaT", nonexistent="NaT")
    utc = np.where(with_zone, parsed, local.tz_convert("UTC").tz_localize(None).to_numpy())
    expected = f"expected times that exist once in {data.time_zone}, where clocks change"
    advice = "give times in UTC, or with an offset as in 2024-10-27T02:30+01:00"
    refuse_texts(table, data.time, column, np.isnat(utc), expected, advice)
    return utc.astype("datetime64[ns]")[column.codes]


def read_sites(table: RawTable, data: DataConfig) -> TextColumn:
    """The site of each row, sites sorted by name; a row without a site is refused."""
    if data.site is None:
        return TextColumn([data.site_name], np.zeros(len(table.rows), dtype=np.int64))
    column = text_column(table, data.site, data.missing)
    if (missing := column.codes < 0).any():
        raise DataError(
            f"{table.source}: column {data.site!r} (the site) is missing in {missing.sum()} of {len(missing)} rows "
            f"({table.at(missing)}); fill it in, or remove these rows"
        )
    if long := [shortened(name) for name in column.values if len(name) > MOST_NAME]:
        raise DataError(
            f"{table.source}: column {data.site!r} (the site): expected names of at most {MOST_NAME} characters, found "
            f"{listed(long, 3)}; shorten them"
        )
    rank = {name: i for i, name in enumerate(sorted(column.values))}
    return TextColumn(list(rank), np.array([rank[name] for name in column.values], dtype=np.int64)[column.codes])


def panel_axes(table: RawTable, data: DataConfig, times: Times, sites: TextColumn) -> tuple[PanelAxes, list[Finding]]:
    """The regular axes that all rows fit, from the time (UTC) and site of each row; and findings on the times.

    Raises:
        DataError: repeated times (unless `data.duplicates` merges them), mixed steps, times that are not a whole number of
            steps apart, or so long an axis that some time must be wrong.
    """
    nanoseconds = times.astype(np.int64)
    findings = _unordered(nanoseconds, sites)
    # lexsort is stable: rows of one (site, time) stay in the order of the file.
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
        first, last = (f"{time_text(times[i])} (row {table.rows[i]})" for i in ends)
        raise DataError(
            f"{table.source}: from {first} to {last} are {count:,} steps of {_hours(step)} for {len(sites.values)} sites, more "
            f"than {MOST_CELLS:,} cells; one of the two times is probably wrong: correct it, or set data.step_hours"
        )
    axis = (start + step * np.arange(count, dtype=np.int64)).astype("datetime64[ns]")
    cell_of_row = sites.codes * count + (nanoseconds - start) // step
    merge = data.duplicates if repeats.any() else None
    axes = PanelAxes(sites.values, axis, step / HOUR_NS, sites.codes, cell_of_row, merge)
    return axes, findings + _gaps(axes)


def _distinct_times(table: RawTable, data: DataConfig) -> tuple[TextColumn, Times, NDArray[np.bool_]]:
    """The distinct times of the column as texts, as times, and True for those with a zone.

    Times with a zone are in UTC, others in the configured zone; NaT is unreadable. `missing` is one of the texts, so that it
    is refused too.
    """
    column = table.frame[data.time]
    if pd.api.types.is_datetime64_any_dtype(column.dtype):
        index = pd.DatetimeIndex(column)
        codes, found = pd.factorize(index if index.tz is None else index.tz_convert("UTC").tz_localize(None))
        distinct = pd.DatetimeIndex(found)
        texts = TextColumn([str(time) for time in distinct], codes.astype(np.int64))
        times, with_zone = distinct.as_unit("us").to_numpy(), np.full(len(distinct), index.tz is not None)
    else:
        texts = text_column(table, data.time, data.missing)
        times, with_zone = _parse_times(texts.values, table.source, data.time_format)
    if (missing := texts.codes < 0).any():
        texts = TextColumn([*texts.values, "missing"], np.where(missing, len(texts.values), texts.codes))
        times, with_zone = np.append(times, np.datetime64("NaT", "us")), np.append(with_zone, False)
    return texts, times, with_zone


def _parse_times(texts: list[str], source: str, time_format: str | None) -> tuple[Times, NDArray[np.bool_]]:
    """Parse distinct texts, those with a zone separately, because pandas would read the others as UTC."""
    if time_format is None:
        with_zone = np.array([WITH_ZONE.search(text) is not None for text in texts], dtype=bool)
    else:
        with_zone = np.full(len(texts), "%z" in time_format.lower())
    times = np.full(len(texts), np.datetime64("NaT", "us"), dtype="datetime64[us]")
    for utc, chosen in ((True, with_zone), (False, ~with_zone)):
        part = pd.Index([text for text, wanted in zip(texts, chosen, strict=True) if wanted], dtype=str)
        try:
            index = pd.DatetimeIndex(pd.to_datetime(part, format=time_format or "ISO8601", errors="coerce", utc=utc))
        except ValueError as error:
            raise DataError(f"{source}: data.time_format = {time_format!r} is not a time format ({error})") from error
        times[chosen] = (index.tz_localize(None) if utc else index).as_unit("us").to_numpy()
    return times, with_zone


def _unordered(nanoseconds: Integers, sites: TextColumn) -> list[Finding]:
    """Findings on sites with rows that are not in order of time; the panel is in order."""
    order = np.argsort(sites.codes, kind="stable")
    site, time = sites.codes[order], nanoseconds[order]
    back = (np.diff(site) == 0) & (np.diff(time) < 0)
    findings = []
    for code, count in zip(*(each.tolist() for each in np.unique(site[1:][back], return_counts=True)), strict=True):
        name = sites.values[code]
        message = f"{name}: {count} rows are earlier than the row before them; they were put in order"
        findings.append(Finding("unordered_times", "warning", message, site=name, count=count))
    return findings


def _duplicated(
    table: RawTable, data: DataConfig, times: Times, sites: TextColumn, order: Integers, repeated: NDArray[np.bool_]
) -> list[Finding]:
    """Findings on rows that repeat the (site, time) of another row, if `data.duplicates` merges them."""
    earlier, later = order[:-1][repeated], order[1:][repeated]
    if len(later) and data.duplicates == "error":
        cases = [
            f"{sites.values[sites.codes[b]]} at {time_text(times[b])} (rows {table.rows[a]} and {table.rows[b]})"
            for a, b in zip(earlier[:3], later[:3], strict=True)
        ]
        more = f" and {len(later) - 3} more" if len(later) > 3 else ""
        raise DataError(
            f"{table.source}: expected one row per site and time, found {len(later)} repeated: {'; '.join(cases)}{more}; remove "
            'them, name the column of sites in data.site, or set data.duplicates to "first" or "mean"'
        )
    findings = []
    # `later` is ordered by site.
    codes, starts = np.unique(sites.codes[later], return_index=True)
    for code, rows in zip(codes.tolist(), np.split(later, starts[1:]), strict=True) if len(later) else ():
        name = sites.values[code]
        message = f"{name}: {len(rows)} rows repeat a time; merged by data.duplicates = {data.duplicates!r}"
        findings.append(finding_at("duplicated_times", "warning", message, times[rows], site=name))
    return findings


def _step(table: RawTable, data: DataConfig, distances: Integers, later: Integers) -> int:
    """The step in nanoseconds: as configured, or the distance that divides all others and is the most common."""
    if data.step_hours is not None:
        seconds = round(data.step_hours * 3600)
        if seconds == 0:
            raise DataError(f"data.step_hours = {data.step_hours}: expected at least one second")
        return seconds * SECOND_NS
    if len(distances) == 0:
        raise DataError(f"{table.source}: no site has two times, so the step is unknown; set data.step_hours")
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
        f"data.step_hours{clocks}, or correct the times"
    )


def _check_phase(table: RawTable, data: DataConfig, times: Times, sites: TextColumn, step: int) -> None:
    """Refuse times that are not a whole number of steps apart, across sites too: a panel has one time axis."""
    _, inverse, counts = np.unique(times.astype(np.int64) % step, return_inverse=True, return_counts=True)
    off = np.flatnonzero(inverse != counts.argmax())
    if len(off) == 0:
        return
    by_site = [f"{sites.values[sites.codes[i]]} at {time_text(times[i])}" for i in off[:3]]
    main = int((inverse == counts.argmax()).argmax())
    origin = "data.step_hours" if data.step_hours is not None else "the most common distance"
    raise DataError(
        f"{table.source}: expected all times a whole number of steps of {_hours(step)} ({origin}) from {time_text(times[main])}, "
        f"the same for every site; found {len(off)} off this grid: {', '.join(by_site)}{', …' if len(off) > 3 else ''} "
        f"({table.at(off)}); correct these times, or set data.step_hours to a step that fits all"
    )


def _gaps(axes: PanelAxes) -> list[Finding]:
    """Findings on steps that a site skips between its own first and last time."""
    findings = []
    cells, count = np.unique(axes.cell_of_row), len(axes.times)
    first = np.searchsorted(cells, count * np.arange(len(axes.sites)))
    for code, (name, here) in enumerate(zip(axes.sites, np.split(cells, first[1:]), strict=True)):
        present = here - code * count
        skipped = np.diff(present) - 1
        if (gaps := np.count_nonzero(skipped)) == 0:
            continue
        absent = np.setdiff1d(np.arange(present[0], present[-1]), present)
        longest = int(skipped.argmax())
        message = (
            f"{name}: {len(absent)} of {present[-1] - present[0] + 1} steps are not in the table and count as missing; the "
            f"longest of {gaps} gaps is {skipped[longest]} steps from {time_text(axes.times[present[longest] + 1])}"
        )
        findings.append(finding_at("gaps", "info", message, axes.times[absent], site=name))
    return findings


def _hours(nanoseconds: int) -> str:
    return f"{nanoseconds / HOUR_NS:.6g} h"
