"""The cells of each site: a box, the nearest cell, a polygon, a mask, or every cell as a site.

Shapes: Y latitudes, X longitudes.
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
from numpy.typing import NDArray

from llueve.config import RegionConfig
from llueve.errors import DataError, listed
from llueve.panel import BoolArray, Finding
from llueve.sources.grids.archive import detect_kind
from llueve.sources.grids.fields import LAND_MASKS, LATITUDES, LONGITUDES, open_netcdf, reading
from llueve.sources.grids.times import Floats
from llueve.sphere import EARTH_RADIUS_KM, centre, distance_km

MOST_SITES = 500
"""Most sites if each cell is a site."""
EDGE = 1e-4
"""Degrees by which a cell may miss the edge of a box, because coordinates are rounded to float32."""
KM_PER_DEGREE = EARTH_RADIUS_KM * np.pi / 180
"""One degree of a great circle."""
MOST_GEOJSON_BYTES = 64 * 2**20
LAND = 0.5
"""Least share of land of a land cell, and least value of a mask's cell."""
SHARE_NOISE = 0.01
"""Largest error of a packed share."""

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class CellGrid:
    """The cells of an archive."""

    source: str
    latitude: Floats
    longitude: Floats
    """From -180 to below 180."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return len(self.latitude), len(self.longitude)

    @property
    def extent(self) -> str:
        """The range of the grid in words; the widest gap between longitudes ends it, so that it may cross the date line."""
        ordered = np.sort(self.longitude)
        widest = int(np.diff(np.r_[ordered, ordered[0] + 360.0]).argmax())
        west, east = ordered[(widest + 1) % len(ordered)], ordered[widest]
        degrees = f"latitudes {self.latitude.min():g} to {self.latitude.max():g} and longitudes {west:g} to {east:g}"
        return f"{degrees} ({len(self.latitude)} × {len(self.longitude)} cells)"

    def same_as(self, other: "CellGrid") -> bool:
        """True if both have the same cells in the same order, except for rounding."""
        pairs = ((self.latitude, other.latitude), (self.longitude, other.longitude))
        return all(len(a) == len(b) and np.abs(a - b).max() < 1e-3 for a, b in pairs)

    def positions_in(self, other: "CellGrid") -> tuple[Integers, Integers] | None:
        """Row and column of another grid for each row and column of this one; None if one is not there."""
        rows, columns = _positions(self.latitude, other.latitude), _positions(self.longitude, other.longitude)
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

    def identity(self, grid: CellGrid) -> str:
        """SHA-256 of the coordinates of its cells, to a thousandth of a degree; they determine the weights."""
        row, column = np.divmod(self.cells, len(grid.longitude))
        places = np.rint(1000 * np.stack([grid.latitude[row], grid.longitude[column]], axis=1)).astype("<i8")
        return hashlib.sha256(np.unique(places, axis=0).tobytes()).hexdigest()


def choose_regions(
    grid: CellGrid, regions: Mapping[str, RegionConfig], land_YX: BoolArray | None
) -> tuple[list[Region], list[Finding]]:
    """The cells of each configured region, or without any, each cell as a site; and findings on regions.

    `land_YX` is True for each cell that may be used; None allows all.

    Raises:
        DataError: a region has no cell, or is far from the grid; or there are more than 500 cells without regions.
    """
    allowed_YX = np.ones(grid.shape, np.bool_) if land_YX is None else land_YX
    if not regions:
        return _each_cell(grid, allowed_YX), []
    chosen = []
    findings = []
    for name, region in regions.items():
        inside_YX = _inside(grid, name, region)
        cells = np.flatnonzero(inside_YX & allowed_YX)
        if len(cells) == 0:
            sea = int(inside_YX.sum())
            found = f"its {sea} cell(s) are not land (data.cells)" if sea else "no cell has its centre there"
            raise DataError(f"regions.{name}: {found}; {grid.source} covers {grid.extent}")
        chosen.append(region_of(grid, name, cells))
        if over := _beyond(grid, name, region):
            message = f"{name}: reaches {over:.2f}° beyond the grid: its mean is of a part of it ({grid.extent})"
            findings.append(Finding("region_beyond_grid", "warning", message, site=name))
    for one, other in combinations(chosen, 2):
        if shared := len(np.intersect1d(one.cells, other.cells)):
            counts = f"{shared} of their {len(one.cells)} and {len(other.cells)} cells"
            message = f"{one.name} and {other.name} share {counts}"
            findings.append(Finding("overlapping_regions", "warning", message, site=one.name, count=shared))
    return chosen, findings


def region_of(grid: CellGrid, name: str, cells: Integers) -> Region:
    """The region of these cells, positions in the flattened grid; its position is the centre of their area."""
    row, column = np.divmod(cells, len(grid.longitude))
    latitude_N, longitude_N = grid.latitude[row], grid.longitude[column]
    weights = np.maximum(np.cos(np.deg2rad(latitude_N)), 1e-9)  # a cell at the pole has no area
    latitude, longitude = centre(latitude_N, longitude_N, weights)
    return Region(name, cells.astype(np.int64), weights, round(latitude, 6), round(longitude, 6))


def _each_cell(grid: CellGrid, allowed_YX: BoolArray) -> list[Region]:
    cells = np.flatnonzero(allowed_YX)
    if not 0 < len(cells) <= MOST_SITES:
        raise DataError(
            f"{grid.source}: {len(cells):,} cells, expected 1 to {MOST_SITES} sites; name regions in [regions], such as "
            f"center = {{ box = [north, west, south, east] }}; the files cover {grid.extent}"
        )
    sites = []
    for cell in cells.tolist():
        row, column = divmod(cell, len(grid.longitude))
        numbers = [round(float(number), 4) + 0.0 for number in (grid.latitude[row], grid.longitude[column])]
        name = ",".join(np.format_float_positional(number, trim="-") for number in numbers)
        sites.append(region_of(grid, name, np.array([cell])))
    return sites


def _inside(grid: CellGrid, name: str, region: RegionConfig) -> BoolArray:
    if region.box is not None:
        north, west, south, east = region.box
        rows = (grid.latitude <= north + EDGE) & (grid.latitude >= south - EDGE)
        width = (east - west) % 360.0 or 360.0
        # Counted from the western edge, so that a box across the date line is not a special case.
        from_west = (grid.longitude - west + EDGE) % 360.0
        in_box: BoolArray = rows[:, None] & (from_west <= width + 2 * EDGE)[None, :]
        return in_box
    if region.point is not None:
        return _nearest(grid, name, *region.point)
    if region.polygon is not None:
        return _polygon(grid, name, region.polygon, region.feature)
    assert region.mask is not None  # the configuration has exactly one of the four
    return mask_cells(grid, f"regions.{name}", region.mask, region.variable)


def _beyond(grid: CellGrid, name: str, region: RegionConfig) -> float:
    """Degrees by which a box or polygon reaches beyond the outermost cells; 0 if it is less than a cell."""
    if region.polygon is not None:
        west, south, east, north = _shape(name, region.polygon, region.feature).bounds
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


def _nearest(grid: CellGrid, name: str, latitude: float, longitude: float) -> BoolArray:
    """The cell with the nearest centre on the sphere, if the point is within a cell of it."""
    km_YX = distance_km(grid.latitude[:, None], grid.longitude[None, :], latitude, longitude)
    steps = [abs(axis[1] - axis[0]) for axis in (grid.latitude, grid.longitude) if len(axis) > 1]
    if km_YX.min() > max(steps, default=1.0) * KM_PER_DEGREE:
        raise DataError(
            f"regions.{name}: the nearest cell is {km_YX.min():.0f} km away, more than a cell; "
            f"{grid.source} covers {grid.extent}"
        )
    inside_YX: BoolArray = np.zeros(km_YX.shape, np.bool_)
    inside_YX.flat[int(km_YX.argmin())] = True
    return inside_YX


def _polygon(grid: CellGrid, name: str, path: str, feature: str | None) -> BoolArray:
    """Cells with their centre in, or on the edge of, the polygons of a GeoJSON file."""
    shape = _shape(name, path, feature)
    if shape.geom_type not in ("Polygon", "MultiPolygon"):
        raise DataError(f"{path}: regions.{name}: expected polygons, found {shape.geom_type}; use point for a place")
    longitude_YX, latitude_YX = np.meshgrid(grid.longitude, grid.latitude)
    shifts = (-360.0, 0.0, 360.0)  # a file may count longitudes from 0 to 360
    inside: BoolArray = np.any([shapely.intersects_xy(shape, longitude_YX + by, latitude_YX) for by in shifts], axis=0)
    return inside


def _shape(name: str, path: str, feature: str | None) -> Any:
    try:
        geometries = [shapely.from_geojson(text) for text in _geometries(path, name, feature)]
        for geometry in geometries:
            if not shapely.is_valid(geometry):
                raise DataError(f"{path}: regions.{name}: {shapely.is_valid_reason(geometry)}; correct the polygon")
    except shapely.errors.ShapelyError as error:
        raise DataError(f"{path}: regions.{name}: expected a GeoJSON geometry ({error})") from error
    return shapely.union_all(geometries)


def _geometries(path: str, name: str, feature: str | None) -> list[str]:
    """The geometries of one feature of a GeoJSON file, or of all features, as texts."""
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
        raise DataError(f"{path}: is not GeoJSON ({error}); check regions.{name}.polygon") from error
    kind = content.get("type") if isinstance(content, dict) else None
    found = content.get("features") if kind == "FeatureCollection" else [content]
    if not isinstance(found, list) or not found or not all(isinstance(each, dict) for each in found):
        raise DataError(f"{path}: expected a GeoJSON object with features, found {type(content).__name__}")
    if feature is not None:
        known = sorted({text for each in found for text in _feature_names(each)})
        found = [each for each in found if feature in _feature_names(each)]
        if not found:
            raise DataError(f"{path}: regions.{name}: no feature {feature!r}; its features are {listed(known, 20)}")
    return [json.dumps(each.get("geometry") if each.get("type") == "Feature" else each) for each in found]


def _feature_names(feature: dict[str, Any]) -> set[str]:
    properties = feature.get("properties")
    texts = [feature.get("id"), *(properties.values() if isinstance(properties, dict) else ())]
    return {str(text) for text in texts if isinstance(text, str | int)}


def mask_cells(grid: CellGrid, key: str, path: str, variable: str | None) -> BoolArray:
    """True (Y, X) for each cell of the grid at which the NetCDF file of a mask has at least one half.

    `key` is the key of the configuration that names the file; `variable` is needed if the file holds several.

    Raises:
        DataError: the file cannot be read, does not have the variable, or is on another grid.
    """
    with reading(path), ExitStack() as files:
        kind = detect_kind(Path(path))
        if kind not in ("hdf5", "classic", "cdf5"):
            raise DataError(f"{path}: {key}: expected a NetCDF file by its first bytes")
        dataset = files.enter_context(open_netcdf(path, kind))
        fields = {str(name): array for name, array in dataset.data_vars.items() if array.ndim >= 2 and array.size}
        names = [name for name, array in fields.items() if array.dtype.kind in "fiub"]
        if variable is None and len(names) != 1:
            variable = next((name for name in LAND_MASKS if name in names), None)
        chosen = variable or (names[0] if len(names) == 1 else None)
        if chosen is None or chosen not in names:
            wanted = variable or "named by regions.NAME.variable"
            raise DataError(f"{path}: {key}: expected the variable {wanted}, found {listed(names) or 'none'}")
        array = dataset[chosen]
        axes = [next((a for a in options if a in array.dims), None) for options in (LATITUDES, LONGITUDES)]
        if None in axes:
            raise DataError(f"{path}: {key}: {chosen} is not by latitude and longitude, but by {listed(array.dims)}")
        latitude, longitude = (np.asarray(dataset[axis].values, np.float64) for axis in axes)
        first = array.isel({dim: 0 for dim in array.dims if dim not in axes}).transpose(*axes)
        values_YX = np.asarray(first.values, dtype=np.float64)
    mask = CellGrid(path, latitude, (longitude + 180.0) % 360.0 - 180.0)
    positions = grid.positions_in(mask)
    if positions is None:
        raise DataError(f"{path}: {key}: covers {mask.extent}, not the cells of {grid.source}, {grid.extent}")
    values_YX = values_YX[np.ix_(*positions)]
    if (values_YX < -SHARE_NOISE).any() or (values_YX > 1 + SHARE_NOISE).any():
        raise DataError(
            f"{path}: {key}: expected shares from 0 to 1, found {np.nanmin(values_YX):g} to {np.nanmax(values_YX):g}; write "
            f"{chosen} as a share of each cell, not in percent or as classes"
        )
    result: BoolArray = values_YX >= LAND
    return result


def _positions(wanted: Floats, present: Floats) -> Integers:
    """Position of each wanted coordinate, -1 if none is near."""
    distance = np.abs(wanted[:, None] - present[None, :])
    position = distance.argmin(axis=1).astype(np.int64)
    return np.where(distance.min(axis=1) < 1e-3, position, -1)
