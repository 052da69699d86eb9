"""Where sites are: a table of their latitudes and longitudes beside the panel."""

import numpy as np
import pandas as pd
import xarray as xr

from llueve.errors import DataError, listed

SITE_COLUMNS = ("site", "name")


def with_positions(panel: xr.Dataset, path: str) -> xr.Dataset:
    """The panel with the coordinates `latitude` and `longitude` (degrees north and east, −180…180) by site.

    Args:
        path: CSV with the columns site (or name), latitude and longitude; sites that the panel lacks are left out.

    Raises:
        DataError: the table cannot be read, lacks a column or a site, names one twice, or holds a place not on Earth.
    """
    try:
        # Names as they are: 001 is no 1, and NA is Namibia.
        table = pd.read_csv(path, dtype=dict.fromkeys(SITE_COLUMNS, str), keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a table of positions ({error}); bring a CSV") from error
    named = next((name for name in SITE_COLUMNS if name in table), None)
    if named is None or not {"latitude", "longitude"} <= set(table.columns):
        raise DataError(
            f"{path}: expected the columns site, latitude and longitude, found {listed([str(name) for name in table.columns])}"
        )
    wanted = [str(site) for site in panel["site"].values]
    rows = table[table[named].astype(str).isin(wanted)]
    if rows[named].duplicated().any():
        raise DataError(f"{path}: names {listed(sorted(set(rows[named][rows[named].duplicated()].astype(str))))} twice")
    if absent := sorted(set(wanted) - set(rows[named].astype(str))):
        raise DataError(f"{path}: has no position of {listed(absent)}; add it, or set data.positions to another table")
    placed = rows.set_index(rows[named].astype(str)).loc[wanted]
    degrees = {name: pd.to_numeric(placed[name], errors="coerce").to_numpy(float) for name in ("latitude", "longitude")}
    wrong = ~(np.abs(degrees["latitude"]) <= 90) | ~(np.abs(degrees["longitude"]) <= 360)
    if wrong.any():
        raise DataError(f"{path}: {wanted[int(wrong.argmax())]} has no latitude in −90…90 and longitude in −360…360")
    longitude = (degrees["longitude"] + 180) % 360 - 180
    return panel.assign_coords(latitude=("site", degrees["latitude"]), longitude=("site", longitude))
