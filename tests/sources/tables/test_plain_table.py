"""Tables that are read without a configuration: their columns are found by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llueve.errors import DataError
from llueve.panel import known_quantities, site_positions
from llueve.sources.tables.plain_table import read_plain_table

HOURS = 480


def frame(**columns: Any) -> pd.DataFrame:
    """Twenty days of weather; None leaves a column out."""
    random = np.random.default_rng(0)
    known: dict[str, Any] = {
        "time": pd.date_range("2024-01-01", periods=HOURS, freq="h").strftime("%Y-%m-%dT%H:%M"),
        "temperature_c": 20 + random.standard_normal(HOURS),
        "humidity [%]": 60 + random.standard_normal(HOURS),
        "rain [mm]": 0.0,
        **columns,
    }
    return pd.DataFrame({name: values for name, values in known.items() if values is not None})


def write(folder: Path, table: pd.DataFrame, suffix: str = ".csv") -> str:
    path = folder / f"table{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_are_found_by_name(suffix: str, tmp_path: Path) -> None:
    others = {"notes": "wet, cold", "code": "x7", "Site": "Lima", "LAT": -12.05, "lon": 282.96, "wind_dir": "NNE"}
    table = frame(**others).rename(columns={"time": "Date"})
    panel = read_plain_table(write(tmp_path, table, suffix))
    assert panel["site"].values.tolist() == ["Lima"] and panel.sizes["time"] == HOURS
    position = site_positions(panel)
    assert position is not None and position[0].tolist() == pytest.approx([-12.05, -77.04])
    found = {name: str(known.meaning) for name, known in known_quantities(panel).items()}
    assert {"air_temperature", "relative_humidity", "wind_from_direction sine"} <= set(found.values())
    assert not {"notes", "code", "LAT", "lon"} & set(map(str, panel.data_vars))


def test_a_table_without_site_or_position(tmp_path: Path) -> None:
    panel = read_plain_table(write(tmp_path, frame()))
    assert panel["site"].values.tolist() == ["site"] and site_positions(panel) is None
    assert known_quantities(panel)["rain"].units == "mm"


def test_a_column_that_may_be_a_speed_is_no_direction(tmp_path: Path) -> None:
    panel = read_plain_table(write(tmp_path, frame(**{"wind [m/s]": 3.0})))
    assert "wind" in panel and "wind_sin" not in panel


def test_marks_and_impossible_values_count_as_missing(tmp_path: Path) -> None:
    table = frame()
    table.loc[3, "temperature_c"] = -9999
    table.loc[[5, 6], "humidity [%]"] = [250.0, np.nan]
    panel = read_plain_table(write(tmp_path, table))
    assert np.flatnonzero(np.isnan(panel["temperature_c"].values[0])).tolist() == [3]
    assert np.flatnonzero(np.isnan(panel["humidity"].values[0])).tolist() == [5, 6]
    (finding,) = [each for each in panel.attrs["findings"] if each.code == "impossible"]
    assert finding.variable == "humidity" and finding.first == "2024-01-01T05:00:00"
    assert "1 values, such as 250 %, are impossible for relative_humidity" in finding.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"time": None, "when": "2024-01-01"},
            "has no column named time, date, datetime, timestamp, found temperature_c",
        ),
        (
            {"temperature_c": None, "humidity [%]": None, "rain [mm]": None, "x": 1},
            "no column is named after a quantity",
        ),
        (
            {"temperature_c": "warm"},
            "the table is read without a configuration, so no key can be set: change the table",
        ),
        ({"time": "2024-01-01"}, "change the table"),
    ],
)
def test_what_cannot_be_read_says_what_to_change(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table\.csv") as caught:
        read_plain_table(write(tmp_path, frame(**change)))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"\n\n", "has no column named"),
        (b"PAR1 and no more", "cannot be read as Parquet"),
        (b"\x89HDF\r\n\x1a\n\0\0", "holds binary data"),
        (b"time,\xff\n", "is neither Parquet nor CSV text"),
        (b'{"latitude": 1}', "expected hourly and hourly_units"),
    ],
)
def test_a_file_that_is_no_table(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "table"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_plain_table(str(path))
    assert words in str(caught.value)


def test_a_path_that_no_file_has() -> None:
    with pytest.raises(DataError, match="NUL"):
        read_plain_table("a\0b")
