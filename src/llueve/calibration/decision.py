"""The decision: a threshold that turns the probability of the event into yes or no, chosen on the validation period.

Shapes: n windows, J thresholds.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from llueve.config import DecisionConfig, DecisionRule, Section

Doubles = NDArray[np.float64]

HALF = 0.5
ROUNDING = 1e-9
"""Share of the events by which a product may miss a whole number of them."""


class EventThreshold(Section):
    """A threshold and its scores on validation, as `model.json` holds them."""

    rule: DecisionRule = "half"
    threshold: float = Field(HALF, ge=0, le=1)
    """Probability from which the forecast says yes, itself included."""
    validation: dict[str, float | None] = Field(default_factory=dict)
    """Counts and scores of the threshold on validation: see `choose_threshold`. A score is None if it is undefined."""

    def says_yes(self, p_n: Doubles) -> NDArray[np.bool_]:
        """True for each probability from the threshold on."""
        return np.asarray(p_n >= self.threshold)


class _Counts(NamedTuple):
    """Contingency tables of several thresholds, each number by threshold (J,)."""

    hits: Doubles
    misses: Doubles
    false_alarms: Doubles
    correct_rejections: Doubles


def choose_threshold(p_n: Doubles, y_n: NDArray[np.integer], asked: DecisionConfig) -> EventThreshold:
    """The threshold that a rule asks for, and its scores on the same windows.

    The candidates lie halfway between neighbouring probabilities; "never" and "always" are candidates too. Of equally good
    thresholds the highest is taken: it has the fewest false alarms.

    - `f1` and `csi`: highest 2h / (2h + m + f) and h / (h + m + f), with h hits, m misses and f false alarms. Both have the
      same best threshold, because F1 = 2 CSI / (1 + CSI).
    - `cost_loss`: least expense (C/L) (h + f) + m, for a user who pays C for protection and loses L without it.
    - `recall`: the highest threshold with h / (h + m) of at least `required_recall`.
    - `half`: 0.5.

    Without an event every rule but `cost_loss` gives 0.5, and `cost_loss` gives the ratio C/L itself, which is best for
    calibrated probabilities.

    Args:
        p_n: probabilities of the event, in [0, 1].
        y_n: 1 if the event happened, else 0.
        asked: the rule and its number.

    Returns:
        The decision. Its scores are the four counts, `f1`, `csi`, `recall`, `false_alarm_ratio`, `bias` and, for
        `cost_loss`, `value`: the share of the possible saving over climatology.

    Reference: Murphy 1977, Monthly Weather Review 105, doi:10.1175/1520-0493(1977)105<0803:TVOCCF>2.0.CO;2; Richardson
    2000, Quarterly Journal of the Royal Meteorological Society 126, doi:10.1002/qj.49712656313
    """
    ratio = asked.cost_loss_ratio
    threshold = HALF if ratio is None else ratio
    if asked.rule != "half" and len(y_n) and y_n.any():
        candidates_J = _candidates(p_n)
        counts = _counts(p_n, y_n, candidates_J)
        if asked.rule == "recall":
            assert asked.required_recall is not None
            events = float(y_n.sum())
            good_J = (counts.hits >= asked.required_recall * events - ROUNDING * events).astype(np.float64)
        elif ratio is not None:
            good_J = -_expense(counts, ratio)
        else:
            good_J = counts.hits / np.maximum(counts.hits + counts.misses + counts.false_alarms, 1)
        threshold = float(candidates_J[np.argmax(good_J)])
    return EventThreshold(rule=asked.rule, threshold=threshold, validation=_scores(p_n, y_n, threshold, ratio))


def _candidates(p_n: Doubles) -> Doubles:
    """Thresholds (J,), the highest first: one above every probability, one in each gap, and the lowest probability."""
    distinct = np.unique(p_n)[::-1]
    above = np.concatenate([[1.0], distinct[:-1]])
    middle = (above + distinct) / 2
    # Between neighbouring numbers the middle rounds to one of them, and the lower one would say yes too often.
    thresholds = np.where(middle > distinct, middle, above)
    never = thresholds if distinct[0] < 1 else thresholds[1:]
    return np.concatenate([never, distinct[-1:]])


def _counts(p_n: Doubles, y_n: NDArray[np.integer], thresholds_J: Doubles) -> _Counts:
    """The contingency table of each threshold."""
    order = np.argsort(p_n, kind="stable")
    first_J = np.searchsorted(p_n[order], thresholds_J, side="left")  # from here on the forecasts say yes
    below = np.concatenate([[0], np.cumsum(y_n[order])]).astype(np.float64)
    misses_J = below[first_J]
    hits_J = below[-1] - misses_J
    yes_J = (len(p_n) - first_J).astype(np.float64)
    return _Counts(hits_J, misses_J, yes_J - hits_J, len(p_n) - yes_J - misses_J)


def _expense(counts: _Counts, ratio: float) -> Doubles:
    """Expense of each threshold, in losses."""
    return ratio * (counts.hits + counts.false_alarms) + counts.misses


def _scores(p_n: Doubles, y_n: NDArray[np.integer], threshold: float, ratio: float | None) -> dict[str, float | None]:
    counts = _counts(p_n, y_n, np.array([threshold]))
    hits, misses, alarms, rejections = (float(each[0]) for each in counts)
    found: dict[str, float | None] = {
        "hits": hits,
        "misses": misses,
        "false_alarms": alarms,
        "correct_rejections": rejections,
        "f1": _share(2 * hits, 2 * hits + misses + alarms),
        "csi": _share(hits, hits + misses + alarms),
        "recall": _share(hits, hits + misses),
        "false_alarm_ratio": _share(alarms, hits + alarms),
        "bias": _share(hits + alarms, hits + misses),
    }
    if ratio is not None:
        events, n = hits + misses, len(p_n)
        always_or_never, perfect = min(ratio * n, events), ratio * events
        found["value"] = _share(always_or_never - float(_expense(counts, ratio)[0]), always_or_never - perfect)
    return found


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
