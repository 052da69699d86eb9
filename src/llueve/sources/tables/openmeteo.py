"""Answers of the Open-Meteo archive API: hourly weather of one or several points, times in UTC.

The form of an answer: https://open-meteo.com/en/docs/historical-weather-api. Every hourly value belongs to the end of its
hour: a sum such as precipitation covers the hour before its time.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from llueve.config import DataConfig
from llueve.errors import DataError, listed, shortened
from llueve.panel import Finding, minute
from llueve.quantities.vocabulary import OPEN_METEO
from llueve.sources.findings import finding_at
from llueve.sources.tables.columns import Floats, Times
from llueve.sources.tables.raw_table import MOST_NAME, RawTable, SiteLocation
from llueve.sources.tables.station_files import given_site_name, read_bytes, station_table

MOST_BYTES = 2**28
"""Largest answer; a century of one point in eight variables has 40 MB."""
HOURLY_SUMS = ("precipitation", "rain", "showers", "snowfall")
"""Amounts over the hour before their time."""
RESERVED = ("site", "latitude", "longitude", "elevation_m")
NO_UNIT = ("", "undefined")
START = re.compile(rb'^\s*(?:\[\s*)?\{\s*["}]')
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}")
FIRST_YEAR, LAST_YEAR = 1678, 2261
MOST_SECONDS = 9_000_000_000


@dataclass(frozen=True)
class PointSeries:
    """The hours of one point, by variable."""

    site: str | None
    """The name in a file that llueve wrote; an answer of the API has none."""
    location: SiteLocation
    times: Times
    """Times of the hours, UTC."""
    units: dict[str, str]
    values: dict[str, Floats]
    """Numbers by variable, one per time, NaN where the archive has none."""

    @property
    def name(self) -> str:
        """The site's name, or the coordinates of its cell."""
        north, east = self.location.latitude, self.location.longitude
        return self.site or f"{abs(north):.4f}{'NS'[north < 0]} {abs(east):.4f}{'EW'[east < 0]}"


def is_openmeteo(start: bytes) -> bool:
    """True if these first bytes are those of a JSON file."""
    return START.match(start) is not None


def load_openmeteo(data: DataConfig) -> tuple[RawTable, DataConfig]:
    """Read a stored answer, and the settings with which it is read.

    Raises:
        DataError: the file is not an answer of the API, or it is an answer that reports an error.
        ConfigError: `data.site`, `data.time` or the like is set, although the format has sites and times of its own.
    """
    series = parse_answer(decode_json(read_bytes(data.path, MOST_BYTES), data.path), data.path)
    names = _names(series, data)
    series, findings = without_future(series, names, data.path)
    locations = {name: point.location for name, point in zip(names, series, strict=True)}
    units = ("hourly_units", series[0].units)
    return station_table(
        data, series_frame(names, series), units, OPEN_METEO.title, 1.0, HOURLY_SUMS, findings, locations
    )


def series_frame(names: Sequence[str], series: Sequence[PointSeries]) -> pd.DataFrame:
    """The series of named points as rows: site, time, variables."""
    rows = [{"site": name, "time": point.times, **point.values} for name, point in zip(names, series, strict=True)]
    return pd.concat(map(pd.DataFrame, rows), ignore_index=True)


def decode_json(content: bytes, source: str) -> object:
    """The JSON of an answer; a broken one, a repeated key, NaN and deep nesting are refused."""
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: is not the JSON of an answer ({error}); it may be cut off: get it again") from error


def parse_answer(document: object, source: str) -> list[PointSeries]:
    """The points of a decoded answer, with the same variables in the same units; an answer that reports an error is refused."""
    points = document if isinstance(document, list) else [document]
    if not points:
        raise DataError(f"{source}: holds no point; expected an answer of the Open-Meteo archive API")
    places = [f"{source}, point {i}" for i in range(1, len(points) + 1)] if len(points) > 1 else [source]
    series = [_series(point, where) for point, where in zip(points, places, strict=True)]
    for i, point in enumerate(series[1:], start=2):
        if point.values.keys() != series[0].values.keys() or point.units != series[0].units:
            one, other = (
                listed([f"{n} [{each.units.get(n, '')}]" for n in each.values], 8) for each in (series[0], point)
            )
            raise DataError(
                f"{source}: point 1 has {one} but point {i} has {other}; expected the same variables and units: ask for all "
                "points in one call"
            )
    return series


def without_future(series: list[PointSeries], names: list[str], source: str) -> tuple[list[PointSeries], list[Finding]]:
    """The series without the last hours if they hold no value; and findings on variables without last hours.

    The archive is some days late, and answers with nulls for those days. A series without any value is refused.
    """
    kept, findings = [], []
    for name, point in zip(names, series, strict=True):
        observed = {variable: np.flatnonzero(~np.isnan(values)) for variable, values in point.values.items()}
        ends = {variable: int(hours[-1]) + 1 if len(hours) else 0 for variable, hours in observed.items()}
        count = max(ends.values())
        if count == 0:
            raise DataError(
                f"{source}: {name} holds no value in {len(point.times)} hours; the archive has none for these days or for "
                "this place: ask for others"
            )
        for variable, end in ends.items():
            if end < len(point.times):
                message = (
                    f"{name}: {variable} holds no value from {minute(point.times[end])} to {minute(point.times[-1])}: not yet in "
                    f"the archive, or never; these hours {'are left out' if end >= count else 'count as missing'}"
                )
                findings.append(finding_at("not_yet_available", "warning", message, point.times[end:], variable, name))
        cut = {variable: values[:count] for variable, values in point.values.items()}
        kept.append(replace(point, times=point.times[:count], values=cut))
    return kept, findings


