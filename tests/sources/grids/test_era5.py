"""`read_era5` on small files in every layout that ERA5 has come in."""

import json
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr
from gridfiles import by_site, codes, finding, rain, read, warmth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llueve import pipeline
from llueve.config import TargetConfig, load_config
from llueve.errors import ConfigError, DataError
from llueve.samples.read import read_source
from llueve.samples.target import next_sum_mm

RAIN = TargetConfig(variable="tp", threshold_mm=1.0)

# Layouts: whatever the file calls its axes and however it orders them, the panel is the same


@st.composite
def layouts(draw):
    time = draw(st.sampled_from(["valid_time", "time"]))
    axes = draw(st.sampled_from([("latitude", "longitude"), ("lat", "lon")]))
    names = (time, *axes)
    versions = draw(st.sampled_from([None, "coordinate", "scalar", "dimension"]))
    dims = list(draw(st.permutations(names)))
    if versions == "dimension":
        dims.insert(draw(st.integers(0, 3)), "expver")
    return {
        "names": names,
        "dims": tuple(dims),
        "versions": versions,
        "final_first": draw(st.booleans()),
        "change": draw(st.integers(0, 72)),
        "descending": draw(st.booleans()),
        "west": draw(st.sampled_from([10.0, -80.0, 280.0, 359.5, 179.5, 0.0])),
        "packed": draw(st.booleans()),
        "file_format": draw(st.sampled_from(["NETCDF4", "NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET"])),
        "shuffled": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


@given(layouts())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_layout_gives_the_same_panel(grid_file, layout):
    names, seed, change = layout["names"], layout["seed"], layout["change"]
    values = {"tp": rain(seed), "t2m": warmth(seed)}
    latitude = np.array([1.0, 0.75, 0.5]) if layout["descending"] else np.array([0.5, 0.75, 1.0])
    longitude = layout["west"] + np.arange(4) * 0.25
    if layout["west"] == 359.5:
        longitude %= 360.0  # over Greenwich, as 359.5, 359.75, 0, 0.25
        longitude = longitude if layout["seed"] % 2 else longitude - 360.0 * (longitude > 180)
        if layout["seed"] % 2:
            longitude = 359.5 + np.arange(4) * 0.25 - 360.0
    order = np.random.default_rng(seed).permutation(72) if layout["shuffled"] else np.arange(72)
    seconds = 1_672_531_200 + order * 3600
    expver: Any = None
    stored = {name: array[order] for name, array in values.items()}
    if layout["versions"] == "dimension":
        final, preliminary = order[:, None, None] < change, order[:, None, None] >= change
        pairs = {
            name: [np.where(final, array, np.nan), np.where(preliminary, array, np.nan)]
            for name, array in stored.items()
        }
        expver = [1, 5] if layout["final_first"] else [5, 1]
        stored = {name: np.stack(pair if layout["final_first"] else pair[::-1]) for name, pair in pairs.items()}
    elif layout["versions"] == "coordinate" and layout["file_format"] == "NETCDF4":
        expver = ["0001" if at < change else "0005" for at in order]
    elif layout["versions"] == "scalar" and layout["file_format"] == "NETCDF4":
        expver, change = "0005", 0
    else:
        change = 72
    axes = ("expver", *names) if layout["versions"] == "dimension" else names
    moved = {name: np.transpose(array, [axes.index(dim) for dim in layout["dims"]]) for name, array in stored.items()}
    path = grid_file(
        "a.nc", moved, seconds=seconds, latitude=latitude, longitude=longitude, names=names, dims=layout["dims"],
        expver=expver, packed=layout["packed"], file_format=layout["file_format"],
    )  # fmt: skip
    panel = read(path, target=RAIN)
    assert panel.sizes == {"site": 12, "time": 72}
    step = {name: (array.max() - array.min()) / 65000 if layout["packed"] else 0.0 for name, array in values.items()}
    np.testing.assert_allclose(panel["tp"], by_site(values["tp"]) * 1000, atol=step["tp"] * 1000 + 1e-6, rtol=1e-6)
    np.testing.assert_allclose(panel["t2m"], by_site(values["t2m"]), atol=step["t2m"] + 1e-6, rtol=1e-6)
    rows, columns = np.divmod(np.arange(12), 4)
    np.testing.assert_allclose(panel["latitude"], latitude[rows], atol=1e-6)
    away = (panel["longitude"].values - longitude[columns] + 180) % 360 - 180
    assert np.abs(away).max() < 1e-6 and np.abs(panel["longitude"].values).max() <= 180
    late = [each.count for each in panel.attrs["findings"] if each.code == "preliminary"]
    assert late == ([72 - change] if change < 72 else [])


@pytest.mark.parametrize(
    "longitude", [(359.5, 359.75, 0.0, 0.25), (179.5, 179.75, -180.0, -179.75), (0.25, 0.0, 359.75, 359.5)]
)
def test_longitudes_over_a_seam(grid_file, longitude):
    panel = read(grid_file("a.nc", {"t2m": warmth()}, longitude=longitude))
    expected = (np.array(longitude) + 180) % 360 - 180
    np.testing.assert_allclose(panel["longitude"].values[:4], expected)
    np.testing.assert_array_equal(panel["t2m"], by_site(warmth()))


def test_files_may_order_their_rows_and_columns_differently(grid_file, tmp_path):
    values = warmth(shape=(144, 3, 4))
    grid_file("a.nc", {"t2m": values[:72]})
    grid_file("b.nc", {"t2m": values[72:, ::-1]}, start="2023-01-04", latitude=(0.5, 0.75, 1.0))
    np.testing.assert_array_equal(read(tmp_path)["t2m"], by_site(values))
    columns = [2, 3, 0, 1]  # as of a globe that begins elsewhere
    grid_file("b.nc", {"t2m": values[72:, :, ::-1]}, start="2023-01-04", longitude=(10.75, 10.5, 10.25, 10.0))
    np.testing.assert_array_equal(read(tmp_path)["t2m"], by_site(values))
    globe = np.array([0.0, 90.0, 180.0, 270.0])
    grid_file("a.nc", {"t2m": values[:72]}, longitude=globe)
    grid_file("b.nc", {"t2m": values[72:][:, :, columns]}, start="2023-01-04", longitude=globe - 180)
    np.testing.assert_array_equal(read(tmp_path)["t2m"], by_site(values))


def test_one_step_files_keep_their_time_as_a_scalar(grid_file, tmp_path):
    for hour in range(3):
        path = tmp_path / f"{hour}.nc"
        with xr.open_dataset(grid_file("a.nc", {"t2m": warmth()}), decode_times=False) as dataset:
            dataset.isel(valid_time=hour).to_netcdf(path)
    (tmp_path / "a.nc").unlink()
    np.testing.assert_array_equal(read(tmp_path)["t2m"], by_site(warmth()[:3]))


def test_scalar_coordinates_are_dropped(grid_file):
    path = grid_file("a.nc", {"tp": rain()})
    with netCDF4.Dataset(path, "a") as file:
        for name in ("number", "step", "surface"):
            file.createVariable(name, "f8", ())[...] = 0.0
    assert list(read(path).data_vars) == ["tp"]


def test_final_and_preliminary_are_never_added(grid_file):
    values = rain()
    both = np.stack([values, values + 1e-3])
    path = grid_file("a.nc", {"tp": both}, dims=("expver", "valid_time", "latitude", "longitude"), expver=[1, 5])
    np.testing.assert_allclose(read(path)["tp"], by_site(values) * 1000, rtol=1e-6)
    with pytest.raises(DataError, match="expver holds 7, expected 1"):
        read(grid_file("b.nc", {"tp": both}, dims=("expver", "valid_time", "latitude", "longitude"), expver=[1, 7]))


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"latitude": [1.0, 0.75, 0.1]}, "evenly spaced latitude"),
        ({"latitude": [100.0, 99.75, 99.5]}, "within ±90"),
        ({"longitude": [10, 10.25, np.nan, 10.75]}, "evenly spaced longitude"),
        ({"longitude": [0, 120, 240, 360]}, "cover more than 360°"),
        ({"names": ("valid_time", "y", "x")}, "expected a regular grid with latitude or lat"),
        ({"names": ("t", "latitude", "longitude")}, "expected variables by time, latitude and longitude, found none"),
        ({"seconds": np.arange(72) * 3600 + 9_000_000_000}, "expected times from 1900 to 2100"),
        ({"seconds": np.arange(72) ** 2 * 3600}, "expected one step between times"),
    ],
)
def test_files_that_are_no_regular_grid(grid_file, options, part):
    with pytest.raises(DataError, match=part):
        read(grid_file("a.nc", {"tp": rain()}, **options))


