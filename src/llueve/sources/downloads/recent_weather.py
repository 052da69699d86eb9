"""The recent weather of any place, up to the present hour: ERA5 of the last 400 days, and newer analyses of Open-Meteo.

Both services need no key. Data: CC BY 4.0. The ERA5 part is kept in a cache, so that another forecast on the same day needs
one request only.
"""

import hashlib
import json
import logging
import os
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import requests
import xarray as xr
from rich.console import Console

from llueve.errors import DataError, LlueveError
from llueve.files import make_folder, read_small, write_whole
from llueve.panel import check_panel, minute
from llueve.progress import DELAY_S, ProgressBar
from llueve.quantities.vocabulary import OPEN_METEO
from llueve.sources.downloads import openmeteo_archive as archive
from llueve.sources.downloads.http import RetryPolicy, fetch
from llueve.sources.downloads.openmeteo_archive import OpenMeteoRequest, checked_points, checked_series
from llueve.sources.identify import with_quantities
from llueve.sources.tables.openmeteo import HOURLY_SUMS, PointSeries, decode_json

logger = logging.getLogger(__name__)

FORECAST_URL = "https://api.open-meteo.com/v1/forecast"
VARIABLES = (*archive.VARIABLES, "surface_pressure", "wind_gusts_10m", "shortwave_radiation")
RECORD_DAYS = 400
"""Days of the record: a year, from which mean and spread of the place come, and a month more of the present season."""
ARCHIVE_DAYS_LATE = 6
"""ERA5 appears five days late; one day more, so that its last day is whole."""
PAST_DAYS = 7
"""Days before today that the forecast service gives."""
OLDEST_HOURS = 6
"""Largest age of the newest observed hour."""
MOST_ANSWER_BYTES = 2**24
"""Largest answer; 400 days have 1 MB."""
MOST_KEPT = 50
"""Largest number of answers in the cache."""
POLICY = RetryPolicy(attempts=3, longest_wait_s=30.0, silence_s=30.0, attempt_s=120.0)
"""Somebody waits for the forecast: fewer attempts than a download of years."""
HOUR = np.timedelta64(1, "h")


def cache_folder() -> Path:
    """The folder of the cache: `llueve` in the user's cache folder."""
    given = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path("~/.cache").expanduser()) / "llueve"


def recent_panel(
    latitude: float,
    longitude: float,
    cache: Path | None,
    console: Console,
    *,
    now: datetime | None = None,
    policy: RetryPolicy = POLICY,
) -> xr.Dataset:
    """The last 400 days of one place, hour by hour up to the present hour, as a panel with quantities.

    Args:
        latitude, longitude: degrees north, −90…90, and east, −180…180.
        cache: folder of the cache; None to keep nothing.
        console: shows the progress.
        now: the present time, UTC; by default that of the clock.
        policy: number of attempts and their waits.

    Raises:
        UsageError: the service refuses the request. DataError: it cannot be reached, or its answer does not match.
    """
    now = now or datetime.now(UTC)
    today = now.date()
    days = today - timedelta(days=RECORD_DAYS), today - timedelta(days=ARCHIVE_DAYS_LATE)
    request = OpenMeteoRequest((latitude,), (longitude,), *days, variables=VARIABLES, url=archive.URL)
    kept = None if cache is None else cache / _file_name(request)
    record = None if kept is None else _from_cache(kept, request)
    try:
        with ProgressBar(console, "Open-Meteo", 1 if record else 2, DELAY_S) as bar:
            if record is None:
                record, newest = _at_the_same_time(
                    lambda: _archive(request, kept, policy, bar), lambda: _newest(request, policy, bar)
                )
            else:
                newest = _newest(request, policy, bar)
    except DataError as error:
        raise DataError(f"{error}. A forecast from a table of your own needs no connection: --input TABLE") from error
    # The cell of the archive may be some kilometres away, on the other side of a zone's limit.
    asked = replace(record.location, latitude=latitude, longitude=longitude)
    return _panel(replace(_joined(record, newest, now), location=asked))


