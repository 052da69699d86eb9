"""The guard: nothing non-finite is applied, and its budget ends the run."""

import math

import pytest

from llueve.errors import GuardStop
from llueve.stability.guard import Guard


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (0.7, math.nan), (0.7, -math.inf)])
def test_any_non_finite_number_refuses_the_step(loss, norm):
    guard = Guard(max_skipped=0.5, epoch_samples=100)
    assert guard.accepts(1, 10, 0.7, 1.0, 0)
    assert not guard.accepts(2, 10, loss, norm, 0)
    assert guard.skipped == 10


def test_the_budget_is_a_share_of_the_epoch_and_renewed_with_it():
    guard = Guard(max_skipped=0.1, epoch_samples=100)
    assert not guard.accepts(1, 10, math.nan, 1.0, 0)  # 10 of 100 is allowed
    guard.start_epoch()
    assert not guard.accepts(1, 10, math.nan, 1.0, 0)
    with pytest.raises(GuardStop, match=r"11 of 100 samples.*step 2: loss nan; 1 of 1 samples hold a non-finite input"):
        guard.accepts(2, 1, math.nan, 1.0, 1)


def test_the_message_tells_bad_inputs_from_divergence():
    for bad_inputs, mend in ((3, "windows.missing"), (0, "learning_rate")):
        with pytest.raises(GuardStop, match=mend):
            Guard(0.0, 100).accepts(1, 10, math.nan, 1.0, bad_inputs)


def test_inputs_that_would_cost_more_than_the_budget_stop_before_the_first_step():
    # 1 bad window of 100, in batches of 16: 1 − 0.99^16 = 14.9 % of the samples would be lost.
    with pytest.raises(GuardStop, match=r"before the first step: 1 of 100 training samples.*cost 14\.9%"):
        Guard(max_skipped=0.14, epoch_samples=100).check_inputs(1, 16)
    Guard(max_skipped=0.15, epoch_samples=100).check_inputs(1, 16)
    Guard(max_skipped=0.0, epoch_samples=100).check_inputs(0, 16)