def test_levels_are_refused_by_their_name(grid_file):
    path = grid_file("a.nc", {"tp": rain()})
    with netCDF4.Dataset(path, "a") as file:
        file.createDimension("pressure_level", 2)
        file.createVariable("q", "f4", ("valid_time", "pressure_level", "latitude", "longitude"))[:] = 0.0
    with pytest.raises(DataError, match=r"q: has a dimension pressure_level of 2 values.*data.exclude"):
        read(path)
    assert list(read(path, exclude=("q",)).data_vars) == ["tp"]


def test_names_that_the_panel_needs_itself(grid_file):
    with pytest.raises(DataError, match="variable name 'site' is reserved"):
        read(grid_file("a.nc", {"site": warmth(), "t2m": warmth()}))


# Units


@pytest.mark.parametrize(
    ("units", "factor", "becomes"),
    [("m", 1000, "mm"), ("mm", 1, "mm"), ("kg m**-2", 1, "mm"), ("furlong", 1, "furlong")],
)
def test_units_come_from_the_attribute_never_from_the_size(grid_file, units, factor, becomes):
    attrs = {"tp": {"units": units, "GRIB_stepType": "accum"}}
    panel = read(grid_file("a.nc", {"tp": rain()}, attrs=attrs))
    np.testing.assert_allclose(panel["tp"], by_site(rain()) * factor, rtol=1e-6)
    assert panel["tp"].attrs["units"] == becomes


