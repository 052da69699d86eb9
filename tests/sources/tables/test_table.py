"""`read_table` at its public face: tiny tables, then the real ones."""

import re
import sys
from datetime import datetime, timedelta
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from llueve.config import DataConfig, TargetConfig
from llueve.errors import DataError
from llueve.panel import Finding, feature_names, label_name, static_names
from llueve.samples.target import class_labels
from llueve.sources.tables.table import read_table

SHARED = Path(__file__).parents[4] / "shared" / "data"
DAYS = "time,rain\n2024-01-01,1\n2024-01-02,2\n2024-01-03,4\n"
LABEL = TargetConfig(label="wet")


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (SHARED / name).exists(), reason=f"{SHARED / name} is not on this machine")


def written(folder: Path, text: str | bytes) -> str:
    path = folder / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def read(folder: Path, text: str | bytes, target: TargetConfig | None = None, **options: Any) -> xr.Dataset:
    call = {key: options.pop(key) for key in ("require_label", "known_categories") if key in options}
    return read_table(DataConfig(path=written(folder, text), **options), target, **call)


def refused(folder: Path, text: str | bytes, *parts: str, target: TargetConfig | None = None, **options: Any) -> str:
    """The message, which names the file (or a key of the configuration) and holds every part."""
    with pytest.raises(DataError) as caught:
        read(folder, text, target, **options)
    message = str(caught.value)
    for part in parts:
        assert part in message
    return message


def findings(panel: xr.Dataset, code: str) -> list[Finding]:
    return [finding for finding in panel.attrs["findings"] if finding.code == code]


def series(panel: xr.Dataset, name: str) -> list[float]:
    """The values of a single-site variable, NaN as -1."""
    return [-1.0 if np.isnan(value) else value for value in panel[name].values[0].tolist()]


def assert_same(left: xr.Dataset, right: xr.Dataset) -> None:
    """Equal data, names, units and coordinates; the findings and the path may differ."""
    xr.testing.assert_identical(left.drop_attrs(deep=False), right.drop_attrs(deep=False))
    for key in ("step_hours", "categories"):
        assert left.attrs[key] == right.attrs[key]


# The file


def test_a_table_becomes_a_panel(tmp_path: Path) -> None:
    panel = read(tmp_path, DAYS, site_name="here")
    assert panel.attrs["source"] == str(tmp_path / "table.csv")
    assert panel.attrs["step_hours"] == 24.0 and panel.attrs["findings"] == ()
    assert panel["site"].values.tolist() == ["here"]
    assert panel["time"].dtype == "datetime64[ns]"
    assert panel["rain"].dtype == np.float32
    assert series(panel, "rain") == [1.0, 2.0, 4.0]


def test_a_file_of_an_installed_package() -> None:
    pytest.importorskip("vega_datasets")
    data = DataConfig(
        path="package:vega_datasets/_data/seattle-weather.csv",
        time="date",
        time_format="%Y/%m/%d",
        categories={"weather": "one-hot"},
    )
    panel = read_table(data, TargetConfig(variable="precipitation", threshold_mm=1.0))
    assert panel.sizes == {"site": 1, "time": 1461}
    assert panel.attrs["categories"] == {"weather": ["drizzle", "fog", "rain", "snow", "sun"]}
    assert panel["precipitation"].attrs["accumulation_hours"] == 24.0


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("package:no_such_package_here/a.csv", "the package 'no_such_package_here' is not read"),
        ("package:llueve/panel.py", "is not a data file"),
        ("package:antigravity/a.csv", "the package 'antigravity' is not read"),
        ("package:vega_datasets.data/a.csv", "is not read"),
        ("package:vega_datasets/no.csv", "has no file 'no.csv'"),
        ("package:vega_datasets//etc/hosts.csv", "leads out of the package"),
        ("package:vega_datasets/../llueve/a.csv", "leads out of the package"),
        ("package:vega_datasets/_data/../_data/seattle-weather.csv", "leads out of the package"),
        ("package:vega_datasets/__init__.py", "is not a data file"),
        ("package:vega_datasets", "package:NAME/FILE"),
    ],
)
def test_a_file_that_no_package_may_give(path: str, part: str) -> None:
    pytest.importorskip("vega_datasets")
    with pytest.raises(DataError, match=re.escape(part)):
        read_table(DataConfig(path=path), None)


