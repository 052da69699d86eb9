"""Open-Meteo answers as panels, and their download from a local server that replays them."""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from llueve.config import DataConfig, TargetConfig, load_config
from llueve.errors import ConfigError, DataError, LlueveError, UsageError
from llueve.panel import Finding, check_panel
from llueve.samples.read import read_panel
from llueve.samples.target import next_sum_mm
from llueve.sources.downloads import openmeteo_archive as archives
from llueve.sources.downloads import openmeteo_files as files
from llueve.sources.downloads.http import RetryPolicy
from llueve.sources.downloads.openmeteo_archive import OpenMeteoDownload, OpenMeteoRequest, download
from llueve.sources.tables.table import read_table

Serve = Callable[[Callable[[Any], tuple[int, dict[str, str], bytes]]], str]
RAIN = TargetConfig(variable="precipitation", threshold_mm=1.0)
POINT: dict[str, Any] = {
    "latitude": 59.36731,
    "longitude": 18.0,
    "elevation": 24.0,
    "utc_offset_seconds": 0,
    "hourly_units": {"time": "iso8601", "precipitation": "mm", "temperature_2m": "°C"},
    "hourly": {
        "time": ["2024-02-28T22:00", "2024-02-28T23:00", "2024-02-29T00:00"],
        "precipitation": [0.5, None, 2],
        "temperature_2m": [-1.5, 0, 1.25],
    },
}


def read(folder: Path, document: object, target: TargetConfig | None = None, **options: Any) -> xr.Dataset:
    path = folder / "answer.json"
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return read_table(DataConfig(path=str(path), **options), target)


def changed(**changes: Any) -> dict[str, Any]:
    """The point with some keys replaced; `__` reaches into an object, None removes."""
    point = copy.deepcopy(POINT)
    for key, value in changes.items():
        *path, last = key.split("__")
        inner = point
        for part in path:
            inner = inner[part]
        inner[last] = value
        if value is None:
            del inner[last]
    return point


def values(panel: xr.Dataset, name: str, site: int = 0) -> list[float]:
    """NaN as -99."""
    return [-99.0 if math.isnan(value) else value for value in panel[name].values[site].tolist()]


# Answers


def test_an_answer_becomes_a_panel(tmp_path: Path) -> None:
    panel = read(tmp_path, POINT, RAIN)
    assert panel["site"].values.tolist() == ["site"] and panel.attrs["step_hours"] == 1.0
    assert np.datetime_as_string(panel["time"].values, unit="m").tolist() == POINT["hourly"]["time"]
    assert values(panel, "precipitation") == [0.5, -99.0, 2.0]
    assert values(panel, "temperature_2m") == [-1.5, 0.0, 1.25]
    assert panel["precipitation"].attrs == {"units": "mm", "accumulation_hours": 1.0}
    assert panel["temperature_2m"].attrs == {"units": "°C"}
    assert [panel[name].item() for name in ("latitude", "longitude", "elevation_m")] == [59.36731, 18.0, 24.0]
    assert panel.attrs["findings"] == ()


def test_the_kind_is_known_by_the_first_bytes_and_may_be_told(tmp_path: Path) -> None:
    first = read(tmp_path, POINT)
    xr.testing.assert_identical(first, read(tmp_path, POINT, format="openmeteo"))
    xr.testing.assert_identical(first, read(tmp_path, b" \n[ " + json.dumps(POINT).encode() + b"]"))


def test_seconds_since_1970_are_times(tmp_path: Path) -> None:
    # 2024-02-28 22:00 is 19,781 days and 22 hours after 1970: 19781 * 86400 + 22 * 3600 = 1709157600.
    times = [1709157600, 1709161200, 1709164800]
    panel = read(tmp_path, changed(hourly__time=times, hourly_units__time="unixtime"))
    xr.testing.assert_identical(panel, read(tmp_path, POINT))


def test_longitudes_lie_within_180(tmp_path: Path) -> None:
    assert read(tmp_path, changed(longitude=282.5))["longitude"].item() == -77.5
    assert math.isnan(read(tmp_path, changed(elevation=None))["elevation_m"].item())


