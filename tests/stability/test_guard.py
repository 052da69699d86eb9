"""The guard: nothing unsound is applied, nothing sound is refused, and its budget ends the run."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llueve.errors import GuardStop
from llueve.stability.guard import IDLE_STEPS, Guard, collapse
from llueve.stability.reading import Reading
from llueve.stability.usual import ENOUGH

SOUND = {
    "step": 1,
    "samples": 10,
    "loss": 0.7,
    "gradient_norm": 1.0,
    "moments": (-0.1, 0.1, 0.0, 0.01),
    "rates": (1e-3, 1e-3),
}


def reading(**changes):
    return Reading(**{**SOUND, **changes})


def seen(guard, **changes):
    """What the guard says of a step, entered into its budget."""
    step = reading(**changes)
    if fault := guard.refuses(step):
        guard.count(step, *fault)
    return fault


FAULTS = {
    "loss nan": ({"loss": math.nan}, "loss"),
    "loss inf": ({"loss": math.inf}, "loss"),
    "gradient nan": ({"gradient_norm": math.nan}, "gradient"),
    "gradient inf": ({"gradient_norm": -math.inf}, "gradient"),
    "first moment": ({"moments": (math.nan, 0.1, 0.0, 0.01)}, "moments"),
    "second moment": ({"moments": (-0.1, 0.1, 0.0, math.inf)}, "moments"),
    "negative second moment": ({"moments": (-0.1, 0.1, -1e-9, 0.01)}, "moments"),
    "weights": ({"unsound_weights": ("head.out.bias",)}, "weights"),
    "average nan": ({"average": (math.nan, 1.0)}, "average"),
    "average inf": ({"average": (0.0, math.inf)}, "average"),
    "average absurd": ({"average": (-1e20, 1.0)}, "average"),
    "changed bits": ({"changed": ("weights",)}, "memory"),
    "first moment beyond what is clipped": ({"moments": (-1.1, 0.1, 0.0, 0.01)}, "moments"),
    "second moment beyond what is clipped": ({"moments": (-0.1, 0.1, 0.0, 1.1)}, "moments"),
    "rate above the plan": ({"rates": (1e-3, 2e-3), "planned_rates": (1e-3, 1e-3)}, "learning_rate"),
    "rate below the plan": ({"rates": (1e-3, 1e-9), "planned_rates": (1e-3, 1e-3)}, "learning_rate"),
    "gradient overflow": ({"gradient_norm": 1.1e18}, "gradient_overflow"),
    "loss of a start": ({"loss": 31 * math.log(2)}, "loss_start"),
    "rate nan": ({"rates": (1e-3, math.nan)}, "learning_rate"),
    "rate negative": ({"rates": (-1e-3, 1e-3)}, "learning_rate"),
    "rate inf": ({"rates": (math.inf, 1e-3)}, "learning_rate"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_refuses_the_step_under_its_name(name):
    changes, kind = FAULTS[name]
    guard = Guard(max_skipped=0.5, epoch_samples=100, largest_clip=1.0)
    assert seen(guard) is None
    found = seen(guard, **changes)
    assert found is not None and found[0] == kind
    assert guard.skipped == 10


def test_what_is_born_first_is_named_first():
    """Poisoned moments and a NaN loss: the loss is what follows."""
    guard = Guard(0.5, 100)
    assert seen(guard, moments=(math.nan, 0, 0, 0), loss=math.nan)[0] == "moments"


def test_the_budget_is_a_share_of_the_epoch_and_renewed_with_it():
    guard = Guard(max_skipped=0.1, epoch_samples=100)
    assert seen(guard, loss=math.nan)  # 10 of 100 is allowed
    guard.start_epoch()
    assert seen(guard, loss=math.nan)
    with pytest.raises(GuardStop, match=r"11 of 100 samples.*step 2: loss nan; 1 of 1 samples hold a non-finite input"):
        seen(guard, step=2, samples=1, loss=math.nan, non_finite_inputs=1)


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({"loss": math.nan, "non_finite_inputs": 3}, "llueve incident explain RUN"),
        ({"loss": math.nan}, "llueve incident explain RUN"),
        ({"moments": (math.nan, 0, 0, 0)}, "the machine's memory"),
        ({"rates": (math.nan,)}, "the machine.s memory"),
    ],
)
def test_the_message_tells_what_to_do_about_this_fault(changes, mend):
    with pytest.raises(GuardStop, match=mend):
        seen(Guard(0.0, 100), **changes)


def test_inputs_that_would_cost_more_than_the_budget_stop_before_the_first_step():
    # 1 bad window of 100, in batches of 16: 1 − 0.99^16 = 14.9 % of the samples would be lost.
    with pytest.raises(GuardStop, match=r"before the first step: 1 of 100 training samples.*cost 14\.9%"):
        Guard(max_skipped=0.14, epoch_samples=100).check_inputs(1, 16)
    Guard(max_skipped=0.15, epoch_samples=100).check_inputs(1, 16)
    Guard(max_skipped=0.0, epoch_samples=100).check_inputs(0, 16)


# Spikes


def settled(**changes):
    """A guard that has seen what is usual: losses about 0.3, norms about 1, each with a spread of a fifth."""
    random = np.random.default_rng(0)
    guard = Guard(max_skipped=1.0, epoch_samples=10**6)
    for _ in range(100):
        loss, norm = 0.3 * math.exp(0.2 * random.normal()), math.exp(0.2 * random.normal())
        assert seen(guard, loss=loss, gradient_norm=norm) is None
    return guard


def test_spikes_are_refused_and_never_become_usual():
    guard = settled()
    for _ in range(50):
        assert seen(guard, gradient_norm=1e5)[0] == "gradient_spike"
        assert seen(guard, loss=1e5)[0] == "loss_spike"
    assert seen(guard) is None  # the median is what it was


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_fault_that_is_not_finite_does_not_blind_the_guard(value):
    guard = settled()
    for _ in range(500):
        seen(guard, loss=value)
        seen(guard, gradient_norm=value)
    guard.start_epoch()
    assert seen(guard, gradient_norm=1e5)[0] == "gradient_spike"
    assert seen(guard, loss=1e5)[0] == "loss_spike"
    assert seen(guard) is None


ANY = st.floats(allow_nan=True, allow_infinity=True, width=32)


@given(st.lists(st.tuples(ANY, ANY, ANY, ANY, ANY), min_size=1, max_size=80))
def test_nothing_but_accepted_steps_ever_enters_what_is_usual(steps):
    """Whatever comes, in any order: what is usual is made of the finite numbers of accepted steps alone."""
    guard = Guard(max_skipped=1.0, epoch_samples=10**6)
    losses, norms = [], []
    for loss, norm, moment, average, rate in steps:
        step = reading(
            loss=loss, gradient_norm=norm, moments=(0.0, moment, 0.0, 1.0), average=(average, 0.0), rates=(rate,)
        )
        if guard.refuses(step) is None:
            losses += [math.log(loss)] if loss > 0 else []
            norms += [math.log(norm)] if norm > 0 else []
    assert list(guard.usual_loss.values) == losses and list(guard.usual_norm.values) == norms
    assert all(map(math.isfinite, losses + norms))


def test_a_hard_batch_is_no_spike():
    """A hundred times the usual gradient, which clipping tames, and a loss as of confident errors."""
    guard = settled()
    assert seen(guard, gradient_norm=100.0) is None
    assert seen(guard, loss=6.0) is None


def test_what_clipping_tames_or_a_start_may_have_is_sound():
    """A gradient whose clipped square fits, and losses of up to thirty times what no knowledge costs."""
    guard = Guard(max_skipped=0.0, epoch_samples=100)
    assert guard.refuses(reading(gradient_norm=1e30, clip_norm=1.0)) is None
    assert guard.refuses(reading(loss=29 * math.log(2))) is None
    assert Guard(0.0, 100, classes=9).refuses(reading(loss=31 * math.log(2))) is None


def test_a_few_steps_tell_nothing_of_what_is_usual():
    guard = Guard(max_skipped=1.0, epoch_samples=1000)
    for _ in range(ENOUGH - 1):
        assert seen(guard, gradient_norm=1e-6) is None
    assert seen(guard, gradient_norm=1.0) is None


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 500)), max_size=80))
def test_plain_steps_are_never_refused(steps):
    """Losses and norms as training gives them, in any order, from any start; norms within the clip's reach."""
    guard = Guard(max_skipped=0.0, epoch_samples=1000)
    for loss, norm in steps:
        assert guard.refuses(reading(loss=0.5 + loss / 40, gradient_norm=0.6 + norm)) is None


