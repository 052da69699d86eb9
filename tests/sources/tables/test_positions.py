"""Positions of sites: found by name, or refused with what is missing."""

import numpy as np
import pytest
import xarray as xr

from llueve.errors import DataError
from llueve.sources.tables.positions import with_positions

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