def test_several_points_are_sites_in_the_order_of_their_names(tmp_path: Path) -> None:
    south = changed(latitude=-12.0, longitude=-77.0, hourly__precipitation=[0, 0, 9])
    panel = read(tmp_path, [POINT, south])
    assert panel["site"].values.tolist() == ["12.0000S 77.0000W", "59.3673N 18.0000E"]
    assert values(panel, "precipitation") == [0.0, 0.0, 9.0]
    assert panel["latitude"].values.tolist() == [-12.0, 59.36731]
    named = [{**POINT, "site": "Stockholm"}, {**south, "site": "Lima"}]
    assert read(tmp_path, named)["site"].values.tolist() == ["Lima", "Stockholm"]


def test_a_single_site_may_be_named(tmp_path: Path) -> None:
    assert read(tmp_path, {**POINT, "site": "Bromma"})["site"].values.tolist() == ["Bromma"]
    assert read(tmp_path, {**POINT, "site": "Bromma"}, site_name="Arlanda")["site"].values.tolist() == ["Arlanda"]


def test_hours_that_are_not_there_yet_are_left_out_and_told(tmp_path: Path) -> None:
    late = changed(hourly__precipitation=[1.0, None, None], hourly__temperature_2m=[1.0, 2.0, None])
    panel = read(tmp_path, late)
    assert values(panel, "precipitation") == [1.0, -99.0] and panel.sizes["time"] == 2
    found = {
        f.variable: (f.code, f.severity, f.first, f.last, f.count, f.message[-16:]) for f in panel.attrs["findings"]
    }
    ends = ("2024-02-28T23:00:00", "2024-02-29T00:00:00")
    assert found == {
        "precipitation": ("not_yet_available", "warning", *ends, 2, "count as missing"),
        "temperature_2m": ("not_yet_available", "warning", ends[1], ends[1], 1, "hours are left out"[-16:]),
    }


def test_options_of_a_table_that_mean_something(tmp_path: Path) -> None:
    wind = changed(hourly__wind=[0, 90, 180], hourly_units__wind="°", hourly__code=[0, 61, 0], hourly__rain=[0, 0, 1])
    options: dict[str, Any] = {
        "wind_directions": ("wind",),
        "categories": {"code": "one-hot"},
        "exclude": ("rain",),
        "sentinels": (-1.5,),
        "accumulation_hours": {"precipitation": 0.5},
    }
    panel = read(tmp_path, wind, **options)
    assert list(panel.data_vars) == ["precipitation", "temperature_2m", "wind_sin", "wind_cos", "code=61"]
    assert values(panel, "temperature_2m")[0] == -99.0 and values(panel, "code=61") == [0.0, 1.0, 0.0]
    assert panel["precipitation"].attrs["accumulation_hours"] == 0.5
    assert list(read(tmp_path, wind, variables=("temperature_2m",)).data_vars) == ["temperature_2m"]


def test_units_are_those_of_the_answer(tmp_path: Path) -> None:
    inches = read(tmp_path, changed(hourly_units__precipitation="inch", hourly__precipitation=[0, 1, 0]), RAIN)
    assert next_sum_mm(inches, "precipitation", 1.0)[0, :2].tolist() == pytest.approx([25.4, 0.0])
    assert "units" not in read(tmp_path, changed(hourly_units__precipitation="undefined"))["precipitation"].attrs
    told = read(tmp_path, changed(hourly_units__precipitation=None), units={"precipitation": "cm"})
    assert told["precipitation"].attrs["units"] == "cm"
    with pytest.raises(DataError, match=r"hourly_units says 'mm' but data.units says 'cm'"):
        read(tmp_path, POINT, units={"precipitation": "cm"})


@pytest.mark.parametrize(
    "options",
    [
        {"site": "station"},
        {"time": "date"},
        {"time_format": "%Y"},
        {"time_zone": "Europe/Stockholm"},
        {"missing": ("-",)},
    ],
)
def test_options_of_a_table_that_mean_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"data.{next(iter(options))} = .*remove the setting"):
        read(tmp_path, POINT, **options)


