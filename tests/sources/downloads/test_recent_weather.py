"""The record of a place up to the present hour, from a local server that replays archive and forecast service."""

import json
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from llueve.errors import DataError, UsageError
from llueve.panel import known_quantities
from llueve.samples.encoder_inputs import encoder_problem
from llueve.sources.downloads import openmeteo_archive, recent_weather
from llueve.sources.downloads.http import RetryPolicy
from llueve.sources.downloads.recent_weather import cache_folder, recent_panel

Serve = Callable[[Callable[[Any], tuple[int, dict[str, str], bytes]]], str]
NOW = datetime(2024, 3, 10, 14, 40, tzinfo=UTC)
HOUR = np.timedelta64(1, "h")
ONCE = RetryPolicy(attempts=1, sleep=lambda _: None)
UNITS = {
    "precipitation": "mm", "temperature_2m": "°C", "relative_humidity_2m": "%", "dew_point_2m": "°C", "cloud_cover": "%",
    "pressure_msl": "hPa", "surface_pressure": "hPa", "wind_speed_10m": "m/s", "wind_direction_10m": "°",
    "wind_gusts_10m": "m/s", "shortwave_radiation": "W/m²",
}  # fmt: skip
LEVEL = {"relative_humidity_2m": 98.0, "pressure_msl": 1010.0, "surface_pressure": 1000.0}
"""Values of the archive; others are 10."""


class Service:
    """Both services: the archive says one value, and the forecast service two more."""

    def __init__(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Any] = []
        self.now = NOW
        self.changes: dict[str, dict[str, Any]] = {"/archive": {}, "/forecast": {}}
        """Keys to replace in the answer of each service."""
        self.late = timedelta(days=-1)
        """Age of the newest value of the forecast service."""
        self.refusal: tuple[int, dict[str, str], bytes] | None = None
        url = serve(self.answer)
        monkeypatch.setattr(openmeteo_archive, "URL", f"{url}/archive")
        monkeypatch.setattr(recent_weather, "FORECAST_URL", f"{url}/forecast")

    def answer(self, call: Any) -> tuple[int, dict[str, str], bytes]:
        self.calls.append(call)
        if self.refusal is not None and call.path == "/forecast":
            return self.refusal
        if call.path == "/archive":
            first, last = (np.datetime64(call.query[name]) for name in ("start_date", "end_date"))
            more = 0.0
        else:
            today = np.datetime64(self.now.date())
            first, last, more = today - int(call.query["past_days"]), today, 2.0
        times = np.arange(first, last + 1, HOUR)
        late = (
            times > np.datetime64((self.now - self.late).replace(tzinfo=None)) if more else np.zeros(len(times), bool)
        )
        names = call.query["hourly"].split(",")
        point = {
            "latitude": float(call.query["latitude"]) + 0.1,
            "longitude": float(call.query["longitude"]),
            "elevation": 100.0,
            "utc_offset_seconds": 0,
            "hourly_units": {"time": "iso8601", **{name: UNITS[name] for name in names}},
            "hourly": {
                "time": np.datetime_as_string(times, unit="m").tolist(),
                **{
                    name: [None if absent else LEVEL.get(name, 10.0) + more for absent in late.tolist()]
                    for name in names
                },
            },
            **self.changes[call.path],
        }
        return 200, {}, json.dumps(point).encode()

    def panel(self, cache: Path | None = None) -> xr.Dataset:
        return recent_panel(-12.05, -77.04, cache, Console(quiet=True), now=self.now, policy=ONCE)

    @property
    def paths(self) -> list[str]:
        """The services that were asked since the last look."""
        found = sorted(call.path for call in self.calls)
        self.calls.clear()
        return found


