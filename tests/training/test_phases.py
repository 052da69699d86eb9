"""Phases: what is trained in each, at which rate, and when."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llueve.config import TrainConfig
from llueve.errors import ConfigError
from llueve.model.batch import Batch
from llueve.model.build import EncoderSizes
from llueve.model.classifier import TimerXLForClassification
from llueve.samples.split import Part, few_shot
from llueve.step.gradients import loss_and_gradients
from llueve.training import phases as phases_module
from llueve.training.phases import (
    Phase,
    apply_freeze,
    check_rates,
    is_encoder_frozen,
    parameter_groups,
    plan,
    rate_factor,
)

LAYERS = 2
FREEZES = st.lists(st.sampled_from(["encoder", "norms", "layers:1", "layers:2"]), min_size=1, unique=True).map(tuple)
RATES = st.floats(1e-7, 1.0)


def build(architecture="timer_xl", head="variables"):
    torch.manual_seed(0)
    encoder = EncoderSizes(architecture, patch_length=4, width=8, layers=LAYERS, heads=2, feed_forward=8).build(0.5)
    return TimerXLForClassification(encoder, 2, head, num_variables=3)


def phase(*freeze, **train):
    return Phase("phase", freeze or ("none",), TrainConfig(**train))


def batch():
    torch.manual_seed(1)
    x_BLC = torch.randn(6, 8, 3)
    return Batch(x_BLC, torch.ones_like(x_BLC, dtype=torch.bool), torch.zeros(6, 0), torch.arange(6) % 2)


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def rates(groups):
    return {group["name"]: group["lr"] for group in groups}


# Plan


def test_flat_keys_are_one_phase():
    train = TrainConfig(epochs=4, recipe="plain")
    assert plan(TrainConfig(epochs=4)) == plan(train) == (Phase("training", ("none",), train),)


def test_phases_are_trainings_of_their_own():
    train = TrainConfig(epochs=9, phases=[{"name": "a", "freeze": "encoder", "epochs": 1}, {"name": "b"}])
    assert [(each.name, each.freeze, each.config.epochs) for each in plan(train)] == [
        ("a", ("encoder",), 1),
        ("b", ("none",), 9),
    ]
    assert all(not each.config.phases and each.config.recipe == "plain" for each in plan(train))


def test_the_default_recipe():
    head, everything = plan(TrainConfig(recipe="default"))
    assert is_encoder_frozen(head) and not is_encoder_frozen(everything)
    assert (head.config.epochs, head.config.head_learning_rate) == (3, 1e-3)
    config = everything.config
    assert (config.encoder_learning_rate, config.head_learning_rate, config.layer_decay) == (1e-4, 5e-4, 0.8)


def test_the_conservative_recipe_to_the_letter():
    """The note: the encoder frozen for 5 to 10 epochs; then 1e-7·(epoch + 1) for five epochs, and 1e-6 from there."""
    head, everything = plan(TrainConfig(recipe="conservative"))
    assert [head.freeze, everything.freeze] == [("encoder",), ("none",)]
    assert 5 <= head.config.epochs <= 10
    for each in (head, everything):
        assert (each.config.batch_size, each.config.clip_norm, each.config.schedule) == (16, 1.0, "constant")
    steps = 7
    table = {
        each.name: [
            {
                each.config.encoder_learning_rate * rate_factor(each.config, steps)(step)
                for step in range(e * steps, (e + 1) * steps)
            }
            for e in range(each.config.epochs)
        ]
        for each in (head, everything)
    }
    assert table["head"] == [{1e-6}] * 5
    expected = [1e-7, 2e-7, 3e-7, 4e-7, 5e-7, 1e-6, 1e-6, 1e-6, 1e-6, 1e-6]
    assert [len(epoch) for epoch in table["all"]] == [1] * 10
    assert [rate for (rate,) in table["all"]] == pytest.approx(expected, rel=1e-12)
    assert set(rates(parameter_groups(build(), everything)).values()) == {1e-6}


def test_scratch_is_one_phase_with_nothing_frozen():
    assert [each.freeze for each in plan(TrainConfig(recipe="scratch"))] == [("none",)]


# Freezing


@pytest.mark.parametrize("architecture", ["timer_xl", "timer"])
def test_a_frozen_encoder_leaves_the_head(architecture):
    model = build(architecture)
    apply_freeze(model, phase("encoder"))
    assert trained(model) and all(name.startswith("head.") for name in trained(model))


@pytest.mark.parametrize("architecture", ["timer_xl", "timer"])
def test_frozen_layers_are_the_embedding_and_the_first_ones(architecture):
    model = build(architecture)
    apply_freeze(model, phase("layers:1"))
    frozen = {name for name, _ in model.named_parameters()} - trained(model)
    stem = "encoder.blocks.attn_layers." if architecture == "timer_xl" else "encoder.model.layers."
    embedding = "encoder.embedding." if architecture == "timer_xl" else "encoder.model.embed_layer."
    assert "gap_embedding_D" in frozen and any(name.startswith(embedding) for name in frozen)
    assert {name for name in frozen if stem in name} == {
        name for name, _ in model.named_parameters() if name.startswith(f"{stem}0.")
    }


def test_frozen_norms_are_those_of_the_encoder():
    model = build()
    apply_freeze(model, phase("norms"))
    frozen = {name for name, _ in model.named_parameters()} - trained(model)
    assert len(frozen) == 2 * (2 * LAYERS + 1) and all(
        "norm" in name and name.startswith("encoder.") for name in frozen
    )


def test_more_layers_than_the_encoder_has():
    with pytest.raises(ConfigError, match="phase freezes layers:3, but the encoder has 2"):
        apply_freeze(build(), phase("layers:3"))


@given(FREEZES)
def test_a_later_phase_trains_what_an_earlier_one_froze(freeze):
    model = build()
    apply_freeze(model, phase(*freeze))
    apply_freeze(model, phase())
    assert trained(model) == {name for name, _ in model.named_parameters()}
    assert all(module.training for module in model.modules())


def test_a_frozen_encoder_has_no_dropout_and_the_head_does():
    model = build()
    apply_freeze(model, phase("encoder"))
    model.train()
    assert model.training and model.head.training and not model.encoder.training
    given = batch()
    same = [model.encoder.tokens(given.x_BLC.transpose(1, 2)) for _ in range(2)]
    torch.testing.assert_close(*same, rtol=0, atol=0)


def test_the_notes_words():
    model = build().eval()
    model.freeze_encoder()
    assert model.is_encoder_frozen and not model.training
    model.train()
    assert not model.encoder.training
    model.unfreeze_encoder()
    assert model.encoder.training and trained(model) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("freeze", [("encoder",), ("layers:1",), ("layers:1", "norms")])
@pytest.mark.parametrize("head", ["variables", "mean"])
def test_a_step_moves_what_is_trained_and_nothing_else(freeze, head):
    model = build(head=head)
    if head == "variables":  # starts at zero, and passes no gradient on until it has moved
        torch.nn.init.normal_(model.head.out.weight)
    here = phase(*freeze, weight_decay=0.0)
    apply_freeze(model, here)
    model.train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    loss_and_gradients(model, batch(), here.config, torch.float32)
    torch.optim.AdamW(parameter_groups(model, here)).step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= trained(model)
    assert any(name.startswith("head.") for name in moved)
    assert any(name.startswith("encoder.") for name in moved) == (freeze != ("encoder",))


# Rates


def test_flat_keys_give_the_encoder_and_the_rest_in_their_order():
    model = build()
    groups = parameter_groups(model, phase(encoder_learning_rate=0.1, head_learning_rate=0.2, weight_decay=0.3))
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("encoder", 0.1, 0.3),
        ("head", 0.2, 0.3),
    ]
    assert [id(each) for each in groups[0]["params"]] == [id(each) for each in model.encoder.parameters()]


@pytest.mark.parametrize("architecture", ["timer_xl", "timer"])
def test_layers_learn_slower_downwards(architecture):
    groups = parameter_groups(
        build(architecture), phase(encoder_learning_rate=0.8, head_learning_rate=0.5, layer_decay=0.5)
    )
    assert list(rates(groups).items()) == [
        ("encoder.embedding", 0.8 * 0.5 * 0.5),
        ("encoder.layers.0", 0.8 * 0.5),
        ("encoder.layers.1", 0.8),
        ("encoder.top", 0.8),
        ("head", 0.5),
    ]


@given(FREEZES | st.just(("none",)), st.sampled_from(["timer_xl", "timer"]), st.floats(0.1, 1.0), RATES, RATES)
def test_every_parameter_is_in_one_group_if_it_is_trained(freeze, architecture, decay, encoder_rate, head_rate):
    model = build(architecture)
    here = phase(*freeze, layer_decay=decay, encoder_learning_rate=encoder_rate, head_learning_rate=head_rate)
    apply_freeze(model, here)
    groups = parameter_groups(model, here)
    count = Counter(id(parameter) for group in groups for parameter in group["params"])
    assert count == Counter({id(each): 1 for each in model.parameters() if each.requires_grad})
    assert all(0 < group["lr"] <= max(encoder_rate, head_rate) and group["params"] for group in groups)
    assert groups[-1]["name"] == "head"


TRAINS = st.builds(
    TrainConfig,
    epochs=st.integers(1, 20),
    warmup_steps=st.integers(0, 200),
    warmup_epochs=st.just(0) | st.floats(0.1, 30),
    schedule=st.sampled_from(["cosine", "constant"]),
)


@given(
    TRAINS | st.builds(TrainConfig, warmup=st.just("staircase"), warmup_epochs=st.integers(1, 10)), st.integers(1, 50)
)
def test_the_factor_is_a_share(train, steps):
    factor = rate_factor(train, steps)
    assert all(0 <= factor(step) <= 1 for step in range(0, 25 * steps, max(1, steps // 3)))


@given(TRAINS.filter(lambda train: not train.warmup_epochs), st.integers(1, 50), st.integers(0, 2000))
def test_the_keys_without_phases_keep_their_rates(train, steps, step):
    warm = min(1.0, (step + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / (steps * train.epochs))))
    assert rate_factor(train, steps)(step) == pytest.approx(warm if train.schedule == "constant" else warm * cosine)


def test_a_warm_up_in_epochs_rises_with_each_step():
    factor = rate_factor(TrainConfig(warmup_epochs=2, schedule="constant"), 4)
    assert [factor(step) for step in range(9)] == [1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 8, 1, 1]


def test_the_cosine_ends_at_zero():
    factor = rate_factor(TrainConfig(epochs=3, warmup_steps=0), 4)
    assert (factor(0), factor(6)) == (1, pytest.approx(0.5)) and math.isclose(factor(12), 0, abs_tol=1e-15)


# The rates of all phases, before the first step


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"head_learning_rate": 1e-4}, {"head_learning_rate": 1.0}, "all: head_learning_rate = 1 is 10,000 times"),
        (
            {"head_learning_rate": 1e-4},
            {"encoder_learning_rate": 1.0},
            "all: encoder_learning_rate = 1 is 10,000 times",
        ),
        ({"head_learning_rate": 1e-4}, {"head_learning_rate": 0.1, "encoder_learning_rate": 0.1}, None),
        ({"head_learning_rate": 1.0}, {"head_learning_rate": 1e-6}, None),
    ],
)
def test_a_rate_that_rises_ten_thousandfold_at_unfreezing_is_refused_before_the_first_step(first, second, words):
    usual = {"head_learning_rate": 1e-4, "encoder_learning_rate": 1e-4}
    phases = [{"name": "head", "freeze": "encoder", **usual, **first}, {"name": "all", **usual, **second}]
    planned = plan(TrainConfig(phases=phases))
    if words is None:
        check_rates(planned, 1000)
    else:
        with pytest.raises(ConfigError, match=words):
            check_rates(planned, 1000)


@pytest.mark.parametrize("wrong", [math.nan, -0.1, 1e4, math.inf])
def test_a_schedule_that_leaves_its_range_anywhere_is_refused(monkeypatch, wrong):
    monkeypatch.setattr(phases_module, "rate_factor", lambda *_: lambda step: wrong if step == 499 else 1.0)
    with pytest.raises(ConfigError, match="the schedule multiplies its learning rates by"):
        check_rates(plan(TrainConfig(epochs=10, batch_size=20)), 1000)


@pytest.mark.parametrize("recipe", ["plain", "default", "conservative", "scratch"])
def test_the_rates_of_every_recipe_are_accepted(recipe):
    check_rates(plan(TrainConfig(recipe=recipe)), 1000)


# A share of the windows


def months(count, y):
    """Two sites of daily windows from 2020 on."""
    times = np.datetime64("2020-01-01", "ns") + np.arange(count) * np.timedelta64(1, "D")
    site, end = np.divmod(np.arange(2 * count), count)
    return Part("training", site, end, y), times


@given(st.floats(0.001, 1.0), st.integers(0, 100), st.integers(0, 3))
def test_a_share_of_every_class_and_month(fraction, seed, classes):
    y = np.random.default_rng(seed).integers(0, classes + 1, 800)
    part, times = months(400, y)
    share = few_shot(part, times, fraction, seed)
    assert len(share) >= 1 and {*share.y} == {*part.y}
    assert len(set(zip(share.site.tolist(), share.end.tolist(), strict=True))) == len(share)
    lost = len({*part.y})  # classes that were given back a window
    for kind in np.unique(y):
        here, all_here = share[share.y == kind], part[part.y == kind]
        assert abs(len(here) - fraction * len(all_here)) <= 1 + lost
        for month in np.unique(times[part.end].astype("datetime64[M]")):
            count, of = (int((times[each.end].astype("datetime64[M]") == month).sum()) for each in (here, all_here))
            assert abs(count - fraction * of) <= 1 + 1


def test_the_same_seed_draws_the_same_windows_and_another_does_not():
    part, times = months(100, np.arange(200) % 2)
    first, again, other = (few_shot(part, times, 0.2, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.end, again.end)
    assert first.end.tolist() != other.end.tolist()
    assert np.all(np.diff(first.site * 100 + first.end) > 0)


def test_all_of_them_is_the_part_itself():
    part, times = months(10, np.arange(20) % 2)
    assert few_shot(part, times, 1.0, 0) is part
