"""Regions: boxes, points, polygons, masks; which cells they mean, and means over cells that come and go."""

import json
from pathlib import Path

import netCDF4
import numpy as np
import pytest
from gridfiles import by_site, codes, finding, rain, read, warmth
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llueve.config import RegionConfig, load_config
from llueve.errors import DataError
from llueve.sources.grids.regions import CellGrid, choose_regions

LATITUDE, LONGITUDE = np.array([1.0, 0.75, 0.5]), np.array([10.0, 10.25, 10.5, 10.75])
GRID = CellGrid("here", LATITUDE, LONGITUDE)


def cells(grid=GRID, land=None, **region):
    (chosen,), _ = choose_regions(grid, {"a": RegionConfig(**region)}, land)
    return chosen.cells.tolist()


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1, 10, 0.5, 10.75), list(range(12))),
        ((1, 10, 1 - 1e-6, 10.25), [0, 1]),  # edges belong to the box
        ((0.8, 10.2, 0.4, 10.6), [5, 6, 9, 10]),
        ((90, -180, -90, 180), list(range(12))),
        ((90, 0, -90, 360), list(range(12))),
    ],
)
def test_boxes(box, expected):
    assert cells(box=box) == expected


def test_longitudes_to_360_and_to_180_mean_the_same_place():
    grid = CellGrid("here", LATITUDE, LONGITUDE - 90.0)
    assert cells(grid, box=(0.8, 280.2, 0.4, 280.6)) == cells(grid, box=(0.8, -79.8, 0.4, -79.4)) == [5, 6, 9, 10]
    assert cells(grid, point=(0.8, 280.3)) == cells(grid, point=(0.8, -79.7)) == [5]


def test_a_box_over_the_date_line():
    grid = CellGrid("here", np.array([0.0]), np.array([179.0, 179.5, -180.0, -179.5, -179.0]))
    assert cells(grid, box=(1, 179.4, -1, -179.4)) == [1, 2, 3]
    (region,), _ = choose_regions(grid, {"a": RegionConfig(box=(1, 179.4, -1, -179.4))}, None)
    assert abs(region.longitude) == pytest.approx(180.0)


@given(
    st.floats(-89, 89), st.floats(-180, 359), st.floats(0.3, 60), st.floats(0.3, 350),
    st.sampled_from([0.0, -180.0, -82.0]), st.booleans(),
)  # fmt: skip
@settings(max_examples=200)
def test_a_box_means_the_cells_whose_centre_it_holds(north, west, height, width, first, descending):
    latitude = np.arange(-90, 90.1, 2.5)[:: -1 if descending else 1]
    longitude = (first + np.arange(0, 360, 2.5) + 180) % 360 - 180
    south, east = max(-90.0, north - height), west + width
    east -= 360.0 if east > 360 else 0.0
    inside = [
        i * len(longitude) + j
        for i, lat in enumerate(latitude)
        for j, lon in enumerate(longitude)
        if south <= lat <= north and (lon - west) % 360 <= width
    ]
    near = min(abs((np.r_[longitude - west, longitude - west - width] + 180) % 360 - 180)) < 1e-3
    near |= bool(min(abs(np.r_[latitude - north, latitude - south])) < 1e-3)
    if near or not inside:
        return
    assert cells(CellGrid("here", latitude, longitude), box=(north, west, south, east)) == inside


def test_a_point_means_the_nearest_cell():
    assert cells(point=(0.8, 10.3)) == [5]
    assert cells(point=(1.2, 9.9)) == [0]  # within a cell of the grid
    pole = CellGrid("here", np.array([90.0, 89.0, 88.0]), np.arange(-180.0, 180.0, 1.0))
    assert cells(pole, point=(89.2, 20.4)) == [360 + 200]
    with pytest.raises(DataError, match=r"nearest cell is \d+ km away.*latitudes 0.5 to 1 and longitudes 10 to 10.75"):
        cells(point=(3, 10))


def test_an_empty_selection_shows_where_the_files_lie():
    with pytest.raises(
        DataError, match=r"regions.a: no cell has its centre there; here covers latitudes 0.5 to 1 and .*3 × 4"
    ):
        cells(box=(5, 10, 4, 11))
    land = np.zeros((3, 4), bool)
    with pytest.raises(DataError, match=r"its 12 cell.s. are not land"):
        cells(box=(1, 10, 0.5, 10.75), land=land)
    land[1, 2] = True
    assert cells(box=(1, 10, 0.5, 10.75), land=land) == [6]


