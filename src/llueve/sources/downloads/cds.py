"""Download ERA5 from the Copernicus Climate Data Store: one file per month, several months at once.

The folder's `manifest.json` lists each finished month with its size and SHA-256. A month that differs from its entry is
downloaded again. The library `cdsapi` (extra `cds`) sends the requests.
"""

import calendar
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import requests
from rich.console import Console

from llueve.errors import DataError, LlueveError, UsageError, listed
from llueve.files import make_folder
from llueve.progress import DELAY_S, ProgressBar
from llueve.sources.downloads.http import check_request, unwritable
from llueve.sources.downloads.manifest import Manifest

SITE = "https://cds.climate.copernicus.eu"
ADDRESS = f"{SITE}/api"
DATASET = "reanalysis-era5-single-levels"
LAND_DATASET = "reanalysis-era5-land"
LONG_NAMES = {
    "tp": "total_precipitation", "t2m": "2m_temperature", "d2m": "2m_dewpoint_temperature",
    "u10": "10m_u_component_of_wind", "v10": "10m_v_component_of_wind", "sp": "surface_pressure",
    "msl": "mean_sea_level_pressure", "tcc": "total_cloud_cover", "tcwv": "total_column_water_vapour",
}  # fmt: skip
"""The store's name of each variable, by its short name in the files."""
VARIABLES = ("tp", "t2m", "d2m", "u10", "v10", "msl")
DAYS_LATE = 6
"""ERA5 appears five days late. One day more: the store answers for an incomplete day with the hours that it has."""
PARTS = ".parts"
SUFFIXES = {b"PK\x03\x04": ".zip", b"\x89HDF\r\n\x1a\n": ".nc", b"CDF\x01": ".nc", b"CDF\x02": ".nc", b"CDF\x05": ".nc"}
"""Suffix of a finished file by its first bytes; several kinds of step arrive as a zip of NetCDF files."""

Connect = Callable[[], Any]
Ended = tuple[str, Exception | None]
"""Makes a client with `retrieve(dataset, request, target)`."""


@dataclass(frozen=True)
class CdsRequest:
    """A request for every hour of the days from `start` to `end` in an area.

    Raises:
        UsageError: a value that the store cannot serve; the message names the option.
    """

    area: tuple[float, float, float, float]
    """North, west, south, east in degrees."""
    start: date
    end: date
    variables: tuple[str, ...] = VARIABLES
    dataset: str = DATASET

    def __post_init__(self) -> None:
        north, west, south, east = self.area
        area = f"--area {north:g} {west:g} {south:g} {east:g}: expected N W S E with"
        newest = datetime.now(UTC).date() - timedelta(days=DAYS_LATE)
        names, datasets = [LONG_NAMES.get(name, name) for name in self.variables], (DATASET, LAND_DATASET)
        expectations = {
            f"{area} 90 ≥ N ≥ S ≥ -90": 90 >= north >= south >= -90,
            f"{area} -180 ≤ W ≤ E ≤ 360": -180 <= west <= east <= 360,
            f"--end {self.end}: ERA5 appears five days late; the newest whole day is {newest}": self.end <= newest,
            f"--dataset {self.dataset}: expected one of {listed(datasets)}": self.dataset in datasets,
            f"--variables {listed(self.variables)}: expected different names": 0 < len(names) == len(set(names)),
        }
        check_request(self.start, self.end, expectations)

    def months(self) -> Iterator[tuple[str, dict[str, object]]]:
        """Name (`2024-01`) and request of each month, in order of time."""
        common = {} if self.dataset == LAND_DATASET else {"product_type": ["reanalysis"]}
        for number in range(self.start.year * 12 + self.start.month - 1, self.end.year * 12 + self.end.month):
            year, month = number // 12, number % 12 + 1
            days = [date(year, month, day) for day in range(1, calendar.monthrange(year, month)[1] + 1)]
            yield (
                f"{year}-{month:02d}",
                {
                    **common,
                    "variable": sorted(LONG_NAMES.get(name, name) for name in self.variables),
                    "year": [str(year)],
                    "month": [f"{month:02d}"],
                    "day": [f"{day.day:02d}" for day in days if self.start <= day <= self.end],
                    "time": [f"{hour:02d}:00" for hour in range(24)],
                    "area": list(self.area),
                    "data_format": "netcdf",
                    "download_format": "unarchived",
                },
            )


@dataclass(frozen=True)
class Era5Download:
    """The files of a finished download in order of time, and the number of those that were downloaded now."""

    files: list[Path]
    fresh: int


