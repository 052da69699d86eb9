"""Boxes around the regions of an archive: which cells they hold, their means, and their part in a training."""

import numpy as np
import pytest
from gridfiles import codes, finding, rain, read, warmth
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llueve.config import DataConfig, TargetConfig
from llueve.errors import DataError
from llueve.panel import seen_only, site_positions
from llueve.samples.target import class_labels
from llueve.sources.grids.regions import CellGrid
from llueve.sources.grids.surroundings import surrounding_boxes
from llueve.sphere import distance_km

LATITUDE = -8.5 - 0.25 * np.arange(12)
LONGITUDE = -76.5 + 0.25 * np.arange(14)
SHAPE = (48, len(LATITUDE), len(LONGITUDE))
POINT = {"city": {"point": [-10.0, -75.0]}}


@pytest.fixture
def archive(grid_file):
    values = {"tp": rain(shape=SHAPE), "t2m": warmth(shape=SHAPE)}
    return grid_file("era5.nc", values, latitude=LATITUDE, longitude=LONGITUDE), values


def test_a_box_is_the_mean_over_its_cells(archive):
    path, values = archive
    panel = read(path, POINT, surroundings_degrees=2.5)
    south, middle = (LATITUDE < -11.25), (LATITUDE >= -11.25) & (LATITUDE < -8.75)
    west, east = (LONGITUDE < -76.25), (LONGITUDE >= -76.25) & (LONGITUDE < -73.75)
    rest = LATITUDE >= -8.75
    boxes = {
        "surroundings 12.5S 77.5W": (south, west), "surroundings 12.5S 75.0W": (south, east),
        "surroundings 10.0S 77.5W": (middle, west), "surroundings 10.0S 75.0W": (middle, east),
        "surroundings 7.5S 77.5W": (rest, west), "surroundings 7.5S 75.0W": (rest, east),
    }  # fmt: skip
    boxes = {name: (rows, columns) for name, (rows, columns) in boxes.items() if rows.any() and columns.any()}
    far_east = LONGITUDE >= -73.75
    assert set(boxes) < set(panel["site"].values.tolist())
    assert seen_only(panel).tolist() == [name != "city" for name in panel["site"].values.tolist()]
    assert not far_east.any() or "surroundings 10.0S 72.5W" in panel["site"].values.tolist()
    for name, (rows, columns) in boxes.items():
        weights = np.broadcast_to(np.cos(np.radians(LATITUDE[rows]))[:, None], (rows.sum(), columns.sum()))
        for variable, factor in (("tp", 1000.0), ("t2m", 1.0)):
            cells = values[variable][:, rows][:, :, columns].astype(np.float64) * factor
            expected = np.average(cells.reshape(len(cells), -1), axis=1, weights=weights.ravel())
            np.testing.assert_allclose(panel[variable].sel(site=name), expected, rtol=1e-5, atol=1e-6)
    plain = read(path, POINT)
    np.testing.assert_array_equal(panel["tp"].sel(site="city"), plain["tp"].sel(site="city"))
    assert finding(panel, "surroundings").count == panel.sizes["site"] - 1


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1.0, 2.5, 3.0, 5.0, 7.5]), st.sampled_from([0.25, 0.5, 1.0]), st.integers(-90, 80),
    st.integers(-180, 179), st.integers(1, 30), st.integers(1, 30), st.booleans(),
)  # fmt: skip
def test_every_cell_is_in_the_one_box_whose_centre_is_near(degrees, spacing, south, west, rows, columns, falling):
    latitude = np.minimum(south + spacing * np.arange(rows), 90.0)[:: -1 if falling else 1]
    longitude = (west + spacing * np.arange(columns) + 180.0) % 360.0 - 180.0
    grid = CellGrid("here", latitude, longitude)
    try:
        boxes, _ = surrounding_boxes(grid, degrees)
    except DataError:
        assert rows * columns > 500
        return
    assert sorted(np.concatenate([box.cells for box in boxes])) == list(range(rows * columns))
    assert len({box.name for box in boxes}) == len(boxes)
    for box in boxes:
        north, east = box.name.split()[1:]
        middle = float(north[:-1]) * (1 if north[-1] == "N" else -1), float(east[:-1]) * (1 if east[-1] == "E" else -1)
        row, column = np.divmod(box.cells, columns)
        assert np.abs(latitude[row] - middle[0]).max() <= degrees / 2 + 1e-3
        assert np.abs((longitude[column] - middle[1] + 180) % 360 - 180).max() <= degrees / 2 + 1e-3
        assert (
            distance_km(latitude[row], longitude[column], box.latitude, box.longitude) < 111.2 * 1.5 * degrees
        ).all()


