"""Derived variables: by hand, in known units, and never from the future."""

import tracemalloc

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from llueve.config import FeaturesConfig
from llueve.errors import ConfigError, DataError
from llueve.samples.features import add_features, nearest_sites, relative_humidity, rolling, wind_from

UNITS = {"u10": "m s-1", "v10": "m s-1", "t2m": "K", "d2m": "K", "sp": "Pa", "tp": "mm"}


def panel_of(steps=12, sites=2, step_hours=6.0, seed=0, **given_ST):
    random = np.random.default_rng(seed)
    arrays = {name: random.normal(size=(sites, steps)) + 280 * (units == "K") for name, units in UNITS.items()}
    arrays |= given_ST
    data = {
        name: (("site", "time"), np.asarray(values, np.float32), {"units": UNITS[name]})
        for name, values in arrays.items()
    }
    times = np.datetime64("2020-01-01", "ns") + np.arange(steps) * np.timedelta64(int(step_hours), "h")
    coords = {"site": [f"s{n}" for n in range(sites)], "time": times}
    return xr.Dataset(data, coords, attrs={"step_hours": step_hours, "findings": ()})


def made(panel, **keys):
    return add_features(panel, FeaturesConfig(**keys))


EVERYTHING = {
    "wind": {"wind": ("u10", "v10")},
    "dewpoint_spread": {"spread": ("t2m", "d2m")},
    "relative_humidity": {"rh": ("t2m", "d2m")},
    "tendency_hours": {"sp": (6, 24)},
    "lag_hours": {"tp": (12,), "rh": (6,)},
    "rolling": [{"variable": "tp", "hours": 24, "statistic": each} for each in ("mean", "std", "sum", "min", "max")],
    "neighbours": 1,
}


def placed(panel):
    return panel.assign_coords(latitude=("site", [0.0, 1.0]), longitude=("site", [0.0, 1.0]))


def test_wind_by_hand():
    panel = made(
        panel_of(steps=4, sites=1, u10=[[3.0, 0.0, 0.0, np.nan]], v10=[[4.0, -2.0, 0.0, 1.0]]),
        wind={"w": ("u10", "v10")},
    )
    np.testing.assert_allclose(panel["w_speed"].values, [[5, 2, 0, np.nan]])
    # From the south-west; from the north; calm; unknown.
    np.testing.assert_allclose(panel["w_from_sin"].values, [[-0.6, 0, 0, np.nan]], atol=1e-7)
    np.testing.assert_allclose(panel["w_from_cos"].values, [[-0.8, 1, 0, np.nan]], atol=1e-7)
    assert panel["w_speed"].attrs["units"] == "m s-1"


def test_a_west_wind_comes_from_270_degrees():
    sine, cosine = wind_from(np.array([[1.0]]), np.array([[0.0]]))
    assert np.degrees(np.arctan2(sine, cosine)) % 360 == pytest.approx(270)


def test_humidity_is_right_in_kelvin_and_celsius():
    """20 °C with a dewpoint of 10 °C is 52.5 % (Magnus); saturated air is 100 %."""
    celsius = panel_of(steps=2, sites=1, t2m=[[20, 10]], d2m=[[10, 10]])
    for name in ("t2m", "d2m"):
        celsius[name].attrs["units"] = "degC"
    kelvin = panel_of(steps=2, sites=1, t2m=[[293.15, 283.15]], d2m=[[283.15, 283.15]])
    for panel in (celsius, kelvin):
        found = made(panel, relative_humidity={"rh": ("t2m", "d2m")}, dewpoint_spread={"spread": ("t2m", "d2m")})
        np.testing.assert_allclose(found["rh"].values, [[52.5, 100]], atol=0.05)
        np.testing.assert_allclose(found["spread"].values, [[10, 0]], atol=1e-4)
        assert (found["rh"].attrs["units"], found["spread"].attrs["units"]) == ("%", "K")


def test_kelvin_taken_for_celsius_would_have_been_wrong():
    assert abs(relative_humidity(np.array(293.15), np.array(283.15)) - 52.5) > 20


def test_a_temperature_without_a_unit_is_refused():
    panel = panel_of()
    panel["t2m"].attrs.clear()
    with pytest.raises(DataError, match=r"needs t2m in K or degC, found unit None; set data\.units\.t2m"):
        made(panel, relative_humidity={"rh": ("t2m", "d2m")})


