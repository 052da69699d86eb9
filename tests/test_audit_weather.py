"""What the audit says of gauges, hours, gaps, directions and coordinates, and what healthy weather must not set off."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from numpy.typing import NDArray
from rich.console import Console

from llueve.audit import Audit, audit_panel, render
from llueve.config import Config, parse_config
from llueve.errors import AuditError
from llueve.panel import Finding, check_panel
from llueve.samples.read import read_panel

Values = NDArray[np.float64]
SPLIT = {"split": {"validation_fraction": 0.2, "test_fraction": 0.2}, "windows": {"context": 8}}
RAIN = {"target": {"variable": "rain", "threshold_mm": 1.0}}
DAYS = 1096


def panel_of(
    units: dict[str, str], step_hours: float = 24.0, sites: list[str] | None = None, **features: Values
) -> xr.Dataset:
    """A panel from 2020 on, of values by (site, time)."""
    arrays = {
        name: (
            ("site", "time"),
            np.atleast_2d(values).astype(np.float32),
            {"units": units[name]} if name in units else {},
        )
        for name, values in features.items()
    }
    shape = next(iter(arrays.values()))[1].shape
    times = np.datetime64("2020-01-01", "ns") + (np.arange(shape[1]) * step_hours * 3600).astype("timedelta64[s]")
    coords = {"site": sites or [f"site {number}" for number in range(shape[0])], "time": times}
    return check_panel(
        xr.Dataset(arrays, coords, attrs={"step_hours": step_hours, "source": "here.csv", "sites_in_file": []})
    )


def config_of(**sections: Any) -> Config:
    return parse_config({"data": {"path": "here.csv"}, **RAIN, **SPLIT, **sections}, where="test")


def found(audit: Audit, code: str) -> list[Finding]:
    return [finding for finding in audit.findings if finding.code == code]


def codes(panel: xr.Dataset, **sections: Any) -> dict[str, Finding]:
    return {finding.code: finding for finding in audit_panel(panel, config_of(**sections)).findings}


def weather(seed: int, wet: float | Values, days: int = DAYS, stays: float = 0.3) -> Values:
    """Daily rain, mm: a Markov chain of wet and dry days with this share of wet days, and amounts with a long tail."""
    random, share = np.random.default_rng(seed), np.broadcast_to(wet, days)
    is_wet, state = np.zeros(days, dtype=bool), False
    for day in range(days):
        state = bool(random.random() < (share[day] + stays * (1 - share[day]) if state else share[day] * (1 - stays)))
        is_wet[day] = state
    return np.where(is_wet, np.round(random.gamma(0.7, 6, days) + 0.1, 1), 0.0)


SEASON = np.sin(2 * np.pi * np.arange(DAYS) / 365.25)
MONSOON = np.where(SEASON > 0, 0.7 * SEASON, 0.0)
"""Share of wet days where half of the year is dry."""


# Dead gauges


@pytest.mark.parametrize("seed", range(3))
def test_a_gauge_of_zeros_for_months_is_named(seed: int) -> None:
    rain = weather(seed, 0.35)
    rain[400:540] = 0.0
    finding = codes(panel_of({"rain": "mm"}, rain=rain))["dead_gauge"]
    first, last = np.datetime64(str(finding.first)), np.datetime64(str(finding.last))
    assert (finding.variable, finding.site) == ("rain", "site 0")
    assert abs(first - np.datetime64("2021-02-04")) < np.timedelta64(15, "D")
    assert abs(last - np.datetime64("2021-06-23")) < np.timedelta64(15, "D")
    assert "blank these cells" in finding.message


def test_a_dead_gauge_of_hours_and_without_other_years_is_named_by_its_neighbours() -> None:
    daily = weather(0, 0.35, 200)
    rain = np.zeros((3, 200 * 24))
    for site in range(3):
        rain[site, 15::24] = daily * (1 + 0.2 * site)
    rain[1, 60 * 24 : 150 * 24] = 0.0
    (finding,) = found(audit_panel(panel_of({"rain": "mm"}, 1.0, rain=rain), config_of()), "dead_gauge")
    assert finding.site == "site 1"


@pytest.mark.parametrize(
    "wet",
    [0.0, 0.02, 0.05, 0.35, MONSOON, np.where(SEASON > 0, 0.5, 0.0), np.roll(MONSOON, 90)],
    ids=lambda wet: str(np.mean(wet)),
)
@pytest.mark.parametrize("days", [300, 500, DAYS])
def test_a_desert_and_a_dry_season_have_no_dead_gauge(wet: float | Values, days: int) -> None:
    share = np.broadcast_to(wet, DAYS)[:days]
    rain = np.stack([weather(seed, share, days) for seed in range(4)])
    for panel in (panel_of({"rain": "mm"}, rain=rain), *(panel_of({"rain": "mm"}, rain=row) for row in rain)):
        assert found(audit_panel(panel, config_of()), "dead_gauge") == []


def test_a_drought_of_a_whole_region_is_no_dead_gauge() -> None:
    rain = np.stack([weather(0, 0.35) * factor for factor in (1.0, 1.2, 0.8)])
    rain[:, 400:540] = 0.0
    assert found(audit_panel(panel_of({"rain": "mm"}, rain=rain), config_of()), "dead_gauge") == []


def test_a_test_period_of_a_dead_gauge_is_not_to_be_moved() -> None:
    rain = weather(1, 0.35)
    rain[850:] = 0.0  # the whole test period
    told = codes(panel_of({"rain": "mm"}, rain=rain))
    assert "dead_gauge" in told
    assert "a dead gauge explains it" in told["one_class"].message and "move the cuts" not in told["one_class"].message


# Hours that are never reported


def hourly(tmp_path: Path, keep: Callable[[pd.DataFrame], pd.DataFrame], **data: Any) -> Config:
    random = np.random.default_rng(0)
    times = pd.date_range("2020-01-01", periods=24 * 120, freq="h")
    rain = np.where(random.random(len(times)) < 0.05, random.gamma(1, 2, len(times)), 0).round(1)
    frame = pd.DataFrame({"time": times, "temperature": random.normal(size=len(times)).round(2), "rain": rain})
    keep(frame).to_csv(tmp_path / "table.csv", index=False)
    return config_of(data={"path": str(tmp_path / "table.csv"), "units": {"rain": "mm"}, **data})


def six_hourly_values(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(rain=frame["rain"].where(frame["time"].dt.hour % 6 == 0))


def six_hourly_rows(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["time"].dt.hour % 6 == 0]


def test_rain_at_four_hours_of_the_day_is_named_with_advice_that_works(tmp_path: Path) -> None:
    config = hourly(tmp_path, six_hourly_values)
    audit = audit_panel(read_panel(config), config)
    (error,) = audit.errors
    assert error.code == "hours_never_reported" and "only at 00:00, 06:00, 12:00, 18:00 UTC" in error.message
    assert "keep only the rows of these hours and set data.step_hours = 6" in error.message
    config = hourly(tmp_path, lambda frame: six_hourly_rows(six_hourly_values(frame)), step_hours=6)
    assert audit_panel(read_panel(config), config).errors == []


def test_rows_at_four_hours_of_the_day_need_only_the_step(tmp_path: Path) -> None:
    config = hourly(tmp_path, six_hourly_rows, step_hours=1)
    (error,) = audit_panel(read_panel(config), config).errors
    assert error.code == "hours_never_reported" and "keep only" not in error.message
    config = hourly(tmp_path, six_hourly_rows, step_hours=6)
    assert audit_panel(read_panel(config), config).errors == []


def test_rain_by_day_alone_allows_a_shorter_horizon(tmp_path: Path) -> None:
    def by_day(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(rain=frame["rain"].where(frame["time"].dt.hour.between(6, 18)))

    config = hourly(tmp_path, by_day)
    (error,) = audit_panel(read_panel(config), config).errors
    assert "set target.horizon_hours = 13" in error.message
    shorter = {"variable": "rain", "threshold_mm": 1.0, "horizon_hours": 13}
    assert (
        audit_panel(
            read_panel(config), config_of(data={"path": config.data.path, "units": {"rain": "mm"}}, target=shorter)
        ).errors
        == []
    )


def test_one_site_without_hours_is_a_warning(tmp_path: Path) -> None:
    def two_sites(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([frame.assign(site="whole"), six_hourly_rows(frame).assign(site="gaps")])

    config = hourly(tmp_path, two_sites, site="site")
    (finding,) = found(audit_panel(read_panel(config), config), "hours_never_reported")
    assert (finding.severity, finding.site) == ("warning", "gaps") and "table of their own" in finding.message
    config = hourly(tmp_path, lambda frame: frame)
    assert found(audit_panel(read_panel(config), config), "hours_never_reported") == []


# Gaps that go with rain


def test_gaps_that_go_with_rain_are_named_with_both_shares() -> None:
    random, rain = np.random.default_rng(0), weather(2, 0.35)
    wet_tomorrow = np.append(rain[1:], 0) >= 1
    sensor = np.where(random.random(DAYS) < np.where(wet_tomorrow, 0.51, 0.2), np.nan, random.normal(size=DAYS))
    finding = codes(panel_of({"rain": "mm"}, rain=rain, sensor=sensor))["missing_with_rain"]
    wet, dry = finding.message.split("cells is ")[1].split(" in wet cases and ")
    assert finding.variable == "sensor" and float(wet) == pytest.approx(0.51, abs=0.06)
    assert float(dry.split()[0]) == pytest.approx(0.2, abs=0.06)


def test_gaps_by_chance_and_outages_are_not_named() -> None:
    random, rain = np.random.default_rng(0), weather(2, MONSOON + 0.05)
    noise = {f"v{i}": np.where(random.random(DAYS) < 0.3, np.nan, random.normal(size=DAYS)) for i in range(30)}
    outage = random.normal(size=DAYS)
    outage[100:190] = outage[460:560] = np.nan
    assert "missing_with_rain" not in codes(panel_of({"rain": "mm"}, rain=rain, outage=outage, **noise))


# Angles


@pytest.mark.parametrize(
    ("name", "units"), [("WDF2", {}), ("wind_direction_10m", {"wind_direction_10m": "°"}), ("x", {"x": "degree"})]
)
def test_a_direction_as_a_plain_number_is_named(name: str, units: dict[str, str]) -> None:
    angle = np.random.default_rng(0).uniform(0, 360, DAYS)
    finding = codes(panel_of({"rain": "mm", **units}, rain=weather(0, 0.3), **{name: angle}))["plain_direction"]
    assert finding.variable == name and f'data.wind_directions = ["{name}"]' in finding.message


def test_the_advice_on_a_direction_works(tmp_path: Path) -> None:
    def windy(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(WDF2=np.random.default_rng(0).integers(0, 360, len(frame)))

    config = hourly(tmp_path, windy)
    assert found(audit_panel(read_panel(config), config), "plain_direction")
    config = hourly(tmp_path, windy, wind_directions=["WDF2"])
    assert found(audit_panel(read_panel(config), config), "plain_direction") == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("latitude", np.full(DAYS, 40.4)),
        ("elevation_angle", np.random.default_rng(0).uniform(-90, 90, DAYS)),
        ("direct_radiation", np.random.default_rng(0).uniform(0, 360, DAYS)),
        ("day_of_year", np.arange(DAYS) % 366.0),
    ],
)
def test_other_numbers_are_no_direction(name: str, values: Values) -> None:
    assert "plain_direction" not in codes(panel_of({"rain": "mm"}, rain=weather(0, 0.3), **{name: values}))


def test_a_site_whose_coordinates_change_is_named() -> None:
    rain = np.stack([weather(seed, 0.3) for seed in range(3)])
    latitude = np.repeat([[10.0], [20.0], [30.0]], DAYS, axis=1)
    assert "moving_site" not in codes(panel_of({"rain": "mm"}, rain=rain, latitude=latitude))
    latitude[1, ::3] = 20.25
    finding = codes(panel_of({"rain": "mm"}, rain=rain, latitude=latitude))["moving_site"]
    assert (finding.variable, finding.site) == ("latitude", "site 1") and "20 to 20.25" in finding.message


# Units of the United States


@pytest.mark.parametrize(
    ("name", "unit", "values", "wrong"),
    [
        ("gust", "mph", (5, 60), 700.0),
        ("temperature", "degF", (10, 100), 212.0),
        ("pressure", "inHg", (29, 31), 1013.0),
        ("wind", "kt", (0, 30), 400.0),
        ("rain", "in", (0, 0), 100.0),
        ("ceiling", "ft", (100, 30000), 999999.0),
        ("visibility", "mi", (0, 10), 9999.0),
    ],
)
def test_values_in_units_of_the_united_states_have_a_range(
    name: str, unit: str, values: tuple[float, float], wrong: float
) -> None:
    healthy = np.random.default_rng(0).uniform(*values, DAYS)
    if name == "rain":
        healthy = weather(0, 0.3) / 25.4
    features = {"rain": weather(0, 0.3) / 25.4, name: healthy}
    units = {"rain": "in", name: unit}
    assert "implausible" not in codes(panel_of(units, **features))
    features[name] = np.where(np.arange(DAYS) == 200, wrong, healthy)
    assert codes(panel_of(units, **features))["implausible"].variable == name


def test_inches_of_mercury_labelled_hectopascals_are_named() -> None:
    pressure = np.random.default_rng(0).normal(29.9, 0.2, DAYS)
    assert (
        "inHg" in codes(panel_of({"rain": "mm", "sp": "hPa"}, rain=weather(0, 0.3), sp=pressure))["implausible"].message
    )


# No false alarms

HOURS = 24 * 365


def slow(seed: int, hours: int = HOURS, memory: float = 0.98) -> Values:
    """A smooth random series with a standard deviation of 1."""
    random, series = np.random.default_rng(seed), np.zeros(hours)
    for hour in range(1, hours):
        series[hour] = memory * series[hour - 1] + np.sqrt(1 - memory**2) * random.normal()
    return series


def hourly_rain(seed: int) -> Values:
    random = np.random.default_rng(seed)
    return np.where(slow(seed) > 1.5, random.gamma(0.6, 1.2, HOURS), 0).round(1)


@pytest.mark.parametrize("statistic", ["mean", "sum", "max", "min"])
@pytest.mark.parametrize("window", [24, 168])
def test_rolling_columns_are_not_stuck(statistic: str, window: int) -> None:
    rain, warmth = hourly_rain(3), (15 + 6 * slow(4)).round(1)
    features = {
        f"{name}_{statistic}": getattr(pd.Series(series).rolling(window), statistic)().to_numpy().round(4)
        for name, series in (("rain", rain), ("warmth", warmth))
    }
    assert "stuck" not in codes(panel_of({"rain": "mm"}, 1.0, rain=rain, **features))


def test_air_near_saturation_is_not_stuck() -> None:
    humidity = np.minimum(np.round(80 + 15 * slow(5)), 99.0)
    humidity[np.arange(HOURS) % 97 == 0] = 100.0
    assert "stuck" not in codes(panel_of({"rain": "mm", "humidity": "%"}, 1.0, rain=hourly_rain(5), humidity=humidity))


@pytest.mark.parametrize("sites", [1, 2])
def test_a_steady_wind_is_neither_stuck_nor_a_twin(sites: int) -> None:
    wind = np.stack([np.round(7 + 1.5 * slow(20 + site, memory=0.995)) for site in range(sites)])
    angle = np.deg2rad(np.stack([10 * np.round(9 + 1.2 * slow(30 + site, memory=0.995)) for site in range(sites)]))
    rain = np.stack([hourly_rain(40 + site) for site in range(sites)])
    told = codes(panel_of({"rain": "mm"}, 1.0, rain=rain, wind=wind, wind_sin=np.sin(angle), wind_cos=np.cos(angle)))
    assert not {"stuck", "twin_sites"} & set(told)


def test_a_vane_that_is_stuck_is_named_once() -> None:
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, HOURS)
    angle[1000:1200] = 1.0
    audit = audit_panel(
        panel_of({"rain": "mm"}, 1.0, rain=hourly_rain(5), d_sin=np.sin(angle), d_cos=np.cos(angle)), config_of()
    )
    (finding,) = found(audit, "stuck")
    assert finding.variable == "d_sin" and finding.count == 200


def test_a_coarse_sensor_that_is_stuck_is_still_named() -> None:
    dew = np.round(10 + 5 * slow(6))
    dew[2000:2600] = 11.0
    rain = hourly_rain(6)
    assert codes(panel_of({"rain": "mm"}, 1.0, rain=rain, dew=dew))["stuck"].count >= 600
    assert "stuck" not in codes(panel_of({"rain": "mm"}, 1.0, rain=rain, dew=np.round(10 + 5 * slow(6))))


@pytest.mark.parametrize("units", [{"rain": "mm"}, {"rain": "mm", "precipitation": "mm"}])
def test_a_thunderstorm_is_no_outlier_and_a_typing_error_is(units: dict[str, str]) -> None:
    rain = hourly_rain(7)
    rain[4000] = 29.0
    other = np.where(np.random.default_rng(0).random(HOURS) < 0.004, 0.4, 0.0)  # a dry place
    other[3000] = 29.0
    assert "outliers" not in codes(panel_of(units, 1.0, rain=rain, precipitation=other))
    rain[5000] = 2900.0
    assert codes(panel_of(units, 1.0, rain=rain, precipitation=other))["outliers"].count == 1


# Many sites


def test_thousands_of_equal_sites_are_audited_and_listed_shortly() -> None:
    series = np.random.default_rng(0).normal(size=64)
    rain = np.repeat(weather(0, 0.5, 64)[None], 3000, axis=0)
    start = perf_counter()
    audit = audit_panel(panel_of({"rain": "mm"}, rain=rain, noise=np.repeat(series[None], 3000, axis=0)), config_of())
    assert perf_counter() - start < 120  # the square of the sites would take an hour
    assert all(len(finding.message) < 1500 for finding in audit.findings)
    assert found(audit, "twin_sites")


def test_a_table_of_thousands_of_findings_is_short() -> None:
    empty = {f"v{number}": np.full(DAYS, np.nan) for number in range(300)}
    audit = audit_panel(panel_of({"rain": "mm"}, rain=weather(0, 0.5), **empty), config_of())
    with pytest.raises(AuditError, match="and 280 more") as caught:
        audit.require_clean()
    assert len(str(caught.value)) < 5000
    screen = StringIO()
    Console(width=120, file=screen).print(render(audit))
    assert len(audit.errors) == 300 and "and 280 more" in screen.getvalue()