def _at_the_same_time(
    one: Callable[[], PointSeries], other: Callable[[], PointSeries]
) -> tuple[PointSeries, PointSeries]:
    """The results of both; an error of either ends the wait. The thread is a daemon: Ctrl-C ends the program at once."""
    ended: queue.SimpleQueue[PointSeries | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            ended.put(one())
        except Exception as error:  # noqa: BLE001 - raised again in the main thread
            ended.put(error)

    threading.Thread(target=work, name="openmeteo", daemon=True).start()
    second = other()
    first = ended.get()
    if isinstance(first, Exception):
        raise first
    return first, second


def _archive(request: OpenMeteoRequest, kept: Path | None, policy: RetryPolicy, bar: ProgressBar) -> PointSeries:
    """The record from the archive service, which is kept in the cache."""
    days = request.start, request.end
    where = f"{request.url} for {days[0]} to {days[1]}"
    content, document = _fetched(request.url, request.query(*days), where, policy, bar)
    series, short = checked_series(document, request, days, where)
    if kept is not None and not short:
        _keep(kept, content)
    return series[0]


def _newest(request: OpenMeteoRequest, policy: RetryPolicy, bar: ProgressBar) -> PointSeries:
    """The newest hours from the forecast service, with the hours of today that are still to come."""
    query = request.query(request.start, request.end)
    kept = {key: query[key] for key in ("latitude", "longitude", "hourly", "wind_speed_unit", "timezone")}
    query = {**kept, "past_days": str(PAST_DAYS), "forecast_days": "1"}
    _, document = _fetched(FORECAST_URL, query, FORECAST_URL, policy, bar)
    (series,) = checked_points(document, request, FORECAST_URL)
    if (np.diff(series.times) != HOUR).any():
        raise DataError(f"{FORECAST_URL}: the times of the answer are not one hour apart; try again later")
    return series


def _fetched(
    url: str, query: dict[str, str], where: str, policy: RetryPolicy, bar: ProgressBar
) -> tuple[bytes, object]:
    def decode(content: bytes) -> tuple[bytes, object]:
        return content, decode_json(content, where)

    with requests.Session() as session:
        answer = fetch(session, url, query, decode, MOST_ANSWER_BYTES, policy, bar.note)
    bar.advance()
    return answer


def _file_name(request: OpenMeteoRequest) -> str:
    """The file of an answer in the cache; its name identifies the request, with its days."""
    question = json.dumps([request.url, request.query(request.start, request.end)], sort_keys=True)
    return f"openmeteo-{hashlib.sha256(question.encode()).hexdigest()[:24]}.json"


def _from_cache(path: Path, request: OpenMeteoRequest) -> PointSeries | None:
    """The record in the cache; None if there is none, or the file is damaged, which is downloaded again."""
    with suppress(LlueveError):
        document = decode_json(read_small(path, MOST_ANSWER_BYTES), str(path))
        return checked_series(document, request, (request.start, request.end), str(path))[0][0]
    return None


def _keep(path: Path, content: bytes) -> None:
    """Write an answer into the cache, and remove the oldest ones beyond `MOST_KEPT`."""
    try:
        make_folder(path.parent)
        write_whole(path, [content])
        others = sorted(path.parent.glob("openmeteo-*.json"), key=lambda each: each.lstat().st_mtime)
        for old in others[:-MOST_KEPT]:
            old.unlink(missing_ok=True)
    except OSError as error:
        logger.warning(
            "%s: the cache cannot be written (%s); the forecast goes on without it. Free the disk, or use --no-cache",
            path.parent,
            error.strerror or error,
        )


def _joined(record: PointSeries, newest: PointSeries, now: datetime) -> PointSeries:
    """The record up to the present hour: an hour that both have is that of the newest analysis."""
    if other := [name for name in VARIABLES if record.units.get(name) != newest.units.get(name)]:
        name = other[0]
        raise DataError(
            f"{FORECAST_URL}: {name} is in {newest.units.get(name)!r}, and in {record.units.get(name)!r} at {archive.URL}; "
            "expected one unit: try again later"
        )
    present = np.datetime64(now.replace(tzinfo=None), "h").astype("datetime64[ns]")
    times = np.arange(record.times[0], present + HOUR, HOUR)
    joined = {name: np.full(len(times), np.nan) for name in VARIABLES}
    for part in (record, newest):
        at = ((part.times - times[0]) // HOUR).astype(np.int64)
        inside = (at >= 0) & (at < len(times))
        for name, values in joined.items():
            known = inside & ~np.isnan(part.values[name])
            values[at[known]] = part.values[name][known]
    known = np.flatnonzero(~np.isnan([*joined.values()]).all(axis=0))
    last = times[known[-1]] if len(known) else None
    if last is None or present - last > OLDEST_HOURS * HOUR:
        raise DataError(
            f"{FORECAST_URL}: the newest hour with a value is {'none' if last is None else minute(last)} UTC, expected one after "
            f"{minute(present - OLDEST_HOURS * HOUR)}; try again later, and check the clock of this computer"
        )
    return replace(record, times=times, values=joined)


def _panel(series: PointSeries) -> xr.Dataset:
    """The panel of one point."""
    with np.errstate(over="ignore"):  # `check_panel` refuses what became infinite
        arrays = {
            name: xr.Variable(("site", "time"), values[None].astype(np.float32), {"units": series.units[name]})
            for name, values in series.values.items()
            if name in series.units
        }
    for name in HOURLY_SUMS:
        if name in arrays:
            arrays[name].attrs["accumulation_hours"] = 1.0
    coords: dict[str, object] = {"site": np.array([series.name], dtype=str), "time": series.times}
    for name, unit in (("latitude", "degrees_north"), ("longitude", "degrees_east"), ("elevation_m", "m")):
        coords[name] = ("site", [getattr(series.location, name)], {"units": unit})
    panel = xr.Dataset(arrays, coords)
    panel.attrs = {
        "step_hours": 1.0,
        "source": "Open-Meteo",
        "findings": (),
        "evidence": {name: {"defined_name": (OPEN_METEO.title, name)} for name in arrays},
    }
    return with_quantities(check_panel(panel), {}, ())
