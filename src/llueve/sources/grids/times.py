"""Times of gridded files: read as seconds since 1970 UTC, and joined into the one regular axis of a panel."""

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from llueve.config import DataConfig
from llueve.errors import DataError, listed
from llueve.panel import Finding
from llueve.sources.findings import finding_at, time_text

HOUR = 3600
MOST_CELLS = 50_000_000
"""Most cells of a panel: sites times times."""
EARLIEST, LATEST = -2_208_988_800, 4_102_444_800
"""Seconds from 1970 to 1900 and to 2100; ERA5 begins in 1940, and some stores have empty times before it."""
SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
TIME_UNITS = re.compile(
    r"\s*(second|minute|hour|day)s? since (\d{4}-\d{1,2}-\d{1,2})"
    r"[T ]?(\d{1,2}:\d{2}(?::\d{2})?)?(?:\.0*)?\s*(?:Z|UTC|\+00:?00)?\s*"
)
CALENDARS = ("standard", "gregorian", "proleptic_gregorian")

Floats = NDArray[np.float64]
Seconds = NDArray[np.int64]


def shown(second: int | np.int64) -> str:
    """A time in seconds since 1970 as messages show it: `2022-01-02 07:00`."""
    return time_text(np.datetime64(int(second), "s"))


def read_seconds(label: str, time: xr.DataArray) -> Seconds:
    """Read the times of a file, within 1900 … 2100, as whole seconds since 1970."""
    values = np.atleast_1d(time.values)
    where = f"{label}: {time.name}"
    units, calendar = str(time.attrs.get("units", "")), str(time.attrs.get("calendar", "standard")).lower()
    if values.dtype.kind not in "iuf" or time.ndim > 1 or not np.isfinite(values).all():
        raise DataError(f"{where}: expected numbers since a date, found {values.dtype} in {units!r}")
    match = TIME_UNITS.fullmatch(units)
    if match is not None and calendar in CALENDARS:
        clock = match[3] or "00:00"
        year, month, day = match[2].split("-")
        try:
            origin = np.datetime64(f"{year}-{month:0>2}-{day:0>2}T{clock:0>5}", "s").astype(np.int64)
        except ValueError as error:
            raise DataError(f"{where}: its unit {units!r} has no valid date") from error
        exact = values.astype(np.float64) * SECONDS[match[1]] + float(origin)
    elif time.name == "date" and values.dtype.kind in "iu":  # the transitional layout: 20240131
        try:
            days = [np.datetime64(f"{v // 10000:04}-{v // 100 % 100:02}-{v % 100:02}", "s") for v in values.tolist()]
        except ValueError as error:
            raise DataError(f"{where}: expected days such as 20240131, found {values.max()}") from error
        exact = np.array(days, dtype="datetime64[s]").astype(np.float64)
    else:
        raise DataError(f"{where}: expected a unit as 'hours since 1900-01-01', found {units!r} ({calendar} calendar)")
    if len(exact) == 0 or exact.min() < EARLIEST or exact.max() >= LATEST:
        found = "none" if len(exact) == 0 else f"{exact.min():.0f} to {exact.max():.0f} seconds from 1970"
        raise DataError(f"{where}: expected times from 1900 to 2100, found {found}; it is damaged")
    return np.rint(exact).astype(np.int64)


def increasing_parts(seconds: Seconds) -> list[NDArray[np.int64] | slice]:
    """Positions of strictly increasing times: one part with all, or one per repetition of a time."""
    if (np.diff(seconds) > 0).all():
        return [slice(None)]
    order = np.argsort(seconds, kind="stable").astype(np.int64)
    rank = pd.Series(order).groupby(seconds[order]).cumcount().to_numpy()
    return [order[rank == k] for k in range(int(rank.max()) + 1)]


def regular_axis(data: DataConfig, times_of: Mapping[str, Seconds]) -> tuple[Seconds, int]:
    """The regular times of the panel from those of each variable, from `data.start` to `data.end`, and their step in seconds."""
    every = np.unique(np.concatenate(list(times_of.values())))
    span = f"{shown(every[0])} to {shown(every[-1])}"
    for bound, keep in ((data.start, np.greater_equal), (data.end, np.less)):
        if bound is not None:
            every = every[keep(every, np.datetime64(bound, "s").astype(np.int64))]
    if len(every) == 0:
        raise DataError(f"{data.path}: no time from data.start to data.end; the files hold {span}")
    steps, counts = np.unique(np.diff(every), return_counts=True)
    if data.step_hours is not None:
        step = round(data.step_hours * HOUR)
        if step == 0:
            raise DataError(f"{data.path}: data.step_hours = {data.step_hours:g}: expected at least a second, 1 / 3600")
        off = np.flatnonzero((every - every[0]) % step)
        if len(off):
            raise DataError(
                f"{data.path}: data.step_hours = {data.step_hours:g}, but {len(off)} of {len(every)} times are off that step, "
                f"first {shown(every[off[0]])}"
            )
    elif len(steps) == 0:
        raise DataError(f"{data.path}: only one time, {span}, so the step is unknown; set data.step_hours")
    else:
        step = int(np.gcd.reduce(steps))
        if steps[0] != step or 2 * counts[0] < counts.sum():
            found = [f"{steps[i] / HOUR:g} h {counts[i]} times" for i in np.argsort(-counts, kind="stable")[:5]]
            raise DataError(
                f"{data.path}: expected one step between times, found {', '.join(found)}; a model of the next hours needs every "
                "step: download all of them, read files of different steps separately, or set data.step_hours to read gaps as "
                "missing"
            )
    count = int(every[-1] - every[0]) // step + 1
    return every[0] + step * np.arange(min(count, MOST_CELLS + 1), dtype=np.int64), step


def time_findings(times_of: Mapping[str, Seconds], axis: Seconds, step: int) -> list[Finding]:
    """Findings on steps (in seconds) of the panel that no file has, and on times that some variables lack."""
    findings = []
    times_of = {name: times[(times >= axis[0]) & (times <= axis[-1])] for name, times in times_of.items()}
    every = np.unique(np.concatenate(list(times_of.values())))
    absent = np.setdiff1d(axis, every)
    if len(absent):
        message = f"{len(absent)} of {len(axis)} steps of {step / HOUR:g} h are in no file and count as missing"
        findings.append(finding_at("gaps", "info", message, absent))
    alike: dict[bytes, list[str]] = {}
    for name, times in times_of.items():
        alike.setdefault(np.setdiff1d(every, times).tobytes(), []).append(name)
    for content, names in alike.items():  # one finding for all variables that lack the same times
        lacking = np.frombuffer(content, np.int64)
        if len(lacking):
            message = (
                f"{listed(names, 40)}: in the files at {len(every) - len(lacking)} of {len(every)} times that other variables "
                "have; missing at the others (download the same times, or leave them out with data.exclude)"
            )
            only = names[0] if len(names) == 1 else None
            findings.append(finding_at("different_times", "warning", message, lacking, only))
    return findings