def test_a_package_of_data_is_found_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vega_datasets").mkdir()
    (tmp_path / "vega_datasets" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (tmp_path / "vega_datasets" / "rain.csv").write_text(DAYS)
    (tmp_path / "secret.csv").write_text(DAYS)
    (tmp_path / "vega_datasets" / "link.csv").symlink_to(tmp_path / "secret.csv")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "vega_datasets", raising=False)
    assert series(read_table(DataConfig(path="package:vega_datasets/rain.csv"), None), "rain") == [1.0, 2.0, 4.0]
    with pytest.raises(DataError, match="leads out of the package"):
        read_table(DataConfig(path="package:vega_datasets/link.csv"), None)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"", "is empty"),
        (b"\n\n", "only blank lines"),
        (b"time,rain\n", "no rows"),
        (bytes(range(256)) * 4, "binary"),
        ("time,rain\n2024-01-01,1°\n".encode("latin-1"), "UTF-8"),
        (DAYS.encode("utf-16"), "UTF-8"),
        (b"PAR1 and nothing more", "Parquet"),
        ("time;rain\n2024-01-01;1\n", "expected commas"),
        ("time,rain\n2024-01-01,1,9\n2024-01-02\n", "row 2 has 3, row 3 has 1"),
        ('time,rain\n2024-01-01,"1\n', "closed quotes"),
        ("time,rain,rain\n2024-01-01,1,2\n", "more than once"),
        ("time,rain [mm],rain (in)\n2024-01-01,1,2\n", "more than once"),
        ("time,rain,\n2024-01-01,1,2\n", "column 3 has no name"),
    ],
)
def test_files_that_are_no_table(tmp_path: Path, text: str | bytes, part: str) -> None:
    refused(tmp_path, text, part, str(tmp_path / "table.csv"))


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_table(DataConfig(path=str(tmp_path / "none.csv")), None)
    with pytest.raises(DataError, match="is a directory"):
        read_table(DataConfig(path=str(tmp_path)), None)


def test_blank_lines_a_byte_order_mark_and_carriage_returns_change_nothing(tmp_path: Path) -> None:
    plain = read(tmp_path, DAYS)
    odd = b"\xef\xbb\xbf" + DAYS.replace("\n", "\r\n\r\n").encode()
    assert_same(plain, read(tmp_path, odd))


def test_row_numbers_count_blank_lines(tmp_path: Path) -> None:
    refused(tmp_path, "time,rain\n2024-01-01,1\n\n2024-01-02,x\n", "row 4", step_hours=24)


def test_parquet_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    frame = pd.DataFrame({"time": pd.date_range("2024-01-01", periods=3), "rain": [1, 2, 4]})
    path = tmp_path / "table.csv"
    frame.sample(frac=1, random_state=1).to_parquet(path)
    panel = read_table(DataConfig(path=str(path)), None)
    # pandas wrote its shuffled index as a column, which is no weather.
    assert feature_names(panel) == ["rain"] and series(panel, "rain") == [1.0, 2.0, 4.0]
    with pytest.raises(DataError, match=r"neither Parquet nor UTF-8 text|binary"):
        read_table(DataConfig(path=str(path), format="csv"), None)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_table(DataConfig(path=written(tmp_path, DAYS), format="parquet"), None)


def test_parquet_types_and_field_units(tmp_path: Path) -> None:
    table = pa.table(
        [
            pa.array(["2024-01-01", "2024-01-02"]),
            pa.array([1.5, None], pa.float32()),
            pa.array([True, None]),
            pa.array(["a", "b"]).dictionary_encode(),
            pa.array([[1], [2]]),
        ],
        schema=pa.schema(
            [
                pa.field("time", pa.string()),
                pa.field("rain", pa.float32(), metadata={"units": "mm"}),
                pa.field("snow", pa.bool_()),
                pa.field("kind", pa.dictionary(pa.int32(), pa.string())),
                pa.field("list", pa.list_(pa.int64())),
            ]
        ),
    )
    path = str(tmp_path / "table.parquet")
    pq.write_table(table, path)
    data = DataConfig(path=path, categories={"kind": "one-hot", "snow": "one-hot"}, exclude=("list",))
    panel = read_table(data, None)
    assert panel["rain"].attrs["units"] == "mm" and series(panel, "rain") == [1.5, -1.0]
    assert series(panel, "snow=True") == [1.0, -1.0] and series(panel, "kind=b") == [0.0, 1.0]
    with pytest.raises(DataError, match="'list' holds object"):
        read_table(data.model_copy(update={"exclude": ()}), None)
    with pytest.raises(DataError, match=r"the Parquet field says 'mm' but data.units says 'm'"):
        read_table(data.model_copy(update={"units": {"rain": "m"}}), None)


# Numbers


def test_missing_texts_are_compared_after_stripping(tmp_path: Path) -> None:
    text = "time,rain\n2024-01-01, NA \n2024-01-02,\n2024-01-03, 4\n2024-01-04,-\n"
    assert series(read(tmp_path, text, missing=("NA", "", " - ")), "rain") == [-1.0, -1.0, 4.0, -1.0]


def test_text_in_a_number_column(tmp_path: Path) -> None:
    text = "time,rain\n2024-01-01,1\n2024-01-02,dry\n2024-01-03,nan\n2024-01-04,dry\n"
    parts = (
        "'rain'",
        "'dry', 'nan'",
        "3 of 4 rows",
        "rows 3, 4, 5",
        "data.missing",
        "data.wind_directions",
        "data.exclude",
    )
    refused(tmp_path, text, *parts, missing=("",))


@pytest.mark.parametrize("text", ["1_000", "0x1A", "True", "1,5", "\uff11"])
def test_no_number_is_guessed(tmp_path: Path, text: str) -> None:
    refused(tmp_path, f'time,rain\n2024-01-01,"{text}"\n', repr(text), step_hours=24)