# Life


def test_training_that_does_not_move_is_stopped():
    guard = Guard(0.0, 100)
    for _ in range(IDLE_STEPS - 1):
        assert guard.refuses(reading(gradient_norm=0.0)) is None
    with pytest.raises(GuardStop, match="the gradient is exactly 0 for 100 steps"):
        guard.refuses(reading(gradient_norm=0.0))
    guard = Guard(0.0, 100, idle=IDLE_STEPS - 1)
    with pytest.raises(GuardStop, match="every learning rate is 0"):
        guard.refuses(reading(rates=(0.0, 0.0)))


def test_rare_classes_that_are_got_right_to_the_last_bit_are_no_alarm():
    """Batches without loss or gradient for long, and then one that is confidently wrong."""
    guard = Guard(0.0, 100)
    for _ in range(IDLE_STEPS + 50):
        assert guard.refuses(reading(loss=0.0, gradient_norm=0.0)) is None
    assert guard.refuses(reading(loss=40 * math.log(2))) is None


def test_a_weight_that_is_not_finite_is_named():
    model = torch.nn.ModuleDict({"norm": torch.nn.BatchNorm1d(3), "out": torch.nn.Linear(3, 2)})
    Guard(0.0, 100).check_weights(model)
    for value in (float("nan"), float("inf"), 1e30):
        with torch.no_grad():
            model["out"].bias[1] = value
        with pytest.raises(
            GuardStop, match=r"by the guard: out\.bias hold\(s\) numbers that are not finite or larger than"
        ):
            Guard(0.0, 100).check_weights(model)


def test_a_buffer_that_is_not_finite_is_named_and_may_be_large():
    model = torch.nn.BatchNorm1d(3)
    model.running_mean[1] = 1e30
    Guard(0.0, 100).check_weights(model)
    model.running_mean[1] = math.nan
    with pytest.raises(GuardStop, match="running_mean"):
        Guard(0.0, 100).check_weights(model)


def test_collapse_is_told():
    observed = np.array([0] * 60 + [1] * 40)
    logits = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    assert collapse(logits.argmax(1), observed, logits) is None
    tilted = logits + np.array([50.0, 0.0], np.float32)
    assert "so the accuracy is just its share, 60.00%" in collapse(tilted.argmax(1), observed, tilted)
    same = np.tile(np.array([[0.2, 0.1]], np.float32), (100, 1))
    assert "the same for every window" in collapse(same.argmax(1), observed, same)
    assert collapse(np.zeros(100, int), np.zeros(100, int), logits) is None  # one class only: nothing to tell apart
