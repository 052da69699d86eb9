"""GHCN-Daily files as panels: every file here is written by hand, so that each number can be counted."""

import calendar
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from llueve.config import DataConfig, TargetConfig
from llueve.errors import ConfigError, DataError, LlueveError
from llueve.panel import check_panel
from llueve.samples.target import next_sum_mm
from llueve.sources.tables.table import read_table

SEATTLE, LIMA = "USW00024233", "PEM00084628"
RAIN = TargetConfig(variable="PRCP", threshold_mm=1.0)


def line(element: str, days: dict[int, Any], month: str = "202402", station: str = SEATTLE) -> str:
    """One month: a number by day, or a number with its three flags; other days are missing."""
    cells = []
    for day in range(1, 32):
        value, flags = days.get(day, -9999), "   "
        if isinstance(value, tuple):
            value, flags = value
        cells.append(f"{value:>5}{flags}")
    return f"{station}{month}{element}{''.join(cells)}"


def read(folder: Path, *lines: str | bytes, target: TargetConfig | None = None, **options: Any) -> xr.Dataset:
    path = folder / "station.dly"
    path.write_bytes(b"".join((text if isinstance(text, bytes) else text.encode()) + b"\n" for text in lines))
    return read_table(DataConfig(path=str(path), **options), target)


def refused(folder: Path, *lines: str | bytes, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, *lines, **options)
    assert str(folder / "station.dly") in str(caught.value)
    return str(caught.value)


def series(panel: xr.Dataset, name: str, site: int = 0) -> list[float]:
    """NaN as -99."""
    return [-99.0 if np.isnan(value) else round(float(value), 4) for value in panel[name].values[site]]


FEBRUARY = line("PRCP", {1: 0, 2: 127, 3: 5}), line("TMAX", {1: 56, 2: -11, 3: 100})


def test_a_line_is_as_wide_as_the_format_says() -> None:
    assert len(FEBRUARY[0]) == 11 + 4 + 2 + 4 + 31 * (5 + 3) == 269


def test_tenths_become_units(tmp_path: Path) -> None:
    panel = read(tmp_path, *FEBRUARY, target=RAIN)
    assert panel["site"].values.tolist() == [SEATTLE] and panel.attrs["step_hours"] == 24.0
    assert np.datetime_as_string(panel["time"].values, unit="D").tolist() == ["2024-02-01", "2024-02-02", "2024-02-03"]
    assert series(panel, "PRCP") == [0 / 10, 127 / 10, 5 / 10]
    assert series(panel, "TMAX") == [56 / 10, -11 / 10, 100 / 10]
    assert panel["PRCP"].attrs == {"units": "mm", "accumulation_hours": 24.0}
    assert panel["TMAX"].attrs == {"units": "degC"}
    assert next_sum_mm(panel, "PRCP", 24.0)[0].tolist() == pytest.approx([12.7, 0.5, np.nan], nan_ok=True)
    assert panel.attrs["findings"] == ()


@pytest.mark.parametrize(
    ("element", "unit", "value"),
    [
        ("PRCP", "mm", 12.3),
        ("SNOW", "mm", 123.0),
        ("SNWD", "mm", 123.0),
        ("TMIN", "degC", 12.3),
        ("TAVG", "degC", 12.3),
        ("AWND", "m s-1", 12.3),
        ("WSF5", "m s-1", 12.3),
        ("WDF2", "degree", 123.0),
        ("RHAV", "%", 123.0),
        ("ASLP", "hPa", 12.3),
        ("TSUN", "min", 123.0),
    ],
)
def test_the_unit_of_each_element(tmp_path: Path, element: str, unit: str, value: float) -> None:
    panel = read(tmp_path, line(element, {1: 123, 2: 123}))
    assert panel[element].attrs["units"] == unit and series(panel, element) == [value, value]


@pytest.mark.parametrize("month", ["202301", "202302", "202402", "202304", "190002", "200002"])
def test_months_of_every_length(tmp_path: Path, month: str) -> None:
    days = calendar.monthrange(int(month[:4]), int(month[4:]))[1]
    panel = read(tmp_path, line("TMAX", {day: day * 10 for day in range(1, days + 1)}, month))
    assert series(panel, "TMAX") == [float(day) for day in range(1, days + 1)]
    if days < 31:
        message = refused(tmp_path, line("TMAX", {days + 1: 10}, month))
        assert (
            f"line 1: TMAX has a value on day {days + 1} of {month[:4]}-{month[4:]}, which has no such day" in message
        )


def test_months_follow_each_other_and_gaps_are_missing(tmp_path: Path) -> None:
    panel = read(tmp_path, line("PRCP", {1: 10}, "202403"), line("PRCP", {27: 20, 29: 30}, "202402"))
    assert series(panel, "PRCP") == [2.0, -99.0, 3.0, 1.0]
    assert [finding.code for finding in panel.attrs["findings"]] == ["gaps"]
    assert panel["recorded"].values.tolist() == [[True, False, True, True]]


