"""The training loop: it learns, it is deterministic, and a non-finite number never reaches the weights."""

import io

import numpy as np
import pytest
import torch
from rich.console import Console

from llueve.config import GuardConfig
from llueve.errors import GuardStop
from llueve.model.build import build_encoder
from llueve.model.classifier import TimerXLForClassification
from llueve.samples.scale import fit_scaler
from llueve.samples.split import split_panel
from llueve.samples.windows import build_windows
from llueve.step import gradients as step
from llueve.step.predict import predict_logits, probabilities
from llueve.training import loop, stepper, training_state
from llueve.training.environment import Environment
from llueve.training.optimiser import AdamW, build_optimiser


def prepared(make_panel, make_config, missing="mask", **sections):
    panel, config = make_panel(times=200), make_config(**sections)
    split = split_panel(panel, config)
    windows = build_windows(panel, fit_scaler(panel, split.training_rows), config.windows.context, missing)
    torch.manual_seed(config.train.seed)
    model = TimerXLForClassification(build_encoder(config.model), 2, "variables", num_variables=3, num_facts=2)
    return model, windows, split, config


def run(model, windows, split, config, max_skipped=0.0, policy="skip", events=None):
    history = []

    def record(line):
        (history if "event" not in line else [] if events is None else events).append(line)

    def fresh():
        with torch.random.fork_rng():
            torch.manual_seed(99)
            return TimerXLForClassification(build_encoder(config.model), 2, "variables", num_variables=3, num_facts=2)

    trained = loop.train_model(
        model,
        windows,
        split.training,
        split.validation,
        config.train,
        GuardConfig(max_skipped=max_skipped, policy=policy),
        Environment(record, lambda step: None, fresh, Console(file=io.StringIO())),
    )
    return trained, history


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return all(torch.equal(first[name].cpu(), second[name].cpu()) for name in first)


def test_it_learns_what_the_last_value_decides(make_panel, make_config):
    rates = {"encoder_learning_rate": 1e-2, "head_learning_rate": 1e-2}
    setup = prepared(make_panel, make_config, train={"epochs": 20, "patience": 20, **rates})
    trained, history = run(*setup)
    assert [line["epoch"] for line in history] == list(range(1, 21))
    assert trained.best_validation_loss < 0.35  # ln 2 = 0.69 without knowledge; 10 % of the deciding cells are missing
    assert trained.best_validation_loss == min(line["calibrated_loss"] for line in history)


def test_two_runs_give_identical_bits_and_another_seed_does_not(make_panel, make_config):
    models = []
    for seed in (4, 4, 5):
        model, *rest = prepared(make_panel, make_config, train={"seed": seed})
        run(model, *rest)
        models.append(weights(model))
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_the_best_epoch_is_kept_not_the_last(make_panel, make_config, monkeypatch):
    losses = iter([0.6, 0.4, 0.5, 0.45])
    kept = []
    setup = prepared(make_panel, make_config, train={"epochs": 4, "patience": 4})

    def scripted(*_):
        kept.append(weights(setup[0]))
        return next(losses)

    monkeypatch.setattr(loop, "calibrated_loss", scripted)
    trained, _ = run(*setup)
    assert trained.best_epoch == 2
    assert same(weights(setup[0]), kept[1])
    assert not same(kept[1], kept[3])


def test_a_nan_validation_loss_is_never_the_best(make_panel, make_config, monkeypatch):
    losses = iter([np.nan, 0.5, np.nan, np.nan])
    monkeypatch.setattr(loop, "calibrated_loss", lambda *_: next(losses))
    trained, history = run(*prepared(make_panel, make_config, train={"epochs": 4, "patience": 4}))
    assert trained.best_epoch == 2
    assert [line["calibrated_loss"] for line in history] == [None, 0.5, None, None]


def test_only_nan_validation_losses_leave_no_model(make_panel, make_config, monkeypatch):
    monkeypatch.setattr(loop, "calibrated_loss", lambda *_: np.nan)
    with pytest.raises(GuardStop, match="never finite"):
        run(*prepared(make_panel, make_config))


def test_patience_ends_the_run(make_panel, make_config, monkeypatch):
    losses = iter([0.5, 0.6, 0.7, 0.8, 0.9])
    monkeypatch.setattr(loop, "calibrated_loss", lambda *_: next(losses))
    _, history = run(*prepared(make_panel, make_config, train={"epochs": 5, "patience": 2}))
    assert len(history) == 3


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_bad_step_is_skipped_counted_and_not_applied(make_panel, make_config, monkeypatch, where):
    """One planted NaN: the weights after that step are the weights before it."""
    model, windows, split, config = prepared(make_panel, make_config, train={"epochs": 1})
    weighted_mean, seen = step.weighted_mean, []

    def planted(*arguments):
        loss = weighted_mean(*arguments)
        if model.training:
            seen.append(weights(model))
            if len(seen) == 3:
                # The root has a finite value at zero, and no finite slope: the loss is sound, its gradient is not.
                zero = model.gap_embedding_D - model.gap_embedding_D.detach()
                return loss * float("nan") if where == "loss" else loss + zero.square().sum().sqrt()
        return loss

    monkeypatch.setattr(step, "weighted_mean", planted)
    trained, history = run(model, windows, split, config, max_skipped=0.2)
    assert history[0]["skipped"] == trained.skipped == config.train.batch_size
    assert same(seen[2], seen[3])
    assert not same(seen[3], seen[4])
    assert all(value.isfinite().all() for value in weights(model).values())


