"""`llueve data …` as its user meets it, against local servers, and what trains on the files that it leaves."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from forks import LLUEVE, forks
from llueve.audit import audit_panel
from llueve.config import load_config
from llueve.panel import seen_only, site_positions
from llueve.samples.read import read_panel
from llueve.sphere import distance_km

Serve = Callable[[Callable[[Any], tuple[int, dict[str, str], bytes]]], str]


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *parts: str) -> None:
        """A message with every part, no traceback."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err and self.out == ""
        for part in parts:
            assert part in self.err

    def fine(self) -> "Outcome":
        assert self.code == 0, self.err
        return self


def llueve(*arguments: str | Path, **environment: str) -> Outcome:
    """The command line in a process of its own, where warnings are errors."""
    done = forks().run(LLUEVE, *arguments, strict=True, COLUMNS="200", **environment)
    return Outcome(done.returncode, done.stdout, done.stderr)


def started(*arguments: str | Path) -> Outcome:
    """The same, as a user starts it."""
    command = [sys.executable, "-W", "error", "-m", "llueve", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def answer(call: Any) -> tuple[int, dict[str, str], bytes]:
    """Days of rain that follow days of cloud, at any point and time."""
    first = np.datetime64(call.query["start_date"], "h")
    times = np.arange(first, np.datetime64(call.query["end_date"], "D") + np.timedelta64(1, "D"))
    random = np.random.default_rng(int(first.astype(int)))
    cloud = np.repeat(random.random(len(times) // 24) * 100, 24).round()
    rain = np.where(np.roll(cloud, 24) > 60, random.random(len(times)).round(1), 0.0)
    known = {"precipitation": (rain, "mm"), "cloud_cover": (cloud, "%"), "wind_direction_10m": (cloud * 3, "°")}
    points = []
    for latitude, longitude in zip(call.query["latitude"].split(","), call.query["longitude"].split(","), strict=True):
        chosen = {name: known[name] for name in call.query["hourly"].split(",")}
        points.append(
            {
                "latitude": float(latitude),
                "longitude": float(longitude),
                "elevation": 5.0,
                "utc_offset_seconds": 0,
                "hourly_units": {"time": "iso8601", **{name: unit for name, (_, unit) in chosen.items()}},
                "hourly": {
                    "time": np.datetime_as_string(times, unit="m").tolist(),
                    **{name: numbers.tolist() for name, (numbers, _) in chosen.items()},
                },
            }
        )
    return 200, {}, json.dumps(points[0] if len(points) == 1 else points).encode()


def openmeteo(url: str, output: Path, *more: str) -> Outcome:
    place = ("--latitude", "-12.05", "--longitude", "-77.04", "--url", url, "--output", str(output))
    days = ("--start", "2022-11-01", "--end", "2023-02-28")
    return llueve("data", "openmeteo", *place, *days, "--variables", "precipitation,cloud_cover", *more)


def test_from_the_archive_to_a_verdict(serve: Serve, tmp_path: Path) -> None:
    output = tmp_path / "lima.csv"
    url = serve(answer)
    done = openmeteo(url, output, "--site", "Lima", "--variables", "wind_direction_10m").fine()
    assert done.err == ""
    hours = (30 + 31 + 31 + 28) * 24
    assert f"wrote {output}: 1 site(s), {hours} hours, 3 variables" in done.out
    assert f"llueve audit {tmp_path / 'lima.toml'}" in done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lima.csv", "lima.toml"]
    table = pd.read_csv(output)
    assert list(table.columns) == ["time", "precipitation [mm]", "cloud_cover [%]", "wind_direction_10m [°]"]
    assert len(table) == hours
    small = ("model.width=8", "model.heads=1", "model.layers=1", "model.feed_forward=8", "windows.stride=24")
    quick = ("train.epochs=1", "verify.bootstrap=100", "verify.lags=[1]", "windows.context=48")
    settings = [word for setting in (*small, *quick) for word in ("--set", setting)]
    run = tmp_path / "run"
    started("train", tmp_path / "lima.toml", "--run", run, *settings).fine()
    forecast = llueve("predict", run, output).fine()
    assert forecast.out.splitlines()[1].startswith("Lima,2023-02-28 23:00:00,0.")


def test_several_points_in_one_file(serve: Serve, tmp_path: Path) -> None:
    output = tmp_path / "two.parquet"
    more = ("--latitude", "-15.5", "--longitude", "-70.13", "--site", "Lima", "--site", "Puno")
    assert "2 site(s)" in openmeteo(serve(answer), output, *more).fine().out
    assert set(pd.read_parquet(output)["site"]) == {"Lima", "Puno"}
    assert json.loads(llueve("audit", tmp_path / "two.toml", "--json").fine().out)["findings"] is not None


def test_a_recorded_answer_is_evaluated_and_predicted_too(serve: Serve, tmp_path: Path) -> None:
    output = tmp_path / "lima.json"
    openmeteo(serve(answer), output).fine()
    assert json.loads(output.read_text())["hourly_units"]["precipitation"] == "mm"
    small = ("model.width=8", "model.heads=1", "model.layers=1", "model.feed_forward=8", "windows.stride=24")
    quick = ("train.epochs=1", "verify.bootstrap=100", "verify.lags=[1]", "windows.context=48")
    settings = [word for setting in (*small, *quick) for word in ("--set", setting)]
    run = tmp_path / "run"
    llueve("train", tmp_path / "lima.toml", "--run", run, *settings).fine()
    llueve("evaluate", run).fine()
    assert len(llueve("predict", run, output).fine().out.splitlines()) == 2


def test_surroundings_are_downloaded_upwind_first_and_only_seen(serve: Serve, tmp_path: Path) -> None:
    queries: list[dict[str, str]] = []

    def easterly(call: Any) -> tuple[int, dict[str, str], bytes]:
        queries.append(call.query)
        status, headers, content = answer(call)
        document = json.loads(content)
        for point in document if isinstance(document, list) else [document]:
            point["hourly"]["wind_direction_10m"] = [80.0 + hour % 20 for hour in range(len(point["hourly"]["time"]))]
        return status, headers, json.dumps(document).encode()

    output = tmp_path / "lima.parquet"
    more = ("--site", "Lima", "--surroundings", "--variables", "wind_direction_10m", "--start", "2023-01-01")
    done = openmeteo(serve(easterly), output, *more).fine()
    assert f"wrote {output}: 1 site(s) and 16 points around, {59 * 24} hours, 3 variables" in done.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lima.parquet", "lima.toml"]
    inner, *around = queries
    assert inner["latitude"] == "-12.05" and "cell_selection" not in inner
    assert len(around) == 8 and {query["cell_selection"] for query in around} == {"nearest"}
    east = [np.mean([float(each) for each in query["longitude"].split(",")]) + 77.04 for query in around]
    assert east.index(max(east)) < 4 <= east.index(min(east))
    config = load_config(tmp_path / "lima.toml", ("windows.context=48", "windows.stride=24"))
    panel = read_panel(config)
    assert panel["site"].values[~seen_only(panel)].tolist() == ["Lima"] and panel.sizes["site"] == 17
    assert "surroundings Lima 250 km NE" in panel["site"].values
    positions = site_positions(panel)
    assert positions is not None
    home = positions[panel["site"].values.tolist().index("Lima")]
    away = np.sort(distance_km(*home, *positions[seen_only(panel)].T))
    np.testing.assert_allclose(away, [250] * 8 + [700] * 8, atol=0.1)
    assert audit_panel(panel, config).errors == []


def test_surroundings_are_refused_before_the_first_call(tmp_path: Path) -> None:
    places = [word for n in range(6) for word in ("--latitude", str(10 * n), "--longitude", "0")]
    nowhere = "http://127.0.0.1:9/"
    openmeteo(nowhere, tmp_path / "a.csv", *places, "--surroundings").refused(
        2, "112 points around them", "at most 100"
    )
    named = ("--site", "surroundings here", "--surroundings")
    openmeteo(nowhere, tmp_path / "a.csv", *named).refused(2, "does not begin with 'surroundings '")


def test_an_existing_file_is_replaced_only_with_overwrite(serve: Serve, tmp_path: Path) -> None:
    output = tmp_path / "lima.csv"
    output.write_text("mine")
    url = serve(answer)
    openmeteo(url, output).refused(2, "exists already", "--overwrite")
    assert output.read_text() == "mine"
    openmeteo(url, output, "--overwrite").fine()
    assert output.read_text().startswith("time,")


def test_the_reason_of_the_server_is_shown(serve: Serve, tmp_path: Path) -> None:
    reason = b'{"error": true, "reason": "No data is available for this location"}'
    openmeteo(serve(lambda call: (400, {}, reason)), tmp_path / "a.csv").refused(
        2, "No data is available for this location"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (("--start", "1.11.2022"), "--start 1.11.2022: expected a day such as 2024-01-31"),
        (("--end", "2021-01-01"), "expected a day from --start"),
        (("--longitude", "7"), "1 latitudes and 2 longitudes"),
        (("--site", "A", "--site", "B"), "one --site per point"),
    ],
)
def test_wrong_use(tmp_path: Path, more: tuple[str, ...], part: str) -> None:
    openmeteo("http://127.0.0.1:9/", tmp_path / "a.csv", *more).refused(2, part)


def test_killed_in_the_middle_it_continues(serve: Serve, tmp_path: Path) -> None:
    asked: list[str] = []
    killed = threading.Event()

    def hanging(call: Any) -> tuple[int, dict[str, str], bytes]:
        asked.append(call.query["start_date"])
        if len(asked) == 2:
            killed.wait(60)
        return answer(call)

    url, output = serve(hanging), tmp_path / "lima.csv"
    arguments = ("--latitude", "-12", "--longitude", "-77", "--variables", "precipitation", "--url", url)
    days = ("--start", "2020-12-30", "--end", "2022-01-01", "--output", str(output))
    command = ("data", "openmeteo", *arguments, *days)
    running = forks().start(LLUEVE, *command)
    while len(asked) < 2 and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    killed.set()
    assert not output.exists()
    llueve(*command).fine()
    assert asked == ["2020-12-30", "2021-01-01", "2021-01-01", "2022-01-01"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lima.csv", "lima.toml"]
    assert len(pd.read_csv(output)) == (2 + 365 + 1) * 24


def test_era5_without_credentials(tmp_path: Path) -> None:
    pytest.importorskip("cdsapi", reason="the extra cds is not installed")
    place = ("--area", "0", "-82", "-18", "-68", "--output", tmp_path / "era5")
    environment = {"HOME": str(tmp_path), "CDSAPI_RC": str(tmp_path / "none")}
    for name in ("CDSAPI_URL", "CDSAPI_KEY"):
        environment[name] = ""
    done = llueve("data", "era5", *place, "--start", "2023-01-01", "--end", "2023-01-31", **environment)
    done.refused(1, "credentials", "https://cds.climate.copernicus.eu/profile", str(tmp_path / "none"))


def test_era5_is_interrupted_at_once_though_the_store_takes_its_time(serve: Serve, tmp_path: Path) -> None:
    pytest.importorskip("cdsapi", reason="the extra cds is not installed")
    asked, over = threading.Event(), threading.Event()

    def store(call: Any) -> tuple[int, dict[str, str], bytes]:
        if "/processes/" in call.path:
            asked.set()
            over.wait(60)
        return 200, {}, b'{"messages": []}'

    place = ("--area", "0", "-82", "-18", "-68", "--output", str(tmp_path / "era5"))
    days = ("--start", "2023-01-01", "--end", "2023-03-31")
    environment = {"CDSAPI_URL": serve(store), "CDSAPI_KEY": "k"}
    running = forks().start(LLUEVE, "data", "era5", *place, *days, **environment)
    try:
        assert asked.wait(60)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=20)
    finally:
        over.set()
        running.end()
    assert running.returncode != 0 and "Traceback" not in err


def test_era5_wrong_use(tmp_path: Path) -> None:
    place = ("--area", "-18", "-82", "0", "-68", "--output", tmp_path / "era5")
    llueve("data", "era5", *place, "--start", "2023-01-01", "--end", "2023-01-31").refused(2, "expected N W S E")
    assert not (tmp_path / "era5").exists()
