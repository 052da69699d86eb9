"""Scores against arithmetic done by hand, and the properties that they must have."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llueve.errors import DataError
from llueve.verification import scores

ALL = [scores.brier, scores.log_score, scores.auc, scores.accuracy, scores.f1, scores.confusion]

# Multiples of 1/64, so that a monotone map in floating point never makes two different probabilities equal.
probability = st.integers(0, 64).map(lambda n: n / 64)
forecasts = st.lists(st.tuples(probability, st.integers(0, 1)), min_size=1, max_size=40).map(
    lambda pairs: (np.array([p for p, _ in pairs]), np.array([y for _, y in pairs]))
)


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


def test_auc_by_hand() -> None:
    # Of the 2 × 2 pairs (event, none), 0.9 beats both 0.3 and 0.4; 0.4 beats 0.3 and ties with 0.4.
    assert scores.auc([0.9, 0.4, 0.3, 0.4], [1, 1, 0, 0]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert scores.auc([0.9, 0.4], [1, 1]) is None
    assert scores.auc([0.9, 0.4], [0, 0]) is None


def test_yes_starts_at_one_half() -> None:
    p, y = [0.5, 0.5, 0.49, 0.2, 0.9], [1, 0, 1, 0, 1]
    assert scores.confusion(p, y) == {"hits": 2, "false_alarms": 1, "misses": 1, "correct_rejections": 1}
    assert scores.accuracy(p, y) == pytest.approx((2 + 1) / 5)
    assert scores.f1(p, y) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


def test_f1_is_zero_without_any_event_or_yes() -> None:
    assert scores.f1([0.1, 0.2], [0, 0]) == 0
    assert scores.f1([0.1, 0.2], [1, 0]) == 0


def test_summary_holds_exactly_its_keys() -> None:
    found = scores.summary([0.8, 0.1], [1, 0], [0.5, 0.5])
    assert list(found) == ["brier", "bss", "log_score", "auc", "accuracy", "f1", "confusion"]
    assert found["bss"] == scores.brier_skill([0.8, 0.1], [1, 0], [0.5, 0.5])


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


@given(forecasts)
def test_auc_only_sees_the_order(forecast) -> None:
    p, y = forecast
    assert scores.auc(p, y) == scores.auc(0.25 + p**3 / 2, y)


@given(forecasts, st.randoms(use_true_random=False))
def test_no_score_depends_on_the_order_of_the_forecasts(forecast, random) -> None:
    p, y = forecast
    order = random.sample(range(len(y)), len(y))
    for score in ALL:
        shuffled, straight = score(p[order], y[order]), score(p, y)
        assert shuffled == (straight if straight is None or score is scores.confusion else pytest.approx(straight))


@given(forecasts)
def test_the_contingency_table_holds_every_forecast(forecast) -> None:
    p, y = forecast
    assert sum(scores.confusion(p, y).values()) == len(y)