@pytest.fixture
def service(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Service:
    return Service(serve, monkeypatch)


def test_the_newest_analyses_continue_the_archive_up_to_the_present_hour(service: Service) -> None:
    panel = service.panel()
    times, warm = panel["time"].values, panel["temperature_2m"].values[0]
    # 400 days before 10 March 2024 is 4 February 2023; the forecast service begins on 3 March 2024.
    assert (str(times[0])[:16], str(times[-1])[:16]) == ("2023-02-04T00:00", "2024-03-10T14:00")
    assert (np.diff(times) == HOUR).all()
    newer = times >= np.datetime64("2024-03-03")
    assert (warm[~newer] == 10.0).all() and (warm[newer] == 12.0).all()
    assert panel["latitude"].item() == -12.05 and panel["elevation_m"].item() == 100.0
    assert encoder_problem(panel) is None and len(known_quantities(panel)) == len(UNITS)
    asked = {call.path: call.query for call in service.calls}
    assert (asked["/archive"]["start_date"], asked["/archive"]["end_date"]) == ("2023-02-04", "2024-03-04")
    assert (asked["/forecast"]["past_days"], asked["/forecast"]["forecast_days"]) == ("7", "1")
    assert asked["/archive"]["wind_speed_unit"] == asked["/forecast"]["wind_speed_unit"] == "ms"


def test_an_hour_without_an_analysis_keeps_the_archive(service: Service) -> None:
    holes = {name: [None if hour == 5 else 12.0 for hour in range(8 * 24)] for name in UNITS}
    times = np.datetime_as_string(np.datetime64("2024-03-03T00") + np.arange(8 * 24) * HOUR, unit="m").tolist()
    service.changes["/forecast"] = {"hourly": {"time": times, **holes}}
    warm = service.panel()["temperature_2m"].sel(time=slice("2024-03-03T04", "2024-03-03T06"))
    assert warm.values.tolist() == [[12.0, 10.0, 12.0]]


def test_both_services_are_asked_at_the_same_time(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2)
    fetch = recent_weather.fetch

    def meet(*arguments: Any, **options: Any) -> Any:
        together.wait(timeout=20)
        return fetch(*arguments, **options)

    monkeypatch.setattr(recent_weather, "fetch", meet)
    assert service.panel().sizes["time"] > 9000


def test_another_forecast_of_the_day_needs_one_request(service: Service, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    first = service.panel(cache)
    assert service.paths == ["/archive", "/forecast"] and len([*cache.iterdir()]) == 1
    xr.testing.assert_identical(service.panel(cache), first)
    assert service.paths == ["/forecast"]
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    xr.testing.assert_identical(service.panel(cache), first)
    assert service.paths == ["/archive", "/forecast"]
    service.now = NOW + timedelta(days=1)
    service.panel(cache)
    assert service.paths == ["/archive", "/forecast"] and len([*cache.iterdir()]) == 2


def test_the_cache_keeps_no_more_than_its_limit(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent_weather, "MOST_KEPT", 2)
    for day in range(4):
        service.now = NOW + timedelta(days=day)
        service.panel(tmp_path)
    assert len([*tmp_path.iterdir()]) == 2
    service.paths  # noqa: B018 (forget)
    service.panel(tmp_path)
    assert service.paths == ["/forecast"]


def test_a_cache_that_cannot_be_written_is_no_obstacle(
    service: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert service.panel(tmp_path / "file" / "cache").sizes["time"] > 9000
    assert "the cache cannot be written" in caplog.text and "--no-cache" in caplog.text


def test_the_cache_is_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert cache_folder() == tmp_path / "llueve"
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        monkeypatch.setenv("LOCALAPPDATA", unset)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
        assert cache_folder() == tmp_path / "home" / ".cache" / "llueve"


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("/forecast", {"latitude": 40.0}, "asked for -12.05, -77.04 but the answer is for 40"),
        ("/archive", {"longitude": 0.0}, "the answer is for -11.95, 0"),
        ("/forecast", {"hourly_units": {**UNITS, "time": "iso8601", "temperature_2m": "°F"}}, "is in '°F', and in '°C'"),
        ("/archive", {"hourly": {"time": ["2023-02-04T00:00"], "rain": [0]}}, "the answer lacks"),
        ("/archive", {"error": True, "reason": "out of memory"}, "out of memory"),
        ("/forecast", {"hourly": {"time": ["2024-03-03T00:00", "2024-03-03T03:00"], **{key: [1, 1] for key in UNITS}}}, "hour"),
    ],
)  # fmt: skip
def test_an_answer_that_does_not_match_is_refused(
    path: str, change: dict[str, Any], words: str, service: Service, tmp_path: Path
) -> None:
    service.changes[path] = change
    with pytest.raises(DataError) as caught:
        service.panel(tmp_path)
    assert words in str(caught.value)


def test_old_values_are_no_forecast_of_today(service: Service) -> None:
    service.late = timedelta(hours=9)
    with pytest.raises(DataError, match=r"newest hour with a value is 2024-03-10 05:00 UTC, expected one after"):
        service.panel()


def test_a_refused_request_and_a_lost_service(service: Service) -> None:
    service.refusal = (400, {}, b'{"error": true, "reason": "no such place"}')
    with pytest.raises(UsageError, match="no such place"):
        service.panel()
    service.refusal = (503, {}, b"")
    with pytest.raises(DataError, match=r"503.*A forecast from a table of your own needs no connection: --input TABLE"):
        service.panel()
