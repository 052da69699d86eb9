"""Logistic regression and gradient boosting on the predictors of `llueve.verification.predictors`.

Both choose between sets of predictors, and their regularisation, by the log score on validation: on a sample of the
training rows if there are many. The choice is then fitted on all of them.

Shapes: F predictors, n rows of a part.
"""

import logging
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from llueve.panel import FloatArray
from llueve.samples.split import Part, few_shot
from llueve.verification.predictors import Design, PredictorSet, design, most_columns
from llueve.verification.reference_data import ReferenceData, known_events

logger = logging.getLogger(__name__)

FIRST_EXPONENT, LARGEST_EXPONENT = -2, 8
"""Power of ten of the inverse penalty strength at which its search begins, and the largest power that is tried."""
SMALL_TREES, LARGE_TREES = 8, 16
"""Leaves of the trees with which sets of predictors are compared, and of the larger ones. Many rows carry larger trees."""
MOST_SITES = 1000
"""Most sites that logistic regression tells apart, each by a 0/1 predictor of its own."""
MOST_CATEGORIES = 255
"""Most values of one categorical feature in scikit-learn's histogram trees."""
SMALL_ROWS = 10_000
"""Training rows up to which both references run on one thread. On a busy processor, threads that wait for each other at
every small step cost more than they save: trees on 360 rows and two busy cores take 7 to 58 s instead of 1 s."""
SAMPLE_ROWS = 20_000
"""Training rows on which sets and settings are compared. More rows are used for the fit of the choice alone."""
CHUNK_ROWS = 10_000
"""Rows that are standardised at a time."""
MOST_NUMBERS = 64_000_000
"""Most numbers in the matrix of the training rows. More rows are thinned evenly: the fit would not change visibly, and
logistic regression needs some 24 bytes for each number."""
SMALLEST_P = float(np.finfo(np.float64).eps)
"""Probabilities are clipped to this distance from 0 and 1 when settings are compared, as in `scores.log_score`."""


@dataclass(frozen=True, eq=False)
class FittingRows:
    """Rows that a learned reference is fitted and chosen on."""

    x_nF: FloatArray
    y_n: NDArray[np.int64]
    validation_x_nF: FloatArray
    validation_y_n: NDArray[np.int64]
    columns: NDArray[np.intp]
    """Columns that the reference uses. They are copied in the form that it needs: the matrices are large."""
    sites: int
    """Number of sites; with several the last column is the index of the site."""
    seed: int


@dataclass(frozen=True, eq=False)
class Fitted:
    """A reference with one setting on one set of columns."""

    score: float
    """Log score on validation."""
    setting: int
    """Power of ten of the inverse penalty strength, or leaves of the trees."""
    columns: NDArray[np.intp]
    forecast: Callable[[FloatArray], NDArray[np.float64]]
    """The probabilities (n,) of rows (n, F) with all columns."""


Fit = Callable[[FittingRows, int, bool], Fitted]
"""Fit a reference: the rows, a setting to begin with, and True to look for a better one nearby, if that is cheap."""


def learned(data: ReferenceData, part: Part) -> dict[str, NDArray[np.float64]]:
    """Probabilities (n,) of both learned references by name: fitted on the training rows, for the rows of `part`.

    Logistic regression: predictors are standardised, a missing value becomes the training mean, and each site is a 0/1
    predictor. Gradient boosting: histogram trees, which split missing values and sites natively, until validation stops
    improving. If all training rows have the same outcome, both forecast its frequency (0 or 1).

    Reference: Cox 1958, Journal of the Royal Statistical Society B 20, doi:10.1111/j.2517-6161.1958.tb00292.x;
    Friedman 2001, Annals of Statistics 29, doi:10.1214/aos/1013203451
    """
    y_n, validation_y_n = known_events(data, data.fitted), known_events(data, data.validation)
    if len(part) == 0 or y_n.min() == y_n.max():
        return dict.fromkeys(("logistic", "gradient_boosting"), np.full(len(part), y_n[0], dtype=np.float64))
    training = _thinned(data)
    made = design(data, (training, data.validation, part))
    x_nF, validation_x_nF, part_x_nF = made.matrices
    y_n = known_events(data, training)
    every = np.arange(x_nF.shape[1])
    rows = FittingRows(x_nF, y_n, validation_x_nF, validation_y_n, every, len(data.cube_STC), data.seed)
    with threadpool_limits(1 if len(training) <= SMALL_ROWS else None):
        return {
            "logistic": _best(_fit_logistic, FIRST_EXPONENT, None, rows, made).forecast(part_x_nF),
            "gradient_boosting": _best(_fit_gradient_boosting, SMALL_TREES, LARGE_TREES, rows, made).forecast(
                part_x_nF
            ),
        }


