"""The validation windows of a training: their forecasts and scores after each epoch.

Shapes: B windows, K classes.
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from llueve.calibration.calibrate import calibrate
from llueve.distributed.processes import Processes
from llueve.model.classifier import TimerXLForClassification
from llueve.panel import UNKNOWN, FloatArray
from llueve.samples.split import Part
from llueve.samples.windows import WindowSource
from llueve.step.predict import predict_logits, probabilities
from llueve.training.batches.feature_cache import DamagedFeatures, FeatureCache
from llueve.training.batches.feature_files import UnusableFiles
from llueve.training.batches.order import epoch_order

logger = logging.getLogger(__name__)

CANARIES = 64
"""Validation windows, always the same, whose loss shows if a state is sound."""


@dataclass(frozen=True)
class Share:
    """The cached features of the validation windows of one process."""

    cache: FeatureCache
    here: NDArray[np.intp]
    """Positions of its windows in the part."""

    def batch(self, chosen: NDArray[np.intp] | slice) -> Tensor:
        """Return the features (B, …) of some of its windows."""
        return self.cache.batch(self.here[chosen])


class Validation:
    """The validation windows, shared between the processes of a training."""

    def __init__(self, windows: WindowSource, part: Part, processes: Processes) -> None:
        network = windows.network
        self.windows, self._processes = windows, processes
        self.part = part if network is None else network.complete(part)
        """All windows that are computed."""
        self._known = np.flatnonzero(self.part.y != UNKNOWN)
        self.y = self.part.y[self._known]
        """Classes of the windows with an outcome."""
        order = epoch_order(self.part, 0, 0, None if network is None else network.most_sites)
        last = int(np.searchsorted(order.bounds, min(CANARIES, len(order))))
        chosen = np.sort(order.windows[: order.bounds[last]])
        self._canaries = self.part[chosen[self.part.y[chosen] != UNKNOWN]]
        self._features: FeatureCache | None = None

    def start_phase(self, features: FeatureCache | None) -> None:
        """Set the cached outputs of the encoder, if it is frozen."""
        self._features = features

    def logits(self, model: TimerXLForClassification) -> FloatArray:
        """Logits (B, K) of every validation window with an outcome, in evaluation mode and float32."""
        here, cache = self._share(), self._features
        own = self.part[here]
        logits_BK = torch.zeros(len(self.part), model.num_classes)
        if len(own):
            logits_BK[here] = torch.from_numpy(self._logits(model, own, None if cache is None else Share(cache, here)))
        total_BK: FloatArray = self._processes.total(logits_BK).numpy()
        return total_BK[self._known]

    def _share(self) -> NDArray[np.intp]:
        """Positions of the windows of this process; those of one issue time stay together if they see each other."""
        if self.windows.network is None:
            return np.arange(len(self.part))[self._processes.share(len(self.part))]
        ends = np.unique(self.part.end)
        return np.flatnonzero(np.isin(self.part.end, ends[self._processes.share(len(ends))]))

    def _logits(self, model: TimerXLForClassification, own: Part, features: Share | None) -> FloatArray:
        while features is not None:
            try:
                return predict_logits(model, self.windows, own, features)
            except DamagedFeatures as damage:
                try:
                    features.cache.mend(damage)
                except UnusableFiles as error:
                    logger.warning("%s; they are computed each time from now on", error)
                    self._features = features = None
        return predict_logits(model, self.windows, own)

    def canary_loss(self, model: TimerXLForClassification) -> float:
        """Log-loss of a few fixed windows."""
        return log_loss(predict_logits(model, self.windows, self._canaries), self._canaries.y)


def log_loss(logits_BK: FloatArray, y_B: NDArray[np.int64]) -> float:
    """Mean cross-entropy of the classes, in float64; not finite if a logit is not."""
    return float(F.cross_entropy(torch.from_numpy(logits_BK).double(), torch.from_numpy(y_B)))


def calibrated_loss(logits_BK: FloatArray, y_B: NDArray[np.int64]) -> float:
    """Log-loss of the classes at the temperature that suits them best; not finite if a logit is not.

    A forecast that is only too sure of itself is mended by the calibration of the final model, so it does not count against
    an epoch.
    """
    if not np.isfinite(logits_BK).all():
        return float("nan")
    scale = calibrate(logits_BK, y_B, "temperature", np.zeros(len(y_B), np.int64)).slope
    return log_loss((scale * logits_BK).astype(np.float32), y_B)


def brier_skill(logits_BK: FloatArray, y_B: NDArray[np.int64], share_K: NDArray[np.float64]) -> float:
    """Brier skill score 1 − BS / BS₀ against a constant forecast of the class shares.

    The Brier score of a forecast p is Σₖ (pₖ − oₖ)² = Σₖ pₖ² − 2 p_y + 1. For two classes the skill is that of the event. It
    is not finite if a logit is not, or if BS₀ is 0.
    """
    p_BK = probabilities(logits_BK)
    score = (np.square(p_BK).sum(1) - 2 * p_BK[np.arange(len(y_B)), y_B] + 1).mean()
    reference = (np.square(share_K).sum() - 2 * share_K[y_B] + 1).mean()
    return float(1 - score / reference) if reference > 0 else float("nan")
