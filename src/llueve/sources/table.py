"""Tables as panels: `read_table`, for CSV, Parquet, Open-Meteo answers and GHCN-Daily files."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import xarray as xr

from llueve.config import DataConfig, TargetConfig
from llueve.errors import DataError, listed
from llueve.panel import Finding, check_panel
from llueve.sources.columns import Times, Variable, category_column, label_column, number_column, wind_column
from llueve.sources.files import Table, load_table
from llueve.sources.ghcn import is_ghcn, load_ghcn
from llueve.sources.grid import Grid, make_grid, read_sites, read_times
from llueve.sources.openmeteo import is_openmeteo, load_openmeteo
from llueve.sources.rows import Place, Rows

LOADERS: dict[str, Callable[[DataConfig], Rows]] = {"openmeteo": load_openmeteo, "ghcn": load_ghcn}
"""Formats whose sites and times need no columns to be named."""


def read_table(
    data: DataConfig,
    target: TargetConfig | None,
    *,
    require_label: bool = True,
    known_categories: Mapping[str, Sequence[str]] | None = None,
) -> xr.Dataset:
    """Read a table, or a file of a format that is rows in its own way, into a panel.

    Every row becomes one (site, time); times become UTC on one regular axis, and skipped steps become NaN. Nothing is
    guessed: what is neither a number nor configured as something else is refused with its rows.

    Args:
        data: where the file is and how to read it.
        target: what is forecast; names the label column or the precipitation column. None has neither.
        require_label: False when predicting: the label column and those of `data.exclude`, which tell the future, need
            not be there.
        known_categories: for each column of `data.categories` the values that a model was trained with. They make the
            variables; other values in this file count as missing, and are among the findings.

    Returns:
        The checked panel, float32, with `attrs` step_hours (hours), source, findings, categories (the values of
        each category column, to be handed back as `known_categories`), and sites_in_file (in the order of the file).

    Raises:
        DataError: the file cannot be read into a correct panel; the message says where and what to do.
    """
    rows = _load(data)
    table, data = rows.table, rows.data
    _check_names(table, data, target, require_label)
    times, sites = read_times(table, data), read_sites(table, data)
    grid, findings = make_grid(table, data, times, sites)
    findings = [*rows.findings, *findings]
    arrays: dict[str, xr.DataArray] = {}
    categories: dict[str, list[str]] = {}
    for name in _feature_columns(table, data, target):
        found, values = _add_feature(arrays, table, name, data, grid, times, known_categories)
        findings += found
        if values is not None:
            categories[name] = values
    _set_accumulation(arrays, table, data, target, grid.step_hours)
    if target is not None and target.label is not None and target.label in table.frame:
        label = label_column(table, data, target, target.label)
        array = _by_time(grid, label).assign_attrs(role="label", classes=list(target.classes))
        _add(arrays, table, target.label, label.name, array)
    recorded = np.zeros(len(grid.sites) * len(grid.times), dtype=np.bool_)
    recorded[grid.cell_of_row] = True
    coords = {
        "site": np.array(grid.sites, dtype=str),
        "time": grid.times,
        "recorded": (("site", "time"), recorded.reshape(len(grid.sites), -1)),
        **_place_coordinates(grid.sites, rows.places),
    }
    panel = xr.Dataset(arrays, coords)
    panel.attrs = {
        "step_hours": grid.step_hours,
        "source": data.path,
        "findings": tuple(findings),
        "categories": categories,
        "sites_in_file": [grid.sites[code] for code in dict.fromkeys(grid.site_of_row.tolist())],
    }
    return check_panel(panel)


def _load(data: DataConfig) -> Rows:
    """The rows of the file, by its format; `auto` goes by the first bytes."""
    kind = data.format
    if kind == "auto":
        start = b""
        with (
            suppress(OSError),
            Path(data.path).open("rb") as file,
        ):  # what cannot be opened is told by the table's loader
            start = file.read(4096)
        kind = "openmeteo" if is_openmeteo(start) else "ghcn" if is_ghcn(start) else kind
    loader = LOADERS.get(kind)
    return Rows(load_table(data), data) if loader is None else loader(data)


def _place_coordinates(
    sites: list[str], places: Mapping[str, Place]
) -> dict[str, tuple[str, list[float], dict[str, str]]]:
    """Latitude, longitude and elevation by site, where the format tells those of every site."""
    if not all(site in places for site in sites):
        return {}
    units = {"latitude": "degrees_north", "longitude": "degrees_east", "elevation_m": "m"}
    return {
        name: ("site", [getattr(places[site], name) for site in sites], {"units": unit}) for name, unit in units.items()
    }


def _feature_columns(table: Table, data: DataConfig, target: TargetConfig | None) -> list[str]:
    """Columns that become features, in the order of the file."""
    never = {data.time, *data.exclude} | ({data.site} if data.site else set())
    if target is not None and target.label is not None:
        never.add(target.label)
    wrong = [name for name in data.variables or () if name in never]
    if wrong:
        raise DataError(
            f"{table.source}: data.variables names {listed(wrong)}, but the site, the time, the label and the "
            "columns of data.exclude are never features; remove them from data.variables"
        )
    chosen = set(table.frame.columns if data.variables is None else data.variables) - never
    return [str(name) for name in table.frame.columns if name in chosen]


def _add_feature(
    arrays: dict[str, xr.DataArray],
    table: Table,
    name: str,
    data: DataConfig,
    grid: Grid,
    times: Times,
    known: Mapping[str, Sequence[str]] | None,
) -> tuple[list[Finding], list[str] | None]:
    """Read one column into `arrays`; return its findings and, if it is a category, its values."""
    kind = data.categories.get(name)
    findings: list[Finding] = []
    values: list[str] | None = None
    if kind is not None:
        variables, values, findings = category_column(table, name, data, times, known)
    else:
        read = wind_column if name in data.wind_directions else number_column
        variables, findings = read(table, name, data, times)
    for variable in variables:
        array = _by_site(grid, variable, table, name) if kind == "static" else _by_time(grid, variable)
        _add(arrays, table, name, variable.name, array)
    return findings, values


def _add(arrays: dict[str, xr.DataArray], table: Table, column: str, name: str, array: xr.DataArray) -> None:
    """Add a variable under a name that nothing else has."""
    taken = (
        "a coordinate of the panel"
        if name in ("site", "time", "recorded")
        else "another variable"
        if name in arrays
        else None
    )
    if taken:
        raise DataError(
            f"{table.source}: column {column!r} would make the variable {name!r}, which is the name of {taken}; "
            "rename the column, or leave it out with data.exclude"
        )
    arrays[name] = array


def _by_time(grid: Grid, variable: Variable) -> xr.DataArray:
    """A variable by (site, time)."""
    attrs = {"units": variable.units} if variable.units else {}
    return xr.DataArray(grid.place(variable.values, variable.averaged), dims=("site", "time"), attrs=attrs)


def _by_site(grid: Grid, variable: Variable, table: Table, column: str) -> xr.DataArray:
    """A variable by site alone, refused where it is missing or changes inside a site."""
    missing = np.isnan(variable.values)
    if missing.any():
        sites = sorted({grid.sites[code] for code in grid.site_of_row[missing].tolist()})
        raise DataError(
            f"{table.source}: column {column!r} is static (data.categories), so every row needs it; it is missing at "
            f"{listed(sites)} ({table.at(missing)}); fill it in, or make it one-hot"
        )
    _, first = np.unique(grid.site_of_row, return_index=True)
    by_site = variable.values[first]
    changed = np.flatnonzero(variable.values != by_site[grid.site_of_row])
    if len(changed):
        sites = sorted({grid.sites[code] for code in grid.site_of_row[changed].tolist()})
        raise DataError(
            f"{table.source}: column {column!r} is static (data.categories), so it has one value per site; it "
            f"changes at {listed(sites)} ({table.at(changed)}); make it one-hot, or mend these rows"
        )
    return xr.DataArray(by_site.astype(np.float32), dims=("site",))


def _set_accumulation(
    arrays: dict[str, xr.DataArray], table: Table, data: DataConfig, target: TargetConfig | None, step_hours: float
) -> None:
    """Say over how many hours each precipitation variable sums; one step where the configuration does not tell."""
    hours = dict(data.accumulation_hours)
    if target is not None and target.variable is not None:
        hours.setdefault(target.variable, step_hours)
        if target.variable not in arrays:
            raise DataError(
                f"{table.source}: target.variable {target.variable!r} is not among the features "
                f"({listed(list(arrays), 10)}); it must be a column of numbers that is in data.variables and not in "
                "data.exclude"
            )
    for name, value in hours.items():
        if name in arrays:
            arrays[name].attrs["accumulation_hours"] = value


def _check_names(table: Table, data: DataConfig, target: TargetConfig | None, require_label: bool) -> None:
    """Every column that the configuration names is in the file, and means one thing."""
    label = () if target is None or target.label is None else (target.label,)
    named: dict[str, Sequence[str]] = {
        "data.time": (data.time,),
        "data.site": () if data.site is None else (data.site,),
        "data.exclude": data.exclude,
        "data.variables": data.variables or (),
        "data.wind_directions": data.wind_directions,
        "data.categories": tuple(data.categories),
        "data.units": tuple(data.units),
        "data.accumulation_hours": tuple(data.accumulation_hours),
        "target.label": label,
        "target.variable": () if target is None or target.variable is None else (target.variable,),
    }
    columns = [str(name) for name in table.frame.columns]
    optional = set() if require_label else {*label, *data.exclude}
    needed = ("data.time", "data.site", "data.variables", "target.variable")
    for key, names in named.items():
        for name in names:
            if name not in columns and (key in needed or name not in optional):
                close = difflib.get_close_matches(name, columns, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise DataError(
                    f"{table.source}: {key} names {name!r}, which is not a column; the columns are "
                    f"{listed(columns, 40)}{hint}"
                )
    both = [name for name in data.wind_directions if name in data.categories]
    if both:
        raise DataError(
            f"{table.source}: {listed(both)} is in data.wind_directions and in data.categories; keep one of them"
        )
    if data.site == data.time:
        raise DataError(f"{table.source}: data.site and data.time both name {data.time!r}; they are two columns")