def _series(point: object, where: str) -> PointSeries:
    if not isinstance(point, dict):
        raise DataError(f"{where}: expected an object with latitude, longitude and hourly, found {_kind(point)}")
    if point.get("error"):
        raise DataError(f"{where}: the API answered with an error: {str(point.get('reason', 'no reason given'))[:500]}")
    hourly, units = point.get("hourly"), point.get("hourly_units")
    if not isinstance(hourly, dict) or not isinstance(units, dict):
        found = listed(list(point), 12) or "nothing"
        raise DataError(f"{where}: expected hourly and hourly_units, found {found}; ask the API for hourly=")
    if isinstance(offset := point.get("utc_offset_seconds", 0), bool) or offset != 0:
        raise DataError(f"{where}: its times are {offset!r} seconds from UTC; ask again with timezone=GMT")
    if long := [shortened(name) for name in hourly if len(name) > MOST_NAME]:
        raise DataError(
            f"{where}: the name of a variable has more than {MOST_NAME} characters ({listed(long)}); rename it"
        )
    times = _times(hourly.get("time"), units.get("time"), where)
    values = {name: _numbers(cells, len(times), name, where) for name, cells in hourly.items() if name != "time"}
    if not values:
        raise DataError(f"{where}: hourly holds no variable beside time; ask for some with hourly=")
    if long := [shortened(name) for name in values if len(name) > MOST_NAME]:
        raise DataError(
            f"{where}: the name of a variable has more than {MOST_NAME} characters ({listed(long)}); rename it"
        )
    if reserved := [name for name in RESERVED if name in values]:
        raise DataError(f"{where}: a variable is named {listed(reserved)}, a name of the panel itself; rename it")
    if wrong := [name for name, unit in units.items() if not isinstance(unit, str)]:
        raise DataError(f"{where}: the unit of {listed(wrong)} is not text; download the answer again")
    given = {name: units[name] for name in values if units.get(name, "") not in NO_UNIT}
    name = point.get("site")
    site = name.strip() if isinstance(name, str) and name.strip() else None
    return PointSeries(site, _location(point, where), times, given, values)


def _location(point: dict[str, Any], where: str) -> SiteLocation:
    numbers: dict[str, float] = {}
    for key, least, most in (("latitude", -90.0, 90.0), ("longitude", -180.0, 360.0), ("elevation", -1000.0, 10000.0)):
        value = point.get(key)
        if key == "elevation" and value is None:
            value = math.nan
        if isinstance(value, bool) or not isinstance(value, int | float) or value < least or value > most:
            raise DataError(f"{where}: {key} is {_kind(value)}, expected a number from {least:g} to {most:g}")
        numbers[key] = float(value)
    east = numbers["longitude"]
    return SiteLocation(numbers["latitude"], east - 360 if east > 180 else east, numbers["elevation"])


def _times(cells: object, unit: object, where: str) -> Times:
    """The times of an answer: ISO 8601 to the minute, or seconds since 1970."""
    if not isinstance(cells, list) or not cells:
        raise DataError(f"{where}: hourly.time is {_kind(cells)}, expected a list of times")
    if unit == "unixtime":
        wrong = [cell for cell in cells if type(cell) is not int or abs(cell) > MOST_SECONDS]
        if wrong:
            raise DataError(f"{where}: hourly.time holds {_kind(wrong[0])}, expected seconds since 1970")
        return np.array(cells, dtype="datetime64[s]").astype("datetime64[ns]")
    wrong = [cell for cell in cells if not isinstance(cell, str) or TIME.fullmatch(cell) is None]
    wrong = wrong or [cell for cell in cells if not FIRST_YEAR <= int(cell[:4]) <= LAST_YEAR]
    try:
        if wrong:
            raise ValueError(f"found {_kind(wrong[0])} in {len(wrong)} of {len(cells)}")
        return np.array(cells, dtype="datetime64[m]").astype("datetime64[ns]")
    except ValueError as error:
        expected = "expected times such as 2024-01-31T06:00"
        raise DataError(f"{where}: hourly.time: {expected}, {error}; download it again") from error


def _numbers(cells: object, count: int, name: str, where: str) -> Floats:
    """The values of one variable, null as NaN."""
    if not isinstance(cells, list) or len(cells) != count:
        raise DataError(f"{where}: hourly.{name}: expected one number per time ({count}), found {_kind(cells)}")
    others = {type(cell) for cell in cells} - {int, float, type(None)}
    if others:
        at = next(i for i, cell in enumerate(cells) if type(cell) in others)
        raise DataError(f"{where}: hourly.{name}: expected numbers, found {_kind(cells[at])} at position {at + 1}")
    try:
        return np.array(cells, dtype=np.float64)
    except OverflowError as error:
        raise DataError(f"{where}: hourly.{name}: a number is too large ({error}); download it again") from error


def _names(series: list[PointSeries], data: DataConfig) -> list[str]:
    given = given_site_name(data, len(series), "points")
    if len(series) == 1:
        return [given or series[0].site or data.site_name]
    names = [point.name for point in series]
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DataError(f"{data.path}: several points are in the same cell, {listed(twice)}; keep one of them")
    return names


def _kind(value: object) -> str:
    """A JSON value, short enough for a message."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= 10**40:  # Python refuses to write 4,300 digits
        return "an integer of more than 40 digits"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
