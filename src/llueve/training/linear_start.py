"""Start a head from logistic regression on its own levels: the training then adds to what a linear model knows.

Shapes: n windows, I inputs of the linear map, K classes.
"""

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from llueve.model.batch import device_of
from llueve.model.classifier import TimerXLForClassification
from llueve.model.heads import VariablesHead
from llueve.panel import FloatArray
from llueve.samples.split import Part
from llueve.samples.windows import Windows
from llueve.step.predict import as_batch

logger = logging.getLogger(__name__)

MOST_ROWS = 20_000
"""Training windows that the regression uses at most, evenly spaced."""
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the penalty that validation chooses from."""
CHUNK = 1024


def start_from_regression(model: TimerXLForClassification, windows: Windows, training: Part, validation: Part) -> bool:
    """Set the linear map of the head, and the bias of its last layer, to those of a logistic regression.

    With a weather encoder its summary of the window is among the inputs, and a regression without the levels is tried, too:
    with few windows it is better. The regression and its penalty are those with the lowest log score on the validation
    windows. Windows with a value that is not finite are left out. Nothing changes if a class is absent from the
    training windows, or the regression is no better than the class shares.

    Returns:
        True if the head was changed.
    """
    head = model.eval().head
    training = training[:: -(-len(training) // MOST_ROWS)]
    if not isinstance(head, VariablesHead):
        return False
    x_nI, y_n = _inputs(model, windows, training)
    validation_x_nI, validation_y_n = _inputs(model, windows, validation)
    shares_K = np.bincount(y_n, minlength=model.num_classes) / max(len(y_n), 1)
    if not shares_K.all() or not len(validation_y_n):
        return False
    best, found = _log_score(np.broadcast_to(shares_K, (len(validation_y_n), len(shares_K))), validation_y_n), None
    levels = head.variables * head.level_CVW.shape[1]
    for first in (0, levels) if head.summary else (0,):
        for penalty in PENALTIES:
            fitted = LogisticRegression(C=penalty, max_iter=1000, tol=1e-3).fit(x_nI[:, first:], y_n)
            score = _log_score(fitted.predict_proba(validation_x_nI[:, first:]), validation_y_n)
            logger.debug("regression from input %d on, C = %g: log score on validation %.4f", first, penalty, score)
            if score < best:
                best, found = score, (first, fitted)
    if found is None:
        return False
    first, fitted = found
    weight_KI, bias_K = np.pad(fitted.coef_, ((0, 0), (first, 0))), fitted.intercept_
    if model.num_classes == 2:  # scikit-learn gives the difference of two classes
        weight_KI, bias_K = (np.stack([-each[0] / 2, each[0] / 2]) for each in (weight_KI, bias_K))
    with torch.no_grad():
        head.linear.weight.copy_(torch.from_numpy(weight_KI))
        head.out.bias.copy_(torch.from_numpy(bias_K))
    return True


def _log_score(share_nK: NDArray[np.floating], y_n: NDArray[np.int64]) -> float:
    """Mean negative logarithm of the share that each window's class was given."""
    return float(-np.log(share_nK[np.arange(len(y_n)), y_n].clip(1e-12)).mean())


def _inputs(model: TimerXLForClassification, windows: Windows, part: Part) -> tuple[FloatArray, NDArray[np.int64]]:
    """The inputs of the linear map for the windows of a part that are finite, (n, I), and the classes of these windows."""
    rows, device = [], device_of(model)
    with torch.inference_mode():
        for start in range(0, len(part), CHUNK):
            batch = as_batch(windows, part[start : start + CHUNK], device)
            rows.append(model.linear_inputs(batch.x_BLC, batch.observed_BLC, batch.facts_BF).cpu().numpy())
    x_nI = np.concatenate(rows)
    finite_n = np.isfinite(x_nI).all(axis=1)
    return x_nI[finite_n], part.y[finite_n]
