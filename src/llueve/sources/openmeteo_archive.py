"""Downloading from the Open-Meteo archive API, year by year: several points in one call, an interrupted one continued.

What arrives is checked against what was asked before it is kept, and joined at the end. Data: CC BY 4.0.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import requests
from rich.console import Console

from llueve.errors import DataError, UsageError, listed
from llueve.panel import Finding
from llueve.sources.download import Bar, Patience, fetch, write_whole
from llueve.sources.openmeteo import MOST_BYTES, Series, decode_json, parse_answer, without_future

URL = "https://archive-api.open-meteo.com/v1/archive"
MODEL = "era5"
"""One reanalysis throughout. `best_match` is finer in recent years, but what it is made of changes with the years."""
VARIABLES = (
    "precipitation",
    "temperature_2m",
    "relative_humidity_2m",
    "dew_point_2m",
    "pressure_msl",
    "cloud_cover",
    "wind_speed_10m",
    "wind_direction_10m",
)
FIRST_DAY = date(1940, 1, 1)
MOST_POINTS = 100
MOST_DISTANCE_DEGREES = 1.0
"""From the point to the centre of its cell: four cells of ERA5, since near a coast the archive looks for land."""
HOUR = np.timedelta64(1, "h")


@dataclass(frozen=True)
class Request:
    """What is wanted: points × variables, from the first hour of `start` to the last of `end`, UTC."""

    latitudes: tuple[float, ...]
    longitudes: tuple[float, ...]
    start: date
    end: date
    sites: tuple[str, ...] = ()
    """Names of the points; their cells' coordinates without them."""
    variables: tuple[str, ...] = VARIABLES
    model: str = MODEL
    url: str = URL

    def __post_init__(self) -> None:
        today = datetime.now(UTC).date()
        points = len(self.latitudes)
        refused = {
            f"{points} latitudes and {len(self.longitudes)} longitudes: expected one of each per point": points
            != len(self.longitudes),
            f"{points} points: expected 1 to {MOST_POINTS} in one call": not 1 <= points <= MOST_POINTS,
            "latitudes lie within -90 … 90": not all(abs(value) <= 90 for value in self.latitudes),
            "longitudes lie within -180 … 180": not all(abs(value) <= 180 for value in self.longitudes),
            f"--start {self.start}: the archive begins on {FIRST_DAY}": self.start < FIRST_DAY,
            f"--end {self.end}: expected a day from --start {self.start} on": self.end < self.start,
            f"--end {self.end}: expected a day that is over, so before {today}": self.end >= today,
            f"{len(self.sites)} names for {points} points: expected one --site per point": len(self.sites)
            not in (0, points),
            f"--site {listed(self.sites)}: expected different names, none of them blank": len(set(self.sites))
            != len(self.sites)
            or not all(name.strip() for name in self.sites),
            f"--variables {listed(self.variables)}: expected different names": not self.variables
            or len(set(self.variables)) != len(self.variables),
            f"--model {self.model}: expected one model": "," in self.model,
            f"--url {self.url}: expected an address such as {URL}": not _is_address(self.url),
        }
        for message, wrong in refused.items():
            if wrong:
                raise UsageError(message)

    def years(self) -> Iterator[tuple[date, date]]:
        """The first and last day wanted of each year."""
        for year in range(self.start.year, self.end.year + 1):
            yield max(self.start, date(year, 1, 1)), min(self.end, date(year, 12, 31))

    def query(self, first: date, last: date) -> dict[str, str]:
        """The query of one part."""
        return {
            "latitude": ",".join(map(str, self.latitudes)),
            "longitude": ",".join(map(str, self.longitudes)),
            "start_date": first.isoformat(),
            "end_date": last.isoformat(),
            "hourly": ",".join(self.variables),
            "models": self.model,
            "wind_speed_unit": "ms",
            "timezone": "GMT",
        }


@dataclass(frozen=True)
class Archive:
    """What was downloaded."""

    names: list[str]
    series: list[Series]
    findings: list[Finding]


def download(request: Request, parts: Path, console: Console, patience: Patience | None = None) -> Archive:
    """Get everything that is wanted, one year per call.

    Args:
        request: what is wanted.
        parts: folder for complete years, so that an interrupted download continues; `forget` removes it.
        console: where progress goes.
        patience: how often and how long to try.

    Raises:
        UsageError: the server refuses the request. DataError: it cannot be reached, or answers with something else.
    """
    findings: list[Finding] = []
    years = list(request.years())
    whole: list[list[Series]] = []
    with requests.Session() as session, Bar(console, "Open-Meteo archive, years", len(years)) as bar:
        for first, last in years:
            whole.append(_year(request, first, last, parts, session, patience or Patience(), bar, findings))
            bar.step()
    series = [_joined([year[i] for year in whole], request) for i in range(len(request.latitudes))]
    names = list(request.sites) or [one.name for one in series]
    findings += _same_cells(series, names)
    if len(set(names)) != len(names):
        raise UsageError(f"{findings[-1].message}; leave one out, or name them with --site")
    series, ends = without_future(series, names, request.url)
    return Archive(names, series, findings + ends)


