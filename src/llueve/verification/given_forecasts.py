"""Verify anybody's forecasts: a table with outcomes, probabilities, and the probabilities of references.

Columns: `time` (issue time, ISO 8601, UTC unless it has an offset), `observed` (1 or 0), `probability` (0 to 1), and
`site` if there are several. Every further column holds the probabilities of a reference by its name; the one named
`climatology` is the reference of the Brier skill score. `predictions.csv` of a run has this form. Shapes: n rows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llueve.config import DataConfig, VerifyConfig
from llueve.errors import DataError, listed, shortened
from llueve.panel import minute
from llueve.samples.periods import FEW_EVENTS, PeriodWarning
from llueve.sources.tables.columns import Times
from llueve.sources.tables.raw_table import RawTable, load_table
from llueve.sources.tables.time_axis import EARLIEST, LATEST, read_sites
from llueve.verification.bootstrap import DateBlocks
from llueve.verification.forecasts import CLIMATOLOGY, Forecasts
from llueve.verification.verify import judged

SITE, TIME, OBSERVED, PROBABILITY = "site", "time", "observed", "probability"
OWN_NAMES = ("model", "constant")
"""Names of rows in the table of scores, which no reference may have."""
MOST_REFERENCES = 50
SEED = 0
"""Seed of the bootstrap."""


def verify_file(path: str | Path, settings: VerifyConfig) -> dict[str, Any]:
    """Verify the forecasts of a CSV or Parquet file: content as in `verification.json`, without what needs the training.

    Raises:
        DataError: the file cannot be read, lacks a column, holds a bad cell (the message names row and reason), or two rows
            have the same site and time.
    """
    forecasts = read_forecasts(path)
    blocks = DateBlocks.of(forecasts.issued_n, settings.block_days, None, settings.bootstrap, SEED)
    warnings = []
    if (few := forecasts.too_few) is not None:
        warnings.append(PeriodWarning(FEW_EVENTS, f"{few}; give more forecasts", int(forecasts.y_n.sum())))
    content = judged(forecasts, blocks, warnings)
    used = {"bootstrap": settings.bootstrap, "block_days": settings.block_days, "lags": None}
    return content | {"classes": None, "settings": used}


def read_forecasts(path: str | Path) -> Forecasts:
    """The forecasts of a file; `DataError` as for `verify_file`."""
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason}); give the path of a CSV or Parquet file") from error
    data = DataConfig(path=str(path))
    table = load_table(data)
    if SITE in table.frame:
        data = data.model_copy(update={"site": SITE})
        table = load_table(data)  # names of sites are unquoted only if their column is known
    _check_columns(table)
    sites, times = read_sites(table, data), _times(table)
    _refuse_repeats(table, sites.codes, times)
    names = [str(name) for name in table.frame if name not in (SITE, TIME, OBSERVED, PROBABILITY)]
    return Forecasts(
        name=Path(path).name,
        sites=sites.values,
        site_n=sites.codes.astype(np.intp),
        issued_n=times,
        y_n=_numbers(table, OBSERVED, "1 (the event happened) or 0").astype(np.int64),
        model_p=_numbers(table, PROBABILITY, "a probability from 0 to 1"),
        reference_p={name: _numbers(table, name, "a probability from 0 to 1") for name in names},
    )


def _check_columns(table: RawTable) -> None:
    names = list(table.frame)
    if absent := [name for name in (TIME, OBSERVED, PROBABILITY) if name not in names]:
        raise DataError(
            f"{table.source}: has no column {listed(absent)}, found {listed(names, 10)}; expected time, observed, probability, "
            f"and {SITE} if there are several; every further column is a reference, such as {CLIMATOLOGY}"
        )
    if own := [name for name in names if name in OWN_NAMES]:
        raise DataError(f"{table.source}: a reference cannot be named {listed(own)}; rename the column")
    if (count := len(names) - 3 - (SITE in names)) > MOST_REFERENCES:
        raise DataError(f"{table.source}: has {count} references, expected at most {MOST_REFERENCES}; remove columns")


def _times(table: RawTable) -> Times:
    """The issue times in UTC; the first cell that is not a time is named."""
    cells = table.frame[TIME]
    parsed = pd.to_datetime(cells.astype(str).str.strip(), format="ISO8601", errors="coerce", utc=True)
    times = parsed.dt.tz_localize(None).to_numpy(dtype="datetime64[us]")
    good = (times > EARLIEST) & (times < LATEST)  # False for NaT
    if not good.all():
        raise _bad_cells(table, TIME, good, "a time in ISO 8601, such as 2024-01-31T06:00, from 1678 to 2261")
    return times.astype("datetime64[ns]")


def _numbers(table: RawTable, name: str, expected: str) -> NDArray[np.float64]:
    """The numbers of one column, all of them within what is expected; the first bad cell is named."""
    cells = table.frame[name]
    values = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    good = (values == 0) | (values == 1) if name == OBSERVED else (values >= 0) & (values <= 1)
    if not good.all():
        raise _bad_cells(table, name, good, expected)
    return values


def _bad_cells(table: RawTable, name: str, good: NDArray[np.bool_], expected: str) -> DataError:
    """The error that names the first bad cell of a column, and counts the others."""
    at = int(np.argmin(good))
    more = f", and {count:,} more rows are wrong" if (count := int((~good).sum()) - 1) else ""
    note = "" if name in (TIME, OBSERVED, PROBABILITY) else f" (every column beside {PROBABILITY} is a reference)"
    return DataError(
        f"{table.source}: row {table.rows[at]}, column {name!r}: {shortened(str(table.frame[name].iloc[at]))} is not "
        f"{expected}{more}; correct or remove it{note}"
    )


def _refuse_repeats(table: RawTable, site_n: NDArray[np.int64], times: Times) -> None:
    """Two rows of one site and time would count one outcome twice."""
    repeated = pd.DataFrame({"site": site_n, "time": times}).duplicated(keep=False).to_numpy()
    if repeated.any():
        first = int(np.argmax(repeated))
        others = repeated & (site_n == site_n[first]) & (times == times[first])
        raise DataError(
            f"{table.source}: {table.at(others)} have the same site and time {minute(times[first])}; one forecast of each is "
            "expected: keep one of them, and give each lead time a file of its own"
        )
