"""Calibration: what was planted is found, order stays, nothing is fitted that chance explains."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from llueve.calibration.calibrate import FEWEST_BLOCKS, METHODS, Calibration, calibrate
from llueve.calibration.validation_fit import fit_on_validation
from llueve.config import parse_config
from llueve.errors import UsageError
from llueve.samples.split import Part

DAYS = 7


def drawn(seed: int, n: int = 4000, classes: int = 2, spread: float = 1.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits (n, K) that are calibrated, the classes that follow from them, and blocks of 20 rows."""
    random = np.random.default_rng(seed)
    logits_nK = spread * random.normal(size=(n, classes))
    y_n = (logits_nK + random.gumbel(size=logits_nK.shape)).argmax(axis=1)
    return logits_nK, y_n, np.arange(n) // 20


def two_classes(log_odds_n: np.ndarray) -> np.ndarray:
    return np.stack([np.zeros_like(log_odds_n), log_odds_n], axis=1)


def log_loss(p_nK: np.ndarray, y_n: np.ndarray) -> float:
    return float(-np.log(p_nK[np.arange(len(y_n)), y_n]).mean())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_a_planted_temperature_is_found(temperature: float, classes: int) -> None:
    logits_nK, y_n, block_n = drawn(1, n=20_000, classes=classes)
    found = calibrate((temperature * logits_nK).astype(np.float32), y_n, "temperature", block_n)
    assert found.temperature == pytest.approx(temperature, rel=0.05)


def test_a_planted_shift_is_found() -> None:
    logits_nK, y_n, block_n = drawn(2, n=20_000)
    z_n = logits_nK[:, 1] - logits_nK[:, 0]
    found = calibrate(two_classes((z_n + 1.2) / 0.7), y_n, "platt", block_n)
    assert (found.slope, found.shift) == pytest.approx((0.7, -1.2), abs=0.06)


def test_isotonic_is_the_rising_curve_of_block_means() -> None:
    # At log-odds 0 one of three happens, at 1 none of one, at 2 one of one: the first two are pooled to 1 / 4.
    found = calibrate(two_classes(np.array([0.0, 0, 0, 1, 2])), np.array([0, 1, 0, 0, 1]), "isotonic", np.zeros(5, int))
    p_n = found.probabilities(two_classes(np.array([-5.0, 0.5, 1, 1.5, 9])))[:, 1]
    least = 1 / (5 + 2)
    np.testing.assert_allclose(p_n, [1 / 4, 1 / 4, 1 / 4, (1 / 4 + 1 - least) / 2, 1 - least])


@pytest.mark.parametrize("method", METHODS[True])
@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 60),
    z=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=20),
)
def test_every_map_is_finite_rising_and_sums_to_one(method: str, seed: int, n: int, z: list[float]) -> None:
    random = np.random.default_rng(seed)
    logits_nK = (random.normal(size=(n, 2)) * 10 ** random.uniform(-3, 6)).astype(np.float32)
    found = calibrate(logits_nK, random.integers(0, 2, n), method, np.zeros(n, int))
    p_nK = found.probabilities(two_classes(np.sort(np.array(z, np.float32))))
    assert np.isfinite(p_nK).all() and (p_nK >= 0).all() and (p_nK <= 1).all()
    np.testing.assert_allclose(p_nK.sum(axis=1), 1)
    assert (np.diff(p_nK[:, 1]) >= 0).all() and (np.diff(p_nK[:, 0]) <= 0).all()
    again = Calibration.model_validate(json.loads(json.dumps(found.model_dump(mode="json"))))
    assert again == found


@pytest.mark.parametrize("seed", range(12))
def test_auto_leaves_calibrated_probabilities_alone(seed: int) -> None:
    found = calibrate(*drawn(seed)[:2], "auto", drawn(seed)[2])
    assert found.method == "none" and set(found.log_scores) == set(METHODS[True])


@pytest.mark.parametrize("seed", range(6))
def test_auto_leaves_logits_of_blocks_with_their_own_weather_alone(seed: int) -> None:
    # The rows of a block share an error, so that the gain of a fit by chance is larger than rows would say.
    logits_nK, _, block_n = drawn(seed)
    random = np.random.default_rng(seed)
    z_n = logits_nK[:, 1] - logits_nK[:, 0] + random.normal(size=block_n.max() + 1)[block_n]
    y_n = (random.random(len(z_n)) < 1 / (1 + np.exp(-z_n))).astype(int)
    assert calibrate(two_classes(z_n), y_n, "auto", block_n).method == "none"