def test_sentinels(tmp_path: Path) -> None:
    text = "time,rain,wind\n2024-01-01,-9999.0,1\n2024-01-02,2,2\n2024-01-03,-99.9,3\n"
    panel = read(tmp_path, text, sentinels=(-9999, -99.9))
    assert series(panel, "rain") == [-1.0, 2.0, -1.0]
    (found,) = findings(panel, "sentinel")
    assert (found.severity, found.variable, found.count) == ("info", "rain", 2)
    assert (found.first, found.last) == ("2024-01-01T00:00:00", "2024-01-03T00:00:00")


def test_a_sentinel_that_parquet_holds_as_float32(tmp_path: Path) -> None:
    path = str(tmp_path / "table.parquet")
    rain = pd.Series([1.0, -99.9], dtype="float32")
    pd.DataFrame({"time": pd.date_range("2024-01-01", periods=2), "rain": rain}).to_parquet(path)
    assert series(read_table(DataConfig(path=path, sentinels=(-99.9,)), None), "rain") == [1.0, -1.0]


@pytest.mark.parametrize("number", ["inf", "-Infinity", "1e39", "-1e400"])
def test_infinite_numbers(tmp_path: Path, number: str) -> None:
    text = f"time,rain\n2024-01-01,1\n2024-01-02,{number}\n"
    refused(tmp_path, text, "'rain'", "row 3", "data.infinite")
    panel = read(tmp_path, text, infinite="missing")
    assert series(panel, "rain") == [1.0, -1.0]
    (found,) = findings(panel, "infinite")
    assert (found.severity, found.count, found.first) == ("warning", 1, "2024-01-02T00:00:00")


def test_a_column_that_is_all_missing_stays(tmp_path: Path) -> None:
    panel = read(tmp_path, "time,rain,snow\n2024-01-01,1,\n2024-01-02,2,\n")
    assert feature_names(panel) == ["rain", "snow"] and series(panel, "snow") == [-1.0, -1.0]


# Names and units


def test_units_in_the_header(tmp_path: Path) -> None:
    text = "time,rain [mm], wind speed (km/h),pressure\n2024-01-01,1,2,3\n2024-01-02,1,2,3\n"
    panel = read(tmp_path, text, units={"pressure": "hPa", "rain": "mm"})
    assert {name: panel[name].attrs["units"] for name in feature_names(panel)} == {
        "rain": "mm",
        "wind speed": "km/h",
        "pressure": "hPa",
    }
    refused(tmp_path, text, "the header says 'mm' but data.units says 'm'", units={"rain": "m"})


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"time": "rian"}, "data.time"),
        ({"site": "rian"}, "data.site"),
        ({"exclude": ("rian",)}, "data.exclude"),
        ({"variables": ("rian",)}, "data.variables"),
        ({"wind_directions": ("rian",)}, "data.wind_directions"),
        ({"categories": {"rian": "one-hot"}}, "data.categories"),
        ({"units": {"rian": "mm"}}, "data.units"),
        ({"accumulation_hours": {"rian": 1.0}}, "data.accumulation_hours"),
        ({"target": TargetConfig(label="rian")}, "target.label"),
        ({"target": TargetConfig(variable="rian", threshold_mm=1.0)}, "target.variable"),
    ],
)
def test_a_column_that_is_not_there(tmp_path: Path, options: dict[str, Any], key: str) -> None:
    refused(tmp_path, DAYS, f"{key} names 'rian'", "the columns are time, rain", "did you mean 'rain'?", **options)


def test_features_are_what_is_neither_site_time_label_nor_excluded_in_file_order(tmp_path: Path) -> None:
    text = "z,wet,place,a,time,future\n1,0,x,2,2024-01-01,3\n1,1,x,2,2024-01-02,3\n"
    panel = read(tmp_path, text, LABEL, site="place", exclude=("future",))
    assert feature_names(panel) == ["z", "a"] and label_name(panel) == "wet"
    panel = read(tmp_path, text, LABEL, site="place", variables=("future", "z"))
    assert feature_names(panel) == ["z", "future"]
    refused(tmp_path, text, "never features", target=LABEL, site="place", variables=("wet",))


def test_variables_that_collide(tmp_path: Path) -> None:
    refused(tmp_path, "date,time\n2024-01-01,1\n2024-01-02,1\n", "a coordinate of the panel", time="date")
    refused(tmp_path, "time,recorded\n2024-01-01,1\n2024-01-02,1\n", "a coordinate of the panel")
    text = "time,d_sin,d\n2024-01-01,1,N\n2024-01-02,1,N\n"
    refused(tmp_path, text, "another variable", wind_directions=("d",))
    text = "time,d\n2024-01-01,N\n2024-01-02,N\n"
    refused(tmp_path, text, "keep one", wind_directions=("d",), categories={"d": "one-hot"})
    refused(tmp_path, DAYS, "two columns", site="time")


def test_accumulation_hours(tmp_path: Path) -> None:
    text = "time,rain,snow\n2024-01-01,1,2\n2024-01-02,1,2\n"
    rain = TargetConfig(variable="rain", threshold_mm=1.0)
    panel = read(tmp_path, text, rain, accumulation_hours={"snow": 6.0})
    assert panel["rain"].attrs["accumulation_hours"] == 24.0 and panel["snow"].attrs["accumulation_hours"] == 6.0
    assert read(tmp_path, text, rain, accumulation_hours={"rain": 1.0})["rain"].attrs["accumulation_hours"] == 1.0
    refused(tmp_path, text, "target.variable 'rain' is not among the features", target=rain, exclude=("rain",))


