"""Logits and probabilities of windows from a trained model.

Shapes: n windows, B batch, K classes.
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llueve.model.batch import Batch, device_of
from llueve.model.classifier import TimerXLForClassification
from llueve.model.kernels.matmul import quick_products
from llueve.panel import FloatArray
from llueve.samples.split import Part
from llueve.samples.windows import Windows

PREDICTION_BATCH = 256


class EncoderFeatures(Protocol):
    """Features of the windows of a part: the output of `TimerXLForClassification.pool`, computed earlier."""

    def batch(self, chosen: slice) -> Tensor:
        """Return the features (B, …) of some windows of the part."""


@quick_products()
def predict_logits(
    model: TimerXLForClassification, windows: Windows, part: Part, features: EncoderFeatures | None = None
) -> FloatArray:
    """Return logits (n, K) of every window of `part`, in float32; the model is set to evaluation mode.

    With the features of the windows, if they are known, the encoder is not computed.
    """
    model.eval()
    device = device_of(model)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(part), PREDICTION_BATCH):
            here = slice(start, start + PREDICTION_BATCH)
            given = as_batch(windows, part[here], device)
            if features is None:
                logits_BK = model(given.x_BLC, given.observed_BLC, given.facts_BF)
            else:
                logits_BK = model.classify(features.batch(here).to(device), given.facts_BF)
            rows.append(logits_BK.cpu().numpy())
    return np.concatenate(rows)


def probabilities(logits_BK: FloatArray) -> NDArray[np.float64]:
    """Return the softmax of logits (n, K), in float64."""
    return torch.from_numpy(logits_BK).double().softmax(-1).numpy()


def as_batch(windows: Windows, part: Part, device: torch.device) -> Batch:
    """Return the windows of `part` as a batch on a device."""
    values_BCL, observed_BCL, facts_BF = (torch.from_numpy(np.ascontiguousarray(each)) for each in windows.batch(part))
    y_B = torch.from_numpy(part.y)
    return Batch(values_BCL.transpose(1, 2), observed_BCL.transpose(1, 2), facts_BF, y_B).to(device)