def _thinned(data: ReferenceData) -> Part:
    """The training rows; if their matrix would be too large, the same share of every class and month."""
    rows, sites = data.fitted, len(data.cube_STC)
    columns = most_columns(data) + (sites if sites <= MOST_SITES else 0)
    if len(rows) * columns <= MOST_NUMBERS:
        return rows
    thin = few_shot(rows, data.times, MOST_NUMBERS / (len(rows) * columns), data.seed)
    logger.info("a reference is fitted on %s of %s training rows", f"{len(thin):,}", f"{len(rows):,}")
    return thin


def _best(fit: Fit, first: int, other: int | None, rows: FittingRows, made: Design) -> Fitted:
    """A reference with its best columns and setting on validation.

    The recent and the full set are compared first, with the setting `first` to begin with; the neighbours are then added to
    the better one. The setting `other` is tried on the best columns. With many rows the sets are compared on a sample, and
    only the last fit uses all rows.
    """
    few = _sample(rows)

    def better(best: Fitted | None, columns: NDArray[np.intp]) -> Fitted:
        # A column without a value in training cannot be fitted, and its mean would be NaN.
        columns = columns[~np.isnan(few.x_nF[:, columns]).all(axis=0)]
        if best is not None and np.array_equal(columns, best.columns):
            return best
        found = fit(replace(few, columns=columns), first if best is None else best.setting, True)
        logger.debug("%s with %d predictors: log score on validation %.4f", fit.__name__, len(columns), found.score)
        return found if best is None or found.score < best.score else best

    best = better(better(None, made.columns(PredictorSet.RECENT)), made.columns(PredictorSet.FULL))
    if len(near := made.columns(PredictorSet.NEIGHBOURS)):
        best = better(best, np.union1d(best.columns, near))
    if few is rows and other is None:
        return best
    last = fit(replace(rows, columns=best.columns), best.setting if other is None else other, False)
    return last if few is not rows or last.score < best.score else best


def _sample(rows: FittingRows) -> FittingRows:
    """A random sample of the training rows to compare settings on; all of them if they are few, or if it lacks a class."""
    if len(rows.y_n) <= SAMPLE_ROWS:
        return rows
    chosen = np.sort(np.random.default_rng(rows.seed).choice(len(rows.y_n), SAMPLE_ROWS, replace=False))
    y_n = rows.y_n[chosen]
    return rows if y_n.min() == y_n.max() else replace(rows, x_nF=rows.x_nF[chosen], y_n=y_n)


