"""Read a table without a configuration: the columns of time, site and position, and the weather, by their names."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import xarray as xr

from llueve.config import DataConfig
from llueve.errors import DataError, listed
from llueve.panel import known_quantities
from llueve.paths import path_problem
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES
from llueve.quantities.name_meanings import look_up
from llueve.sources.findings import finding_at
from llueve.sources.identify import with_quantities
from llueve.sources.tables.ghcn import is_ghcn
from llueve.sources.tables.openmeteo import is_openmeteo
from llueve.sources.tables.raw_table import column_names
from llueve.sources.tables.table import read_table

TIMES, SITES = ("time", "date", "datetime", "timestamp"), ("site", "station")
LATITUDES, LONGITUDES = ("latitude", "lat"), ("longitude", "lon")
"""Names of columns, the first choice first; upper and lower case are alike."""
DIRECTION = "wind_from_direction"
SENTINELS = (-9999.9, -9999.0, -999.9, -999.0, -32768.0)
"""Numbers that mean "not observed": no quantity of the encoder has such a value in any unit."""
USED = {
    *ENCODER_QUANTITIES, DIRECTION, "specific_humidity", "rainfall_amount", "snowfall_amount",
    "convective_precipitation_amount", "stratiform_precipitation_amount",
}  # fmt: skip
"""Quantities of the weather encoder, and those from which they can be computed."""


def read_plain_table(path: str) -> xr.Dataset:
    """Read a CSV or Parquet table, or an Open-Meteo answer, into a panel with the quantities of the weather encoder.

    Columns that name no such quantity are left out. Times without an offset are UTC. Usual marks of missing cells, such as
    -9999, and impossible values count as missing; the findings of the panel name the latter.

    Raises:
        DataError: the file cannot be read into a correct panel, or it has no column of time or of weather.
    """
    if problem := path_problem(path):
        raise DataError(f"{path[:100]!r}: {problem}")
    if not path.startswith("package:") and not Path(path).exists():
        raise DataError(f"{path}: no such file; check the path")
    data = _settings(path)
    try:
        panel = read_table(data, None, require_label=False)
    except DataError as error:
        raise DataError(
            f"{error}. Here the table is read without a configuration, so no key can be set: change the table instead"
        ) from error
    return _without_impossible(with_quantities(panel, {}, data.wind_directions))


def _without_impossible(panel: xr.Dataset) -> xr.Dataset:
    """The panel with NaN where a value lies outside of the range of its quantity, and a finding for each such variable."""
    hours, findings, cleaned = float(panel.attrs["step_hours"]), [], {}
    for name, known in known_quantities(panel).items():
        quantity = known.meaning.quantity
        if known.meaning.part is not None or (converted := quantity.conversion(known.units, hours)) is None:
            continue
        variable = panel.variables[name]
        values = variable.values * converted[0] + converted[1]
        margin = 1e-5 * max(abs(quantity.least), abs(quantity.largest))  # float32
        wrong = (values < quantity.least - margin) | (values > quantity.largest + margin)
        if wrong.any():
            message = (
                f"{name}: {wrong.sum()} values, such as {variable.values[wrong][0]:g} {known.units}, are impossible for "
                f"{quantity.name}; they count as missing"
            )
            times = panel["time"].values[wrong.any(axis=0)]
            findings.append(finding_at("impossible", "warning", message, times, name))
            cleaned[name] = (variable.dims, np.where(wrong, np.float32(np.nan), variable.values), variable.attrs)
    return panel.assign(cleaned).assign_attrs(findings=(*panel.attrs["findings"], *findings))


def _settings(path: str) -> DataConfig:
    """The settings of a table by the names of its columns; a format that names its own parts needs none."""
    start = b""
    with suppress(OSError), Path(path).open("rb") as file:  # `column_names` reports a file that cannot be opened
        start = file.read(4096)
    if is_openmeteo(start) or is_ghcn(start):
        return DataConfig(path=path)
    columns = column_names(path)
    if (time := _first(columns, TIMES)) is None:
        raise DataError(f"{path}: has no column named {', '.join(TIMES)}, found {listed(columns, 12)}; rename one")
    latitude, longitude = _first(columns, LATITUDES), _first(columns, LONGITUDES)
    weather = tuple(dict.fromkeys(name for name in columns if _is_weather(name)))
    if not weather:
        raise DataError(
            f"{path}: no column is named after a quantity of the weather encoder, found {listed(columns, 12)}; rename them, "
            "such as temperature [degC], humidity [%], pressure [hPa], wind_speed [m/s], rain [mm]"
        )
    return DataConfig(
        path=path,
        time=time,
        site=_first(columns, SITES),
        variables=weather,
        sentinels=SENTINELS,
        position_columns=None if latitude is None or longitude is None else (latitude, longitude),
        wind_directions=tuple(filter(_is_direction, weather)),
    )


def _first(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The column with the first of these names that the table has."""
    spelled = {column.lower(): column for column in reversed(columns)}
    return next((spelled[name] for name in names if name in spelled), None)


def _is_weather(column: str) -> bool:
    """True if the name of a column may mean a quantity of `USED`, as a value or an amount of its own time."""
    found = look_up(column)
    return found is not None and any(
        each.quantity.name in USED and each.statistic is None and each.clock is None for each in found.meanings
    )


def _is_direction(column: str) -> bool:
    """True if the name of a column means a wind direction and nothing else."""
    found = look_up(column)
    return found is not None and all(each.quantity.name == DIRECTION for each in found.meanings)
