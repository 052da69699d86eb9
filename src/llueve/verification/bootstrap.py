"""Paired block bootstrap: intervals of the Brier difference and of the skill between a model and one reference.

Shapes: n rows of a part, B blocks of dates, R resamples.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llueve.samples.periods import day_blocks
from llueve.samples.split import Part
from llueve.verification.reference_data import ReferenceData

FEWEST_BLOCKS = 5
"""Fewest blocks of dates for an interval. With fewer, resampling understates the uncertainty."""
COVERAGE = (0.025, 0.975)
"""Quantiles between which the 95 % interval lies."""
RESAMPLES_AT_ONCE = 1000
"""Resamples drawn together. It bounds the memory: 100,000 resamples of B counts each are never held at once."""


def compare(
    model_p: NDArray[np.float64],
    reference_p: NDArray[np.float64],
    y: NDArray[np.int64],
    data: ReferenceData,
    part: Part,
    *,
    bootstrap: int,
    block_days: int,
) -> dict[str, Any]:
    """Brier difference and skill of the model against one reference on the same rows, with 95 % intervals.

    Calendar blocks are drawn with replacement, all sites of a date together. Neighbouring days and sites are alike, and
    drawing single rows would make the intervals too narrow. Blocks differ in rows, so each resample is a ratio of sums.

    `brier_difference` is reference minus model, positive if the model is better. `skill_over_best` is
    1 - BS_model / BS_reference, None if the reference is perfect. `block_days` is at least the horizon. With fewer than 5
    blocks both intervals are null.

    Reference: Künsch 1989, Annals of Statistics 17, doi:10.1214/aos/1176347265; Hamill 1999, Weather and
    Forecasting 14, doi:10.1175/1520-0434(1999)014<0155:HTFENP>2.0.CO;2
    """
    days = max(block_days, math.ceil(data.horizon_hours / 24))
    errors_n3 = np.stack([(model_p - y) ** 2, (reference_p - y) ** 2, np.ones(len(y))], axis=-1)
    block_n = day_blocks(data.times[part.end], days)
    blocks = int(block_n.max()) + 1
    sums_B3 = np.zeros((blocks, 3))
    np.add.at(sums_B3, block_n, errors_n3)
    model, reference, rows = sums_B3.sum(axis=0)
    interval, skill_interval = _intervals(sums_B3, bootstrap, data.seed) if blocks >= FEWEST_BLOCKS else (None, None)
    return {
        "brier_difference": float((reference - model) / rows),
        "interval": interval,
        "skill_over_best": float(1 - model / reference) if reference > 0 else None,
        "skill_interval": skill_interval,
        "blocks": blocks,
        "block_days": days,
        "resamples": bootstrap,
    }


def _intervals(sums_B3: NDArray[np.float64], resamples: int, seed: int) -> tuple[list[float], list[float] | None]:
    """95 % percentile intervals of Brier difference and skill over B blocks drawn with replacement.

    The counts of the drawn blocks follow a multinomial distribution, so a resample is one row of a matrix product.
    """
    random, blocks = np.random.default_rng(seed), len(sums_B3)
    sizes = [min(RESAMPLES_AT_ONCE, resamples - start) for start in range(0, resamples, RESAMPLES_AT_ONCE)]
    chance = np.full(blocks, 1 / blocks)
    totals_R3 = np.concatenate([random.multinomial(blocks, chance, size=size) @ sums_B3 for size in sizes])
    model_R, reference_R, rows_R = totals_R3.T
    difference = np.quantile((reference_R - model_R) / rows_R, COVERAGE).tolist()
    # Skill is undefined in a resample with a perfect reference, and leaving such resamples out would bias the interval.
    skill = np.quantile(1 - model_R / reference_R, COVERAGE).tolist() if (reference_R > 0).all() else None
    return difference, skill
