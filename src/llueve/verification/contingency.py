"""Scores of yes/no forecasts: a probability from the threshold upwards, itself included, is "yes".

A score is None if its denominator is 0, for example POD without an event. The letters are the usual ones: a hits,
b false alarms, c misses, d correct rejections, n = a + b + c + d.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from llueve.errors import DataError
from llueve.verification.scores import checked

THRESHOLD = 0.5
"""Threshold of a forecast that has chosen none."""


@dataclass(frozen=True)
class Contingency:
    """The contingency table of yes/no forecasts of one event.

    Reference for all scores: Wilks 2019, Statistical Methods in the Atmospheric Sciences, chapter 9,
    doi:10.1016/C2017-0-03921-6
    """

    hits: int
    misses: int
    false_alarms: int
    correct_rejections: int

    @property
    def n(self) -> int:
        """Number of forecasts."""
        return self.hits + self.misses + self.false_alarms + self.correct_rejections

    @property
    def accuracy(self) -> float | None:
        """Share of right forecasts (a + d) / n, 0 to 1. High for a constant "no" to a rare event: see the base rate.

        Reference: Finley 1884 and its critics, in Murphy 1996, Weather and Forecasting 11,
        doi:10.1175/1520-0434(1996)011<0003:TFAASE>2.0.CO;2
        """
        return _ratio(self.hits + self.correct_rejections, self.n)

    @property
    def pod(self) -> float | None:
        """Probability of detection a / (a + c), the hit rate or recall: 0 to 1, best 1. None without an event."""
        return _ratio(self.hits, self.hits + self.misses)

    @property
    def far(self) -> float | None:
        """False alarm ratio b / (a + b), 1 - precision: 0 to 1, best 0. None without a yes."""
        return _ratio(self.false_alarms, self.hits + self.false_alarms)

    @property
    def pofd(self) -> float | None:
        """Probability of false detection b / (b + d), the false alarm rate: 0 to 1, best 0. None without a non-event."""
        return _ratio(self.false_alarms, self.false_alarms + self.correct_rejections)

    @property
    def bias(self) -> float | None:
        """Frequency bias (a + b) / (a + c): 0 upwards, best 1; above 1 yes is said too often. None without an event."""
        return _ratio(self.hits + self.false_alarms, self.hits + self.misses)

    @property
    def csi(self) -> float | None:
        """Critical success index a / (a + b + c), the threat score: 0 to 1, best 1. None without event and yes.

        Reference: Schaefer 1990, Weather and Forecasting 5, doi:10.1175/1520-0434(1990)005<0570:TCSIAA>2.0.CO;2
        """
        return _ratio(self.hits, self.hits + self.misses + self.false_alarms)

    @property
    def ets(self) -> float | None:
        """Equitable threat score (a - r) / (a + b + c - r), r = (a + b)(a + c) / n hits by chance: -1/3 to 1, chance 0.

        Reference: Hogan et al. 2010, Weather and Forecasting 25, doi:10.1175/2009WAF2222350.1
        """
        a, b, c, d = self.hits, self.false_alarms, self.misses, self.correct_rejections
        # Both sides times n, in whole numbers: a r that is rounded could hide a denominator of 0.
        return _ratio(a * d - b * c, self.n * (b + c) + a * d - b * c)

    @property
    def hss(self) -> float | None:
        """Heidke skill score 2(ad - bc) / [(a + c)(c + d) + (a + b)(b + d)]: -1 to 1, chance 0.

        Reference: Heidke 1926, Geografiska Annaler 8, doi:10.1080/20014422.1926.11881138
        """
        a, b, c, d = self.hits, self.false_alarms, self.misses, self.correct_rejections
        return _ratio(2 * (a * d - b * c), (a + c) * (c + d) + (a + b) * (b + d))

    @property
    def pss(self) -> float | None:
        """Peirce skill score POD - POFD: -1 to 1, chance and constants 0. None without events or without non-events.

        Reference: Peirce 1884, Science 4, doi:10.1126/science.ns-4.93.453-a
        """
        return None if self.pod is None or self.pofd is None else self.pod - self.pofd

    @property
    def sedi(self) -> float | None:
        """Symmetric extremal dependence index, with F = POFD and H = POD: -1 to 1, chance 0; made for rare events.

        SEDI = [ln F - ln H - ln(1 - F) + ln(1 - H)] / [ln F + ln H + ln(1 - F) + ln(1 - H)]. None if H or F is 0, 1 or
        undefined.

        Reference: Ferro and Stephenson 2011, Weather and Forecasting 26, doi:10.1175/WAF-D-10-05030.1
        """
        h, f = self.pod, self.pofd
        if h is None or f is None or not (0 < h < 1 and 0 < f < 1):
            return None
        no_h, no_f = math.log1p(-h), math.log1p(-f)
        return (math.log(f) - math.log(h) - no_f + no_h) / (math.log(f) + math.log(h) + no_f + no_h)

    @property
    def f1(self) -> float:
        """F1 = 2a / (2a + b + c): 0 to 1, best 1; 0 if a, b and c are 0.

        Reference: Dice 1945, Ecology 26, doi:10.2307/1932409
        """
        return _ratio(2 * self.hits, 2 * self.hits + self.misses + self.false_alarms) or 0.0

    def counts(self) -> dict[str, int]:
        """The four counts by name; they add up to n."""
        return asdict(self)


def contingency(p: ArrayLike, y: ArrayLike, threshold: float = THRESHOLD) -> Contingency:
    """The contingency table of the forecasts, with p ≥ threshold as yes.

    Raises:
        DataError: p or y cannot be scored, or the threshold is not in [0, 1].
    """
    p, y = checked(p, y)
    if not 0 <= threshold <= 1:
        raise DataError(f"the threshold is {threshold}; expected a probability in [0, 1]")
    counts = np.bincount(2 * (p >= threshold) + y, minlength=4).tolist()
    return Contingency(hits=counts[3], misses=counts[1], false_alarms=counts[2], correct_rejections=counts[0])


def _ratio(part: int, whole: int) -> float | None:
    return None if whole == 0 else part / whole