def test_units_of_the_configuration(grid_file):
    path = grid_file("a.nc", {"tp": rain()}, attrs={"tp": {"GRIB_stepType": "accum"}})
    assert "units" not in read(path)["tp"].attrs
    panel = read(path, units={"tp": "m"})
    assert panel["tp"].attrs["units"] == "mm" and float(panel["tp"].max()) == pytest.approx(1000 * rain().max())
    with pytest.raises(DataError, match=r"says 'm' but data.units says 'mm'"):
        read(grid_file("b.nc", {"tp": rain()}), units={"tp": "mm"})


# Negative, infinite, undeclared


def test_noise_below_zero_becomes_zero_and_is_counted(grid_file):
    values = rain()
    values[3, 1, 2], values[5, 0, 0] = -1e-9, -9e-6
    panel = read(grid_file("a.nc", {"tp": values}))
    assert finding(panel, "packing_noise").count == 2
    np.testing.assert_allclose(panel["tp"], by_site(np.maximum(values, 0)) * 1000, rtol=1e-6)


def test_real_negatives_are_refused_with_their_time(grid_file):
    values = rain()
    values[30, 1, 2] = -5e-5
    with pytest.raises(DataError, match=r"tp: -5e-05 at 2023-01-02 06:00: below zero"):
        read(grid_file("a.nc", {"tp": values}))
    assert (read(grid_file("b.nc", {"t2m": warmth() - 300}))["t2m"] < 0).any()


@pytest.mark.parametrize("odd", [np.inf, -np.inf, 9.969209968386869e36, 1e20, -3e30])
def test_infinite_values_and_undeclared_fills_are_refused(grid_file, odd):
    values = warmth()
    values[41, 0, 3] = odd
    with pytest.raises(DataError, match=r"t2m: .* at 2023-01-02 17:00: infinite, or a fill value"):
        read(grid_file("a.nc", {"t2m": values}))


@pytest.mark.parametrize("mark", [-9999.0, -999.0, -32767.0])
def test_numbers_that_mean_missing_are_refused_or_named(grid_file, mark):
    values = warmth(shape=(24, 20, 30))
    values[7, 4, 5] = mark
    path = grid_file("a.nc", {"t2m": values}, latitude=np.arange(20) * 0.25, longitude=np.arange(30) * 0.25)
    regions = {"all": {"box": [6, -1, -1, 9]}}
    with pytest.raises(DataError, match=rf"t2m: {mark:g} at 2023-01-01 07:00: far from all others.*data.sentinels"):
        read(path, regions)
    panel = read(path, regions, sentinels=(mark,))
    assert np.isnan(panel["t2m"].values[0, 7]) and np.isnan(panel["t2m"].values).sum() == 1
    assert finding(panel, "sentinels").count == 1


def test_a_flux_may_be_such_a_number(grid_file):
    values = (warmth() - 280) * 1e3
    values[3, 1, 1], values[9, 1, 1] = -999.0, -5000.0
    assert np.isfinite(read(grid_file("a.nc", {"flux": values}))["flux"]).all()
    energy = np.maximum(values, 0)
    energy[3, 1, 1] = -999.0  # nearer than these lie apart, but the only one below zero
    with pytest.raises(DataError, match="a mark for"):
        read(grid_file("b.nc", {"cape": energy}))


# Accumulations


def from_midnight(hourly: np.ndarray, start_hour: int = 0) -> np.ndarray:
    """The same rain as sums since 00 UTC; the value at 00 UTC is the day before's total."""
    total = np.zeros_like(hourly, dtype=np.float64)
    running = np.zeros(hourly.shape[1:])
    for i in range(len(hourly)):
        if (start_hour + i) % 24 == 1:
            running = np.zeros(hourly.shape[1:])
        running = running + hourly[i]
        total[i] = running
    return total


LAND = {"title": "reanalysis-era5-land"}


@pytest.mark.parametrize("about", [LAND, {}])
@pytest.mark.parametrize("setting", ["auto", "from_00utc"])
def test_sums_since_midnight_become_hourly_sums(grid_file, setting, about):
    hourly = rain(shape=(96, 3, 4))
    options = {} if about else {"latitude": [1.0, 0.9, 0.8], "longitude": [10, 10.1, 10.2, 10.3]}
    panel = read(grid_file("a.nc", {"tp": from_midnight(hourly)}, about=about, **options), accumulation=setting)
    assert np.isnan(panel["tp"].values[:, 0]).all()  # what came before the first value is not known
    np.testing.assert_allclose(panel["tp"].values[:, 1:], by_site(hourly)[:, 1:] * 1000, atol=2e-4)
    assert panel["tp"].attrs["accumulation_hours"] == 1.0
    assert "summed since 00 UTC" in finding(panel, "accumulation").message


