"""Every real file of the shared folder: the panel that plain NetCDF4 and numpy give, or a refusal with the true reason."""

import zipfile

import netCDF4
import numpy as np
import pandas as pd
import pytest
from gridfiles import codes, finding, read

from llueve.config import TargetConfig
from llueve.errors import DataError
from llueve.samples.target import class_labels, next_sum_mm

RAIN = TargetConfig(variable="tp", threshold_mm=1.0)


@pytest.fixture
def era5(shared):
    return lambda name: str(shared("data/era5") / name)


def stored(path, name):
    """The values of a variable, by NetCDF4 alone."""
    with netCDF4.Dataset(path) as file:
        return np.ma.filled(file[name][:].astype(float), np.nan)


# Portugal, 12-hourly and hourly


def test_portugal_merges_instants_and_sums_on_time(era5):
    panel = read(era5("portugal_12h_2024"), target=RAIN)
    assert panel.sizes == {"site": 25, "time": 732} and panel.attrs["step_hours"] == 12.0
    assert list(panel.data_vars) == ["tp", "u10", "v10", "d2m", "t2m", "sp"]
    center = panel.sel(site="40,-8")
    assert float(center["latitude"]) == 40.0 and float(center["longitude"]) == -8.0
    assert center["tp"].attrs == {"units": "mm", "accumulation_hours": 1.0}
    assert center["t2m"].attrs == {"units": "K"} and center["sp"].attrs == {"units": "Pa"}
    assert float(center["tp"].sum(dtype=float)) == pytest.approx(98.01530838, abs=1e-4)
    assert float(center["t2m"].mean(dtype=float)) == pytest.approx(288.34199624, abs=1e-4)
    assert float(panel["tp"].sum(dtype=float)) == pytest.approx(2003.6058426, abs=1e-3)
    assert int((panel["tp"] >= 1).sum()) == 555
    assert float(panel["t2m"].sel(site="40.5,-8.5")[0]) == np.float32(281.00341796875)
    assert "skipped_files" in codes(panel) and "no_checksums" not in codes(panel)
    assert "hourly_2025-05 were not read" in finding(panel, "skipped_folders").message


def test_portugals_12_hourly_sum_is_refused_because_each_value_holds_one_hour(era5):
    panel = read(era5("portugal_12h_2024"), target=RAIN)
    with pytest.raises(DataError, match=r"each value holds 1 h of rain but steps are 12 h apart.*8\.3% of the time"):
        next_sum_mm(panel, "tp", 24)
    assert np.isfinite(next_sum_mm(panel, "tp", 24, allow_sampled=True)[:, :-2]).all()


def test_portugals_preliminary_hours_are_named(era5):
    panel = read(era5("portugal_12h_2024/hourly_2025-05"), target=RAIN)
    assert panel.sizes["time"] == 288 and panel.attrs["step_hours"] == 1.0
    assert float(panel["tp"].sel(site="40,-8").sum(dtype=float)) == pytest.approx(59.29136276, abs=1e-4)
    about = finding(panel, "preliminary")
    assert (about.count, about.first, about.last) == (288, "2025-05-01T00:00:00", "2025-05-12T23:00:00")


def test_portugals_two_steps_do_not_mix(era5):
    pattern = era5("portugal_12h_2024/**/*.nc")
    with pytest.raises(DataError, match="expected one step between times, found 12 h 731 times, 1 h 287 times"):
        read(pattern)


# Telangana, hourly


def test_telanganas_labels_equal_those_of_pandas_in_every_cell(era5):
    path = era5("telangana_hourly_2023/JJA2023_data_stream-oper_stepType-accum.nc")
    panel = read(path, target=RAIN)
    assert panel.sizes == {"site": 441, "time": 2208}
    hours = pd.date_range("2023-06-01", periods=2208, freq="h")
    assert (panel["time"].values == hours.values).all()
    cells = stored(path, "tp").reshape(2208, 441) * 1000
    frame = pd.DataFrame(cells, index=hours)
    # The sum over (t, t + 24 h] is the rolling sum that ends 24 rows later.
    following = frame.rolling(24).sum().shift(-24)
    expected = (following >= 1.0 - 5e-4).astype(float).where(following.notna())
    np.testing.assert_array_equal(class_labels(panel, RAIN), expected.to_numpy().T)
    assert np.nanmean(expected.to_numpy()) == pytest.approx(
        0.481, abs=5e-4
    )  # 48.1 %, as measured when it was collected
    assert (cells >= 1).mean() == pytest.approx(0.0778831)
    sums = panel["tp"].sum("time", dtype=float)
    assert float(sums[0]) == pytest.approx(640.3136253, abs=1e-3)
    assert float(sums.sel(site="17.5,79.5")) == pytest.approx(478.5637856, abs=1e-3)


