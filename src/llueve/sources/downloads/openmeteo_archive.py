"""Download from the Open-Meteo archive API: one call per year for all points; an interrupted download continues.

Every answer is checked against its request before it is kept. Data: CC BY 4.0.
"""

import hashlib
import json
import math
import threading
import time
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
from llueve.files import make_folder
from llueve.panel import Finding, minute
from llueve.progress import DELAY_S, ProgressBar
from llueve.sources.downloads.http import RetryPolicy, check_request, fetch, unwritable, write_output
from llueve.sources.findings import finding_at
from llueve.sources.tables.openmeteo import MOST_BYTES, PointSeries, decode_json, parse_answer, without_future

URL = "https://archive-api.open-meteo.com/v1/archive"
MODEL = "era5"
"""One reanalysis for all years. `best_match` is finer in recent years, but its sources change with the years."""
VARIABLES = (
    "precipitation", "temperature_2m", "relative_humidity_2m", "dew_point_2m", "pressure_msl", "cloud_cover",
    "wind_speed_10m", "wind_direction_10m",
)  # fmt: skip
MOST_POINTS = 100
CALLS_PER_MINUTE = 600
"""Limit of the free service, whose terms count a call by its points, weeks and variables."""
MOST_DISTANCE_DEGREES = 1.0
"""Largest distance from a point to the centre of its cell: four cells of ERA5, since near a coast the API takes land."""


@dataclass(frozen=True)
class OpenMeteoRequest:
    """A request for variables at points, from the first hour of `start` to the last hour of `end`, UTC.

    Raises:
        UsageError: a value that the archive cannot serve; the message names the option.
    """

    latitudes: tuple[float, ...]
    longitudes: tuple[float, ...]
    start: date
    end: date
    sites: tuple[str, ...] = ()
    """Names of the points; without them, the coordinates of their cells are the names."""
    variables: tuple[str, ...] = VARIABLES
    model: str = MODEL
    url: str = URL
    nearest_cell: bool = False
    """Take the nearest cell, even in the sea. By default, the API takes land near a coast."""

    def __post_init__(self) -> None:
        today = datetime.now(UTC).date()
        points, others, sites, variables = len(self.latitudes), len(self.longitudes), self.sites, self.variables
        are_names = len(set(sites)) == len(sites) and all(name.strip() for name in sites)
        expectations = {
            f"{points} latitudes and {others} longitudes: expected one of each per point": points == others,
            f"{points} points: expected 1 to {MOST_POINTS} in one call": 1 <= points <= MOST_POINTS,
            "latitudes lie within -90 … 90": all(abs(value) <= 90 for value in self.latitudes),
            "longitudes lie within -180 … 180": all(abs(value) <= 180 for value in self.longitudes),
            f"--end {self.end}: expected a day that is over, so before {today}": self.end < today,
            f"{len(sites)} names for {points} points: expected one --site per point": len(sites) in (0, points),
            f"--site {listed(sites)}: expected different names, none of them blank": are_names,
            f"--variables {listed(variables)}: expected different names": 0 < len(set(variables)) == len(variables),
            f"--model {self.model}: expected one model": "," not in self.model,
            f"--url {self.url}: expected an address such as {URL}": _is_address(self.url),
        }
        check_request(self.start, self.end, expectations)

    def years(self) -> Iterator[tuple[date, date]]:
        """The first and last day of the request in each year."""
        for year in range(self.start.year, self.end.year + 1):
            yield max(self.start, date(year, 1, 1)), min(self.end, date(year, 12, 31))

    def query(self, first: date, last: date) -> dict[str, str]:
        """The query for the days from `first` to `last`."""
        query = {
            "latitude": ",".join(map(str, self.latitudes)),
            "longitude": ",".join(map(str, self.longitudes)),
            "start_date": first.isoformat(),
            "end_date": last.isoformat(),
            "hourly": ",".join(self.variables),
            "models": self.model,
            "wind_speed_unit": "ms",
            "timezone": "GMT",
        }
        return {**query, "cell_selection": "nearest"} if self.nearest_cell else query


