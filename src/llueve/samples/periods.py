"""Properties of a period that make its scores misleading, whatever the model: season, rate of events, too few events.

They depend on outcomes and times alone, so they are known before the training. Shapes: S sites, T times, n rows of a part.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llueve.panel import FloatArray
from llueve.samples.climatology import WINDOW_DAYS, out_of_season, seasonal_frequency
from llueve.samples.split import Part

FEW_EVENTS = "few_events"
"""Code of the reason that leaves no verdict."""
FEWEST_CASES = 10
"""Fewest events, and fewest non-events, from which a forecast can be judged."""
FEWEST_DAYS = 5
"""Fewest days on which the events fall, and the non-events: all sites have the same weather on one day."""
OUT_OF_SEASON = 0.02
"""Share of issue times in a season without training from which it is said."""
SHIFT_ERRORS = 3.0
"""Standard errors by which the rate of events differs from the expected one beyond chance."""
LEAST_SHIFT = 0.2
"""Share of the expected rate below which a difference is not worth a word."""


@dataclass(frozen=True)
class PeriodWarning:
    """One reason to read the scores of a period with care."""

    code: str
    """`few_events`, `out_of_season` or `rate_shift`."""
    message: str
    count: int
    """Rows that it is about."""


def period_warnings(
    event_ST: FloatArray, times: NDArray[np.datetime64], training: Part, part: Part, block_days: int
) -> Iterator[PeriodWarning]:
    """Every reason to read the scores of `part` with care; `event_ST` holds 1, 0 or NaN (unknown)."""
    events = event_ST[part.site, part.end]
    few = few_events(events, times[part.end])
    if few is not None:
        message = f"{part.name}: {few}; move the cuts of [split], or choose another threshold"
        yield PeriodWarning(FEW_EVENTS, message, int(events.sum()))
    beyond = out_of_season(times, training, part)
    if beyond.mean() > OUT_OF_SEASON:
        message = (
            f"{part.name}: {beyond.mean():.0%} of its issue times lie in a season without training: no training row of any "
            f"year is within {WINDOW_DAYS} calendar days. Climatology falls back to the mean of another season there, so "
            "skill over it is too high; train on whole years"
        )
        yield PeriodWarning("out_of_season", message, int(beyond.sum()))
    if few is not None:
        return
    expected = seasonal_frequency(event_ST, times, training, part)
    shift, error = _mean_difference(events - expected, times[part.end], block_days)
    if abs(shift) > SHIFT_ERRORS * error and abs(shift) > LEAST_SHIFT * expected.mean():
        message = (
            f"{part.name}: events happen in {events.mean():.1%} of the rows, but in {expected.mean():.1%} of the training rows "
            "of the same sites, hours and seasons, a difference beyond chance. Skill over climatology is then easy: compare "
            "with the constant at the period's own rate"
        )
        yield PeriodWarning("rate_shift", message, int(events.sum()))


def few_events(events: NDArray[np.number], issued: NDArray[np.datetime64]) -> str | None:
    """One sentence if events or non-events are too few to judge a forecast by, otherwise None."""
    for kind, chosen in (("events", events == 1), ("non-events", events == 0)):
        count, days = int(chosen.sum()), len(np.unique(issued[chosen].astype("datetime64[D]")))
        if count < FEWEST_CASES or days < FEWEST_DAYS:
            return (
                f"{count} {kind} on {days} day(s) among {len(events):,} rows are too few to judge a forecast: at least "
                f"{FEWEST_CASES} on {FEWEST_DAYS} days are needed"
            )
    return None


def day_blocks(issued: NDArray[np.datetime64], days: int) -> NDArray[np.intp]:
    """Index (n,) of the block of `days` days of each row, counted from the first date; blocks without a row have none."""
    day_n = issued.astype("datetime64[D]").astype(np.int64)
    return np.asarray(np.unique((day_n - day_n.min()) // days, return_inverse=True)[1])


def _mean_difference(
    difference_n: NDArray[np.floating], issued: NDArray[np.datetime64], block_days: int
) -> tuple[float, float]:
    """The mean of the rows, and its standard error over blocks of days; infinite with a single block."""
    block_n = day_blocks(issued, block_days)
    sums_B, rows_B = np.bincount(block_n, weights=difference_n), np.bincount(block_n)
    mean, blocks = float(sums_B.sum() / rows_B.sum()), len(rows_B)
    if blocks < 2:
        return mean, math.inf
    # Blocks differ in rows, so this is the error of a ratio of sums.
    spread_B = sums_B - mean * rows_B
    return mean, float(np.sqrt(blocks / (blocks - 1) * (spread_B**2).sum()) / rows_B.sum())
