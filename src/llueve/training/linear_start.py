"""Start a head from logistic regression on its own levels: the training then adds to what a linear model knows.

Shapes: n windows, I inputs of the linear map, K classes.
"""

import logging

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from llueve.model.batch import device_of
from llueve.model.classifier import TimerXLForClassification, VariablesHead
from llueve.panel import FloatArray
from llueve.samples.split import Part
from llueve.samples.windows import Windows
from llueve.step.predict import as_batch

logger = logging.getLogger(__name__)

MOST_ROWS = 20_000
"""Training windows that the regression uses at most, evenly spaced."""
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths of the penalty that validation chooses from."""
CHUNK = 1024


def start_from_regression(model: TimerXLForClassification, windows: Windows, training: Part, validation: Part) -> None:
    """Set the linear map of the head, and the bias of its last layer, to those of a logistic regression.

    Its penalty is the one with the lowest log score on the validation windows. Nothing changes if the training windows have a
    single class, or the regression is no better than the class shares.
    """
    head = model.head
    training = training[:: -(-len(training) // MOST_ROWS)]
    if not isinstance(head, VariablesHead) or len(np.unique(training.y)) < model.num_classes:
        return
    x_nI, validation_x_nI = (_inputs(model, windows, part) for part in (training, validation))
    best: tuple[float, LogisticRegression] | None = None
    for penalty in PENALTIES:
        fitted = LogisticRegression(C=penalty, max_iter=200, tol=1e-3).fit(x_nI, training.y)
        share_nK = fitted.predict_proba(validation_x_nI)
        score = float(-np.log(share_nK[np.arange(len(validation)), validation.y].clip(1e-12)).mean())
        logger.debug("regression with C = %g: log score on validation %.4f", penalty, score)
        if best is None or score < best[0]:
            best = score, fitted
    assert best is not None
    weight_KI, bias_K = best[1].coef_, best[1].intercept_
    if model.num_classes == 2:  # scikit-learn gives the difference of two classes
        weight_KI, bias_K = (np.stack([-each[0] / 2, each[0] / 2]) for each in (weight_KI, bias_K))
    with torch.no_grad():
        head.linear.weight.copy_(torch.from_numpy(weight_KI))
        head.out.bias.copy_(torch.from_numpy(bias_K))


def _inputs(model: TimerXLForClassification, windows: Windows, part: Part) -> FloatArray:
    """The inputs of the linear map for every window of a part, (n, I)."""
    rows, device = [], device_of(model)
    with torch.inference_mode():
        for start in range(0, len(part), CHUNK):
            batch = as_batch(windows, part[start : start + CHUNK], device)
            rows.append(model.linear_inputs(batch.x_BLC, batch.observed_BLC, batch.facts_BF).cpu().numpy())
    return np.concatenate(rows)
