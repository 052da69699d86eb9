"""Where the table or archive is and how to read it: `[data]` and `[regions]`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from llueve.config.section import Moment, Section


class DataConfig(Section):
    """Where the table is and how to read it (`[data]`)."""

    path: str
    """File: absolute, relative to the configuration file, or `package:NAME/FILE` for one an installed package carries.
    An ERA5 archive may also be a folder, or a pattern such as `era5/2023-*.nc`."""
    more_paths: tuple[str, ...] = ()
    """Further files, folders or patterns of the same ERA5 archive."""
    format: Literal["auto", "csv", "parquet", "openmeteo", "ghcn", "era5"] = "auto"
    """`auto` goes by the file's first bytes; `ghcn` also takes a folder or a pattern of `.dly` files."""
    accumulation: Literal["auto", "previous_step", "from_00utc"] = "auto"
    """What an accumulated ERA5 value sums: the hour that ends at its time, or all hours since 00 UTC as in ERA5-Land.
    `auto` goes by what the files say of themselves and by the values, and refuses what neither can tell."""
    cells: Literal["all", "land"] = "all"
    """Cells of an ERA5 grid that enter a region's mean."""
    land_mask: str | None = None
    """NetCDF file with the share of land per cell (`lsm`), where the archive does not hold it."""
    start: Moment | None = None
    """First time to read of an ERA5 archive."""
    end: Moment | None = None
    """Exclusive end of the times to read of an ERA5 archive."""
    dask: str | None = None
    """Address of a dask cluster that reduces the archive, such as `tcp://10.0.0.5:8786`; without it, this machine."""
    site: str | None = None
    """Column that names the site; without one the whole table is a single site."""
    site_name: str = Field("site", min_length=1)
    """Name of that single site."""
    time: str = "time"
    """Column that holds the time."""
    time_format: str | None = None
    """`strptime` format; ISO 8601 without one."""
    time_zone: str = "UTC"
    """Zone of times that carry none."""
    step_hours: float | None = Field(None, gt=0)
    """Step of the panel in hours; without it, the step that the times themselves keep."""
    missing: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "null", "None")
    """Cell texts that mean "not observed"."""
    sentinels: tuple[float, ...] = ()
    """Numbers that mean "not observed", such as -9999."""
    infinite: Literal["error", "missing"] = "error"
    """What to do with infinite numbers."""
    duplicates: Literal["error", "first", "mean"] = "error"
    """What to do with several rows of one (site, time)."""
    exclude: tuple[str, ...] = ()
    """Columns that never become features, above all those that hold the future. The label column is always one."""
    variables: tuple[str, ...] | None = None
    """Columns that become features; without it, all that are not excluded."""
    wind_directions: tuple[str, ...] = ()
    """Columns of compass points (N, NNE …) or degrees: each becomes a sine and a cosine."""
    categories: dict[str, Literal["one-hot", "static"]] = Field(default_factory=dict)
    """Text columns: `one-hot` makes one 0/1 variable per value, `static` one per-site value that never changes."""
    units: dict[str, str] = Field(default_factory=dict)
    """Unit by column, such as `mm`; a header like `rain [mm]` says it too."""
    positions: str | None = None
    """Table with the columns site, latitude, longitude (degrees north and east), for what needs neighbours."""
    accumulation_hours: dict[str, float] = Field(default_factory=dict)
    """Hours over which a precipitation column sums, where that is not one step of the table."""
    stamps: Literal["start", "end"] | None = None
    """Which end of `accumulation_hours` the times of an ERA5 archive mark; daily sums mostly mark the start."""


class RegionConfig(Section):
    """Cells of a grid that make one site (`[regions]`): a box, the cell nearest to a point, a polygon, or a mask."""

    box: tuple[float, float, float, float] | None = None
    """North, west, south, east in degrees; a west that is greater than the east crosses the date line."""
    point: tuple[float, float] | None = None
    """Latitude and longitude; the nearest cell is taken."""
    polygon: str | None = None
    """GeoJSON file; cells with their centre inside."""
    feature: str | None = None
    """The one feature of that file whose id, or one of whose properties, is this text; without it, all of them."""
    mask: str | None = None
    """NetCDF file on the grid of the archive; cells with at least 0.5."""
    variable: str | None = None
    """Variable of the mask file, where it holds several."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in ("box", "point", "polygon", "mask") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of box, point, polygon, mask; found {' and '.join(given) or 'none'}")
        if self.feature is not None and self.polygon is None:
            raise ValueError("feature belongs to polygon")
        if self.variable is not None and self.mask is None:
            raise ValueError("variable belongs to mask")
        north, west, south, east = self.box or (1.0, 0.0, 0.0, 1.0)
        latitude, longitude = self.point or (0.0, 0.0)
        if not (-90 <= south < north <= 90):
            raise ValueError(
                f"box is [north, west, south, east] with 90 ≥ north > south ≥ -90, found {list(self.box or ())}"
            )
        degrees = (west, east, longitude)
        if west == east or abs(east - west) > 360 or min(degrees) < -180 or max(degrees) > 360:
            raise ValueError("longitudes lie within -180 … 360, and the west of a box differs from its east")
        if abs(latitude) > 90:
            raise ValueError(f"point is [latitude, longitude]; {latitude:g} is no latitude")
        return self
