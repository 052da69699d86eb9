"""The four forecasts that a model has to beat: climatology, persistence, logistic regression and gradient boosting.

Each is fitted on the training rows alone; the two learned ones choose one setting on the validation rows. Each forecasts
any part from values known at the issue time of the row, as probabilities (n,). It raises `DataError` if training (for the
learned ones also validation) has no row, or a row with an unknown outcome.

Shapes: S sites, T times, C variables, F features, n rows of a part.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from llueve.errors import DataError, UsageError
from llueve.panel import FloatArray, minute
from llueve.samples.split import Part
from llueve.samples.target import horizon_steps
from llueve.verification.scores import log_score

WINDOW_DAYS = 15
"""Half width of the climatology's window in calendar days (Walz et al. 2021)."""
CALENDAR_DAYS = 366
"""Days of the calendar common to all years; it includes 29 February, which most years skip."""
LOGISTIC_C = (0.01, 0.1, 1.0)
"""Inverse penalty strengths to choose from on validation."""
MOST_CATEGORIES = 255
"""Most values of one categorical feature in scikit-learn's histogram trees."""
SMALL_ROWS = 10_000
"""Training rows up to which the trees run on one thread. On a busy processor, threads that wait for each other at every
small step cost more than they save: 360 rows on two busy cores take 7 to 58 s instead of 1 s."""

_FIRST_OF_MONTH = np.cumsum([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30])
"""Index of the first day of each month in a leap year."""


@dataclass(frozen=True, eq=False)
class ReferenceData:
    """Input of the four references."""

    cube_STC: FloatArray
    """Features in their own units, NaN where not observed."""
    statics_SF: FloatArray
    """Per-site features that never change; may have no column."""
    times: NDArray[np.datetime64]
    """Issue times (T,), UTC."""
    step_hours: float
    horizon_hours: float
    event_ST: FloatArray
    """1 event, 0 no event, NaN unknown, at the issue time. An outcome is known one horizon after its issue time."""
    training: Part
    validation: Part
    lags: tuple[int, ...]
    """Steps before the issue time that the two learned references also see."""
    seed: int

    def __post_init__(self) -> None:
        sites, times = self.cube_STC.shape[:2]
        found = (self.statics_SF.shape[0], self.times.shape, self.event_ST.shape)
        if found != (sites, (times,), (sites, times)):
            match = f"expected statics, times and events to match it, found {found}"
            raise UsageError(f"the cube has {sites} sites and {times} times; {match}")
        if any(lag < 1 for lag in self.lags):
            raise UsageError(f"lags are {self.lags}; expected steps back in time, each at least 1")

    @property
    def horizon_steps(self) -> int:
        """Steps after which an outcome is known."""
        return horizon_steps(self.horizon_hours, self.step_hours)


def climatology(data: ReferenceData, part: Part) -> NDArray[np.float64]:
    """Training frequency of the event at the same site and issue hour (UTC), within ±15 calendar days (EPC15).

    Days are circular, on a calendar of 366 days for every year. Without a training row in that window, the forecast is
    the site's own frequency over all its rows; without any row of the site, that of all sites.

    Reference: Walz, Maranan, van der Linden, Fink and Knippertz 2021, Weather and Forecasting 36,
    doi:10.1175/WAF-D-20-0233.1
    """
    events = _events(data, data.training)
    hours, hour_of_time = np.unique(pd.DatetimeIndex(data.times).hour, return_inverse=True)
    shape = (len(data.event_ST), len(hours), CALENDAR_DAYS)

    def cell(rows: Part) -> NDArray[np.intp]:
        days = _calendar_day(data.times[rows.end])
        return np.ravel_multi_index((rows.site, hour_of_time[rows.end], days), shape)

    cells = cell(data.training)
    rows_near = _near(np.bincount(cells, minlength=math.prod(shape)).reshape(shape))
    events_near = _near(np.bincount(cells, weights=events, minlength=math.prod(shape)).reshape(shape))
    fallback = np.broadcast_to(_site_frequency(data)[:, None, None], shape)
    frequency = np.divide(events_near, rows_near, out=fallback.copy(), where=rows_near > 0)
    return frequency.ravel()[cell(part)]


def persistence(data: ReferenceData, part: Part) -> NDArray[np.float64]:
    """The last outcome known at the issue time, as 0 or 1: that of the issue time one horizon earlier at the same site.

    If it is unknown or before the panel's start, the forecast is the site's frequency in the training rows; for a site
    without training rows, that of all sites.

    Reference: Wilks 2019, Statistical Methods in the Atmospheric Sciences, doi:10.1016/C2017-0-03921-6
    """
    known = part.end - data.horizon_steps
    last = data.event_ST[part.site, np.maximum(known, 0)].astype(np.float64)
    unknown = np.isnan(last) | (known < 0)
    return np.where(unknown, _site_frequency(data)[part.site], last)


