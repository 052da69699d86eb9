"""Which cells of a grid make a site: boxes, nearest cells, polygons, masks, or every cell by itself.

Shapes: Y latitudes, X longitudes, U cells that some region uses.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import xarray as xr
from numpy.typing import NDArray

from llueve.config import RegionConfig
from llueve.errors import DataError, listed
from llueve.panel import BoolArray, Finding
from llueve.sources.archive import Member, sniff
from llueve.sources.gridded import LAND_MASKS, LATITUDES, LONGITUDES, reading
from llueve.sources.timeline import Floats

MOST_SITES = 500
"""Without regions each cell is a site, up to this many."""
EDGE = 1e-4
"""Degrees by which a cell may miss the edge of a box, for coordinates rounded to float32."""
KM_PER_DEGREE = 111.195
"""One degree of a great circle on a sphere of 6371 km."""
MOST_GEOJSON_BYTES = 64 * 2**20
LAND = 0.5
"""Least share of land of a land cell, and least value of a mask's cell."""
SHARE_NOISE = 0.01
"""How far packing may move a share beyond 0 and 1."""

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """The cells of an archive."""

    source: str
    latitude: Floats
    longitude: Floats
    """From -180 to below 180."""

    @property
    def extent(self) -> str:
        """Where the grid lies, in words."""
        north, south = self.latitude.max(), self.latitude.min()
        west, east = _span(self.longitude)
        return (
            f"latitudes {south:g} to {north:g} and longitudes {west:g} to {east:g} "
            f"({len(self.latitude)} × {len(self.longitude)} cells)"
        )

    def same_as(self, other: "Grid") -> bool:
        """Whether both have the same cells, but for rounding."""
        mine, others = (self.latitude, self.longitude), (other.latitude, other.longitude)
        return all(len(a) == len(b) and np.abs(a - b).max() < 1e-3 for a, b in zip(mine, others, strict=True))

    def order_in(self, other: "Grid") -> tuple[Integers, Integers] | None:
        """Where another grid has each of these rows and columns; None unless it has just these."""
        if len(self.latitude) != len(other.latitude) or len(self.longitude) != len(other.longitude):
            return None
        rows, columns = _matches(self.latitude, other.latitude), _matches(self.longitude, other.longitude)
        return None if (rows < 0).any() or (columns < 0).any() else (rows, columns)


@dataclass(frozen=True)
class Region:
    """One site: its cells, as positions in the flattened grid, and their weights."""

    name: str
    cells: Integers
    weights: Floats
    """Proportional to the area: the cosine of the latitude."""
    latitude: float
    longitude: float

    def identity(self, grid: Grid) -> str:
        """SHA-256 of its cells' coordinates to a thousandth of a degree, from which their weights follow."""
        row, column = np.divmod(self.cells, len(grid.longitude))
        places = np.rint(1000 * np.stack([grid.latitude[row], grid.longitude[column]], axis=1)).astype("<i8")
        return hashlib.sha256(np.unique(places, axis=0).tobytes()).hexdigest()


def choose_regions(
    grid: Grid, regions: Mapping[str, RegionConfig], land_YX: BoolArray | None
) -> tuple[list[Region], list[Finding]]:
    """The regions' cells, or each cell as a site of its own.

    Args:
        grid: the archive's cells.
        regions: as configured; none makes a site of each cell.
        land_YX: cells that may be used; None means all.

    Raises:
        DataError: a region without a cell, or far from the grid; more than 500 cells without regions.
    """
    allowed_YX = np.ones((len(grid.latitude), len(grid.longitude)), np.bool_) if land_YX is None else land_YX
    if not regions:
        return _each_cell(grid, allowed_YX), []
    chosen = []
    findings = []
    for name, region in regions.items():
        inside_YX = _inside(grid, name, region)
        cells = np.flatnonzero(inside_YX & allowed_YX)
        if len(cells) == 0:
            sea = int(inside_YX.sum())
            found = f"its {sea} cell(s) are no land (data.cells)" if sea else "no cell has its centre there"
            raise DataError(f"regions.{name}: {found}; {grid.source} covers {grid.extent}")
        chosen.append(_region(grid, name, cells))
        if over := _beyond(grid, name, region):
            message = (
                f"{name}: reaches {over:.2f}° beyond the grid, so its mean is of a part; the files cover {grid.extent}"
            )
            findings.append(Finding("region_beyond_grid", "warning", message, site=name))
    for one, other in combinations(chosen, 2):
        shared = len(np.intersect1d(one.cells, other.cells))
        if shared:
            message = (
                f"{one.name} and {other.name} share {shared} cells ({len(one.cells)} and {len(other.cells)} in all)"
            )
            findings.append(Finding("overlapping_regions", "warning", message, site=one.name, count=shared))
    return chosen, findings


