"""Answers of the Open-Meteo archive API as rows: hourly weather of one point or several, times in UTC.

The shape of an answer: https://open-meteo.com/en/docs/historical-weather-api. Every hourly value holds at the end of its
hour: sums such as precipitation cover the hour before the time that they stand at.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from llueve.config import DataConfig
from llueve.errors import DataError, listed
from llueve.panel import Finding
from llueve.sources.columns import Floats, Times
from llueve.sources.files import Table, agreed_unit, located
from llueve.sources.rows import Place, Rows, own_columns, read_bytes

MOST_BYTES = 2**28
"""A century of one point in eight variables has 40 MB."""
HOURLY_SUMS = ("precipitation", "rain", "showers", "snowfall")
"""Amounts over the hour before their time."""
TAKEN = ("site", "latitude", "longitude", "elevation_m")
NO_UNIT = ("", "undefined")
START = re.compile(rb'^\s*(?:\[\s*)?\{\s*["}]')
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}")
FIRST_YEAR, LAST_YEAR = 1678, 2261
MOST_SECONDS = 9_000_000_000


@dataclass(frozen=True)
class Series:
    """One point of an answer: N hours by variable."""

    site: str | None
    """The name that llueve wrote into the answer, if it did; the API knows none."""
    place: Place
    times: Times
    """N times, UTC."""
    units: dict[str, str]
    values: dict[str, Floats]
    """By variable, N numbers, NaN where the archive holds none."""

    @property
    def name(self) -> str:
        """The site's name, or the coordinates of its cell."""
        north, east = self.place.latitude, self.place.longitude
        return self.site or f"{abs(north):.4f}{'NS'[north < 0]} {abs(east):.4f}{'EW'[east < 0]}"


def is_openmeteo(start: bytes) -> bool:
    """Whether a file that begins so is JSON, which no table does."""
    return START.match(start) is not None


def load_openmeteo(data: DataConfig) -> Rows:
    """Read a recorded answer.

    Raises:
        DataError: it is no answer of the API, or one that tells an error.
        ConfigError: `data.site`, `data.time` or the like is set: the format itself has them.
    """
    with located(data.path) as path:
        content = read_bytes(path, data.path, MOST_BYTES)
    series = parse_answer(decode_json(content, data.path), data.path)
    names = _names(series, data)
    series, findings = without_future(series, names, data.path)
    frame = pd.concat(
        [
            pd.DataFrame({"site": name, "time": one.times, **one.values})
            for name, one in zip(names, series, strict=True)
        ],
        ignore_index=True,
    )
    frame["site"] = frame["site"].astype("str")
    told = {"hourly_units": series[0].units, "data.units": data.units}
    units = {name: unit for name in series[0].values if (unit := agreed_unit(name, told, data.path))}
    table = Table(data.path, frame, np.arange(1, len(frame) + 1), units)
    places = {name: one.place for name, one in zip(names, series, strict=True)}
    settings = own_columns(data, 1.0, {name: 1.0 for name in HOURLY_SUMS if name in frame})
    return Rows(table, settings, tuple(findings), places)


def decode_json(content: bytes, source: str) -> object:
    """The JSON of an answer; a key twice, NaN and nesting without end are refused, as the format has none.

    Raises:
        DataError: it is not JSON, as when the connection broke in the middle.
    """
    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{source}: is not the JSON of an Open-Meteo answer ({error}); it may be cut off: get it again"
        ) from error


def parse_answer(document: object, source: str) -> list[Series]:
    """The points of an answer, each with the same variables in the same units.

    Raises:
        DataError: the answer tells an error, or is not what the API gives for `hourly=`; the message says where.
    """
    points = document if isinstance(document, list) else [document]
    if not points:
        raise DataError(f"{source}: holds no point; expected an answer of the Open-Meteo archive API")
    series = [
        _series(point, source if len(points) == 1 else f"{source}, point {i}") for i, point in enumerate(points, 1)
    ]
    for i, one in enumerate(series[1:], start=2):
        if one.values.keys() != series[0].values.keys() or one.units != series[0].units:
            raise DataError(
                f"{source}: point 1 has {_shown(series[0])} but point {i} has {_shown(one)}; expected the same variables and "
                "units: ask for all points in one call"
            )
    return series


def without_future(series: list[Series], names: list[str], source: str) -> tuple[list[Series], list[Finding]]:
    """The series without the hours at their end that hold nothing yet, and what was so left out or ends earlier.

    The archive is some days late, and answers for those days with nulls.

    Raises:
        DataError: a series holds no value at all.
    """
    kept, findings = [], []
    for name, one in zip(names, series, strict=True):
        ends = {variable: _end(values) for variable, values in one.values.items()}
        count = max(ends.values())
        if count == 0:
            raise DataError(
                f"{source}: {name} holds no value in {len(one.times)} hours; the archive has none for these days, or not "
                "for this place: ask for others"
            )
        for variable, end in ends.items():
            if end < len(one.times):
                first, last = (
                    f"{moment}:00" for moment in (one.times[end].astype("M8[m]"), one.times[-1].astype("M8[m]"))
                )
                message = (
                    f"{name}: {variable} holds nothing from {first} to {last}: not yet in the archive, or never; these hours "
                    + ("are left out" if end >= count else "count as missing")
                )
                total = len(one.times) - end
                findings.append(Finding("not_yet_available", "warning", message, variable, name, first, last, total))
        cut = {variable: values[:count] for variable, values in one.values.items()}
        kept.append(Series(one.site, one.place, one.times[:count], one.units, cut))
    return kept, findings


