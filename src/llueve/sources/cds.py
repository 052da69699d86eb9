"""Downloading ERA5 from the Copernicus Climate Data Store, month by month: several at once, an interrupted one continued.

A finished month is in the folder's `manifest.json` with its size and SHA-256; whatever is not as it says there is got again.
The library `cdsapi` (extra `cds`) does the talking.
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
from llueve.sources.download import Bar
from llueve.sources.manifest import Manifest

SITE = "https://cds.climate.copernicus.eu"
ADDRESS = f"{SITE}/api"
DATASET = "reanalysis-era5-single-levels"
DATASETS = (DATASET, "reanalysis-era5-land")
LONG_NAMES = {
    "tp": "total_precipitation",
    "t2m": "2m_temperature",
    "d2m": "2m_dewpoint_temperature",
    "u10": "10m_u_component_of_wind",
    "v10": "10m_v_component_of_wind",
    "sp": "surface_pressure",
    "msl": "mean_sea_level_pressure",
    "tcc": "total_cloud_cover",
    "tcwv": "total_column_water_vapour",
}
"""The short names inside the files, and the store's names for them."""
VARIABLES = ("tp", "t2m", "d2m", "u10", "v10", "msl")
FIRST_DAY = date(1940, 1, 1)
DAYS_LATE = 6
"""ERA5 appears five days late; one more, since the store would answer for a day that is not whole with what there is."""
PARTS = ".parts"
KINDS = {b"PK\x03\x04": ".zip", b"\x89HDF\r\n\x1a\n": ".nc", b"CDF\x01": ".nc", b"CDF\x02": ".nc", b"CDF\x05": ".nc"}
"""What a finished file begins with; several kinds of step come as a zip of NetCDF files."""

Connect = Callable[[], Any]
"""Makes a client with `retrieve(dataset, request, target)`."""


@dataclass(frozen=True)
class Request:
    """What is wanted: every hour of the days from `start` to `end` in an area."""

    area: tuple[float, float, float, float]
    """North, west, south, east in degrees."""
    start: date
    end: date
    variables: tuple[str, ...] = VARIABLES
    dataset: str = DATASET

    def __post_init__(self) -> None:
        north, west, south, east = self.area
        newest = datetime.now(UTC).date() - timedelta(days=DAYS_LATE)
        names = [LONG_NAMES.get(name, name) for name in self.variables]
        refused = {
            f"--area {north:g} {west:g} {south:g} {east:g}: expected N W S E with 90 ≥ N ≥ S ≥ -90": not (
                90 >= north >= south >= -90
            ),
            f"--area {north:g} {west:g} {south:g} {east:g}: expected N W S E with -180 ≤ W ≤ E ≤ 360": not (
                -180 <= west <= east <= 360
            ),
            f"--start {self.start}: ERA5 begins on {FIRST_DAY}": self.start < FIRST_DAY,
            f"--end {self.end}: expected a day from --start {self.start} on": self.end < self.start,
            f"--end {self.end}: ERA5 appears five days late; the newest whole day is {newest}": self.end > newest,
            f"--dataset {self.dataset}: expected one of {', '.join(DATASETS)}": self.dataset not in DATASETS,
            f"--variables {listed(self.variables)}: expected different names": not names
            or len(set(names)) != len(names),
        }
        for message, wrong in refused.items():
            if wrong:
                raise UsageError(message)

    def months(self) -> Iterator[tuple[str, dict[str, object]]]:
        """Name and request of each month, `2024-01` first."""
        for number in range(self.start.year * 12 + self.start.month - 1, self.end.year * 12 + self.end.month):
            year, month = divmod(number, 12)
            month += 1
            first = self.start.day if (year, month) == (self.start.year, self.start.month) else 1
            last = calendar.monthrange(year, month)[1]
            last = self.end.day if (year, month) == (self.end.year, self.end.month) else last
            yield f"{year}-{month:02d}", self._month(year, month, first, last)

    def _month(self, year: int, month: int, first: int, last: int) -> dict[str, object]:
        kind = {} if self.dataset == "reanalysis-era5-land" else {"product_type": ["reanalysis"]}
        return {
            **kind,
            "variable": sorted(LONG_NAMES.get(name, name) for name in self.variables),
            "year": [str(year)],
            "month": [f"{month:02d}"],
            "day": [f"{day:02d}" for day in range(first, last + 1)],
            "time": [f"{hour:02d}:00" for hour in range(24)],
            "area": list(self.area),
            "data_format": "netcdf",
            "download_format": "unarchived",
        }


@dataclass(frozen=True)
class Downloaded:
    """What a download left."""

    files: list[Path]
    """All months in order."""
    fresh: int
    """Of these, how many were downloaded now."""