@pytest.mark.parametrize("step", [2, 3, 6, 12])
def test_sums_since_midnight_of_a_longer_step(grid_file, step):
    hourly = rain(shape=(97, 3, 4))
    total = from_midnight(hourly)[::step]
    panel = read(grid_file("a.nc", {"tp": total}, about=LAND, step_hours=step))
    expected = hourly[1:].reshape(-1, step, 3, 4).sum(axis=1) * 1000
    np.testing.assert_allclose(panel["tp"].values[:, 1:], by_site(expected), atol=3e-4)
    assert panel["tp"].attrs["accumulation_hours"] == float(step)


def test_a_first_hour_and_a_gap_of_sums_since_midnight(grid_file):
    hourly = rain(shape=(96, 3, 4))
    total = from_midnight(hourly, start_hour=1)
    kept = np.r_[0:30, 40:96]  # the hours from 07 to 16 UTC of the second day are lost
    seconds = 1_672_531_200 + 3600 * (kept + 1)
    panel = read(grid_file("a.nc", {"tp": total[kept]}, about=LAND, seconds=seconds))
    got = panel["tp"].values
    np.testing.assert_allclose(got[:, 0], by_site(hourly)[:, 0] * 1000, atol=1e-4)  # 01 UTC needs nothing before it
    assert np.isnan(got[:, 30:41]).all()  # the gap, and the hour after it
    np.testing.assert_allclose(got[:, 41:], by_site(hourly)[:, 41:] * 1000, atol=2e-4)


def test_sums_since_midnight_sampled_without_midnight_are_refused(grid_file):
    total = from_midnight(rain(shape=(96, 3, 4)))[6::12]  # 06 and 18 UTC
    with pytest.raises(DataError, match="06:00, 18:00 without 00 UTC"):
        read(grid_file("a.nc", {"tp": total}, about=LAND, start="2023-01-01T06", step_hours=12))


def test_sums_since_midnight_at_one_time_of_day_cover_its_hours(grid_file):
    total = from_midnight(rain(shape=(96, 3, 4)))[12::24]
    panel = read(grid_file("a.nc", {"tp": total}, about=LAND, start="2023-01-01T12", step_hours=24))
    assert panel["tp"].attrs["accumulation_hours"] == 12.0


def test_what_files_and_values_say_must_agree(grid_file):
    with pytest.raises(DataError, match=r"name ERA5-Land; values fall .* disagree.*set data.accumulation"):
        read(grid_file("a.nc", {"tp": rain()}, about=LAND))
    with pytest.raises(DataError, match=r"0.25° is one of ERA5; values rise .* disagree"):
        read(grid_file("b.nc", {"tp": from_midnight(rain(shape=(96, 3, 4)))}))
    with pytest.raises(DataError, match=r"data.accumulation is 'from_00utc', but values fall"):
        read(grid_file("c.nc", {"tp": rain()}), accumulation="from_00utc")
    panel = read(grid_file("d.nc", {"tp": rain()}, about=LAND), accumulation="previous_step")
    np.testing.assert_allclose(panel["tp"], by_site(rain()) * 1000, rtol=1e-6)
    assert "against it: the files name ERA5-Land" in finding(panel, "accumulation").message


def test_what_neither_tells_is_refused(grid_file):
    odd = {"latitude": [1.0, 0.8, 0.6], "longitude": [10, 10.2, 10.4, 10.6]}
    dry = np.zeros((48, 3, 4))
    with pytest.raises(DataError, match="neither the files nor their values show"):
        read(grid_file("a.nc", {"tp": dry}, **odd))
    assert (read(grid_file("a.nc", {"tp": dry}, **odd), accumulation="previous_step")["tp"] == 0).all()
    assert "values fall" in finding(read(grid_file("b.nc", {"tp": rain()}, **odd)), "accumulation").message


def test_the_ensemble_mean_sums_three_hours(grid_file):
    panel = read(grid_file("data_stream-enda_stepType-accum.nc", {"tp": rain()}, step_hours=3))
    assert panel["tp"].attrs["accumulation_hours"] == 3.0


def test_hours_of_the_configuration(grid_file):
    path = grid_file("a.nc", {"tp": rain()}, step_hours=24)
    panel = read(path, accumulation_hours={"tp": 24.0}, stamps="end")
    assert panel["tp"].attrs["accumulation_hours"] == 24.0 and str(panel["time"].values[0])[:10] == "2023-01-01"
    with pytest.raises(DataError, match=r"which end of its 24 h does a time mark.*set data.stamps"):
        read(path, accumulation_hours={"tp": 24.0})
    with pytest.raises(DataError, match=r"data.stamps needs data.accumulation_hours"):
        read(path, stamps="end")
    with pytest.raises(DataError, match=r"are 12, 24 h with data.stamps"):
        read(
            grid_file("b.nc", {"tp": rain(), "cp": rain()}, step_hours=24),
            accumulation_hours={"tp": 24.0, "cp": 12},
            stamps="start",
        )