# Times


def hours(panel: xr.Dataset) -> list[str]:
    return [str(time)[5:16] for time in panel["time"].values]


def test_times_with_and_without_a_zone(tmp_path: Path) -> None:
    text = "time,rain\n2024-01-01T02:00+01:00,1\n2024-01-01T02:00Z,2\n2024-01-01 04:00,3\n"
    panel = read(tmp_path, text, time_zone="Europe/Stockholm")
    assert hours(panel) == ["01-01T01:00", "01-01T02:00", "01-01T03:00"]
    # The day of a plain date looks like an offset, and is none.
    assert hours(read(tmp_path, DAYS, time_zone="America/Lima"))[0] == "01-01T05:00"


def test_a_time_format(tmp_path: Path) -> None:
    text = "time,rain\n31/01/2024 06h,1\n31/01/2024 18h,2\n"
    assert hours(read(tmp_path, text, time_format="%d/%m/%Y %Hh")) == ["01-31T06:00", "01-31T18:00"]
    refused(tmp_path, text, "row", "'31/01/2024 06h'", "ISO 8601", "data.time_format")
    refused(tmp_path, text, "is not a time format", time_format="%Q")
    text = "time,rain\n31/01/2024 06h +0200,1\n31/01/2024 18h +0200,2\n"
    assert hours(read(tmp_path, text, time_format="%d/%m/%Y %Hh %z")) == ["01-31T04:00", "01-31T16:00"]


@pytest.mark.parametrize("zone", ["Mars/Olympus", "Europe", "", "../etc/passwd"])
def test_an_unknown_zone(tmp_path: Path, zone: str) -> None:
    refused(tmp_path, DAYS, "data.time_zone", "unknown zone", time_zone=zone)


def test_local_times_that_do_not_exist_once(tmp_path: Path) -> None:
    twice = "time,rain\n2024-10-27T01:00,1\n2024-10-27T02:30,2\n"
    never = "time,rain\n2024-03-31T02:30,1\n2024-03-31T04:30,2\n"
    refused(
        tmp_path, twice, "row 3", "'2024-10-27T02:30'", "exist once in Europe/Stockholm", time_zone="Europe/Stockholm"
    )
    refused(tmp_path, never, "row 2", "'2024-03-31T02:30'", time_zone="Europe/Stockholm")
    assert read(tmp_path, never).sizes["time"] == 2


def test_unreadable_and_missing_times(tmp_path: Path) -> None:
    text = "time,rain\n2024-01-01,1\nsoon,2\n,3\n1500-01-01,4\n"
    refused(tmp_path, text, "3 of 4 rows", "rows 3, 4, 5", "'soon'", "'missing'", "'1500-01-01'")


def test_parquet_times(tmp_path: Path) -> None:
    path = str(tmp_path / "table.parquet")
    times = pd.to_datetime(["2024-01-01T02:00", "2024-01-01T03:00"])
    for index, zone, first in (
        (times, "UTC", "01-01T02:00"),
        (times, "Europe/Stockholm", "01-01T01:00"),
        (times.tz_localize("Asia/Tokyo"), "Europe/Stockholm", "12-31T17:00"),
    ):
        pd.DataFrame({"time": index, "rain": [1.0, 2.0]}).to_parquet(path)
        assert hours(read_table(DataConfig(path=path, time_zone=zone), None))[0] == first
    pd.DataFrame({"time": [*times, pd.NaT], "rain": [1.0, 2.0, 3.0]}).to_parquet(path)
    with pytest.raises(DataError, match=r"'missing' in 1 of 3 rows \(row 3\)"):
        read_table(DataConfig(path=path), None)


# Sites and the grid


def test_sites_are_sorted_and_share_one_axis(tmp_path: Path) -> None:
    text = "site,time,rain\nb,2024-01-02,1\nb,2024-01-03,2\n a ,2024-01-01,3\na,2024-01-02,4\n"
    panel = read(tmp_path, text, site="site")
    assert panel["site"].values.tolist() == ["a", "b"]
    np.testing.assert_array_equal(panel["rain"].values, [[3, 4, np.nan], [np.nan, 1, 2]])
    assert [finding.code for finding in panel.attrs["findings"]] == ["site_spelling"]


def test_a_missing_site(tmp_path: Path) -> None:
    refused(tmp_path, "site,time,rain\na,2024-01-01,1\n,2024-01-02,1\n", "1 of 2 rows (row 3)", site="site")


def test_rows_out_of_order_are_sorted_and_told(tmp_path: Path) -> None:
    text = "site,time,rain\na,2024-01-02,2\nb,2024-01-01,1\na,2024-01-01,1\nb,2024-01-02,2\na,2024-01-03,3\n"
    panel = read(tmp_path, text, site="site")
    np.testing.assert_array_equal(panel["rain"].values, [[1, 2, 3], [1, 2, np.nan]])
    (found,) = findings(panel, "unordered_times")
    assert (found.severity, found.site, found.count) == ("warning", "a", 1)


REPEATED = (
    "time,rain,kind,wet\n2024-01-01,,,NA\n2024-01-01,3,b,1\n2024-01-01,6,a,0\n2024-01-02,8,a,0\n2024-01-03,9,b,1\n"
)


