"""Scores against arithmetic done by hand and against `scores`, and the properties that they must have."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llueve.errors import DataError
from llueve.verification import scores
from llueve.verification.contingency import contingency
from llueve.verification.curves import economic_value, expected_calibration_error, operating_points, reliability
from llueve.verification.decomposition import decompose, recalibration_curve
from llueve.verification.summary import summary

sys.path.insert(0, str(Path(__file__).parent))
from forecast_cases import BY_SCORES, FIXED_P, FIXED_Y, forecasts

ALONE = [scores.brier, scores.log_score, scores.auc, scores.average_precision, expected_calibration_error]
ALL = [*ALONE, contingency, decompose, recalibration_curve, operating_points, reliability, economic_value]


def test_brier_by_hand() -> None:
    assert scores.brier([0.8, 0.1], [1, 0]) == pytest.approx((0.2**2 + 0.1**2) / 2)


def test_brier_skill_by_hand() -> None:
    expected = 1 - ((0.2**2 + 0.1**2) / 2) / ((0.5**2 + 0.5**2) / 2)
    assert scores.brier_skill([0.8, 0.1], [1, 0], [0.5, 0.5]) == pytest.approx(expected)
    assert scores.brier_skill([0.8, 0.1], [1, 0], [1, 0]) is None


def test_log_score_by_hand() -> None:
    assert scores.log_score([0.8, 0.1], [1, 0]) == pytest.approx(-(math.log(0.8) + math.log(0.9)) / 2)


def test_log_score_of_a_sure_forecast_that_fails_is_finite_and_huge() -> None:
    epsilon = 2.0**-52
    assert scores.log_score([0.0, 1.0], [1, 1]) == pytest.approx(-math.log(epsilon) / 2)


@settings(max_examples=30)
@given(forecasts)
def test_the_log_score_is_the_mean_of_its_terms(forecast) -> None:
    assert scores.log_score(*forecast) == pytest.approx(scores.log_losses(*forecast).mean(), abs=1e-12)


def test_auc_by_hand() -> None:
    # Of the 2 × 2 pairs (event, none), 0.9 beats both 0.3 and 0.4; 0.4 beats 0.3 and ties with 0.4.
    assert scores.auc([0.9, 0.4, 0.3, 0.4], [1, 1, 0, 0]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert scores.auc([0.9, 0.4], [1, 1]) is None
    assert scores.auc([0.9, 0.4], [0, 0]) is None


def test_average_precision_by_hand() -> None:
    # From high to low: 0.9 finds 1 of 2 events with precision 1/1; 0.6 none; 0.4 the second with precision 2/3.
    assert scores.average_precision([0.9, 0.6, 0.4, 0.1], [1, 0, 1, 0]) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert scores.average_precision([0.9, 0.4], [0, 0]) is None
    assert scores.average_precision([0.9, 0.4], [1, 1]) == 1
    assert scores.average_precision([0.3, 0.3, 0.3, 0.3], [1, 0, 0, 0]) == pytest.approx(1 / 4)


@settings(max_examples=30)
@given(forecasts)
def test_average_precision_is_the_sum_of_its_steps(forecast) -> None:
    p, y = forecast
    expected, recall = 0.0, 0.0
    for threshold in sorted(set(p), reverse=True):
        hits = y[p >= threshold].sum()
        expected += (hits / max(y.sum(), 1) - recall) * hits / (p >= threshold).sum()
        recall = hits / max(y.sum(), 1)
    found = scores.average_precision(p, y)
    assert found is None if y.sum() == 0 else found == pytest.approx(expected)


def test_sharpness_by_hand() -> None:
    assert scores.sharpness([0.2, 0.4]) == pytest.approx(0.1**2)
    assert scores.sharpness([0.3, 0.3, 0.3]) == pytest.approx(0)
    with pytest.raises(DataError, match="first nan"):
        scores.sharpness([0.2, math.nan])


def test_the_package_scores_gives_the_same() -> None:
    assert scores.brier(FIXED_P, FIXED_Y) == pytest.approx(BY_SCORES["brier"], rel=1e-12)
    assert scores.auc(FIXED_P, FIXED_Y) == pytest.approx(BY_SCORES["auc"], rel=1e-12)


def test_the_summary_holds_exactly_its_keys() -> None:
    p, y, climatology = [0.8, 0.1, 0.6], [1, 0, 0], [0.5, 0.5, 0.5]
    found = summary(p, y, climatology)
    probabilities = ["brier", "bss", "log_score", "auc", "average_precision", "mcb", "dsc", "unc", "ece", "sharpness"]
    yes_no = ["accuracy", "f1", "confusion", "pod", "far", "pofd", "bias", "csi", "ets", "hss", "pss", "sedi"]
    assert list(found) == probabilities + yes_no
    assert found["bss"] == scores.brier_skill(p, y, climatology)
    assert found["brier"] == pytest.approx(found["mcb"] - found["dsc"] + found["unc"])
    assert (found["far"], summary(p, y, None, threshold=0.7)["far"]) == (1 / 2, 0)
    assert summary(p, y, None)["bss"] is None


@pytest.mark.parametrize(("p", "y"), [([0.3], [0]), ([0.3], [1]), ([0.3, 0.3], [0, 0]), ([0.0, 1.0], [1, 1])])
def test_every_score_of_degenerate_forecasts_is_a_number_or_none(p, y) -> None:
    found = summary(p, y, p)
    numbers = {key: value for key, value in found.items() if key != "confusion"}
    assert all(value is None or math.isfinite(value) for value in numbers.values())
    assert found["auc"] is None and found["sedi"] is None and found["unc"] == 0


@pytest.mark.parametrize("score", ALL)
@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([0.5, math.nan], [0, 1], "1 are not, the first nan at index 1"),
        ([math.inf, 0.5], [0, 1], "the first inf at index 0"),
        ([0.5, 1.5], [0, 1], "the first 1.5 at index 1"),
        ([0.5, -0.1], [0, 1], "the first -0.1 at index 1"),
        ([0.5, 0.5], [0, 2], "expected outcomes 0 or 1"),
        ([0.5, 0.5], [0, math.nan], "the first nan at index 1"),
        ([0.5], [0, 1], "one probability per outcome"),
        ([[0.5]], [[1]], "one dimension"),
        ([], [], "no forecast to score"),
    ],
)
def test_what_cannot_be_scored_is_refused(score, p, y, message) -> None:
    with pytest.raises(DataError, match=message):
        score(p, y)


def test_a_reference_that_is_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match="first nan"):
        scores.brier_skill([0.5], [1], [math.nan])


@given(forecasts)
def test_brier_is_between_zero_and_one(forecast) -> None:
    assert 0 <= scores.brier(*forecast) <= 1


@given(forecasts)
def test_the_base_rate_has_no_skill_against_itself(forecast) -> None:
    _, y = forecast
    climatology = np.full(len(y), y.mean())
    skill = scores.brier_skill(climatology, y, climatology)
    assert skill is None if y.min() == y.max() else skill == 0


@settings(max_examples=30)
@given(forecasts)
def test_auc_and_average_precision_only_see_the_order(forecast) -> None:
    p, y = forecast
    assert scores.auc(p, y) == scores.auc(0.25 + p**3 / 2, y)
    assert scores.average_precision(p, y) == scores.average_precision(0.25 + p**3 / 2, y)


@settings(max_examples=30)
@given(forecasts, st.randoms(use_true_random=False))
def test_no_score_depends_on_the_order_of_the_forecasts(forecast, random) -> None:
    p, y = forecast
    order = random.sample(range(len(y)), len(y))
    for score in ALONE:
        shuffled, straight = score(p[order], y[order]), score(p, y)
        assert shuffled == (straight if straight is None else pytest.approx(straight, abs=1e-12))
    assert contingency(p[order], y[order]) == contingency(p, y)
    assert vars(decompose(p[order], y[order])) == pytest.approx(vars(decompose(p, y)), abs=1e-12)
