"""The quantities that the weather encoder knows: they are its variables, in this order."""

RAIN = "precipitation_amount"
ENCODER_QUANTITIES = (
    "air_temperature",
    "dew_point_temperature",
    "relative_humidity",
    "surface_air_pressure",
    "air_pressure_at_mean_sea_level",
    "eastward_wind",
    "northward_wind",
    "wind_speed",
    "wind_speed_of_gust",
    RAIN,
    "cloud_area_fraction",
    "surface_downwelling_shortwave_flux_in_air",
)
"""CF standard names. Each is in its canonical unit (`llueve.quantities.catalogue`)."""