@pytest.mark.parametrize(
    ("document", "part"),
    [
        ({"error": True, "reason": "no such place"}, "answered with an error: no such place"),
        (b"[]", "no rows"),
        (b"[{}]", "expected hourly"),
        (changed(hourly=None), "expected hourly and hourly_units, found latitude"),
        (changed(hourly_units=None), "expected hourly and hourly_units"),
        (changed(utc_offset_seconds=3600), "3600 seconds from UTC; ask again with timezone=GMT"),
        (changed(latitude=91), "latitude is 91, expected a number from -90 to 90"),
        (changed(longitude=True), "longitude is true"),
        (changed(latitude=None), "latitude is null"),
        (changed(elevation="high"), 'elevation is "high"'),
        (changed(hourly__time=None), "hourly.time is null"),
        (changed(hourly__time=[]), "hourly.time is a list of 0"),
        (changed(hourly__time=["2024-02-28T22:00", "now", "today"]), 'found "now" in 2 of 3'),
        (changed(hourly__time=["2024-02-30T22:00"] * 3), "expected times such as"),
        (changed(hourly__time=["0024-02-28T22:00"] * 3), '"0024-02-28T22:00" in 3 of 3'),
        (changed(hourly__time=["2024-02-28T22:00"] * 3), "one row per site and time, found 2 repeated"),
        (changed(hourly__time=["2024-02-28T22:00", "2024-02-28T22:30", "2024-02-29T00:00"]), "steps of 1 h"),
        (changed(hourly__precipitation=[1, 2]), "one number per time (3), found a list of 2"),
        (changed(hourly__precipitation=["1", 2, 3]), 'found "1" at position 1'),
        (changed(hourly__precipitation=[1, True, 3]), "found true at position 2"),
        (changed(hourly__precipitation=[1, 10**400, 3]), "too large"),
        (changed(hourly__precipitation=[1, 1e39, 3]), "infinite or beyond float32"),
        (changed(hourly__precipitation={}), "found an object"),
        (changed(hourly__site=[1, 2, 3]), "named site, a name of the panel"),
        (changed(hourly__latitude=[1, 2, 3]), "named latitude, a name of the panel"),
        (changed(hourly__recorded=[1, 2, 3]), "a coordinate of the panel"),
        (changed(hourly_units__precipitation=3), "the unit of precipitation is not text"),
        (changed(hourly__precipitation=[None] * 3, hourly__temperature_2m=[None] * 3), "no value in 3 hours"),
        ({**POINT, "hourly": {"time": POINT["hourly"]["time"]}}, "no variable beside time"),
        ([POINT, 3], "point 2: expected an object"),
        ([POINT, changed(latitude=0, hourly_units__precipitation="inch")], "point 2 has precipitation [inch]"),
        ([POINT, changed(latitude=0, hourly__temperature_2m=None)], "expected the same variables"),
        ([POINT, POINT], "the same cell"),
        (b'{"latitude": NaN}', "NaN is not a number of JSON"),
        (b'{"a": 1, "a": 2}', "the same key twice"),
        (b'{"a": ' + b"[" * 100_000, "is not the JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not the JSON"),
        (json.dumps(POINT).encode()[:-9], "may be cut off"),
        (b'{"a": "\xff"}', "is not the JSON"),
    ],
)
def test_what_is_no_answer_is_refused(tmp_path: Path, document: object, part: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, document)
    assert part in str(caught.value) and str(tmp_path / "answer.json") in str(caught.value)


def test_an_answer_without_points(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no point"):
        read(tmp_path, [], format="openmeteo")


def test_a_name_for_several_points_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds 2 points"):
        read(tmp_path, [POINT, changed(latitude=0)], site_name="here")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match=str(path)):
            read_table(DataConfig(path=str(path), format="openmeteo"), None)


def test_the_recorded_answer_equals_its_table(shared: Callable[[str], Path]) -> None:
    folder = shared("data/openmeteo_stockholm")
    panel = read_table(DataConfig(path=str(folder / "stockholm_raw.json"), format="openmeteo"), RAIN)
    table = pd.read_csv(folder / "weather_hourly.csv")
    assert panel.sizes == {"site": 1, "time": 61_368}
    assert list(panel.data_vars) == list(table.columns[1:])
    for name in table.columns[1:]:
        np.testing.assert_array_equal(panel[name].values[0], table[name].to_numpy(np.float32))
    times = pd.to_datetime(table["time"]).dt.tz_localize(None).to_numpy("datetime64[ns]")
    np.testing.assert_array_equal(panel["time"].values, times)
    units = {name: panel[name].attrs["units"] for name in panel.data_vars}
    assert units["precipitation"] == "mm" and units["wind_speed_10m"] == "km/h" and units["pressure_msl"] == "hPa"


