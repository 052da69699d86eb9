"""The network of stations in the package: what it holds, and how it is made from hours."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from llueve.audit import audit_panel
from llueve.config import load_config
from llueve.panel import feature_names, site_positions
from llueve.samples.read import read_panel
from llueve.sources.tables.package_files import package_file

ROOT = Path(__file__).parents[2]
NETWORK = package_file("package:llueve/data/inmet_brazil.parquet")
EARLY = np.datetime64("2023-01-01T00")


def test_the_network_is_small_and_passes_the_audit() -> None:
    config = load_config(ROOT / "examples" / "brazil.toml")
    panel = read_panel(config)
    assert NETWORK.stat().st_size < 3_000_000
    assert panel.sizes == {"site": 95, "time": 2923} and panel.attrs["step_hours"] == 6.0
    assert {name: panel[name].attrs["units"] for name in feature_names(panel)} == {
        "temperature": "degC", "dewpoint": "degC", "pressure": "hPa", "wind_east": "m s-1", "wind_north": "m s-1",
        "gust": "m s-1", "rain": "mm", "radiation": "W m-2",
    }  # fmt: skip
    positions = site_positions(panel)
    assert positions is not None
    assert (positions.min(axis=0) > (-34, -75)).all() and (positions.max(axis=0) < (6, -34)).all()  # Brazil
    audit = audit_panel(panel, config)
    assert [finding for finding in audit.findings if finding.severity != "info"] == []
    assert min(part["n"] for part in audit.splits.values()) > 20_000  # at 00 and 12 UTC


def test_a_step_of_the_network_is_six_hours_of_the_corpus(shared: Callable[[str], Path]) -> None:
    file = pq.ParquetFile(shared("data/corpus/hourly_inmet_brazil.parquet"))
    columns = ["site", "time", "precipitation_mm", "pressure_surface_hpa", "wind_speed_ms", "wind_direction_deg"]
    hours = file.read_row_group(0, columns).to_pandas()
    hours["site"] = hours["site"].astype(str).str.removeprefix("BR_INMET_")
    sites = ["A001", "A019"]
    hours = hours[hours["site"].isin(sites)].copy()
    hours["step"] = hours["time"].dt.ceil("6h")
    steps = hours.groupby(["site", "step"])
    made = pq.read_table(NETWORK).to_pandas()
    made["time"] = made["time"].dt.tz_localize(None)
    made = made[made["site"].isin(sites)].set_index(["site", "time"]).astype(float)
    rain = steps["precipitation_mm"].sum(min_count=6).reindex(made.index)
    np.testing.assert_allclose(made["rain"], rain, atol=1e-3)
    pressure = steps["pressure_surface_hpa"].mean().where(steps["pressure_surface_hpa"].count() >= 4)
    np.testing.assert_allclose(made["pressure"], pressure.reindex(made.index), atol=0.051)
    blowing = np.deg2rad(hours["wind_direction_deg"] + 180)
    hours["north"] = hours["wind_speed_ms"] * np.cos(blowing)
    north = hours.groupby(["site", "step"])["north"].mean().reindex(made.index)
    np.testing.assert_allclose(made["wind_north"].dropna(), north[made["wind_north"].notna()], atol=0.11)


def make(folder: Path, hours: pd.DataFrame) -> Path:
    hours.to_parquet(folder / "hours.parquet")
    output = folder / "made.parquet"
    command = [sys.executable, "benchmarks/make_network.py", str(folder / "hours.parquet"), "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture
def hours() -> pd.DataFrame:
    """One station at the equator and Greenwich, in all hours of the two years."""
    count = 2923 * 6
    values: dict[str, Any] = {
        "site": "BR_INMET_X001",
        "latitude": 0.0,
        "longitude": 0.0,
        "time": (EARLY + np.arange(1, count + 1)).astype("datetime64[ms]"),
        "temperature_c": 20.0 + np.arange(count) % 7,
        "dewpoint_c": 10.0,
        "pressure_surface_hpa": 1000.0,
        "wind_speed_ms": 2.0 + np.arange(count) % 5,
        "wind_direction_deg": np.where(np.arange(count) < 6, 270.0, 200.0 + np.arange(count) % 13 * 10),
        "gust_ms": 5.0 + np.arange(count) % 11,
        "precipitation_mm": 0.2,
        "radiation_wm2": np.nan,
    }
    frame = pd.DataFrame(values)
    frame.loc[frame.index % 60 < 6, "precipitation_mm"] = 0.0
    return frame


def test_steps_are_means_sums_and_largest_values(tmp_path: Path, hours: pd.DataFrame) -> None:
    hours.loc[1, "precipitation_mm"] = np.nan  # one of the first six hours
    hours.loc[[6, 7], "temperature_c"] = np.nan  # four of the second six remain: 20 + (8, 9, 10, 11) % 7
    hours.loc[[12, 13, 14], "temperature_c"] = np.nan  # three of the third remain
    hours.loc[10, "radiation_wm2"] = 600.0  # by day; the other hours of the step are missing
    written = make(tmp_path, hours)
    rows = pq.read_table(written).to_pandas().set_index("time")
    assert rows["site"].unique().tolist() == ["X001"] and len(rows) == 2923
    first, second, third, fourth = rows.iloc[:4].drop(columns="site").astype(float).to_dict("records")
    assert str(rows.index[0]) == "2023-01-01 06:00:00+00:00"
    assert np.isnan(first["rain"]) and second["rain"] == pytest.approx(1.2)
    assert first["temperature"] == 22.5  # 20 + (0 + 1 + 2 + 3 + 4 + 5) / 6
    assert second["temperature"] == 22.5  # 20 + (1 + 2 + 3 + 4) / 4
    assert np.isnan(third["temperature"])
    assert (first["wind_east"], first["wind_north"]) == (3.7, 0.0)  # (2 + 3 + 4 + 5 + 6 + 2) / 6, from the west
    assert first["gust"] == 10.0
    assert first["radiation"] == fourth["radiation"] == 0  # night
    assert np.isnan(second["radiation"]) and np.isnan(third["radiation"])
    once = written.read_bytes()
    assert make(tmp_path, hours).read_bytes() == once


def test_stuck_sensors_and_incomplete_stations_stay_out(tmp_path: Path, hours: pd.DataFrame) -> None:
    hours.loc[600:719, "wind_speed_ms"] = 0.0  # 20 steps
    hours.loc[1200:1259, "precipitation_mm"] = 0.4  # 10 steps
    short = hours.assign(site="BR_INMET_X000", precipitation_mm=hours["precipitation_mm"].where(hours.index % 10 != 0))
    rows = pq.read_table(make(tmp_path, pd.concat([short, hours]))).to_pandas()
    assert rows["site"].unique().tolist() == ["X001"]
    assert rows["wind_east"].isna().to_numpy().nonzero()[0].tolist() == list(range(100, 120))
    assert rows["wind_north"].isna().to_numpy().nonzero()[0].tolist() == list(range(100, 120))
    assert rows["rain"].isna().to_numpy().nonzero()[0].tolist() == list(range(200, 210))