def test_repeated_times(tmp_path: Path) -> None:
    categories = {"kind": "one-hot"}
    refused(
        tmp_path,
        REPEATED,
        "2 repeated",
        "site at 2024-01-01 00:00 (rows 2 and 3)",
        "data.duplicates",
        target=LABEL,
        categories=categories,
    )
    first = read(tmp_path, REPEATED, LABEL, categories=categories, duplicates="first")
    assert [series(first, name) for name in ("rain", "kind=b", "wet")] == [[-1, 8, 9], [-1, 0, 1], [-1, 0, 1]]
    mean = read(tmp_path, REPEATED, LABEL, categories=categories, duplicates="mean")
    assert [series(mean, name) for name in ("rain", "kind=b", "wet")] == [[4.5, 8, 9], [1, 0, 1], [1, 0, 1]]
    for panel in (first, mean):
        (found,) = findings(panel, "duplicated_times")
        assert (found.severity, found.count, found.first) == ("warning", 2, "2024-01-01T00:00:00")


def test_the_step_is_told_by_the_times_and_gaps_are_missing(tmp_path: Path) -> None:
    text = "time,rain\n" + "".join(f"2024-01-01T{hour:02d}:00,1\n" for hour in (0, 3, 6, 15, 18, 21))
    panel = read(tmp_path, text)
    assert panel.attrs["step_hours"] == 3.0
    assert series(panel, "rain") == [1, 1, 1, -1, -1, 1, 1, 1]
    (found,) = findings(panel, "gaps")
    assert (found.site, found.count, found.first, found.last) == (
        "site",
        2,
        "2024-01-01T09:00:00",
        "2024-01-01T12:00:00",
    )
    assert "2 steps from 2024-01-01 09:00" in found.message


def test_mixed_steps(tmp_path: Path) -> None:
    months = "time,rain\n2024-01-01,1\n2024-02-01,1\n2024-03-01,1\n"
    refused(tmp_path, months, "mixed steps", "744 h 1 times (first before row 3)", "696 h", "data.step_hours")
    rare = "time,rain\n2024-01-01,1\n2024-01-02,1\n2024-01-04,1\n2024-01-06,1\n"
    refused(tmp_path, rare, "mixed steps", "48 h 2 times", "24 h 1 times")
    assert series(read(tmp_path, rare, step_hours=24), "rain") == [1, 1, -1, 1, -1, 1]


def test_times_off_the_configured_grid(tmp_path: Path) -> None:
    text = "time,rain\n2024-01-01T00:10,1\n2024-01-01T06:00,1\n2024-01-01T12:00,1\n"
    refused(tmp_path, text, "1 off this grid: site at 2024-01-01 00:10", "row 2", "6 h", step_hours=6)


def test_sites_of_different_phase(tmp_path: Path) -> None:
    rows = (
        "a,2024-01-01T00:00,1\na,2024-01-01T12:00,1\na,2024-01-02T00:00,1\nb,2024-01-01T06:00,1\nb,2024-01-01T18:00,1\n"
    )
    refused(tmp_path, "site,time,rain\n" + rows, "the same for every site", "b at 2024-01-01 06:00", site="site")


def test_one_row_needs_a_step(tmp_path: Path) -> None:
    text = "time,rain\n2024-01-01,1\n"
    refused(tmp_path, text, "set data.step_hours")
    assert read(tmp_path, text, step_hours=12).attrs["step_hours"] == 12.0
    refused(tmp_path, text, "at least one second", step_hours=1e-6)


def test_an_absurd_axis(tmp_path: Path) -> None:
    text = "time,rain\n1700-01-01T00:00:00,1\n" + "".join(f"2024-01-01T00:00:{s:02d},1\n" for s in range(3))
    refused(tmp_path, text, "1700-01-01 00:00 (row 2)", "2024-01-01 00:00:02 (row 5)", "50,000,000")


# Wind, categories, labels


def test_wind_directions(tmp_path: Path) -> None:
    directions = ["N", "e", " SSW", "270", "Calm", "NA", "-45"]
    rows = "".join(f"2024-01-0{i},{direction}\n" for i, direction in enumerate(directions, start=1))
    panel = read(tmp_path, "time,d\n" + rows, wind_directions=("d",))
    assert feature_names(panel) == ["d_sin", "d_cos"] and panel["d_sin"].attrs["units"] == "1"
    angles = np.deg2rad([0, 90, 202.5, 270, np.nan, np.nan, -45])
    still = [4]
    for name, expected in (("d_sin", np.sin(angles)), ("d_cos", np.cos(angles))):
        expected[still] = 0.0
        np.testing.assert_allclose(panel[name].values[0], expected, atol=1e-7)


@pytest.mark.parametrize("text", ["north", "990", "-181"])
def test_an_unknown_wind_direction(tmp_path: Path, text: str) -> None:
    table = f"time,d\n2024-01-01,N\n2024-01-02,{text}\n2024-01-03,NNE\n"
    refused(tmp_path, table, repr(text.upper()), "row 3", "compass points or degrees", wind_directions=("d",))