# Fuzzed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(["NaT", "1", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PLACES = st.sampled_from(
    [("latitude",), ("longitude",), ("elevation",), ("utc_offset_seconds",), ("hourly",), ("hourly_units",), ("error",)]
    + [("hourly", name) for name in ("time", "precipitation", "temperature_2m", "site", "recorded", "latitude", "x")]
    + [("hourly_units", name) for name in ("time", "precipitation", "x")]
    + [("hourly", name, i) for name in ("time", "precipitation") for i in range(3)]
)


@settings(max_examples=400)
@given(changes=st.lists(st.tuples(PLACES, JSON), max_size=3), twice=st.booleans())
def test_any_value_anywhere_is_a_panel_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[tuple[Any, ...], Any]], twice: bool
) -> None:
    point = copy.deepcopy(POINT)
    for path, value in changes:
        inner: Any = point
        for part in path[:-1]:
            inner = inner.get(part) if isinstance(inner, dict) else None
        if isinstance(inner, dict) or (isinstance(inner, list) and len(inner) == 3 and isinstance(path[-1], int)):
            inner[path[-1]] = value
    untouched = all(path[0] != "hourly" for path, _ in changes)
    try:
        panel = read(tmp_path_factory.mktemp("fuzz"), [point, changed(latitude=0)] if twice else point)
    except LlueveError:
        return
    check_panel(panel)
    if untouched:
        assert values(panel, "precipitation") == [0.5, -99.0, 2.0]
        assert values(panel, "temperature_2m") == [-1.5, 0.0, 1.25]


@settings(max_examples=400)
@given(data=st.data())
def test_any_damaged_bytes_are_a_panel_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(json.dumps(POINT).encode())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    try:
        panel = read(tmp_path_factory.mktemp("fuzz"), bytes(content), format="openmeteo")
    except LlueveError:
        return
    check_panel(panel)


# Download


class Server:
    """Answers from a recorded series as the API does: the points, days and variables that are asked for."""

    def __init__(self, serve: Serve, start: str, hours: int, end_of_data: str | None = None) -> None:
        self.times = np.datetime64(start, "h") + np.arange(hours)
        self.end_of_data = np.datetime64(end_of_data or "2200-01-01", "h")
        self.queries: list[dict[str, str]] = []
        self.failures: list[tuple[int, dict[str, str], bytes] | None] = []
        """Taken one per call; None answers finely."""
        self.change: Callable[[list[dict[str, Any]]], Any] = lambda points: points if len(points) > 1 else points[0]
        self.url = serve(self.answer) + "/v1/archive"

    def answer(self, call: Any) -> tuple[int, dict[str, str], bytes]:
        self.queries.append(call.query)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            return failure
        points = zip(call.query["latitude"].split(","), call.query["longitude"].split(","), strict=True)
        document = self.change([self.point(float(a), float(b), call.query) for a, b in points])
        return 200, {"Content-Type": "application/json"}, json.dumps(document).encode()

    def point(self, latitude: float, longitude: float, query: dict[str, str]) -> dict[str, Any]:
        first = np.datetime64(query["start_date"], "h")
        last = np.datetime64(query["end_date"], "D") + np.timedelta64(1, "D")
        times = self.times[(self.times >= first) & (self.times < last)]
        hourly = {name: self.numbers(name, latitude, times) for name in query["hourly"].split(",")}
        units = {"precipitation": "mm", "wind_speed_10m": "m/s", "wind_direction_10m": "°"}
        return {
            "latitude": round(latitude * 4) / 4,
            "longitude": round(longitude * 4) / 4,
            "elevation": 10.0,
            "utc_offset_seconds": 0,
            "hourly_units": {"time": "iso8601", **{name: units.get(name, "°C") for name in hourly}},
            "hourly": {"time": np.datetime_as_string(times, unit="m").tolist(), **hourly},
        }

    def numbers(self, name: str, latitude: float, times: Any) -> list[float | None]:
        """A number that tells where and when it is from."""
        number = (times - np.datetime64("2000-01-01", "h")).astype(int) + len(name) + round(latitude)
        return [None if time >= self.end_of_data else int(n) % 97 / 10 for time, n in zip(times, number, strict=True)]