def download_era5(
    request: Request, output: Path, console: Console, connect: Connect | None = None, parallel: int = 3
) -> Downloaded:
    """Get every month that is not there yet.

    Args:
        request: what is wanted.
        output: the folder; made if need be.
        console: where progress goes.
        connect: makes a client, one per month; that of `cdsapi` by default.
        parallel: months at once. The store itself limits how many it works on.

    Raises:
        UsageError: the folder holds another request's months, or the store refuses what is asked.
        DataError: no `cdsapi`, no credentials, a licence that is not accepted, or months that failed.
    """
    connect = connect or connect_cds
    months = dict(request.months())
    first = next(iter(months.values()))
    common = {"dataset": request.dataset, "area": first["area"], "variable": first["variable"]}
    manifest = Manifest.open(output, common)
    wanted = {name: month for name, month in months.items() if not manifest.holds(name, month)}
    if wanted:
        connect()  # so that what is missing here is told once, before any thread
    with Bar(console, "ERA5, months", len(wanted)) as bar:
        failures = _side_by_side(connect, request.dataset, wanted, manifest, parallel, bar)
    if failures:
        name = min(failures)
        raise DataError(
            f"{output}: {len(failures)} of {len(months)} months failed ({listed(sorted(failures), 12)}); {name}: "
            f"{failures[name]}. Run the command again: finished months are kept"
        )
    with suppress(OSError):
        (output / PARTS).rmdir()
    return Downloaded([manifest.path(name) for name in months], len(wanted))


def connect_cds() -> Any:
    """A client of the Climate Data Store, by the user's own credentials.

    Raises:
        DataError: `cdsapi` is not installed, or credentials are missing or of the old store.
    """
    try:
        import cdsapi
        from cdsapi.api import get_url_key_verify
    except ImportError as error:
        raise DataError(
            "ERA5 is downloaded by the library cdsapi, which is not installed; run pip install 'llueve[cds]'"
        ) from error
    file = os.environ.get("CDSAPI_RC", "~/.cdsapirc")
    advice = (
        f"sign in at {SITE}, copy your key from {SITE}/profile, and write it into {file} as two lines: 'url: {ADDRESS}' "
        "and 'key: YOUR-KEY'"
    )
    try:
        url, key, _ = get_url_key_verify(None, None, None)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"no credentials for the Climate Data Store ({error}); {advice}") from error
    if not url.startswith(("http://", "https://")) or not key or ":" in key:
        raise DataError(f"the credentials for the Climate Data Store are not of its present form; {advice}")
    try:
        return cdsapi.Client(url, key, quiet=True, progress=False, retry_max=10, sleep_max=60)
    except Exception as error:  # the library raises plain Exception
        raise _told(error, "connecting") from error


def _side_by_side(
    connect: Connect,
    dataset: str,
    wanted: Mapping[str, Mapping[str, object]],
    manifest: Manifest,
    parallel: int,
    bar: Bar,
) -> dict[str, str]:
    """Download months in several threads; returns why some failed.

    The threads do not outlive the program, so that Ctrl-C need not wait for a store that takes hours.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[str, Exception | None]] = queue.SimpleQueue()
    stop = threading.Event()
    for name in wanted:
        waiting.put(name)

    def work() -> None:
        with suppress(queue.Empty):
            while not stop.is_set():
                name = waiting.get_nowait()
                try:
                    _month(connect, dataset, name, wanted[name], manifest)
                    ended.put((name, None))
                except (LlueveError, _MonthError) as error:
                    ended.put((name, error))

    failures: dict[str, str] = {}
    for _ in range(min(parallel, len(wanted))):
        threading.Thread(target=work, name="era5", daemon=True).start()
    try:
        for _ in wanted:
            name, error = ended.get()
            if isinstance(error, LlueveError):  # the next month would meet it too
                raise error
            if error is not None:
                failures[name] = str(error)
            bar.step()
    finally:
        stop.set()
    return failures


class _MonthError(Exception):
    """One month failed; others may not."""


def _month(connect: Connect, dataset: str, name: str, month: Mapping[str, object], manifest: Manifest) -> None:
    """Download one month and put it in its place."""
    part = manifest.folder / PARTS / f"{name}.part"
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        connect().retrieve(dataset, dict(month), str(part))
        with part.open("rb") as file:
            start = file.read(8)
        suffix = next((suffix for magic, suffix in KINDS.items() if start.startswith(magic)), None)
        if suffix is None:
            raise _MonthError(f"what came is neither NetCDF nor a zip of it (it begins with {start!r})")
        manifest.add(name, month, part, f"era5_{name}{suffix}")
    except (LlueveError, _MonthError):
        raise
    except OSError as error:
        if isinstance(error, requests.RequestException):  # which is an OSError too
            raise _told(error, name) from error
        raise DataError(
            f"{manifest.folder}: cannot be written ({error.strerror or error}); choose another --output, or free the disk"
        ) from error
    except Exception as error:  # the library raises plain Exception and assertions
        raise _told(error, name) from error


def _told(error: Exception, name: str) -> Exception:
    """What an error of the store means; only a month's own failure lets the others go on."""
    reason = " ".join(str(error).split())[:500] or type(error).__name__
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if "licen" in reason.lower():
        return DataError(
            f"the licence of the data set is not accepted: {reason}; sign in at {SITE}, accept it at the foot of the data "
            "set's download form, and run the command again"
        )
    if status in (401, 403):
        return DataError(
            f"the Climate Data Store does not accept the key ({reason}); copy it anew from {SITE}/profile into "
            f"{os.environ.get('CDSAPI_RC', '~/.cdsapirc')}"
        )
    # The results of a job that failed, for whatever reason, are answered with 400 too.
    if status in (400, 404, 422) and not str(getattr(response, "url", "")).endswith("/results"):
        return UsageError(f"{name}: the Climate Data Store refuses the request: {reason}; mend what is asked for")
    return _MonthError(reason)
