"""The decomposition of the Brier score against isotonic regression by its own definition, and its identities."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from llueve.verification.decomposition import decompose, recalibration_curve
from llueve.verification.scores import auc, brier

sys.path.insert(0, str(Path(__file__).parent))
from forecast_cases import BY_SCORES, FIXED_P, FIXED_Y, forecasts


def by_definition(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Isotonic regression as max over lower ends of min over upper ends of the mean of y between them."""
    values = np.unique(p)
    fitted = {}
    for value in values:
        means = [
            min(y[(p >= low) & (p <= high)].mean() for high in values if high >= value)
            for low in values
            if low <= value
        ]
        fitted[value] = max(means)
    return np.array([fitted[value] for value in p])


def test_the_decomposition_by_hand() -> None:
    # 0.1 → 0, 0.6 and 0.7 are in the wrong order and pooled to 1/2, 0.9 → 1.
    p, y = np.array([0.1, 0.6, 0.7, 0.9]), np.array([0, 1, 0, 1])
    found = decompose(p, y)
    recalibrated = (0 + 0.5**2 + 0.5**2 + 0) / 4
    assert found.unc == 0.5 * 0.5
    assert found.mcb == pytest.approx((0.1**2 + 0.4**2 + 0.7**2 + 0.1**2) / 4 - recalibrated)
    assert found.dsc == pytest.approx(0.25 - recalibrated)


def test_the_package_scores_gives_the_same() -> None:
    found = decompose(FIXED_P, FIXED_Y)
    assert found.mcb == pytest.approx(BY_SCORES["brier"] - BY_SCORES["recalibrated"], rel=1e-9)
    assert found.dsc == pytest.approx(0.44 * 0.56 - BY_SCORES["recalibrated"], rel=1e-9)


@settings(max_examples=40)
@given(forecasts)
def test_isotonic_regression_is_that_of_its_definition(forecast) -> None:
    p, y = forecast
    curve = recalibration_curve(p, y)
    assert curve.frequency_G[curve.group_n] == pytest.approx(by_definition(p, y), abs=1e-12)
    assert (np.diff(curve.frequency_G) >= 0).all() and (np.diff(curve.probability_G) > 0).all()


@settings(max_examples=40)
@given(forecasts)
def test_the_parts_add_up_and_none_is_negative(forecast) -> None:
    p, y = forecast
    found = decompose(p, y)
    assert found.mcb - found.dsc + found.unc == pytest.approx(brier(p, y), abs=1e-12)
    assert found.mcb >= 0 and found.dsc >= 0
    assert found.dsc <= found.unc + 1e-12


@settings(max_examples=40)
@given(forecasts)
def test_a_recalibrated_forecast_is_calibrated_and_keeps_its_discrimination(forecast) -> None:
    p, y = forecast
    curve = recalibration_curve(p, y)
    again = decompose(curve.frequency_G[curve.group_n], y)
    assert again.mcb == pytest.approx(0, abs=1e-12) and again.dsc == pytest.approx(decompose(p, y).dsc, abs=1e-12)


def test_degenerate_forecasts() -> None:
    constant = decompose([0.3, 0.3, 0.3, 0.3], [1, 0, 0, 0])
    assert constant.dsc == 0 and constant.mcb == pytest.approx((0.3 - 0.25) ** 2)
    never = decompose([0.1, 0.2], [0, 0])
    assert (never.unc, never.dsc) == (0, 0) and never.mcb == pytest.approx((0.1**2 + 0.2**2) / 2)
    one = decompose([0.4], [1])
    assert (one.unc, one.dsc) == (0, 0) and one.mcb == pytest.approx(0.6**2)
    assert auc([0.4], [1]) is None
