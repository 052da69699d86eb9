"""Windows of the corpus as the training sees them: a week of hours, and what follows each of its days.

Shapes: B windows, L hours of context, Q quantities, N days, P hours of a day, W hours of context and the day after it,
R amounts of rain, G facts of place and time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llueve.config.model_keys import DAY_HOURS
from llueve.errors import DataError
from llueve.model.weather_xl import DAYS, RAIN_MM
from llueve.panel import UNKNOWN, BoolArray, FloatArray
from llueve.pretraining.corpus import EPOCH, Corpus
from llueve.pretraining.window_shares import window_shares
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES, RAIN
from llueve.samples.encoder_inputs import place_facts
from llueve.samples.split import Part
from llueve.samples.windows import WindowSource

MOST_MISSING_HOURS = 2
"""Most missing hours of a day whose amount of rain counts as known; more, if the known hours already reach an amount."""
LEAST_OBSERVED = 0.3
"""Smallest share of the hours of a window in which a site has an observation."""
HIDDEN = 0.15
"""Probability that a window hides a quantity, so that the encoder also works without it."""
COARSE = ((3, 0.1), (6, 0.2))
"""Steps in hours, longer than one, and the probability that a window has them."""
AT_A_TIME = 4096
_RAIN = ENCODER_QUANTITIES.index(RAIN)


@dataclass(frozen=True, eq=False)
class CorpusWindows(WindowSource):
    """Windows of a corpus. The issue time of a window is an hour of the time axis that all sites share."""

    corpus: Corpus
    seed: int
    """Decides what each training window hides."""
    days: int = DAYS
    """N, days of the context."""

    network = None

    @property
    def context(self) -> int:
        """L, hours of the context."""
        return self.days * DAY_HOURS

    @property
    def cells(self) -> int:
        """Cells of one window."""
        return self.context * len(ENCODER_QUANTITIES)

    def batch(self, part: Part) -> tuple[FloatArray, BoolArray, FloatArray]:
        """Values (B, Q, L), observed (B, Q, L) and facts (B, G) of the windows of `part`."""
        values_BQL = self._hidden(part, self.hours(part, self.context, 0))
        observed_BQL = ~np.isnan(values_BQL)
        values_BQL[~observed_BQL] = 0.0
        latitude_B, longitude_B = self.corpus.position_S2[part.site].T
        return values_BQL, observed_BQL, place_facts(EPOCH + part.end, latitude_B, longitude_B)

    def newest(self, part: Part) -> FloatArray:
        """The values of the issue time as the model sees them, (B, Q)."""
        values_BQL, _, _ = self.batch(part)
        return values_BQL[:, :, -1]

    def targets(self, part: Part) -> dict[str, tuple[NDArray[Any], ...]]:
        """The values and the rain after each day of the windows, as `days`."""
        return {"days": self.next_days(part)}

    def next_days(self, part: Part) -> tuple[NDArray[np.float32], BoolArray, NDArray[np.float32], BoolArray]:
        """The fields of `NextDays` for the windows of `part`."""
        values_BQW = self.hours(part, self.context, DAY_HOURS)
        later_BQNP = values_BQW.reshape(*values_BQW.shape[:2], self.days, DAY_HOURS)
        known_BQNP = ~np.isnan(later_BQNP)
        reached_BNR, rain_known_BNR = rain_reached(later_BQNP[:, _RAIN])
        return (
            np.where(known_BQNP, later_BQNP, 0.0).astype(np.float32),
            known_BQNP,
            reached_BNR.astype(np.float32),
            rain_known_BNR,
        )

    def non_finite(self, part: Part) -> int:
        """Number of windows with a number that is not finite: none, because missing values are masked."""
        return 0

    def observed_share(self, part: Part) -> NDArray[np.float64]:
        """Share of the hours of each window in which any quantity was observed, (B,), 0…1."""
        corpus = self.corpus
        last_B = corpus.start_S[part.site] + part.end - corpus.first_S[part.site]
        first_B = np.maximum(last_B - self.context + 1, corpus.start_S[part.site])
        return np.asarray((corpus.observed_H[last_B + 1] - corpus.observed_H[first_B]) / self.context)

    def hours(self, part: Part, hours: int, later: int) -> FloatArray:
        """Values (B, Q, hours) that end `later` hours after the issue times; NaN before the first and after the last hour."""
        start_S = self.corpus.start_S
        at_BL = (part.end - self.corpus.first_S[part.site])[:, None] + np.arange(later - hours + 1, later + 1)
        inside_BL = (at_BL >= 0) & (at_BL < self.corpus.hours_S[part.site][:, None])
        values_BLQ = self.corpus.values_HQ[start_S[part.site][:, None] + np.where(inside_BL, at_BL, 0)].astype(
            np.float32
        )
        values_BLQ[~inside_BL] = np.nan
        return np.ascontiguousarray(values_BLQ.transpose(0, 2, 1))

    def _hidden(self, part: Part, values_BQL: FloatArray) -> FloatArray:
        """Training windows with some quantities hidden, and some with a longer step; others are unchanged."""
        if part.name != "training":
            return values_BQL
        for row, (site, end) in enumerate(zip(part.site.tolist(), part.end.tolist(), strict=True)):
            draw = np.random.default_rng((self.seed, site, end))
            step, chance = 1, draw.random()
            for longer, share in COARSE:
                if chance < share:
                    step = longer
                    break
                chance -= share
            if step > 1:
                values_BQL[row] = _coarse(values_BQL[row], step, int(end))
            present = np.flatnonzero(~np.isnan(values_BQL[row]).all(axis=1))
            hide = present[draw.random(len(present)) < HIDDEN]
            if len(hide) < len(present):
                values_BQL[row, hide] = np.nan
        return values_BQL


def rain_reached(rain_XP: FloatArray) -> tuple[BoolArray, BoolArray]:
    """True for each amount of `RAIN_MM` that the hours of a day reach, and True where this is known, (X, R).

    Args:
        rain_XP: rain of each hour as log(1 + mm), for any leading dimensions; NaN where missing.
    """
    mm_XP = np.expm1(rain_XP.astype(np.float64))
    amount_X1 = np.nansum(mm_XP, axis=-1)[..., None]
    reached_XR = amount_X1 >= np.array(RAIN_MM) - 1e-2  # half precision: 1 mm is kept as 0.9995
    return reached_XR, reached_XR | (np.isnan(mm_XP).sum(-1) <= MOST_MISSING_HOURS)[..., None]


def _coarse(values_QL: FloatArray, step: int, end: int) -> FloatArray:
    """The values every `step` hours of UTC: means of these hours, of rain the sum; the other hours are missing."""
    hours = np.arange(end - values_QL.shape[1] + 1, end + 1)
    coarse_QL = np.full_like(values_QL, np.nan)
    ends = np.flatnonzero((hours % step == 0) & (np.arange(len(hours)) >= step - 1))
    # A mean or sum with a missing hour is NaN, which means missing.
    blocks_QXK = values_QL[:, ends[:, None] + np.arange(1 - step, 1)]
    coarse_QL[:, ends] = blocks_QXK.mean(axis=-1)
    coarse_QL[_RAIN, ends] = np.log1p(np.expm1(blocks_QXK[_RAIN]).sum(axis=-1))
    return coarse_QL


def drawn_windows(corpus: Corpus, windows: CorpusWindows, count: int, seed: int, held_out: bool) -> Part:
    """Windows at random hours of random sites: `count` of them, or fewer if the corpus is small; see `window_shares`.

    Raises:
        DataError: as `window_shares`, or no window has enough observations and, at sites that are held out, an outcome.
    """
    name = "validation" if held_out else "training"
    share_S = window_shares(corpus, held_out)
    draw = np.random.default_rng(seed)
    site_n = draw.choice(len(share_S), size=2 * count, p=share_S)
    length_n = corpus.hours_S[site_n]
    # The context may begin before the first hour by all but a day, and the day after it must be known.
    at_n = (DAY_HOURS - 1 + draw.random(len(site_n)) * np.maximum(length_n - 2 * DAY_HOURS, 1)).astype(np.int64)
    end_n = corpus.first_S[site_n] + at_n
    order = np.lexsort((end_n, site_n))
    keep = np.ones(len(order), bool)
    keep[1:] = (np.diff(site_n[order]) != 0) | (np.diff(end_n[order]) != 0)
    part = Part(name, site_n[order[keep]], end_n[order[keep]], np.full(int(keep.sum()), UNKNOWN))
    chosen = np.concatenate(list(_usable(windows, part, held_out)))
    if not len(chosen):
        needs = "observations and rain in the day after it" if held_out else "observations"
        raise DataError(
            f"none of {len(part):,} drawn {name} windows has enough {needs}; the corpus needs longer records"
        )
    chosen = np.sort(draw.permutation(chosen)[:count])
    return part_with_outcomes(windows, part[chosen])


def _usable(windows: CorpusWindows, part: Part, with_outcome: bool) -> Iterator[NDArray[np.int64]]:
    """Positions of windows with enough observations; with an outcome, if asked."""
    for start in range(0, len(part), AT_A_TIME):
        rows = part[start : start + AT_A_TIME]
        good = windows.observed_share(rows) >= LEAST_OBSERVED
        if with_outcome:
            good &= part_with_outcomes(windows, rows).y != UNKNOWN
        yield start + np.flatnonzero(good)


def part_with_outcomes(windows: CorpusWindows, part: Part) -> Part:
    """The windows with their class: 1 if at least 1 mm falls in the 24 hours after the issue time; `UNKNOWN` if unknown."""
    y = np.full(len(part), UNKNOWN)
    for start in range(0, len(part), AT_A_TIME):
        rows = part[start : start + AT_A_TIME]
        reached_BR, known_BR = rain_reached(windows.hours(rows, DAY_HOURS, DAY_HOURS)[:, _RAIN])
        y[start : start + AT_A_TIME] = np.where(known_BR[:, 1], reached_BR[:, 1], UNKNOWN)
    return Part(part.name, part.site, part.end, y)