QUIET = Console(quiet=True)
NAMES = ("precipitation", "temperature_2m", "wind_direction_10m")


def wanted(server: Server, start: str, end: str, **options: Any) -> OpenMeteoRequest:
    days = (date.fromisoformat(start), date.fromisoformat(end))
    return replace(OpenMeteoRequest((59.3,), (18.1,), *days, variables=NAMES, url=server.url), **options)


def get(request: OpenMeteoRequest, folder: Path, **options: Any) -> OpenMeteoDownload:
    return download(request, folder / "parts", QUIET, RetryPolicy(sleep=lambda _: None, **options))


def codes(findings: list[Finding]) -> list[str]:
    return [finding.code for finding in findings]


@pytest.fixture
def server(serve: Serve) -> Server:
    """Three years."""
    return Server(serve, "2019-01-01", 3 * 365 * 24 + 24)


def test_one_call_per_year_with_all_points(server: Server, tmp_path: Path) -> None:
    archive = get(
        wanted(server, "2019-12-30", "2021-01-02", latitudes=(59.3, -12.0), longitudes=(18.1, -77.0)), tmp_path
    )
    days = [(query["start_date"], query["end_date"]) for query in server.queries]
    assert days == [("2019-12-30", "2019-12-31"), ("2020-01-01", "2020-12-31"), ("2021-01-01", "2021-01-02")]
    assert server.queries[0] == {
        "latitude": "59.3,-12.0",
        "longitude": "18.1,-77.0",
        "start_date": "2019-12-30",
        "end_date": "2019-12-31",
        "hourly": "precipitation,temperature_2m,wind_direction_10m",
        "models": "era5",
        "wind_speed_unit": "ms",
        "timezone": "GMT",
    }
    hours = (2 + 366 + 2) * 24
    assert archive.names == ["59.2500N 18.0000E", "12.0000S 77.0000W"] and archive.findings == []
    for one, latitude in zip(archive.series, (59.3, -12.0), strict=True):
        times = np.datetime64("2019-12-30", "h") + np.arange(hours)
        np.testing.assert_array_equal(one.times, times)
        for name in NAMES:
            np.testing.assert_array_equal(one.values[name], np.array(server.numbers(name, latitude, times), float))


