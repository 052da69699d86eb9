"""Forecasts that several test files score: strategies, a fixed case with the values that `scores` gives, and noisy forecasts."""

import numpy as np
from hypothesis import strategies as st

from llueve.verification.forecasts import Forecasts

# Multiples of 1/64, so that a monotone map in floating point never makes two different probabilities equal.
probability = st.integers(0, 64).map(lambda n: n / 64)
forecasts = st.lists(st.tuples(probability, st.integers(0, 1)), min_size=1, max_size=40).map(
    lambda pairs: (np.array([p for p, _ in pairs]), np.array([y for _, y in pairs]))
)

ROWS = np.arange(200)
FIXED_P = (ROWS * 37 % 101) / 100
FIXED_Y = ((ROWS * 53 % 97) / 97 < 0.1 + 0.7 * FIXED_P).astype(int)
BY_SCORES = {
    # `scores` 2.7.0: BinaryContingencyManager of p ≥ 0.3
    "accuracy": 0.625,
    "pod": 0.875,
    "far": 0.45390070921985815,
    "pofd": 0.5714285714285714,
    "bias": 1.6022727272727273,
    "csi": 0.506578947368421,
    "ets": 0.16629613161405069,
    "hss": 0.285169653069005,
    "pss": 0.3035714285714286,
    "sedi": 0.4580884065710538,
    "f1": 0.6724890829694323,
    # brier_score, roc_auc, and the Brier score after isotonic_fit
    "brier": 0.2281375,
    "auc": 0.715046672077922,
    "recalibrated": 0.20405830280830284,
}
"""Values that the package `scores` gives for the fixed case: docs/decisions/0021-scores.md says why it is not a dependency."""


def noisy_forecasts(sites: int = 3, days: int = 120, seed: int = 0, start: str = "2015-01-01") -> Forecasts:
    """Daily forecasts of some sites: a fair model, climatology, and a worse reference."""
    random = np.random.default_rng(seed)
    n = sites * days
    truth = random.normal(size=n)
    y = (random.random(n) < 1 / (1 + np.exp(1 - truth))).astype(np.int64)
    weaker = 1 / (1 + np.exp(1 - truth + random.normal(size=n)))
    return Forecasts(
        name="test",
        sites=[f"site {number}" for number in range(sites)],
        site_n=np.repeat(np.arange(sites), days),
        issued_n=np.tile(np.datetime64(start, "ns") + np.arange(days).astype("timedelta64[D]"), sites),
        y_n=y,
        model_p=1 / (1 + np.exp(1 - truth)),
        reference_p={"climatology": np.full(n, 0.3), "weaker": weaker.round(2)},
        horizon_hours=24.0,
    )