def test_daily_totals_stamped_at_their_start_tell_no_future(grid_file):
    """`resample("1D").sum()` stamps the start: the day's rain, and its mean warmth, are known at its end."""
    hours = rain(shape=(240, 3, 4))
    path = grid_file(
        "a.nc", {"tp": hours.reshape(10, 24, 3, 4).sum(axis=1), "t2m": warmth(shape=(10, 3, 4))}, step_hours=24
    )
    panel = read(path, accumulation_hours={"tp": 24.0}, stamps="start", target=RAIN)
    assert str(panel["time"].values[0]) == "2023-01-02T00:00:00.000000000" and panel.sizes["time"] == 10
    # Issued at the end of the first day, the forecast is of the second day's rain.
    following = by_site(hours[24:48].sum(axis=0, keepdims=True))[:, 0] * 1000
    np.testing.assert_allclose(next_sum_mm(panel, "tp", 24)[:, 0], following, rtol=1e-5)
    assert "mark the start" in finding(panel, "moved_stamps").message


@pytest.mark.parametrize(
    ("name", "attrs"),
    [
        ("precip", {"units": "m", "long_name": "Total precipitation"}),
        ("tot_prec", {"units": "m", "standard_name": "precipitation_amount"}),
        ("rr", {"units": "m", "standard_name": "lwe_thickness_of_precipitation_amount"}),
        ("precipitation", {"units": "m"}),
    ],
)
def test_precipitation_by_other_names_is_a_sum(grid_file, name, attrs):
    hourly = rain(shape=(96, 3, 4))
    path = grid_file("a.nc", {name: from_midnight(hourly)}, about=LAND, attrs={name: attrs})
    panel = read(path, target=TargetConfig(variable=name, threshold_mm=1.0))
    assert panel[name].attrs == {"units": "mm", "accumulation_hours": 1.0}
    np.testing.assert_allclose(panel[name].values[:, 1:], by_site(hourly)[:, 1:] * 1000, atol=2e-4)


def test_a_target_that_is_not_known_to_be_a_sum_is_refused(grid_file):
    path = grid_file("a.nc", {"x": rain()}, attrs={"x": {"units": "m", "long_name": "Total precipitation rate"}})
    target = TargetConfig(variable="x", threshold_mm=1.0)
    with pytest.raises(DataError, match=r"not known to be a sum over time.*data.accumulation_hours.x"):
        read(path, target=target)
    read(path, target=target, accumulation_hours={"x": 1.0}, stamps="end")


FLUXES = {
    "tp": {"units": "m", "GRIB_stepType": "accum"},
    "e": {"units": "m of water equivalent", "GRIB_stepType": "accum"},
    "slhf": {"units": "J m**-2", "GRIB_stepType": "accum"},
}


@pytest.mark.parametrize("about", [LAND, {}])
def test_signed_sums_are_taken_as_the_rain_beside_them(grid_file, about):
    hourly = {"e": -rain(3, (96, 3, 4)), "slhf": (warmth(4, (96, 3, 4)) - 280) * 1e5, "tp": rain(shape=(96, 3, 4))}
    # A grid that tells nothing, so that without a name the rain's course alone decides.
    grid = {"latitude": [1.0, 0.8, 0.6], "longitude": [10, 10.2, 10.4, 10.6]}
    sums = {name: from_midnight(values) for name, values in hourly.items()}
    path = grid_file("a.nc", sums, about=about, attrs=FLUXES, **grid)
    panel = read(path)
    assert list(panel.data_vars) == ["e", "slhf", "tp"]
    for name, scale in (("tp", 1000), ("e", 1), ("slhf", 1)):
        expected = by_site(hourly[name])[:, 1:] * scale
        np.testing.assert_allclose(
            panel[name].values[:, 1:], expected, atol=2e-4 if scale > 1 else 1e-6 * abs(expected).max()
        )
    with pytest.raises(DataError, match=r"data.accumulation is 'previous_step', but .*count many times; remove that"):
        read(path, accumulation="previous_step")
    hourly_path = grid_file("b.nc", hourly, attrs=FLUXES, **grid)
    np.testing.assert_allclose(read(hourly_path)["slhf"], by_site(hourly["slhf"]), rtol=1e-6)


def test_packing_noise_makes_no_rain_out_of_sums_since_midnight(grid_file):
    hourly = rain(shape=(241, 3, 4)) * (np.arange(241) % 6 == 0)[:, None, None]
    noisy = from_midnight(hourly) + (np.random.default_rng(0).random((241, 1, 1)) - 0.5) * 9e-6
    panel = read(grid_file("a.nc", {"tp": np.maximum(noisy, 0)}, about=LAND))
    days = panel["tp"].values[:, 1:].reshape(12, 10, 24).sum(axis=2)
    expected = by_site(hourly[1:]).reshape(12, 10, 24).sum(axis=2) * 1000
    np.testing.assert_allclose(days, expected, atol=0.006)
    assert "levelled" in finding(panel, "packing_noise").message and float(panel["tp"].min()) == 0.0