def _region(grid: Grid, name: str, cells: Integers) -> Region:
    """Cells with their weights and their middle."""
    row, column = np.divmod(cells, len(grid.longitude))
    weights = np.maximum(np.cos(np.deg2rad(grid.latitude[row])), 1e-9)  # a pole has no area of its own
    angle = np.deg2rad(grid.longitude[column])
    middle = np.arctan2(np.average(np.sin(angle), weights=weights), np.average(np.cos(angle), weights=weights))
    latitude = float(np.average(grid.latitude[row], weights=weights))
    return Region(name, cells.astype(np.int64), weights, round(latitude, 6), round(float(np.rad2deg(middle)), 6))


def _each_cell(grid: Grid, allowed_YX: BoolArray) -> list[Region]:
    cells = np.flatnonzero(allowed_YX)
    if not 0 < len(cells) <= MOST_SITES:
        raise DataError(
            f"{grid.source}: {len(cells):,} cells, expected 1 to {MOST_SITES} sites; name regions in [regions], such as "
            f"center = {{ box = [north, west, south, east] }}; the files cover {grid.extent}"
        )
    return [_region(grid, _cell_name(grid, int(cell)), np.array([cell])) for cell in cells]


def _cell_name(grid: Grid, cell: int) -> str:
    row, column = divmod(cell, len(grid.longitude))
    numbers = (grid.latitude[row], grid.longitude[column])
    return ",".join(np.format_float_positional(round(float(number), 4) + 0.0, trim="-") for number in numbers)


def _inside(grid: Grid, name: str, region: RegionConfig) -> BoolArray:
    """The cells that a region means, (Y, X)."""
    if region.box is not None:
        return _box(grid, region.box)
    if region.point is not None:
        return _nearest(grid, name, *region.point)
    if region.polygon is not None:
        return _polygon(grid, name, region.polygon, region.feature)
    assert region.mask is not None  # the configuration guarantees one of the four
    return mask_cells(grid, f"regions.{name}", region.mask, region.variable)


def _box(grid: Grid, box: tuple[float, float, float, float]) -> BoolArray:
    north, west, south, east = box
    rows = (grid.latitude <= north + EDGE) & (grid.latitude >= south - EDGE)
    width = (east - west) % 360.0 or 360.0
    # From the western edge eastwards, so that a box over the date line needs no second case.
    from_west = (grid.longitude - west + EDGE) % 360.0
    result: BoolArray = rows[:, None] & (from_west <= width + 2 * EDGE)[None, :]
    return result


def _beyond(grid: Grid, name: str, region: RegionConfig) -> float:
    """Degrees by which a box or polygon reaches beyond the outermost cells, if that is more than a cell, else 0."""
    if region.polygon is not None:
        west, south, east, north = shapely.union_all(_polygons(name, region.polygon, region.feature)).bounds
    elif region.box is not None:
        north, west, south, east = region.box
    else:
        return 0.0
    width = (east - west) % 360.0 or 360.0
    from_west = (grid.longitude - west + EDGE) % 360.0 - EDGE
    from_west = from_west[from_west <= width + EDGE]
    steps = [np.abs(np.diff(np.sort(axis))).min() for axis in (grid.latitude, grid.longitude) if len(axis) > 1]
    over = [north - grid.latitude.max(), grid.latitude.min() - south]
    over += [from_west.min(), width - from_west.max()] if len(from_west) else []
    largest = float(max(over))
    return largest if largest > max(steps, default=1.0) + 2 * EDGE else 0.0


