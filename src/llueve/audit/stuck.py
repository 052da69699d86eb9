"""Stuck sensors: long runs of one value of a variable that otherwise varies. Shapes: S sites, T times."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llueve.audit.variable_cells import VariableCells
from llueve.panel import Finding, FloatArray

STUCK_STEPS = 10
"""Fewest equal values in a row for a stuck sensor."""
STUCK_HOURS = 24
"""Shortest time at one value for a stuck sensor."""
STUCK_VALUES = 20
"""Variables with fewer different values stay long at one value without a fault."""
STUCK_USUAL = 0.2
"""Share of a site's runs from which their value counts as usual there, as a dry day does."""
STUCK_END = 0.01
"""Share of a site's runs at either end of its range. Over the runs of all sites it is a tenth of that."""
USUAL_LENGTH = 2.0
"""Factor over the longest run that a site's other runs suggest, above which a run is stuck."""
SATURATED = 95.0
"""Relative humidity or cloud cover, percent, from which a sensor may stay at one value for days."""
RARE_FALLS = 0.05
"""Largest number of falls of a counter, as a share of its rises."""
LEAST_WINDOW, MOST_WINDOW = 3, 1000
"""Steps of a rolling window."""
SAMPLED_RISES = 200
"""Number of rises from which a rolling window is recognised."""
ROLLING_SHARE = 0.5
"""Share of the rises after which a rolling sum falls by the same amount one window later."""
NEAR_END = 1e-6
"""Share of the spread of all values within which a value is at an end: packing moves zeros by less."""


class _SiteRuns:
    """Runs of equal values at one site; each missing value is a run of its own."""

    def __init__(self, values_T: FloatArray) -> None:
        # First index of each run, and the length of the record.
        self.start = np.flatnonzero(np.concatenate([[True], values_T[1:] != values_T[:-1], [True]]))
        self.value = values_T[self.start[:-1]]
        self.ordered = np.sort(self.value[~np.isnan(self.value)])
        self.varies = bool(1 + (np.diff(self.ordered) > 0).sum() >= STUCK_VALUES)

    def suspect(self, least: int, near: float, ends: tuple[float, float]) -> NDArray[np.intp]:
        """Indices of the long runs whose value is neither usual at the site nor at an end of a range."""
        length = np.diff(self.start)
        long = np.flatnonzero(length >= least)
        ranges = [ends]
        if len(long) and self.varies:
            ranges.append(_ends(self.ordered, STUCK_END))
            value, count = np.unique(self.ordered, return_counts=True)
            other = ~np.isnan(self.value)
            if count.max() >= STUCK_USUAL * len(self.ordered):
                other &= np.abs(self.value - float(value[count.argmax()])) > near
            long = long[other[long]]
            if len(long):
                long = long[length[long] > USUAL_LENGTH * _longest_usual(length[other])]
        for low, high in ranges:
            long = long[(self.value[long] > low + near) & (self.value[long] < high - near)]
        return long


def check_stuck(cells: VariableCells) -> Iterator[Finding]:
    """Long runs of one value, except at an end of the range or at a site's usual value: no rain is not a fault.

    The ends are taken from the runs, each counted once. Neither an odd cell nor the stuck sensor itself moves them.
    """
    if cells.distinct < STUCK_VALUES or cells.is_derived:
        return
    least = max(STUCK_STEPS, math.ceil(STUCK_HOURS / float(cells.panel.attrs["step_hours"])))
    same_ST = cells.values_ST[:, 1:] == cells.values_ST[:, :-1]
    if not same_ST.any():
        return
    last = len(cells.ordered) - 1
    near = NEAR_END * float(cells.ordered[math.floor(0.9999 * last)] - cells.ordered[math.ceil(0.0001 * last)])
    runs_S = [_SiteRuns(values_T) for values_T in cells.values_ST]
    ends = _ends(np.sort(np.concatenate([runs.ordered for runs in runs_S])), STUCK_END / 10)
    # A height or a coordinate has one value at each site by its nature.
    most_sites_vary = 2 * sum(runs.varies for runs in runs_S) > np.count_nonzero(cells.known_S)
    stuck_ST, held_sites = np.zeros_like(cells.values_ST, dtype=np.bool_), 0
    for site, runs in enumerate(runs_S):
        if not (most_sites_vary or runs.varies):
            continue
        suspect = runs.suspect(least, near, ends)
        if len(suspect) and _sums_something(cells.values_ST[site]):
            continue
        if cells.units == "%":
            suspect = suspect[runs.value[suspect] < SATURATED]
        for run in suspect:
            stuck_ST[site, runs.start[run] : runs.start[run + 1]] = True
        held_sites += len(suspect) >= STUCK_STEPS and 2 * stuck_ST[site].sum() > cells.known_S[site]
    # Monthly values in a daily table are constant for a month each, at every site.
    if not stuck_ST.any() or 2 * held_sites > np.count_nonzero(cells.known_S):
        return
    message = (
        f"{stuck_ST.sum():,} cells are in runs of at least {least} equal values, at {stuck_ST.any(axis=1).sum()} sites, "
        f"the first at {cells.first_of(stuck_ST)}; blank them if a sensor was stuck"
    )
    yield cells.finding("stuck", "warning", message, stuck_ST)


def _longest_usual(length_R: NDArray[np.int64]) -> float:
    """The longest of these runs to be expected, if long ones become rarer as the tenth that is longest suggests.

    Coarse numbers, rolling extremes and steady winds stay at one value for hours without a fault.
    """
    half, tenth = np.quantile(length_R, [0.5, 0.9])
    return float(tenth + (tenth - half) / math.log(5) * math.log(max(len(length_R) / 10, 1)))


def _sums_something(values_T: FloatArray) -> bool:
    """True for sums of rare amounts, which stay at one value while nothing is added: counters and rolling sums or means.

    A counter hardly ever falls. A rolling sum falls by an amount exactly one window after it rose by it.
    """
    step_T = np.diff(values_T.astype(np.float64))
    rises, falls = np.flatnonzero(step_T > 0), np.count_nonzero(step_T < 0)
    if len(rises) < STUCK_VALUES:
        return False
    if falls <= RARE_FALLS * len(rises):
        return True
    rises = rises[np.linspace(0, len(rises) - 1, min(len(rises), SAMPLED_RISES)).astype(np.intp)]
    size = step_T[rises]
    near = 0.05 * float(np.median(size))  # means are rounded
    for window in range(LEAST_WINDOW, min(MOST_WINDOW, len(step_T) // 2)):
        inside = rises + window < len(step_T)
        if (np.abs(step_T[rises[inside] + window] + size[inside]) <= near).mean() >= ROLLING_SHARE:
            return True
    return False


def _ends(ordered: FloatArray, share: float) -> tuple[float, float]:
    """Values that a share of all is at or below, and at or above."""
    last = len(ordered) - 1
    return float(ordered[math.floor(share * last)]), float(ordered[math.ceil((1 - share) * last)])
