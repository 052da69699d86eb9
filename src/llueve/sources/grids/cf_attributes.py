"""The attributes of a gridded variable that say what it is, as the panel keeps them."""

import re
from typing import Any

from llueve.quantities.vocabulary import ERA5
from llueve.sources.grids.fields import Field

LEVELS = ("isobaricInhPa", "isobaricInPa", "pressure_level", "plev", "level", "hybrid", "theta", "potentialVorticity")
"""Vertical coordinates, and kinds of level in GRIB, of the free air."""
HEIGHT = re.compile(r"(?<![a-z0-9.])(\d{2,4})[ _]?(?:m|metres?|meters?)\b|^[uv](\d{2,4})$")
PRESSURE = re.compile(r"(?<![a-z0-9])\d{1,4}[ _]?(?:hpa|mb|mbar)\b")
MOST_HEIGHT_M = 20
"""Largest height of an instrument that counts as near the ground."""


def cf_attributes(field: Field) -> dict[str, Any]:
    """Standard name, long name, statistic and defined name of a field; `above_ground` is True for a level of the free air."""
    attrs = field.attrs
    found: dict[str, Any] = {}
    for key, theirs in (
        ("standard_name", "standard_name"),
        ("long_name", "long_name"),
        ("cell_methods", "cell_methods"),
        ("step_type", "GRIB_stepType"),
    ):
        text = str(attrs.get(theirs, "")).strip()
        if text and text != "unknown":
            found[key] = text
    if short := attrs.get("GRIB_shortName"):
        found["defined_name"] = (ERA5.title, str(short))
    if _is_above_ground(field):
        found["above_ground"] = True
    return found


def _is_above_ground(field: Field) -> bool:
    kinds = {str(field.attrs.get("GRIB_typeOfLevel", "")), *map(str, field.array.coords)}
    if kinds & set(LEVELS):
        return True
    texts = [text.lower() for text in (field.name, str(field.attrs.get("long_name", "")))]
    heights = [int(a or b) for text in texts for a, b in HEIGHT.findall(text)]
    return any(height > MOST_HEIGHT_M for height in heights) or any(PRESSURE.search(text) for text in texts)
