"""Scores of several classes against arithmetic done by hand, and against those of one event."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from llueve.errors import DataError
from llueve.verification import scores
from llueve.verification.class_scores import class_brier, class_log_score, class_summary, ranked_probability_score

sys.path.insert(0, str(Path(__file__).parent))
from forecast_cases import forecasts

P, Y = [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [0, 1]
ALL = [ranked_probability_score, class_brier, class_log_score]


def test_the_ranked_probability_score_by_hand() -> None:
    # Cumulative: (0.5, 0.8) against (1, 1), and (0.1, 0.3) against (0, 1); K - 1 = 2.
    expected = ((0.5**2 + 0.2**2) + (0.1**2 + 0.7**2)) / 2 / 2
    assert ranked_probability_score(P, Y) == pytest.approx(expected)


def test_far_off_costs_more_than_near() -> None:
    assert ranked_probability_score([[0, 1, 0]], [0]) == 1 / 2
    assert ranked_probability_score([[0, 0, 1]], [0]) == 1
    assert class_brier([[0, 1, 0]], [0]) == class_brier([[0, 0, 1]], [0]) == 2


def test_brier_and_log_score_by_hand() -> None:
    assert class_brier(P, Y) == pytest.approx(((0.5**2 + 0.3**2 + 0.2**2) + (0.1**2 + 0.8**2 + 0.7**2)) / 2)
    assert class_log_score(P, Y) == pytest.approx(-(math.log(0.5) + math.log(0.2)) / 2)
    assert class_log_score([[1, 0, 0]], [2]) == pytest.approx(-math.log(2.0**-52))


def test_the_summary_has_the_skill_over_constant_frequencies() -> None:
    found = class_summary(P, Y, [0.5, 0.5, 0.0])
    constant = ranked_probability_score([[0.5, 0.5, 0]] * 2, Y)
    assert found["rpss"] == pytest.approx(1 - found["rps"] / constant)
    assert class_summary(P[:1], [0], [1, 0, 0])["rpss"] is None


@settings(max_examples=40)
@given(forecasts)
def test_with_two_classes_they_are_those_of_one_event(forecast) -> None:
    p, y = forecast
    both = np.stack([1 - p, p], axis=1)
    assert ranked_probability_score(both, y) == pytest.approx(scores.brier(p, y), abs=1e-12)
    assert class_brier(both, y) == pytest.approx(2 * scores.brier(p, y), abs=1e-12)
    assert class_log_score(both, y) == pytest.approx(scores.log_score(p, y), abs=1e-12)


@pytest.mark.parametrize("score", ALL)
@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([[0.5, 0.6]], [0], "sum to 1"),
        ([[1.5, -0.5]], [0], r"in \[0, 1\]"),
        ([[math.nan, 1.0]], [0], r"in \[0, 1\]"),
        ([[0.5, 0.5]], [2], "classes 0 to 1"),
        ([[0.5, 0.5]], [0.5], "classes 0 to 1"),
        ([[0.5, 0.5], [0.5, 0.5]], [0], "n outcomes"),
        ([0.5, 0.5], [0, 1], "K ≥ 2"),
        ([[1.0]], [0], "K ≥ 2"),
        (np.empty((0, 3)), [], "no forecast"),
    ],
)
def test_what_cannot_be_scored_is_refused(score, p, y, message) -> None:
    with pytest.raises(DataError, match=message):
        score(p, y)
