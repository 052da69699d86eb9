"""What the audit reports of a panel before anything is trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import ArrayLike
from rich.console import Console

import llueve.audit
from llueve.audit import Audit, audit_concatenated, render
from llueve.audit.failure import FailureForecast
from llueve.cli.main import app
from llueve.config import Config, DataConfig, TargetConfig, parse_config
from llueve.errors import AuditError
from llueve.panel import Finding, check_panel
from llueve.sources.tables.table import read_table

STEPS = 400
RANDOM = np.random.default_rng(0)
AMOUNT = RANDOM.gamma(0.5, 4.0, size=(2, STEPS)).astype(np.float32)
"""Precipitation of two sites, mm per day."""
NOISE = RANDOM.normal(size=(2, STEPS)).astype(np.float32)


def tomorrow(values_ST: ArrayLike, days: int = 1) -> np.ndarray[Any, Any]:
    """Each value moved `days` earlier, so that row t holds what belongs to t + days; NaN where that is not known."""
    values = np.asarray(values_ST, dtype=np.float32)
    moved = np.full_like(values, np.nan)
    if days > 0:
        moved[:, :-days] = values[:, days:]
    else:
        moved[:, -days:] = values[:, :days]
    return moved


def rains(amount_ST: ArrayLike) -> np.ndarray[Any, Any]:
    """1 from a millimetre on, 0 below, NaN where the amount is not known."""
    amount = np.asarray(amount_ST)
    return np.where(np.isnan(amount), np.nan, amount >= 1.0)


LABEL = rains(tomorrow(AMOUNT))
"""Will it rain tomorrow?"""


def panel_of(label: ArrayLike = LABEL, **features: ArrayLike) -> xr.Dataset:
    """Daily panel with a label column `wet`."""
    label_ST = np.array(label, dtype=np.float32)
    arrays = {name: (("site", "time"), np.array(values, dtype=np.float32)) for name, values in features.items()}
    arrays["wet"] = (("site", "time"), label_ST, {"role": "label", "classes": ["0", "1"]})  # type: ignore[assignment]
    sites, steps = label_ST.shape
    times = np.datetime64("2020-01-01", "ns") + np.arange(steps) * np.timedelta64(1, "D")
    coords = {"site": [f"site {number}" for number in range(sites)], "time": times}
    return check_panel(xr.Dataset(arrays, coords, attrs={"step_hours": 24.0, "source": "here.csv"}))


def config_of(**sections: Any) -> Config:
    return parse_config(
        {
            "data": {"path": "here.csv"},
            "target": {"label": "wet"},
            "split": {"validation_fraction": 0.2, "test_fraction": 0.2},
            "windows": {"context": 8},
            **sections,
        },
        where="test",
    )


def audit_panel(panel: xr.Dataset, config: Config) -> Audit:
    """The audit without its word on seasons: most panels here are shorter than the year that training should cover."""
    audit = llueve.audit.audit_panel(panel, config)
    return replace(audit, findings=tuple(each for each in audit.findings if each.code != "out_of_season"))


def found(audit: Audit, code: str) -> list[Finding]:
    return [finding for finding in audit.findings if finding.code == code]


# Missing cells


def test_missing_cells_are_counted_in_rows_that_exist_only() -> None:
    temperature, pressure = NOISE.copy(), NOISE.copy()
    temperature[0, 50:60] = pressure[0, 50:60] = np.nan  # ten rows that the table does not have
    temperature[1, 100] = temperature[1, 120] = np.nan  # two cells of rows that it has
    recorded = np.ones(temperature.shape, dtype=bool)
    recorded[0, 50:60] = False
    panel = panel_of(temperature=temperature, pressure=pressure).assign_coords(recorded=(("site", "time"), recorded))
    (finding,) = found(audit_panel(panel, config_of()), "missing_cells")
    assert (finding.variable, finding.count, finding.severity) == ("temperature", 2, "info")
    assert (finding.first, finding.last) == ("2020-04-10T00:00:00", "2020-04-30T00:00:00")  # days 100 and 120
    assert "2 of 790 cells" in finding.message  # 2 sites x 400 rows less the 10


def test_an_empty_row_is_missing_and_a_skipped_day_is_not(tmp_path: Path) -> None:
    days = [np.datetime64("2024-01-01") + day for day in range(100) if day != 40]
    rows = [
        f"{day},{'' if number == 10 else number * 7 % 11},{int(number % 3 == 0)}" for number, day in enumerate(days)
    ]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["time,rain,wet", *rows]) + "\n")
    audit = audit_panel(read_table(DataConfig(path=str(path)), TargetConfig(label="wet")), config_of())
    (finding,) = found(audit, "missing_cells")
    assert finding.count == 1 and "1 of 99 cells missing (1.0%), at 1 of 1 sites" in finding.message
    assert finding.first == finding.last == "2024-01-11T00:00:00"


def test_a_variable_that_is_mostly_missing_is_a_warning() -> None:
    mostly = NOISE.copy()
    mostly[:, 1::3] = mostly[:, 2::3] = np.nan
    (finding,) = found(audit_panel(panel_of(noise=NOISE, mostly=mostly), config_of()), "missing_cells")
    assert finding.severity == "warning"


def test_a_site_that_never_has_a_variable_is_told() -> None:
    one_site = NOISE.copy()
    one_site[0] = np.nan
    (finding,) = found(audit_panel(panel_of(noise=NOISE, cloud=one_site), config_of()), "missing_cells")
    assert "at 1 of 2 sites; never observed at 1 of them" in finding.message


def test_a_complete_panel_has_no_finding() -> None:
    assert audit_panel(panel_of(noise=NOISE), config_of()).findings == ()


def test_a_variable_without_an_observation_is_an_error() -> None:
    audit = audit_panel(panel_of(noise=NOISE, cloud=np.full_like(NOISE, np.nan)), config_of())
    (finding,) = audit.errors
    assert (finding.code, finding.variable) == ("all_missing", "cloud") and "data.exclude" in finding.message


def test_a_variable_without_an_observation_in_training_is_an_error() -> None:
    late = NOISE.copy()
    late[:, :300] = np.nan
    (finding,) = audit_panel(panel_of(noise=NOISE, cloud=late), config_of()).errors
    assert (finding.code, finding.variable) == ("all_missing", "cloud")


def test_a_constant_variable_is_a_warning() -> None:
    audit = audit_panel(panel_of(noise=NOISE, height=np.full_like(NOISE, 3.0)), config_of())
    (finding,) = audit.findings
    assert (finding.code, finding.severity, finding.variable) == ("constant", "warning", "height")


# Classes


def test_one_class_in_training_is_an_error() -> None:
    label = LABEL.copy()
    label[:, :240] = 0.0
    (finding,) = audit_panel(panel_of(label, noise=NOISE), config_of()).errors
    assert finding.code == "one_class" and "training holds only the class '0'" in finding.message


@pytest.mark.parametrize(("part", "rows"), [("validation", slice(240, 320)), ("test", slice(320, 400))])
def test_one_class_in_another_part_is_a_warning(part: str, rows: slice) -> None:
    label = LABEL.copy()
    label[:, rows] = np.where(np.isnan(label[:, rows]), np.nan, 1.0)
    (finding,) = audit_panel(panel_of(label, noise=NOISE), config_of()).findings
    assert (finding.code, finding.severity) == ("one_class", "warning")
    assert f"{part} holds only the class '1'" in finding.message


def test_classes_are_counted_in_each_part() -> None:
    label = np.zeros((1, 40))
    label[0, [4, 10, 12, 22, 35, 36]] = 1.0
    label[0, 39] = np.nan
    audit = audit_panel(panel_of(label, noise=NOISE[:1, :40]), config_of(windows={"context": 4}))
    # Cuts at 24 and 32; the earlier part gives up the 4 + 1 rows before a cut, less the cut's own.
    assert audit.splits["training"] == {
        "n": 20 - 3,  # rows 3 to 19: the first whole context ends at row 3
        "first": "2020-01-04T00:00:00",
        "last": "2020-01-20T00:00:00",
        "classes": {"0": 17 - 3, "1": 3},
    }
    assert audit.splits["validation"]["classes"] == {"0": 4, "1": 0}  # rows 24 to 27
    assert audit.splits["test"]["classes"] == {"0": 7 - 2, "1": 2}  # rows 32 to 38, since 39 has no outcome


def test_classes_carry_their_names() -> None:
    audit = audit_panel(panel_of(noise=NOISE), config_of(target={"label": "wet", "classes": ["No", "Yes"]}))
    assert all(set(part["classes"]) == {"No", "Yes"} for part in audit.splits.values())


def test_a_panel_that_gives_no_window_is_an_error_not_an_exception() -> None:
    (finding,) = audit_panel(panel_of(noise=NOISE), config_of(windows={"context": 500})).errors
    assert finding.code == "no_windows" and "500" in finding.message and "400" in finding.message


# Findings of the reader


def test_findings_of_the_reader_are_carried_along(tmp_path: Path) -> None:
    days = [str(np.datetime64("2024-01-01") + day) for day in range(100) if day not in (40, 41)]
    rows = [f"{day},{(number * 7) % 11},{int(number % 3 == 0)}" for number, day in enumerate(days)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["time,rain,wet", *rows, rows[10]]) + "\n")
    data = DataConfig(path=str(path), duplicates="first")
    audit = audit_panel(read_table(data, TargetConfig(label="wet")), config_of())
    by_code = {finding.code: finding for finding in audit.findings}
    assert by_code["gaps"].count == 2 and by_code["gaps"].first == "2024-02-10T00:00:00"
    assert by_code["duplicated_times"].count == 1 and by_code["unordered_times"].count == 1


def test_the_worst_findings_come_first() -> None:
    panel = panel_of(LABEL, noise=NOISE, leak=LABEL, height=np.full_like(NOISE, 3.0))
    panel["noise"].values[0, 5] = np.nan
    # The label, and so the leak, is unknown on the last day: a missing cell more.
    severities = [finding.severity for finding in audit_panel(panel, config_of()).findings]
    assert severities == ["error", "warning", "info", "info"]


# Columns that hold the future

LEAKS = {
    "the label itself": LABEL,
    "the label upside down": -LABEL,
    "the amount behind the label": tomorrow(AMOUNT),
    "a curve of the amount": -np.exp(-tomorrow(AMOUNT)),
    "the label of the day after": tomorrow(LABEL),
    "the amount of the day after": tomorrow(AMOUNT, days=2),
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_column_that_holds_the_future_is_an_error(name: str) -> None:
    audit = audit_panel(panel_of(noise=NOISE, harmless=NOISE[:, ::-1], leak=LEAKS[name]), config_of())
    (finding,) = audit.errors
    assert (finding.code, finding.variable) == ("holds_future", "leak")
    assert "data.exclude" in finding.message


def test_a_leak_says_how_far_it_is_shifted() -> None:
    audit = audit_panel(panel_of(noise=NOISE, same=LABEL, later=tomorrow(LABEL)), config_of())
    told = {finding.variable: finding.message for finding in audit.errors}
    assert "the same row" in told["same"] and "1 step(s) later" in told["later"]


def test_a_leak_with_missing_cells_is_found() -> None:
    leak = LABEL.copy()
    leak[:, ::5] = np.nan
    assert [finding.variable for finding in audit_panel(panel_of(noise=NOISE, leak=leak), config_of()).errors] == [
        "leak"
    ]


def test_a_past_window_that_still_reaches_into_the_future_is_an_error() -> None:
    # Yesterday's outcome over 48 h is the rain of today and tomorrow.
    label = rains(tomorrow(AMOUNT) + tomorrow(AMOUNT, days=2))
    config = config_of(target={"label": "wet", "horizon_hours": 48})
    (finding,) = audit_panel(panel_of(label, noise=NOISE, leak=tomorrow(label, days=-1)), config).errors
    assert finding.variable == "leak" and "1 step(s) earlier" in finding.message


@pytest.mark.parametrize("name", ["the outcome", "the amount"])
def test_yesterdays_outcome_is_persistence_and_no_leak(name: str) -> None:
    today = {"the outcome": rains(AMOUNT), "the amount": AMOUNT}[name]
    (finding,) = audit_panel(panel_of(noise=NOISE, RainToday=today), config_of()).findings
    assert (finding.code, finding.severity, finding.variable) == ("past_outcome", "info", "RainToday")


def test_the_summed_variable_is_persistence_and_no_leak() -> None:
    panel = panel_of(noise=NOISE, tp=AMOUNT)
    panel["tp"].attrs["units"] = "mm"
    audit = audit_panel(panel, config_of(target={"variable": "tp", "threshold_mm": 1.0}))
    assert [(finding.code, finding.variable) for finding in audit.findings] == [("past_outcome", "tp")]


def test_a_leak_in_the_test_period_alone_is_not_looked_for() -> None:
    late = NOISE.copy()
    late[:, 320:] = LABEL[:, 320:]
    assert audit_panel(panel_of(noise=late), config_of()).findings == ()


def test_few_events_can_be_separated_by_chance() -> None:
    label = np.zeros((1, STEPS))
    label[0, ::20] = 1.0
    audit = audit_panel(panel_of(label, noise=NOISE[:1], copy=label), config_of())
    assert found(audit, "holds_future") == []


# As JSON and as text


def test_the_audit_is_json() -> None:
    panel = panel_of(noise=NOISE, leak=LABEL)
    panel["noise"].values[0, 5] = np.nan
    content = json.loads(json.dumps(audit_panel(panel, config_of()).as_dict(), allow_nan=False))
    assert list(content) == ["source", "sites", "times", "step_hours", "splits", "forecast", "findings"]
    # The cell of row 5 is seen by windows of eight steps that end at rows 5 to 12; the first ends at row 7.
    assert content["forecast"]["bad_windows"] == 6
    assert (content["source"], content["sites"], content["times"], content["step_hours"]) == ("here.csv", 2, 400, 24.0)
    assert set(content["splits"]) == {"training", "validation", "test"}
    keys = {"code", "severity", "variable", "site", "first", "last", "count", "message"}
    assert content["findings"] and all(set(finding) == keys for finding in content["findings"])


def test_errors_are_raised_on_demand() -> None:
    with pytest.raises(AuditError, match=r"1 error\(s\).*\n.*holds_future: leak") as caught:
        audit_panel(panel_of(noise=NOISE, leak=LABEL), config_of()).require_clean()
    assert caught.value.exit_code == 4


def test_a_clean_audit_raises_nothing() -> None:
    audit_panel(panel_of(noise=NOISE), config_of()).require_clean()


def test_text_shows_class_names_in_square_brackets() -> None:
    config = config_of(target={"label": "wet", "classes": ["[dry]", "[wet]"]})
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render(audit_panel(panel_of(noise=NOISE), config)))
    assert "[dry]" in capture.get() and "[wet]" in capture.get()


def test_text_shows_every_finding_and_square_brackets_as_they_are() -> None:
    panel = panel_of(noise=NOISE, **{"leak [mm]": LABEL})
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render(audit_panel(panel, config_of())))
    text = capture.get()
    assert "leak [mm]: equals the outcome" in text and "1 error(s)" in text and "here.csv" in text


def three_classes(event: str) -> Config:
    return config_of(target={"label": "wet", "classes": ["0", "1", "2"], "event": event})


def test_a_copy_of_a_label_with_a_class_in_the_middle_is_found() -> None:
    label = RANDOM.integers(0, 3, size=(2, STEPS)).astype(np.float32)
    (finding,) = found(audit_panel(panel_of(label, copy=label, noise=NOISE), three_classes("1")), "holds_future")
    assert finding.variable == "copy"


def test_a_training_period_without_the_event_is_an_error() -> None:
    label = RANDOM.integers(0, 2, size=(2, STEPS)).astype(np.float32)
    label[:, STEPS - 40 :: 3] = 2
    (finding,) = [
        f
        for f in found(audit_panel(panel_of(label, noise=NOISE), three_classes("2")), "one_class")
        if f.severity == "error"
    ]
    assert "training holds '0' and '1', never the event '2'" in finding.message


# Cells


def codes(audit: Audit) -> dict[str, Finding]:
    return {finding.code: finding for finding in audit.findings}


def test_a_mark_for_missing_is_an_error_that_can_be_allowed() -> None:
    marked = NOISE.copy()
    marked[1, 30:33] = -99.9
    audit = audit_panel(panel_of(noise=marked), config_of())
    finding = codes(audit)["sentinel"]
    assert (finding.severity, finding.variable, finding.count) == ("error", "noise", 3)
    assert (finding.first, finding.last) == ("2020-01-31T00:00:00", "2020-02-02T00:00:00")
    assert "-99.9" in finding.message and "data.sentinels" in finding.message
    with pytest.raises(AuditError, match=r'audit\.allow = \["sentinel"\]'):
        audit.require_clean()
    audit.require_clean(("sentinel",))


def test_a_number_among_its_like_is_no_mark() -> None:
    heights = NOISE * 100.0
    heights[0, 7] = -99.0
    assert "sentinel" not in codes(audit_panel(panel_of(height=heights), config_of()))


def test_values_that_the_unit_does_not_allow_are_named() -> None:
    panel = panel_of(temperature=NOISE + 15)
    panel["temperature"].attrs["units"] = "degC"
    assert codes(audit_panel(panel, config_of())) == {}
    panel["temperature"].values[0, 3] = 288.0  # one cell in kelvin
    finding = codes(audit_panel(panel, config_of()))["implausible"]
    assert finding.count == 1 and "288 at site 0, 2020-01-04" in finding.message
    panel["temperature"].values[:] = NOISE + 288.0
    assert "correct data.units.temperature" in codes(audit_panel(panel, config_of()))["implausible"].message


def test_far_out_cells_are_named_and_the_tail_of_rain_is_not() -> None:
    rain = AMOUNT.copy()
    assert "outliers" not in codes(audit_panel(panel_of(rain=rain), config_of()))
    rain[0, 11] = 5000.0
    finding = codes(audit_panel(panel_of(rain=rain), config_of()))["outliers"]
    assert finding.count == 1 and finding.first == "2020-01-12T00:00:00" and "5000" in finding.message


def test_a_stuck_sensor_is_named_and_a_dry_spell_is_not() -> None:
    stuck, rain = NOISE.copy(), AMOUNT.copy()
    stuck[1, 100:110] = 0.25
    rain[:, 50:90] = 0.0
    audit = audit_panel(panel_of(stuck=stuck, rain=rain), config_of())
    (finding,) = found(audit, "stuck")
    assert (finding.variable, finding.count, finding.first) == ("stuck", 10, "2020-04-10T00:00:00")
    stuck[1, 109] = 0.5  # nine days are no ten
    assert found(audit_panel(panel_of(stuck=stuck), config_of()), "stuck") == []


def test_windows_in_which_a_variable_does_not_vary_are_counted() -> None:
    rain = AMOUNT.copy()
    rain[0, 50:60] = 0.0
    (finding,) = found(audit_panel(panel_of(rain=rain), config_of()), "flat_windows")
    assert finding.count == 3  # ten equal steps hold three windows of eight
    assert finding.severity == "info"


def test_the_same_series_under_two_names_is_named() -> None:
    twice = np.repeat(NOISE[:1], 2, axis=0)
    (finding,) = found(audit_panel(panel_of(noise=NOISE, rain=twice), config_of()), "twin_sites")
    assert "site 0, site 1: identical series of rain" in finding.message


def test_missing_first_steps_are_told_with_their_reason() -> None:
    lagged = NOISE.copy()
    lagged[:, :3] = np.nan
    audit = audit_panel(panel_of(noise=NOISE, lagged=lagged), config_of())
    assert "the first 3 step(s) of each" in codes(audit)["missing_cells"].message
    # Windows end from step 7 on; those that end at 7, 8, 9 and begin at 0, 1, 2 see fewer steps: 3 at each of 2 sites.
    assert "6 of" in codes(audit)["missing_cells"].message.split("masked")[1]
    starts = found(audit, "missing_at_start")
    assert [(each.site, each.count) for each in starts] == [("site 0", 3), ("site 1", 3)]


def test_an_odd_cell_or_packing_moves_no_end() -> None:
    rain = AMOUNT.copy()
    rain[:, 50:90] = 0.0
    rain[:, 120:160] = 2.3e-10
    rain[:, 200:240] = 4.6e-10
    rain[:, ::7] = np.where(rain[:, ::7] < 1, 0, rain[:, ::7])
    assert found(audit_panel(panel_of(rain=rain), config_of()), "stuck") == []
    rain[1, 300] = -0.004
    assert found(audit_panel(panel_of(rain=rain), config_of()), "stuck") == []


def test_a_sensor_stuck_for_its_whole_record_is_named_and_a_height_is_not() -> None:
    stuck = np.concatenate([NOISE, NOISE[::-1, ::-1]])
    stuck[2] = 0.25
    height = np.repeat(np.arange(4)[:, None], STEPS, axis=1) + 0.5
    label = np.concatenate([LABEL, LABEL])
    (finding,) = found(audit_panel(panel_of(label, stuck=stuck, height=height), config_of()), "stuck")
    assert (finding.variable, finding.count) == (
        "stuck",
        STEPS,
    ) and "at 1 sites, the first at site 2" in finding.message


WARMTH = 15 + 6 * NOISE
"""Temperature, °C."""
UNITS_MISTAKEN = {
    "°C labelled K": ("temperature", "K", WARMTH),
    "hPa labelled Pa": ("pressure", "Pa", 1013 + 7 * NOISE),
    "kPa labelled Pa": ("pressure", "Pa", 101.3 + 0.7 * NOISE),
    "kPa labelled hPa": ("pressure", "hPa", 101.3 + 0.7 * NOISE),
    "Pa labelled hPa": ("pressure", "hPa", 101300 + 700 * NOISE),
    "fractions labelled %": ("humidity", "%", np.clip(0.6 + 0.2 * NOISE, 0, 1)),
    "mm labelled m": ("rain", "m", np.where(AMOUNT > 1, AMOUNT, 0)),
    "km/h labelled m/s": ("wind", "m s-1", np.abs(20 + 8 * NOISE)),
    "one pressure of 0": ("pressure", "hPa", np.where(np.arange(STEPS) == 9, 0, 1013 + 7 * NOISE)),
}
UNITS_RIGHT = {
    "temperature": ("t2m", "K", 273.15 + WARMTH),
    "spread to the dew point": ("td_spread", "K", np.abs(WARMTH)),
    "spread by another name": ("dryness", "K", np.abs(6 * NOISE)),
    "change of temperature": ("warming", "K", 3 * NOISE),
    "pressure": ("sp", "Pa", 101300 + 700 * NOISE),
    "pressure of a high place": ("sp", "Pa", 62000 + 300 * NOISE),
    "tendency of pressure": ("pressure_tendency", "Pa", 150 * NOISE),
    "deficit of vapour pressure": ("vpd", "Pa", 700 * np.abs(NOISE)),
    "vapour pressure": ("vapour", "hPa", 12 + 3 * NOISE),
    "cloud in %": ("cloud", "%", np.clip(40 * NOISE + 50, 0, 100)),
    "rain in m": ("tp", "m", np.where(AMOUNT > 1, AMOUNT / 1000, 0)),
    "height of a layer": ("blh", "m", 600 + 200 * NOISE),
    "water vapour": ("tcwv", "kg m-2", 30 + 8 * NOISE),
    "wind": ("wind", "m s-1", np.abs(4 + 3 * NOISE)),
    "a component of wind": ("u10", "m s-1", 12 * NOISE),
}


@pytest.mark.parametrize("case", UNITS_MISTAKEN)
def test_a_unit_taken_for_another_is_named(case: str) -> None:
    name, units, values = UNITS_MISTAKEN[case]
    panel = panel_of(**{name: values})
    panel[name].attrs["units"] = units
    assert found(audit_panel(panel, config_of()), "implausible")[0].variable == name


@pytest.mark.parametrize("case", UNITS_RIGHT)
def test_a_right_unit_is_not_named(case: str) -> None:
    name, units, values = UNITS_RIGHT[case]
    panel = panel_of(**{name: values})
    panel[name].attrs["units"] = units
    assert found(audit_panel(panel, config_of()), "implausible") == []


@pytest.mark.parametrize(
    ("units", "convert", "told"),
    [
        ("degC", lambda x: x * 1.8 + 32, "as degF"),
        ("degC", lambda x: x + 273.15, "as K"),
        ("K", lambda x: x - 273.15, "as degC"),
        ("km/h", lambda x: x / 10, "divided by 0.1"),
        ("hPa", lambda x: x / 10, "divided by 0.1"),
    ],
)
def test_one_site_with_another_unit_is_named(units: str, convert: Any, told: str) -> None:
    values = 10 + np.arange(8)[:, None] / 2 + 4 * RANDOM.normal(size=(8, STEPS))
    values = {"K": values + 273.15, "hPa": values + 1000}.get(units, values)
    label = np.repeat(LABEL, 4, axis=0)

    def panel() -> xr.Dataset:
        panel = panel_of(label, x=values)
        panel["x"].attrs["units"] = units
        return panel

    assert found(audit_panel(panel(), config_of()), "odd_site") == []
    values[3] = convert(values[3])
    (finding,) = found(audit_panel(panel(), config_of()), "odd_site")
    assert finding.site == "site 3" and told in finding.message


def test_a_place_unlike_all_others_keeps_its_unit() -> None:
    pressure = 1013 + 7 * RANDOM.normal(size=(8, STEPS))
    pressure[2] -= 330  # a mountain
    warmth = 20 + 4 * RANDOM.normal(size=(8, STEPS))
    warmth[2] -= 25
    panel = panel_of(np.repeat(LABEL, 4, axis=0), pressure=pressure, warmth=warmth)
    panel["pressure"].attrs["units"], panel["warmth"].attrs["units"] = "hPa", "degC"
    assert {each.code for each in audit_panel(panel, config_of()).findings} == set()


def test_marks_do_not_hide_each_other() -> None:
    marked = NOISE * 10
    marked[0, 30:40], marked[1, 30:40] = -99.0, -99.9
    findings = found(audit_panel(panel_of(noise=marked), config_of()), "sentinel")
    assert sorted(each.count or 0 for each in findings) == [10, 10]


@pytest.mark.parametrize("mark", [-99.9, -99.0, 999.0, 9999.9])
def test_a_mark_in_a_wide_range_is_found(mark: float) -> None:
    direction = RANDOM.uniform(0, 360, size=NOISE.shape)
    direction[0, 17] = mark
    (finding,) = found(audit_panel(panel_of(direction=direction), config_of()), "sentinel")
    assert finding.count == 1


def test_a_low_pressure_is_no_mark() -> None:
    pressure = np.clip(1020 + 4 * NOISE, 1004, 1036)
    pressure[0, 17] = 999.0
    assert found(audit_panel(panel_of(pressure=pressure), config_of()), "sentinel") == []


@pytest.mark.parametrize("bad", [4, 8, 16])
def test_many_bad_cells_do_not_hide_each_other(bad: int) -> None:
    warmth = WARMTH.copy()
    warmth[0, 20 : 20 + bad] = 1500.0 + np.arange(bad)
    (finding,) = found(audit_panel(panel_of(warmth=warmth), config_of()), "outliers")
    assert finding.count == bad


def test_a_bad_cell_at_a_dry_station_is_found() -> None:
    rain = np.zeros((2, 3000))
    rain[:, ::300] = 2.0
    assert found(audit_panel(panel_of(np.resize(LABEL, rain.shape), rain=rain), config_of()), "outliers") == []
    rain[0, 1000] = 1900.0
    (finding,) = found(audit_panel(panel_of(np.resize(LABEL, rain.shape), rain=rain), config_of()), "outliers")
    assert finding.count == 1


def test_a_copy_that_differs_a_little_is_named() -> None:
    def twins(copy: ArrayLike) -> list[Finding]:
        values = np.stack([NOISE[0], NOISE[1], copy])
        return found(audit_panel(panel_of(np.resize(LABEL, values.shape), noise=values), config_of()), "twin_sites")

    copy = NOISE[0].copy()
    assert "site 0, site 2" in twins(copy)[0].message
    copy[200] = np.nan
    assert len(twins(copy)) == 1
    copy[100] = 3.0
    assert len(twins(copy)) == 1
    copy[:180] = np.nan
    assert len(twins(copy)) == 1
    copy[201::3] = 3.0
    assert twins(copy) == []


def test_an_index_of_the_climate_makes_no_copies() -> None:
    values, index = RANDOM.normal(size=(3, STEPS)), np.repeat(NOISE[:1], 3, axis=0)
    label = np.resize(LABEL, values.shape)
    assert found(audit_panel(panel_of(label, noise=values, index=index), config_of()), "twin_sites") == []


def test_one_shared_variable_of_many_is_to_be_dropped_not_its_station() -> None:
    shared = RANDOM.normal(size=(3, STEPS))
    shared[2] = shared[0]
    others = {f"x{number}": RANDOM.normal(size=(3, STEPS)) for number in range(3)}
    label = np.resize(LABEL, shared.shape)
    (finding,) = found(audit_panel(panel_of(label, shared=shared, **others), config_of()), "twin_sites")
    assert "drop this variable at site 2" in finding.message


def test_the_cause_of_missing_first_steps_is_told_only_where_all_share_it() -> None:
    lagged, late = NOISE.copy(), NOISE.copy()
    lagged[:, :3] = np.nan
    late[0, :63] = np.nan
    audit = audit_panel(panel_of(lagged=lagged, late=late), config_of())
    told = {(each.variable, each.site): each.message for each in found(audit, "missing_at_start")}
    assert "a lag or a rolling mean" in told["lagged", "site 0"]
    assert "lag" not in told["late", "site 0"] and "first 63 steps of site 0" in told["late", "site 0"]


# Outcome


@pytest.mark.parametrize("days", [1, 2])
@pytest.mark.parametrize("kind", ["the amount", "the outcome"])
def test_a_leak_with_a_wrong_cell_is_a_warning(kind: str, days: int) -> None:
    leak = tomorrow(AMOUNT if kind == "the amount" else rains(AMOUNT), days)
    wet, dry = np.argwhere(leak[:, :200] >= 1)[3], np.argwhere(leak[:, :200] < 1)[3]
    leak[tuple(wet)], leak[tuple(dry)] = 0.0, 9.0
    audit = audit_panel(panel_of(noise=NOISE, leak=leak), config_of())
    (finding,) = [each for each in audit.findings if each.severity != "info"]
    assert (finding.code, finding.severity, finding.variable) == ("nearly_holds_future", "warning", "leak")
    assert ("the same row" if days == 1 else "1 step(s) later") in finding.message
    audit.require_clean()


def hourly(**features: ArrayLike) -> tuple[xr.Dataset, Config]:
    """Three-hourly rain that stays for long, in a panel with a label of the next 24 h."""
    random = np.random.default_rng(3)
    weather = np.zeros((2, 3000))
    for step in range(1, 3000):
        weather[:, step] = 0.9 * weather[:, step - 1] + random.normal(size=2)
    rain = np.where(weather > 2, random.gamma(0.7, 0.8, size=weather.shape), 0)
    panel = panel_of(rains(summed(rain, 8, ahead=True)), rain=rain, noise=random.normal(size=rain.shape), **features)
    times = np.datetime64("2020-01-01", "ns") + np.arange(3000) * np.timedelta64(3, "h")
    panel = panel.assign_coords(time=times)
    panel.attrs["step_hours"], panel["rain"].attrs["units"] = 3.0, "mm"
    return panel, config_of(target={"label": "wet", "horizon_hours": 24})


def summed(rain: ArrayLike, steps: int, ahead: bool = False) -> np.ndarray[Any, Any]:
    """Sums over so many steps up to each, or after each."""
    rain = np.asarray(rain, dtype=np.float64)
    total = sum(tomorrow(rain, step) for step in (range(1, steps + 1) if ahead else range(1 - steps, 0)))
    return np.asarray(total if ahead else total + rain)


@pytest.mark.parametrize("steps", [4, 6, 7, 8, 9])
def test_what_is_known_of_a_long_outcome_is_no_leak(steps: int) -> None:
    panel, config = hourly()
    panel["known"] = panel["noise"].copy(data=summed(panel["rain"].values, steps).astype(np.float32), deep=True)
    panel["known"].attrs["units"] = "mm"
    assert {each.code for each in audit_panel(panel, config).findings if each.severity != "info"} <= {"stuck"}


def test_a_label_of_the_sum_with_some_faults_is_counted() -> None:
    panel, config = hourly()
    panel["wet"].values[0, [20, 40, 60]] = 1 - panel["wet"].values[0, [20, 40, 60]]
    finding = codes(audit_panel(panel, config))["label_mismatch"]
    assert finding.count == 3 and "summed over 24 h is at least 1" in finding.message


@pytest.mark.parametrize(("shift", "told"), [(3, "earlier by 3"), (-2, "later by 2")])
def test_a_label_of_the_sum_of_other_hours_is_told(shift: int, told: str) -> None:
    panel, config = hourly()
    panel["wet"].values[:] = tomorrow(panel["wet"].values, -shift)
    assert told in codes(audit_panel(panel, config))["label_shifted"].message


def test_a_label_of_one_step_for_a_horizon_of_many_is_told() -> None:
    panel, config = hourly()
    panel["wet"].values[:] = rains(tomorrow(panel["rain"].values, 8))
    assert "one value of rain 8 step(s) later" in codes(audit_panel(panel, config))["label_single_step"].message


def test_one_variable_that_knows_too_much_is_a_warning() -> None:
    told = tomorrow(AMOUNT) + NOISE * 0.15  # the amount itself, with some noise
    finding = codes(audit_panel(panel_of(noise=NOISE, told=told), config_of()))["too_good"]
    assert (finding.variable, finding.severity) == ("told", "warning")


def test_a_label_that_contradicts_its_rain_is_counted() -> None:
    label = LABEL.copy()
    label[0, [20, 40]] = 1 - label[0, [20, 40]]
    panel = panel_of(label, noise=NOISE, rain=AMOUNT)
    panel["rain"].attrs["units"] = "mm"
    finding = codes(audit_panel(panel, config_of()))["label_mismatch"]
    assert finding.count == 2 and "at site 0, 2020-01-21" in finding.message


def test_a_site_with_one_class_and_a_rare_event_are_told() -> None:
    label = LABEL.copy()
    label[1] = 0.0
    assert codes(audit_panel(panel_of(label, noise=NOISE), config_of()))["one_class_site"].site == "site 1"
    label[:] = 0.0
    label[0, [100, 300, 350]] = 1.0
    assert codes(audit_panel(panel_of(label, noise=NOISE), config_of()))["rare_event"].count == 1


@pytest.mark.parametrize("allowed", [False, True])
def test_a_sum_of_sampled_rain_is_refused_by_name(allowed: bool) -> None:
    panel = panel_of(noise=NOISE, tp=AMOUNT)
    panel["tp"].attrs.update(units="mm", accumulation_hours=1.0)
    target = {"variable": "tp", "threshold_mm": 1.0, "allow_sampled": allowed}
    finding = codes(audit_panel(panel, config_of(target=target)))["sampled_accumulation"]
    assert finding.severity == ("warning" if allowed else "error") and "4.2% of the time" in finding.message


# The forecast of failure


def test_the_forecast_of_failure_by_hand() -> None:
    forecast = FailureForecast(windows=12, bad_windows=3, batch_size=2, masked=False)
    assert (forecast.windows, forecast.bad_windows, forecast.steps) == (12, 3, 6)
    assert forecast.clean_batch_probability == pytest.approx(0.75**2)
    assert forecast.expected_bad_steps == pytest.approx(6 * (1 - 0.5625))
    assert "25.0% of the 12 training windows" in forecast.sentence()


def test_laid_end_to_end_windows_cross_sites_and_meet_every_first_step() -> None:
    lagged = NOISE.copy()
    lagged[:, 0] = np.nan
    audit = audit_concatenated(panel_of(noise=NOISE, lagged=lagged, leak=LABEL), config_of())
    assert audit.forecast is not None
    # 800 rows, 560 train, 552 windows of 8 rows from rows 0 to 551. Rows 0, 399 (no label yet) and 400 hold a NaN:
    # windows from row 0, and from 392 to 400.
    assert (audit.forecast.windows, audit.forecast.bad_windows) == (552, 1 + 9)
    by_code = codes(audit)
    assert by_code["crosses_sites"].count == 7  # from rows 393 to 399
    assert by_code["holds_future"].variable == "leak"
    assert {"bad_windows", "split_by_row"} <= set(by_code) and len(audit.errors) == 4


def test_a_window_over_two_borders_counts_once() -> None:
    values = RANDOM.normal(size=(10, 60))
    panel = panel_of(np.resize(LABEL, values.shape), noise=values)
    audit = audit_concatenated(panel, config_of(windows={"context": 150}))
    assert audit.forecast is not None
    assert codes(audit)["crosses_sites"].count == audit.forecast.windows == 420 - 150


def test_the_case_that_llueve_was_born_from(shared: Any, capsys: Any) -> None:
    table = shared("data/seed_case/peru_rainfall.csv")
    config = Path(__file__).parents[1] / "examples" / "seed_case.toml"
    arguments = ["audit", str(config), "--concatenated", "--context", "1440", "--batch-size", "16", "--json"]
    with pytest.raises(SystemExit) as ended:
        app([*arguments, "--set", f'data.path="{table}"'])
    assert ended.value.code == 4
    content = json.loads(capsys.readouterr().out)
    forecast = content["forecast"]
    assert (forecast["windows"], forecast["bad_windows"], forecast["steps"]) == (6224, 3989, 389)
    assert forecast["clean_batch_probability"] == pytest.approx(7.6e-8, rel=0.01)
    assert forecast["expected_bad_steps"] == pytest.approx(389, abs=1e-3)
    missing = [finding for finding in content["findings"] if finding["code"] == "missing_cells"]
    assert len(missing) == 11 and all("of each" in finding["message"] for finding in missing)
    starts = [finding for finding in content["findings"] if finding["code"] == "missing_at_start"]
    assert len({finding["variable"] for finding in starts}) == 11 and len({each["site"] for each in starts}) == 5
    assert max(each["count"] for each in starts) == 6
    (leak,) = [finding for finding in content["findings"] if finding["code"] == "holds_future"]
    assert leak["variable"] == "precipitation"
    (single,) = [finding for finding in content["findings"] if finding["code"] == "label_single_step"]
    assert single["variable"] == "tp" and "2 step(s) later" in single["message"]


def period_codes(panel: xr.Dataset, config: Config) -> set[tuple[str, str]]:
    """The findings about periods, each with its period."""
    wanted = {"out_of_season", "rate_shift", "few_events", "unseen_sites"}
    findings = llueve.audit.audit_panel(panel, config).findings
    return {(each.code, each.message.split(":")[0]) for each in findings if each.code in wanted}


def years(label: ArrayLike) -> xr.Dataset:
    """Three years of days, so that each season is in the training."""
    return panel_of(label, noise=np.random.default_rng(1).normal(size=np.shape(label)))


def test_periods_that_the_training_does_not_cover_are_said() -> None:
    random = np.random.default_rng(0)
    label = (random.random((2, 1000)) < 0.3).astype(np.float32)
    assert period_codes(years(label), config_of()) == set()
    assert period_codes(panel_of(LABEL, noise=NOISE), config_of()) == {
        ("out_of_season", "validation"),
        ("out_of_season", "test"),
    }

    drier = label.copy()
    drier[:, 800:] = random.random((2, 200)) < 0.08
    assert period_codes(years(drier), config_of()) == {("rate_shift", "test")}

    rare = label.copy()
    rare[:, 800:] = 0
    rare[:, 900:903] = 1  # 6 events
    assert ("few_events", "test") in period_codes(years(rare), config_of())

    late = label.copy()
    late[1, :700] = np.nan
    assert {("unseen_sites", "validation"), ("unseen_sites", "test")} <= period_codes(years(late), config_of())


def test_a_wet_season_is_no_shift_of_the_rate() -> None:
    random = np.random.default_rng(0)
    season = 0.3 + 0.25 * np.sin(2 * np.pi * np.arange(1000) / 365.25)
    label = (random.random((2, 1000)) < season).astype(np.float32)
    assert period_codes(years(label), config_of()) == set()