def test_telanganas_area_mean_is_weighted_by_the_cosine_of_latitude(era5):
    path = era5("telangana_hourly_2023/JJA2023_data_stream-oper_stepType-accum.nc")
    panel = read(path, {"all": {"box": (20, 77, 15, 82)}})
    assert float(panel["tp"].sum(dtype=float)) == pytest.approx(597.0900201, abs=1e-3)
    assert float(panel["tp"].max()) == pytest.approx(3.3516316, abs=1e-6)
    weights = np.cos(np.deg2rad(np.linspace(20, 15, 21)))
    by_hand = (stored(path, "tp").mean(axis=2) * weights).sum(axis=1) / weights.sum() * 1000
    np.testing.assert_allclose(panel["tp"].values[0], by_hand, rtol=1e-6, atol=1e-9)
    assert finding(panel, "region_cells").message == "all: means over 441 of its 441 cells"


def test_a_zip_named_nc_reads_as_its_files_do(era5):
    zipped = read(era5("telangana_hourly_2023/telangana_test_data.nc"))
    pair = [era5(f"telangana_hourly_2023/data_stream-oper_stepType-{kind}.nc") for kind in ("instant", "accum")]
    apart = read(pair[0], more_paths=(pair[1],))
    merged = read(era5("telangana_hourly_2023/telangana_weather_test_data_merged.nc"))
    for name in ("tp", "d2m", "u10", "v10", "sp"):
        np.testing.assert_array_equal(zipped[name], apart[name])
        np.testing.assert_array_equal(zipped[name], merged[name])
    assert zipped.sizes == {"site": 441, "time": 168}
    assert float((zipped["tp"] >= 0.1).mean()) == pytest.approx(0.495, abs=5e-4)


def test_the_telangana_folder_is_one_archive_with_repeated_files(era5):
    panel = read(era5("telangana_hourly_2023"), target=RAIN)
    assert panel.sizes == {"site": 441, "time": 2376}
    assert finding(panel, "repeated_times", variable="tp").count == 336
    late = finding(panel, "different_times")  # one fact of four variables
    assert late.message.startswith("d2m, u10, v10, sp: in the files at 168 of 2376 times")
    assert (late.count, late.first, late.last) == (2208, "2023-06-01T00:00:00", "2023-08-31T23:00:00")


# Finse: the old layout, packed


def test_finse_is_read_through_its_packing(era5):
    panel = read(era5("finse_davos_hourly"), target=RAIN)
    assert panel.sizes == {"site": 70, "time": 2208} and len(panel.data_vars) == 11
    site = panel.sel(site="60.5,7.5")
    sums = [194.7542115, 69.5586299, 121.5706375]
    assert float(site["tp"].sum(dtype=float)) == pytest.approx(sum(sums), abs=1e-3)
    hours = [744, 720, 744]
    means = [273.7414741, 270.8889509, 267.4883021]
    assert float(site["t2m"].mean(dtype=float)) == pytest.approx(np.average(means, weights=hours), abs=1e-4)
    radiation = [126329999.2, 48019950.59, 19925545.03]
    assert float(site["ssrd"].sum(dtype=float)) == pytest.approx(sum(radiation), abs=100)
    noise = finding(panel, "packing_noise", variable="ssrd")
    assert noise.count == 37134 and "201812" in noise.message
    assert float(panel["ssrd"].min()) == 0.0 and panel["ssrd"].attrs["units"] == "J m**-2"
    assert finding(panel, "no_checksums").count == 3


# El Salvador: ERA5-Land


def test_el_salvadors_midnight_is_the_total_of_the_day_before(era5):
    panel = read(era5("era5land_elsalvador_cdszip"), target=RAIN)
    assert panel.attrs["step_hours"] == 24.0 and panel.sizes == {"site": 59, "time": 6}
    assert panel["tp"].attrs == {"units": "mm", "accumulation_hours": 24.0}
    corner = panel["tp"].sel(site="14,-90").values
    expected = [19.1298313, np.nan, np.nan, 13.7187839, 4.3097138, 18.2662513]  # 12 and 15 to 17 October
    np.testing.assert_allclose(corner, expected, atol=1e-5)
    assert finding(panel, "gaps").count == 2 and finding(panel, "sea_cells").count == 62
    assert finding(panel, "preliminary").count == 4
    assert not panel["recorded"].values[:, 1].any()
    # What falls on the 14th is the value of 15 October 00 UTC, so issued on the 14th it is the next day's rain.
    assert next_sum_mm(panel, "tp", 24)[0, 2] == pytest.approx(13.7187839, abs=1e-4)


@pytest.mark.parametrize("cells", ["all", "land"])
def test_el_salvadors_means_leave_the_sea_out(era5, cells):
    panel = read(era5("era5land_elsalvador_cdszip/data_*.nc"), {"all": {"box": (14, -90, 13, -89)}}, cells=cells)
    np.testing.assert_allclose(panel["tp"].values[0], [12.6067239, 5.1183690, 13.5241718], atol=1e-5)
    about = finding(panel, "region_cells")
    assert about.count == 59 and "means over 59 of its 121 cells" in about.message