def triangle(west, south, size):
    return [[[west, south], [west + size, south], [west, south + size], [west, south]]]


def geojson(path, *features):
    content = {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "id": i,
                "properties": {"NAME": name},
                "geometry": {"type": "Polygon", "coordinates": ring},
            }
            for i, (name, ring) in enumerate(features)
        ],
    }
    path.write_text(json.dumps(content))
    return str(path)


def test_polygons(tmp_path):
    path = geojson(tmp_path / "a.geojson", ("Lima", triangle(9.9, 0.45, 0.4)), ("Puno", triangle(370.45, 0.7, 0.2)))
    assert cells(polygon=path, feature="Lima") == [4, 8, 9]
    assert cells(polygon=path, feature="Puno") == [6]  # longitudes from 0 to 360
    assert cells(polygon=path, feature="1") == [6]
    assert cells(polygon=path) == [4, 6, 8, 9]
    with pytest.raises(DataError, match=r"no feature 'Cusco'; its features are 0, 1, Lima, Puno"):
        cells(polygon=path, feature="Cusco")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "is not GeoJSON"),
        ("[1]", "expected a GeoJSON object"),
        ("[" * 100_000, "is not GeoJSON"),
        ('{"type": "FeatureCollection", "features": []}', "expected a GeoJSON object with features"),
        ('{"type": "Point", "coordinates": [10, 1]}', "expected polygons, found Point"),
        ('{"type": "Feature", "geometry": null}', "GeoJSON geometry"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [2, 2], [2, 0], [0, 2], [0, 0]]]}', "Self-intersection"),
    ],
)
def test_files_that_are_no_polygons(tmp_path, text, part):
    path = tmp_path / "a.geojson"
    path.write_text(text)
    with pytest.raises(DataError, match=part):
        cells(polygon=str(path))
    with pytest.raises(DataError, match="cannot be read"):
        cells(polygon=str(tmp_path / "gone.geojson"))


def test_masks(grid_file):
    values = np.zeros((1, 4, 5))
    values[0, 1, 2], values[0, 2, 3] = 1.0, 0.49
    wide = {"latitude": [1.25, 1.0, 0.75, 0.5], "longitude": [10.0, 10.25, 10.5, 10.75, 11.0]}
    path = str(grid_file("mask.nc", {"basin": values, "lsm": 1 - values}, **wide))
    assert cells(mask=path, variable="basin") == [2]
    assert len(cells(mask=path)) == 11  # of several variables the land-sea mask, if one is it
    with pytest.raises(DataError, match="expected the variable river, found basin, lsm"):
        cells(mask=path, variable="river")
    other = str(grid_file("other.nc", {"basin": values[:, :3, :4]}, latitude=[5.0, 4.75, 4.5]))
    with pytest.raises(DataError, match="not the cells of here"):
        cells(mask=other)
    with pytest.raises(DataError, match="expected a NetCDF file"):
        cells(mask=__file__)


def test_regions_that_share_cells_are_named():
    regions = {"coast": RegionConfig(box=(1, 10, 0.5, 10.5)), "sierra": RegionConfig(box=(1, 10.5, 0.5, 10.75))}
    _, (found,) = choose_regions(GRID, regions, None)
    assert (found.code, found.severity, found.count) == ("overlapping_regions", "warning", 3)
    assert found.message == "coast and sierra share 3 of their 9 and 6 cells"


# Means


def mean_by_hand(values, chosen):
    """Weighted by the cosine of the latitude, over the cells of the mask."""
    weights = np.broadcast_to(np.cos(np.deg2rad(LATITUDE))[:, None], (3, 4))[chosen]
    return (values[:, chosen].astype(float) * weights).sum(axis=1) / weights.sum()


def test_a_sea_that_never_has_a_value_is_left_out(grid_file):
    values = warmth()
    values[:, 0, :] = values[:, 1, 3] = np.nan
    panel = read(grid_file("a.nc", {"t2m": values, "tp": rain()}), {"a": {"box": (1, 10, 0.5, 10.75)}})
    there = ~np.isnan(values[0])
    np.testing.assert_allclose(panel["t2m"][0], mean_by_hand(values, there), rtol=1e-6)
    np.testing.assert_allclose(panel["tp"][0], mean_by_hand(rain(), np.ones((3, 4), bool)) * 1000, rtol=1e-5)
    assert finding(panel, "region_cells").message == "a: means over 12 of its 12 cells (t2m 7)"
    assert "partial_cells" not in codes(panel)


