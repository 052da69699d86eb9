"""The four forecasts that a model has to beat: climatology, persistence, logistic regression and gradient boosting.

Each is fitted on the training rows alone (the two learned ones choose a setting on the validation rows), answers for
the rows of any part, and uses nothing that was not known at the issue time of the row it answers for.

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
from llueve.rain import horizon_steps
from llueve.verification.scores import log_score
from llueve.windows import Part

WINDOW_DAYS = 15
"""Half width of the climatology's window in calendar days (Walz et al. 2021)."""
CALENDAR_DAYS = 366
"""Days of the calendar that every year is laid on; 29 February is a day of it that most years skip."""
LOGISTIC_C = (0.01, 0.1, 1.0)
"""Inverse strengths of the penalty among which validation chooses."""
MOST_CATEGORIES = 255
"""Most values that scikit-learn's histogram trees take in one categorical feature."""
SMALL_ROWS = 10_000
"""Training rows up to which the trees run on one thread: where other programs use the processor too, threads that wait
for each other at every small step cost far more than they save (360 rows on two busy cores: 7 to 58 s, not 1 s)."""

_FIRST_OF_MONTH = np.cumsum([0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30])
"""Index of the first day of each month in a leap year."""


@dataclass(frozen=True, eq=False)
class ReferenceData:
    """What the references may look at; the same for all four."""

    cube_STC: NDArray[np.float32]
    """Features in their own units, NaN where not observed."""
    statics_SF: NDArray[np.float32]
    """Per-site features that never change; may have no column."""
    times: NDArray[np.datetime64]
    """Issue times (T,), UTC."""
    step_hours: float
    horizon_hours: float
    event_ST: NDArray[np.float32]
    """1 event, 0 none, NaN unknown, filed under the issue time: it is known only one horizon later."""
    training: Part
    validation: Part
    lags: tuple[int, ...]
    """Steps back that the two learned references see besides the issue time."""
    seed: int

    def __post_init__(self) -> None:
        sites, times = self.cube_STC.shape[:2]
        found = (self.statics_SF.shape[0], self.times.shape, self.event_ST.shape)
        if found != (sites, (times,), (sites, times)):
            raise UsageError(
                f"the cube has {sites} sites and {times} times; expected statics, times and events to match it, "
                f"found {found}"
            )
        if any(lag < 1 for lag in self.lags):
            raise UsageError(f"lags are {self.lags}; expected steps back in time, each at least 1")

    @property
    def horizon_steps(self) -> int:
        """Steps after which an outcome is known."""
        return horizon_steps(self.horizon_hours, self.step_hours)