@pytest.mark.parametrize("where", ["first moment", "second moment", "negative second moment", "rate"])
def test_poison_outside_the_step_is_refused_before_it_reaches_the_weights(make_panel, make_config, monkeypatch, where):
    """Planted between two steps: the very next step is refused, and weights, moments and schedule stay as they are."""
    model, windows, split, config = prepared(make_panel, make_config, train={"epochs": 1})
    built, before, calls = [], {}, []
    build, compute = training_state.build_optimiser, stepper.loss_and_gradients

    def kept(*arguments):
        built.append(build(*arguments))
        return built[0]

    def planted(*arguments):
        calls.append(None)
        optimiser = built[0]
        if len(calls) == 3:
            {
                "first moment": lambda: optimiser.first_moment.__setitem__(7, float("nan")),
                "second moment": lambda: optimiser.second_moment.__setitem__(-1, float("inf")),
                "negative second moment": lambda: optimiser.second_moment.__setitem__(5, -1e-6),
                "rate": lambda: optimiser.adamw.param_groups[1].__setitem__("lr", float("nan")),
            }[where]()
            before["weights"], before["moments"] = weights(model), optimiser.first_moment.clone()
        return compute(*arguments)

    monkeypatch.setattr(training_state, "build_optimiser", kept)
    monkeypatch.setattr(stepper, "loss_and_gradients", planted)
    with pytest.raises(GuardStop, match=r"step 3: (optimiser moments|a second moment of|learning rate)"):
        run(model, windows, split, config, max_skipped=0.0)
    assert same(before["weights"], weights(model))
    torch.testing.assert_close(built[0].first_moment, before["moments"], rtol=0, atol=0, equal_nan=True)
    assert {float(state["step"]) for state in built[0].adamw.state.values()} == {0.0, 2.0}  # unused weights never step


def test_moments_in_one_block_change_no_bit(make_panel, make_config, monkeypatch):
    """The same training with torch's own moments."""
    results = []
    for own in (False, True):
        if own:
            build = training_state.build_optimiser

            def plain(*arguments, build=build):
                optimiser = build(*arguments)
                for state in optimiser.adamw.state.values():
                    state["exp_avg"], state["exp_avg_sq"] = state["exp_avg"].clone(), state["exp_avg_sq"].clone()
                return optimiser

            monkeypatch.setattr(training_state, "build_optimiser", plain)
        model, *rest = prepared(make_panel, make_config, train={"epochs": 2})
        torch.manual_seed(9)
        run(model, *rest)
        results.append(weights(model))
    assert same(*results)


def test_adamw_is_that_of_torch_bit_for_bit():
    """With groups of other rates and decays, a rate that changes, and parameters without a gradient."""
    results = []
    for own in (True, False):
        torch.manual_seed(5)
        parameters = [torch.nn.Parameter(torch.randn(size)) for size in ((3, 4), (7,), (5,), ())]
        groups = [{"params": parameters[:2], "lr": 1e-2, "weight_decay": 0.3}, {"params": parameters[2:], "lr": 1e-3}]
        adamw = build_optimiser(groups).adamw if own else torch.optim.AdamW(groups, fused=True)
        for count in range(5):
            for number, each in enumerate(parameters):
                each.grad = None if number == 1 and count < 3 else torch.randn_like(each)
            adamw.param_groups[0]["lr"] *= 0.7
            adamw.step()
        results.append([*parameters, *(adamw.state[each][key] for each in parameters for key in ("exp_avg", "step"))])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("clip_norm", [0.01, 0.3, 1e6])
def test_gradients_are_applied_as_torch_clips_them(make_panel, make_config, monkeypatch, clip_norm):
    """Also where the loop leaves out a clipping that changes nothing."""
    model, *rest = prepared(make_panel, make_config, train={"epochs": 1, "clip_norm": clip_norm})
    compute, step_of, clipped = stepper.loss_and_gradients, AdamW.step, []

    def remembered(*arguments):
        loss = compute(*arguments)
        own = [each.grad for each in model.parameters()]
        for each in model.parameters():
            each.grad = None if each.grad is None else each.grad.clone()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm, foreach=True)
        clipped.append([each.grad for each in model.parameters()])
        for each, gradient in zip(model.parameters(), own, strict=True):
            each.grad = gradient
        return loss

    def compared(self, *arguments):
        for each, expected in zip(model.parameters(), clipped[-1], strict=True):
            assert (each.grad is None) == (expected is None)
            assert expected is None or torch.equal(each.grad, expected)
        return step_of(self, *arguments)

    monkeypatch.setattr(stepper, "loss_and_gradients", remembered)
    monkeypatch.setattr(AdamW, "step", compared)
    run(model, *rest)
    assert len(clipped) > 5


def test_raw_missing_cells_stop_the_run_before_the_first_step(make_panel, make_config):
    model, windows, split, config = prepared(make_panel, make_config, missing="raw")
    before = weights(model)
    with pytest.raises(GuardStop, match=rf"\d+ of {len(split.training)} training samples hold a non-finite value"):
        run(model, windows, split, config, max_skipped=0.01)
    assert same(before, weights(model))


def test_logits_of_non_finite_inputs_are_not_finite(make_panel, make_config):
    """A NaN must come out as NaN, never as an invented one half."""
    model, windows, split, _ = prepared(make_panel, make_config, missing="raw")
    torch.nn.init.normal_(model.head.out.weight)
    bad = ~np.isfinite(windows.batch(split.test)[0]).all(axis=(1, 2))
    logits = predict_logits(model, windows, split.test)
    assert bad.any() and not np.isfinite(logits[bad]).any(axis=1).any()
    assert np.isfinite(logits[~bad]).all()


def test_probabilities_sum_to_one():
    p = probabilities(np.array([[0.0, 0.0], [80.0, -80.0]], np.float32))
    np.testing.assert_allclose(p, [[0.5, 0.5], [1, 0]], atol=1e-12)