def test_the_course_of_the_sun_is_no_sum_since_midnight(grid_file):
    hour = np.arange(0, 24 * 20, 6)
    light = np.maximum(0, np.sin(((hour - 10) % 24 - 6) / 12 * np.pi)) * 3e6  # Hawaii
    path = grid_file("a.nc", {"ssrd": np.tile(light[:, None, None], (1, 3, 4))}, step_hours=6)
    assert "grid of 0.25° is one of ERA5" in finding(read(path), "accumulation").message


def test_a_reanalysis_is_said_to_know_more_than_a_forecast(grid_file):
    assert "optimistic" in finding(read(grid_file("a.nc", {"t2m": warmth()})), "reanalysis").message


def test_old_files_tell_a_sum_by_its_name(grid_file):
    attrs = {"tp": {"units": "m"}, "t2m": {"units": "K"}}
    panel = read(grid_file("a.nc", {"tp": rain(), "t2m": warmth()}, attrs=attrs))
    assert "accumulation_hours" in panel["tp"].attrs and "accumulation_hours" not in panel["t2m"].attrs


# Times and files


def test_gaps_are_missing_and_counted(grid_file):
    one = grid_file("a.nc", {"tp": rain()[:24]})
    other = grid_file("b.nc", {"tp": rain()[30:]}, start="2023-01-02T06")
    panel = read(one, more_paths=(str(other),))
    assert panel.sizes["time"] == 72 and finding(panel, "gaps").count == 6
    assert finding(panel, "gaps").first == "2023-01-02T00:00:00"
    assert not panel["recorded"].values[:, 24:30].any() and panel["recorded"].values[:, 30:].all()


def test_files_that_overlap_must_agree(grid_file, tmp_path):
    values = rain()
    values[29, 1, 1:3] = 2e-3
    grid_file("a.nc", {"tp": values[:48]})
    grid_file("b.nc", {"tp": values[24:]}, start="2023-01-02")
    panel = read(tmp_path)
    assert finding(panel, "repeated_times").count == 24
    np.testing.assert_allclose(panel["tp"], by_site(values) * 1000, rtol=1e-6)
    changed = values[24:].copy()
    changed[5, 1, 1] += 1e-3
    changed[5, 1, 2] -= 1e-3  # the mean of both cells stays
    grid_file("b.nc", {"tp": changed}, start="2023-01-02")
    with pytest.raises(DataError, match=r"differ at 1 of the 24 times they share, first at 2023-01-02 05:00"):
        read(tmp_path, {"all": {"box": (0.75, 10.25, 0.75 - 0.01, 10.5)}})


def test_the_same_field_packed_twice_is_no_difference(grid_file, tmp_path):
    values = warmth()
    grid_file("a.nc", {"t2m": values[:48]}, packed=True)
    grid_file("b.nc", {"t2m": values[24:]}, start="2023-01-02", packed=True)
    assert finding(read(tmp_path), "repeated_times").count == 24


@pytest.mark.parametrize("names", [("a.nc", "b.nc"), ("b.nc", "a.nc")])
def test_final_values_go_before_preliminary_ones(grid_file, tmp_path, names):
    values = rain()
    grid_file(names[0], {"tp": values}, expver="0001")
    grid_file(names[1], {"tp": values[48:] + 1e-3}, start="2023-01-03", expver="0005")
    panel = read(tmp_path)
    np.testing.assert_allclose(panel["tp"], by_site(values) * 1000, rtol=1e-6)
    assert finding(panel, "final_over_preliminary").count == 24 and "preliminary" not in codes(panel)


def test_a_time_twice_in_one_file(grid_file):
    values = rain()
    twice = np.r_[values, values[-3:]]
    seconds = 1_672_531_200 + 3600 * np.r_[np.arange(72), 69, 70, 71]
    assert finding(read(grid_file("a.nc", {"tp": twice}, seconds=seconds)), "repeated_times").count == 3
    twice[-1] += 1e-3
    with pytest.raises(DataError, match="differ at 1 of the 3 times"):
        read(grid_file("a.nc", {"tp": twice}, seconds=seconds))


def test_different_times_are_explained(grid_file, tmp_path):
    grid_file("a.nc", {"tp": rain()})
    grid_file("b.nc", {"t2m": warmth()[::3]}, step_hours=3)
    panel = read(tmp_path)
    assert finding(panel, "different_times", variable="t2m").count == 48
    assert np.isnan(panel["t2m"].values[:, 1::3]).all() and not np.isnan(panel["t2m"].values[:, ::3]).any()


def test_files_on_different_grids_are_refused(grid_file, tmp_path):
    grid_file("a.nc", {"tp": rain()})
    grid_file("b.nc", {"t2m": warmth()}, latitude=[2.0, 1.75, 1.5])
    with pytest.raises(DataError, match=r"t2m covers latitudes 1.5 to 2 .* but .*a.nc latitudes 0.5 to 1"):
        read(tmp_path)


