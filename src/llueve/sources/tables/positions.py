"""Locations of the sites from a table of latitudes and longitudes."""

import numpy as np
import pandas as pd
import xarray as xr

from llueve.csv_text import from_cell
from llueve.errors import DataError, listed

SITE_COLUMNS = ("site", "name")


def with_positions(panel: xr.Dataset, path: str) -> xr.Dataset:
    """The panel with the coordinates `latitude` and `longitude` (degrees north and east, −180…180) by site.

    They come from a CSV file with the columns site (or name), latitude and longitude; rows of other sites are ignored.

    Raises:
        DataError: the table cannot be read, lacks a column or a site, names a site twice, or holds an impossible
            position.
    """
    if "://" in path:
        raise DataError(
            f"{path}: is an address, and positions are read from files; download it and change data.positions"
        )
    try:
        # Names stay text: 001 differs from 1, and NA is Namibia.
        table = pd.read_csv(path, dtype=dict.fromkeys(SITE_COLUMNS, str), keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a table of positions ({error}); expected a CSV file") from error
    named = next((name for name in SITE_COLUMNS if name in table), None)
    if named is None or not {"latitude", "longitude"} <= set(table.columns):
        raise DataError(
            f"{path}: expected the columns site, latitude and longitude, found {listed([str(name) for name in table.columns])}"
        )
    wanted = [str(site) for site in panel["site"].values]
    rows = table.set_index(table[named].astype(str).map(from_cell))
    rows = rows[rows.index.isin(wanted)]
    if rows.index.has_duplicates:
        raise DataError(
            f"{path}: names {listed(sorted(set(rows.index[rows.index.duplicated()])))} twice; remove one row"
        )
    if absent := sorted(set(wanted) - set(rows.index)):
        raise DataError(f"{path}: has no position of {listed(absent)}; add it, or set data.positions to another table")
    rows = rows.loc[wanted]
    latitude, longitude = (
        pd.to_numeric(rows[name], errors="coerce").to_numpy(float) for name in ("latitude", "longitude")
    )
    wrong = ~(np.abs(latitude) <= 90) | ~(np.abs(longitude) <= 360)
    if wrong.any():
        raise DataError(f"{path}: {wanted[int(wrong.argmax())]} has no latitude in −90…90 and longitude in −360…360")
    return panel.assign_coords(latitude=("site", latitude), longitude=("site", (longitude + 180) % 360 - 180))