def climatology(data: ReferenceData, part: Part) -> NDArray[np.float64]:
    """Training frequency of the event at the same site and issue hour (UTC), within ±15 calendar days (EPC15).

    Days are circular and leap-safe: every year is laid on a calendar of 366 days. Where that window holds no training
    row the site's own frequency over all its rows stands in, and where the site has none, that of all sites.

    Returns:
        Probabilities (n,).

    Raises:
        DataError: there is no training row, or one whose outcome is unknown.

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
    """The last outcome known at the issue time, as 0 or 1: the one filed one horizon earlier at the same site.

    Where that is unknown or before the panel's start, the site's frequency in the training rows stands in (that of all
    sites, where the site has none).

    Returns:
        Probabilities (n,).

    Raises:
        DataError: there is no training row, or one whose outcome is unknown.

    Reference: Wilks 2019, Statistical Methods in the Atmospheric Sciences, doi:10.1016/C2017-0-03921-6
    """
    known = part.end - data.horizon_steps
    last = data.event_ST[part.site, np.maximum(known, 0)].astype(np.float64)
    unknown = np.isnan(last) | (known < 0)
    return np.where(unknown, _site_frequency(data)[part.site], last)


def logistic(data: ReferenceData, part: Part) -> NDArray[np.float64]:
    """Logistic regression on the features of `design_matrix`, its penalty chosen by log score on validation.

    Standardised; a missing value becomes the training mean and is told by an indicator; a site is one 0/1 feature each.
    If all training rows have the same outcome, that outcome's frequency (0 or 1) is the answer.

    Returns:
        Probabilities (n,).

    Raises:
        DataError: training or validation has no row, or one whose outcome is unknown.

    Reference: Cox 1958, Journal of the Royal Statistical Society B 20, doi:10.1111/j.2517-6161.1958.tb00292.x
    """
    return _learned(data, part, _fit_logistic)


def gradient_boosting(data: ReferenceData, part: Part) -> NDArray[np.float64]:
    """Histogram gradient boosting on the features of `design_matrix`, stopped by log score on validation.

    Trees split missing values and sites natively. If all training rows have the same outcome, that outcome's frequency
    (0 or 1) is the answer.

    Returns:
        Probabilities (n,).

    Raises:
        DataError: training or validation has no row, or one whose outcome is unknown.

    Reference: Friedman 2001, Annals of Statistics 29, doi:10.1214/aos/1013203451
    """
    return _learned(data, part, _fit_gradient_boosting)


def all_references(data: ReferenceData, part: Part) -> dict[str, NDArray[np.float64]]:
    """The probabilities (n,) of all four by name, for the rows of `part`.

    Raises:
        DataError: training or validation has no row, or one whose outcome is unknown.
    """
    return {
        "climatology": climatology(data, part),
        "persistence": persistence(data, part),
        "logistic": logistic(data, part),
        "gradient_boosting": gradient_boosting(data, part),
    }


def design_matrix(data: ReferenceData, part: Part) -> NDArray[np.float32]:
    """What the learned references know at each issue time, one row each.

    Columns in order: the C variables at the issue time and at each lag, sine and cosine of the day of the year, of the
    hour of the day (if the step is shorter than a day), the static features, and the index of the site (if there are
    several). NaN where not observed and where a lag reaches before the panel's start.

    Returns:
        Features (n, F), float32 since a matrix of all lags is the largest array of a verification.
    """
    variables = data.cube_STC.shape[2]
    blocks = [0, *sorted(set(data.lags))]
    calendar_nF = _calendar_features(data, part)
    statics = data.statics_SF.shape[1]
    first = len(blocks) * variables
    several = len(data.cube_STC) > 1
    x_nF = np.empty((len(part), first + calendar_nF.shape[1] + statics + several), dtype=np.float32)
    for block, lag in enumerate(blocks):
        columns = slice(block * variables, (block + 1) * variables)
        x_nF[:, columns] = data.cube_STC[part.site, np.maximum(part.end - lag, 0)]
        x_nF[part.end < lag, columns] = np.nan
    x_nF[:, first : first + calendar_nF.shape[1]] = calendar_nF
    x_nF[:, first + calendar_nF.shape[1] : x_nF.shape[1] - several] = data.statics_SF[part.site]
    if several:
        x_nF[:, -1] = part.site
    return x_nF


def _learned(data: ReferenceData, part: Part, fit: Callable[..., Any]) -> NDArray[np.float64]:
    """Fit with `fit(x, y, validation x, validation y, several sites, seed)` and answer for `part`."""
    y_n, validation_y_n = _events(data, data.training), _events(data, data.validation)
    if len(part) == 0:
        return np.empty(0)
    if y_n.min() == y_n.max():
        return np.full(len(part), y_n[0], dtype=np.float64)
    x_nF = design_matrix(data, data.training)
    # A column that training never saw teaches nothing, and its mean would be NaN.
    seen = ~np.isnan(x_nF).all(axis=0)
    validation_x_nF = design_matrix(data, data.validation)[:, seen]
    part_x_nF = design_matrix(data, part)[:, seen]
    with threadpool_limits(1 if len(x_nF) <= SMALL_ROWS else None, user_api="openmp"):
        model = fit(x_nF[:, seen], y_n, validation_x_nF, validation_y_n, len(data.cube_STC) > 1, data.seed)
        return np.asarray(model.predict_proba(part_x_nF)[:, 1], dtype=np.float64)


def _fit_logistic(
    x_nF: NDArray[np.float32],
    y_n: NDArray[np.int64],
    validation_x_nF: NDArray[np.float32],
    validation_y_n: NDArray[np.int64],
    several_sites: bool,
    seed: int,
) -> Any:
    """The pipeline with the penalty that validation likes best. Nothing here is random: the seed is not used."""
    # Standardising comes first: it skips missing values and makes the training mean zero, so filling in zero is
    # filling in the mean, and it needs no float64 copy of the matrix.
    numbers = make_pipeline(StandardScaler(), SimpleImputer(strategy="constant", fill_value=0.0, add_indicator=True))
    site = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    columns = [(numbers, slice(0, -1)), (site, [-1])] if several_sites else [(numbers, slice(0, None))]
    prepare = make_column_transformer(*columns)
    # Newton's method takes as long as L-BFGS on 99,000 rows (12 s per penalty on two busy cores) and gets to the
    # optimum, where L-BFGS stops with single probabilities 0.19 away. It solves a linear system per step, which float32
    # cannot do reliably with lags that are nearly alike.
    prepared_nF = prepare.fit_transform(x_nF).astype(np.float64)
    validation_prepared_nF = prepare.transform(validation_x_nF).astype(np.float64)
    best, best_score = None, math.inf
    for c in LOGISTIC_C:
        candidate = LogisticRegression(C=c, solver="newton-cholesky", max_iter=200).fit(prepared_nF, y_n)
        score = log_score(candidate.predict_proba(validation_prepared_nF)[:, 1], validation_y_n)
        if score < best_score:
            best, best_score = candidate, score
    return make_pipeline(prepare, FunctionTransformer(_as_float64), best)


def _as_float64(x_nF: NDArray[np.float32]) -> NDArray[np.float64]:
    """The precision in which the regression was fitted."""
    return x_nF.astype(np.float64)


def _fit_gradient_boosting(
    x_nF: NDArray[np.float32],
    y_n: NDArray[np.int64],
    validation_x_nF: NDArray[np.float32],
    validation_y_n: NDArray[np.int64],
    several_sites: bool,
    seed: int,
) -> Any:
    """Trees until validation has not improved for 20 of them; slow and small steps suit noisy weather."""
    # More sites than a categorical feature can take are left as a number, which trees can still split.
    categorical = [x_nF.shape[1] - 1] if several_sites and len(np.unique(x_nF[:, -1])) <= MOST_CATEGORIES else None
    model = HistGradientBoostingClassifier(
        learning_rate=0.06,
        max_iter=500,
        early_stopping=True,
        n_iter_no_change=20,
        scoring="loss",
        categorical_features=categorical,
        # scikit-learn takes 32 bits.
        random_state=seed % 2**32,
    )
    return model.fit(x_nF, y_n, X_val=validation_x_nF, y_val=validation_y_n)


def _events(data: ReferenceData, rows: Part) -> NDArray[np.int64]:
    """Outcomes of the rows of training or validation, all of them known."""
    if len(rows) == 0:
        raise DataError(f"{rows.name} has no row: expected at least one; move the cut dates of [split]")
    events = data.event_ST[rows.site, rows.end]
    unknown = np.isnan(events)
    if unknown.any():
        at = int(np.argmax(unknown))
        raise DataError(
            f"{rows.name}: {unknown.sum()} of {len(rows)} rows have no known outcome, the first at site index "
            f"{rows.site[at]}, {data.times[rows.end[at]]}; expected only labelled rows"
        )
    return events.astype(np.int64)


def _site_frequency(data: ReferenceData) -> NDArray[np.float64]:
    """Frequency of the event in the training rows of each site (S,); of all sites, where a site has no training row."""
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
    """Sums over ±15 days of the circular last axis; exact, since counts are whole numbers."""
    ends = [(0, 0)] * (counts.ndim - 1) + [(WINDOW_DAYS + 1, WINDOW_DAYS)]
    running = np.cumsum(np.pad(counts.astype(np.float64), ends, mode="wrap"), axis=-1)
    return np.asarray(running[..., 2 * WINDOW_DAYS + 1 :] - running[..., : -2 * WINDOW_DAYS - 1])


def _calendar_features(data: ReferenceData, part: Part) -> NDArray[np.float64]:
    """Sine and cosine of the day of the year and, if steps are shorter than a day, of the hour (n, 2 or 4)."""
    moments = data.times[part.end]
    turns = [_calendar_day(moments) / CALENDAR_DAYS]
    if data.step_hours < 24:
        since_midnight = moments - moments.astype("datetime64[D]")
        turns.append(since_midnight / np.timedelta64(24, "h"))
    return np.column_stack([wave(2 * np.pi * turn) for turn in turns for wave in (np.sin, np.cos)])
