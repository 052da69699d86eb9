"""Phases of El Niño-Southern Oscillation by month, to group forecasts after the event.

The index is a mean over three months around each month and is published later: it may group scores, never predict.

Reference: Trenberth 1997, Bulletin of the American Meteorological Society 78,
doi:10.1175/1520-0477(1997)078<2771:TDOENO>2.0.CO;2
"""

from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

TABLE = "enso_phases.txt"
"""File beside this module: one line per year with a letter per month. Its head gives source, rule and terms."""
PHASES = {"E": "El Niño", "N": "neutral", "L": "La Niña"}
UNKNOWN = "unknown"
"""Phase of a month outside of the table."""


def enso_phases(months: NDArray[np.datetime64]) -> list[str]:
    """The phase of each month: `El Niño`, `La Niña`, `neutral`, or `unknown` outside of 1950 to January 2026."""
    known = _table()
    return [known.get(str(month), UNKNOWN) for month in months.astype("datetime64[M]")]


@cache
def _table() -> dict[str, str]:
    """The phase of each known month, such as `1998-01`."""
    text = resources.files("llueve.verification").joinpath(TABLE).read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return {f"{year}-{month:02}": PHASES[letter] for year, row in lines for month, letter in enumerate(row, start=1)}