def logistic(data: ReferenceData, part: Part) -> NDArray[np.float64]:
    """Logistic regression on the features of `design_matrix`, its penalty chosen by log score on validation.

    Features are standardised. A missing value becomes the training mean, with an indicator; each site is a 0/1 feature.
    If all training rows have the same outcome, the forecast is that outcome's frequency (0 or 1).

    Reference: Cox 1958, Journal of the Royal Statistical Society B 20, doi:10.1111/j.2517-6161.1958.tb00292.x
    """
    return _learned(data, part, _fit_logistic)


def gradient_boosting(data: ReferenceData, part: Part) -> NDArray[np.float64]:
    """Histogram gradient boosting on the features of `design_matrix`, stopped by log score on validation.

    Trees split missing values and sites natively. If all training rows have the same outcome, the forecast is that
    outcome's frequency (0 or 1).

    Reference: Friedman 2001, Annals of Statistics 29, doi:10.1214/aos/1013203451
    """
    return _learned(data, part, _fit_gradient_boosting)


def all_references(data: ReferenceData, part: Part) -> dict[str, NDArray[np.float64]]:
    """The probabilities (n,) of all four by name, for the rows of `part`."""
    references = (climatology, persistence, logistic, gradient_boosting)
    return {reference.__name__: reference(data, part) for reference in references}


def design_matrix(data: ReferenceData, part: Part) -> FloatArray:
    """Features of the learned references, (n, F): one row per issue time.

    Columns in order: the C variables at the issue time and at each lag; sine and cosine of the day of the year; those
    of the hour, if the step is shorter than a day; the static features; the site's index, if there are several sites.
    A cell is NaN if it was not observed or if its lag reaches before the panel's start.
    """
    variables, lags = data.cube_STC.shape[2], [0, *sorted(set(data.lags))]
    moments = data.times[part.end]
    turns = [_calendar_day(moments) / CALENDAR_DAYS]
    if data.step_hours < 24:
        turns.append((moments - moments.astype("datetime64[D]")) / np.timedelta64(24, "h"))
    fixed_nF: list[NDArray[Any]] = [wave(2 * np.pi * turn)[:, None] for turn in turns for wave in (np.sin, np.cos)]
    fixed_nF.append(data.statics_SF[part.site])
    if len(data.cube_STC) > 1:
        fixed_nF.append(part.site[:, None])
    # The matrix of all lags is the largest array of a verification, so nothing is concatenated.
    first = len(lags) * variables
    x_nF = np.empty((len(part), first + sum(each.shape[1] for each in fixed_nF)), dtype=np.float32)
    for block, lag in enumerate(lags):
        columns = slice(block * variables, (block + 1) * variables)
        x_nF[:, columns] = data.cube_STC[part.site, np.maximum(part.end - lag, 0)]
        x_nF[part.end < lag, columns] = np.nan
    x_nF[:, first:] = np.concatenate(fixed_nF, axis=1)
    return x_nF


@dataclass(frozen=True, eq=False)
class _Fitting:
    """Rows that a learned reference is fitted and chosen on."""

    x_nF: FloatArray
    y_n: NDArray[np.int64]
    validation_x_nF: FloatArray
    validation_y_n: NDArray[np.int64]
    several_sites: bool
    seed: int


def _learned(data: ReferenceData, part: Part, fit: Callable[[_Fitting], Any]) -> NDArray[np.float64]:
    """Fit on the training rows and forecast the rows of `part`."""
    y_n, validation_y_n = _events(data, data.training), _events(data, data.validation)
    if len(part) == 0:
        return np.empty(0)
    if y_n.min() == y_n.max():
        return np.full(len(part), y_n[0], dtype=np.float64)
    x_nF = design_matrix(data, data.training)
    # A column without a value in training cannot be fitted, and its mean would be NaN.
    seen = ~np.isnan(x_nF).all(axis=0)
    validation_x_nF = design_matrix(data, data.validation)[:, seen]
    part_x_nF = design_matrix(data, part)[:, seen]
    with threadpool_limits(1 if len(x_nF) <= SMALL_ROWS else None, user_api="openmp"):
        rows = _Fitting(x_nF[:, seen], y_n, validation_x_nF, validation_y_n, len(data.cube_STC) > 1, data.seed)
        return np.asarray(fit(rows).predict_proba(part_x_nF)[:, 1], dtype=np.float64)


