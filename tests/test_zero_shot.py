"""Forecasts without training: the encoder's logits, the refusals, and what is said beside a probability."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import llueve
from llueve.errors import DataError, UsageError
from llueve.model.checkpoints.climate_zone import ClimateZone
from llueve.model.checkpoints.zone_skill import ZoneSkill
from llueve.model.classifier import TimerXLForClassification
from llueve.model.heads import DayHead
from llueve.pretraining.corpus import EPOCH, read_corpus
from llueve.pretraining.corpus_windows import CorpusWindows
from llueve.samples.split import Part
from llueve.sources.identify import with_quantities
from llueve.zero_shot import PlaceForecast, forecast_panel

START = np.datetime64("2023-01-01T01", "ns")
PLACE = (-12.05, -77.04)
UNITS = {"temperature": "degC", "dewpoint": "degC", "surface_pressure": "hPa", "wind_speed": "m/s", "rain": "mm"}


def weather(hours: int, seed: int = 0) -> dict[str, Any]:
    """Hours of one place."""
    random = np.random.default_rng(seed)
    warm = 20 + 5 * np.sin(np.arange(hours) / 24 * 2 * np.pi) + random.standard_normal(hours)
    return {
        "temperature": warm,
        "dewpoint": warm - 1 - 5 * random.random(hours),
        "surface_pressure": 1000 + 3 * random.standard_normal(hours),
        "wind_speed": 5 * random.random(hours),
        "wind_direction": random.integers(0, 360, hours).astype(float),
        "rain": np.where(random.random(hours) > 0.9, 3 * random.random(hours), 0.0),
    }


def panel_of(
    *places: dict[str, Any], step: int = 1, position: tuple[float, float] | None = PLACE, start: Any = START
) -> xr.Dataset:
    """A panel of places with the same hours, every `step` hours."""
    sites = [f"s{number}" for number in range(len(places))]
    arrays = {
        name: (("site", "time"), np.float32([place[name] for place in places]), {"units": UNITS.get(name, "degree")})
        for name in places[0]
    }
    times = start + np.arange(len(places[0]["rain"])) * np.timedelta64(step, "h")
    coords: dict[str, Any] = {"site": sites, "time": times}
    if position is not None:
        coords |= {
            name: ("site", [at] * len(sites)) for name, at in zip(("latitude", "longitude"), position, strict=True)
        }
    panel = xr.Dataset(arrays, coords, {"step_hours": float(step), "findings": (), "source": "made"})
    return with_quantities(panel, {}, ())


def zone(name: str = "tropical", **changes: Any) -> dict[ClimateZone, ZoneSkill]:
    known = {
        "zone": name,
        "places": 12,
        "maps": [[0.9, 0.1], [0.8, 0.0], [0.7, -0.2], [0.6, -0.5]],
        "bss": [0.1, 0.1, 0.1, 0.1],
        "bss_calibrated": [0.14, 0.13, 0.06, 0.02],
        "share_positive": 0.9,
        "frequency": [0.4, 0.3, 0.15, 0.1],
    }
    return {ClimateZone(name): ZoneSkill.model_validate({**known, **changes})}


YEAR = weather(400 * 24)


def part(days: float, step: int = 1) -> dict[str, Any]:
    """The last days of `YEAR`, every `step` hours."""
    return {name: values[-round(days * 24) :][step - 1 :: step].copy() for name, values in YEAR.items()}


def logits(place: PlaceForecast) -> list[float]:
    return [each.logit for each in place.amounts]


def probabilities(place: PlaceForecast) -> list[float | None]:
    return [each.probability for each in place.amounts]


# The encoder


def test_the_logits_are_those_of_the_pretraining(tmp_path: Path) -> None:
    hours = 24 * 70
    known = {name: values[-hours:] for name, values in YEAR.items()}
    gaps = known["temperature"].copy()
    gaps[-40:-30] = np.nan
    known = {**known, "temperature": gaps}
    names = {
        "temperature": "temperature_c", "dewpoint": "dewpoint_c", "surface_pressure": "pressure_surface_hpa",
        "wind_speed": "wind_speed_ms", "wind_direction": "wind_direction_deg", "rain": "precipitation_mm",
    }  # fmt: skip
    times = START + np.arange(hours) * np.timedelta64(1, "h")
    table = pd.DataFrame({names[name]: np.float32(values) for name, values in known.items()})
    table = table.assign(site="a", latitude=PLACE[0], longitude=PLACE[1], time=times.astype("datetime64[ms]"))
    table.to_parquet(tmp_path / "hourly_a.parquet")
    windows = CorpusWindows(read_corpus([tmp_path / "hourly_a.parquet"], 0.0), 0)
    end = (times[-1].astype("datetime64[h]") - EPOCH).astype(int)
    window = Part("validation", np.array([0]), np.array([end]), np.array([0]))
    values_BQL, observed_BQL, place_BG = map(torch.from_numpy, windows.batch(window))
    encoder, _ = llueve.load_pretrained("embedded", positions="time")
    model = TimerXLForClassification(encoder, 2, DayHead(), instance_norm=False)
    with torch.inference_mode():
        pooled = model.eval().pool(values_BQL.transpose(1, 2), observed_BQL.transpose(1, 2), place_BG)
        expected = model.answer(pooled).days.rain_BNR[0, -1]
    (place,) = forecast_panel(panel_of(known), zone())
    np.testing.assert_allclose(logits(place), expected, atol=0.01)  # the corpus holds half precision
    (elsewhere,) = forecast_panel(panel_of({**known, "rain": known["rain"][::-1]}), zone())
    assert np.abs(np.subtract(logits(elsewhere), expected.numpy())).max() > 0.02


def test_a_place_is_compared_with_itself() -> None:
    higher = {**part(90), "surface_pressure": part(90)["surface_pressure"] + 30}
    one, other = forecast_panel(panel_of(part(90), higher), zone())
    np.testing.assert_allclose(logits(one), logits(other), atol=1e-4)
    assert one.quantities[:3] == ("air_temperature", "dew_point_temperature", "relative_humidity")


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6])
def test_steps_of_data(step: int) -> None:
    (place,) = forecast_panel(panel_of(part(90, step), step=step), zone())
    assert len(place.amounts) == 4 and place.record_days == 90
    assert place.refused is None and all(math.isfinite(logit) for logit in logits(place))


@pytest.mark.parametrize(("step", "words"), [(5, "a step has 5 h"), (24, "a step has 24 h")])
def test_other_steps_are_refused(step: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        forecast_panel(panel_of(part(90, 1), step=step), zone())


# Probabilities


def test_probabilities_are_recalibrated_and_never_rise_with_the_amount() -> None:
    (place,) = forecast_panel(panel_of(part(90)), zone())
    first = 1 / (1 + math.exp(-(0.9 * logits(place)[0] + 0.1)))
    assert place.amounts[0].probability == pytest.approx(first)
    (steep,) = forecast_panel(panel_of(part(90)), zone(maps=[[1, 0], [1, 3], [1, -1], [1, 5]]))
    found = [each.probability or 0.0 for each in steep.amounts]
    assert found == sorted(found, reverse=True) and found[1] == found[0] and found[3] == found[2]
    assert (place.zone, place.verified_places, place.share_positive) == ("tropical", 12, 0.9)
    assert [each.skill for each in place.amounts] == [0.14, 0.13, 0.06, 0.02]


def test_an_amount_without_skill_has_no_probability() -> None:
    (place,) = forecast_panel(panel_of(part(90)), zone(bss_calibrated=[0.1, 0.1, 0.0, None]))
    assert [each is None for each in probabilities(place)] == [False, False, True, True]


@pytest.mark.parametrize(
    ("zones", "words"),
    [
        ({}, "the encoder was not verified at any tropical site; train a model on the record"),
        (zone("polar"), "the encoder was not verified at any tropical site"),
        (zone(places=2), r"verified at 2 tropical site\(s\) that it had not seen; at least 3 .*`llueve train`"),
        (zone(bss_calibrated=[-0.1] * 4), r"was not better than climatology .*-0.10 for 1 mm.*`llueve train`"),
    ],
)
def test_a_zone_without_verified_skill_is_refused(zones: dict[ClimateZone, ZoneSkill], words: str) -> None:
    with pytest.raises(DataError, match=words):
        forecast_panel(panel_of(part(90)), zones)


def test_an_unknown_position_is_said_and_needs_no_zone() -> None:
    (place,) = forecast_panel(panel_of(part(90), position=None))
    assert place.zone is None and place.latitude is None
    assert any("the probabilities are not recalibrated" in each for each in place.uncertain)
    assert place.amounts[0].probability == pytest.approx(1 / (1 + math.exp(-logits(place)[0])))
    assert [each.skill for each in place.amounts] == [None] * 4


def test_the_usual_frequency_is_that_of_the_season() -> None:
    # The record ends on 5 February 2024, day 35 of the year. Days 355 to 365 and 0 to 80 are within 45 days of it. It rains
    # 2 mm at 12 UTC of the first 80 days of 2023.
    wet = np.zeros(400 * 24)
    wet[11 : 80 * 24 : 24] = 2.0
    (place,) = forecast_panel(panel_of({**YEAR, "rain": wet}), zone())
    assert place.issued == "2024-02-05T00:00:00"
    # In 2023, days 0 to 80 and 355.2 to 365; in 2024, days 0 to 34, after which the record is shorter than a day. The sums are
    # wet until 11 UTC of day 79.
    usual = [each.usual for each in place.amounts]
    assert usual[0] == usual[1] == pytest.approx(79.4 / (80 + 9.8 + 34), abs=0.003) and usual[2:] == [0.0, 0.0]
    assert place.usual_from == "record"


def test_without_rain_the_usual_frequency_is_that_of_the_zone() -> None:
    dry = {**part(90), "rain": np.full(90 * 24, np.nan)}
    (place,) = forecast_panel(panel_of(dry), zone())
    assert place.usual_from == "zone" and [each.usual for each in place.amounts] == [0.4, 0.3, 0.15, 0.1]
    assert any("rain is unknown: the record has none, or its column has no unit" in each for each in place.uncertain)
    (unplaced,) = forecast_panel(panel_of(dry, position=None))
    assert unplaced.usual_from is None and unplaced.amounts[0].usual is None


# Records


def test_a_record_of_a_part_of_the_year_is_uncertain() -> None:
    (short,) = forecast_panel(panel_of(part(90)), zone())
    assert any("the record covers 91 days of the year" in each for each in short.uncertain)
    (whole,) = forecast_panel(panel_of(YEAR), zone())
    assert whole.uncertain == () and whole.record_days == 400


def blank(place: dict[str, Any], *names: str, rows: slice) -> dict[str, Any]:
    changed = {name: values.astype(float) for name, values in place.items()}
    for name in names or place:
        changed[name][rows] = np.nan
    return changed


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (part(59), "the record has 59 days with observations, .* at least 60; give a longer record"),
        (blank(part(90), rows=slice(None, 31 * 24)), "the record has 59 days with observations"),
        (
            blank(part(90), rows=slice(-23, -5)),
            "the day up to 2024-02-05 00:00 has 3 quantities at 25% .* at least 50%",
        ),
        (blank(part(90), rows=slice(-168, -20)), "the week up to 2024-02-05 00:00 has 3 quantities at 12%"),
        (
            blank(part(90), "dewpoint", "surface_pressure", "wind_speed", "wind_direction", rows=slice(None)),
            "found air_temp",
        ),
    ],
)
def test_a_record_that_is_too_poor_is_refused(place: dict[str, Any], words: str) -> None:
    panel = panel_of(place, start=np.datetime64("2024-02-05T01") - np.timedelta64(len(place["rain"]), "h"))
    if "found" in words:
        panel = panel[["temperature", "rain"]]
    with pytest.raises(DataError, match=words):
        forecast_panel(panel, zone())


def test_the_forecast_is_made_at_the_newest_time_with_observations() -> None:
    (whole,) = forecast_panel(panel_of(part(90)), zone())
    (late,) = forecast_panel(panel_of(blank(part(90), rows=slice(-30, None))), zone())
    assert whole.issued is not None and late.issued is not None
    assert np.datetime64(whole.issued) - np.datetime64(late.issued) == np.timedelta64(30, "h")
    assert late.refused is None


def test_a_week_that_begins_before_the_record_has_nothing_of_its_end() -> None:
    # After five days the place has two quantities only: the forecast is made then.
    early = blank(part(90), "dewpoint", "surface_pressure", "wind_speed", "wind_direction", rows=slice(5 * 24, None))
    other = {**early, "rain": early["rain"].copy()}
    other["rain"][-48:] = 50.0
    one, two = forecast_panel(panel_of(early, other), zone())
    assert one.issued == two.issued == "2023-01-06T00:00:00"
    assert logits(one) == pytest.approx(logits(two), abs=1e-6)


def test_one_poor_site_does_not_stop_the_others() -> None:
    good, poor = forecast_panel(panel_of(part(90), blank(part(90), rows=slice(-23, -5))), zone())
    assert good.refused is None and len(good.amounts) == 4
    assert poor.refused is not None and poor.amounts == () and "25%" in poor.refused
    alone = forecast_panel(panel_of(part(90)), zone())[0]
    np.testing.assert_allclose(logits(good), logits(alone), atol=1e-4)


# Python


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give the latitude and the longitude of a place, or a table"),
        ({"latitude": 1.0}, "give the other one, too"),
        ({"table": "a.csv", "longitude": 1.0}, "give the other one, too"),
        ({"latitude": 91.0, "longitude": 0.0}, "expected a latitude in −90…90"),
        ({"latitude": math.nan, "longitude": 0.0}, "expected a latitude in −90…90"),
        ({"latitude": 0.0, "longitude": 361.0}, "a longitude in −180…360"),
    ],
)
def test_a_call_that_is_not_possible(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        llueve.forecast(**given)


def test_from_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = pd.DataFrame({f"{name} [{UNITS.get(name, 'degree')}]": values for name, values in part(90).items()})
    table.insert(0, "time", START + np.arange(90 * 24) * np.timedelta64(1, "h"))
    table.iloc[5, 1] = 200.0
    table.to_csv(tmp_path / "a.csv", index=False)
    (place,) = llueve.forecast(table=str(tmp_path / "a.csv"))
    assert place.refused is None and place.as_dict()["issued"].endswith("Z")
    assert "200 degC, are impossible for air_temperature" in caplog.text and "change the table" in caplog.text
    two = pd.concat([table.assign(site="a"), table.assign(site="b")])
    two.to_csv(tmp_path / "two.csv", index=False)
    with pytest.raises(UsageError, match="has 2 sites, and a latitude and a longitude are the position of one"):
        llueve.forecast(table=str(tmp_path / "two.csv"), latitude=1.0, longitude=2.0)