def test_a_wind_sentinel_and_radians(tmp_path: Path) -> None:
    text = "time,d\n2024-01-01,90\n2024-01-02,990\n"
    assert series(read(tmp_path, text, wind_directions=("d",), sentinels=(990,)), "d_sin") == [1.0, -1.0]
    refused(tmp_path, "time,d [rad]\n2024-01-01,1\n", "its unit is 'rad'", wind_directions=("d",), step_hours=1)


SKY = "time,sky,storm\n2024-01-01,fog,Yes\n2024-01-02,,No\n2024-01-03,sun,NA\n2024-01-04,dust,No\n"
KINDS = {"sky": "one-hot", "storm": "one-hot"}


def test_categories(tmp_path: Path) -> None:
    panel = read(tmp_path, SKY, categories=KINDS)
    assert feature_names(panel) == ["sky=dust", "sky=fog", "sky=sun", "storm=Yes"]
    assert series(panel, "sky=fog") == [1, -1, 0, 0] and series(panel, "storm=Yes") == [1, 0, -1, 0]
    assert panel.attrs["categories"] == {"sky": ["dust", "fog", "sun"], "storm": ["No", "Yes"]}


def test_known_categories_make_the_variables(tmp_path: Path) -> None:
    known = read(tmp_path, SKY, categories=KINDS).attrs["categories"]
    later = "time,sky,storm\n2024-01-05,sun,Yes\n2024-01-06,sun,Yes\n"
    panel = read(tmp_path, later, categories=KINDS, known_categories=known)
    assert feature_names(panel) == ["sky=dust", "sky=fog", "sky=sun", "storm=Yes"]
    assert series(panel, "sky=sun") == [1, 1] and series(panel, "storm=Yes") == [1, 1]
    new = later + "2024-01-07,hail,No\n"
    panel = read(tmp_path, new, categories=KINDS, known_categories=known)
    assert series(panel, "sky=sun") == [1, 1, -1]  # what the model never learnt tells it nothing
    (finding,) = panel.attrs["findings"]
    assert (finding.code, finding.severity, finding.variable, finding.count) == (
        "unknown_category",
        "warning",
        "sky",
        1,
    )
    assert "hail" in finding.message and finding.first == "2024-01-07T00:00:00"
    refused(tmp_path, later, "not trained with", categories=KINDS, known_categories={"sky": ["sun"]})


def test_what_is_no_category(tmp_path: Path) -> None:
    many = "time,sky\n" + "".join(f"2024-01-01T00:{i:02d},k{i}\n" for i in range(51))
    refused(tmp_path, many, "51 different values", "at most 50", categories={"sky": "one-hot"})
    none = "time,rain,sky\n2024-01-01,1,\n2024-01-02,1,\n"
    refused(tmp_path, none, "all missing", categories={"sky": "one-hot"})


def test_static_categories(tmp_path: Path) -> None:
    rows = "site,time,rain,soil\na,2024-01-01,1,clay\nb,2024-01-01,1,sand\nb,2024-01-02,1,sand\n"
    options: dict[str, Any] = {"site": "site", "categories": {"soil": "static"}}
    panel = read(tmp_path, rows, **options)
    assert static_names(panel) == ["soil=sand"] and feature_names(panel) == ["rain"]
    assert panel["soil=sand"].values.tolist() == [0.0, 1.0]
    refused(tmp_path, rows + "a,2024-01-02,1,sand\n", "'soil' is static", "at a", "row 5", **options)
    refused(tmp_path, rows + "a,2024-01-02,1,\n", "'soil' is static", "missing at a", "row 5", **options)


def test_labels(tmp_path: Path) -> None:
    text = "time,rain,wet\n2024-01-01,1,1.0\n2024-01-02,1,0\n2024-01-03,1,NA\n2024-01-04,1,-1\n"
    panel = read(tmp_path, text, TargetConfig(label="wet", missing=("-1",)))
    assert series(panel, "wet") == [1, 0, -1, -1] and panel["wet"].dtype == np.float32
    assert panel["wet"].attrs["role"] == "label" and panel["wet"].attrs["classes"] == ["0", "1"]
    refused(tmp_path, text, "'-1'", "row 5", "['0', '1']", "target.missing", target=LABEL)


def test_parquet_labels(tmp_path: Path) -> None:
    path = str(tmp_path / "table.parquet")
    times = pd.date_range("2024-01-01", periods=3)
    pd.DataFrame({"time": times, "rain": [1.0, 2.0, 3.0], "wet": [1.0, np.nan, 0.0]}).to_parquet(path)
    assert series(read_table(DataConfig(path=path), LABEL), "wet") == [1, -1, 0]


def test_predicting_needs_neither_label_nor_excluded_columns(tmp_path: Path) -> None:
    options: dict[str, Any] = {"exclude": ("future",), "units": {"future": "mm"}}
    panel = read(tmp_path, DAYS, LABEL, require_label=False, **options)
    assert label_name(panel) is None and feature_names(panel) == ["rain"]
    refused(tmp_path, DAYS, "data.exclude names 'future'", target=LABEL, **options)
    there = "time,rain,wet\n2024-01-01,1,1\n2024-01-02,1,0\n"
    panel = read(tmp_path, there, LABEL, require_label=False)
    assert label_name(panel) == "wet" and feature_names(panel) == ["rain"]


# Properties