def test_a_box_across_the_date_line_is_one_box():
    grid = CellGrid("here", np.array([0.0]), np.array([178.0, 179.0, -180.0, -179.0, -178.0]))
    boxes, _ = surrounding_boxes(grid, 5.0)
    assert [(box.name, box.cells.tolist()) for box in boxes] == [("surroundings 0.0N 180.0W", [0, 1, 2, 3, 4])]
    assert abs(boxes[0].longitude) == pytest.approx(180.0)


def test_boxes_have_positions_and_no_outcome(archive):
    target = TargetConfig(variable="tp", threshold_mm=1.0)
    panel = read(archive[0], POINT, target, surroundings_degrees=2.5)
    positions = site_positions(panel)
    assert positions is not None and positions[0].tolist() == [-10.0, -75.0]
    assert len(np.unique(positions[1:], axis=0)) == panel.sizes["site"] - 1
    labels = class_labels(panel, target)
    assert not np.isnan(labels[0, :24]).any() and np.isnan(labels[1:]).all()
    assert set(panel.attrs["cells"]) == set(panel["site"].values.tolist())  # a prediction compares them


def test_boxes_in_the_sea_are_left_out_and_land_applies_to_regions_alone(grid_file):
    sea = np.zeros(SHAPE[1:], bool)
    sea[:, LONGITUDE < -76.2] = True
    values = {
        name: np.where(sea, np.nan, field) for name, field in (("tp", rain(shape=SHAPE)), ("t2m", warmth(shape=SHAPE)))
    }
    mask = np.broadcast_to(LONGITUDE >= -75.0, SHAPE).astype("f4")
    path = grid_file("land.nc", {**values, "lsm": mask}, latitude=LATITUDE, longitude=LONGITUDE)
    region = {"coast": {"box": [-8, -76, -12, -74]}}
    panel = read(path, region, surroundings_degrees=2.5, cells="land")
    assert [name for name in panel["site"].values if name.endswith("77.5W")] == []
    assert "boxes are missing at all times" in finding(panel, "sea_cells").message
    count = {name: cells["count"] for name, cells in panel.attrs["cells"].items()}
    assert count["coast"] == 12 * 5  # from -75 to -74
    assert count["surroundings 10.0S 75.0W"] == 10 * 10  # with the sea west of -75


def test_boxes_are_refused_without_regions_and_beyond_500(archive, grid_file):
    with pytest.raises(DataError, match=r"data\.surroundings_degrees needs \[regions\]"):
        read(archive[0], surroundings_degrees=2.5)
    latitude, longitude = np.arange(0, 23.0), np.arange(0, 23.0)
    wide = grid_file("wide.nc", {"t2m": warmth(shape=(3, 23, 23))}, latitude=latitude, longitude=longitude)
    with pytest.raises(DataError, match="has 529 boxes of this size, expected at most 500"):
        read(wide, {"a": {"point": [0, 0]}}, surroundings_degrees=1)
    with pytest.raises(DataError, match="is the name of a box"):
        read(archive[0], {"surroundings 10.0S 75.0W": {"point": [-10, -75]}}, surroundings_degrees=2.5)
    with pytest.raises(ValidationError, match="expected a width that divides 360"):
        DataConfig(path="x", surroundings_degrees=7)
    assert "surroundings" not in codes(read(archive[0], POINT))