def _nearest(grid: Grid, name: str, latitude: float, longitude: float) -> BoolArray:
    """The cell whose centre is nearest on the sphere, if the point lies on the grid or within a cell of it."""
    lat_Y1, lon_1X = np.deg2rad(grid.latitude)[:, None], np.deg2rad(grid.longitude)[None, :]
    lat, lon = np.deg2rad(latitude), np.deg2rad(longitude)
    half = np.sin((lat_Y1 - lat) / 2) ** 2 + np.cos(lat_Y1) * np.cos(lat) * np.sin((lon_1X - lon) / 2) ** 2
    degrees_YX = np.rad2deg(2 * np.arcsin(np.sqrt(np.clip(half, 0.0, 1.0))))
    steps = [abs(axis[1] - axis[0]) for axis in (grid.latitude, grid.longitude) if len(axis) > 1]
    reach = max(steps, default=1.0)
    if degrees_YX.min() > reach:
        raise DataError(
            f"regions.{name}: the nearest cell is {degrees_YX.min() * KM_PER_DEGREE:.0f} km away, more than a cell; "
            f"{grid.source} covers {grid.extent}"
        )
    inside = np.zeros(degrees_YX.size, np.bool_)
    inside[int(degrees_YX.argmin())] = True
    return inside.reshape(degrees_YX.shape)


def _polygon(grid: Grid, name: str, path: str, feature: str | None) -> BoolArray:
    """Cells with their centre in, or on the edge of, the polygons of a GeoJSON file."""
    shape = shapely.union_all(_polygons(name, path, feature))
    if shape.geom_type not in ("Polygon", "MultiPolygon"):
        raise DataError(f"{path}: regions.{name}: expected polygons, found {shape.geom_type}; name a place with point")
    longitude_YX, latitude_YX = np.meshgrid(grid.longitude, grid.latitude)
    # A file may count longitudes from 0 to 360.
    inside: BoolArray = np.zeros(longitude_YX.shape, np.bool_)
    for shift in (-360.0, 0.0, 360.0):
        inside |= shapely.intersects_xy(shape, longitude_YX + shift, latitude_YX)
    return inside


def _polygons(name: str, path: str, feature: str | None) -> list[Any]:
    """The valid geometries of a GeoJSON file."""
    geometries = []
    try:
        for text in _geometries(path, name, feature):
            geometry = shapely.from_geojson(text)
            if not shapely.is_valid(geometry):
                raise DataError(f"{path}: regions.{name}: {shapely.is_valid_reason(geometry)}; mend the polygon")
            geometries.append(geometry)
    except shapely.errors.ShapelyError as error:
        raise DataError(f"{path}: regions.{name}: no GeoJSON geometry ({error})") from error
    return geometries


def _geometries(path: str, name: str, feature: str | None) -> list[str]:
    """The geometries of a GeoJSON file as texts, of one feature or of all."""
    place = Path(path)
    try:
        if place.stat().st_size > MOST_GEOJSON_BYTES:
            raise DataError(f"{path}: larger than {MOST_GEOJSON_BYTES:,} bytes; simplify the polygons")
        content = json.loads(place.read_text(encoding="utf-8"))
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); check regions.{name}.polygon") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no GeoJSON ({error}); check regions.{name}.polygon") from error
    kind = content.get("type") if isinstance(content, dict) else None
    found = content.get("features") if kind == "FeatureCollection" else [content]
    if not isinstance(found, list) or not found or not all(isinstance(each, dict) for each in found):
        raise DataError(f"{path}: expected a GeoJSON object with features, found {type(content).__name__}")
    if feature is not None:
        names = [_names(each) for each in found]
        found = [each for each, texts in zip(found, names, strict=True) if feature in texts]
        if not found:
            known = sorted({text for texts in names for text in texts})
            raise DataError(f"{path}: regions.{name}: no feature {feature!r}; its features say {listed(known, 20)}")
    return [json.dumps(each.get("geometry") if each.get("type") == "Feature" else each) for each in found]