CELL = st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False)
ROW = st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 40))


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """Hourly rows of up to three sites, with holes, in any order."""
    keys = draw(st.lists(ROW, min_size=1, max_size=25, unique=True))
    rain = draw(st.lists(CELL, min_size=len(keys), max_size=len(keys)))
    kinds = draw(st.lists(st.sampled_from(["x", "y", "z"]), min_size=len(keys), max_size=len(keys)))
    return pd.DataFrame(
        {
            "time": [datetime(2024, 1, 1) + timedelta(hours=hour) for _, hour in keys],
            "site": [site for site, _ in keys],
            "rain": pd.array([np.nan if cell is None else cell for cell in rain], dtype="float64"),
            "kind": kinds,
        }
    )


def panel_of(path: Path) -> xr.Dataset:
    data = DataConfig(path=str(path), site="site", step_hours=1.0, categories={"kind": "one-hot"})
    return read_table(data, None)


@settings(deadline=None, max_examples=40)
@given(frame=tables(), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_rows_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, frame: pd.DataFrame, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("order")
    frame.to_csv(folder / "a.csv", index=False)
    frame.sample(frac=1, random_state=seed).to_csv(folder / "b.csv", index=False)
    assert_same(panel_of(folder / "a.csv"), panel_of(folder / "b.csv"))


@settings(deadline=None, max_examples=40)
@given(frame=tables())
def test_csv_and_parquet_read_alike(tmp_path_factory: pytest.TempPathFactory, frame: pd.DataFrame) -> None:
    folder = tmp_path_factory.mktemp("format")
    frame.to_csv(folder / "a.csv", index=False)
    frame.to_parquet(folder / "a.parquet", index=False)
    left, right = panel_of(folder / "a.csv"), panel_of(folder / "a.parquet")
    assert_same(left, right)
    assert left.attrs["findings"] == right.attrs["findings"]


@settings(deadline=None, max_examples=40)
@given(frame=tables())
def test_every_cell_of_the_file_is_in_the_panel_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, frame: pd.DataFrame
) -> None:
    path = tmp_path_factory.mktemp("cells") / "a.csv"
    frame.to_csv(path, index=False)
    panel = panel_of(path)
    for time, site, rain in zip(frame["time"], frame["site"], frame["rain"], strict=True):
        np.testing.assert_array_equal(panel["rain"].sel(site=site, time=time).item(), np.float32(rain))
    assert panel["rain"].notnull().sum() == frame["rain"].notna().sum()
    assert panel["kind=" + panel.attrs["categories"]["kind"][-1]].notnull().sum() == len(frame)


# Real files


@needs("weather_aus/weatherAUS.csv")
def test_weather_aus() -> None:
    directions = ("WindGustDir", "WindDir9am", "WindDir3pm")
    data = DataConfig(
        path=str(SHARED / "weather_aus" / "weatherAUS.csv"),
        site="Location",
        time="Date",
        wind_directions=directions,
        categories={"RainToday": "one-hot"},
    )
    panel = read_table(data, TargetConfig(label="RainTomorrow", classes=("No", "Yes")))
    assert panel.sizes["site"] == 49 and panel.attrs["step_hours"] == 24.0
    label = panel["RainTomorrow"].values
    assert (int((label == 0).sum()), int((label == 1).sum())) == (110_316, 31_877)
    # 23 columns less site, time and label; each of the three directions makes two variables.
    assert len(feature_names(panel)) == 23 - 3 + 3
    assert {finding.code for finding in panel.attrs["findings"]} == {"gaps"}
    rain = panel["Rainfall"].sel(site="Albury", time="2008-12-01").item()
    assert rain == np.float32(0.6)


@needs("seed_case/peru_rainfall.csv")
def test_seed_case() -> None:
    data = DataConfig(
        path=str(SHARED / "seed_case" / "peru_rainfall.csv"),
        site="region",
        time="timestamp",
        exclude=("precipitation",),
    )
    panel = read_table(data, TargetConfig(label="rain_24h"))
    assert panel.sizes == {"site": 5, "time": 2190} and panel.attrs["step_hours"] == 12.0
    assert panel.attrs["findings"] == ()
    label = panel["rain_24h"].values
    assert (int((label == 1).sum()), int((label == 0).sum())) == (6551, 4399)
    missing = {name: int(panel[name].isnull().sum()) for name in feature_names(panel)}
    # Each of the 5 sites lacks the first 2 steps of a lag of one day, and the first step of a 7-day spread.
    lags = {f"{name}_lag_{days}d": 5 * 2 * days for name in ("tp", "t2m", "tcwv") for days in (1, 2, 3)}
    spreads = {"tp_rolling_std_7d": 5, "t2m_rolling_std_7d": 5}
    assert {name: count for name, count in missing.items() if count} == lags | spreads


@needs("openmeteo_stockholm/weather_hourly.csv")
def test_stockholm() -> None:
    data = DataConfig(path=str(SHARED / "openmeteo_stockholm" / "weather_hourly.csv"))
    panel = read_table(data, TargetConfig(variable="precipitation", threshold_mm=1.0))
    assert panel.sizes == {"site": 1, "time": 61_368} and panel.attrs["step_hours"] == 1.0
    assert not any(panel[name].isnull().any() for name in feature_names(panel))
    assert panel["precipitation"].attrs["accumulation_hours"] == 1.0


