"""Climate zones by latitude: the probabilities of rain are recalibrated in each of them."""

import math
from enum import StrEnum


class ClimateZone(StrEnum):
    """A climate zone. Its limits are absolute latitudes, north and south alike."""

    TROPICAL = "tropical"
    """Below 23.5°."""
    SUBTROPICAL = "subtropical"
    """From 23.5° to below 35°."""
    TEMPERATE = "temperate"
    """From 35° to below the polar circle, 66.5°."""
    POLAR = "polar"
    """From 66.5°."""
    UNKNOWN = "unknown"
    """No latitude is known."""


LIMITS = ((23.5, ClimateZone.TROPICAL), (35.0, ClimateZone.SUBTROPICAL), (66.5, ClimateZone.TEMPERATE))
"""Latitude below which a place belongs to a zone, in degrees, from the equator on."""


def zone_of(latitude: float) -> ClimateZone:
    """The zone of a latitude in degrees; NaN is unknown."""
    if math.isnan(latitude):
        return ClimateZone.UNKNOWN
    return next((zone for limit, zone in LIMITS if abs(latitude) < limit), ClimateZone.POLAR)
