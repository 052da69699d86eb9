"""All scores of one forecast, as `verification.json` holds them."""

from typing import Any

from numpy.typing import ArrayLike

from llueve.verification.contingency import THRESHOLD, contingency
from llueve.verification.curves import expected_calibration_error
from llueve.verification.decomposition import decompose
from llueve.verification.scores import auc, average_precision, brier, brier_skill, log_score, sharpness

AT_THRESHOLD = ("pod", "far", "pofd", "bias", "csi", "ets", "hss", "pss", "sedi")
"""Scores of the contingency table beside accuracy and F1."""


def summary(
    p: ArrayLike, y: ArrayLike, climatology_p: ArrayLike | None, threshold: float = THRESHOLD
) -> dict[str, Any]:
    """The scores of p on the outcomes y; `bss` is the skill over `climatology_p`, None without it.

    `accuracy`, `f1`, `confusion` and the scores after it count p ≥ threshold as yes.
    """
    parts, table = decompose(p, y), contingency(p, y, threshold)
    return {
        "brier": brier(p, y),
        "bss": None if climatology_p is None else brier_skill(p, y, climatology_p),
        "log_score": log_score(p, y),
        "auc": auc(p, y),
        "average_precision": average_precision(p, y),
        "mcb": parts.mcb,
        "dsc": parts.dsc,
        "unc": parts.unc,
        "ece": expected_calibration_error(p, y),
        "sharpness": sharpness(p),
        "accuracy": table.accuracy,
        "f1": table.f1,
        "confusion": table.counts(),
        **{name: getattr(table, name) for name in AT_THRESHOLD},
    }
