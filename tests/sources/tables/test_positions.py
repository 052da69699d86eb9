"""Positions of sites: found by name or in columns of the data, or refused with what is missing."""

import numpy as np
import pytest
import xarray as xr
from pydantic import ValidationError

from llueve.config import DataConfig
from llueve.errors import DataError
from llueve.panel import feature_names, site_positions
from llueve.sources.grids.era5 import read_era5
from llueve.sources.tables.positions import with_positions
from llueve.sources.tables.table import read_table

PANEL = xr.Dataset(coords={"site": ["b", "a"]})


def write(tmp_path, text):
    path = tmp_path / "positions.csv"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("column", ["site", "name"])
def test_positions_follow_the_order_of_the_panel(tmp_path, column):
    path = write(tmp_path, f"{column},latitude,longitude\na,10,350\nc,0,0\nb,-20.5,30\n")
    panel = with_positions(PANEL, path)
    np.testing.assert_allclose(panel["latitude"], [-20.5, 10])
    np.testing.assert_allclose(panel["longitude"], [30, -10])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("site,lat,lon\na,1,1\n", "expected the columns site, latitude and longitude, found"),
        ("site,latitude,longitude\na,1,1\n", "has no position of b"),
        ("site,latitude,longitude\na,1,1\nb,2,2\nb,3,3\n", "names b twice"),
        ("site,latitude,longitude\na,1,1\nb,91,2\n", "b has no latitude in −90…90"),
        ("site,latitude,longitude\na,1,1\nb,here,2\n", "b has no latitude in −90…90"),
        ("", "cannot be read as a table of positions"),
    ],
)
def test_what_is_no_table_of_positions_is_refused(tmp_path, text, why):
    with pytest.raises(DataError, match=why):
        with_positions(PANEL, write(tmp_path, text))


def test_a_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        with_positions(PANEL, str(tmp_path / "none.csv"))


def test_names_are_texts(tmp_path):
    panel = xr.Dataset(coords={"site": ["001", "NA"]})
    path = write(tmp_path, "site,latitude,longitude\n001,1,2\nNA,-22,17\n,3,4\n")
    np.testing.assert_allclose(with_positions(panel, path)["latitude"], [1, -22])


ROWS = "site,time,lat,lon,rain\na,2024-01-01,10,350,1\nb,2024-01-01,-20.5,30,2\na,2024-01-02,,,3\nb,2024-01-02,-20.5,30.004,4\n"


def read(tmp_path, text, **options):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return read_table(DataConfig(path=str(path), site="site", position_columns=("lat", "lon"), **options), None)


def test_columns_of_the_table_give_the_positions_and_are_no_variables(tmp_path):
    panel = read(tmp_path, ROWS, units={"lat": "degrees_north"})
    np.testing.assert_allclose(site_positions(panel), [[10, -10], [-20.5, 30]])
    assert feature_names(panel) == ["rain"]


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("10,350", ",350", "columns 'lat' and 'lon' hold no position of a"),
        ("10,350", "95,350", r"expected a latitude in −90…90 and a longitude in −360…360 \(row 2\)"),
        ("10,350", "10,north", "column 'lon': expected numbers"),
        ("30.004", "30.2", r"b changes its place \(row 5\)"),
        ("lat,lon", "lat,lons", r"data\.position_columns names 'lon'.*did you mean 'lons'"),
    ],
)
def test_columns_without_one_position_for_each_site_are_refused(tmp_path, old, new, why):
    with pytest.raises(DataError, match=why):
        read(tmp_path, ROWS.replace(old, new))


def test_a_site_at_the_date_line_does_not_move(tmp_path):
    panel = read(tmp_path, ROWS.replace("30,2", "180,2").replace("30.004", "-179.999"))
    np.testing.assert_allclose(panel["longitude"], [-10, -180])


def test_position_columns_are_for_tables_and_exclude_a_table_of_positions(tmp_path):
    with pytest.raises(DataError, match=r"remove them from data\.variables"):
        read(tmp_path, ROWS, variables=("rain", "lat"))
    with pytest.raises(ValidationError, match="not both"):
        DataConfig(path="x.csv", positions="p.csv", position_columns=("lat", "lon"))
    with pytest.raises(DataError, match=r"data\.position_columns does not apply to an ERA5 archive"):
        read_era5(DataConfig(path=str(tmp_path), format="era5", position_columns=("lat", "lon")), {}, None)
