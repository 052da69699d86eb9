"""Points around those of an Open-Meteo request, on two rings: further sites that a model sees but never forecasts."""

import queue
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from llueve.errors import UsageError, listed
from llueve.panel import Finding
from llueve.progress import DELAY_S, ProgressBar
from llueve.sources.downloads.http import RetryPolicy
from llueve.sources.downloads.openmeteo_archive import (
    MOST_POINTS,
    CallBudget,
    OpenMeteoDownload,
    OpenMeteoRequest,
    download,
    download_series,
)
from llueve.sources.tables.openmeteo import PointSeries, without_future
from llueve.sources.tables.raw_table import MOST_NAME
from llueve.sphere import distance_km, points_at

PREFIX = "surroundings "
"""Beginning of the name of each point of a ring."""
DISTANCES_KM = (250.0, 700.0)
"""Weather moves about 250 km in a third of a day, and 700 km in a day."""
DIRECTIONS = {"N": 0.0, "NE": 45.0, "E": 90.0, "SE": 135.0, "S": 180.0, "SW": 225.0, "W": 270.0, "NW": 315.0}
"""Directions from the point, clockwise from north."""
LEAST_APART_KM = 100.0
"""A point of a ring that is nearer to a requested point, or to a point of an earlier ring, is left out."""
WEST = 270.0
"""The direction that the wind comes from, where the data do not say it."""
SPEED, DIRECTION = "wind_speed_10m", "wind_direction_10m"
CALLS_AT_ONCE = 4


@dataclass(frozen=True)
class SectorRequest:
    """The points around one requested point in one direction."""

    point: int
    """Index of the requested point."""
    bearing: float
    request: OpenMeteoRequest


def sector_requests(request: OpenMeteoRequest) -> list[SectorRequest]:
    """The points of both rings around each requested point, by direction; points near others are left out.

    Raises:
        UsageError: there are more than 100 points in all, or a name of a site does not allow names for its surroundings.
    """
    north, east = list(request.latitudes), list(request.longitudes)
    sectors = []
    for point, (latitude, longitude) in enumerate(zip(request.latitudes, request.longitudes, strict=True)):
        place = request.sites[point] if request.sites else _place(latitude, longitude)
        if place.startswith(PREFIX) or len(place) > MOST_NAME - 50:
            raise UsageError(
                f"--site {place[:60]}: with --surroundings, expected a name of at most {MOST_NAME - 50} characters that does not "
                f"begin with {PREFIX!r}"
            )
        rings = [points_at(latitude, longitude, km, [*DIRECTIONS.values()]) for km in DISTANCES_KM]
        for number, (direction, bearing) in enumerate(DIRECTIONS.items()):
            chosen: list[tuple[float, float, str]] = []
            for km, (ring_north, ring_east) in zip(DISTANCES_KM, rings, strict=True):
                there = round(float(ring_north[number]), 4), round(float(ring_east[number]), 4)
                if (distance_km(*there, np.array(north), np.array(east)) >= LEAST_APART_KM).all():
                    north.append(there[0])
                    east.append(there[1])
                    chosen.append((*there, f"{PREFIX}{place} {km:.0f} km {direction}"))
            if chosen:
                latitudes, longitudes, sites = zip(*chosen, strict=True)
                around = replace(request, latitudes=latitudes, longitudes=longitudes, sites=sites, nearest_cell=True)
                sectors.append(SectorRequest(point, bearing, around))
    if len(north) > MOST_POINTS:
        raise UsageError(
            f"--surroundings: {len(request.latitudes)} points have {len(north) - len(request.latitudes)} points around them, "
            f"expected at most {MOST_POINTS} in all; give fewer points"
        )
    return sectors


def wind_from(series: PointSeries) -> float:
    """The direction that the wind of a point comes from on average, weighted by its speed; west if it is unknown.

    The mean is that of the wind as a vector, in degrees clockwise from north.
    """
    if DIRECTION not in series.values or series.units.get(DIRECTION, "°") != "°":
        return WEST
    angle = np.radians(series.values[DIRECTION])
    speed = series.values.get(SPEED, np.ones(len(angle)))
    known = ~np.isnan(angle) & ~np.isnan(speed)
    across, along = (float((speed * part(angle))[known].sum()) for part in (np.sin, np.cos))
    total = float(speed[known].sum())
    # A wind without a usual direction has none to prefer.
    return (
        float(np.degrees(np.arctan2(across, along))) % 360
        if np.hypot(across, along) > 1e-6 * max(total, 1e-9)
        else WEST
    )