def test_an_interrupted_download_continues(server: Server, tmp_path: Path) -> None:
    request = wanted(server, "2019-01-01", "2021-12-31")
    server.failures = [None, None, (400, {}, b'{"error": true, "reason": "stop"}')]
    with pytest.raises(UsageError, match="stop"):
        get(request, tmp_path)
    assert sorted(path.name[:4] for path in (tmp_path / "parts").iterdir()) == ["2019", "2020"]
    archive = get(request, tmp_path)
    assert [query["start_date"][:4] for query in server.queries] == ["2019", "2020", "2021", "2021"]
    whole = get(request, tmp_path / "other")
    for name in NAMES:
        np.testing.assert_array_equal(archive.series[0].values[name], whole.series[0].values[name])
    archives.forget(request, tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_a_damaged_part_and_one_of_another_request_are_not_used(server: Server, tmp_path: Path) -> None:
    request = wanted(server, "2019-01-01", "2019-12-31")
    get(request, tmp_path)
    (part,) = (tmp_path / "parts").iterdir()
    part.write_bytes(part.read_bytes()[:-100])
    get(request, tmp_path)
    get(wanted(server, "2019-01-01", "2019-12-31", model="best_match"), tmp_path)
    assert len(server.queries) == 3 and len(list((tmp_path / "parts").iterdir())) == 2


@pytest.mark.parametrize(
    "failure",
    [
        (429, {"Retry-After": "1"}, b""),
        (500, {}, b"oops"),
        (200, {"Content-Length": "100000"}, b'{"latitude": 59.25, "hourly": {'),
        (200, {}, b'{"latitude": 59.25, "hourly": {"time": ["2019-01-01T00:00", Unexpected error while streaming'),
        (200, {}, b"<html>"),
    ],
    ids=["429", "500", "broken", "error in the middle", "garbage"],
)
def test_failures_that_pass_cost_nothing_but_time(
    server: Server, tmp_path: Path, failure: tuple[int, dict[str, str], bytes]
) -> None:
    server.failures = [failure, failure]
    archive = get(wanted(server, "2019-03-01", "2019-03-02"), tmp_path)
    assert len(server.queries) == 3 and len(archive.series[0].times) == 48


def test_an_error_answer_has_its_reason(server: Server, tmp_path: Path) -> None:
    server.failures = [
        (400, {}, json.dumps({"error": True, "reason": "Cannot initialize variable 'tempature'"}).encode())
    ]
    with pytest.raises(UsageError, match="Cannot initialize variable 'tempature'"):
        get(wanted(server, "2019-03-01", "2019-03-02"), tmp_path)
    server.change = lambda points: {"error": True, "reason": "said kindly"}
    with pytest.raises(DataError, match="said kindly"):
        get(wanted(server, "2019-03-01", "2019-03-02"), tmp_path)


def test_days_that_are_not_there_yet_are_told_and_asked_for_again(serve: Serve, tmp_path: Path) -> None:
    server = Server(serve, "2020-12-01", 60 * 24, end_of_data="2021-01-03T06:00")
    request = wanted(server, "2020-12-31", "2021-01-05")
    archive = get(request, tmp_path)
    assert len(archive.series[0].times) == 24 + 2 * 24 + 6
    assert codes(archive.findings) == ["not_yet_available"] * 3
    finding = archive.findings[0]
    assert (finding.first, finding.last, finding.count) == ("2021-01-03T06:00:00", "2021-01-05T23:00:00", 66)
    server.end_of_data = np.datetime64("2200-01-01", "h")
    assert len(get(request, tmp_path).series[0].times) == 6 * 24
    assert [query["start_date"][:4] for query in server.queries] == ["2020", "2021", "2021"]


def test_fewer_hours_than_asked_are_told(serve: Serve, tmp_path: Path) -> None:
    server = Server(serve, "2020-12-01", 31 * 24 + 30)
    archive = get(wanted(server, "2020-12-31", "2021-01-05"), tmp_path)
    assert len(archive.series[0].times) == 24 + 30
    (finding,) = archive.findings
    ends = ("2021-01-02T06:00:00", "2021-01-05T23:00:00")
    assert (finding.code, finding.first, finding.last, finding.count) == ("fewer_hours", *ends, 120 - 30)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda points: points * 2, "answers for 2 points, expected 1"),
        (lambda points: {**points[0], "latitude": 10.0}, "the answer is for 10, 18, 49.3° away"),
        (lambda points: {**points[0], "longitude": -18.0}, "away"),
        (lambda points: {**points[0], "hourly": {"time": points[0]["hourly"]["time"]}}, "no variable beside time"),
        (lambda points: points[0]["hourly"].pop("temperature_2m") and points[0], "lacks temperature_2m"),
        (lambda points: later(points[0], 1), "expected every hour from 2019-03-01 00:00"),
        (lambda points: later(points[0], -24), "expected every hour from 2019-03-01 00:00"),
        (lambda points: [1], "expected an object"),
    ],
)
def test_an_answer_to_another_question_is_refused(
    server: Server, tmp_path: Path, change: Callable[[list[dict[str, Any]]], Any], part: str
) -> None:
    server.change = change
    with pytest.raises(DataError, match=part):
        get(wanted(server, "2019-03-01", "2019-03-02"), tmp_path)
    assert not (tmp_path / "parts").exists()


def later(point: dict[str, Any], hours: int) -> dict[str, Any]:
    """The same numbers at other times."""
    times = np.array(point["hourly"]["time"], dtype="datetime64[h]") + hours
    point["hourly"]["time"] = np.datetime_as_string(times, unit="m").tolist()
    return point


def test_units_that_change_between_years_are_refused(server: Server, tmp_path: Path) -> None:
    def change(points: list[dict[str, Any]]) -> Any:
        if points[0]["hourly"]["time"][0].startswith("2020"):
            points[0]["hourly_units"]["precipitation"] = "inch"
        return points[0]

    server.change = change
    with pytest.raises(DataError, match=r"units of 59.2500N 18.0000E change between years"):
        get(wanted(server, "2019-12-01", "2020-01-31"), tmp_path)


