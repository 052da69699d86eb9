"""Quantities of the variables of a panel: by what the files say, by names with units and values, and by the configuration."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llueve.audit.report import audit_panel, render
from llueve.config import Config, TargetConfig, load_config, parse_config
from llueve.errors import ConfigError, DataError
from llueve.panel import Finding, fingerprint, known_quantities
from llueve.quantities.header_words import VOCABULARIES
from llueve.quantities.name_meanings import look_up
from llueve.quantities.unit_table import unit_of
from llueve.runs.decisive_keys import decisive_keys
from llueve.samples.read import read_source
from llueve.sources.grids.era5 import read_era5
from llueve.sources.identify import with_quantities
from llueve.sources.tables.table import read_table

EXAMPLES = Path(__file__).parents[2] / "examples"
HOURS = 200
RANDOM = np.random.default_rng(0)
CELSIUS = 12 + 8 * np.sin(np.arange(HOURS) / 4) + RANDOM.normal(size=HOURS)
HUMIDITY = 60 + 20 * np.cos(np.arange(HOURS) / 4)
HPA = 1012 + 6 * RANDOM.normal(size=HOURS)


def config_of(path: Path | str, regions: dict[str, Any] | None = None, **data: Any) -> Config:
    table: dict[str, Any] = {
        "data": {"path": str(path), **data},
        "target": {"variable": "unused", "threshold_mm": 1.0, "horizon_hours": 24},
        "split": {"validation_fraction": 0.2, "test_fraction": 0.2},
        "windows": {"context": 8},
        "model": {"patch_length": 4},
    }
    return parse_config(table | ({"regions": regions} if regions else {}), "test")


def panel_of(path: Path | str, regions: dict[str, Any] | None = None, **data: Any) -> xr.Dataset:
    return read_source(config_of(path, regions, **data), new=str(path))


def table(folder: Path, columns: dict[str, Any], times: Any = None) -> Path:
    times = pd.date_range("2024-01-01", periods=HOURS, freq="h") if times is None else times
    path = folder / "table.csv"
    pd.DataFrame({"time": times, **columns}).to_csv(path, index=False)
    return path


def meanings(panel: xr.Dataset) -> dict[str, str]:
    return {name: str(known.meaning) for name, known in known_quantities(panel).items()}


def doubts(panel: xr.Dataset, code: str) -> list[Finding]:
    return [finding for finding in panel.attrs["findings"] if finding.code == code]


# The shared files, by hand

ERA5 = {
    "tp": "precipitation_amount",
    "t2m": "air_temperature",
    "d2m": "dew_point_temperature",
    "u10": "eastward_wind",
    "v10": "northward_wind",
    "sp": "surface_air_pressure",
    "msl": "air_pressure_at_mean_sea_level",
    "ssrd": "surface_downwelling_shortwave_flux_in_air",
    "strd": "surface_downwelling_longwave_flux_in_air",
    "skt": "surface_temperature",
    "tisr": "toa_incoming_shortwave_flux",
    "tcwv": "atmosphere_mass_content_of_water_vapor",
    "cape": "atmosphere_convective_available_potential_energy",
}
CORPUS = {
    "temperature_c": "air_temperature",
    "dewpoint_c": "dew_point_temperature",
    "relative_humidity_pct": "relative_humidity",
    "pressure_sea_hpa": "air_pressure_at_mean_sea_level",
    "pressure_surface_hpa": "surface_air_pressure",
    "wind_speed_ms": "wind_speed",
    "wind_direction_deg": "wind_from_direction",
    "precipitation_mm": "precipitation_amount",
    "cloud_pct": "cloud_area_fraction",
    "radiation_wm2": "surface_downwelling_shortwave_flux_in_air",
    "sunshine_h": "duration_of_sunshine",
    "gust_ms": "wind_speed_of_gust",
    "tmax_c": "air_temperature maximum",
    "tmin_c": "air_temperature minimum",
    # `snow_mm` may be water, fresh snow or snow on the ground
}
WEATHER_AUS = {
    "MinTemp": "air_temperature minimum",
    "MaxTemp": "air_temperature maximum",
    "Rainfall": "precipitation_amount",
    # `Evaporation` may be that of a pan or that of the ground
    "Sunshine": "duration_of_sunshine",
    "WindGustDir_sin": "wind_gust_from_direction sine",
    "WindGustDir_cos": "wind_gust_from_direction cosine",
    "WindGustSpeed": "wind_speed_of_gust",
    "WindDir9am_sin": "wind_from_direction 09:00 sine",
    "WindDir9am_cos": "wind_from_direction 09:00 cosine",
    "WindDir3pm_sin": "wind_from_direction 15:00 sine",
    "WindDir3pm_cos": "wind_from_direction 15:00 cosine",
    "WindSpeed9am": "wind_speed 09:00",
    "WindSpeed3pm": "wind_speed 15:00",
    "Humidity9am": "relative_humidity 09:00",
    "Humidity3pm": "relative_humidity 15:00",
    "Pressure9am": "air_pressure_at_mean_sea_level 09:00",
    "Pressure3pm": "air_pressure_at_mean_sea_level 15:00",
    "Cloud9am": "cloud_area_fraction 09:00",
    "Cloud3pm": "cloud_area_fraction 15:00",
    "Temp9am": "air_temperature 09:00",
    "Temp3pm": "air_temperature 15:00",
}
STOCKHOLM = {
    "precipitation": "precipitation_amount",
    "relative_humidity_2m": "relative_humidity",
    "dew_point_2m": "dew_point_temperature",
    "pressure_msl": "air_pressure_at_mean_sea_level",
    "temperature_2m": "air_temperature",
    "wind_speed_10m": "wind_speed",
}


def test_weather_aus(shared: Callable[[str], Path]) -> None:
    config = load_config(EXAMPLES / "weather_aus.toml")
    panel = read_source(config.model_copy(update={"data": _moved(config, shared("data/weather_aus/weatherAUS.csv"))}))
    assert meanings(panel) == WEATHER_AUS
    (unclear,) = doubts(panel, "quantity_ambiguous")
    assert unclear.variable == "Evaporation" and unclear.severity == "info"
    assert "water_evaporation_amount or water_potential_evaporation_amount" in unclear.message


def _moved(config: Config, path: Path) -> Any:
    positions = None if config.data.positions is None else str(path.parent / "locations.csv")
    return config.data.model_copy(update={"path": str(path), "positions": positions})


def test_the_seed_case_and_its_two_wrong_columns(shared: Callable[[str], Path]) -> None:
    config = load_config(EXAMPLES / "seed_case.toml")
    panel = read_source(config.model_copy(update={"data": _moved(config, shared("data/seed_case/peru_rainfall.csv"))}))
    names = ("tp", "t2m", "d2m", "sp", "msl", "u10", "v10", "tcwv", "cape")
    assert meanings(panel) == {name: ERA5[name] for name in names} | {"wind_speed": "wind_speed"}
    wrong = {finding.variable: finding.message for finding in doubts(panel, "quantity_contradiction")}
    # It was computed with kelvins in a formula for °C, and as the angle that the wind blows to, from the x axis.
    assert "differs by 20 % in the median" in wrong["relative_humidity"]
    assert "differs by 168° in the median" in wrong["wind_direction"]
    assert set(wrong) == {"relative_humidity", "wind_direction"}


@pytest.mark.parametrize(("name", "guessed"), [("stockholm_raw.json", False), ("weather_hourly.csv", True)])
def test_stockholm(shared: Callable[[str], Path], name: str, guessed: bool) -> None:
    panel = panel_of(shared(f"data/openmeteo_stockholm/{name}"))
    assert meanings(panel) == STOCKHOLM
    # The format of the answer defines its names; a table has only its header.
    assert len(doubts(panel, "quantities_guessed")) == guessed


def test_every_group_of_the_corpus(shared: Callable[[str], Path], tmp_path: Path) -> None:
    for path in sorted(shared("data/corpus").glob("*.parquet")):
        first = next(pq.ParquetFile(path).iter_batches(batch_size=40_000))
        frame = pa.Table.from_batches([first]).to_pandas()
        frame = frame[frame["site"] == frame["site"].iloc[0]].head(3000)
        piece = tmp_path / path.name
        frame.assign(site=frame["site"].astype(str)).to_parquet(piece)
        panel = panel_of(piece, site="site", exclude=["latitude", "longitude"])
        known = {name: CORPUS[name] for name in map(str, panel.data_vars) if name in CORPUS}
        assert meanings(panel) == known, path.name
        assert set(panel.data_vars) - set(known) <= {"snow_mm"}


@pytest.mark.parametrize(
    ("path", "unknown"),
    [
        ("finse_davos_hourly", {"z", "zust", "ie", "ishf"}),
        ("portugal_12h_2024/data*.nc", set()),
        ("portugal_12h_2024/hourly_2025-05", set()),
        ("telangana_hourly_2023/telangana_weather_test_data_merged.nc", set()),
        ("era5land_elsalvador_cdszip/data_1*.nc", set()),
    ],
)
def test_era5(shared: Callable[[str], Path], path: str, unknown: set[str]) -> None:
    panel = panel_of(shared("data/era5") / path, format="era5")
    assert meanings(panel) == {name: ERA5[name] for name in map(str, panel.data_vars) if name not in unknown}
    assert unknown < set(panel.data_vars)
    assert known_quantities(panel)["sp"].origin == "standard_name"


def test_seattle() -> None:
    pytest.importorskip("vega_datasets")
    panel = read_source(load_config(EXAMPLES / "seattle.toml"))
    assert meanings(panel) == {
        "precipitation": "precipitation_amount",
        "temp_max": "air_temperature maximum",
        "temp_min": "air_temperature minimum",
        "wind": "wind_speed",
    }
    assert known_quantities(panel)["wind"].origin == "unit"  # without one it might be a direction


def test_the_network_in_the_package() -> None:
    panel = read_source(load_config(EXAMPLES / "brazil.toml"))
    assert meanings(panel) == {
        "temperature": "air_temperature",
        "dewpoint": "dew_point_temperature",
        "pressure": "surface_air_pressure",
        "wind_east": "eastward_wind",
        "wind_north": "northward_wind",
        "gust": "wind_speed_of_gust",
        "rain": "precipitation_amount",
        "radiation": "surface_downwelling_shortwave_flux_in_air",
    }
    pressure = known_quantities(panel)["pressure"]
    assert pressure.origin == "values" and pressure.reason == "a median of 883 hPa is too low for sea level"


def test_no_quantity_outside_weather(shared: Callable[[str], Path]) -> None:
    panel = panel_of(shared("data/etth1/ETTh1.csv"), time="date")
    assert meanings(panel) == {} and panel.attrs["findings"] == ()


def test_ghcn_daily(tmp_path: Path) -> None:
    def line(element: str, value: int) -> str:
        return f"USW00024233201201{element}" + "".join(f"{value + day % 3:5d}   " for day in range(31))

    elements = {"PRCP": 12, "TMAX": 128, "TMIN": 50, "AWND": 47, "WSF5": 90, "WDF5": 200, "TOBS": 90, "SNWD": 3}
    path = tmp_path / "station.dly"
    path.write_text("".join(f"{line(*pair)}\n" for pair in elements.items()))
    panel = panel_of(path)
    assert meanings(panel) == {
        "PRCP": "precipitation_amount",
        "TMAX": "air_temperature maximum",
        "TMIN": "air_temperature minimum",
        "AWND": "wind_speed",
        "WSF5": "wind_speed_of_gust",
        "WDF5": "wind_gust_from_direction",
        "SNWD": "surface_snow_thickness",  # TOBS is the temperature at an hour that the file does not give
    }
    assert doubts(panel, "quantities_guessed") == []


# Headers


@pytest.mark.parametrize(
    ("header", "quantity"),
    [
        ("TEMPERATURA DO AR - BULBO SECO, HORARIA (°C)", "air_temperature"),
        ("Umi. Ins. (%)", "relative_humidity"),
        ("Temp. Máx. (°C)", "air_temperature maximum"),
        ("Lufttemperatur [°C]", "air_temperature"),
        ("relative Feuchte [%]", "relative_humidity"),
        ("Humidité relative (%)", "relative_humidity"),
        ("Point de rosée (°C)", "dew_point_temperature"),
        ("Punto de rocío [°C]", "dew_point_temperature"),
        ("9am Temperature (°C)", "air_temperature 09:00"),
        ("T [degC]", "air_temperature"),
        ("RH [%]", "relative_humidity"),
        ("tas [degC]", "air_temperature"),
        ("9am cloud amount (%)", "cloud_area_fraction 09:00"),
        ("Minimum temperature (°C)", "air_temperature minimum"),
        ("T2M_MAX [C]", "air_temperature maximum"),
        ("temperature_2m_mean (°C)", "air_temperature"),
    ],
)
def test_headers_of_many_sources(tmp_path: Path, header: str, quantity: str) -> None:
    values = HUMIDITY if "%" in header else CELSIUS
    path = table(tmp_path, {header: values})
    (known,) = meanings(panel_of(path)).values()
    assert known == quantity


@pytest.mark.parametrize(
    "header",
    [
        "t2m_lag_1d [K]",
        "cloud_low [%]",
        "rain_max [mm]",
        "temperature_850hPa [°C]",
        "wind_speed_100m [m/s]",
        "temp_change [°C]",
        "x [°C]",
        "rain_today [mm]",
    ],
)
def test_no_quantity_by_a_part_of_a_name(tmp_path: Path, header: str) -> None:
    panel = panel_of(table(tmp_path, {header: CELSIUS}))
    assert meanings(panel) == {} and panel.attrs["findings"] == ()


@pytest.mark.parametrize(
    ("header", "values", "parts"),
    [
        ("temp", CELSIUS, ("air_temperature", "data.units.temp")),
        ("wind", np.abs(CELSIUS), ("wind_speed or wind_from_direction", "data.units.wind")),
        ("P", CELSIUS, ("precipitation_amount", "data.units.P")),
        ("pressure [hPa]", HPA, ("surface_air_pressure or air_pressure_at_mean_sea_level", "data.quantities")),
        ("snow [mm]", np.abs(CELSIUS), ("thickness_of_snowfall_amount", "data.quantities")),
        ("temperature [blob]", CELSIUS, ("does not know its unit 'blob'", "data.quantities")),
    ],
)
def test_ambiguous_names_are_said_to_be_so(tmp_path: Path, header: str, values: Any, parts: tuple[str, ...]) -> None:
    panel = panel_of(table(tmp_path, {header: values}))
    (unclear,) = doubts(panel, "quantity_ambiguous")
    assert meanings(panel) == {} and unclear.severity == "info"
    assert [part for part in parts if part not in unclear.message] == []


def test_values_decide_where_only_one_unit_fits(tmp_path: Path) -> None:
    path = table(tmp_path, {"temp": CELSIUS + 273.15, "hum": HUMIDITY, "sp": 100 * HPA, "wind_speed": HUMIDITY / 10})
    known = known_quantities(panel_of(path))
    assert {name: (str(each.meaning), each.origin, each.units) for name, each in known.items()} == {
        "temp": ("air_temperature", "values", "K"),
        "hum": ("relative_humidity", "values", "%"),
        "sp": ("surface_air_pressure", "values", "Pa"),
        "wind_speed": ("wind_speed", "name", None),
    }


@pytest.mark.parametrize(
    ("elevation", "level"),
    [(600.0, "surface_air_pressure"), (10.0, None)],
)
def test_heights_tell_the_level_of_a_pressure(tmp_path: Path, elevation: float, level: str | None) -> None:
    # 943 hPa is normal at 600 m: too low for sea level. At 10 m both levels are nearly the same.
    values = HPA - 70 if elevation > 100 else HPA
    answer = {
        "latitude": 45.0,
        "longitude": 7.0,
        "elevation": elevation,
        "hourly_units": {"time": "iso8601", "pressure": "hPa"},
        "hourly": {
            "time": [f"2024-01-{1 + hour // 24:02}T{hour % 24:02}:00" for hour in range(HOURS)],
            "pressure": values.round(1).tolist(),
        },
    }
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(answer))
    assert meanings(panel_of(path)) == ({} if level is None else {"pressure": level})


def test_sea_level_pressure_of_a_high_site(tmp_path: Path) -> None:
    times = pd.date_range("2024-01-01", periods=HOURS, freq="h")
    panel = panel_of(table(tmp_path, {"pres [hPa]": HPA}, times))
    assert meanings(panel) == {}
    high = panel.assign_coords(elevation_m=("site", [800.0]))
    assert meanings(with_quantities(high, {}, ())) == {"pres": "air_pressure_at_mean_sea_level"}


def test_rain_beside_precipitation_is_a_part(tmp_path: Path) -> None:
    wet = np.abs(CELSIUS)
    assert meanings(panel_of(table(tmp_path, {"rain [mm]": wet}))) == {"rain": "precipitation_amount"}
    both = panel_of(table(tmp_path, {"rain [mm]": wet, "precipitation [mm]": wet}))
    assert meanings(both) == {"rain": "rainfall_amount", "precipitation": "precipitation_amount"}


# Contradictions


@pytest.mark.parametrize(
    ("header", "values", "reason"),
    [
        (
            "pressure [degC]",
            CELSIUS,
            "says surface_air_pressure or air_pressure_at_mean_sea_level, but its unit is degC",
        ),
        ("temperature [hPa]", CELSIUS, "says air_temperature, but its unit is hPa"),
        ("pressure", CELSIUS, "fit it in no usual unit"),
        ("relative_humidity [%]", HUMIDITY + 60, "of its values lie outside -0.5"),
        ("relative_humidity [%]", HUMIDITY / 100, "its median of 0."),
        ("pressure_msl [hPa]", 100 * HPA, "of its values lie outside 850 to 1100 hPa"),
        ("pressure_msl [Pa]", HPA, "of its values lie outside"),
        ("temperature [K]", CELSIUS, "of its values lie outside 178.1 to 338.1 K"),
        ("wind_speed [m/s]", CELSIUS - 12, "of its values lie outside"),
        ("temperature_c [K]", CELSIUS + 273.15, "says degC, but its unit is K"),
    ],
)
def test_a_contradiction_gives_no_quantity(tmp_path: Path, header: str, values: Any, reason: str) -> None:
    panel = panel_of(table(tmp_path, {header: values, "other": values}))
    (wrong,) = doubts(panel, "quantity_contradiction")
    name = header.partition(" ")[0]
    assert meanings(panel) == {} and wrong.severity == "warning" and wrong.variable == name
    assert reason in wrong.message and f'set data.quantities = {{ {name} = "none" }}' in wrong.message
    # The advice works: it is read without a contradiction, and as what the user says.
    assert doubts(panel_of(tmp_path / "table.csv", quantities={name: "none"}), "quantity_contradiction") == []
    given = panel_of(tmp_path / "table.csv", quantities={name: "surface_temperature"})
    assert meanings(given) == {name: "surface_temperature"} and doubts(given, "quantity_contradiction") == []


def test_swapped_names_of_temperature_and_dew_point(tmp_path: Path) -> None:
    panel = panel_of(table(tmp_path, {"temperature [degC]": CELSIUS, "dewpoint [degC]": CELSIUS + 4}))
    (wrong,) = doubts(panel, "quantity_contradiction")
    assert wrong.variable == "dewpoint" and "4.0 K above temperature" in wrong.message


def test_a_few_faulty_cells_contradict_nothing(tmp_path: Path) -> None:
    values = HUMIDITY.copy()
    values[7] = 999
    assert meanings(panel_of(table(tmp_path, {"relative_humidity [%]": values}))) == {
        "relative_humidity": "relative_humidity"
    }


# What the file and the configuration say


def test_a_standard_name_in_parquet_wins(tmp_path: Path) -> None:
    fields = [
        pa.field("time", pa.timestamp("ms")),
        pa.field("x", pa.float64(), metadata={"units": "degC", "standard_name": "air_temperature"}),
        pa.field("temperature", pa.float64(), metadata={"units": "degC", "standard_name": "soil_temperature"}),
        pa.field("rh", pa.float64(), metadata={"units": "%", "standard_name": "sea_ice_area_fraction"}),
    ]
    times = pd.date_range("2024-01-01", periods=HOURS, freq="h").to_numpy()
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table([times, CELSIUS, CELSIUS, HUMIDITY], schema=pa.schema(fields)), path)
    known = known_quantities(panel_of(path))
    assert {name: (str(each.meaning), each.origin) for name, each in known.items()} == {
        "x": ("air_temperature", "standard_name"),
        "temperature": ("soil_temperature", "standard_name"),
    }


@pytest.mark.parametrize(
    ("attributes", "quantity"),
    [
        ({"standard_name": "air_temperature"}, "air_temperature"),
        ({"standard_name": "air_temperature", "cell_methods": "time: maximum"}, "air_temperature maximum"),
        ({"standard_name": "air_temperature", "long_name": "Temperature at 850 hPa"}, None),
        ({"standard_name": "geopotential"}, None),
        ({"standard_name": "unknown", "long_name": "2 metre temperature"}, "air_temperature"),
        ({"GRIB_shortName": "mn2t", "GRIB_stepType": "max"}, "air_temperature minimum"),
        ({"GRIB_shortName": "2t", "GRIB_stepType": "max"}, "air_temperature maximum"),
        ({"GRIB_shortName": "mx2t", "GRIB_stepType": "max"}, "air_temperature maximum"),
        ({"GRIB_typeOfLevel": "isobaricInhPa", "standard_name": "air_temperature"}, None),
    ],
)
def test_attributes_of_a_grid(grid_file: Callable[..., Path], attributes: dict[str, str], quantity: str | None) -> None:
    warm = np.broadcast_to(CELSIUS[:96, None, None] + 273.15, (96, 3, 4)).astype(np.float32)
    path = grid_file("grid.nc", {"var167": warm})
    with xr.open_dataset(path) as dataset:
        changed = dataset.load()
    changed["var167"].attrs = {"units": "K", **attributes}
    changed.to_netcdf(path)
    panel = panel_of(path, format="era5")
    assert meanings(panel) == ({} if quantity is None else {"var167": quantity})


def test_the_configuration_overrules_all_evidence(tmp_path: Path) -> None:
    path = table(tmp_path, {"T2 [degC]": CELSIUS, "foo [%]": HUMIDITY, "temperature [degC]": CELSIUS, "dir": HUMIDITY})
    given = {
        "T2": "air_temperature 09:00",
        "foo": "none",
        "temperature": "soil_temperature",
        "dir": "wind_from_direction",
    }
    panel = panel_of(path, quantities=given, wind_directions=["dir"])
    assert meanings(panel) == {
        "T2": "air_temperature 09:00",
        "temperature": "soil_temperature",
        "dir_sin": "wind_from_direction sine",
        "dir_cos": "wind_from_direction cosine",
    }
    assert {each.origin for each in known_quantities(panel).values()} == {"configured"}
    assert doubts(panel, "quantities_guessed") == []


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("air_temprature", ("near names: air_temperature",)),
        ("temperature", ("air_temperature", "dew_point_temperature")),
        ("presure", ("surface_air_pressure", "air_pressure_at_mean_sea_level")),
        ("air_temperature mean", ("'mean' after air_temperature", "maximum, minimum, a time such as 09:00")),
        ("air_temperature sine", ("only a direction",)),
        ("", ("is not a quantity",)),
        ("x" * 10_000, ("is not a quantity",)),
    ],
)
def test_an_unknown_quantity_is_refused_with_near_names(text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of("table.csv", quantities={"T2": text})
    message = str(caught.value)
    assert "data.quantities" in message and "T2" in message and len(message) < 1000
    assert [part for part in parts if part not in message] == []


def test_a_gust_is_a_maximum_by_itself(grid_file: Callable[..., Path]) -> None:
    path = grid_file("grid.nc", {"fg10": np.broadcast_to(HUMIDITY[:96, None, None] / 5, (96, 3, 4)).astype(np.float32)})
    with xr.open_dataset(path) as dataset:
        changed = dataset.load()
    changed["fg10"].attrs = {"units": "m s**-1", "GRIB_shortName": "10fg", "GRIB_stepType": "max"}
    changed.to_netcdf(path)
    assert meanings(panel_of(path, format="era5")) == {"fg10": "wind_speed_of_gust"}


def test_a_direction_that_is_no_direction_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, {"dir": HUMIDITY})
    with pytest.raises(DataError, match=r"says air_temperature for a column of data\.wind_directions"):
        panel_of(path, quantities={"dir": "air_temperature"}, wind_directions=["dir"])


def test_sunshine_of_a_month(tmp_path: Path) -> None:
    times = pd.date_range("2000-01-01", periods=HOURS, freq="30D")
    panel = panel_of(table(tmp_path, {"sunshine [h]": 2 * HUMIDITY}, times))
    assert meanings(panel) == {"sunshine": "duration_of_sunshine"}


def test_an_unknown_variable_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, {"temperature": CELSIUS})
    config = config_of(path, quantities={"temprature": "air_temperature"})
    config = config.model_copy(update={"target": config.target.model_copy(update={"variable": "temperature"})})
    with pytest.raises(DataError, match=r"data\.quantities names 'temprature'.*did you mean 'temperature'"):
        read_source(config)


def test_guesses_are_listed_once(tmp_path: Path) -> None:
    path = table(tmp_path, {"temperature [degC]": CELSIUS, "RH [%]": HUMIDITY, "wind_speed": HUMIDITY / 10})
    (guesses,) = doubts(panel_of(path), "quantities_guessed")
    assert guesses.severity == "info" and guesses.count == 3
    for part in ("temperature = air_temperature (by its name)", "RH = relative_humidity (by its unit)", "unit unknown"):
        assert part in guesses.message


def test_values_units_and_fingerprint_do_not_change(tmp_path: Path, shared: Callable[[str], Path]) -> None:
    path = table(tmp_path, {"temperature [degC]": CELSIUS, "RH [%]": HUMIDITY, "pres": HPA})
    bare, panel = read_table(config_of(path).data, None), panel_of(path)
    assert fingerprint(panel) == fingerprint(bare) and list(panel.data_vars) == list(bare.data_vars)
    folder = shared("data/era5/portugal_12h_2024/hourly_2025-05")
    config = config_of(folder, format="era5")
    grid, known = read_era5(config.data, {}, None), panel_of(folder, format="era5")
    assert fingerprint(known) == fingerprint(grid)
    for name in map(str, grid.data_vars):
        assert known[name].attrs["units"] == grid[name].attrs["units"]


def test_runs_from_before_the_key_still_belong_to_their_model() -> None:
    assert "data.quantities" not in decisive_keys(config_of("table.csv"))
    assert decisive_keys(config_of("table.csv", quantities={"x": "none"}))["data.quantities"] == {"x": "none"}


def test_the_audit_shows_quantities(tmp_path: Path) -> None:
    path = table(tmp_path, {"temperature [degC]": CELSIUS, "rain [mm]": np.abs(CELSIUS), "foo": CELSIUS})
    config = config_of(path).model_copy(update={"target": TargetConfig(variable="rain", threshold_mm=1.0)})
    audit = audit_panel(read_source(config), config)
    assert audit.as_dict()["quantities"] == {
        "temperature": {"quantity": "air_temperature", "units": "degC", "from": "name"},
        "rain": {"quantity": "precipitation_amount", "units": "mm", "from": "name"},
    }
    console = Console(width=100, file=StringIO(), record=True)
    console.print(render(audit))
    assert "air_temperature" in console.export_text()


def test_every_name_of_a_source_is_found_again() -> None:
    for vocabulary in VOCABULARIES:
        for text, names in vocabulary.names.items():
            for name in names.split(", "):
                found = look_up(name)
                assert found is not None and text in map(str, found.meanings), name
                assert all(unit_of(unit) is not None for unit in found.units), name


@given(st.text(max_size=60), st.text(max_size=20), st.floats(-1e6, 1e6))
def test_no_name_and_no_unit_is_an_error(name: str, unit: str, value: float) -> None:
    times = np.datetime64("2024-01-01", "ns") + np.arange(3) * np.timedelta64(1, "h")
    values = np.full((1, 3), value, np.float32)
    array = (("site", "time"), values, {"units": unit})
    panel = xr.Dataset({f"x{name}": array, name.strip("x") or "y": array}, {"site": ["a"], "time": times})
    known = with_quantities(panel.assign_attrs(step_hours=1.0, findings=()), {}, ())
    assert set(known_quantities(known)) <= set(map(str, panel.data_vars))


@pytest.mark.parametrize("unit", ["W/m²", "W m**-2", "w m^-2", "Wm-2", "W.m-2", "watt / m2"])
def test_one_unit_in_many_spellings(unit: str) -> None:
    assert unit_of(unit) == unit_of("W m-2")


@pytest.mark.parametrize("unit", ["", "x", "m m", "/", "per", "1/", "°", "W" * 10_000, "kg/", "²"])
def test_no_unit(unit: str) -> None:
    assert unit_of(unit) is None or unit == "°"