def download_with_surroundings(
    request: OpenMeteoRequest, parts: Path, console: Console, policy: RetryPolicy | None = None
) -> OpenMeteoDownload:
    """Download the requested points, then the rings around them, several directions at once and those upwind first.

    A point of a ring without any value, or in the cell of another one, is left out. Raises as `download` and
    `sector_requests`.
    """
    policy = policy or RetryPolicy()
    sectors = sector_requests(request)
    inner = download(request, parts, console, policy)
    winds = [wind_from(series) for series in inner.series]
    sectors.sort(key=lambda sector: abs((sector.bearing - winds[sector.point] + 180) % 360 - 180))
    calls = sum(len(list(sector.request.years())) for sector in sectors)
    with ProgressBar(console, "Open-Meteo archive, around", calls, DELAY_S) as bar:
        found = _download_sectors([sector.request for sector in sectors], parts, policy, bar)
    taken = {series.location for series in inner.series}
    names, kept, left_out = [], [], []
    about: list[Finding] = []
    for sector, (ring, findings) in zip(sectors, found, strict=True):
        about += findings
        for name, series in zip(sector.request.sites, ring, strict=True):
            if series.location in taken or all(np.isnan(values).all() for values in series.values.values()):
                left_out.append(name)
                continue
            taken.add(series.location)
            names.append(name)
            kept.append(series)
    kept, ends = without_future(kept, names, request.url)
    findings = [*inner.findings, *_summed_up([*about, *ends])]
    if left_out:
        message = f"{listed(left_out)}: left out, because the archive has no value there or no cell of their own"
        findings.append(Finding("surroundings_left_out", "warning", message, count=len(left_out)))
    return OpenMeteoDownload([*inner.names, *names], [*inner.series, *kept], findings, around=len(kept))


def _place(latitude: float, longitude: float) -> str:
    return f"{abs(latitude):g}{'NS'[latitude < 0]} {abs(longitude):g}{'EW'[longitude < 0]}"


def _summed_up(findings: Sequence[Finding]) -> list[Finding]:
    """One finding of each code for all rings: the first one, with the number of the others."""
    count = Counter(finding.code for finding in findings)
    first = {finding.code: finding for finding in reversed(findings)}
    return [
        replace(each, message=f"{each.message}; and {count[code] - 1} more like it around") if count[code] > 1 else each
        for code, each in first.items()
    ]


def _download_sectors(
    asked: Sequence[OpenMeteoRequest], parts: Path, policy: RetryPolicy, bar: ProgressBar
) -> list[tuple[list[PointSeries], list[Finding]]]:
    """The series of each request, in their order, some of them at once.

    The threads are daemons: Ctrl-C ends the program at once. The first failure ends the download; finished years are kept.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[int, tuple[list[PointSeries], list[Finding]] | Exception]] = queue.SimpleQueue()
    stop, budget = threading.Event(), CallBudget(policy)
    for number in range(len(asked)):
        waiting.put(number)

    def work() -> None:
        with suppress(queue.Empty):
            while not stop.is_set():
                number = waiting.get_nowait()
                try:
                    ended.put((number, download_series(asked[number], parts, policy, bar, budget)))
                except Exception as error:  # noqa: BLE001 - raised again in the main thread
                    ended.put((number, error))

    for _ in range(min(CALLS_AT_ONCE, len(asked))):
        threading.Thread(target=work, name="openmeteo", daemon=True).start()
    found: dict[int, tuple[list[PointSeries], list[Finding]]] = {}
    try:
        for _ in asked:
            number, result = ended.get()
            if isinstance(result, Exception):
                raise result
            found[number] = result
    finally:
        stop.set()
    return [found[number] for number in range(len(asked))]