def download_era5(
    request: CdsRequest, output: Path, console: Console, connect: Connect | None = None, parallel: int = 3
) -> Era5Download:
    """Download every month that the folder does not hold yet.

    Args:
        request: area, days and variables.
        output: folder of the files; made if it does not exist.
        console: shows the progress.
        connect: makes a client, one per month; by default `connect_cds`.
        parallel: months at once. The store itself limits the number of running requests.

    Raises:
        UsageError: the folder holds months of another request, or the store refuses the request.
        DataError: `cdsapi`, the credentials or the accepted licence is missing, or some months failed.
    """
    connect = connect or connect_cds
    months = dict(request.months())
    first = next(iter(months.values()))
    common = {"dataset": request.dataset, "area": first["area"], "variable": first["variable"]}
    manifest = Manifest(output, common)
    missing = {name: month for name, month in months.items() if not manifest.holds(name, month)}
    if missing:
        connect()  # reports a missing library or key once, before the threads start
    with ProgressBar(console, "ERA5, months", len(missing), DELAY_S) as bar:
        failures = _download_months(connect, request.dataset, missing, manifest, parallel, bar)
    if failures:
        name = min(failures)
        raise DataError(
            f"{output}: {len(failures)} of {len(months)} months failed ({listed(sorted(failures), 12)}); {name}: "
            f"{failures[name]}. Run the command again: finished months are kept"
        )
    with suppress(OSError):
        (output / PARTS).rmdir()
    return Era5Download([manifest.path(name) for name in months], len(missing))


def connect_cds() -> Any:
    """A client of the store with the user's credentials; a missing `cdsapi`, and missing or old credentials, are refused."""
    try:
        import cdsapi
        from cdsapi.api import get_url_key_verify
    except ImportError as error:
        raise DataError("ERA5 downloads need cdsapi, which is not installed; run pip install 'llueve[cds]'") from error
    advice = (
        f"sign in at {SITE}, copy your key from {SITE}/profile, and write it into {_credentials()} as two lines: "
        f"'url: {ADDRESS}' and 'key: YOUR-KEY'"
    )
    try:
        url, key, _ = get_url_key_verify(None, None, None)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"no credentials for the Climate Data Store ({error}); {advice}") from error
    if not url.startswith(("http://", "https://")) or not key or ":" in key:
        raise DataError(f"the credentials for the Climate Data Store do not have the current format; {advice}")
    try:
        return cdsapi.Client(url, key, quiet=True, progress=False, retry_max=10, sleep_max=60)
    except Exception as error:  # the library raises plain Exception
        raise _store_error(error, "connecting") from error


def _credentials() -> str:
    return os.environ.get("CDSAPI_RC", "~/.cdsapirc")


def _download_months(
    connect: Connect,
    dataset: str,
    missing: Mapping[str, Mapping[str, object]],
    manifest: Manifest,
    parallel: int,
    bar: ProgressBar,
) -> dict[str, str]:
    """Download months in several threads; returns the reason of each month that failed.

    The threads are daemons: Ctrl-C ends the program at once, although the store may take hours.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
    stop = threading.Event()
    for name in missing:
        waiting.put(name)

    def work() -> None:
        with suppress(queue.Empty):
            while not stop.is_set():
                name = waiting.get_nowait()
                try:
                    _download_month(connect, dataset, name, missing[name], manifest)
                    ended.put((name, None))
                except (LlueveError, _MonthError) as error:
                    ended.put((name, error))

    failures: dict[str, str] = {}
    for _ in range(min(parallel, len(missing))):
        threading.Thread(target=work, name="era5", daemon=True).start()
    try:
        for _ in missing:
            name, error = _first_of(ended)
            if isinstance(error, LlueveError):  # the next month would fail in the same way
                raise error
            if error is not None:
                failures[name] = str(error)
            bar.advance()
    finally:
        stop.set()
    return failures


def _first_of(ended: "queue.SimpleQueue[Ended]") -> Ended:
    """Wait for the end of a month, with breaks: Ctrl-C does not interrupt a wait that is just about to begin."""
    while True:
        with suppress(queue.Empty):
            return ended.get(timeout=1.0)


class _MonthError(Exception):
    """One month failed; others may succeed."""


def _download_month(connect: Connect, dataset: str, name: str, month: Mapping[str, object], manifest: Manifest) -> None:
    part = manifest.folder / PARTS / f"{name}.part"
    try:
        for path in (part.parent, part):
            if path.is_symlink():
                raise UsageError(f"{path}: is a link, which is not followed; remove it")
        make_folder(part.parent)
        connect().retrieve(dataset, dict(month), str(part))
        with part.open("rb") as file:
            start = file.read(8)
        suffix = next((suffix for magic, suffix in SUFFIXES.items() if start.startswith(magic)), None)
        if suffix is None:
            raise _MonthError(f"the file is neither NetCDF nor a zip of it (it begins with {start!r})")
        manifest.add(name, month, part, f"era5_{name}{suffix}")
    except (LlueveError, _MonthError):
        raise
    except Exception as error:  # the library raises plain Exception and assertions
        if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
            raise unwritable(manifest.folder, error) from error
        raise _store_error(error, name) from error


def _store_error(error: Exception, name: str) -> Exception:
    reason = " ".join(str(error).split())[:500] or type(error).__name__
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if "licen" in reason.lower():
        return DataError(
            f"the licence of the data set is not accepted: {reason}; sign in at {SITE}, accept it at the end of the data "
            "set's download form, and run the command again"
        )
    if status in (401, 403):
        return DataError(
            f"the Climate Data Store does not accept the key ({reason}); copy it again from {SITE}/profile into {_credentials()}"
        )
    # The results of a failed job are answered with 400 too, for any reason.
    if status in (400, 404, 422) and not str(getattr(response, "url", "")).endswith("/results"):
        return UsageError(f"{name}: the Climate Data Store refuses the request: {reason}; correct the request")
    return _MonthError(reason)