def forget(request: Request, parts: Path) -> None:
    """Remove the parts of a download that is finished, and their folder if nothing else is in it."""
    with suppress(OSError):
        for first, last in request.years():
            _part(request, first, last, parts).unlink(missing_ok=True)
        parts.rmdir()


def _year(
    request: Request,
    first: date,
    last: date,
    parts: Path,
    session: requests.Session,
    patience: Patience,
    bar: Bar,
    findings: list[Finding],
) -> list[Series]:
    """One year: as it was kept, or from the server; kept if nothing of it is still to come."""
    part = _part(request, first, last, parts)
    where = f"{request.url} for {first} to {last}"
    if part.is_file():
        with suppress(DataError, OSError):  # a damaged part is got again
            return _checked(decode_json(part.read_bytes(), str(part)), request, first, last, where)[0]

    def decode(content: bytes) -> tuple[bytes, object]:
        return content, decode_json(content, where)

    content, document = fetch(session, request.url, request.query(first, last), decode, MOST_BYTES, patience, bar.tell)
    series, short = _checked(document, request, first, last, where)
    findings += short
    if not short and all(not np.isnan(values[-1]) for one in series for values in one.values.values()):
        try:
            parts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{parts}: cannot be made ({error.strerror or error}); choose another --output") from error
        write_whole(part, content)
    return series


def _part(request: Request, first: date, last: date, parts: Path) -> Path:
    """File of one year, under a name that only this very request has."""
    question = json.dumps([request.url, request.query(first, last)], sort_keys=True)
    return parts / f"{first.year}-{hashlib.sha256(question.encode()).hexdigest()[:16]}.json"


def _checked(
    document: object, request: Request, first: date, last: date, where: str
) -> tuple[list[Series], list[Finding]]:
    """The answer, if it is one to this question: these points, these variables, these hours; and the hours it lacks."""
    series = parse_answer(document, where)
    if len(series) != len(request.latitudes):
        raise DataError(f"{where}: answers for {len(series)} points, expected {len(request.latitudes)}; try again")
    start = np.datetime64(first, "h")
    wanted = np.arange(start, np.datetime64(last + timedelta(days=1), "h"))
    findings = []
    for one, north, east in zip(series, request.latitudes, request.longitudes, strict=True):
        _check_place(one, north, east, where)
        absent = [name for name in request.variables if name not in one.values]
        if absent:
            raise DataError(f"{where}: the answer lacks {listed(absent)}; ask for variables that the archive has")
        times = one.times.astype("datetime64[h]")
        if len(times) > len(wanted) or (times != wanted[: len(times)]).any() or (one.times != times).any():
            raise DataError(
                f"{where}: the answer has {len(times)} times from {one.times[0].astype('M8[m]')} to "
                f"{one.times[-1].astype('M8[m]')}, expected every hour from {start}:00; try again, or tell another --url"
            )
        if len(times) < len(wanted):
            absent_hours = wanted[len(times) :]
            message = (
                f"{one.name}: the answer has {len(times)} of {len(wanted)} hours of {first.year}; those from "
                f"{absent_hours[0]}:00 on are missing"
            )
            first_hour, last_hour = f"{absent_hours[0]}:00:00", f"{absent_hours[-1]}:00:00"
            count = len(absent_hours)
            findings.append(Finding("fewer_hours", "warning", message, None, one.name, first_hour, last_hour, count))
    return series, findings


def _check_place(one: Series, north: float, east: float, where: str) -> None:
    """The cell lies where it was asked for."""
    across = (one.place.longitude - east + 180) % 360 - 180
    distance = math.hypot(one.place.latitude - north, across * math.cos(math.radians(north)))
    if distance > MOST_DISTANCE_DEGREES:
        raise DataError(
            f"{where}: asked for {north:g}, {east:g} but the answer is for {one.place.latitude:g}, "
            f"{one.place.longitude:g}, {distance:.1f}° away; try again, or tell another --url"
        )


def _joined(years: list[Series], request: Request) -> Series:
    """One point's years as one series."""
    first = years[0]
    for other in years[1:]:
        if other.units != first.units or other.place != first.place:
            raise DataError(
                f"{request.url}: the cell or the units of {first.name} change between years ({first.place}, {first.units}; "
                f"{other.place}, {other.units}); ask again with --model {MODEL}"
            )
    times = np.concatenate([year.times for year in years])
    values = {name: np.concatenate([year.values[name] for year in years]) for name in request.variables}
    units = {name: unit for name, unit in first.units.items() if name in values}
    return Series(None, first.place, times, units, values)


def _same_cells(series: list[Series], names: list[str]) -> list[Finding]:
    """Points that the archive does not tell apart."""
    findings = []
    for i, one in enumerate(series):
        twin = next((j for j in range(i) if series[j].place == one.place), None)
        if twin is not None:
            message = f"{names[twin]} and {names[i]} lie in one cell of the archive ({one.name}), so they are one series twice"
            findings.append(Finding("same_cell", "warning", message, site=names[i]))
    return findings


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False
