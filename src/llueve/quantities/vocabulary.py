"""Names that sources give to quantities, and the unit that each source means where a file gives none.

A name is compared without case, accents, blanks and marks: `Temp. Máx.` is `tempmax`.
"""

from dataclasses import dataclass

TEMPERATURE_MAXIMUM, TEMPERATURE_MINIMUM = "air_temperature maximum", "air_temperature minimum"
SEA_LEVEL, SURFACE = "air_pressure_at_mean_sea_level", "surface_air_pressure"
SHORTWAVE, LONGWAVE = "surface_downwelling_shortwave_flux_in_air", "surface_downwelling_longwave_flux_in_air"
DIRECT = "surface_direct_downwelling_shortwave_flux_in_air"
DIFFUSE = "surface_diffuse_downwelling_shortwave_flux_in_air"
SOIL_WATER = "volume_fraction_of_condensed_water_in_soil"
WATER_VAPOR, CAPE = "atmosphere_mass_content_of_water_vapor", "atmosphere_convective_available_potential_energy"
EVAPORATION, POTENTIAL = "water_evaporation_amount", "water_potential_evaporation_amount"
LOW, MEDIUM, HIGH = (f"{level}_type_cloud_area_fraction" for level in ("low", "medium", "high"))


@dataclass(frozen=True)
class Vocabulary:
    """The names of one source."""

    title: str
    units: dict[str, str]
    """Unit where a file gives none: of a quantity by its name, or of all others by the dimension of their canonical unit. Empty
    if the names have several units in use. An amount of precipitation never has one: too much depends on it."""
    names: dict[str, str]
    """By meaning, as `meaning_of` reads it: names, separated by commas."""