def _names(feature: dict[str, Any]) -> set[str]:
    """Everything that may name a feature: its id and the texts among its properties."""
    properties = feature.get("properties")
    texts = [feature.get("id"), *(properties.values() if isinstance(properties, dict) else ())]
    return {str(text) for text in texts if isinstance(text, str | int)}


def mask_cells(grid: Grid, who: str, path: str, variable: str | None) -> BoolArray:
    """Cells of the grid at which a mask file has at least one half.

    Args:
        grid: the archive's cells.
        who: the setting that names the file, for errors.
        path: NetCDF with one number per cell.
        variable: its name, needed where the file holds several.

    Raises:
        DataError: the file cannot be read, has no such variable, or lies on another grid.
    """
    with reading(path), ExitStack() as files:
        kind = sniff(Path(path))
        if kind not in ("hdf5", "classic", "cdf5"):
            raise DataError(f"{path}: {who}: expected a NetCDF file by its first bytes")
        dataset = files.enter_context(_open_mask(Member(path, path, kind)))
        names = [
            str(name) for name, array in dataset.data_vars.items() if array.ndim >= 2 and array.dtype.kind in "fiub"
        ]
        if variable is None and len(names) != 1:
            variable = next((name for name in LAND_MASKS if name in names), None)
        chosen = variable or (names[0] if len(names) == 1 else None)
        if chosen is None or chosen not in names:
            raise DataError(
                f"{path}: {who}: expected the variable {variable or 'to be named'}, found {listed(names) or 'none'}"
            )
        array = dataset[chosen]
        axes = [next((a for a in options if a in array.dims), None) for options in (LATITUDES, LONGITUDES)]
        if None in axes:
            raise DataError(f"{path}: {who}: {chosen} is not by latitude and longitude, but by {listed(array.dims)}")
        latitude, longitude = (np.asarray(dataset[axis].values, np.float64) for axis in axes)
        first = array.isel({dim: 0 for dim in array.dims if dim not in axes}).transpose(*axes)
        values_YX = np.asarray(first.values, dtype=np.float64)
    mask = Grid(path, latitude, (longitude + 180.0) % 360.0 - 180.0)
    rows, columns = _matches(grid.latitude, mask.latitude), _matches(grid.longitude, mask.longitude)
    if (rows < 0).any() or (columns < 0).any():
        raise DataError(f"{path}: {who}: covers {mask.extent}, which are not the cells of {grid.source}, {grid.extent}")
    values_YX = values_YX[np.ix_(rows, columns)]
    if (values_YX < -SHARE_NOISE).any() or (values_YX > 1 + SHARE_NOISE).any():
        raise DataError(
            f"{path}: {who}: expected shares from 0 to 1, found {np.nanmin(values_YX):g} to {np.nanmax(values_YX):g}; write "
            f"{chosen} as a share of each cell, not in percent or as classes"
        )
    result: BoolArray = values_YX >= LAND
    return result


def _open_mask(member: Member) -> xr.Dataset:
    engine = "scipy" if member.kind == "classic" else "netcdf4"
    return xr.open_dataset(member.path, engine=engine, decode_times=False, decode_timedelta=False)


def _matches(wanted: Floats, there: Floats) -> Integers:
    """Position of each wanted coordinate, -1 where none is near."""
    if len(there) == 0:
        return np.full(len(wanted), -1)
    distance = np.abs(wanted[:, None] - there[None, :])
    position = distance.argmin(axis=1).astype(np.int64)
    return np.where(distance.min(axis=1) < 1e-3, position, -1)


def _span(longitude: Floats) -> tuple[float, float]:
    """Western and eastern end, which may cross the date line: the ends of the widest gap between longitudes."""
    ordered = np.sort(longitude)
    gaps = np.diff(np.r_[ordered, ordered[0] + 360.0])
    widest = int(gaps.argmax())
    return float(ordered[(widest + 1) % len(ordered)]), float(ordered[widest])