def _fit_logistic(rows: FittingRows, setting: int, search: bool) -> Fitted:
    """Logistic regression with the given penalty, or with the one of the best log score. Nothing here is random."""
    measured = rows.columns[:-1] if rows.sites > 1 else rows.columns
    one_hot = rows.sites if 1 < rows.sites <= MOST_SITES else 0
    mean_F, spread_F = _mean_and_spread(rows.x_nF, measured)

    def prepared(x_nF: FloatArray) -> NDArray[np.float64]:
        # The training mean becomes zero, so a missing value filled with zero has the mean. float64, because lags are nearly
        # alike.
        numbers_nF = np.zeros((len(x_nF), len(measured) + one_hot))
        for start in range(0, len(x_nF), CHUNK_ROWS):
            here = slice(start, start + CHUNK_ROWS)
            scaled_nF = (x_nF[here][:, measured] - mean_F) / spread_F
            numbers_nF[here, : len(measured)] = np.where(np.isnan(scaled_nF), 0.0, scaled_nF)
        if one_hot:
            numbers_nF[np.arange(len(x_nF)), len(measured) + x_nF[:, -1].astype(np.intp)] = 1.0
        return numbers_nF

    x_nF, validation_x_nF = prepared(rows.x_nF), prepared(rows.validation_x_nF)
    # Newton's method reaches the optimum; L-BFGS stops with single probabilities 0.19 away.
    model = LogisticRegression(solver="newton-cholesky", max_iter=200, warm_start=True)
    tried: dict[int, tuple[float, LogisticRegression]] = {}

    def score(exponent: int) -> float:
        if exponent not in tried:
            model.set_params(C=10.0**exponent).fit(x_nF, rows.y_n)
            tried[exponent] = _log_score(model.predict_proba(validation_x_nF), rows.validation_y_n), copy(model)
        return tried[exponent][0]

    best = _lowest(score, setting) if search else setting
    lowest, fitted = score(best), tried[best][1]

    def forecast(part_x_nF: FloatArray) -> NDArray[np.float64]:
        return np.asarray(fitted.predict_proba(prepared(part_x_nF))[:, 1], np.float64)

    return Fitted(lowest, best, rows.columns, forecast)


def _mean_and_spread(x_nF: FloatArray, columns: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of the known values of some columns; a constant has the spread 1."""
    mean_F, spread_F = np.zeros(len(columns)), np.ones(len(columns))
    for place, column in enumerate(columns):
        values = x_nF[:, column].astype(np.float64)
        values = values[~np.isnan(values)]
        mean_F[place] = values.mean()
        if values.min() < values.max():
            spread_F[place] = values.std()
    return mean_F, spread_F


def _lowest(score: Callable[[int], float], start: int) -> int:
    """The whole number with the lowest score, found downhill from `start` in steps of one, so never at the end of a list."""
    direction = -1 if score(start - 1) < score(start) else 1
    best = start
    while abs(best + direction) <= LARGEST_EXPONENT and score(best + direction) < score(best):
        best += direction
    return best


def _fit_gradient_boosting(rows: FittingRows, setting: int, search: bool) -> Fitted:
    """Trees with `setting` leaves, until validation has not improved for 10 of them. There is no search."""
    x_nF, validation_x_nF = _chosen(rows.x_nF, rows.columns), _chosen(rows.validation_x_nF, rows.columns)
    # If there are more sites than a categorical feature can hold, the index stays a number, which trees can still split.
    few_sites = rows.sites > 1 and len(np.unique(x_nF[:, -1])) <= MOST_CATEGORIES
    model = HistGradientBoostingClassifier(
        learning_rate=0.1,
        max_iter=500,
        max_leaf_nodes=setting,
        max_features=0.3,  # trees that see a part of the predictors at each split overfit less
        early_stopping=True,
        n_iter_no_change=10,
        scoring="loss",
        categorical_features=[x_nF.shape[1] - 1] if few_sites else None,
        random_state=rows.seed % 2**32,  # scikit-learn takes 32 bits
    )
    model.fit(x_nF, rows.y_n, X_val=validation_x_nF, y_val=rows.validation_y_n)
    score = _log_score(model.predict_proba(validation_x_nF), rows.validation_y_n)
    return Fitted(
        score, setting, rows.columns, lambda part_x_nF: model.predict_proba(_chosen(part_x_nF, rows.columns))[:, 1]
    )


def _chosen(x_nF: FloatArray, columns: NDArray[np.intp]) -> FloatArray:
    """Some columns; without a copy if they are all, because the matrices are large."""
    return x_nF if len(columns) == x_nF.shape[1] else x_nF[:, columns]


def _log_score(p_n2: NDArray[np.float64], y_n: NDArray[np.int64]) -> float:
    """The log score of the probabilities (n, 2) of both outcomes; scikit-learn's takes longer than a small fit."""
    return float(-np.log(np.maximum(p_n2[np.arange(len(y_n)), y_n], SMALLEST_P)).mean())
