"""Calibration and threshold of a trained model, fitted on its validation period."""

import math

import numpy as np
from numpy.typing import NDArray

from llueve.calibration.calibrate import Calibration, calibrate
from llueve.calibration.decision import EventThreshold, choose_threshold
from llueve.config import Config
from llueve.samples.periods import day_blocks
from llueve.samples.split import Part

ALL_SEASONS = np.timedelta64(350, "D")
"""Shortest validation period that counts as a whole year: windows near its ends may be missing."""


def fit_on_validation(
    logits_nK: NDArray[np.floating], part: Part, times: NDArray[np.datetime64], config: Config
) -> tuple[Calibration, EventThreshold]:
    """The calibration that `[calibration]` asks for, and the threshold that `[decision]` asks for.

    Args:
        logits_nK: finite logits of the windows of `part`, (n, K).
        part: the validation windows, whose outcomes are known; `part.end` indexes `times`.
    """
    days = max(config.verify.block_days, math.ceil(config.target.horizon_hours / 24))
    issued = times[part.end]
    whole_year = len(issued) > 0 and issued.max() - issued.min() >= ALL_SEASONS
    calibration = calibrate(logits_nK, part.y, config.calibration.method, day_blocks(issued, days), bool(whole_year))
    event = config.target.event_index
    p_n, happened_n = calibration.probabilities(logits_nK)[:, event], (part.y == event).astype(np.int64)
    return calibration, choose_threshold(p_n, happened_n, config.decision)
