"""Locations of the sites: from a table of latitudes and longitudes, or from columns of the data themselves."""

import math

import numpy as np
import pandas as pd
import xarray as xr

from llueve.config import DataConfig
from llueve.csv_text import from_cell
from llueve.errors import DataError, listed
from llueve.sources.tables.columns import TextColumn, Times, number_column
from llueve.sources.tables.raw_table import RawTable, SiteLocation

SITE_COLUMNS = ("site", "name")
MOST_MOVED = 0.01
"""Degrees, about 1 km, by which the position of a site may differ between rows: rounding, or a station moved nearby."""


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


def column_positions(table: RawTable, data: DataConfig, times: Times, sites: TextColumn) -> dict[str, SiteLocation]:
    """The position of each site from the columns of `data.position_columns`; rows without one are left out.

    Raises:
        DataError: a site has no position, an impossible one, or several.
    """
    assert data.position_columns is not None
    located: dict[str, SiteLocation] = {}
    latitudes, longitudes = (number_column(table, name, data, times)[0][0].values for name in data.position_columns)
    known = ~np.isnan(latitudes) & ~np.isnan(longitudes)
    names = " and ".join(map(repr, data.position_columns))
    if (wrong := known & ((np.abs(latitudes) > 90) | (np.abs(longitudes) > 360))).any():
        raise DataError(
            f"{table.source}: columns {names}: expected a latitude in −90…90 and a longitude in −360…360 ({table.at(wrong)}); "
            "correct these rows, or change data.position_columns"
        )
    for code, site in enumerate(sites.values):
        rows = np.flatnonzero((sites.codes == code) & known)
        if not len(rows):
            raise DataError(
                f"{table.source}: columns {names} hold no position of {site}; add it, or set data.positions to a table of "
                "positions instead"
            )
        north, east = latitudes[rows], (longitudes[rows] + 180) % 360 - 180
        moved = (np.abs(north - north[0]) > MOST_MOVED) | (np.abs((east - east[0] + 180) % 360 - 180) > MOST_MOVED)
        if moved.any():
            raise DataError(
                f"{table.source}: columns {names}: {site} changes its place ({table.at(rows[moved])}); give each place a name of "
                "its own in data.site, or correct these rows"
            )
        located[site] = SiteLocation(float(north[0]), float(east[0]), math.nan)
    return located