def test_points_in_one_cell_are_told(server: Server, tmp_path: Path) -> None:
    request = wanted(server, "2019-03-01", "2019-03-02", latitudes=(59.3, 59.2), longitudes=(18.1, 18.0))
    with pytest.raises(UsageError, match="lie in one cell"):
        get(request, tmp_path)
    archive = get(replace(request, sites=("A", "B")), tmp_path)
    assert codes(archive.findings) == ["same_cell"] and "A and B" in archive.findings[0].message


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"latitudes": (1.0, 2.0)}, "2 latitudes and 1 longitudes"),
        ({"latitudes": (), "longitudes": ()}, "0 points"),
        ({"latitudes": (90.5,)}, "latitudes lie within"),
        ({"latitudes": (math.nan,)}, "latitudes lie within"),
        ({"longitudes": (181.0,)}, "longitudes lie within"),
        ({"start": date(1939, 12, 31)}, "begins on 1940-01-01"),
        ({"start": date(2021, 1, 2)}, "from --start 2021-01-02 on"),
        ({"end": timedelta(0)}, "a day that is over"),
        ({"end": timedelta(days=400)}, "a day that is over"),
        ({"sites": ("A", "B")}, "2 names for 1 points"),
        ({"sites": (" ",)}, "none of them blank"),
        ({"variables": ()}, "different names"),
        ({"variables": ("rain", "rain")}, "different names"),
        ({"model": "era5,era5_land"}, "expected one model"),
        ({"url": "file:///etc/passwd"}, "expected an address"),
        ({"url": "http://["}, "expected an address"),
    ],
)
def test_what_cannot_be_asked(options: dict[str, Any], part: str) -> None:
    fine: dict[str, Any] = {
        "latitudes": (59.3,),
        "longitudes": (18.1,),
        "start": date(2020, 1, 1),
        "end": date(2021, 1, 1),
    }
    today = datetime.now(UTC).date()  # a length of time counts from the day of this test
    options = {key: today + value if isinstance(value, timedelta) else value for key, value in options.items()}
    with pytest.raises(UsageError, match=part):
        OpenMeteoRequest(**{**fine, **options})


# Files


