"""Score of one threshold on a variable as a forecast of an outcome. Shapes: S sites, T times, N sampled cells."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llueve.panel import BoolArray, FloatArray

SAMPLE = 100_000
"""Number of cells that is enough to estimate a share."""
SHIFTED_CELLS = 1_000_000
"""Number of sampled cells times shifts that are scored at one time."""
ENOUGH_CASES = 30
"""Fewest cases of each class: fewer can be separated by chance."""
WRONG = 0.01
"""Largest share of wrong cases of a variable that nearly equals the outcome."""
WRONG_OF_RARER = 0.05
"""Largest number of its wrong cases, as a share of the rarer class: a constant forecast of a rare event does not count."""
BELOW_PERSISTENCE = 0.25
"""Largest share of its wrong cases, relative to persistence, which knows a part of a long outcome too."""
MISMATCH = 0.03
"""Largest share of wrong cases of the rain that a label was computed from."""
MISMATCH_OF_RARER = 0.15
"""Largest number of its wrong cases, as a share of the rarer class."""


@dataclass(frozen=True)
class Outcomes:
    """Outcomes of the times that the audit may use."""

    labels_ST: FloatArray
    """Class index, NaN if unknown."""
    event_ST: FloatArray
    """1 event, 0 another class, NaN if unknown."""
    horizon: int
    """Length of the horizon in steps."""

    def paired(self, values_ST: FloatArray, k: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """value(t), label(t + k) and event(t + k) for every t with both times."""
        steps = values_ST.shape[1]
        later = slice(max(0, k), steps + min(0, k))
        return values_ST[:, max(0, -k) : steps - max(0, k)], self.labels_ST[:, later], self.event_ST[:, later]

    def equals(self, values_ST: FloatArray, k: int) -> bool:
        """True if value(t) is the class index of t + k, or one threshold on it gives event(t + k), without exception."""
        if abs(k) >= values_ST.shape[1]:
            return False
        value, label, event = self.paired(values_ST, k)
        known = ~np.isnan(value) & ~np.isnan(event)
        wet, dry = value[known & (event == 1)], value[known & (event == 0)]
        if min(len(wet), len(dry)) < ENOUGH_CASES:
            return False
        return bool(wet.min() > dry.max() or wet.max() < dry.min() or (value[known] == label[known]).all())


@dataclass(frozen=True)
class ThresholdScore:
    """Score of the best threshold on a variable for the outcome at one shift."""

    cases: int
    """Cells with both known."""
    rarer: int
    """Cases of the rarer class, event or not."""
    wrong: int
    """Wrong cases of the best threshold, or of the value as the class itself, whichever has fewer."""
    auc: float
    """AUC of ranking events by the variable or by its opposite, 0.5 to 1."""

    @property
    def error(self) -> float:
        """Share of wrong cases; 1 without any case."""
        return self.wrong / self.cases if self.cases else 1.0

    @property
    def has_enough_cases(self) -> bool:
        """True if each class has enough cases."""
        return self.rarer >= ENOUGH_CASES

    def nearly_equals(self, persistence: "ThresholdScore") -> bool:
        """True if the variable nearly equals the outcome, and much more so than persistence."""
        least = min(WRONG, BELOW_PERSISTENCE * persistence.error)
        return self.has_enough_cases and self.error <= least and self.wrong <= WRONG_OF_RARER * self.rarer

    @property
    def is_source(self) -> bool:
        """True if the label was evidently computed from the variable."""
        return self.error <= MISMATCH and self.wrong <= MISMATCH_OF_RARER * self.rarer


class ThresholdScan:
    """The sampled cells of a variable in order, to be scored against the outcome at many shifts. K shifts, E distinct values."""

    def __init__(self, values_ST: FloatArray, outcomes: Outcomes) -> None:
        self.outcomes = outcomes
        known = np.flatnonzero(~np.isnan(values_ST))
        self.is_sample = len(known) > SAMPLE
        if self.is_sample:
            known = np.sort(np.random.default_rng(0).choice(known, SAMPLE, replace=False))
        value = values_ST.reshape(-1)[known]
        order = np.argsort(value, kind="stable")
        self.value_N = value[order]
        self.site_N, self.time_N = np.divmod(known[order], max(1, values_ST.shape[1]))
        self.end_E = np.flatnonzero(np.append(self.value_N[1:] > self.value_N[:-1], True))[: len(known)]

    def scores(self, shifts: Sequence[int]) -> dict[int, ThresholdScore]:
        """Score of value(t) for the outcome at t + k, for each shift k."""
        at_once = max(1, SHIFTED_CELLS // max(1, len(self.value_N)))
        pieces = (shifts[start : start + at_once] for start in range(0, len(shifts), at_once))
        return {k: score for piece in pieces for k, score in zip(piece, self._scores(piece), strict=True)}

    def at(self, k: int) -> ThresholdScore:
        """Score of value(t) for the outcome at t + k."""
        return self.scores([k])[k]

    def _scores(self, shifts: Sequence[int]) -> Iterator[ThresholdScore]:
        event_ST, labels_ST = self.outcomes.event_ST, self.outcomes.labels_ST
        time_KN = self.time_N + np.array(shifts)[:, None]
        last = event_ST.shape[1] - 1
        cells = (self.site_N, np.clip(time_KN, 0, last))
        event_KN = event_ST[cells]
        wet_KN = (event_KN == 1) & (inside_KN := (time_KN >= 0) & (time_KN <= last))
        dry_KN = ~np.isnan(event_KN) & inside_KN & ~wet_KN
        unequal_K = ((self.value_N != labels_ST[cells]) & (wet_KN | dry_KN)).sum(axis=1)
        # Up to each distinct value, and none before the first.
        wet_KE, dry_KE = (
            np.concatenate([np.zeros((len(shifts), 1)), flag_KN.cumsum(axis=1)[:, self.end_E]], axis=1)
            for flag_KN in (wet_KN, dry_KN)
        )
        wet_K, dry_K = wet_KE[:, -1], dry_KE[:, -1]
        ranked_K = (np.diff(wet_KE) * (dry_KE[:, 1:] + dry_KE[:, :-1]) / 2).sum(axis=1)
        wrong_KE = wet_KE + dry_K[:, None] - dry_KE
        cases_K = wet_K + dry_K
        fewest_K = np.minimum(np.minimum(wrong_KE.min(axis=1), cases_K - wrong_KE.max(axis=1)), unequal_K)
        for cases, wet, dry, ranked, fewest in zip(
            *(each.tolist() for each in (cases_K, wet_K, dry_K, ranked_K, fewest_K)), strict=True
        ):
            rarer = int(min(wet, dry))
            auc = ranked / (wet * dry) if rarer else 0.5
            yield ThresholdScore(int(cases), rarer, int(fewest) if rarer else 0, max(auc, 1 - auc))


def best_threshold(value: FloatArray, wet: BoolArray) -> tuple[int, float | None]:
    """Fewest wrong cases of "wet from a threshold", and that threshold; None if it separates no cases."""
    order = np.argsort(value, kind="stable")
    value, wet = value[order], wet[order]
    # With the first n values dry and the others wet, the wrong cases are the wet ones before and the dry ones after.
    wrong = np.concatenate([[0], np.cumsum(wet)]) + np.concatenate([np.cumsum(~wet[::-1])[::-1], [0]])
    possible = np.concatenate([[True], value[1:] > value[:-1], [True]])
    best = int(np.argmin(np.where(possible, wrong, len(value) + 1)))
    return int(wrong[best]), None if best in (0, len(value)) else float(value[best])
