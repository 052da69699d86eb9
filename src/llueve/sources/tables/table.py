"""Tables as panels: `read_table`, for CSV, Parquet, Open-Meteo answers and GHCN-Daily files."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import xarray as xr

from llueve.config import DataConfig, TargetConfig
from llueve.errors import DataError, listed
from llueve.panel import Finding, check_panel
from llueve.sources.names_and_units import unknown_name
from llueve.sources.tables.columns import (
    Times,
    Variable,
    category_column,
    label_column,
    number_column,
    wind_column,
    without_noise,
)
from llueve.sources.tables.ghcn import is_ghcn, load_ghcn
from llueve.sources.tables.openmeteo import is_openmeteo, load_openmeteo
from llueve.sources.tables.positions import column_positions
from llueve.sources.tables.raw_table import RawTable, load_table
from llueve.sources.tables.site_names import spelling_findings
from llueve.sources.tables.time_axis import PanelAxes, panel_axes, read_sites, read_times


def read_table(
    data: DataConfig,
    target: TargetConfig | None,
    *,
    require_label: bool = True,
    known_categories: Mapping[str, Sequence[str]] | None = None,
) -> xr.Dataset:
    """Read a table, an Open-Meteo answer or GHCN-Daily files into a panel.

    Every row becomes one (site, time). Times become UTC on one regular axis; skipped steps become NaN. Nothing is guessed:
    a cell that is not a number and not configured as something else is refused with its row.

    Args:
        data: path and settings of the table.
        target: names the label column or the precipitation column; None if nothing is forecast.
        require_label: False for a prediction, which may lack the label column and those of `data.exclude`.
        known_categories: values of the trained model by column of `data.categories`; other values count as missing.

    Returns:
        The checked panel, float32, with `attrs` step_hours (hours), source, findings, categories (values by column, for
        `known_categories`), and sites_in_file (in the order of the file).

    Raises:
        DataError: the file cannot be read into a correct panel; the message says where and what to do.
    """
    table, data = _load(data)
    _check_names(table, data, target, require_label)
    times, sites = read_times(table, data), read_sites(table, data)
    about_sites = spelling_findings(table, data, sites.values)
    axes, about_times = panel_axes(table, data, times, sites)
    arrays, categories, about_columns = _features(table, data, target, axes, times, known_categories)
    _set_accumulation(arrays, table, data, target, axes.step_hours)
    if target is not None and target.label is not None and target.label in table.frame:
        label = label_column(table, data, target, target.label)
        array = _by_time(axes, label)
        array.attrs.update(role="label", classes=list(target.classes))
        _add(arrays, table, target.label, label.name, array)
    coords: dict[str, object] = {
        "site": np.array(axes.sites, dtype=str),
        "time": axes.times,
        "recorded": (("site", "time"), axes.recorded()),
    }
    places = table.locations if data.position_columns is None else column_positions(table, data, times, sites)
    if all(site in places for site in axes.sites):
        for name, unit in (("latitude", "degrees_north"), ("longitude", "degrees_east"), ("elevation_m", "m")):
            coords[name] = ("site", [getattr(places[site], name) for site in axes.sites], {"units": unit})
    panel = xr.Dataset(arrays, coords)
    panel.attrs = {
        "step_hours": axes.step_hours,
        "source": data.path,
        "findings": (*table.findings, *about_sites, *about_times, *about_columns),
        "categories": categories,
        "evidence": _evidence(arrays, table),
        "sites_in_file": [axes.sites[code] for code in dict.fromkeys(axes.site_of_row.tolist())],
    }
    return check_panel(panel)


def _load(data: DataConfig) -> tuple[RawTable, DataConfig]:
    """The table and its settings, by the format of the file; `auto` goes by the first bytes."""
    kind = data.format
    if kind == "auto":
        start = b""
        with suppress(OSError), Path(data.path).open("rb") as file:  # `load_table` reports a file that cannot be opened
            start = file.read(4096)
        kind = "openmeteo" if is_openmeteo(start) else "ghcn" if is_ghcn(start) else kind
    if kind == "openmeteo":
        return load_openmeteo(data)
    return load_ghcn(data) if kind == "ghcn" else (load_table(data), data)


def _features(
    table: RawTable,
    data: DataConfig,
    target: TargetConfig | None,
    axes: PanelAxes,
    times: Times,
    known: Mapping[str, Sequence[str]] | None,
) -> tuple[dict[str, xr.Variable], dict[str, list[str]], list[Finding]]:
    """The features by name, the values of each category column, and findings."""
    arrays: dict[str, xr.Variable] = {}
    categories: dict[str, list[str]] = {}
    findings: list[Finding] = []
    directions = frozenset(data.wind_directions)
    sums = {*data.accumulation_hours, *(() if target is None or target.variable is None else (target.variable,))}
    for name in _feature_columns(table, data, target):
        kind = data.categories.get(name)
        if kind is not None:
            variables, categories[name], found = category_column(table, name, data, times, known)
        else:
            read = wind_column if name in directions else number_column
            variables, found = read(table, name, data, times)
        findings += found
        for variable in variables:
            variable, found = without_noise(variable, times, is_sum=name in sums)
            findings += found
            array = _by_site(axes, variable, table, name) if kind == "static" else _by_time(axes, variable)
            _add(arrays, table, name, variable.name, array)
    return arrays, categories, findings


def _feature_columns(table: RawTable, data: DataConfig, target: TargetConfig | None) -> list[str]:
    never = {data.time, *data.exclude, *(data.position_columns or ())} | ({data.site} if data.site else set())
    if target is not None and target.label is not None:
        never.add(target.label)
    if wrong := [name for name in data.variables or () if name in never]:
        raise DataError(
            f"{table.source}: data.variables names {listed(wrong)}, but the site, the time, the label and the "
            "columns of data.exclude are never features; remove them from data.variables"
        )
    chosen = set(table.frame.columns if data.variables is None else data.variables) - never
    return [str(name) for name in table.frame.columns if name in chosen]


def _add(arrays: dict[str, xr.Variable], table: RawTable, column: str, name: str, array: xr.Variable) -> None:
    reserved = name in ("site", "time", "recorded")
    if reserved or name in arrays:
        taken = "a coordinate of the panel" if reserved else "another variable"
        raise DataError(
            f"{table.source}: column {column!r} would make the variable {name!r}, which is the name of {taken}; "
            "rename the column, or leave it out with data.exclude"
        )
    arrays[name] = array


def _by_time(axes: PanelAxes, variable: Variable) -> xr.Variable:
    attrs = {"units": variable.units} if variable.units else {}
    return xr.Variable(("site", "time"), axes.place(variable.values, variable.averaged), attrs, fastpath=True)


def _by_site(axes: PanelAxes, variable: Variable, table: RawTable, column: str) -> xr.Variable:
    """A static variable by site; refused if a row lacks it or if it changes at a site."""
    by_site = variable.values[np.unique(axes.site_of_row, return_index=True)[1]]
    missing = np.isnan(variable.values)
    changed = ~missing & (variable.values != by_site[axes.site_of_row])
    for wrong, why in (
        (missing, "so every row needs it; it is missing at {}; fill it in, or make it one-hot"),
        (changed, "so it has one value per site; it changes at {}; correct these rows, or make it one-hot"),
    ):
        if wrong.any():
            sites = sorted({axes.sites[code] for code in axes.site_of_row[wrong].tolist()})
            where = f"{listed(sites)} ({table.at(wrong)})"
            raise DataError(f"{table.source}: column {column!r} is static (data.categories), {why.format(where)}")
    return xr.Variable(("site",), by_site.astype(np.float32))


def _set_accumulation(
    arrays: dict[str, xr.Variable], table: RawTable, data: DataConfig, target: TargetConfig | None, step_hours: float
) -> None:
    """Set the hours of each sum of precipitation: as configured, else one step for the variable of the target."""
    hours = dict(data.accumulation_hours)
    if target is not None and target.variable is not None:
        hours.setdefault(target.variable, step_hours)
        if target.variable not in arrays:
            raise DataError(
                f"{table.source}: target.variable {target.variable!r} is not among the features ({listed(list(arrays), 10)}); it "
                "must be a column of numbers that is in data.variables and not in data.exclude"
            )
    for name, value in hours.items():
        if name in arrays:
            arrays[name].attrs["accumulation_hours"] = value


def _evidence(names: Iterable[str], table: RawTable) -> dict[str, dict[str, object]]:
    """By variable, the CF standard name that the file gives, and the name that its format defines."""
    evidence: dict[str, dict[str, object]] = {}
    for name in names:
        if standard_name := table.standard_names.get(name):
            evidence.setdefault(name, {})["standard_name"] = standard_name
        if table.vocabulary is not None:
            evidence.setdefault(name, {})["defined_name"] = (table.vocabulary, name)
    return evidence


def _check_names(table: RawTable, data: DataConfig, target: TargetConfig | None, require_label: bool) -> None:
    """Refuse a configured name that is not a column, and a column with two roles."""
    label = () if target is None or target.label is None else (target.label,)
    named: dict[str, Sequence[str]] = {
        "data.time": (data.time,),
        "data.site": () if data.site is None else (data.site,),
        "data.position_columns": data.position_columns or (),
        "data.exclude": data.exclude,
        "data.variables": data.variables or (),
        "data.wind_directions": data.wind_directions,
        "data.categories": [*data.categories],
        "data.units": [*data.units],
        "data.accumulation_hours": [*data.accumulation_hours],
        "target.label": label,
        "target.variable": () if target is None or target.variable is None else (target.variable,),
    }
    columns = dict.fromkeys(str(name) for name in table.frame.columns)
    optional = set() if require_label else {*label, *data.exclude}
    needed = ("data.time", "data.site", "data.position_columns", "data.variables", "target.variable")
    for key, names in named.items():
        for name in names:
            if name not in columns and (key in needed or name not in optional):
                raise unknown_name(table.source, key, name, "columns", [*columns])
    if both := [name for name in data.wind_directions if name in data.categories]:
        raise DataError(f"{table.source}: {listed(both)} is in data.wind_directions and data.categories; keep one")
    if data.site == data.time:
        raise DataError(f"{table.source}: data.site and data.time both name {data.time!r}; they are two columns")