def test_tendency_lag_and_rolling_by_hand_and_missing_at_the_start():
    panel = made(
        panel_of(steps=5, sites=1, sp=[[1, 2, 4, np.nan, 16]], tp=[[1, 0, 3, 5, 0]]),
        tendency_hours={"sp": (6,)},
        lag_hours={"tp": (12,)},
        rolling=[{"variable": "tp", "hours": 18, "statistic": each} for each in ("sum", "mean", "std", "max", "min")],
    )
    np.testing.assert_array_equal(panel["sp_change_6h"].values, [[np.nan, 1, 2, np.nan, np.nan]])
    np.testing.assert_array_equal(panel["tp_lag_12h"].values, [[np.nan, np.nan, 1, 0, 3]])
    np.testing.assert_array_equal(panel["tp_sum_18h"].values, [[np.nan, np.nan, 4, 8, 8]])
    np.testing.assert_allclose(panel["tp_mean_18h"].values, [[np.nan, np.nan, 4 / 3, 8 / 3, 8 / 3]])
    np.testing.assert_allclose(panel["tp_std_18h"].values[0, 2], (14 / 9) ** 0.5)  # of 1, 0, 3 about 4/3
    np.testing.assert_array_equal(panel["tp_max_18h"].values, [[np.nan, np.nan, 3, 5, 5]])
    np.testing.assert_array_equal(panel["tp_min_18h"].values, [[np.nan, np.nan, 0, 0, 0]])


def test_a_missing_cell_inside_makes_the_statistic_missing():
    assert np.isnan(rolling(np.array([[1.0, np.nan, 3.0, 4.0]]), 2, "mean")).tolist() == [[True, True, True, False]]


def test_neighbours_are_the_nearest_on_the_globe():
    """Across the date line: 179° E is nearer to 179° W than to 170° E."""
    near = nearest_sites(np.array([0.0, 0.0, 0.0]), np.array([179.0, -179.0, 170.0]), 2)
    assert near.tolist() == [[1, 2], [0, 2], [0, 1]]


def test_a_neighbour_lends_its_variables():
    panel = made(placed(panel_of()), neighbours=1, neighbour_variables=("tp",))
    np.testing.assert_array_equal(panel["tp_near1"].values, panel["tp"].values[::-1])
    assert "sp_near1" not in panel


@given(at=st.integers(0, 11), site=st.integers(0, 1), value=st.one_of(st.none(), st.floats(-1e3, 1e3)))
@settings(max_examples=40)
def test_nothing_comes_from_the_future(at, site, value):
    """Whatever happens at one time, no variable changes before it."""
    before = placed(panel_of())
    after = before.copy(deep=True)
    for name in UNITS:
        after[name].values[site, at] = np.nan if value is None else value
    first, second = made(before, **EVERYTHING), made(after, **EVERYTHING)
    assert len(first.data_vars) > len(before.data_vars) + 12
    for name in first.data_vars:
        np.testing.assert_array_equal(first[name].values[:, :at], second[name].values[:, :at])


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"wind": {"w": ("u10", "v100")}}, ConfigError, "features.wind names 'v100', which the panel lacks"),
        ({"lag_hours": {"tp": (4,)}}, ConfigError, "4 h is not a whole number of the panel's steps of 6 h"),
        (
            {"dewpoint_spread": {"sp": ("t2m", "d2m")}},
            ConfigError,
            "would make 'sp', but the panel has this name already",
        ),
        ({"neighbours": 2}, ConfigError, "the panel has 2 site"),
        ({"neighbours": 1}, DataError, "needs the position of each site"),
    ],
)
def test_what_cannot_be_made_is_refused(keys, error, message):
    with pytest.raises(error, match=message):
        made(panel_of(), **keys)


def test_without_a_wish_the_panel_is_as_it_was():
    panel = panel_of()
    assert add_features(panel, FeaturesConfig()) is panel


@pytest.mark.parametrize("statistic", ["mean", "std", "sum", "min", "max"])
def test_rolling_holds_few_windows_at_a_time(statistic):
    x_ST = np.random.default_rng(0).normal(size=(2, 30_000))
    tracemalloc.start()
    rolled_ST = rolling(x_ST, 720, statistic)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20  # all windows together are 337 MiB
    for end in (719, 12_345, 29_999):
        assert rolled_ST[1, end] == pytest.approx(getattr(x_ST[1, end - 719 : end + 1], statistic)(), rel=1e-12)
