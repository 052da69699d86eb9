"""Keys of the data and of the variables derived from them: `[data]`, `[regions]` and `[features]`."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from llueve.config.section import TEN_YEARS, Moment, Section
from llueve.quantities.catalogue import meaning_of

Statistic = Literal["mean", "std", "sum", "min", "max"]
Hours = Annotated[float, Field(gt=0, le=TEN_YEARS)]


class DataConfig(Section):
    """Path of the data, and how to read them (`[data]`). Keys of an ERA5 archive are refused for a table."""

    path: str
    """File with the data: an absolute path, one relative to the configuration file, or `package:NAME/FILE` for a file of
    the Python package llueve or vega_datasets. An ERA5 archive may also be a folder, a pattern such as `era5/2023-*.nc`,
    or the address of a store."""
    more_paths: tuple[str, ...] = ()
    """Further files, folders or patterns of the same ERA5 archive. They are read together with `path`."""
    format: Literal["auto", "csv", "parquet", "openmeteo", "ghcn", "era5"] = "auto"
    """Format of the data; `auto` takes it from its first bytes. `ghcn` also reads a folder or a pattern of `.dly` files."""
    accumulation: Literal["auto", "previous_step", "from_00utc"] = "auto"
    """Hours that an accumulated ERA5 value sums. `previous_step`: the hour up to its time (ERA5). `from_00utc`: all hours
    since 00 UTC (ERA5-Land). `auto` takes it from the files and their values; it refuses an archive that leaves it open."""
    cells: Literal["all", "land"] = "all"
    """Cells of an ERA5 grid that enter the mean of a region: all of them, or those with at least half land."""
    land_mask: str | None = None
    """NetCDF file with the share of land (0 to 1) of a cell, for `cells = "land"`. Not set: the archive's `lsm` is used."""
    surroundings_degrees: float | None = Field(None, ge=0.5, le=30)
    """Width of the boxes whose means over an ERA5 archive become further sites, which the model sees but never forecasts,
    such as 2.5. It divides 360. Not set: the regions alone are sites."""
    start: Moment | None = None
    """First time to read from an ERA5 archive, UTC, as the files stamp it. Not set: the first time of the archive."""
    end: Moment | None = None
    """End of the times to read from an ERA5 archive, UTC; itself not read. Not set: the archive is read to its end."""
    dask: str | None = None
    """Address of a dask cluster, as `tcp://10.0.0.5:8786`, whose workers see the files. Not set: this machine reads it."""
    site: str | None = None
    """Column with the name of the site. Not set: the whole table is one site, named by `site_name`."""
    site_name: str = Field("site", min_length=1)
    """Name of the site of a table without a column of sites."""
    time: str = "time"
    """Column with the time."""
    time_format: str | None = None
    """Format of the times as in `strptime`, such as `%d.%m.%Y %H:%M`. Not set: the times are ISO 8601."""
    time_zone: str = "UTC"
    """Time zone of times without an offset, such as `Europe/Stockholm`."""
    step_hours: float | None = Field(None, gt=0, le=TEN_YEARS)
    """Step between two times, in hours. Not set: the step that the times themselves have."""
    missing: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "null", "None")
    """Texts of cells that mean "not observed". A list replaces the default list."""
    sentinels: tuple[float, ...] = ()
    """Numbers that mean "not observed", such as -9999."""
    infinite: Literal["error", "missing"] = "error"
    """Treatment of infinite numbers: `error` refuses the data, `missing` reads them as "not observed"."""
    duplicates: Literal["error", "first", "mean"] = "error"
    """Treatment of rows with the same site and time: `error` refuses the data, `first` keeps one, `mean` takes the mean."""
    exclude: tuple[str, ...] = ()
    """Columns that do not become variables, above all those that hold the future. The label column is always excluded."""
    variables: tuple[str, ...] | None = None
    """Columns that become variables. Not set: all columns that are not excluded."""
    wind_directions: tuple[str, ...] = ()
    """Columns with wind directions, as compass points (N, NNE …) or degrees. Each becomes a sine and a cosine."""
    categories: dict[str, Literal["one-hot", "static"]] = Field(default_factory=dict)
    """Text columns by name. `one-hot` makes a 0/1 variable for each value, `static` a fact of the site, constant in time."""
    units: dict[str, str] = Field(default_factory=dict)
    """Unit of each column by name, such as `mm`. A header such as `rain [mm]` gives the unit as well."""
    quantities: dict[str, str] = Field(default_factory=dict)
    """Physical quantity of each variable by name, such as `air_temperature`, or `none`. It overrules what llueve reads or
    guesses; docs/quantities.md lists the names."""
    positions: str | None = None
    """Table with columns site, latitude (°N) and longitude (°E). Not set: the positions that the data hold."""
    position_columns: tuple[str, str] | None = None
    """Columns of a table with the latitude (°N) and longitude (°E) of the site, such as `["latitude", "longitude"]`. They do
    not become variables. Not set: only some formats, such as ERA5, hold positions."""
    seen_only: tuple[str, ...] = ()
    """Sites, by name or by a pattern such as `buoy_*`, that the model sees but never forecasts. They need no outcome."""
    accumulation_hours: dict[str, float] = Field(default_factory=dict)
    """Hours that each value of a precipitation column sums, by column. A column that is not named sums one step."""
    stamps: Literal["start", "end"] | None = None
    """End of the `accumulation_hours` that the times of an ERA5 archive mark; daily sums mostly mark the start. Not set:
    allowed only without `accumulation_hours`."""

    @field_validator("quantities")
    @classmethod
    def _known_quantities(cls, quantities: dict[str, str]) -> dict[str, str]:
        for name, text in quantities.items():
            try:
                meaning_of(text)
            except ValueError as error:
                raise ValueError(f"{name[:60]}: {error}") from error
        return quantities

    @model_validator(mode="after")
    def _whole_boxes(self) -> Self:
        degrees = self.surroundings_degrees
        if degrees is not None and abs(360 / degrees - round(360 / degrees)) > 1e-6:
            raise ValueError(f"surroundings_degrees = {degrees:g}: expected a width that divides 360, such as 2.5 or 5")
        return self

    @model_validator(mode="after")
    def _one_source_of_positions(self) -> Self:
        if self.positions is not None and self.position_columns is not None:
            raise ValueError("give positions (a table) or position_columns (columns of the data), not both")
        return self