def _fit_logistic(rows: _Fitting) -> Any:
    """Pipeline with the penalty of the best log score on validation. Nothing here is random: the seed is not used."""
    # Standardising comes first: it skips missing values and makes the training mean zero, so a missing value filled
    # with zero has the mean. It needs no float64 copy of the matrix.
    numbers = make_pipeline(StandardScaler(), SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=True))
    site = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    columns = [(numbers, slice(0, -1)), (site, [-1])] if rows.several_sites else [(numbers, slice(0, None))]
    prepare = make_column_transformer(*columns)
    # Newton's method takes as long as L-BFGS on 99,000 rows (12 s per penalty on two busy cores) and reaches the
    # optimum; L-BFGS stops with single probabilities 0.19 away. It solves a linear system per step, which is not
    # reliable in float32 with lags that are nearly alike.
    prepared_nF = prepare.fit_transform(rows.x_nF).astype(np.float64)
    validation_prepared_nF = prepare.transform(rows.validation_x_nF).astype(np.float64)
    solver = {"solver": "newton-cholesky", "max_iter": 200}
    fits = [LogisticRegression(C=c, **solver).fit(prepared_nF, rows.y_n) for c in LOGISTIC_C]
    best = min(fits, key=lambda fit: log_score(fit.predict_proba(validation_prepared_nF)[:, 1], rows.validation_y_n))
    return make_pipeline(prepare, FunctionTransformer(np.asarray, kw_args={"dtype": np.float64}), best)


def _fit_gradient_boosting(rows: _Fitting) -> Any:
    """Trees until validation has not improved for 20 of them, with a low learning rate since weather is noisy."""
    # If there are more sites than a categorical feature can hold, the index stays a number, which trees can still split.
    few_sites = rows.several_sites and len(np.unique(rows.x_nF[:, -1])) <= MOST_CATEGORIES
    model = HistGradientBoostingClassifier(
        learning_rate=0.06,
        max_iter=500,
        early_stopping=True,
        n_iter_no_change=20,
        scoring="loss",
        categorical_features=[rows.x_nF.shape[1] - 1] if few_sites else None,
        random_state=rows.seed % 2**32,  # scikit-learn takes 32 bits
    )
    return model.fit(rows.x_nF, rows.y_n, X_val=rows.validation_x_nF, y_val=rows.validation_y_n)


def _events(data: ReferenceData, rows: Part) -> NDArray[np.int64]:
    """Outcomes of the rows of training or validation; each must be known."""
    if len(rows) == 0:
        raise DataError(f"{rows.name} has no row: expected at least one; move the cut dates of [split]")
    events = data.event_ST[rows.site, rows.end]
    if (unknown := np.isnan(events)).any():
        at = int(np.argmax(unknown))
        raise DataError(
            f"{rows.name}: {unknown.sum()} of {len(rows)} rows have no known outcome, the first at site index "
            f"{rows.site[at]}, {minute(data.times[rows.end[at]])}; expected only labelled rows"
        )
    return events.astype(np.int64)


def _site_frequency(data: ReferenceData) -> NDArray[np.float64]:
    """Frequency of the event in each site's training rows (S,); for a site without any, that of all sites."""
    events = _events(data, data.training)
    sites = len(data.event_ST)
    rows = np.bincount(data.training.site, minlength=sites)
    happened = np.bincount(data.training.site, weights=events, minlength=sites)
    everywhere = np.full(sites, events.mean(), dtype=np.float64)
    return np.divide(happened, rows, out=everywhere, where=rows > 0)


def _calendar_day(times: NDArray[np.datetime64]) -> NDArray[np.intp]:
    """Index of the day on the calendar of 366 days: 0 is 1 January, 59 is 29 February in every year."""
    calendar = pd.DatetimeIndex(times)
    return np.asarray(_FIRST_OF_MONTH[calendar.month - 1] + calendar.day - 1, dtype=np.intp)


def _near(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Sums over ±15 days of the circular last axis; exact, because counts are whole numbers."""
    ends = [(0, 0)] * (counts.ndim - 1) + [(WINDOW_DAYS + 1, WINDOW_DAYS)]
    running = np.cumsum(np.pad(counts.astype(np.float64), ends, mode="wrap"), axis=-1)
    return np.asarray(running[..., 2 * WINDOW_DAYS + 1 :] - running[..., : -2 * WINDOW_DAYS - 1])