@pytest.mark.parametrize("points", [1, 2])
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_every_form_reads_back_as_the_same_panel(
    serve: Serve, tmp_path: Path, suffix: str, points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(serve, "2019-01-01", 2 * 365 * 24)
    places = {"latitudes": (59.3, -12.0)[:points], "longitudes": (18.1, -77.0)[:points]}
    request = wanted(server, "2019-12-01", "2020-02-10", sites=("Årsta", "Lima, Perú")[:points], **places)

    def gappy(documents: list[dict[str, Any]]) -> Any:
        documents[0]["hourly"]["precipitation"][5] = None
        return documents if len(documents) > 1 else documents[0]

    server.change = gappy
    archive = get(request, tmp_path)
    output = tmp_path / f"weather{suffix}"
    files.check_output(output, overwrite=False)
    files.write_series(archive, output)
    toml, fresh = files.write_configuration(request, archive, output)
    assert fresh and toml == tmp_path / "weather.toml"
    panel = read_panel(load_config(toml))
    assert set(panel["site"].values.tolist()) == {"Årsta", "Lima, Perú"} & set(archive.names)
    assert list(panel.data_vars) == [*NAMES[:2], "wind_direction_10m_sin", "wind_direction_10m_cos"]
    known = {"quantity": "precipitation_amount", "quantity_from": "name", "quantity_units": "mm"}
    assert panel["precipitation"].attrs == {"units": "mm", "accumulation_hours": 1.0, **known}
    assert panel["temperature_2m"].attrs["units"] == "°C"
    assert panel.attrs["step_hours"] == 1.0 and panel.sizes["time"] == 72 * 24
    for name, one in zip(archive.names, archive.series, strict=True):
        site = panel.sel(site=name)
        np.testing.assert_array_equal(site["time"].values, one.times)
        for variable in NAMES[:2]:
            np.testing.assert_array_equal(site[variable].values, one.values[variable].astype(np.float32))
        assert np.isnan(site["precipitation"].values[5]) == (name == "Årsta")


def test_units_are_in_the_header_or_the_fields(server: Server, tmp_path: Path) -> None:
    archive = get(wanted(server, "2019-03-01", "2019-03-01"), tmp_path)
    files.write_series(archive, tmp_path / "a.csv")
    lines = (tmp_path / "a.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "time,precipitation [mm],temperature_2m [°C],wind_direction_10m [°]"
    assert lines[1].startswith("2019-03-01T00:00Z,") and len(lines) == 25
    files.write_series(archive, tmp_path / "a.parquet")
    schema = pq.read_schema(tmp_path / "a.parquet")
    assert schema.field("precipitation").metadata[b"units"] == b"mm" and str(schema.field("time").type).endswith("UTC]")


def test_the_configuration_has_whole_years_where_there_are_enough(serve: Serve, tmp_path: Path) -> None:
    server = Server(serve, "2016-01-01", 6 * 366 * 24)
    for start, end, lines in (
        ("2016-01-01", "2020-12-31", ["validation_start = 2019-01-01", "test_start = 2020-01-01"]),
        ("2016-01-01", "2020-05-20", ["validation_start = 2018-05-01", "test_start = 2019-05-01"]),
        ("2019-01-01", "2020-05-20", ["validation_fraction = 0.2", "test_fraction = 0.2"]),
    ):
        request = wanted(server, start, end)
        output = tmp_path / f"{start}{end}.csv"
        toml, _ = files.write_configuration(request, get(request, tmp_path), output)
        assert toml is not None and all(line in toml.read_text().splitlines() for line in lines)
        load_config(toml)


def test_a_configuration_of_the_user_stays(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("mine")
    request = wanted(server, "2019-03-01", "2019-03-01")
    written = files.write_configuration(request, get(request, tmp_path), tmp_path / "a.csv")
    assert written == (tmp_path / "a.toml", False)
    assert (tmp_path / "a.toml").read_text() == "mine"


def test_without_rain_there_is_nothing_to_configure(server: Server, tmp_path: Path) -> None:
    request = wanted(server, "2019-03-01", "2019-03-01", variables=("temperature_2m",))
    assert files.write_configuration(request, get(request, tmp_path), tmp_path / "a.csv") == (None, False)


def test_places_for_the_file_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("mine")
    for output, part in (
        (tmp_path / "a.txt", "ends in .csv, .parquet or .json"),
        (tmp_path / "no" / "a.csv", "does not exist; make it first"),
        (tmp_path / "there.csv", "exists already"),
    ):
        with pytest.raises(UsageError, match=part):
            files.check_output(output, overwrite=False)
    files.check_output(tmp_path / "there.csv", overwrite=True)


def test_the_recorded_answer_replayed_year_by_year(
    shared: Callable[[str], Path], serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared("data/openmeteo_stockholm")
    recorded = json.loads((folder / "stockholm_raw.json").read_text())
    names = tuple(name for name in recorded["hourly"] if name != "time")

    def replay(call: Any) -> tuple[int, dict[str, str], bytes]:
        first = recorded["hourly"]["time"].index(f"{call.query['start_date']}T00:00")
        last = recorded["hourly"]["time"].index(f"{call.query['end_date']}T23:00")
        hourly = {name: recorded["hourly"][name][first : last + 1] for name in ("time", *names)}
        return 200, {}, json.dumps({**recorded, "hourly": hourly}).encode()

    days = (date(2018, 1, 1), date(2024, 12, 31))
    request = OpenMeteoRequest((59.33,), (18.07,), *days, ("Stockholm",), names, url=serve(replay))
    archive = get(request, tmp_path)
    assert archive.findings == []
    for suffix in (".csv", ".parquet", ".json"):
        output = tmp_path / f"stockholm{suffix}"
        files.write_series(archive, output)
        toml, _ = files.write_configuration(request, archive, output)
        assert toml is not None
        panel = read_panel(load_config(toml))
        toml.unlink()
        table = pd.read_csv(folder / "weather_hourly.csv")
        assert panel.sizes == {"site": 1, "time": 61_368} and panel["site"].values.tolist() == ["Stockholm"]
        for name in names:
            np.testing.assert_array_equal(panel[name].values[0], table[name].to_numpy(np.float32))
