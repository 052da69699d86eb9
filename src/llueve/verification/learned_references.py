"""Logistic regression and gradient boosting on the predictors of `llueve.verification.predictors`.

Both choose between two sets of predictors, and their regularisation, by the log score on validation.

Shapes: F predictors, n rows of a part.
"""

import logging
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from llueve.panel import FloatArray
from llueve.samples.split import Part, few_shot
from llueve.verification.predictors import PredictorSet, design_matrix
from llueve.verification.reference_data import ReferenceData, known_events
from llueve.verification.scores import log_score

logger = logging.getLogger(__name__)

FIRST_EXPONENT, LARGEST_EXPONENT = -2, 8
"""Power of ten of the inverse penalty strength at which its search begins, and the largest power that is tried."""
TREE_SIZES: tuple[dict[str, Any], ...] = ({"max_leaf_nodes": 31}, {"max_leaf_nodes": 8, "max_features": 0.3})
"""Sizes of the trees to choose from. Small ones that see a part of the predictors at each split overfit less."""
MOST_SITES = 1000
"""Most sites that logistic regression tells apart, each by a 0/1 predictor of its own."""
MOST_CATEGORIES = 255
"""Most values of one categorical feature in scikit-learn's histogram trees."""
SMALL_ROWS = 10_000
"""Training rows up to which both references run on one thread. On a busy processor, threads that wait for each other at
every small step cost more than they save: trees on 360 rows and two busy cores take 7 to 58 s instead of 1 s."""
MOST_NUMBERS = 200_000_000
"""Most numbers in the matrix of the training rows. More rows are thinned evenly: the fit would not change visibly, and
logistic regression needs some 24 bytes for each number."""

Fitted = tuple[float, Callable[[FloatArray], NDArray[np.float64]]]
"""A log score on validation, and the forecast (n,) of rows (n, F)."""


@dataclass(frozen=True, eq=False)
class FittingRows:
    """Rows that a learned reference is fitted and chosen on."""

    x_nF: FloatArray
    y_n: NDArray[np.int64]
    validation_x_nF: FloatArray
    validation_y_n: NDArray[np.int64]
    sites: int
    """Number of sites; with several the last column is the index of the site."""
    seed: int


def learned(data: ReferenceData, part: Part) -> dict[str, NDArray[np.float64]]:
    """Probabilities (n,) of both learned references by name: fitted on the training rows, for the rows of `part`.

    Logistic regression: predictors are standardised, a missing value becomes the training mean, and each site is a 0/1
    predictor. Gradient boosting: histogram trees, which split missing values and sites natively, until validation stops
    improving. If all training rows have the same outcome, both forecast its frequency (0 or 1).

    Reference: Cox 1958, Journal of the Royal Statistical Society B 20, doi:10.1111/j.2517-6161.1958.tb00292.x;
    Friedman 2001, Annals of Statistics 29, doi:10.1214/aos/1013203451
    """
    y_n, validation_y_n = known_events(data, data.training), known_events(data, data.validation)
    fits = {"logistic": _fit_logistic, "gradient_boosting": _fit_gradient_boosting}
    if len(part) == 0 or y_n.min() == y_n.max():
        return {name: np.full(len(part), y_n[0], dtype=np.float64) for name in fits}
    best: dict[str, tuple[float, NDArray[np.float64]]] = {}
    for chosen in PredictorSet:
        training = _thinned(data, chosen)
        x_nF, validation_x_nF, part_x_nF = design_matrix(data, (training, data.validation, part), chosen)
        # A column without a value in training cannot be fitted, and its mean would be NaN.
        seen = ~np.isnan(x_nF).all(axis=0)
        rows = FittingRows(
            x_nF[:, seen],
            known_events(data, training),
            validation_x_nF[:, seen],
            validation_y_n,
            len(data.cube_STC),
            data.seed,
        )
        with threadpool_limits(1 if len(x_nF) <= SMALL_ROWS else None):
            for name, fit in fits.items():
                score, forecast = fit(rows)
                logger.debug("%s, predictors %s: log score on validation %.4f", name, chosen, score)
                if name not in best or score < best[name][0]:
                    best[name] = score, forecast(part_x_nF[:, seen])
    return {name: probability_n for name, (_, probability_n) in best.items()}