def test_a_time_that_lacks_some_cells_is_missing_not_a_mean_of_another_place(grid_file):
    values = warmth()
    values[:, 0, 0] = np.nan  # sea
    values[7, 1, 1] = values[9] = np.nan
    panel = read(grid_file("a.nc", {"t2m": values}), {"a": {"box": (1, 10, 0.5, 10.75)}, "b": {"point": (0.5, 10)}})
    assert np.flatnonzero(np.isnan(panel["t2m"].values[0])).tolist() == [7, 9]
    assert np.flatnonzero(np.isnan(panel["t2m"].values[1])).tolist() == [9]
    found = finding(panel, "partial_cells")
    assert (found.site, found.count, found.first, found.severity) == ("a", 1, "2023-01-01T07:00:00", "warning")
    assert panel["recorded"].values.all()


def test_the_cells_that_come_and_go_are_known_across_files(grid_file, tmp_path):
    values = warmth()
    values[:24, 0, 0] = np.nan  # missing in the whole first file, there in the others
    for i in range(3):
        grid_file(f"{i}.nc", {"t2m": values[24 * i : 24 * i + 24]}, start=f"2023-01-0{1 + i}")
    panel = read(tmp_path, {"a": {"box": (1, 10, 0.5, 10.75)}})
    assert np.isnan(panel["t2m"].values[0]).tolist() == [True] * 24 + [False] * 48
    assert finding(panel, "partial_cells").count == 24


def test_a_region_in_the_sea_is_an_error(grid_file):
    values = warmth()
    values[:, 0, :] = np.nan
    path = grid_file("a.nc", {"t2m": values})
    with pytest.raises(DataError, match=r"regions.north: its 4 cells are missing at all times in all variables"):
        read(path, {"north": {"box": (1, 10, 0.9, 10.75)}, "south": {"box": (0.8, 10, 0.5, 10.75)}})
    assert finding(read(path), "sea_cells").count == 4 and read(path).sizes["site"] == 8


@pytest.mark.parametrize("where", ["same file", "own file"])
def test_land_by_a_mask(grid_file, where):
    share = np.zeros((72, 3, 4))
    share[:, 1:, 1:] = 0.6
    values = {"t2m": warmth()}
    if where == "same file":
        panel = read(grid_file("a.nc", {**values, "lsm": share}), {"a": {"box": (1, 10, 0.5, 10.75)}}, cells="land")
    else:
        mask = str(grid_file("lsm.nc", {"lsm": share[:1]}))
        path = grid_file("a.nc", values)
        panel = read(path, {"a": {"box": (1, 10, 0.5, 10.75)}}, cells="land", land_mask=mask)
    assert list(panel.data_vars) == ["t2m"]  # constant in time: never a feature
    np.testing.assert_allclose(panel["t2m"][0], mean_by_hand(warmth(), share[0] > 0.5), rtol=1e-6)
    assert finding(panel, "region_cells").count == 6
    land_only = read(grid_file("b.nc", {**values, "lsm": share}), cells="land")
    np.testing.assert_array_equal(land_only["t2m"], by_site(warmth())[[5, 6, 7, 9, 10, 11]])


def test_missing_cells_alone_do_not_tell_land(grid_file):
    """The temperature of the sea is missing on land, and that of the air nowhere."""
    sea = warmth()
    sea[:, 0, :] = np.nan
    path = grid_file("a.nc", {"sst": sea, "t2m": warmth()})
    with pytest.raises(DataError, match="needs a land-sea mask"):
        read(path, {"a": {"box": (1, 10, 0.5, 10.75)}}, cells="land")


