"""Verification of a model on one part: its scores beside those of the references, and the verdict.

Shapes: n rows, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llueve.errors import DataError, GuardStop, UsageError
from llueve.panel import minute
from llueve.samples.periods import PeriodWarning, period_warnings
from llueve.samples.split import Part
from llueve.verification.bootstrap import DateBlocks
from llueve.verification.class_scores import class_summary
from llueve.verification.contingency import THRESHOLD
from llueve.verification.curve_tables import MOST_ISOTONIC, curve_tables
from llueve.verification.forecasts import Forecasts
from llueve.verification.groups import groups
from llueve.verification.intervals import bins_and_points, comparisons, drawn, score_intervals
from llueve.verification.reference_data import ReferenceData
from llueve.verification.references import all_references
from llueve.verification.summary import summary
from llueve.verification.verdict import is_collapsed, verdict


@dataclass(frozen=True, eq=False)
class Verification:
    """A verified part."""

    content: dict[str, Any]
    """The content of `verification.json`: docs/verification.md defines every key."""
    reference_p: Mapping[str, NDArray[np.float64]]
    """The probabilities (n,) of each reference, by name."""


def verify(
    data: ReferenceData,
    part: Part,
    model_p: ArrayLike,
    sites: Sequence[str],
    bootstrap: int,
    block_days: int,
    event_index: int,
    threshold: float = THRESHOLD,
) -> Verification:
    """Verify a model and all references on the rows of a part.

    The model gives each row a probability of the event, the class `event_index`: `model_p` (n,) in [0, 1], or one of each
    class, (n, K), which adds the scores of several classes if K > 2. The names `sites` have the order of `data.cube_STC`.
    Yes/no scores count a probability from `threshold` upwards as yes.

    Raises:
        GuardStop: a probability of the model is not finite; nothing is scored then.
        UsageError: the number of probabilities is not the number of rows.
        DataError: a probability is out of range, a part has no row, or part and data differ in an outcome.
    """
    p = _finite(model_p, data, part, sites)
    y_n = (part.y == event_index).astype(np.int64)
    differs = data.event_ST[part.site, part.end] != y_n
    if differs.any():  # the model and the references forecast another event
        raise DataError(
            f"{part.name}: the outcome of {differs.sum():,} of {len(part):,} rows is not that of the references, the first at "
            f"{_row(int(np.argmax(differs)), data, part, sites)}; expected event_ST to be 1 exactly where the class is the event"
        )
    if not len(part):
        raise DataError(f"{part.name}: no forecast to score, expected at least one row")
    warnings = list(period_warnings(data.event_ST, data.times, data.training, part, block_days))
    forecasts = Forecasts(
        name=part.name,
        sites=sites,
        site_n=part.site,
        issued_n=data.times[part.end],
        y_n=y_n,
        model_p=p if p.ndim == 1 else p[:, event_index],
        reference_p=all_references(data, part),
        horizon_hours=data.horizon_hours,
    )
    blocks = DateBlocks.of(forecasts.issued_n, block_days, data.horizon_hours, bootstrap, data.seed)
    classes = None
    if p.ndim == 2 and p.shape[1] > 2:
        classes = class_summary(p, part.y, np.bincount(data.training.y, minlength=p.shape[1]) / len(data.training))
    content = judged(forecasts, blocks, warnings, threshold)
    settings = {
        "bootstrap": bootstrap,
        "block_days": block_days,
        "lags": None if data.lags is None else list(data.lags),
    }
    return Verification(content | {"classes": classes, "settings": settings}, forecasts.reference_p)


def judged(
    forecasts: Forecasts, blocks: DateBlocks, warnings: Sequence[PeriodWarning], threshold: float = THRESHOLD
) -> dict[str, Any]:
    """Scores, intervals, curves, groups and verdict of forecasts whose numbers were checked.

    The best reference is that of the lowest Brier score. With too few events there is neither skill nor interval, and with
    fewer than 5 blocks no interval.
    """
    p_n, y_n, over = forecasts.model_p, forecasts.y_n, forecasts.skill_reference
    references = {name: summary(each, y_n, over, threshold) for name, each in forecasts.reference_p.items()}
    bins, isotonic_at = bins_and_points(forecasts, MOST_ISOTONIC)
    draws = None
    if forecasts.too_few is None and blocks.enough:
        draws = drawn(forecasts, blocks, bins, isotonic_at)
    against = comparisons(forecasts, draws)
    found: dict[str, Any] = {
        "part": forecasts.name,
        "n": len(forecasts),
        "base_rate": forecasts.base_rate,
        "mean_forecast": float(p_n.mean()),
        "threshold": threshold,
        "model": summary(p_n, y_n, over, threshold),
        "references": references,
        "constant": summary(np.full(len(forecasts), forecasts.base_rate), y_n, over, threshold),
        "collapsed": is_collapsed(float(p_n.std()), float(p_n.min()), float(p_n.max()), forecasts.base_rate),
        "intervals": score_intervals(forecasts, draws),
        "comparison": _with_the_best(references, against, blocks),
        "comparisons": against,
        "curves": curve_tables(forecasts, bins, isotonic_at, draws),
        "groups": groups(forecasts),
        "cautions": [{"code": each.code, "message": each.message} for each in warnings],
    }
    code, sentences = verdict(found)
    return found | {"verdict": sentences, "verdict_code": code}


def _with_the_best(
    references: Mapping[str, Any], against: Mapping[str, Mapping[str, Any]], blocks: DateBlocks
) -> dict[str, Any]:
    """The comparison with the reference of the lowest Brier score; its values are None without a reference."""
    best = min(references, key=lambda name: references[name]["brier"], default=None)
    row: Mapping[str, Any] = {} if best is None else against[best]
    return {
        "best_reference": best,
        "brier_difference": row.get("brier_difference"),
        "interval": row.get("brier_interval"),
        "skill_over_best": row.get("skill"),
        "skill_interval": row.get("skill_interval"),
        "blocks": blocks.count,
        "block_days": blocks.days,
        "resamples": blocks.resamples,
    }


def _finite(model_p: ArrayLike, data: ReferenceData, part: Part, sites: Sequence[str]) -> NDArray[np.float64]:
    """The model's probabilities, one row of them per row, all finite: non-finite values never enter a score."""
    p = np.asarray(model_p, dtype=np.float64)
    if p.ndim not in (1, 2) or len(p) != len(part):
        raise UsageError(f"{part.name} has {len(part)} rows; expected one probability each, found an array {p.shape}")
    bad = ~np.isfinite(p).all(axis=tuple(range(1, p.ndim)))
    if bad.any():
        at = int(np.argmax(bad))
        raise GuardStop(
            f"the model gave {bad.sum():,} non-finite probabilities for the {len(part):,} rows of {part.name}, the "
            f"first {p[at]} at {_row(at, data, part, sites)}; expected numbers in [0, 1]. Nothing is verified: look for "
            "missing or absurd values there with the audit, and check the weights"
        )
    return p


def _row(row: int, data: ReferenceData, part: Part, sites: Sequence[str]) -> str:
    """Site and issue time of a row."""
    return f"site {sites[part.site[row]]}, issue time {minute(data.times[part.end[row]])} UTC"