ERA5 = Vocabulary(
    "ERA5, ERA5-Land",
    {"temperature": "K", "pressure": "Pa", "speed": "m s-1", "length": "m", "flux": "J m-2", "ratio": "1",
     "specific energy": "J kg-1", WATER_VAPOR: "kg m-2", SOIL_WATER: "m3 m-3"},
    {
        "air_temperature": "t2m, 2t, 2m_temperature, 2 metre temperature",
        "dew_point_temperature": "d2m, 2d, 2m_dewpoint_temperature, 2 metre dewpoint temperature",
        TEMPERATURE_MAXIMUM: "mx2t, mx2t3, mx2t6, maximum 2m temperature since previous post processing, "
        "maximum temperature at 2 metres since previous post-processing",
        TEMPERATURE_MINIMUM: "mn2t, mn2t3, mn2t6, minimum 2m temperature since previous post processing, "
        "minimum temperature at 2 metres since previous post-processing",
        "surface_temperature": "skt, skin temperature",
        "sea_surface_temperature": "sst, sea surface temperature",
        "soil_temperature": "stl1, stl2, stl3, stl4, soil temperature level 1, soil temperature level 2, "
        "soil temperature level 3, soil temperature level 4",
        SOIL_WATER: "swvl1, swvl2, swvl3, swvl4, volumetric soil water layer 1, volumetric soil water layer 2, "
        "volumetric soil water layer 3, volumetric soil water layer 4",
        SEA_LEVEL: "msl, mean sea level pressure",
        SURFACE: "sp, surface pressure",
        "eastward_wind": "u10, 10u, 10m u component of wind, 10 metre u wind component",
        "northward_wind": "v10, 10v, 10m v component of wind, 10 metre v wind component",
        "wind_speed": "si10, 10si, 10m wind speed, 10 metre wind speed",
        "wind_speed_of_gust": "fg10, 10fg, i10fg, gust10m, 10m wind gust since previous post processing, "
        "instantaneous 10m wind gust, 10 metre wind gust since previous post-processing",
        "precipitation_amount": "tp, total precipitation",
        "convective_precipitation_amount": "cp, convective precipitation",
        "stratiform_precipitation_amount": "lsp, large scale precipitation",
        "snowfall_amount": "sf, snowfall water equivalent",
        "cloud_area_fraction": "tcc, total cloud cover",
        LOW: "lcc, low cloud cover", MEDIUM: "mcc, medium cloud cover", HIGH: "hcc, high cloud cover",
        SHORTWAVE: "ssrd, surface solar radiation downwards, surface short-wave (solar) radiation downwards",
        DIRECT: "fdir, total sky direct solar radiation at surface",
        "surface_net_downward_shortwave_flux": "ssr, surface net solar radiation, "
        "surface net short-wave (solar) radiation",
        LONGWAVE: "strd, surface thermal radiation downwards, surface long-wave (thermal) radiation downwards",
        "surface_net_downward_longwave_flux": "surface net thermal radiation, surface net long-wave (thermal) radiation",
        "toa_incoming_shortwave_flux": "tisr, toa incident solar radiation, toa incident short-wave (solar) radiation",
        EVAPORATION: "total evaporation",
        POTENTIAL: "pev, potential evaporation",
        CAPE: "cape, convective available potential energy",
        WATER_VAPOR: "tcwv, total column water vapour, total column vertically-integrated water vapour",
        "atmosphere_boundary_layer_thickness": "blh, boundary layer height",
    },
)  # fmt: skip
OPEN_METEO = Vocabulary(
    "Open-Meteo",
    {"temperature": "degC", "pressure": "hPa", "speed": "km/h", "flux": "W m-2", "ratio": "%",
     "thickness_of_snowfall_amount": "cm", "surface_snow_thickness": "m", "length": "m", WATER_VAPOR: "kg m-2",
     "duration_of_sunshine": "s", SOIL_WATER: "m3 m-3", "specific energy": "J kg-1",
     "water_vapor_saturation_deficit_in_air": "kPa"},
    {
        "air_temperature": "temperature_2m",
        "dew_point_temperature": "dew_point_2m, dewpoint_2m",
        "wet_bulb_temperature": "wet_bulb_temperature_2m",
        "relative_humidity": "relative_humidity_2m, relativehumidity_2m",
        "water_vapor_saturation_deficit_in_air": "vapour_pressure_deficit, vapor_pressure_deficit",
        SEA_LEVEL: "pressure_msl",
        SURFACE: "surface_pressure",
        "wind_speed": "wind_speed_10m, windspeed_10m",
        "wind_from_direction": "wind_direction_10m, winddirection_10m, wind_direction_10m_dominant",
        "wind_speed_of_gust": "wind_gusts_10m, windgusts_10m",
        "precipitation_amount": "precipitation, precipitation_sum",
        "rainfall_amount": "rain, rain_sum",
        "convective_rainfall_amount": "showers, showers_sum",
        "thickness_of_snowfall_amount": "snowfall, snowfall_sum",
        "surface_snow_thickness": "snow_depth",
        "cloud_area_fraction": "cloud_cover, cloudcover",
        LOW: "cloud_cover_low, cloudcover_low", MEDIUM: "cloud_cover_mid, cloudcover_mid",
        HIGH: "cloud_cover_high, cloudcover_high",
        SHORTWAVE: "shortwave_radiation, shortwave_radiation_sum",
        DIRECT: "direct_radiation", DIFFUSE: "diffuse_radiation",
        "duration_of_sunshine": "sunshine_duration",
        POTENTIAL: "et0_fao_evapotranspiration",
        EVAPORATION: "evapotranspiration",
        "soil_temperature": "soil_temperature_0cm, soil_temperature_0_to_7cm, soil_temperature_7_to_28cm, "
        "soil_temperature_28_to_100cm, soil_temperature_100_to_255cm, soil_temperature_6cm, soil_temperature_18cm, "
        "soil_temperature_54cm",
        SOIL_WATER: "soil_moisture_0_to_7cm, soil_moisture_7_to_28cm, soil_moisture_28_to_100cm, "
        "soil_moisture_100_to_255cm, soil_moisture_0_to_1cm, soil_moisture_1_to_3cm, soil_moisture_3_to_9cm, "
        "soil_moisture_9_to_27cm, soil_moisture_27_to_81cm",
        "surface_temperature": "surface_temperature",
        WATER_VAPOR: "total_column_integrated_water_vapour",
        "visibility_in_air": "visibility",
        "atmosphere_boundary_layer_thickness": "boundary_layer_height",
    },
)  # fmt: skip
GHCN = Vocabulary(
    "GHCN-Daily",
    {},  # its tables in other formats have tenths, or the units of the United States
    {
        "air_temperature": "tavg",
        TEMPERATURE_MAXIMUM: "tmax", TEMPERATURE_MINIMUM: "tmin",
        "dew_point_temperature": "adpt", "wet_bulb_temperature": "awbt",
        "relative_humidity": "rhav", "relative_humidity maximum": "rhmx", "relative_humidity minimum": "rhmn",
        SEA_LEVEL: "aslp", SURFACE: "astp",
        "wind_speed": "awnd", "wind_speed maximum": "wsf1, wsf2, wsfm",
        "wind_from_direction": "awdr",
        "wind_speed_of_gust": "wsf5, wsfg, wsfi", "wind_gust_from_direction": "wdf5, wdfg, wdfi",
        "precipitation_amount": "prcp", "snowfall_amount": "wesf",
        "surface_snow_thickness": "snwd", "surface_snow_amount": "wesd",
        "cloud_area_fraction": "acmc, acmh", "duration_of_sunshine": "tsun",
        POTENTIAL: "evap",
    },
)  # fmt: skip
INMET = Vocabulary(
    "INMET",
    {"temperature": "degC", "pressure": "hPa", "speed": "m s-1", "ratio": "%", "flux": "kJ m-2"},
    {
        "air_temperature": "temp ins, temperatura do ar bulbo seco horaria",
        TEMPERATURE_MAXIMUM: "temperatura maxima na hora ant aut",
        TEMPERATURE_MINIMUM: "temperatura minima na hora ant aut",
        "dew_point_temperature": "pto orvalho ins, temperatura do ponto de orvalho",
        "relative_humidity": "umi ins, umidade relativa do ar horaria",
        "relative_humidity maximum": "umi max, umidade rel max na hora ant aut",
        "relative_humidity minimum": "umi min, umidade rel min na hora ant aut",
        SURFACE: "pressao ins, pressao atmosferica ao nivel da estacao horaria",
        "surface_air_pressure maximum": "pressao max, pressao atmosferica max na hora ant aut",
        "surface_air_pressure minimum": "pressao min, pressao atmosferica min na hora ant aut",
        "wind_speed": "vel vento, vento velocidade horaria",
        "wind_speed_of_gust": "raj vento, vento rajada maxima",
        "wind_from_direction": "dir vento, vento direcao horaria gr gr, vento direcao horaria gr, vento direcao horaria",
        "precipitation_amount": "precipitacao total horario",
        SHORTWAVE: "radiacao, radiacao global",
        "duration_of_sunshine": "insolacao",
    },
)  # fmt: skip
NASA_POWER = Vocabulary(
    "NASA POWER",
    {"temperature": "degC", "pressure": "kPa", "speed": "m s-1", "ratio": "%", "mass ratio": "g kg-1"},
    {
        "air_temperature": "t2m",
        TEMPERATURE_MAXIMUM: "t2m_max", TEMPERATURE_MINIMUM: "t2m_min",
        "dew_point_temperature": "t2mdew", "wet_bulb_temperature": "t2mwet",
        "relative_humidity": "rh2m", "specific_humidity": "qv2m",
        "eastward_wind": "u10m", "northward_wind": "v10m",
        "wind_speed": "ws10m, ws2m", "wind_from_direction": "wd10m, wd2m",
        "wind_speed maximum": "ws10m_max, ws2m_max", "wind_speed minimum": "ws10m_min, ws2m_min",
        "precipitation_amount": "prectot, prectotcorr",
        SHORTWAVE: "allsky_sfc_sw_dwn", LONGWAVE: "allsky_sfc_lw_dwn", "toa_incoming_shortwave_flux": "toa_sw_dwn",
        "cloud_area_fraction": "cloud_amt", WATER_VAPOR: "tqv",
    },
)  # fmt: skip
METEOSTAT = Vocabulary(
    "Meteostat",
    {},  # buoys and others have the same names, with other units
    {
        "air_temperature": "tavg",
        TEMPERATURE_MAXIMUM: "tmax", TEMPERATURE_MINIMUM: "tmin",
        "dew_point_temperature": "dwpt", "relative_humidity": "rhum",
        "wind_speed": "wspd", "wind_from_direction": "wdir", "wind_speed_of_gust": "wpgt",
        "precipitation_amount": "prcp", "duration_of_sunshine": "tsun",
    },
)  # fmt: skip
BOM = Vocabulary(
    "BOM, weatherAUS",
    {"temperature": "degC", "pressure": "hPa", "speed": "km/h", "ratio": "%",
     "cloud_area_fraction": "okta", "duration_of_sunshine": "h"},
    {
        TEMPERATURE_MAXIMUM: "MaxTemp", TEMPERATURE_MINIMUM: "MinTemp",
        "rainfall_amount": "Rainfall", "duration_of_sunshine": "Sunshine",
        "wind_speed_of_gust": "WindGustSpeed, speed of maximum wind gust",
        "wind_gust_from_direction": "WindGustDir, direction of maximum wind gust",
        **{f"{quantity} {clock}": f"{name}{hour}" for quantity, name in (
            ("wind_speed", "WindSpeed"), ("wind_from_direction", "WindDir"), ("relative_humidity", "Humidity"),
            (SEA_LEVEL, "Pressure"), ("cloud_area_fraction", "Cloud"), ("air_temperature", "Temp"),
        ) for hour, clock in (("9am", "09:00"), ("3pm", "15:00"))},
    },
)  # fmt: skip
CF_SHORT = Vocabulary(
    "CMIP, ECA&D",
    {"temperature": "K", "pressure": "Pa", "speed": "m s-1", "flux": "W m-2", "ratio": "%",
     WATER_VAPOR: "kg m-2", "specific_humidity": "kg kg-1"},
    {
        "air_temperature": "tas", TEMPERATURE_MAXIMUM: "tasmax", TEMPERATURE_MINIMUM: "tasmin",
        "relative_humidity": "hurs", "specific_humidity": "huss", SEA_LEVEL: "psl",
        "eastward_wind": "uas", "northward_wind": "vas", "wind_speed": "sfcWind",
        SHORTWAVE: "rsds", LONGWAVE: "rlds", "cloud_area_fraction": "clt", "snowfall_amount": "prsn",
        EVAPORATION: "evspsbl", WATER_VAPOR: "prw",
    },
)  # fmt: skip
AIRPORTS = Vocabulary(
    "Airport reports (ASOS, METAR)",
    {"temperature": "degF", "speed": "kt", "ratio": "%", "visibility_in_air": "mi", "pressure": "hPa"},
    {
        "air_temperature": "tmpf, tmpc", "dew_point_temperature": "dwpf, dwpc", "relative_humidity": "relh",
        "wind_from_direction": "drct", "wind_speed": "sknt",
        "precipitation_amount": "p01m", SEA_LEVEL: "mslp", "visibility_in_air": "vsby",
    },
)  # fmt: skip
SERVICES = Vocabulary(
    "AEMET, DWD, Météo-France",
    {},
    {
        "air_temperature": "tmed, tt_tu, tmk", TEMPERATURE_MAXIMUM: "txk, tamax", TEMPERATURE_MINIMUM: "tnk, tamin",
        "relative_humidity": "hrmedia, rf_tu, upm", "relative_humidity maximum": "hrmax",
        "relative_humidity minimum": "hrmin",
        "surface_air_pressure maximum": "presmax", "surface_air_pressure minimum": "presmin",
        SEA_LEVEL: "pmer, pres_nmar",
        "wind_speed": "velmedia", "wind_speed_of_gust": "racha",
        "precipitation_amount": "rsk, rr1, rr24", "duration_of_sunshine": "sdk", SHORTWAVE: "fg_strahl",
    },
)  # fmt: skip