@given(st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_means_equal_those_by_hand(grid_file, data):
    seed = data.draw(st.integers(0, 99))
    values = warmth(seed)
    sea = np.random.default_rng(seed).random((3, 4)) < data.draw(st.sampled_from([0.0, 0.4]))
    values[:, sea] = np.nan
    north, south = sorted(
        data.draw(st.lists(st.sampled_from([1.1, 0.9, 0.6, 0.4]), min_size=2, max_size=2, unique=True))
    )[::-1]
    chosen = np.broadcast_to(((north > LATITUDE) & (south < LATITUDE))[:, None], (3, 4)) & ~sea
    path = grid_file("a.nc", {"t2m": values, "tp": rain()})
    if not (~sea).any():
        return
    panel = read(path, {"a": {"box": (north, 10, south, 10.75)}})
    if chosen.any():
        np.testing.assert_allclose(panel["t2m"][0], mean_by_hand(values, chosen), rtol=1e-6)
    else:
        assert np.isnan(panel["t2m"]).all()


def test_the_five_regions_of_peru():
    """The example's boxes on the grid that it asks for: 73 × 57 cells."""
    config = load_config(Path(__file__).parents[3] / "examples" / "peru_era5.toml")
    grid = CellGrid("peru", np.arange(0, -18.1, -0.25), np.arange(-82, -67.9, 0.25))
    assert (len(grid.latitude), len(grid.longitude)) == (73, 57)
    regions, overlaps = choose_regions(grid, config.regions, None)
    counts = {region.name: len(region.cells) for region in regions}
    expected = {
        "costa_norte": 21 * 17, "costa_centro": 21 * 25, "costa_sur": 33 * 41, "sierra_norte": 41 * 21, "sierra_sur": 33 * 33,
    }  # fmt: skip
    assert counts == expected
    shared_cells = {each.message.split(" share ")[0]: each.count for each in overlaps}
    assert shared_cells == {
        "costa_norte and costa_centro": 17,  # the row at 5 °S
        "costa_norte and sierra_norte": 21,  # the column at 78 °W
        "costa_centro and costa_sur": 17,  # 80 to 76 °W at 10 °S
        "costa_centro and sierra_norte": 21 * 9,  # 5 to 10 °S, 78 to 76 °W
        "costa_centro and sierra_sur": 1,  # 10 °S, 76 °W
        "costa_sur and sierra_norte": 21,  # 78 to 73 °W at 10 °S
        "costa_sur and sierra_sur": 33 * 25,  # 76 to 70 °W
        "sierra_norte and sierra_sur": 13,  # 76 to 73 °W at 10 °S
    }


def test_a_single_cell_and_a_single_row(tmp_path):
    path = tmp_path / "a.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("valid_time", 48)
        time = file.createVariable("valid_time", "i8", ("valid_time",))
        time.units, time[:] = "hours since 2023-01-01", np.arange(48)
        for name, value in (("latitude", -12.0), ("longitude", 283.0)):
            file.createVariable(name, "f8", ())[...] = value
        field = file.createVariable("t2m", "f4", ("valid_time",))
        field.units, field[:] = "K", warmth()[:48, 0, 0]
    panel = read(path)
    assert panel["site"].values.tolist() == ["-12,-77"]
    np.testing.assert_array_equal(panel["t2m"][0], warmth()[:48, 0, 0])


def test_a_region_that_reaches_beyond_the_grid_is_named(grid_file, tmp_path):
    path = grid_file("a.nc", {"t2m": warmth()})
    assert "region_beyond_grid" not in codes(read(path, {"a": {"box": [1.1, 9.9, 0.4, 10.9]}}))
    for box in ([2, 10, 0.5, 10.75], [1, 9, 0.5, 10.75], [1, 10, 0.5, 12], [1, 10, -3, 10.75]):
        assert "a: reaches" in finding(read(path, {"a": {"box": box}}), "region_beyond_grid").message
    (tmp_path / "a.json").write_text('{"type":"Polygon","coordinates":[[[9,0],[11,0],[11,2],[9,2],[9,0]]]}')
    polygon = {"a": {"polygon": str(tmp_path / "a.json")}}
    assert "reaches 1.00° beyond" in finding(read(path, polygon), "region_beyond_grid").message


def test_a_mask_in_percent_is_refused(grid_file):
    path = grid_file("a.nc", {"t2m": warmth()})
    percent = np.full((1, 3, 4), 10.0)
    mask = grid_file("mask.nc", {"lsm": percent})
    with pytest.raises(DataError, match="expected shares from 0 to 1, found 10 to 10"):
        read(path, {"a": {"box": [2, 9, 0, 11]}}, cells="land", land_mask=str(mask))


def test_a_mask_may_have_its_long_name(grid_file):
    share = np.tile(np.arange(12).reshape(3, 4) % 2, (72, 1, 1))
    path = grid_file("a.nc", {"t2m": warmth(), "land_sea_mask": share})
    assert finding(read(path, {"a": {"box": [2, 9, 0, 11]}}, cells="land"), "region_cells").count == 6


def test_a_point_in_the_sea_is_an_error_beside_others_too(grid_file):
    values = warmth()
    values[:, 0, 0] = np.nan
    path = grid_file("a.nc", {"t2m": values})
    with pytest.raises(DataError, match=r"regions.a: its 1 cells are missing at all times"):
        read(path, {"a": {"point": [1.0, 10.0]}, "b": {"point": [0.5, 10.5]}})
