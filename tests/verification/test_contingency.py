"""Yes/no scores against arithmetic done by hand, against sums over the forecasts, and without a denominator."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llueve.errors import DataError
from llueve.verification.contingency import Contingency, contingency

sys.path.insert(0, str(Path(__file__).parent))
from forecast_cases import BY_SCORES, FIXED_P, FIXED_Y, forecasts, probability

NAMES = ("accuracy", "pod", "far", "pofd", "bias", "csi", "ets", "hss", "pss", "sedi", "f1")
# Finley's tornado forecasts of 1884, the classical example: 28 hits, 23 misses, 72 false alarms, 2680 rejections.
FINLEY = Contingency(hits=28, misses=23, false_alarms=72, correct_rejections=2680)


def test_finleys_tornadoes_by_hand() -> None:
    chance = (28 + 72) * (28 + 23) / 2803
    expected_right = chance + (72 + 2680) * (23 + 2680) / 2803
    h, f = 28 / 51, 72 / 2752
    log = math.log
    assert {name: getattr(FINLEY, name) for name in NAMES} == pytest.approx(
        {
            "accuracy": (28 + 2680) / 2803,
            "pod": h,
            "far": 72 / 100,
            "pofd": f,
            "bias": 100 / 51,
            "csi": 28 / (28 + 23 + 72),
            "ets": (28 - chance) / (28 + 23 + 72 - chance),
            "hss": (28 + 2680 - expected_right) / (2803 - expected_right),
            "pss": h - f,
            "sedi": (log(f) - log(h) - log(1 - f) + log(1 - h)) / (log(f) + log(h) + log(1 - f) + log(1 - h)),
            "f1": 2 * 28 / (2 * 28 + 23 + 72),
        }
    )
    assert FINLEY.counts() == {"hits": 28, "misses": 23, "false_alarms": 72, "correct_rejections": 2680}


def test_the_package_scores_gives_the_same() -> None:
    table = contingency(FIXED_P, FIXED_Y, 0.3)
    assert table.counts() == {"hits": 77, "misses": 11, "false_alarms": 64, "correct_rejections": 48}
    found = {name: getattr(table, name) for name in NAMES}
    assert found == pytest.approx({name: BY_SCORES[name] for name in NAMES}, rel=1e-12)


def test_yes_starts_at_the_threshold() -> None:
    p, y = [0.5, 0.5, 0.49, 0.2, 0.9], [1, 0, 1, 0, 1]
    assert contingency(p, y) == Contingency(hits=2, misses=1, false_alarms=1, correct_rejections=1)
    assert contingency(p, y, 0.49) == Contingency(hits=3, misses=0, false_alarms=1, correct_rejections=1)
    assert contingency(p, y, 0) == Contingency(hits=3, misses=0, false_alarms=2, correct_rejections=0)
    assert contingency(p, y, 1) == Contingency(hits=0, misses=3, false_alarms=0, correct_rejections=2)


@given(forecasts, probability)
def test_the_counts_are_those_of_a_loop(forecast, threshold) -> None:
    counts = {"hits": 0, "misses": 0, "false_alarms": 0, "correct_rejections": 0}
    for p, y in zip(*forecast, strict=True):
        yes = p >= threshold
        counts["hits" if yes and y else "misses" if y else "false_alarms" if yes else "correct_rejections"] += 1
    assert contingency(*forecast, threshold).counts() == counts


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_a_threshold_that_is_no_probability_is_refused(threshold) -> None:
    with pytest.raises(DataError, match="expected a probability in"):
        contingency([0.5], [1], threshold)


@pytest.mark.parametrize(
    ("table", "undefined"),
    [
        (Contingency(0, 0, 0, 5), {"pod", "far", "bias", "csi", "ets", "hss", "pss", "sedi"}),  # no event, never yes
        (Contingency(5, 0, 0, 0), {"pofd", "pss", "sedi", "ets", "hss"}),  # always an event, always yes
        (Contingency(0, 5, 0, 0), {"far", "pofd", "pss", "sedi"}),  # always an event, never yes
        (Contingency(0, 0, 5, 0), {"pod", "bias", "pss", "sedi"}),  # no event, always yes
        (Contingency(0, 2, 0, 3), {"far", "sedi"}),  # never yes
        (Contingency(2, 0, 3, 0), {"sedi"}),  # always yes
        (Contingency(2, 0, 0, 3), {"sedi"}),  # perfect
        (Contingency(0, 0, 0, 0), {*NAMES} - {"f1"}),
    ],
    ids=lambda each: " ".join(sorted(each)) if isinstance(each, set) else str(each),
)
def test_a_score_without_a_denominator_is_none(table, undefined) -> None:
    assert {name for name in NAMES if getattr(table, name) is None} == undefined


@given(st.lists(st.integers(0, 60), min_size=4, max_size=4))
def test_scores_stay_in_their_ranges_and_chance_is_zero(counts) -> None:
    table = Contingency(*counts)
    ranges = dict.fromkeys(NAMES, (0, 1)) | {
        "bias": (0, math.inf),
        "ets": (-1 / 3, 1),
        "hss": (-1, 1),
        "pss": (-1, 1),
        "sedi": (-1, 1),
    }
    for name, (low, high) in ranges.items():
        value = getattr(table, name)
        assert value is None or low - 1e-12 <= value <= high + 1e-12
    a, b = counts[0], counts[2]
    independent = Contingency(hits=a * a, misses=a * b, false_alarms=a * b, correct_rejections=b * b)
    for name in ("ets", "hss", "pss", "sedi"):
        assert getattr(independent, name) in (None, pytest.approx(0, abs=1e-12))


@given(st.floats(0, 1), st.lists(st.integers(0, 1), min_size=2, max_size=30))
def test_a_constant_has_no_skill(p, y) -> None:
    table = contingency(np.full(len(y), p), y)
    assert table.pss in (None, 0) and table.hss in (None, 0) and table.ets in (None, 0)