@pytest.mark.parametrize(
    ("warp", "expected"),
    [
        (lambda z: 2.5 * z, "temperature"),
        (lambda z: 1.4 * z + 1.0, "platt"),
        (lambda z: np.where(z > 0, 6 * z, 0.2 * z - 1.5), "isotonic"),
    ],
)
def test_auto_takes_the_simplest_map_that_is_enough(warp: object, expected: str) -> None:
    logits_nK, y_n, block_n = drawn(3, n=12_000)
    warped = two_classes(warp(logits_nK[:, 1] - logits_nK[:, 0]))  # type: ignore[operator]
    found = calibrate(warped, y_n, "auto", block_n)
    assert found.method == expected
    held_out_nK, held_out_y_n, _ = drawn(4, n=12_000)
    held_out = two_classes(warp(held_out_nK[:, 1] - held_out_nK[:, 0]))  # type: ignore[operator]
    best = log_loss(Calibration().probabilities(held_out_nK), held_out_y_n)
    after = log_loss(found.probabilities(held_out), held_out_y_n)
    assert after < best + 0.005 < best + 0.01 < log_loss(Calibration().probabilities(held_out), held_out_y_n)


def test_auto_does_not_shift_by_the_rate_of_some_seasons() -> None:
    logits_nK, y_n, block_n = drawn(3, n=12_000)
    wetter = two_classes(1.4 * (logits_nK[:, 1] - logits_nK[:, 0]) + 1.0)
    assert calibrate(wetter, y_n, "auto", block_n).method == "platt"
    found = calibrate(wetter, y_n, "auto", block_n, all_seasons=False)
    assert found.shift == 0 and set(found.log_scores) == {"none", "temperature"}
    assert calibrate(wetter, y_n, "platt", block_n, all_seasons=False).method == "platt"


@pytest.mark.parametrize(("days", "method"), [(340, {"none", "temperature"}), (366, set(METHODS[True]))])
def test_a_validation_period_of_less_than_a_year_learns_no_shift(days: int, method: set[str]) -> None:
    random = np.random.default_rng(0)
    z_n = random.normal(size=days)
    y_n = (random.random(days) < 1 / (1 + np.exp(-z_n))).astype(int)
    part = Part("validation", np.zeros(days, np.intp), np.arange(days), y_n)
    config = parse_config(
        {
            "data": {"path": "unused.csv"},
            "target": {"label": "rain"},
            "split": {"validation_start": "2020-01-01", "test_start": "2021-06-01"},
            "windows": {"context": 1},
        },
        "test",
    )
    times = np.datetime64("2020-01-01") + np.arange(days)
    found, _ = fit_on_validation(two_classes(z_n + 1.0), part, times, config)
    assert set(found.log_scores) == method


def test_isotonic_does_not_win_by_learning_the_validation_period_by_heart() -> None:
    logits_nK, y_n, block_n = drawn(5, n=400)
    isotonic, none = (calibrate(logits_nK, y_n, each, block_n) for each in ("isotonic", "none"))
    assert log_loss(isotonic.probabilities(logits_nK), y_n) < log_loss(none.probabilities(logits_nK), y_n)
    assert calibrate(logits_nK, y_n, "auto", block_n).method == "none"


def test_several_classes_have_temperature_or_none() -> None:
    logits_nK, y_n, block_n = drawn(6, classes=3)
    assert calibrate(logits_nK, y_n, "auto", block_n).method == "none"
    found = calibrate(3 * logits_nK, y_n, "auto", block_n)
    assert found.method == "temperature" and set(found.log_scores) == {"none", "temperature"}
    np.testing.assert_array_equal(found.probabilities(logits_nK).argmax(axis=1), logits_nK.argmax(axis=1))
    for method in ("platt", "isotonic"):
        with pytest.raises(UsageError, match=f"{method} calibration of 4000 windows with 3 classes"):
            calibrate(logits_nK, y_n, method, block_n)


def test_auto_needs_several_blocks_and_both_classes() -> None:
    logits_nK, y_n, _ = drawn(7, n=900)
    few = np.arange(900) % (FEWEST_BLOCKS - 1)
    assert calibrate(4 * logits_nK, y_n, "auto", few).method == "none"
    assert calibrate(4 * logits_nK, y_n, "auto", few % 2 + np.arange(900) // 50).method == "temperature"
    assert calibrate(logits_nK, np.zeros(900, int), "auto", np.arange(900)).method == "none"
    with pytest.raises(UsageError, match="of 0 windows"):
        calibrate(logits_nK[:0], y_n[:0], "temperature", few[:0])


def test_probabilities_enter_as_their_logarithms() -> None:
    p_n = np.array([0.1, 0.5, 0.9])
    log_p_nK = np.log(np.stack([1 - p_n, p_n], axis=1))
    np.testing.assert_allclose(Calibration().probabilities(log_p_nK)[:, 1], p_n)


@pytest.mark.parametrize(
    "fields",
    [
        {"slope": 0.0},
        {"slope": float("inf")},
        {"method": "isotonic"},
        {"method": "isotonic", "log_odds": [0, 1], "curve": [0.5, 0.4]},
        {"method": "isotonic", "log_odds": [1, 1], "curve": [0.4, 0.5]},
        {"method": "isotonic", "log_odds": [0], "curve": [1.0]},
        {"method": "temperature", "log_odds": [0], "curve": [0.5]},
        {"method": "isotonic", "log_odds": [0, float("nan")], "curve": [0.4, 0.5]},
    ],
)
def test_a_map_that_does_not_rise_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Calibration.model_validate(fields)