@pytest.mark.parametrize("name", ["data_0_2025-10-15.nc", "data_1_2025-10-16.nc", "data_1_2025-10-17.nc"])
def test_one_time_alone_has_no_step(era5, name):
    with pytest.raises(DataError, match=r"only one time.*set data.step_hours"):
        read(era5(f"era5land_elsalvador_cdszip/{name}"))
    assert np.isnan(read(era5(f"era5land_elsalvador_cdszip/{name}"), step_hours=1)["tp"]).all()
    daily = read(era5(f"era5land_elsalvador_cdszip/{name}"), step_hours=24)
    values = stored(era5(f"era5land_elsalvador_cdszip/{name}"), "tp").ravel() * 1000
    np.testing.assert_allclose(daily["tp"].values[:, 0], values[~np.isnan(values)], rtol=1e-6)


def test_the_zip_of_el_salvador(era5):
    panel = read(era5("era5land_elsalvador_cdszip/reanalysis-era5-land_2025_10_12.nc"), step_hours=24)
    assert float(panel["tp"].max()) == pytest.approx(19.5983090, abs=1e-5)
    assert "name ERA5-Land" in finding(panel, "accumulation").message


# Refused for what they are


@pytest.mark.parametrize("name", ["", "/data_1.nc", "/era5_data.nc"])
def test_monthly_means_are_refused_as_such(era5, name):
    with pytest.raises(DataError, match=r"a mean over each month .stepType avg"):
        read(era5("monthly_nyc_1984_2024" + name))


@pytest.mark.parametrize("kind", ["accum", "instant", "max"])
def test_indores_first_of_each_month_has_no_step(era5, kind):
    reason = "expected one step between times, found 744 h 76 times, 720 h 44 times, 672 h 8 times, 696 h 3 times"
    with pytest.raises(DataError, match=reason):
        read(era5(f"indore_sparse/data_stream-oper_stepType-{kind}.nc"))


def test_indores_three_kinds_of_step_merge_when_gaps_are_wished(era5):
    panel = read(era5("indore_sparse"), step_hours=24)
    assert list(panel.data_vars) == ["tp", "cp", "lsp", "t2m", "slt", "mx2t", "mn2t"]
    assert "accumulation_hours" not in panel["mx2t"].attrs and panel["slt"].attrs["units"] == "(Code table 4.213)"
    values = stored(era5("indore_sparse/data_stream-oper_stepType-accum.nc"), "tp").reshape(132, 25) * 1000
    known = panel["recorded"].values[0]
    assert known.sum() == 132 and finding(panel, "gaps").count == panel.sizes["time"] - 132
    np.testing.assert_allclose(panel["tp"].values[:, known], values.T, rtol=1e-6)
    assert np.isnan(panel["tp"].values[:, ~known]).all()
    assert (values >= 0.1).mean() == pytest.approx(0.16, abs=5e-4)
    with pytest.raises(DataError, match="each value holds 1 h of rain but steps are 24 h apart"):
        next_sum_mm(panel, "tp", 24)


def test_vietnams_single_time(era5, tmp_path):
    regions = {"centre": {"box": (16, 106, 12, 108)}}
    with pytest.raises(DataError, match="only one time"):
        read(era5("vietnam_cdszip"), regions)
    panel = read(era5("vietnam_cdszip/download.zip"), regions, step_hours=1)
    assert panel.sizes == {"site": 1, "time": 1}
    assert float(panel["t2m"].values[0, 0]) == pytest.approx(302.5434889, abs=1e-4)  # 17 × 9 cells
    assert finding(panel, "region_cells").count == 153
    with zipfile.ZipFile(era5("vietnam_cdszip/download.zip")) as archive:
        archive.extract("data_stream-oper_stepType-accum.nc", tmp_path)
    rain = stored(tmp_path / "data_stream-oper_stepType-accum.nc", "tp")[0] * 1000
    latitude, longitude = np.linspace(24, 8, 65), np.linspace(102, 110, 33)
    chosen = ((latitude >= 12) & (latitude <= 16))[:, None] & ((longitude >= 106) & (longitude <= 108))[None, :]
    weights = np.broadcast_to(np.cos(np.deg2rad(latitude))[:, None], rain.shape)[chosen]
    assert float(panel["tp"].values[0, 0]) == pytest.approx((rain[chosen] * weights).sum() / weights.sum(), rel=1e-5)


def test_vietnams_2145_cells_need_regions(era5):
    with pytest.raises(DataError, match=r"2,145 cells, expected 1 to 500 sites; name regions.*latitudes 8 to 24"):
        read(era5("vietnam_cdszip"), step_hours=1)
