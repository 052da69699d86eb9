"""Verification of a model on one part: its scores beside those of the references, and the verdict. Shapes: n rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llueve.errors import DataError, GuardStop, UsageError
from llueve.panel import minute
from llueve.samples.periods import FEW_EVENTS, period_warnings
from llueve.samples.split import Part
from llueve.verification.bootstrap import compare
from llueve.verification.reference_data import ReferenceData
from llueve.verification.references import all_references
from llueve.verification.scores import THRESHOLD, summary
from llueve.verification.verdict import verdict


def verify(
    data: ReferenceData,
    part: Part,
    model_p: ArrayLike,
    sites: Sequence[str],
    bootstrap: int,
    block_days: int,
    event_index: int,
    threshold: float = THRESHOLD,
) -> dict[str, Any]:
    """Everything that `verification.json` holds about one part.

    These are `part`, `n`, `base_rate`, `model` and `references` (each a `scores.summary`), `comparison` with the reference
    of lowest Brier score (see `compare`), `verdict` and `verdict_code`. `constant` is the summary of a constant at the
    base rate of `part`: a yardstick that no forecast could know. `cautions` are reasons to read the scores with care
    (code and message); with too few events there is no skill. The model gives each row of `part` a probability of the
    event, the class `event_index`: `model_p` (n,), in [0, 1]. The names `sites` have the order of `data.cube_STC`.
    Yes/no scores count a probability from `threshold` on as yes.

    Raises:
        GuardStop: a probability of the model is not finite; nothing is scored then.
        UsageError: the number of probabilities is not the number of rows.
        DataError: a probability is out of range, a part has no row, or part and data differ in an outcome.
    """
    p_n = _finite(model_p, data, part, sites)
    y_n = (part.y == event_index).astype(np.int64)
    differs = data.event_ST[part.site, part.end] != y_n
    if differs.any():  # the model and the references forecast another event
        raise DataError(
            f"{part.name}: the outcome of {differs.sum():,} of {len(part):,} rows is not that of the references, the first at "
            f"{_row(int(np.argmax(differs)), data, part, sites)}; expected event_ST to be 1 exactly where the class is the event"
        )
    if not len(part):
        raise DataError(f"{part.name}: no forecast to score, expected at least one row")
    cautions = list(period_warnings(data.event_ST, data.times, data.training, part, block_days))
    reference_p = all_references(data, part)
    # Skill is a ratio of scores that a handful of events decide by chance.
    over = None if any(each.code == FEW_EVENTS for each in cautions) else reference_p["climatology"]
    references = {name: summary(p, y_n, over, threshold) for name, p in reference_p.items()}
    best = min(references, key=lambda name: references[name]["brier"])
    compared = compare(p_n, reference_p[best], y_n, data, part, bootstrap=bootstrap, block_days=block_days)
    if over is None:
        compared |= dict.fromkeys(("interval", "skill_over_best", "skill_interval"))
    base_rate = float(y_n.mean())
    found: dict[str, Any] = {
        "part": part.name,
        "n": len(part),
        "base_rate": base_rate,
        "model": summary(p_n, y_n, over, threshold),
        "references": references,
        "constant": summary(np.full(len(part), base_rate), y_n, over),
        "comparison": {"best_reference": best} | compared,
        "cautions": [{"code": each.code, "message": each.message} for each in cautions],
    }
    code, sentence = verdict(found)
    return found | {"verdict": sentence, "verdict_code": code}


def _finite(model_p: ArrayLike, data: ReferenceData, part: Part, sites: Sequence[str]) -> NDArray[np.float64]:
    """The model's probabilities, one per row, all finite: non-finite values never enter a score."""
    p_n = np.asarray(model_p, dtype=np.float64)
    if p_n.shape != (len(part),):
        raise UsageError(f"{part.name} has {len(part)} rows; expected one probability each, found an array {p_n.shape}")
    if (bad := ~np.isfinite(p_n)).any():
        at = int(np.argmax(bad))
        raise GuardStop(
            f"the model gave {bad.sum():,} non-finite probabilities for the {len(part):,} rows of {part.name}, the "
            f"first {p_n[at]} at {_row(at, data, part, sites)}; expected numbers in [0, 1]. Nothing is verified: look for "
            "missing or absurd values there with the audit, and check the weights"
        )
    return p_n


def _row(row: int, data: ReferenceData, part: Part, sites: Sequence[str]) -> str:
    """Site and issue time of a row."""
    return f"site {sites[part.site[row]]}, issue time {minute(data.times[part.end[row]])} UTC"
