"""Canonical inputs: conversions and derivations with visible arithmetic, and properties that hold for any values."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from llueve.errors import UsageError
from llueve.quantities import formulas
from llueve.quantities.catalogue import QUANTITIES
from llueve.quantities.unit_table import scale, unit_of
from llueve.samples.canonical import RECIPES, canonical
from llueve.sources.identify import with_quantities

EVERYTHING = [
    *QUANTITIES, "air_temperature maximum", "wind_speed 09:00", "eastward_wind 09:00", "wind_from_direction sine",
]  # fmt: skip


def panel_of(
    variables: dict[str, tuple[str, str | None, list[float]]],
    step_hours: float = 1.0,
    elevation_m: float | None = None,
    **sums: float,
) -> xr.Dataset:
    """A panel of one site: quantity, unit and values by name; and the hours that sums cover, by name."""
    count = len(next(iter(variables.values()))[2])
    step = np.timedelta64(round(step_hours * 3600), "s")
    coords: dict[str, Any] = {
        "site": ["a"],
        "time": np.datetime64("2024-01-01", "ns") + np.arange(count) * step,
    }
    if elevation_m is not None:
        coords["elevation_m"] = ("site", [elevation_m])
    panel = xr.Dataset(
        {
            name: (
                ("site", "time"),
                np.array([values], np.float32),
                {
                    **({} if unit is None else {"units": unit}),
                    **({"accumulation_hours": sums[name]} if name in sums else {}),
                },
            )
            for name, (_, unit, values) in variables.items()
        },
        coords,
        {"step_hours": step_hours, "findings": ()},
    )
    return with_quantities(panel, {name: quantity for name, (quantity, _, _) in variables.items()}, ())


def one(panel: xr.Dataset, wanted: str) -> list[float]:
    """The values of one quantity at the only site."""
    result = canonical(panel, [wanted])
    assert result[wanted].dtype == np.float32 and result[wanted].dims == ("site", "time")
    values: list[float] = result[wanted].values[0].tolist()
    return values


# Units


@pytest.mark.parametrize(
    ("quantity", "unit", "value", "expected"),
    [
        ("air_temperature", "K", 300.0, 300.0 - 273.15),
        ("air_temperature", "degF", 50.0, (50.0 - 32) / 1.8),
        ("air_temperature maximum", "°C", 21.5, 21.5),
        ("surface_air_pressure", "Pa", 95_000.0, 950.0),
        ("air_pressure_at_mean_sea_level", "kPa", 101.3, 1013.0),
        ("relative_humidity", "1", 0.75, 75.0),
        ("cloud_area_fraction", "okta", 3.0, 37.5),
        ("cloud_area_fraction", "(0 - 1)", 0.25, 25.0),
        ("wind_speed", "km/h", 36.0, 10.0),
        ("wind_speed_of_gust", "kt", 10.0, 18.52 / 3.6),
        ("wind_from_direction", "rad", np.pi / 2, 90.0),
        ("wind_from_direction", "degree", -90.0, 270.0),
        ("precipitation_amount", "m", 0.002, 2.0),
        ("precipitation_amount", "kg m-2", 2.5, 2.5),
        ("precipitation_amount", "in", 1.0, 25.4),
        ("precipitation_amount", "mm/h", 2.0, 2.0 * 3),
        ("precipitation_amount", "kg m-2 s-1", 0.001, 0.001 * 3600 * 3),
        ("precipitation_amount", "mm/day", 8.0, 8.0 * 3 / 24),
        ("precipitation_amount", "m s-1", 1e-6, 1e-6 * 1000 * 3600 * 3),
        ("surface_downwelling_shortwave_flux_in_air", "J m**-2", 1.08e6, 1.08e6 / (3 * 3600)),
        ("surface_downwelling_shortwave_flux_in_air", "MJ/m²", 1.08, 1.08e6 / (3 * 3600)),
        ("surface_downwelling_shortwave_flux_in_air", "W/m²", 250.0, 250.0),
        ("duration_of_sunshine", "min", 90.0, 1.5),
        ("specific_humidity", "kg kg**-1", 0.012, 12.0),
        ("surface_snow_thickness", "mm", 125.0, 12.5),
        ("atmosphere_mass_content_of_water_vapor", "kg m**-2", 30.0, 30.0),
        ("volume_fraction_of_condensed_water_in_soil", "m**3 m**-3", 0.3, 0.3),
    ],
)
def test_values_in_the_canonical_unit(quantity: str, unit: str, value: float, expected: float) -> None:
    panel = panel_of({"x": (quantity, unit, [value, float("nan")])}, step_hours=3.0)
    assert one(panel, quantity) == pytest.approx([expected, float("nan")], rel=1e-6, nan_ok=True)
    assert canonical(panel, [quantity])[quantity].attrs["units"] == QUANTITIES[quantity.split()[0]].units


def test_an_amount_that_does_not_cover_its_step_gives_none() -> None:
    # ERA5 sampled every 12 hours: the rain of one hour is not the total of the step.
    panel = panel_of({"tp": ("precipitation_amount", "mm", [1.0, 2.0])}, step_hours=12.0, tp=1.0)
    result = canonical(panel, ["precipitation_amount"])
    assert not result.data_vars and "tp sums 1 h, but a step has 12 h" in result.attrs["absent"]["precipitation_amount"]
    # A mean power needs only its own hours: 3.6 MJ in one hour are 1000 W.
    panel = panel_of({"s": ("surface_downwelling_shortwave_flux_in_air", "J m-2", [3.6e6])}, step_hours=12.0, s=1.0)
    assert one(panel, "surface_downwelling_shortwave_flux_in_air") == [1000.0]


def test_a_variable_without_a_known_unit_gives_none() -> None:
    result = canonical(panel_of({"w": ("wind_speed", None, [1.0, 2.0])}), ["wind_speed", "cloud_area_fraction"])
    assert not result.data_vars
    assert result.attrs["absent"]["wind_speed"].endswith("the unit of w is unknown: set data.units.w")
    assert result.attrs["absent"]["cloud_area_fraction"] == "no variable gives cloud_area_fraction"


# Derivations


def test_wind() -> None:
    # From 270° the wind blows to the east, from 180° to the north; in a calm both components are zero.
    speed, direction = [10.0, 10.0, 0.0, 5.0], [270.0, 180.0, 90.0, float("nan")]
    panel = panel_of({"s": ("wind_speed", "m s-1", speed), "d": ("wind_from_direction", "degree", direction)})
    nan = float("nan")
    assert one(panel, "eastward_wind") == pytest.approx([10.0, 0.0, 0.0, nan], abs=1e-6, nan_ok=True)
    assert one(panel, "northward_wind") == pytest.approx([0.0, 10.0, 0.0, nan], abs=1e-6, nan_ok=True)
    panel = panel_of(
        {"u": ("eastward_wind", "m s-1", [3.0, 0.0, 0.0]), "v": ("northward_wind", "m s-1", [4.0, -2.0, 0.0])}
    )
    assert one(panel, "wind_speed") == [5.0, 2.0, 0.0]
    # (3, 4) comes from 180° + atan(3 / 4); (0, -2) blows to the south, so it comes from the north.
    assert one(panel, "wind_from_direction") == pytest.approx([180 + 36.8699, 0.0, nan], rel=1e-5, nan_ok=True)


def test_wind_from_sine_and_cosine_at_a_clock_hour() -> None:
    sine, cosine = ("wind_from_direction 09:00 sine", "wind_from_direction 09:00 cosine")
    panel = panel_of(
        {"s": ("wind_speed 09:00", "km/h", [36.0]), "x": (sine, "1", [-1.0]), "y": (cosine, "1", [0.0])}, 24.0
    )
    assert one(panel, "eastward_wind 09:00") == [10.0] and one(panel, "wind_from_direction 09:00") == [270.0]
    assert "eastward_wind" not in canonical(panel, ["eastward_wind"])


def test_humidity() -> None:
    # e(20 °C) = 6.1094 exp(17.625 · 20 / 263.04) = 23.33 hPa, e(10 °C) = 12.26 hPa: 52.5 %.
    panel = panel_of({"t": ("air_temperature", "K", [293.15]), "d": ("dew_point_temperature", "degC", [10.0])})
    assert one(panel, "relative_humidity") == pytest.approx([52.54], abs=0.02)
    assert one(panel, "water_vapor_saturation_deficit_in_air") == pytest.approx([23.33 - 12.26], abs=0.02)
    panel = panel_of({"t": ("air_temperature", "degC", [20.0, 20.0]), "r": ("relative_humidity", "%", [52.54, 0.0])})
    assert one(panel, "dew_point_temperature") == pytest.approx([10.0, float("nan")], abs=0.02, nan_ok=True)
    # 0.622 · 12.26 / (1000 − 0.378 · 12.26) = 7.66 g/kg.
    panel = panel_of({"p": ("surface_air_pressure", "hPa", [1000.0]), "d": ("dew_point_temperature", "degC", [10.0])})
    assert one(panel, "specific_humidity") == pytest.approx([7.66], abs=0.01)


def test_pressure_needs_the_height_of_the_site() -> None:
    variables: dict[str, Any] = {"p": ("surface_air_pressure", "hPa", [954.6])}
    result = canonical(panel_of(variables), ["air_pressure_at_mean_sea_level"])
    assert "the height of the sites is unknown" in result.attrs["absent"]["air_pressure_at_mean_sea_level"]
    # The standard atmosphere has 954.6 hPa and 11.75 °C at 500 m.
    assert one(panel_of(variables, elevation_m=500.0), "air_pressure_at_mean_sea_level") == pytest.approx(
        [1013.25], abs=0.1
    )
    warm = panel_of({**variables, "t": ("air_temperature", "degC", [11.75])}, elevation_m=500.0)
    assert one(warm, "air_pressure_at_mean_sea_level") == pytest.approx([1013.25], abs=0.1)
    assert canonical(warm, ["air_pressure_at_mean_sea_level"])["air_pressure_at_mean_sea_level"].attrs["variables"] == (
        "p",
        "t",
    )


def test_parts_of_precipitation() -> None:
    panel = panel_of({"r": ("rainfall_amount", "mm", [1.0]), "s": ("snowfall_amount", "m", [0.002])})
    assert one(panel, "precipitation_amount") == [3.0]


def test_a_held_quantity_comes_before_a_derived_one_and_sure_evidence_first() -> None:
    panel = panel_of(
        {
            "t": ("air_temperature", "degC", [20.0]),
            "d": ("dew_point_temperature", "degC", [10.0]),
            "r": ("relative_humidity", "%", [55.0]),
        }
    )
    assert one(panel, "relative_humidity") == [55.0]
    attrs = canonical(panel, ["relative_humidity"])["relative_humidity"].attrs
    assert (attrs["derivation"], attrs["variables"]) == ("r as it is", ("r",))
    names = with_quantities(
        panel_of({"a": ("none", "degC", [1.0]), "temperature": ("none", "degC", [2.0])}), {"a": "air_temperature"}, ()
    )
    assert one(names, "air_temperature") == [1.0]


def test_no_extreme_and_no_clock_hour_stands_for_a_value_of_the_step() -> None:
    panel = panel_of(
        {"x": ("air_temperature maximum", "degC", [9.0]), "y": ("air_temperature 09:00", "degC", [5.0])}, 24.0
    )
    assert not canonical(panel, ["air_temperature"]).data_vars
    assert one(panel, "air_temperature maximum") == [9.0]


def test_an_unknown_quantity_is_refused() -> None:
    panel = panel_of({"t": ("air_temperature", "degC", [20.0])})
    for text in ("air_temprature", "none", ""):
        with pytest.raises(UsageError, match="wanted quantity"):
            canonical(panel, [text])


# Properties

temperatures = st.floats(-60, 50)
humidities = st.floats(1, 110)
pressures = st.floats(500, 1080)


@given(temperatures, humidities, pressures, st.floats(0, 4000))
def test_round_trips(celsius: float, percent: float, hpa: float, metres: float) -> None:
    t, r, p, z = (np.array([each]) for each in (celsius, percent, hpa, metres))
    dew = formulas.dew_point(t, r)
    assert formulas.relative_humidity(t, dew) == pytest.approx(r, rel=1e-9)
    specific = formulas.specific_humidity(dew, p)
    assert formulas.dew_point_from_specific(specific, p) == pytest.approx(dew, abs=1e-6)
    assert formulas.station_pressure(formulas.sea_level_pressure(p, t, z), t, z) == pytest.approx(p, rel=1e-9)
    assert dew[0] <= celsius + 1e-9 or percent > 100


@given(st.floats(0.1, 60), st.floats(0, 359.99))
def test_round_trip_of_the_wind(speed: float, direction: float) -> None:
    panel = panel_of({"s": ("wind_speed", "m s-1", [speed]), "d": ("wind_from_direction", "degree", [direction])})
    parts = canonical(panel, ["eastward_wind", "northward_wind"])
    u, v = (float(parts[name].values[0, 0]) for name in ("eastward_wind", "northward_wind"))
    back = panel_of({"u": ("eastward_wind", "m s-1", [u]), "v": ("northward_wind", "m s-1", [v])})
    assert one(back, "wind_speed") == pytest.approx([speed], rel=1e-5)
    assert abs((one(back, "wind_from_direction")[0] - direction + 180) % 360 - 180) < 0.01


@pytest.mark.parametrize(
    ("one_unit", "other"), [("K", "degF"), ("hPa", "inHg"), ("m s-1", "kt"), ("mm", "in"), ("%", "okta")]
)
def test_a_unit_and_back(one_unit: str, other: str) -> None:
    first, second = unit_of(one_unit), unit_of(other)
    assert first is not None and second is not None
    there, back = scale(first, second, 1.0), scale(second, first, 1.0)
    assert there is not None and back is not None
    assert (290.0 * there[0] + there[1]) * back[0] + back[1] == pytest.approx(290.0, rel=1e-12)


SOURCES: dict[str, Any] = {
    "t": ("air_temperature", "degC", (-20.0, 30.0)),
    "r": ("relative_humidity", "%", (5.0, 100.0)),
    "p": ("surface_air_pressure", "hPa", (900.0, 1000.0)),
    "s": ("wind_speed", "m s-1", (0.0, 20.0)),
    "d": ("wind_from_direction", "degree", (0.0, 360.0)),
    "c": ("convective_precipitation_amount", "mm", (0.0, 9.0)),
    "l": ("stratiform_precipitation_amount", "mm", (0.0, 9.0)),
}


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(0, 11))
def test_a_value_depends_on_its_own_time_only_and_missing_stays_missing(seed: int, changed: int) -> None:
    random = np.random.default_rng(seed)
    values = {name: random.uniform(*bounds, size=12) for name, (_, _, bounds) in SOURCES.items()}
    for each in values.values():
        each[random.random(12) < 0.3] = np.nan
    other = {name: each.copy() for name, each in values.items()}
    for name, (_, _, bounds) in SOURCES.items():
        other[name][changed] = random.uniform(*bounds)
    results = [
        canonical(
            panel_of(
                {name: (*SOURCES[name][:2], each.tolist()) for name, each in given_values.items()}, elevation_m=300.0
            ),
            EVERYTHING,
        )
        for given_values in (values, other)
    ]
    kept = np.arange(12) != changed
    assert (
        set(results[0].data_vars)
        == set(results[1].data_vars)
        > {"dew_point_temperature", "eastward_wind", "specific_humidity"}
    )
    for name, array in results[0].data_vars.items():
        np.testing.assert_array_equal(array.values[:, kept], results[1][name].values[:, kept])
        assert not np.isinf(array.values).any()
        unknown = np.any([np.isnan(values[source]) for source in array.attrs["variables"]], axis=0)
        assert np.isnan(array.values[0][unknown]).all()


def test_recipes_make_quantities_from_quantities() -> None:
    for name, recipes in RECIPES.items():
        assert name in QUANTITIES
        for recipe in recipes:
            assert {text.split()[0] for text in recipe.inputs} <= {*QUANTITIES, "elevation"}
