"""The forecast of a trained model: calibrated probabilities of its members' mean, and their spread.

Shapes: M members, n windows, K classes.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from llueve.errors import GuardStop
from llueve.model.batch import best_device
from llueve.panel import FloatArray, minute
from llueve.runs.saved_model import SavedModel
from llueve.samples.split import Part
from llueve.samples.windows import Windows
from llueve.step.predict import mean_logits, predict_logits, probabilities


@dataclass(frozen=True)
class Forecast:
    """Calibrated probabilities of the windows of a part."""

    share_nK: NDArray[np.float64]
    event_n: NDArray[np.float64]
    """That of the event."""
    spread: dict[str, NDArray[np.float64]]
    """Standard deviation of the event's probability between the members, as the column `spread`; empty for one member."""


def forecast_part(saved: SavedModel, panel: xr.Dataset, windows: Windows, part: Part) -> Forecast:
    """Forecast every window of a part.

    Raises:
        GuardStop: a forecast is not finite; nothing is reported.
    """
    logits_MnK = member_logits(saved, panel, windows, part)
    share_nK = saved.calibration.probabilities(mean_logits(logits_MnK))
    spread = {}
    if len(logits_MnK) > 1:
        spread["spread"] = np.std([probabilities(each)[:, saved.event_index] for each in logits_MnK], axis=0)
    return Forecast(share_nK, share_nK[:, saved.event_index], spread)


def member_logits(saved: SavedModel, panel: xr.Dataset, windows: Windows, part: Part) -> FloatArray:
    """Logits (M, n, K) of each member for each window of a part.

    Raises:
        GuardStop: one of them is not finite; nothing is reported.
    """
    members = []
    for classifier in saved.classifiers:
        members.append(predict_logits(classifier.to(best_device()), windows, part))
        classifier.to("cpu")
    logits_MnK = np.stack(members)
    bad = np.flatnonzero(~np.isfinite(logits_MnK).all(axis=(0, 2)))
    if len(bad):
        site, time = panel["site"].values[part.site[bad[0]]], panel["time"].values[part.end[bad[0]]]
        raise GuardStop(
            f"{len(bad)} of {len(part)} forecasts are not finite, the first one for {site} at {minute(time)}, so nothing is "
            "reported. Check the inputs of that window and the weights of the model"
        )
    return logits_MnK