def _series(point: object, where: str) -> Series:
    """One point."""
    if not isinstance(point, dict):
        raise DataError(f"{where}: expected an object with latitude, longitude and hourly, found {_kind(point)}")
    if point.get("error"):
        raise DataError(f"{where}: the API answered with an error: {point.get('reason', 'no reason given')}")
    hourly, units = point.get("hourly"), point.get("hourly_units")
    if not isinstance(hourly, dict) or not isinstance(units, dict):
        found = listed(list(point), 12) or "nothing"
        raise DataError(
            f"{where}: expected hourly and hourly_units, found {found}; ask the archive API for hourly= variables"
        )
    offset = point.get("utc_offset_seconds", 0)
    if isinstance(offset, bool) or offset != 0:
        raise DataError(f"{where}: its times are {offset!r} seconds from UTC; ask again with timezone=GMT")
    times = _times(hourly.get("time"), units.get("time"), where)
    values = {name: _numbers(cells, len(times), name, where) for name, cells in hourly.items() if name != "time"}
    if not values:
        raise DataError(f"{where}: hourly holds no variable beside time; ask for some with hourly=")
    taken = [name for name in TAKEN if name in values]
    if taken:
        raise DataError(f"{where}: a variable is named {listed(taken)}, which the panel needs for itself; rename it")
    wrong = [name for name, unit in units.items() if not isinstance(unit, str)]
    if wrong:
        raise DataError(f"{where}: the unit of {listed(wrong)} is no text; get the answer again")
    told = {name: units[name] for name in values if units.get(name, "") not in NO_UNIT}
    name = point.get("site")
    site = name.strip() if isinstance(name, str) and name.strip() else None
    return Series(site, _place(point, where), times, told, values)


def _place(point: dict[str, Any], where: str) -> Place:
    """Coordinates of the cell that the archive chose."""
    numbers: dict[str, float] = {}
    for key, least, most in (("latitude", -90.0, 90.0), ("longitude", -180.0, 360.0), ("elevation", -1000.0, 10000.0)):
        value = point.get(key)
        if key == "elevation" and value is None:
            value = math.nan
        if isinstance(value, bool) or not isinstance(value, int | float) or value < least or value > most:
            raise DataError(f"{where}: {key} is {_kind(value)}, expected a number from {least:g} to {most:g}")
        numbers[key] = float(value)
    east = numbers["longitude"]
    return Place(numbers["latitude"], east - 360 if east > 180 else east, numbers["elevation"])


def _times(cells: object, unit: object, where: str) -> Times:
    """The times of an answer, ISO 8601 to the minute or seconds since 1970."""
    if not isinstance(cells, list) or not cells:
        raise DataError(f"{where}: hourly.time is {_kind(cells)}, expected a list of times")
    if unit == "unixtime":
        wrong = [cell for cell in cells if type(cell) is not int or abs(cell) > MOST_SECONDS]
        if wrong:
            raise DataError(f"{where}: hourly.time holds {_kind(wrong[0])}, expected seconds since 1970")
        return np.array(cells, dtype="datetime64[s]").astype("datetime64[ns]")
    wrong = [cell for cell in cells if not isinstance(cell, str) or TIME.fullmatch(cell) is None]
    if not wrong:
        wrong = [cell for cell in cells if not FIRST_YEAR <= int(cell[:4]) <= LAST_YEAR]
    try:
        if not wrong:
            return np.array(cells, dtype="datetime64[m]").astype("datetime64[ns]")
        reason = f"found {_kind(wrong[0])} in {len(wrong)} of {len(cells)}"
    except ValueError as error:
        reason = str(error)
    raise DataError(f"{where}: hourly.time: expected times such as 2024-01-31T06:00, {reason}; get the answer again")


def _numbers(cells: object, count: int, name: str, where: str) -> Floats:
    """The values of one variable, null as NaN."""
    if not isinstance(cells, list) or len(cells) != count:
        found = f"a list of {len(cells)}" if isinstance(cells, list) else _kind(cells)
        raise DataError(f"{where}: hourly.{name}: expected one number per time ({count}), found {found}; get it again")
    others = {type(cell) for cell in cells} - {int, float, type(None)}
    if others:
        at = next(i for i, cell in enumerate(cells) if type(cell) in others)
        raise DataError(
            f"{where}: hourly.{name}: expected numbers or null, found {_kind(cells[at])} at position {at + 1}"
        )
    try:
        return np.array(cells, dtype=np.float64)
    except OverflowError as error:
        raise DataError(f"{where}: hourly.{name}: holds a number that is too large ({error}); get it again") from error


def _names(series: list[Series], data: DataConfig) -> list[str]:
    """One name per point; a single point may be named by `data.site_name`."""
    given = data.site_name if data.site_name != DataConfig.model_fields["site_name"].default else None
    if len(series) == 1:
        return [given or series[0].site or data.site_name]
    if given is not None:
        raise DataError(
            f"{data.path}: holds {len(series)} points, which data.site_name = {given!r} cannot name; take it out"
        )
    names = [one.name for one in series]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{data.path}: several points are {listed(twice)}: the same cell of the archive, so the same series; keep one"
        )
    return names


def _end(values: Floats) -> int:
    """Number of hours up to the last observed one."""
    observed = np.flatnonzero(~np.isnan(values))
    return int(observed[-1]) + 1 if len(observed) else 0


def _shown(series: Series) -> str:
    return listed([f"{name} [{series.units.get(name, '')}]" for name in series.values], 8)


def _kind(value: object) -> str:
    """A value of JSON, short enough for a message."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = "null" if value is None else json.dumps(value) if isinstance(value, str | bool | float) else _integer(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _integer(value: object) -> str:
    """An integer as text; Python writes none of more than 4,300 digits."""
    return str(value) if isinstance(value, int) and abs(value) < 10**40 else "an integer of more than 40 digits"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are told once."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