def _thinned(data: ReferenceData, chosen: PredictorSet) -> Part:
    """The training rows; if their matrix would be too large, the same share of every class and month."""
    rows, sites = data.training, len(data.cube_STC)
    columns = design_matrix(data, (rows[:0],), chosen)[0].shape[1] + (sites if sites <= MOST_SITES else 0)
    if len(rows) * columns <= MOST_NUMBERS:
        return rows
    thin = few_shot(rows, data.times, MOST_NUMBERS / (len(rows) * columns), data.seed)
    logger.info("a reference is fitted on %s of %s training rows", f"{len(thin):,}", f"{len(rows):,}")
    return thin


def _fit_logistic(rows: FittingRows) -> Fitted:
    """Logistic regression with the penalty of the best log score on validation. Nothing here is random."""
    variables = rows.x_nF.shape[1] - (rows.sites > 1)
    scaler = StandardScaler().fit(rows.x_nF[:, :variables])

    def prepared(x_nF: FloatArray) -> NDArray[np.float64]:
        # Standardising skips missing values and makes the training mean zero, so a missing value filled with zero has
        # the mean. float64, because lags are nearly alike.
        numbers_nF: NDArray[np.float64] = scaler.transform(x_nF[:, :variables]).astype(np.float64)
        numbers_nF[np.isnan(numbers_nF)] = 0.0
        if not 1 < rows.sites <= MOST_SITES:
            return numbers_nF
        return np.concatenate([numbers_nF, np.eye(rows.sites)[x_nF[:, -1].astype(np.intp)]], axis=1)

    x_nF, validation_x_nF = prepared(rows.x_nF), prepared(rows.validation_x_nF)
    # Newton's method reaches the optimum; L-BFGS stops with single probabilities 0.19 away.
    model = LogisticRegression(solver="newton-cholesky", max_iter=200, warm_start=True)
    tried: dict[int, tuple[float, LogisticRegression]] = {}

    def score(exponent: int) -> float:
        if exponent not in tried:
            model.set_params(C=10.0**exponent).fit(x_nF, rows.y_n)
            tried[exponent] = log_score(model.predict_proba(validation_x_nF)[:, 1], rows.validation_y_n), copy(model)
        return tried[exponent][0]

    best = _lowest(score, FIRST_EXPONENT)
    fitted = tried[best][1]
    return tried[best][0], lambda part_x_nF: np.asarray(fitted.predict_proba(prepared(part_x_nF))[:, 1], np.float64)


def _lowest(score: Callable[[int], float], start: int) -> int:
    """The whole number with the lowest score, found downhill from `start` in steps of one, so never at the end of a list."""
    direction = -1 if score(start - 1) < score(start) else 1
    best = start
    while abs(best + direction) <= LARGEST_EXPONENT and score(best + direction) < score(best):
        best += direction
    return best


def _fit_gradient_boosting(rows: FittingRows) -> Fitted:
    """Trees until validation has not improved for 20 of them, of the size that validation prefers."""
    # If there are more sites than a categorical feature can hold, the index stays a number, which trees can still split.
    few_sites = rows.sites > 1 and len(np.unique(rows.x_nF[:, -1])) <= MOST_CATEGORIES
    fits: list[tuple[float, Any]] = []
    for size in TREE_SIZES:
        model = HistGradientBoostingClassifier(
            learning_rate=0.06,  # low, since weather is noisy
            max_iter=500,
            early_stopping=True,
            n_iter_no_change=20,
            scoring="loss",
            categorical_features=[rows.x_nF.shape[1] - 1] if few_sites else None,
            random_state=rows.seed % 2**32,  # scikit-learn takes 32 bits
            **size,
        )
        model.fit(rows.x_nF, rows.y_n, X_val=rows.validation_x_nF, y_val=rows.validation_y_n)
        fits.append((log_score(model.predict_proba(rows.validation_x_nF)[:, 1], rows.validation_y_n), model))
    best, fitted = min(fits, key=lambda each: each[0])
    return best, lambda x_nF: np.asarray(fitted.predict_proba(x_nF)[:, 1], dtype=np.float64)
