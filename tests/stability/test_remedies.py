"""Remedies: each follows from its cause, and has a budget."""

import pytest

from llueve.stability.diagnosis import Cause, Explanation
from llueve.stability.reading import FaultKind
from llueve.stability.remedies import DAMAGE, DRIFT, MOST_ROLLBACKS, SAMPLES, Ledger, Situation, choose


def chosen(cause, rows=(), ledger=None, **situation):
    usual = {"kind": FaultKind.LOSS, "repeated": False, "steps": 50, "samples_left": 2, "layers": 2}
    return choose(Explanation(Cause(cause), samples=rows), ledger or Ledger(), Situation(**{**usual, **situation}))


@pytest.mark.parametrize("cause", SAMPLES)
def test_samples_are_left_out_within_the_budget(cause):
    assert chosen(cause, (4, 1)).samples == (1, 4)
    stop = chosen(cause, (4, 1, 2))
    assert stop.action == "stop" and "3 more samples would be left out" in stop.why


@pytest.mark.parametrize("cause", [*DAMAGE, *DRIFT])
def test_roll_backs_are_counted_over_the_whole_run(cause):
    situation = {"kind": FaultKind.WEIGHTS, "steps": 50}
    assert chosen(cause, ledger=Ledger(rollbacks=MOST_ROLLBACKS - 1, fresh_heads=1), **situation).action == "roll_back"
    stop = chosen(cause, ledger=Ledger(rollbacks=MOST_ROLLBACKS, fresh_heads=1), **situation)
    assert stop.action == "stop" and "roll-backs were made already" in stop.why


@pytest.mark.parametrize("cause", DAMAGE)
def test_damage_that_came_back_is_no_accident(cause):
    assert chosen(cause, repeated=True).action == "stop"


@pytest.mark.parametrize("cause", DRIFT)
def test_drift_without_a_step_has_no_state_to_go_back_to(cause):
    assert chosen(cause, ledger=Ledger(fresh_heads=1), steps=0).action == "stop"


def test_what_happens_twice_is_not_run_a_third_time():
    assert [chosen("transient", repeated=again).action for again in (False, True)] == ["rerun", "skip"]
    rates = [chosen("learning_rate", kind=FaultKind.LEARNING_RATE, repeated=again).action for again in (False, True)]
    assert rates == ["rerun", "stop"]


@pytest.mark.parametrize("cause", ["unknown", "exploding_gradient"])
def test_what_has_no_remedy_left_leaves_its_batch_out(cause):
    assert chosen(cause, ledger=Ledger(clip_norm=1.0)).action == "skip"