def test_a_day_on_which_anything_was_measured_is_a_row(tmp_path: Path) -> None:
    panel = read(tmp_path, line("PRCP", {1: 10, 2: (99, " X ")}), line("TMAX", {3: 50}))
    assert panel["recorded"].all() and series(panel, "PRCP") == [1.0, -99.0, -99.0]


def test_what_failed_a_quality_check_is_missing_and_told(tmp_path: Path) -> None:
    days = {1: 10, 2: (9999, " X "), 3: (20, " Z7"), 4: (-300, "BD0"), 5: (30, "  0")}
    panel = read(tmp_path, line("PRCP", days))
    assert series(panel, "PRCP") == [1.0, -99.0, -99.0, -99.0, 3.0]
    (finding,) = panel.attrs["findings"]
    ends = ("2024-02-02T00:00:00", "2024-02-04T00:00:00")
    assert (finding.code, finding.severity, finding.variable) == ("quality_flag", "warning", "PRCP")
    assert (finding.first, finding.last, finding.count) == (*ends, 3) and "D, X, Z" in finding.message


def test_traces_and_presumed_zeros_are_told(tmp_path: Path) -> None:
    panel = read(tmp_path, line("PRCP", {1: (0, "T  "), 2: (0, "P  "), 3: (0, "T  "), 4: (0, "TX ")}))
    assert series(panel, "PRCP") == [0.0, 0.0, 0.0, -99.0]
    found = {finding.code: (finding.severity, finding.count) for finding in panel.attrs["findings"]}
    assert found == {"quality_flag": ("warning", 1), "trace": ("info", 2), "presumed_zero": ("warning", 1)}


def test_other_elements_are_named_and_not_read(tmp_path: Path) -> None:
    panel = read(tmp_path, *FEBRUARY, line("WT01", {1: 1}), line("MDPR", {9: 120}), line("WT01", {1: 1}, "202403"))
    assert list(panel.data_vars) == ["PRCP", "TMAX"] and panel.sizes["time"] == 3
    (finding,) = panel.attrs["findings"]
    assert finding.code == "unread_elements" and "MDPR (1 lines), WT01 (2 lines)" in finding.message
    assert "holds no value" in refused(tmp_path, line("WT01", {1: 1}))
    assert "holds no value" in refused(tmp_path, line("PRCP", {}))
    assert "'WT01', but the columns are" in refused(tmp_path, *FEBRUARY, line("WT01", {1: 1}), variables=("WT01",))


def test_several_stations_are_sites_sorted_by_name(tmp_path: Path) -> None:
    panel = read(tmp_path, *FEBRUARY, line("PRCP", {2: 40, 3: 50}, station=LIMA))
    assert panel["site"].values.tolist() == [LIMA, SEATTLE]
    assert series(panel, "PRCP", 0) == [-99.0, 4.0, 5.0] and series(panel, "TMAX", 0) == [-99.0] * 3


def test_a_folder_a_pattern_and_a_file_are_the_same(tmp_path: Path) -> None:
    both = read(tmp_path, *FEBRUARY, line("PRCP", {2: 40}, station=LIMA))
    folder = tmp_path / "stations"
    folder.mkdir()
    (folder / f"{SEATTLE}.dly").write_text("\n".join(FEBRUARY) + "\n")
    (folder / f"{LIMA}.dly").write_text(line("PRCP", {2: 40}, station=LIMA) + "\n")
    (folder / "readme.txt").write_text("not a station")
    for path in (folder, folder / "*.dly", tmp_path / "*ations" / "*.dly"):
        xr.testing.assert_equal(read_table(DataConfig(path=str(path), format="ghcn"), None), both)
    one = read_table(DataConfig(path=str(folder / f"{LIMA}.dly"), site_name="Lima"), None)
    assert one["site"].values.tolist() == ["Lima"]
    with pytest.raises(DataError, match="holds 2 stations"):
        read_table(DataConfig(path=str(folder), format="ghcn", site_name="Lima"), None)
    (folder / "copy.dly").write_text(line("PRCP", {2: 41}, station=LIMA) + "\n")
    with pytest.raises(DataError, match=rf"holds station {LIMA} like .*({LIMA}|copy)\.dly"):
        read_table(DataConfig(path=str(folder), format="ghcn"), None)


def test_places_without_a_station(tmp_path: Path) -> None:
    for path, part in ((tmp_path, "no .dly file there"), (tmp_path / "*.dly", "no .dly"), (tmp_path / "x", "no such")):
        with pytest.raises(DataError, match=part):
            read_table(DataConfig(path=str(path), format="ghcn"), None)


def test_options_of_a_table_that_mean_something(tmp_path: Path) -> None:
    lines = (*FEBRUARY, line("WDF2", {1: 0, 2: 90, 3: 180}), line("TOBS", {1: -999}))
    options: dict[str, Any] = {"wind_directions": ("WDF2",), "exclude": ("TMAX",), "sentinels": (-99.9,)}
    panel = read(tmp_path, *lines, **options)
    assert list(panel.data_vars) == ["PRCP", "TOBS", "WDF2_sin", "WDF2_cos"]
    assert np.isnan(panel["TOBS"].values).all()
    assert list(read(tmp_path, *lines, variables=("PRCP",)).data_vars) == ["PRCP"]
    with pytest.raises(DataError, match=r"the format says 'mm' but data.units says 'in'"):
        read(tmp_path, *FEBRUARY, units={"PRCP": "in"})
    with pytest.raises(ConfigError, match=r"data\.site = 'station'.*remove the setting"):
        read(tmp_path, *FEBRUARY, site="station")