class RegionConfig(Section):
    """Cells of an ERA5 grid that make one site (`[regions.NAME]`): exactly one of box, point, polygon or mask."""

    box: tuple[float, float, float, float] | None = None
    """North, west, south and east edge in degrees; across the date line if west > east. Not set: another key gives cells."""
    point: tuple[float, float] | None = None
    """Latitude and longitude in degrees; the region is the nearest cell. Not set: another key gives the cells."""
    polygon: str | None = None
    """GeoJSON file; the region is every cell with its centre inside. Not set: another key gives the cells."""
    feature: str | None = None
    """Id, or value of a property, of the one feature of the polygon file to use. Not set: all features of the file."""
    mask: str | None = None
    """NetCDF file on the archive's grid; the region is each cell of at least 0.5. Not set: another key gives the cells."""
    variable: str | None = None
    """Variable of the mask file. Not set: its only variable, or its land-sea mask."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in ("box", "point", "polygon", "mask") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of box, point, polygon, mask; found {' and '.join(given) or 'none'}")
        for key, owner in (("feature", "polygon"), ("variable", "mask")):
            if getattr(self, key) is not None and getattr(self, owner) is None:
                raise ValueError(f"{key} belongs to {owner}")
        north, west, south, east = self.box or (1.0, 0.0, 0.0, 1.0)
        latitude, longitude = self.point or (0.0, 0.0)
        if not (-90 <= south < north <= 90):
            raise ValueError(
                f"box is [north, west, south, east], 90 ≥ north > south ≥ -90; found {list(self.box or ())}"
            )
        degrees = (west, east, longitude)
        if west == east or abs(east - west) > 360 or min(degrees) < -180 or max(degrees) > 360:
            raise ValueError("longitudes lie within -180 … 360, and the west of a box differs from its east")
        if abs(latitude) > 90:
            raise ValueError(f"point is [latitude, longitude], with a latitude from -90 to 90; found {latitude:g}")
        return self


class Rolling(Section):
    """One statistic of a variable over the last hours (an entry of `features.rolling`)."""

    variable: str
    """Name of the variable."""
    hours: Hours
    """Hours up to and including the variable's own time; a whole number of steps."""
    statistic: Statistic
    """Statistic over these hours; `std` is the standard deviation of the population."""


class FeaturesConfig(Section):
    """Variables derived from those of the data (`[features]`). Each uses values at or before its own time only."""

    wind: dict[str, tuple[str, str]] = Field(default_factory=dict)
    """New name and its components, eastward and northward. `wind10 = ["u10", "v10"]` makes wind10_speed, wind10_from_sin
    and wind10_from_cos."""
    dewpoint_spread: dict[str, tuple[str, str]] = Field(default_factory=dict)
    """New name and its two variables, temperature and dewpoint, in K or °C. The result is their difference in K."""
    relative_humidity: dict[str, tuple[str, str]] = Field(default_factory=dict)
    """New name and its two variables, temperature and dewpoint, in K or °C. The result is in percent."""
    tendency_hours: dict[str, tuple[Hours, ...]] = Field(default_factory=dict)
    """Variable and the hours over which to take its change. `sp = [3, 24]` makes sp_change_3h and sp_change_24h."""
    lag_hours: dict[str, tuple[Hours, ...]] = Field(default_factory=dict)
    """Variable and the hours back at which to take its value. `tp = [24]` makes tp_lag_24h."""
    rolling: tuple[Rolling, ...] = ()
    """Statistics over the last hours. `{ variable = "tp", hours = 168, statistic = "sum" }` makes tp_sum_168h."""
    neighbours: int = Field(0, ge=0, le=50)
    """Number of nearest sites whose variables each site receives, as tp_near1, tp_near2 and so on."""
    neighbour_variables: tuple[str, ...] | None = None
    """Variables to take from the nearest sites. Not set: all variables."""
