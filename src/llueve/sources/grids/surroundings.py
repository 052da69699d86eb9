"""Surroundings of the regions of an archive: means over coarse boxes of the whole grid, as further sites that are only seen."""

import numpy as np

from llueve.errors import DataError
from llueve.panel import Finding
from llueve.sources.grids.regions import EDGE, MOST_SITES, CellGrid, Region, region_of


def surrounding_boxes(grid: CellGrid, degrees: float) -> tuple[list[Region], list[Finding]]:
    """Boxes of the whole grid, `degrees` wide in latitude and longitude, and a finding with their number.

    The centres of the boxes are whole multiples of `degrees`, which divides 360: a box is the same for every archive that
    covers it. A cell on the edge of two boxes belongs to the northern or eastern one. Boxes at the border of the grid may
    be covered in part.

    Raises:
        DataError: the grid has more than 500 boxes.
    """
    around = round(360.0 / degrees)
    row_Y = np.floor((grid.latitude + EDGE) / degrees + 0.5).astype(np.int64)
    column_X = np.floor((grid.longitude + EDGE) / degrees + 0.5).astype(np.int64) % around
    box_YX = row_Y[:, None] * around + column_X[None, :]
    numbers, inverse = np.unique(box_YX, return_inverse=True)
    if len(numbers) > MOST_SITES:
        raise DataError(
            f"data.surroundings_degrees = {degrees:g}: {grid.source} has {len(numbers):,} boxes of this size, expected at most "
            f"{MOST_SITES}; choose larger boxes, or cut the files to the area around the regions ({grid.extent})"
        )
    order = np.argsort(inverse.ravel(), kind="stable")
    ends = np.bincount(inverse.ravel()).cumsum()[:-1]
    names = [_name(*divmod(int(number), around), degrees) for number in numbers]
    boxes = [region_of(grid, name, cells) for name, cells in zip(names, np.split(order, ends), strict=True)]
    sizes = [len(box.cells) for box in boxes]
    message = (
        f"{len(boxes)} boxes of {degrees:g}° around the regions, of {min(sizes)} to {max(sizes)} cells, are only seen"
    )
    return boxes, [Finding("surroundings", "info", message, count=len(boxes))]


def _name(row: int, column: int, degrees: float) -> str:
    """The name of a box by its centre, such as `surroundings 10.0S 75.0W`."""
    north, east = row * degrees, (column * degrees + 180.0) % 360.0 - 180.0
    digits = max(1, len(np.format_float_positional(degrees, trim="-").partition(".")[2]))
    north_text, east_text = (f"{abs(number):.{digits}f}" for number in (north, east))
    return f"surroundings {north_text}{'NS'[north < 0]} {east_text}{'EW'[east < 0]}"
