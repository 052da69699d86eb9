"""Curves against the scores at each threshold, areas under them, and relative economic value by its definition."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llueve.errors import DataError
from llueve.verification.contingency import contingency
from llueve.verification.curves import economic_value, expected_calibration_error, operating_points, reliability
from llueve.verification.scores import auc, average_precision

sys.path.insert(0, str(Path(__file__).parent))
from forecast_cases import FIXED_P, FIXED_Y, forecasts

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)


def same(value: float | None, number: float) -> bool:
    """True if an undefined score is NaN in the curve, and a defined one the same number."""
    return math.isnan(number) if value is None else number == pytest.approx(value)


@settings(max_examples=40)
@given(forecasts)
def test_each_point_has_the_scores_of_its_threshold(forecast) -> None:
    points = operating_points(*forecast)
    assert points.threshold_K[0] == math.inf and points.hits_K[0] == points.false_alarms_K[0] == 0
    assert (np.diff(points.threshold_K) < 0).all()
    for k, threshold in enumerate(points.threshold_K[1:], start=1):
        table = contingency(*forecast, threshold)
        assert same(table.pod, points.pod[k]) and same(table.pofd, points.pofd[k])
        assert same(table.bias, points.bias[k]) and same(table.csi, points.csi[k])
        assert same(1 - table.far, points.success_ratio[k])


@settings(max_examples=40)
@given(forecasts)
def test_the_areas_under_the_curves_are_the_scores(forecast) -> None:
    p, y = forecast
    points = operating_points(p, y)
    if (area := auc(p, y)) is not None:
        assert np.trapezoid(points.pod, points.pofd) == pytest.approx(area)
    if (area := average_precision(p, y)) is not None:
        assert (np.diff(points.pod) * points.success_ratio[1:]).sum() == pytest.approx(area)


def test_a_thinned_curve_keeps_its_ends_and_its_shape() -> None:
    random = np.random.default_rng(0)
    p = random.random(5000)
    y = (random.random(5000) < p**2 / 20).astype(int)  # 1.7 % events
    whole = operating_points(p, y)
    thin = whole.thinned(60)
    assert len(thin.threshold_K) <= 60 and thin.threshold_K[0] == math.inf
    assert (thin.pod[-1], thin.pofd[-1]) == (1, 1)
    assert np.trapezoid(thin.pod, thin.pofd) == pytest.approx(np.trapezoid(whole.pod, whole.pofd), abs=0.003)
    assert whole.thinned(10**6) is whole


def test_reliability_by_hand() -> None:
    found = reliability([0.05, 0.1, 0.3, 0.35, 1.0], [0, 0, 1, 0, 1])
    # 0.1 and 0.3 are the lower edges of their bins, 1.0 is in the last bin.
    assert found.rows_Q.tolist() == [1, 1, 0, 2, 0, 0, 0, 0, 0, 1]
    assert found.forecast_Q[3] == pytest.approx((0.3 + 0.35) / 2) and found.frequency_Q[3] == 1 / 2
    assert np.isnan(found.forecast_Q[2]) and np.isnan(found.frequency_Q[2])
    assert found.edges.tolist() == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]


def test_bins_of_equal_count_keep_equal_probabilities_together() -> None:
    p = np.array([0.1] * 6 + [0.2, 0.3, 0.4, 0.5])
    found = reliability(p, np.zeros(10), bins=2, equal="count")
    assert found.rows_Q.sum() == 10 and set(found.bin_n[:6].tolist()) == {found.bin_n[0]}
    even = reliability(np.arange(100) / 100, np.zeros(100), bins=10, equal="count")
    assert even.rows_Q.tolist() == [10] * 10
    yes_no = reliability([0.0] * 60 + [1.0] * 40, [0] * 60 + [1] * 40, bins=10, equal="count")
    assert yes_no.rows_Q.tolist() == [60, 40] and yes_no.frequency_Q.tolist() == [0, 1]
    constant = reliability([0.4, 0.4], [0, 1], equal="count")
    assert constant.rows_Q.tolist() == [2] and constant.edges.tolist() == [0.4, 0.4]


def test_the_expected_calibration_error_by_hand() -> None:
    p, y = [0.1, 0.2, 0.7, 0.9], [0, 1, 1, 1]
    assert expected_calibration_error(p, y, bins=2) == pytest.approx((2 * abs(0.5 - 0.15) + 2 * abs(1 - 0.8)) / 4)
    assert expected_calibration_error([0.25] * 4, [1, 0, 0, 0]) == 0
    assert expected_calibration_error([0.4], [1]) == pytest.approx(0.6)
    # A yes/no forecast has two bins: wrong in half of the yes, right in all no.
    assert expected_calibration_error([1, 1, 0, 0], [1, 0, 0, 0]) == pytest.approx(2 / 4 * 0.5)


@given(forecasts, st.integers(1, 12), st.sampled_from(["width", "count"]))
def test_the_expected_calibration_error_is_that_of_a_loop(forecast, bins, equal) -> None:
    p, y = forecast
    cells: dict[int, list[int]] = {}
    for row, value in enumerate(p):
        below, alike = int((p < value).sum()), int((p == value).sum())
        rank = bins * (2 * below + alike) // (2 * len(p))
        width = min(len([edge for edge in range(1, bins) if edge / bins <= value]), bins - 1)
        cells.setdefault(width if equal == "width" else rank, []).append(row)
    expected = sum(len(rows) * abs(p[rows].mean() - y[rows].mean()) for rows in cells.values()) / len(p)
    assert expected_calibration_error(p, y, bins, equal) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("bins", [0, -1, 1001])
def test_a_number_of_bins_out_of_range_is_refused(bins) -> None:
    with pytest.raises(DataError, match="expected 1 to 1000"):
        reliability([0.5], [1], bins)


def test_the_package_scores_gives_the_same_economic_value() -> None:
    # `scores` 2.7.0, relative_economic_value with thresholds 0.1, 0.3 … 0.9, and with the best of 0.00 … 1.00.
    own = [-0.26785714285714207, 0.19940476190476178, 0.28409090909090884, -0.1287878787878789, -0.5454545454545462]
    best = [0.0, 0.2053571428571424, 0.28409090909090934, 0.05303030303030307, 0.022727272727272756]
    at_half = [-1.3482142857, 0.1398809524, 0.2840909091, -0.2916666667, -3.1704545455]
    assert economic_value(FIXED_P, FIXED_Y, RATIOS) == pytest.approx(own)
    assert economic_value(FIXED_P, FIXED_Y, RATIOS, "best threshold") == pytest.approx(best, abs=1e-12)
    assert economic_value(FIXED_P, FIXED_Y, RATIOS, 0.5) == pytest.approx(at_half)


@given(forecasts, st.sampled_from(RATIOS))
def test_economic_value_is_the_saved_expense(forecast, ratio) -> None:
    """The definition in money: protection costs `ratio`, an event without it costs 1."""
    p, y = forecast
    found = economic_value(p, y, [ratio])
    if y.min() == y.max():
        assert found is None
        return
    expense = np.where(p >= ratio, ratio, y).mean()
    without, perfect = min(ratio, y.mean()), ratio * y.mean()
    assert found == pytest.approx([(without - expense) / (without - perfect)])


@settings(max_examples=40)
@given(forecasts)
def test_potential_value_is_never_below_zero_nor_below_any_threshold(forecast) -> None:
    p, y = forecast
    best = economic_value(p, y, RATIOS, "best threshold")
    if best is not None:
        assert (best >= -1e-12).all() and (best <= 1 + 1e-12).all()
        for value in (economic_value(p, y, RATIOS), economic_value(p, y, RATIOS, 0.5)):
            assert (best >= value - 1e-12).all()


@pytest.mark.parametrize(
    ("ratios", "acts_from"), [([0.0], "own ratio"), ([1.0], "own ratio"), ([math.nan], "own ratio"), ([0.5], 1.5)]
)
def test_ratios_and_thresholds_out_of_range_are_refused(ratios, acts_from) -> None:
    with pytest.raises(DataError, match="expected"):
        economic_value([0.2, 0.7], [0, 1], ratios, acts_from)
