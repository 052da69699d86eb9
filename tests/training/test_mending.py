"""Remedies inside a whole training: what was planted is mended, and the run ends as if it had never been."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from llueve.config import GuardConfig
from llueve.errors import GuardStop
from llueve.model.build import build_encoder
from llueve.model.classifier import TimerXLForClassification
from llueve.model.timer_xl import TimerXL
from llueve.samples.scale import fit_scaler
from llueve.samples.split import split_panel
from llueve.samples.windows import build_windows
from llueve.step import gradients
from llueve.training import loop, recovery, stepper, training_state
from llueve.training.environment import Environment
from llueve.training.stepper import Stepper

NAN, INF = float("nan"), float("inf")


class Run:
    """A small training that can be run with something planted in it."""

    def __init__(self, make_panel, make_config, missing="mask", times=300, **train):
        sections = {"train": {"epochs": 3, "patience": 3, "batch_size": 16, **train}}
        panel, self.config = make_panel(times=times), make_config(**sections)
        self.split = split_panel(panel, self.config)
        scaler = fit_scaler(panel, self.split.training_rows)
        self.windows = build_windows(panel, scaler, self.config.windows.context, missing)
        self.training = self.split.training
        self.events, self.history, self.trained = [], [], None
        self.model = self.fresh(self.config.train.seed)

    def fresh(self, seed=99):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return TimerXLForClassification(
                build_encoder(self.config.model), 2, "variables", num_variables=3, num_facts=2
            ).train()

    def go(self, policy="repair", max_skipped=0.05):
        torch.manual_seed(7)
        self.trained = loop.train_model(
            self.model,
            self.windows,
            self.training,
            self.split.validation,
            self.config.train,
            GuardConfig(policy=policy, max_skipped=max_skipped),
            Environment(
                lambda line: (self.events if "event" in line else self.history).append(line),
                lambda step: None,
                self.fresh,
                Console(file=io.StringIO()),
            ),
        )
        return self

    @property
    def weights(self):
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    @property
    def actions(self):
        return [(event.get("cause"), event["action"]) for event in self.events if event["event"] == "refused"]


def plant(monkeypatch, at, damage):
    """Do `damage(course)` once, just before the attempt number `at` (counted from 1, repeats too)."""
    attempt, calls = Stepper.attempt, []

    def planted(self, *arguments):
        calls.append(None)
        if len(calls) == at:
            damage(self)
        return attempt(self, *arguments)

    monkeypatch.setattr(Stepper, "attempt", planted)


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def put(tensor, index, value):
    with torch.no_grad():
        tensor.view(-1)[index] = value


DAMAGES = {
    "a weight": lambda here: put(here.state.model.encoder.blocks.attn_layers[0].conv1.weight, 5, NAN),
    "an unused weight": lambda here: put(here.state.model.encoder.head.weight, 5, INF),
    "an absurd weight": lambda here: put(here.state.model.encoder.blocks.attn_layers[0].norm2.weight, 3, 1e30),
    "a buffer": lambda here: put(here.state.model.head.knots_CJ, 7, NAN),
    "a first moment": lambda here: put(here.state.optimiser.first_moment, 11, NAN),
    "a second moment": lambda here: put(here.state.optimiser.second_moment, 11, -1.0),
    "the average": lambda here: put(here.state.average.block, 9, NAN),
    "the random state": lambda here: torch.rand(3),
}


@pytest.mark.parametrize("at", [1, 2, 20])
@pytest.mark.parametrize("what", DAMAGES)
def test_damage_to_memory_leaves_no_trace(make_panel, make_config, monkeypatch, what, at):
    clean = Run(make_panel, make_config, average_decay=0.9).go()
    assert clean.events == []
    with monkeypatch.context() as patch:
        plant(patch, at, DAMAGES[what])
        hit = Run(make_panel, make_config, average_decay=0.9).go()
    assert len(hit.events) == 1 and hit.events[0]["kind"] != "memory"  # the checks of the values come first
    assert same(hit.weights, clean.weights)
    assert [line["validation_loss"] for line in hit.history] == [line["validation_loss"] for line in clean.history]


@pytest.mark.parametrize("factor", [1e4, 1e-4, 1.5])
def test_rates_that_are_not_the_planned_ones_are_never_applied(make_panel, make_config, monkeypatch, factor):
    """From the first step after unfreezing on."""
    phases = {
        "phases": [{"name": "head", "freeze": "encoder", "epochs": 1}, {"name": "all", "epochs": 1}],
        "patience": 1,
    }
    clean = Run(make_panel, make_config, times=200, **phases).go()
    at = clean.history[0]["steps"] + 1

    def scale(here):
        optimiser = here.state.optimiser
        here.state.optimiser = replace(optimiser, base_rates=tuple(rate * factor for rate in optimiser.base_rates))

    with monkeypatch.context() as patch:
        plant(patch, at, scale)
        hit = Run(make_panel, make_config, times=200, **phases).go()
    assert [(event["epoch"], event["batch"], event["kind"]) for event in hit.events] == [(2, 1, "learning_rate")]
    assert hit.actions == [("learning_rate", "rerun")] and same(hit.weights, clean.weights)


def flip(tensor, index, bit):
    """Flip a bit of a float32 number, as damaged memory does."""
    with torch.no_grad():
        tensor.view(torch.int32).view(-1)[index] ^= 1 << bit


FLIPS = {
    "weights": (lambda state: state.model.head.network[0].weight, "damaged_weights", "head.network.0.weight"),
    "a moment": (lambda state: state.optimiser.second_moment, "poisoned_moments", ".exp_avg_sq"),
    "the average": (lambda state: state.average.block, "poisoned_average", ""),
    "a buffer": (lambda state: state.model.head.knots_CJ, "corrupt_buffer", "head.knots_CJ"),
    "a frozen weight": (
        lambda state: state.model.encoder.embedding.weight,
        "damaged_weights",
        "encoder.embedding.weight",
    ),
}


@pytest.mark.parametrize("bit", [0, 27])
@pytest.mark.parametrize("what", FLIPS)
def test_a_bit_that_flips_between_two_steps_is_found_and_located(make_panel, make_config, monkeypatch, what, bit):
    """Bits towards zero, too: no number becomes large, and no loss rises."""
    tensor, cause, name = FLIPS[what]
    frozen = {"phases": [{"name": "head", "freeze": "encoder"}]} if "frozen" in what else {}
    sizes = {"average_decay": 0.9, "epochs": 1, "feature_cache_gb": 0, **frozen}
    clean = Run(make_panel, make_config, **sizes).go()
    found = []
    with monkeypatch.context() as patch:
        plant(patch, 9, lambda here: flip(tensor(here.state), 3, bit))
        explain = recovery.explain
        patch.setattr(recovery, "explain", lambda *given: found.append(explain(*given)) or found[-1])
        hit = Run(make_panel, make_config, **sizes).go()
    assert [(event["kind"], event["cause"], event["action"]) for event in hit.events] == [
        ("memory", cause, "roll_back")
    ]
    assert same(hit.weights, clean.weights)
    ((where, index),) = found[0].numbers
    assert where.endswith(name)
    if where in hit.weights and what != "the average":
        assert np.ravel_multi_index(index, hit.weights[where].shape) == 3
    assert [each.change for each in found[0].experiments if each.cures] == ["changed_numbers_rebuilt"]


NAMES = [
    name
    for name, each in TimerXLForClassification(TimerXL(4, 8, 1, 2, 8), 2, "variables", num_variables=3, num_facts=2)
    .state_dict()
    .items()
    if each.is_floating_point()
]


@pytest.mark.parametrize("value", [NAN, -INF, -2e6])
def test_no_weight_or_buffer_is_unsound_for_a_single_step(make_panel, make_config, monkeypatch, value):
    """One number of one tensor, used or not, is refused in the step that it appears in, and called by its name."""
    for number, name in enumerate(NAMES):
        hit = Run(make_panel, make_config, epochs=1)
        if value == -2e6 and name in dict(hit.model.named_buffers()):
            continue  # a buffer may hold any finite number
        with monkeypatch.context() as patch:
            plant(patch, number % 5 + 1, lambda here, name=name: put(here.state.model.state_dict()[name], -1, value))
            with pytest.raises(GuardStop, match=rf"step {number % 5 + 1}: {name} hold\(s\)"):
                hit.go(policy="skip", max_skipped=0)


@pytest.mark.parametrize("where", ["loss", "gradient", "rate"])
@pytest.mark.parametrize("at", [1, 13])
def test_what_does_not_repeat_leaves_no_trace(make_panel, make_config, monkeypatch, where, at):
    clean = Run(make_panel, make_config).go()
    compute, calls = stepper.loss_and_gradients, []
    hit = Run(make_panel, make_config)

    def planted(model, *arguments):
        loss = compute(model, *arguments)
        calls.append(None)
        if len(calls) == at:
            if where == "gradient":
                put(model.gap_embedding_D.grad, 0, INF)
            if where == "rate":
                seen[0].state.optimiser.adamw.param_groups[0]["lr"] = NAN
            return loss * NAN if where == "loss" else loss
        return loss

    seen = []
    attempt = Stepper.attempt
    with monkeypatch.context() as patch:
        patch.setattr(stepper, "loss_and_gradients", planted)
        patch.setattr(Stepper, "attempt", lambda self, *rest: (seen.append(self), attempt(self, *rest))[1])
        hit.go()
    assert len(hit.events) == 1 and hit.events[0]["action"] == "rerun"
    assert same(hit.weights, clean.weights)


def test_quarantined_samples_leave_the_run_without_them(make_panel, make_config):
    """Bit for bit what comes out when they were never in the table."""
    bad = [3, 40, 77]
    hit = Run(make_panel, make_config, times=310)
    for row in bad:
        site, end = hit.training.site[row], hit.training.end[row]
        assert hit.windows.context == 8
        hit.windows.values_STC[site, end, 1] = NAN
    inside = np.isfinite(hit.windows.batch(hit.training)[0]).all(axis=(1, 2))
    without = Run(make_panel, make_config, times=310)
    without.training = without.training[inside]
    for run in (hit, without):
        run.config = run.config.model_copy(
            update={"train": run.config.train.model_copy(update={"schedule": "constant"})}
        )
    hit.go(max_skipped=0.2)
    without.go()
    assert {cause for cause, _ in hit.actions} == {"missing_input"}
    assert {action for _, action in hit.actions} == {"quarantine"}
    assert {event["epoch"] for event in hit.events} == {1}  # none was let back while it was as bad as before
    assert hit.trained.quarantined == (~inside).sum() > 0
    assert same(hit.weights, without.weights)


def after_step(monkeypatch, is_it, damage):
    """Do `damage(course)` once, right after the first applied step that `is_it(course)`."""
    apply, done = Stepper.apply, []

    def planted(self, *arguments):
        apply(self, *arguments)
        if not done and is_it(self):
            done.append(damage(self))

    monkeypatch.setattr(Stepper, "apply", planted)


@pytest.mark.parametrize("what", ["a first moment", "a second moment", "the average", "a weight"])
def test_a_damaged_state_is_not_remembered(make_panel, make_config, monkeypatch, what):
    """The damage comes just before the copy is taken: what is come back to is the copy before it."""
    monkeypatch.setattr(training_state, "SNAPSHOT_STEPS", 4)
    clean = Run(make_panel, make_config, average_decay=0.9).go()
    damage = DAMAGES["a first moment" if what == "a second moment" else what]
    if what == "a second moment":
        damage = lambda here: put(here.state.optimiser.second_moment, 11, INF)  # noqa: E731
    with monkeypatch.context() as patch:
        after_step(patch, lambda here: here.state.place.steps == 8, damage)
        hit = Run(make_panel, make_config, average_decay=0.9).go()
    assert [event["action"] for event in hit.events] == ["roll_back"]
    assert same(hit.weights, clean.weights)


@pytest.mark.parametrize("value", [NAN, INF, 1e7])
def test_damage_after_the_last_step_of_an_epoch_is_mended_before_validation(
    make_panel, make_config, monkeypatch, value
):
    clean = Run(make_panel, make_config).go()
    with monkeypatch.context() as patch:
        after_step(
            patch,
            lambda here: here.state.place.epoch == 2 and here.batches.is_over(here.state.place.position),
            lambda here: put(here.state.model.encoder.embedding.weight, 2, value),
        )
        hit = Run(make_panel, make_config).go()
    assert hit.actions == [("corrupt_weights", "roll_back")]
    assert same(hit.weights, clean.weights)
    assert [line["validation_loss"] for line in hit.history] == [line["validation_loss"] for line in clean.history]


def test_too_many_bad_samples_end_the_run(make_panel, make_config):
    hit = Run(make_panel, make_config)
    hit.windows.values_STC[0, hit.training.end[:40], 1] = INF
    with pytest.raises(GuardStop, match="before the first step"):
        hit.go(max_skipped=0.01)


def test_a_model_that_is_corrupt_from_the_start_is_not_trained(make_panel, make_config):
    hit = Run(make_panel, make_config)
    put(hit.model.encoder.embedding.weight, 3, NAN)
    with pytest.raises(GuardStop, match="Cause: corrupt_weights"):
        hit.go()
    assert hit.history == [] and hit.events[-1]["event"] == "stopped"


def test_stop_names_the_cause_at_the_first_fault(make_panel, make_config, monkeypatch):
    hit = Run(make_panel, make_config)
    plant(monkeypatch, 5, DAMAGES["a first moment"])
    with pytest.raises(GuardStop, match="Cause: poisoned_moments"):
        hit.go(policy="stop")


def test_damage_that_comes_back_ends_the_run(make_panel, make_config, monkeypatch):
    hit = Run(make_panel, make_config)
    attempt = Stepper.attempt

    def planted(self, *arguments):
        if self.state.place.position >= 64 and self.state.place.epoch == 1:
            put(self.state.model.encoder.embedding.weight, 3, NAN)
        return attempt(self, *arguments)

    monkeypatch.setattr(Stepper, "attempt", planted)
    with pytest.raises(GuardStop, match="returned after a roll-back"):
        hit.go()
    assert [event["action"] for event in hit.events[:-1]] == ["roll_back", "stop"]


def test_rates_that_drive_the_weights_away_are_lowered(make_panel, make_config):
    rates = {"encoder_learning_rate": 1.0, "head_learning_rate": 1.0, "schedule": "constant", "warmup_steps": 0}
    hit = Run(make_panel, make_config, **rates).go()
    assert ("learning_rate", "roll_back") in hit.actions
    assert 1 <= hit.trained.rollbacks <= 3
    assert np.isfinite(hit.trained.best_validation_loss)
    assert all(value.isfinite().all() for value in hit.weights.values())


def test_an_absurd_head_is_made_anew(make_panel, make_config):
    clean = Run(make_panel, make_config).go()
    hit = Run(make_panel, make_config)
    with torch.no_grad():
        hit.model.head.out.weight.normal_(std=1000.0)
    hit.go()
    assert hit.actions == [("head_initialisation", "fresh_head")]
    assert abs(hit.trained.best_validation_loss - clean.trained.best_validation_loss) < 0.1


def test_a_fault_of_a_single_sample_is_tried_again_later(make_panel, make_config, monkeypatch):
    """A sample whose logits are not finite in one epoch is quarantined, and let back in the next."""
    hit = Run(make_panel, make_config)
    wanted_LC = torch.from_numpy(hit.windows.batch(hit.training[[50]])[0][0]).T
    broken, answer = [True], gradients.answer

    def spoiled(model, batch):
        row_B, found = (batch.x_BLC == wanted_LC.to(batch.x_BLC.device)).flatten(1).all(1), answer(model, batch)
        return found._replace(logits_BK=torch.where(row_B[:, None] & broken[0], NAN, found.logits_BK))

    monkeypatch.setattr(gradients, "answer", spoiled)
    validate = loop._validate

    def after_first(*arguments):
        broken[0] = False
        return validate(*arguments)

    monkeypatch.setattr(loop, "_validate", after_first)
    hit.go()
    assert hit.actions == [("few_samples", "quarantine")]
    assert [line["quarantined"] for line in hit.history] == [1, 0, 0]


def test_the_next_phase_has_its_own_rates_again(make_panel, make_config):
    """A head that was too fast is slowed down; what is trained after it is not."""
    phases = [
        {"name": "fast", "epochs": 1, "head_learning_rate": 1.0, "encoder_learning_rate": 1.0},
        {"name": "usual", "epochs": 2},
    ]
    hit = Run(make_panel, make_config, epochs=1, phases=phases, schedule="constant", warmup_steps=0).go()
    assert ("learning_rate", "roll_back") in hit.actions
    assert hit.history[0]["learning_rate"] < 1.0
    assert [line["learning_rate"] for line in hit.history[1:]] == [1e-3, 1e-3]


def test_a_fresh_head_is_fresh_in_the_average_too(make_panel, make_config):
    """Validation is judged with the average: it must not remember the head that was thrown away."""
    hit = Run(make_panel, make_config, average_decay=0.9)
    with torch.no_grad():
        hit.model.head.out.weight.normal_(std=1000.0)
    hit.go()
    assert hit.actions == [("head_initialisation", "fresh_head")]
    assert all(line["validation_loss"] < 1.0 for line in hit.history)