def test_blank_lines_and_line_ends_change_nothing(tmp_path: Path) -> None:
    plain = read(tmp_path, *FEBRUARY)
    xr.testing.assert_identical(plain, read(tmp_path, FEBRUARY[0] + "\r", "", "  ", FEBRUARY[1] + "\r"))


def test_blanks_that_an_editor_removed_after_a_missing_value(tmp_path: Path) -> None:
    plain = read(tmp_path, *FEBRUARY)
    xr.testing.assert_identical(plain, read(tmp_path, *(text.rstrip() for text in FEBRUARY)))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (FEBRUARY[0][:-8], ["line 2 has 261 characters, expected 269"]),
        (FEBRUARY[0] + " ", ["line 2 has 270 characters"]),
        (line("PRCP", {31: 5}, "202403").rstrip(), ["line 2 has 266 characters"]),
        (FEBRUARY[0][1:] + " ", ["line 2 begins with 'SW00024233202402PRCP "]),
        (line("PRCP", {1: 1}, "202413"), ["line 2 begins with"]),
        (line("PRCP", {1: 1}, "202400"), ["line 2 begins with"]),
        (line("PRCP", {1: 1}, "229902"), ["line 2 begins with"]),
        (line("prcp", {1: 1}), ["line 2 begins with"]),
        (line("PRCP", {3: "1_0"}), ["line 2: PRCP of day 3 is b'  1_0'", "whole number"]),
        (line("PRCP", {3: "12 "}), ["line 2: PRCP of day 3"]),
        (line("PRCP", {3: "1.5"}), ["line 2: PRCP of day 3"]),
        (line("PRCP", {3: "     "}), ["line 2: PRCP of day 3"]),
        (line("PRCP", {3: "--1"}), ["line 2: PRCP of day 3"]),
        (line("PRCP", {3: "nan"}), ["line 2: PRCP of day 3"]),
        (line("TMAX", {9: 4}), ["lines 1, 2 all hold TMAX of USW00024233 in 2024-02"]),
        (FEBRUARY[0].replace("  127", " 12\0 "), ["binary data"]),
        ("station,time,PRCP", ["line 2 has 17 characters"]),
        (FEBRUARY[0].replace("127", "12\u00b2"), ["line 2 has 270 characters"]),
    ],
)
def test_damaged_lines_are_refused_with_their_numbers(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = refused(tmp_path, FEBRUARY[1], text)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x89HDF\r\n\x1a\n\0\0"])
def test_files_that_are_no_station(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "station.dly"
    path.write_bytes(content)
    with pytest.raises(DataError, match=str(path)):
        read_table(DataConfig(path=str(path), format="ghcn"), None)


# Fuzzed


@settings(max_examples=300)
@given(data=st.data())
def test_any_numbers_and_flags_come_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Against a plain reading, day by day."""
    flags = st.tuples(st.sampled_from(" BTP"), st.sampled_from("   XZ"), st.sampled_from(" 07SX")).map("".join)
    value = st.tuples(st.integers(-9999, 99999), flags)
    months = data.draw(st.lists(st.sampled_from(["202401", "202402", "202304", "202312"]), min_size=1, unique=True))
    lines, expected = [], {}
    for month in months:
        for element in data.draw(st.lists(st.sampled_from(["PRCP", "TMAX", "SNWD"]), min_size=1, unique=True)):
            length = calendar.monthrange(int(month[:4]), int(month[4:]))[1]
            days = data.draw(st.dictionaries(st.integers(1, length), value, max_size=6))
            lines.append(line(element, days, month))
            for day, (number, flag) in days.items():
                if number != -9999:
                    fine = np.nan if flag[1] != " " else number / (1 if element == "SNWD" else 10)
                    expected[element, f"{month[:4]}-{month[4:]}-{day:02d}"] = fine
    lines = data.draw(st.permutations(lines))
    if not expected:
        return
    panel = read(tmp_path_factory.mktemp("fuzz"), *lines)
    check_panel(panel)
    found = {
        (str(name), str(day)): value
        for name in panel.data_vars
        for day, value in zip(panel["time"].values.astype("M8[D]"), panel[name].values[0], strict=True)
    }
    assert {key for key, value in found.items() if not np.isnan(value)} == {
        key for key, value in expected.items() if not np.isnan(value)
    }
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], np.float32(value))


@settings(max_examples=300)
@given(data=st.data())
def test_any_damaged_bytes_are_a_panel_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray("\n".join((*FEBRUARY, line("SNOW", {28: 3}), "")).encode())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    path = tmp_path_factory.mktemp("fuzz") / "station.dly"
    path.write_bytes(bytes(content))
    try:
        panel = read_table(DataConfig(path=str(path), format="ghcn"), None)
    except LlueveError:
        return
    check_panel(panel)
