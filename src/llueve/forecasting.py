"""From windows and a trained model to probabilities.

Shapes: n windows, B batch, K classes.
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from llueve.model.classifier import TimerXLForClassification
from llueve.model.products import quick_products
from llueve.panel import FloatArray
from llueve.stability.step import Batch
from llueve.windows import Part, Windows

PREDICTION_BATCH = 256


class Pooled(Protocol):
    """What the encoder gives for the windows of a part, known already."""

    def batch(self, chosen: slice) -> Tensor:
        """Features of some windows of the part."""


@quick_products()
def predict_logits(
    model: TimerXLForClassification, windows: Windows, part: Part, pooled: Pooled | None = None
) -> FloatArray:
    """Logits (n, K) of every window of `part`, in evaluation mode and float32.

    Args:
        model, windows, part: what is forecast.
        pooled: what `model.pool` gives for the windows of the part, where it is known.
    """
    model.eval()
    device = device_of(model)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(part), PREDICTION_BATCH):
            here = slice(start, start + PREDICTION_BATCH)
            given = as_batch(windows, part[here], device)
            if pooled is None:
                logits_BK = model(given.x_BLC, given.observed_BLC, given.facts_BF)
            else:
                logits_BK = model.classify(pooled.batch(here).to(device), given.facts_BF)
            rows.append(logits_BK.cpu().numpy())
    return np.concatenate(rows)


def probabilities(logits_BK: FloatArray) -> NDArray[np.float64]:
    """Softmax of logits in float64, (n, K)."""
    return torch.from_numpy(logits_BK).double().softmax(-1).numpy()


def log_loss(logits_BK: FloatArray, y_B: NDArray[np.int64]) -> float:
    """Mean cross-entropy of the classes, in float64; non-finite if any logit is."""
    return float(F.cross_entropy(torch.from_numpy(logits_BK).double(), torch.from_numpy(y_B)))


def brier_skill(logits_BK: FloatArray, y_B: NDArray[np.int64], share_K: NDArray[np.float64]) -> float:
    """1 − BS / BS₀: Brier score against that of always forecasting `share_K`; not finite if a logit is not, or BS₀ is 0.

    The score of a forecast p is Σₖ (pₖ − oₖ)² = Σₖ pₖ² − 2 p_y + 1; for two classes the skill is the usual one of the event.

    Args:
        logits_BK, y_B: forecasts and classes.
        share_K: of each class in training.
    """
    p_BK = probabilities(logits_BK)
    score = (np.square(p_BK).sum(1) - 2 * p_BK[np.arange(len(y_B)), y_B] + 1).mean()
    reference = (np.square(share_K).sum() - 2 * share_K[y_B] + 1).mean()
    return float(1 - score / reference) if reference > 0 else float("nan")


def as_batch(windows: Windows, part: Part, device: torch.device) -> Batch:
    """The windows of `part` as the model takes them."""
    values_BCL, observed_BCL, facts_BF = (torch.from_numpy(np.ascontiguousarray(each)) for each in windows.batch(part))
    y_B = torch.from_numpy(part.y)
    return Batch(values_BCL.transpose(1, 2), observed_BCL.transpose(1, 2), facts_BF, y_B).to(device)


def best_device() -> torch.device:
    """Where models are trained and asked: on an accelerator, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: TimerXLForClassification) -> torch.device:
    """Where the model's weights are."""
    return model.encoder.forecasting.weight.device
