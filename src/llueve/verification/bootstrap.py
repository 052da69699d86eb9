"""Paired block bootstrap: whole blocks of dates are drawn with replacement, the same ones for every forecast and score.

Miscalibration is drawn from half of the blocks instead, see `interval_from_halves`.

Neighbouring days and sites are alike, and drawing single rows would make intervals too narrow. All sites of a date
belong to one block. Shapes: n rows, B blocks, R resamples, S statistics, G distinct probabilities.

Reference: Künsch 1989, Annals of Statistics 17, doi:10.1214/aos/1176347265; Hamill 1999, Weather and Forecasting 14,
doi:10.1175/1520-0434(1999)014<0155:HTFENP>2.0.CO;2
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llueve.samples.periods import day_blocks
from llueve.verification.decomposition import isotonic_frequencies

Floats = NDArray[np.float64]
FEWEST_BLOCKS = 5
"""Fewest blocks of dates for an interval. With fewer, resampling understates the uncertainty."""
COVERAGE = (0.025, 0.975)
"""Quantiles between which the 95 % interval lies."""
NUMBERS_AT_ONCE = 2_000_000
"""Most numbers of one array of drawn rows. It bounds the memory, not the result."""


@dataclass(frozen=True, eq=False)
class DateBlocks:
    """The blocks of dates that are drawn together, and how often. The same seed draws the same blocks."""

    block_n: NDArray[np.intp]
    days: int
    """Length of a block."""
    resamples: int
    seed: int

    @classmethod
    def of(
        cls,
        issued_n: NDArray[np.datetime64],
        block_days: int,
        horizon_hours: float | None,
        resamples: int,
        seed: int,
    ) -> "DateBlocks":
        """Calendar blocks of `block_days` days from the first date, or of the horizon if it is longer."""
        days = max(block_days, math.ceil((horizon_hours or 0) / 24))
        return cls(day_blocks(issued_n, days), days, resamples, seed)

    @property
    def count(self) -> int:
        """Number of blocks with rows."""
        return int(self.block_n.max()) + 1

    @property
    def enough(self) -> bool:
        """True if there are enough blocks for intervals."""
        return self.count >= FEWEST_BLOCKS

    def draws(self) -> Iterator[Floats]:
        """Yield how often each block is drawn, (r, B): r resamples at once, `resamples` in all."""
        random = np.random.default_rng(self.seed)
        chance = np.full(self.count, 1 / self.count)
        for size in self._sizes():
            yield random.multinomial(self.count, chance, size=size).astype(np.float64)

    def halves(self) -> Iterator[Floats]:
        """Yield 1 for each block that is drawn and 0 for the others, (r, B): half of the blocks, none of them twice."""
        random = np.random.default_rng((self.seed, 1))
        for size in self._sizes():
            rank_RB = random.random((size, self.count)).argsort(axis=1)
            yield (rank_RB < self.half).astype(np.float64)

    @property
    def half(self) -> int:
        """Number of blocks in a half sample."""
        return self.count // 2

    def _sizes(self) -> Iterator[int]:
        at_once = max(1, NUMBERS_AT_ONCE // len(self.block_n))
        for start in range(0, self.resamples, at_once):
            yield min(at_once, self.resamples - start)

    def sums(self, *statistics: NDArray[np.number]) -> Floats:
        """The sum of each statistic (n,) over the rows of each block, (B, S)."""
        return np.stack(
            [np.bincount(self.block_n, weights=each_n, minlength=self.count) for each_n in statistics], axis=1
        )

    def sums_by_bin(self, bin_n: NDArray[np.intp], bins: int, statistic_n: NDArray[np.number]) -> Floats:
        """The sum of one statistic over the rows of each block and bin, (B, bins)."""
        cell_n = self.block_n * bins + bin_n
        sums = np.bincount(cell_n, weights=statistic_n, minlength=self.count * bins)
        return sums.reshape(self.count, bins).astype(np.float64)


class RankedForecast:
    """One forecast sorted by its probability, with equal probabilities as one group, for statistics of the order."""

    def __init__(self, p_n: Floats, y_n: NDArray[np.int64], blocks: DateBlocks) -> None:
        order = np.argsort(p_n, kind="stable")
        self.probability_G, starts = np.unique(p_n[order], return_index=True)
        self._starts = starts if len(starts) < len(p_n) else None
        self._y_n, self._block_n = y_n[order].astype(np.float64), blocks.block_n[order]

    def drawn(self, counts_RB: Floats) -> tuple[Floats, Floats]:
        """Drawn events and drawn rows of each distinct probability, both (R, G)."""
        rows = counts_RB[:, self._block_n]
        events = rows * self._y_n
        if self._starts is None:
            return events, rows
        return np.add.reduceat(events, self._starts, axis=1), np.add.reduceat(rows, self._starts, axis=1)


def resampled_auc(events_RG: Floats, rows_RG: Floats) -> Floats:
    """AUC of each resample (R,), NaN if it has no event or no non-event: `scores.auc` of the drawn rows."""
    others_RG = rows_RG - events_RG
    below_RG = np.cumsum(others_RG, axis=1)
    pairs_R = events_RG.sum(axis=1) * below_RG[:, -1]
    below_RG -= others_RG / 2
    won_R = np.einsum("rg,rg->r", events_RG, below_RG)
    return np.asarray(np.divide(won_R, pairs_R, out=np.full(len(pairs_R), np.nan), where=pairs_R > 0))


def resampled_recalibration(
    events_RG: Floats, rows_RG: Floats, probability_G: Floats, at_Q: Floats
) -> tuple[Floats, Floats]:
    """Mean Brier score of the recalibrated forecast (R,), and its isotonic curve at the probabilities `at_Q`, (R, Q)."""
    scores, curves = [], []
    for events_G, rows_G in zip(events_RG, rows_RG, strict=True):
        seen = rows_G > 0
        events, rows = events_G[seen], rows_G[seen]
        fitted = isotonic_frequencies(events, rows)
        # Σ rows (fitted - outcome)², with outcomes 0 and 1 gathered into events.
        scores.append((fitted * (rows * fitted - 2 * events) + events).sum() / rows.sum())
        curves.append(np.interp(at_Q, probability_G[seen], fitted))
    return np.array(scores), np.array(curves)


def interval_from_halves(estimate: float, half_R: Floats, blocks: DateBlocks) -> list[float]:
    """The 95 % interval of a miscalibration, 0 or more, from its values in half samples of the blocks.

    Isotonic regression also fits chance, so an estimated MCB is too high, in proportion to n^(-2/3). Half samples are too
    high by 2^(2/3) times as much, which gives the error, and it is taken away. A bootstrap would repeat rows, which looks
    like miscalibration. The spread of half samples without repetition is that of the whole.

    Reference: Politis and Romano 1994, Annals of Statistics 22, doi:10.1214/aos/1176325770; the rate is that of isotonic
    regression, Zhang 2002, Annals of Statistics 30, doi:10.1214/aos/1021379864
    """
    others = blocks.count - blocks.half
    error = (half_R.mean() - estimate) / ((blocks.count / blocks.half) ** (2 / 3) - 1)
    deviations = np.quantile(half_R - half_R.mean(), COVERAGE) * math.sqrt(blocks.half / others)
    return [max(0.0, float(estimate - error - deviation)) for deviation in deviations[::-1]]


def interval(resampled_R: Floats) -> list[float] | None:
    """The 95 % percentile interval; None if a resample left the statistic undefined.

    Leaving such resamples out would bias the interval.
    """
    return None if not np.isfinite(resampled_R).all() else np.quantile(resampled_R, COVERAGE).tolist()
