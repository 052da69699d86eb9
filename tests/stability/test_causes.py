"""Causes by experiment: each planted fault is named, and the experiment that cures it is the one that takes it away."""

import sys
from pathlib import Path

import pytest
import torch

from llueve.model.timer import Timer
from llueve.model.timer_xl import TimerXL
from llueve.stability.diagnosis import Cause, Change, explain

sys.path.insert(0, str(Path(__file__).parent))
from planted import INF, NAN, planted


def cures(explanation):
    return {each.words() for each in explanation.experiments if each.cures}


@pytest.fixture(params=[(TimerXL, "variables"), (TimerXL, "mean"), (Timer, "variables"), (Timer, "mean")])
def shape(request):
    return dict(zip(("form", "head"), request.param, strict=True))


@pytest.mark.parametrize(("value", "cause"), [(NAN, "missing_input"), (INF, "infinite_input")])
def test_a_cell_is_the_cause_and_only_its_repair_cures(shape, value, cause):
    step, evidence = planted(**shape)
    step.batch.x_BLC[5, 7, 1] = value
    found = explain(step, evidence)
    assert (found.cause, found.cells, found.samples) == (cause, ((5, 7, 1),), (5,))
    # The note's suspicions are run, and do not cure it.
    assert cures(found) == {"missing and infinite cells masked", "without samples 5"}
    changes = {each.words() for each in found.experiments}
    assert {"new head", "new encoder, no pre-trained weights", "learning rates divided by 10"} <= changes
    assert found.trace is not None and (found.trace.sample, found.trace.step, found.trace.variable) == (5, 7, 1)


def test_a_weight_that_is_not_finite(shape):
    step, evidence = planted(**shape)
    with torch.no_grad():
        next(p for n, p in step.model.named_parameters() if "norm" in n and n.endswith("weight"))[2] = NAN
    found = explain(step, evidence)
    assert found.cause == "corrupt_weights"
    assert "non-finite weights replaced by new ones" in cures(found)


def test_a_stored_table_that_is_not_finite():
    step, evidence = planted()
    step.model.head.knots_CJ[1, 3] = NAN
    found = explain(step, evidence)
    assert found.cause == "corrupt_buffer"


def test_a_head_of_absurd_scale():
    step, evidence = planted()
    with torch.no_grad():
        for name, parameter in step.model.head.named_parameters():
            if name.startswith("network"):
                parameter.mul_(1e25)
    found = explain(step, evidence)
    assert found.cause == "head_initialisation"
    assert "new encoder, no pre-trained weights" not in cures(found)


def test_an_encoder_of_absurd_scale(shape):
    step, evidence = planted(**shape)
    with torch.no_grad():
        for name, parameter in step.model.encoder.named_parameters():
            if "conv" in name or "ffn" in name:
                parameter.mul_(1e28)
    found = explain(step, evidence)
    assert found.cause == "encoder_weights"
    assert "new head" not in cures(found)


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq"])
def test_poisoned_moments(name):
    moments = {f"head.out.weight.{name}": torch.tensor([[0.1, NAN if name == "exp_avg" else -1.0]])}
    found = explain(*planted(moments=moments, kind="moments"))
    assert found.cause == "poisoned_moments"
    assert cures(found) == {"new optimiser moments"}


@pytest.mark.parametrize("rate", [NAN, INF, -1.0])
def test_a_rate_that_is_no_rate(rate):
    assert explain(*planted(rates=(1e-3, rate), kind="learning_rate")).cause == "learning_rate"


def test_a_fault_that_does_not_repeat_is_transient(shape):
    found = explain(*planted(**shape))
    assert found.cause == "transient" and found.trace is None and found.samples == ()


def test_an_outlier_that_the_layers_cannot_bear(monkeypatch):
    """Normalisation in float64 and the limit on levels bear what float32 can hold; without the limit the head does not."""
    step, evidence = planted()
    step.batch.x_BLC[2, 3, 0] = 1e30
    assert explain(step, evidence).cause == "transient"
    monkeypatch.setattr("llueve.model.classifier.LARGEST", 1e38)
    found = explain(step, evidence)
    assert (found.cause, found.cells, found.samples) == ("outlier_input", ((2, 3, 0),), (2,))


def test_the_model_is_left_as_it_was(shape):
    step, evidence = planted(**shape)
    step.batch.x_BLC[0, 0, 0] = NAN
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    explain(step, evidence)
    assert all(torch.equal(before[name], value) for name, value in step.model.state_dict().items())
    assert step.batch.x_BLC[0, 0, 0].isnan() and step.model.training


def test_every_cause_has_a_meaning_in_both_languages():
    assert all(len(english) > 20 and len(spanish) > 20 for english, spanish in (cause.words for cause in Cause))
    assert all(change.words.en and change.words.es for change in Change)
