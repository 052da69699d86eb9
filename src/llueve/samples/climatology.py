"""Climatology of the event: how often it happened in training at the same site, issue hour and season (EPC15).

Shapes: S sites, T times, n rows of a part.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from llueve.panel import FloatArray
from llueve.samples.split import Part

WINDOW_DAYS = 15
"""Half width of the climatology's window in calendar days (Walz et al. 2021)."""
CALENDAR_DAYS = 366
"""Days of the calendar common to all years; it includes 29 February, which most years skip."""

_FIRST_OF_MONTH = np.cumsum([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30])
"""Index of the first day of each month in a leap year."""


def seasonal_frequency(
    event_ST: FloatArray, times: NDArray[np.datetime64], training: Part, part: Part
) -> NDArray[np.float64]:
    """Training frequency of the event at the same site and issue hour (UTC), within ±15 calendar days, for each row of `part`.

    Days are circular, on a calendar of 366 days for every year. Without a training row in that window, the result is
    the site's own frequency over all its rows; without any row of the site, that of all sites.

    Reference: Walz, Maranan, van der Linden, Fink and Knippertz 2021, Weather and Forecasting 36,
    doi:10.1175/WAF-D-20-0233.1
    """
    events = event_ST[training.site, training.end].astype(np.float64)
    hours, hour_of_time = np.unique(pd.DatetimeIndex(times).hour, return_inverse=True)
    shape = (len(event_ST), len(hours), CALENDAR_DAYS)

    def cell(rows: Part) -> NDArray[np.intp]:
        return np.ravel_multi_index((rows.site, hour_of_time[rows.end], calendar_day(times[rows.end])), shape)

    cells = cell(training)
    rows_near = _near(np.bincount(cells, minlength=math.prod(shape)).reshape(shape))
    events_near = _near(np.bincount(cells, weights=events, minlength=math.prod(shape)).reshape(shape))
    fallback = np.broadcast_to(site_frequency(event_ST, training)[:, None, None], shape)
    frequency = np.divide(events_near, rows_near, out=fallback.copy(), where=rows_near > 0)
    return np.asarray(frequency.ravel()[cell(part)])


def site_frequency(event_ST: FloatArray, training: Part) -> NDArray[np.float64]:
    """Frequency of the event in each site's training rows (S,); for a site without any, that of all sites."""
    events, sites = event_ST[training.site, training.end].astype(np.float64), len(event_ST)
    rows = np.bincount(training.site, minlength=sites)
    happened = np.bincount(training.site, weights=events, minlength=sites)
    everywhere = np.full(sites, events.mean(), dtype=np.float64)
    return np.divide(happened, rows, out=everywhere, where=rows > 0)


def out_of_season(times: NDArray[np.datetime64], training: Part, part: Part) -> NDArray[np.bool_]:
    """True for each row of `part` without a training row of any site and year within ±15 calendar days."""
    days = np.bincount(calendar_day(times[training.end]), minlength=CALENDAR_DAYS)
    return np.asarray(_near(days)[calendar_day(times[part.end])] == 0)


def calendar_day(times: NDArray[np.datetime64]) -> NDArray[np.intp]:
    """Index of the day on the calendar of 366 days: 0 is 1 January, 59 is 29 February in every year."""
    calendar = pd.DatetimeIndex(times)
    return np.asarray(_FIRST_OF_MONTH[calendar.month - 1] + calendar.day - 1, dtype=np.intp)


def _near(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Sums over ±15 days of the circular last axis; exact, because counts are whole numbers."""
    ends = [(0, 0)] * (counts.ndim - 1) + [(WINDOW_DAYS + 1, WINDOW_DAYS)]
    running = np.cumsum(np.pad(counts.astype(np.float64), ends, mode="wrap"), axis=-1)
    return np.asarray(running[..., 2 * WINDOW_DAYS + 1 :] - running[..., : -2 * WINDOW_DAYS - 1])
