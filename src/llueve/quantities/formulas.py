"""Formulas between quantities: humidity, wind and pressure, each for one moment. A missing value gives a missing result.

Arrays have any shape; temperatures are in °C, humidities in percent, pressures in hPa, speeds in m/s, directions in degrees.
"""

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

MAGNUS_HPA, MAGNUS_SLOPE, MAGNUS_C = 6.1094, 17.625, 243.04
"""Constants of `vapour_pressure`."""
MOLAR_RATIO = 0.62198
"""Molar mass of water vapour divided by that of dry air."""
LAPSE_K_PER_M, ZERO_CELSIUS, STANDARD_C, EXPONENT = 0.0065, 273.15, 15.0, 5.2559
"""Temperature gradient and sea-level temperature of the International Standard Atmosphere, and g·M / (R·gradient)."""


def vapour_pressure(celsius: Doubles) -> Doubles:
    """Saturation vapour pressure over water, hPa: e(t) = 6.1094 · exp(17.625 t / (t + 243.04)).

    Magnus form of Alduchov and Eskridge, J. Appl. Meteorol. 35 (1996), 601–609. At the dew point it is the actual pressure.
    """
    return MAGNUS_HPA * np.exp(MAGNUS_SLOPE * celsius / (celsius + MAGNUS_C))


def relative_humidity(temperature_c: Doubles, dewpoint_c: Doubles) -> Doubles:
    """100 · e(Td) / e(T), percent, over water; e is `vapour_pressure`."""
    dew, warm = (MAGNUS_SLOPE * celsius / (celsius + MAGNUS_C) for celsius in (dewpoint_c, temperature_c))
    return 100 * np.exp(dew - warm)


def dew_point(temperature_c: Doubles, humidity_percent: Doubles) -> Doubles:
    """The temperature whose `vapour_pressure` is the actual one, °C: the inverse of `relative_humidity`.

    A humidity of zero or less has no dew point.
    """
    humidity = np.where(humidity_percent > 0, humidity_percent, np.nan)
    exponent = np.log(humidity / 100) + MAGNUS_SLOPE * temperature_c / (temperature_c + MAGNUS_C)
    return MAGNUS_C * exponent / (MAGNUS_SLOPE - exponent)


def specific_humidity(dewpoint_c: Doubles, pressure_hpa: Doubles) -> Doubles:
    """0.622 e / (p − 0.378 e), g/kg, with e = `vapour_pressure` of the dew point. WMO-No. 8, annex 4.B."""
    vapour = vapour_pressure(dewpoint_c)
    return 1000 * MOLAR_RATIO * vapour / (pressure_hpa - (1 - MOLAR_RATIO) * vapour)


def dew_point_from_specific(humidity_g_kg: Doubles, pressure_hpa: Doubles) -> Doubles:
    """The dew point with this specific humidity, °C: the inverse of `specific_humidity`."""
    ratio = np.where(humidity_g_kg > 0, humidity_g_kg, np.nan) / 1000
    vapour = ratio * pressure_hpa / (MOLAR_RATIO + (1 - MOLAR_RATIO) * ratio)
    exponent = np.log(vapour / MAGNUS_HPA)
    return MAGNUS_C * exponent / (MAGNUS_SLOPE - exponent)


def saturation_deficit(temperature_c: Doubles, dewpoint_c: Doubles) -> Doubles:
    """e(T) − e(Td), hPa; e is `vapour_pressure`."""
    return vapour_pressure(temperature_c) - vapour_pressure(dewpoint_c)


def wind_component(speed: Doubles, sine_or_cosine: Doubles) -> Doubles:
    """−speed · sin(direction) eastward, −speed · cos(direction) northward: the direction is where the wind comes from."""
    return -speed * sine_or_cosine


def direction_from_parts(sine: Doubles, cosine: Doubles) -> Doubles:
    """The direction with these parts, 0 to 360°; missing if both are zero, as in calm."""
    return np.where((sine == 0) & (cosine == 0), np.nan, np.degrees(np.arctan2(sine, cosine)) % 360)


def direction_from_components(eastward: Doubles, northward: Doubles) -> Doubles:
    """The direction that the wind comes from, clockwise from north: 0 to 360°; missing in calm."""
    return direction_from_parts(-eastward, -northward)


def sea_level_pressure(surface_hpa: Doubles, temperature_c: Doubles, elevation_m: Doubles) -> Doubles:
    """Pressure reduced to mean sea level, hPa: p · (1 − Γz / (T + Γz))^(−5.2559), T in K, Γ = 0.0065 K/m.

    The barometric formula with a constant gradient below the station, WMO-No. 8, section 3.7. T is the station's own.
    """
    return surface_hpa * _column(temperature_c, elevation_m) ** -EXPONENT


def station_pressure(sea_level_hpa: Doubles, temperature_c: Doubles, elevation_m: Doubles) -> Doubles:
    """Pressure at the height of the station, hPa: the inverse of `sea_level_pressure`."""
    return sea_level_hpa * _column(temperature_c, elevation_m) ** EXPONENT


def standard_temperature(elevation_m: Doubles) -> Doubles:
    """Temperature of the International Standard Atmosphere at a height, °C: 15 − 0.0065 z."""
    return STANDARD_C - LAPSE_K_PER_M * elevation_m


def _column(temperature_c: Doubles, elevation_m: Doubles) -> Doubles:
    warmer = LAPSE_K_PER_M * elevation_m
    return 1 - warmer / (temperature_c + ZERO_CELSIUS + warmer)