def test_start_and_end_limit_what_is_read(grid_file):
    path = grid_file("a.nc", {"tp": rain()})
    panel = read(path, start="2023-01-02", end="2023-01-03")
    assert panel.sizes["time"] == 24
    np.testing.assert_allclose(panel["tp"], by_site(rain()[24:48]) * 1000, rtol=1e-6)
    with pytest.raises(DataError, match="the files hold 2023-01-01 00:00 to 2023-01-03 23:00"):
        read(path, start="2024-01-01")


def test_the_transitional_layout_of_days(tmp_path, grid_file):
    path = grid_file("a.nc", {"t2m": warmth()[:3]}, names=("date", "latitude", "longitude"), seconds=np.arange(3))
    with netCDF4.Dataset(path, "a") as file:
        file["date"].units = "1"
        file["date"][:] = [20240228, 20240229, 20240301]
    panel = read(path)
    assert panel.attrs["step_hours"] == 24.0 and str(panel["time"].values[2])[:10] == "2024-03-01"
    with netCDF4.Dataset(path, "a") as file:
        file["date"][1] = 20240231
    with pytest.raises(DataError, match="expected days such as 20240131"):
        read(path)


# Configuration


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"variables": ("t2n",)}, "data.variables names 't2n', but the variables are t2m, tp; did you mean 't2m'?"),
        ({"exclude": ("x",), "predict": False}, "data.exclude names 'x'"),
        ({"units": {"tpp": "m"}}, "did you mean 'tp'?"),
        ({"exclude": ("tp", "t2m")}, "found only t2m, tp, which data.exclude leaves out"),
        ({"site": "place"}, "data.site does not apply"),
        ({"infinite": "missing", "categories": {"a": "static"}}, "remove data.infinite, data.categories"),
        ({"step_hours": 0.0001}, "data.step_hours = 0.0001: expected at least a second"),
        ({"step_hours": 5}, "57 of 72 times are off that step"),
        ({"land_mask": "a.nc"}, 'does nothing while data.cells is "all"'),
        ({"cells": "land"}, "needs a land-sea mask"),
        ({"dask": "tcp://127.0.0.1:1"}, "no cluster answers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(grid_file, options, part, monkeypatch):
    monkeypatch.setattr("llueve.sources.grids.region_means.CLUSTER_SECONDS", 0.3)
    path = grid_file("a.nc", {"tp": rain(), "t2m": warmth()})
    target = RAIN if "predict" in options else None
    options = {key: value for key, value in options.items() if key != "predict"}
    with pytest.raises(DataError) as caught:
        read(path, target=target, **options)
    assert part in str(caught.value)


def test_a_prediction_may_lack_what_training_excluded(grid_file):
    assert list(read(grid_file("a.nc", {"tp": rain()}), exclude=("t2m",)).data_vars) == ["tp"]


def test_a_store_behind_an_address_needs_its_package():
    pytest.importorskip("zarr")
    with pytest.raises(DataError, match=r"gs://nowhere/era5.zarr: "):
        read("gs://nowhere/era5.zarr")


def test_a_target_that_is_not_there(grid_file):
    path = grid_file("a.nc", {"t2m": warmth()})
    with pytest.raises(DataError, match=r"target.variable 'tp' is not among the variables"):
        read(path, target=RAIN)
    with pytest.raises(DataError, match="an ERA5 archive has no label column"):
        read(path, target=TargetConfig(label="wet"))


def test_a_table_refuses_the_settings_of_an_archive(tmp_path, make_config):
    table = tmp_path / "a.csv"
    table.write_text("time,tp\n2024-01-01,1\n2024-01-02,2\n")
    for extra, part in (({"cells": "land"}, "data.cells"), ({"dask": "tcp://x"}, "data.dask")):
        config = make_config(data={"path": str(table), **extra})
        with pytest.raises(DataError, match=f"is read as a table, and {part} applies to an ERA5 archive only"):
            read_source(config)
    config = make_config(data={"path": str(table)}, regions={"a": {"point": [0, 0]}})
    with pytest.raises(DataError, match=r"and \[regions\] applies to an ERA5 archive only"):
        read_source(config)


def test_a_path_that_is_not_there_is_told_as_such(tmp_path, make_config):
    regions = {"a": {"point": [0, 0]}}
    for path, part in (
        (tmp_path / "era5", "no such file or folder"),
        (tmp_path / "*.nc", "no file of an ERA5 archive"),
        ("https://host/a.csv", "is an address, and tables are read from files; download it"),
    ):
        with pytest.raises(DataError, match=part):
            read_source(make_config(data={"path": str(path)}, regions=regions))


def test_brackets_of_a_folder_are_no_pattern(grid_file, tmp_path):
    folder = tmp_path / "data [2023]"
    folder.mkdir()
    grid_file("data [2023]/a.nc", {"tp": rain(), "t2m": warmth()})
    for path in ("*.nc", "a.nc", "../data [2023]"):
        (folder / "a.toml").write_text(TOML.replace("era5/*.nc", path))
        assert read_source(load_config(folder / "a.toml")).sizes == {"site": 2, "time": 72}


def test_paths_start_at_the_configuration_file(tmp_path):
    extra = '[regions.basin]\npolygon = "basin.geojson"\n[regions.ice]\nmask = "/ice.nc"\n'
    (tmp_path / "a.toml").write_text(
        TOML.replace("[target]", extra + "[target]").replace("[regions]", "").replace("north =", "#")
    )
    text = (tmp_path / "a.toml").read_text().replace("south =", "#").replace("[data]", '[data]\nland_mask = "lsm.nc"')
    (tmp_path / "a.toml").write_text(text)
    config = load_config(tmp_path / "a.toml")
    assert config.data.path == str(tmp_path / "era5" / "*.nc") and config.data.land_mask == str(tmp_path / "lsm.nc")
    assert (
        config.regions["basin"].polygon == str(tmp_path / "basin.geojson") and config.regions["ice"].mask == "/ice.nc"
    )


@pytest.mark.parametrize(
    ("region", "part"),
    [
        ({}, "exactly one of box, point, polygon, mask; found none"),
        ({"box": [1, 0, 0, 1], "point": [0, 0]}, "found box and point"),
        ({"box": [0, 0, 1, 1]}, "north > south"),
        ({"box": [1, 5, 0, 5]}, "differs from its east"),
        ({"point": [95, 0]}, "with a latitude from -90 to 90; found 95"),
        ({"point": [0, 0], "feature": "a"}, "feature belongs to polygon"),
        ({"point": [0, 0], "variable": "a"}, "variable belongs to mask"),
        ({"bx": [1, 0, 0, 1]}, "did you mean regions.here.box?"),
    ],
)
def test_regions_are_validated(make_config, region, part):
    with pytest.raises(ConfigError) as caught:
        make_config(regions={"here": region})
    assert part in str(caught.value)


TOML = """
[data]
path = "era5/*.nc"

[regions]
north = { box = [1.0, 10, 0.75, 10.75] }
south = { point = [0.5, 10.5] }

[target]
variable = "tp"
threshold_mm = 10.0

[split]
validation_fraction = 0.2
test_fraction = 0.2

[windows]
context = 24
[model]
patch_length = 8
width = 8
layers = 1
heads = 2
feed_forward = 8
[train]
epochs = 1
[verify]
bootstrap = 100
"""


def test_a_run_from_archive_to_forecast(grid_file, tmp_path):
    """Train, evaluate and predict read the archive by the same way, to the last bit."""
    (tmp_path / "era5").mkdir()
    (tmp_path / "mine.toml").write_text(TOML)
    values = {"tp": rain(shape=(1440, 3, 4)), "t2m": warmth(shape=(1440, 3, 4))}
    for i in range(2):
        half = {name: array[i * 720 : (i + 1) * 720] for name, array in values.items()}
        grid_file(f"era5/{i}.nc", half, start=str(np.datetime64("2023-01-01") + 30 * i))
    config = load_config(tmp_path / "mine.toml")
    assert load_config_again(config, tmp_path) == config
    result = pipeline.train(config, tmp_path / "run")
    audit = json.loads((tmp_path / "run" / "audit.json").read_text())
    cells = {each["site"]: each["count"] for each in audit["findings"] if each["code"] == "region_cells"}
    assert cells == {"north": 8, "south": 1}
    assert pipeline.evaluate(tmp_path / "run")["n"] == result.verification["n"]
    forecast = pipeline.predict(tmp_path / "run", tmp_path / "era5" / "1.nc")
    assert forecast["site"].tolist() == ["north", "south"]
    assert forecast["time"].astype(str).tolist() == ["2023-03-01 23:00:00"] * 2


def load_config_again(config, folder):
    (folder / "again.toml").write_text(config.to_toml())
    return load_config(folder / "again.toml")


def test_a_model_knows_the_cells_of_its_regions(grid_file, tmp_path):
    """The same names over another grid are other places."""
    (tmp_path / "era5").mkdir()
    (tmp_path / "mine.toml").write_text(TOML)
    values = {"tp": rain(shape=(1440, 3, 4)), "t2m": warmth(shape=(1440, 3, 4))}
    grid_file("era5/a.nc", values)
    pipeline.train(load_config(tmp_path / "mine.toml"), tmp_path / "run")
    newer = {name: array[:48] for name, array in values.items()}
    assert len(pipeline.predict(tmp_path / "run", grid_file("new.nc", newer, start="2024-01-01"))) == 2
    wider = {name: np.repeat(array, 2, axis=2)[:, :, :5] for name, array in newer.items()}
    other = grid_file("wider.nc", wider, start="2024-01-01", longitude=9.75 + np.arange(5) * 0.25)
    assert len(pipeline.predict(tmp_path / "run", other)) == 2  # more around them changes no region
    shifted = grid_file("shifted.nc", newer, start="2024-01-01", longitude=9.75 + np.arange(4) * 0.25)
    with pytest.raises(DataError, match=r"region north is 6 cells .6 with values.* trained on 8 cells .*another place"):
        pipeline.predict(tmp_path / "run", shifted)