@dataclass(frozen=True)
class OpenMeteoDownload:
    """The downloaded series: one per point, with its name."""

    names: list[str]
    series: list[PointSeries]
    findings: list[Finding]
    around: int = 0
    """Number of series, the last ones, that are surroundings of the others."""


class CallBudget:
    """The calls that several threads may make each minute; a call waits until it is within the limit."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy, self._lock = policy, threading.Lock()
        self._left, self._then = float(CALLS_PER_MINUTE), time.monotonic()

    def spend(self, request: OpenMeteoRequest, days: tuple[date, date], bar: ProgressBar) -> None:
        """Wait until the service allows the call for these days: two weeks of ten variables at one point count as one."""
        weeks, variables = ((days[1] - days[0]).days + 1) / 14, len(request.variables) / 10
        calls = len(request.latitudes) * max(1.0, weeks) * max(1.0, variables)
        with self._lock:
            now = time.monotonic()
            gained = (now - self._then) * CALLS_PER_MINUTE / 60
            self._left, self._then = min(CALLS_PER_MINUTE, self._left + gained) - calls, now
            wait_s = max(0.0, -self._left * 60 / CALLS_PER_MINUTE)
        if wait_s:
            bar.note(f"waiting {wait_s:.0f} s for the limit of the service")
            self._policy.sleep(wait_s)


def download(
    request: OpenMeteoRequest, parts: Path, console: Console, policy: RetryPolicy | None = None
) -> OpenMeteoDownload:
    """Download all points, one year per call.

    The folder `parts` holds complete years, from which an interrupted download continues; `forget` removes it.

    Raises:
        UsageError: the server refuses the request. DataError: it cannot be reached, or its answer does not match.
    """
    years = len(list(request.years()))
    with ProgressBar(console, "Open-Meteo archive, years", years, DELAY_S) as bar:
        series, findings = download_series(request, parts, policy or RetryPolicy(), bar)
    names = list(request.sites) or [point.name for point in series]
    findings += _same_cells(series, names)
    if len(set(names)) != len(names):
        raise UsageError(f"{findings[-1].message}; remove one point, or name them with --site")
    series, ends = without_future(series, names, request.url)
    return OpenMeteoDownload(names, series, findings + ends)


def download_series(
    request: OpenMeteoRequest, parts: Path, policy: RetryPolicy, bar: ProgressBar, budget: CallBudget | None = None
) -> tuple[list[PointSeries], list[Finding]]:
    """The series of all points as the archive has them, one year per call; and findings on missing hours.

    `budget` is shared by downloads that go on at the same time.

    Raises as `download`.
    """
    if parts.is_symlink():
        raise UsageError(f"{parts}: is a link, which is not followed; remove it")
    findings: list[Finding] = []
    whole: list[list[PointSeries]] = []
    with requests.Session() as session:
        for days in request.years():
            series, short = _year(request, days, parts, session, policy, bar, budget)
            whole.append(series)
            findings += short
            bar.advance()
    return [_joined([year[i] for year in whole], request) for i in range(len(request.latitudes))], findings


def forget(request: OpenMeteoRequest, parts: Path) -> None:
    """Remove the parts of a finished download, and their folder if it is then empty."""
    with suppress(OSError):
        for days in request.years():
            _part(request, days, parts).unlink(missing_ok=True)
        parts.rmdir()


def _year(
    request: OpenMeteoRequest,
    days: tuple[date, date],
    parts: Path,
    session: requests.Session,
    policy: RetryPolicy,
    bar: ProgressBar,
    budget: CallBudget | None,
) -> tuple[list[PointSeries], list[Finding]]:
    """One year from its part or from the server, and findings on missing hours; a complete year is kept as a part."""
    part = _part(request, days, parts)
    where = f"{request.url} for {days[0]} to {days[1]}"
    if part.is_file():
        with suppress(DataError, OSError):  # a damaged part is downloaded again
            return checked_series(decode_json(part.read_bytes(), str(part)), request, days, where)

    def decode(content: bytes) -> tuple[bytes, object]:
        return content, decode_json(content, where)

    if budget is not None:
        budget.spend(request, days, bar)
    content, document = fetch(session, request.url, request.query(*days), decode, MOST_BYTES, policy, bar.note)
    series, short = checked_series(document, request, days, where)
    if not short and all(not np.isnan(values[-1]) for point in series for values in point.values.values()):
        try:
            make_folder(parts)
        except OSError as error:
            raise unwritable(parts, error) from error
        write_output(part, content)
    return series, short


def _part(request: OpenMeteoRequest, days: tuple[date, date], parts: Path) -> Path:
    """The file of one year; its name identifies the request."""
    question = json.dumps([request.url, request.query(*days)], sort_keys=True)
    return parts / f"{days[0].year}-{hashlib.sha256(question.encode()).hexdigest()[:16]}.json"


def checked_points(document: object, request: OpenMeteoRequest, where: str) -> list[PointSeries]:
    """The series of an answer, if it has the points and the variables of the request; its times are not checked.

    Raises:
        DataError: the answer is for other points, lacks a variable, or is none.
    """
    series = parse_answer(document, where)
    if len(series) != len(request.latitudes):
        raise DataError(f"{where}: answers for {len(series)} points, expected {len(request.latitudes)}; try again")
    for point, north, east in zip(series, request.latitudes, request.longitudes, strict=True):
        found = point.location
        across = ((found.longitude - east + 180) % 360 - 180) * math.cos(math.radians(north))
        if (distance := math.hypot(found.latitude - north, across)) > MOST_DISTANCE_DEGREES:
            raise DataError(
                f"{where}: asked for {north:g}, {east:g} but the answer is for {found.latitude:g}, {found.longitude:g}, "
                f"{distance:.1f}° away; try again, or use another --url"
            )
        if absent := [name for name in request.variables if name not in point.values]:
            raise DataError(f"{where}: the answer lacks {listed(absent)}; ask for variables that the archive has")
    return series


def checked_series(
    document: object, request: OpenMeteoRequest, days: tuple[date, date], where: str
) -> tuple[list[PointSeries], list[Finding]]:
    """The series of an answer with the points, variables and hours of the request; and findings on missing hours.

    Raises:
        DataError: as `checked_points`, or the times are not those of the request.
    """
    series = checked_points(document, request, where)
    expected = np.arange(np.datetime64(days[0], "h"), np.datetime64(days[1] + timedelta(days=1), "h"))
    findings = []
    for point in series:
        times = point.times
        if len(times) > len(expected) or (times != expected[: len(times)]).any():
            raise DataError(
                f"{where}: the answer has {len(times)} times from {minute(times[0])} to {minute(times[-1])}, expected every "
                f"hour from {minute(expected[0])}; try again, or use another --url"
            )
        if len(times) < len(expected):
            missing = expected[len(times) :]
            message = (
                f"{point.name}: the answer has {len(times)} of {len(expected)} hours of {days[0].year}; the hours from "
                f"{minute(missing[0])} on are missing"
            )
            findings.append(finding_at("fewer_hours", "warning", message, missing, site=point.name))
    return series, findings


def _joined(years: list[PointSeries], request: OpenMeteoRequest) -> PointSeries:
    first = years[0]
    for other in years[1:]:
        if other.units != first.units or other.location != first.location:
            raise DataError(
                f"{request.url}: the cell or the units of {first.name} change between years ({first.location}, {first.units}; "
                f"{other.location}, {other.units}); download again with --model {MODEL}"
            )
    times = np.concatenate([year.times for year in years])
    values = {name: np.concatenate([year.values[name] for year in years]) for name in request.variables}
    units = {name: unit for name, unit in first.units.items() if name in values}
    return PointSeries(None, first.location, times, units, values)


def _same_cells(series: list[PointSeries], names: list[str]) -> list[Finding]:
    findings = []
    locations = [point.location for point in series]
    for i, point in enumerate(series):
        if (twin := locations.index(point.location)) < i:
            message = f"{names[twin]} and {names[i]} lie in one cell of the archive ({point.name}): one series twice"
            findings.append(Finding("same_cell", "warning", message, site=names[i]))
    return findings


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False