# Noise of packing


@pytest.mark.parametrize(
    ("unit", "least"), [("mm", -0.009), ("m", -9e-6), ("cm", -9e-4), ("in", -0.0003), ("kg m-2", -0.01)]
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_noise_below_zero_takes_no_rain_from_a_sum(tmp_path: Path, unit: str, least: float, kind: str) -> None:
    millimetre = {"mm": 1.0, "m": 1e-3, "cm": 0.1, "in": 1 / 25.4, "kg m-2": 1.0}[unit]
    hours = pd.date_range("2024-01-01", periods=25, freq="h")
    rain = [least] * 24 + [1.0 * millimetre]  # together 1 mm, and 0.8 mm if the noise counts
    path = tmp_path / f"table.{kind}"
    frame = pd.DataFrame({"time": hours, "rain": rain, "temperature": [-0.005] * 25})
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    data = DataConfig(path=str(path), units={"rain": unit, "temperature": "degC"})
    target = TargetConfig(variable="rain", threshold_mm=1.0)
    panel = read_table(data, target)
    assert panel["rain"].values[0, :24].tolist() == [0.0] * 24
    assert (panel["temperature"].values == np.float32(-0.005)).all()
    (finding,) = findings(panel, "packing_noise")
    assert (finding.variable, finding.count, finding.severity) == ("rain", 24, "info")
    assert class_labels(panel, target)[0, 0] == 1.0
    # A table to predict from is read in the same way, although nothing is forecast from its columns.
    xr.testing.assert_equal(read_table(data, None)["rain"], panel["rain"])


def test_a_depth_with_a_sign_stays_as_it_is(tmp_path: Path) -> None:
    panel = read(tmp_path, "time,tide [m]\n2024-01-01,0.5\n2024-01-02,-0.000005\n2024-01-03,-0.4\n")
    assert series(panel, "tide")[1] == pytest.approx(-0.000005) and findings(panel, "packing_noise") == []


# Names and long cells


def test_sites_that_are_spelled_alike_are_named_and_kept_apart(tmp_path: Path) -> None:
    names = ["Lima", "LIMA", "Cusco", " Cusco", "S\u00e3o Paulo", "Sa\u0303o  Paulo", "Ica"]
    rows = [f"2024-01-0{day},{name},{day}" for i, name in enumerate(names) for day in (1 + 2 * i % 4, 2 + 2 * i % 4)]
    panel = read(tmp_path, "\n".join(["time,site,rain", *rows]) + "\n", site="site", duplicates="first")
    assert panel.sizes["site"] == 6
    told = [finding.message for finding in findings(panel, "site_spelling")]
    assert len(told) == 3
    assert any("'Cusco', ' Cusco'" in message and "it is one site" in message for message in told)
    assert any("'LIMA', 'Lima'" in message and "were read as 2 sites" in message for message in told)


DIGITS = "1" * 100_000


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (f"time,rain\n2024-01-01,x{DIGITS}\n", {}),
        (f"time,rain\n{DIGITS},1\n", {}),
        (f"time,{DIGITS}\n2024-01-01,1\n", {}),
        (f"{DIGITS};rain\n", {}),
        (f"time,{DIGITS},{DIGITS}\n2024-01-01,1,2\n", {}),
        (f"time,rain [{DIGITS}]\n2024-01-01,1\n", {"units": {"rain": "mm"}}),
        (f"time,site,rain\n2024-01-01,{DIGITS},1\n", {"site": "site"}),
        (f"time,dir,rain\n2024-01-01,{DIGITS},1\n", {"wind_directions": ("dir",)}),
        (f"time,kind,rain\n2024-01-01,{DIGITS},1\n", {"categories": {"kind": "one-hot"}}),
        (f"time,wet,rain\n2024-01-01,{DIGITS},1\n", {"target": LABEL}),
        (f"time,rain\n2024-01-01,{DIGITS}\n", {}),
    ],
)
def test_a_message_quotes_the_start_of_a_long_cell(tmp_path: Path, text: str, options: dict[str, Any]) -> None:
    message = refused(tmp_path, text, **options)
    assert len(message) < 1500 and "1" * 61 not in message


# Many columns and many sites


def test_a_table_with_thousands_of_columns_is_read(tmp_path: Path) -> None:
    names = [f"v{number}" for number in range(10_000)]
    rows = [f"2024-01-{day:02},{','.join(str(number % (day + 7)) for number in range(10_000))}" for day in range(1, 7)]
    start = perf_counter()
    panel = read(tmp_path, "\n".join([",".join(["time", *names]), *rows]) + "\n", site_name="here")
    assert feature_names(panel) == names
    assert perf_counter() - start < 120  # the square of the columns would take hours


def test_a_table_with_thousands_of_sites_is_read(tmp_path: Path) -> None:
    rows = [f"2024-01-{day:02},s{site},{day}" for site in range(5_000) for day in (1, 2, 4, 4)]
    start = perf_counter()
    panel = read(tmp_path, "\n".join(["time,site,rain", *rows]) + "\n", site="site", duplicates="mean")
    assert len(findings(panel, "gaps")) == len(findings(panel, "duplicated_times")) == 5_000
    assert perf_counter() - start < 120
