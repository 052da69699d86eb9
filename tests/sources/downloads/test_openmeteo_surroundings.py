"""Points around the requested ones: where they lie, which wind orders them, and the limit of calls."""

import json
import threading
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llueve.errors import UsageError
from llueve.progress import ProgressBar
from llueve.sources.downloads import openmeteo_files as files
from llueve.sources.downloads.http import RetryPolicy
from llueve.sources.downloads.openmeteo_archive import CallBudget, OpenMeteoRequest
from llueve.sources.downloads.openmeteo_surroundings import (
    DISTANCES_KM,
    LEAST_APART_KM,
    download_with_surroundings,
    sector_requests,
    wind_from,
)
from llueve.sources.tables.openmeteo import PointSeries
from llueve.sources.tables.raw_table import SiteLocation
from llueve.sphere import distance_km

DAYS = (date(2020, 1, 1), date(2020, 12, 31))
QUIET = Console(quiet=True)


def request(*places: tuple[float, float], **options: Any) -> OpenMeteoRequest:
    latitudes, longitudes = zip(*places, strict=True)
    return OpenMeteoRequest(latitudes, longitudes, *options.pop("days", DAYS), **options)


@given(st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 89.9])), st.one_of(st.floats(-180, 180), st.just(179.9)))
def test_both_rings_lie_at_their_distances_everywhere(latitude: float, longitude: float) -> None:
    sectors = sector_requests(request((latitude, longitude)))
    assert [sector.bearing for sector in sectors] == [0, 45, 90, 135, 180, 225, 270, 315]
    for sector in sectors:
        km = distance_km(latitude, longitude, sector.request.latitudes, sector.request.longitudes)
        np.testing.assert_allclose(km, DISTANCES_KM, atol=0.02)  # coordinates have four decimals
        assert [name.split()[-3] for name in sector.request.sites] == ["250", "700"]
    points = np.array([place for s in sectors for place in zip(s.request.latitudes, s.request.longitudes, strict=True)])
    apart = distance_km(points[:, None, 0], points[:, None, 1], points[:, 0], points[:, 1])
    assert apart[~np.eye(16, dtype=bool)].min() > LEAST_APART_KM


def test_points_near_others_are_left_out() -> None:
    alone, near = sector_requests(request((0, 0))), sector_requests(request((0, 0), (0, 0.3)))
    assert [sector.request.sites for sector in near] == [sector.request.sites for sector in alone]
    # 2.25° to the north lies the other point, and the rings of both share no place.
    apart = [site for sector in sector_requests(request((0, 0), (2.25, 0))) for site in sector.request.sites]
    assert "surroundings 0N 0E 250 km N" not in apart and "surroundings 2.25N 0E 250 km S" not in apart
    with pytest.raises(UsageError, match="at most 150 characters"):
        sector_requests(request((0, 0), sites=("x" * 151,)))


def point(**values: list[float]) -> PointSeries:
    times = np.datetime64("2020-01-01", "h") + np.arange(len(next(iter(values.values()))))
    numbers = {name: np.array(each, dtype=float) for name, each in values.items()}
    return PointSeries(None, SiteLocation(0, 0, 0), times, {}, numbers)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"wind_direction_10m": [350, 10], "wind_speed_10m": [5, 5]}, 0),
        ({"wind_direction_10m": [90, 180], "wind_speed_10m": [1, 0]}, 90),
        ({"wind_direction_10m": [180, np.nan, 200], "wind_speed_10m": [3, 9, np.nan]}, 180),
        ({"wind_direction_10m": [40, 50]}, 45),
        ({"wind_direction_10m": [0, 180], "wind_speed_10m": [2, 2]}, 270),  # no usual wind: west
        ({"wind_direction_10m": [np.nan], "wind_speed_10m": [2]}, 270),
        ({"rain": [1.0]}, 270),
    ],
)
def test_the_usual_wind(values: dict[str, list[float]], expected: float) -> None:
    assert (wind_from(point(**values)) - expected + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)


def test_calls_wait_for_the_limit_of_the_service() -> None:
    waits: list[float] = []
    budget = CallBudget(RetryPolicy(sleep=waits.append))
    one = request((0, 0), (1, 1))
    with ProgressBar(QUIET, "", 1) as bar:
        for _ in range(12):  # 2 points × 366 / 14 weeks: 52.3 calls each
            budget.spend(one, DAYS, bar)
    assert waits == pytest.approx([(12 * 2 * 366 / 14 - 600) / 10], abs=0.5)


class Archive:
    """Answers with the asked hours; points north of 3°N have no value, and some share a cell."""

    def __init__(self) -> None:
        self.lock, self.now, self.most = threading.Lock(), 0, 0

    def answer(self, call: Any) -> tuple[int, dict[str, str], bytes]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        first = np.datetime64(call.query["start_date"], "h")
        times = np.arange(first, np.datetime64(call.query["end_date"], "D") + np.timedelta64(1, "D"))
        places = zip(call.query["latitude"].split(","), call.query["longitude"].split(","), strict=True)
        points = [
            {
                "latitude": round(float(north), 2),
                "longitude": round(float(east), 2),
                "hourly_units": {"time": "iso8601", "precipitation": "mm"},
                "hourly": {
                    "time": np.datetime_as_string(times, unit="m").tolist(),
                    "precipitation": [None if float(north) > 3 else 1.0] * (len(times) - 1) + [None],
                },
            }
            for north, east in places
        ]
        with self.lock:
            self.now -= 1
        return 200, {}, json.dumps(points if len(points) > 1 else points[0]).encode()


def test_points_without_values_are_left_out_and_findings_are_summed_up(serve: Any, tmp_path: Path) -> None:
    archive = Archive()
    asked = request(
        (0, 0), days=(date(2020, 1, 1), date(2020, 1, 3)), variables=("precipitation",), url=serve(archive.answer)
    )
    done = download_with_surroundings(asked, tmp_path / "parts", QUIET)
    assert done.around == 16 - 3 and len(done.names) == len(done.series) == 14  # 700 km to the N, NE and NW
    found = {finding.code: finding.message for finding in done.findings}
    assert "700 km NW" in found["surroundings_left_out"]
    ends = [finding for finding in done.findings if finding.code == "not_yet_available"]
    assert len(ends) == 2 and ends[1].message.endswith("; and 12 more like it around")
    assert archive.most <= 4
    for suffix in (".csv", ".json"):
        files.write_series(done, tmp_path / f"a{suffix}")
        toml, _ = files.write_configuration(asked, done, tmp_path / f"a{suffix}")
        assert toml is not None and 'seen_only = ["surroundings *"]' in toml.read_text()
        assert "0.0000N 0.0000E at 0.0000N 0.0000E, and 13 points around" in toml.read_text()
        toml.unlink()


def test_the_first_failure_ends_the_download(serve: Any, tmp_path: Path) -> None:
    def refuse(call: Any) -> tuple[int, dict[str, str], bytes]:
        if "cell_selection" in call.query:
            return 400, {}, b'{"error": true, "reason": "no such cell"}'
        return Archive().answer(call)

    asked = request((0, 0), days=(date(2020, 1, 1), date(2020, 1, 3)), variables=("precipitation",), url=serve(refuse))
    with pytest.raises(UsageError, match="no such cell"):
        download_with_surroundings(asked, tmp_path / "parts", QUIET)
