"""The threshold of each rule against all thresholds, tried one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llueve.calibration.decision import EventThreshold, choose_threshold
from llueve.config import DecisionConfig
from llueve.errors import ConfigError

RULES = {
    "f1": DecisionConfig(rule="f1"),
    "csi": DecisionConfig(rule="csi"),
    "cost_loss": DecisionConfig(rule="cost_loss", cost_loss_ratio=0.3),
    "recall": DecisionConfig(rule="recall", required_recall=0.7),
}


def table(p: np.ndarray, y: np.ndarray, threshold: float) -> tuple[int, int, int]:
    """Hits, misses and false alarms."""
    yes = p >= threshold
    return int((yes & (y == 1)).sum()), int((~yes & (y == 1)).sum()), int((yes & (y == 0)).sum())


def gain(rule: str, p: np.ndarray, y: np.ndarray, threshold: float) -> float:
    hits, misses, alarms = table(p, y, threshold)
    return {
        "f1": 2 * hits / (2 * hits + misses + alarms),
        "csi": hits / (hits + misses + alarms),
        "cost_loss": -(0.3 * (hits + alarms) + misses),
        "recall": -alarms if hits / (hits + misses) >= 0.7 else -np.inf,
    }[rule]


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40)
@given(
    rows=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5000001, 0.9, 1.0]), st.integers(0, 1)), min_size=1)
)
def test_no_other_threshold_is_better(rule: str, rows: list[tuple[float, int]]) -> None:
    p, y = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    found = choose_threshold(p, y, RULES[rule])
    assert 0 <= found.threshold <= 1
    if y.any():
        every = [gain(rule, p, y, threshold) for threshold in (*p, 0.999, 1.0)]
        assert gain(rule, p, y, found.threshold) == pytest.approx(max(every))


def test_f1_and_its_scores_by_hand() -> None:
    p, y = np.array([0.1, 0.2, 0.4, 0.6, 0.8]), np.array([0, 1, 0, 1, 1])
    found = choose_threshold(p, y, RULES["f1"])
    # Yes from 0.2 on: 3 hits, 1 false alarm, F1 = 6 / 7; yes from 0.6 on: F1 = 4 / 5.
    assert found.threshold == pytest.approx(0.15)
    assert found.validation == pytest.approx(
        {
            "hits": 3,
            "misses": 0,
            "false_alarms": 1,
            "correct_rejections": 1,
            "f1": 6 / 7,
            "csi": 3 / 4,
            "recall": 1,
            "false_alarm_ratio": 1 / 4,
            "bias": 4 / 3,
        }
    )
    assert found.says_yes(np.array([0.14, 0.16])).tolist() == [False, True]


def test_cost_loss_by_hand() -> None:
    p, y = np.array([0.1, 0.2, 0.4, 0.6, 0.8]), np.array([0, 1, 0, 1, 1])
    found = choose_threshold(p, y, RULES["cost_loss"])
    # Four protections cost 1.2 losses; protection of all five 1.5; none 3; perfect forecasts 0.9.
    assert found.threshold == pytest.approx(0.15) and found.validation["value"] == pytest.approx(
        (1.5 - 1.2) / (1.5 - 0.9)
    )
    dear = choose_threshold(p, 1 - y, DecisionConfig(rule="cost_loss", cost_loss_ratio=0.9))
    assert dear.threshold == pytest.approx(0.9)  # never: each protection costs more than it saves


def test_recall_takes_the_highest_threshold_that_finds_enough() -> None:
    p, y = np.linspace(0, 1, 11), np.ones(11, int)
    y[0] = 0
    # 7 of 10 events is 0.7 although 0.7 × 10 is a little more than 7 in floating point.
    found = choose_threshold(p, y, RULES["recall"])
    assert found.validation["recall"] == 0.7 and found.threshold == pytest.approx(0.35)
    everything = choose_threshold(p, y, DecisionConfig(rule="recall", required_recall=1.0))
    assert everything.validation["misses"] == 0 and everything.threshold == pytest.approx(0.05)


@pytest.mark.parametrize(("rule", "threshold"), [("f1", 0.5), ("csi", 0.5), ("recall", 0.5), ("cost_loss", 0.3)])
def test_without_an_event_there_is_nothing_to_choose(rule: str, threshold: float) -> None:
    found = choose_threshold(np.array([0.1, 0.7]), np.array([0, 0]), RULES[rule])
    assert found.threshold == threshold and found.validation["recall"] is None


def test_a_constant_forecast_says_always_or_never() -> None:
    p, y = np.full(4, 0.3), np.array([0, 0, 0, 1])
    assert choose_threshold(p, y, RULES["f1"]).threshold == 0.3
    assert choose_threshold(p, y, RULES["cost_loss"]).validation["hits"] == 0


def test_neighbouring_numbers_are_told_apart() -> None:
    low = 0.3
    p, y = np.array([low, np.nextafter(low, 1)]), np.array([0, 1])
    assert choose_threshold(p, y, RULES["f1"]).validation["false_alarms"] == 0


def test_half_is_the_default() -> None:
    p, y = np.array([0.49, 0.5]), np.array([1, 0])
    found = choose_threshold(p, y, DecisionConfig())
    assert found == EventThreshold(validation=found.validation) and found.validation["false_alarms"] == 1


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"rule": "cost_loss"}, "needs cost_loss_ratio"),
        ({"rule": "recall"}, "needs required_recall"),
        ({"rule": "f1", "cost_loss_ratio": 0.2}, "cost_loss_ratio = 0.2 has no effect"),
        ({"required_recall": 0.2}, 'required_recall = 0.2 has no effect with rule = "half"'),
        ({"rule": "cost_loss", "cost_loss_ratio": 1.0}, "cost_loss_ratio"),
    ],
)
def test_a_rule_and_its_number_belong_together(make_config: object, section: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make_config(decision=section)  # type: ignore[operator]


def test_methods_for_two_classes_are_refused_for_three(make_config: object) -> None:
    target = {"classes": ["a", "b", "c"]}
    make_config(target=target, calibration={"method": "temperature"})  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"is for two classes, and target\.classes has 3"):
        make_config(target=target, calibration={"method": "isotonic"})  # type: ignore[operator]
