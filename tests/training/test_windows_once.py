"""Each epoch uses each window once, and its history says what does not stop a training."""

import io
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from llueve.config import GuardConfig, TrainConfig
from llueve.errors import GuardStop
from llueve.model.build import build_encoder
from llueve.model.classifier import TimerXLForClassification
from llueve.samples.scale import fit_scaler
from llueve.samples.split import split_panel
from llueve.samples.windows import Windows, build_windows
from llueve.training import loop
from llueve.training.batches import epoch as epoch_module
from llueve.training.batches.epoch import Drawn, EpochBatches
from llueve.training.batches.prefetch import Loader
from llueve.training.environment import Environment
from llueve.training.remarks import overfit


class Run:
    """A small training."""

    def __init__(self, make_panel, make_config, **train):
        panel = make_panel(times=150)
        self.config = make_config(train={"epochs": 2, "patience": 2, "batch_size": 16, **train})
        self.split = split_panel(panel, self.config)
        scaler = fit_scaler(panel, self.split.training_rows)
        self.windows = build_windows(panel, scaler, self.config.windows.context, "mask")
        torch.manual_seed(0)
        encoder = build_encoder(self.config.model)
        self.model = TimerXLForClassification(encoder, 2, "variables", num_variables=3, num_facts=2).train()
        self.lines, self.result = [], None

    def go(self):
        torch.manual_seed(7)
        parts = self.split.training, self.split.validation
        around = Environment(self.lines.append, lambda _: None, lambda: self.model, Console(file=io.StringIO()))
        self.result = loop.train_model(self.model, self.windows, *parts, self.config.train, GuardConfig(), around)
        return self

    @property
    def weights(self):
        return self.model.state_dict()


def patch_for_ever(monkeypatch, owner, name, damage=lambda found: found):
    """Let a function return its first result for ever."""
    function, first = getattr(owner, name), []

    def same(*given, **options):
        if not first:
            first.append(damage(function(*given, **options)))
        return first[0]

    monkeypatch.setattr(owner, name, same)


@pytest.mark.parametrize(("owner", "name"), [(EpochBatches, "load"), (Loader, "take")])
def test_the_same_batch_for_ever_is_noticed_and_gathered_again(make_panel, make_config, monkeypatch, owner, name):
    clean = Run(make_panel, make_config).go()
    with monkeypatch.context() as patch:
        patch_for_ever(patch, owner, name)
        hit = Run(make_panel, make_config).go()
    told = [(line["event"], line["kind"], line["epoch"]) for line in hit.lines if "event" in line]
    assert told == [("repaired", "batch", 1), ("repaired", "batch", 2)]
    assert all(torch.equal(clean.weights[key], each) for key, each in hit.weights.items())


def test_the_same_cells_for_ever_end_the_training(make_panel, make_config, monkeypatch):
    hit, batch = Run(make_panel, make_config), Windows.batch
    monkeypatch.setattr(Windows, "batch", lambda self, part: batch(self, hit.split.training[: len(part)]))
    with pytest.raises(GuardStop, match="a batch did not hold the windows that were drawn"):
        hit.go()


def test_the_same_windows_for_ever_end_the_training(make_panel, make_config, monkeypatch):
    draw = EpochBatches.draw
    monkeypatch.setattr(
        EpochBatches, "draw", lambda self, position: Drawn(draw(self, 0).chosen, position + 16, position)
    )
    with pytest.raises(GuardStop, match="epoch 1: 16 of 16 windows of a step were used in this epoch before"):
        Run(make_panel, make_config).go()


def test_an_order_without_some_windows_ends_the_training(make_panel, make_config, monkeypatch):
    order = epoch_module.epoch_order

    def short(*given):
        drawn = order(*given)
        return replace(drawn, windows=np.resize(drawn.windows[:16], len(drawn)))

    monkeypatch.setattr(epoch_module, "epoch_order", short)
    with pytest.raises(GuardStop, match=r"the order of epoch 1 has 16 of \d+ windows"):
        Run(make_panel, make_config).go()


def test_an_order_that_is_damaged_in_memory_is_drawn_again(make_panel, make_config, monkeypatch):
    clean = Run(make_panel, make_config).go()
    load, steps = EpochBatches.load, []

    def damaged(self, drawn):
        steps.append(drawn)
        if len(steps) == 3:
            self._order.windows[drawn.after :] = self._order.windows[0]
        return load(self, drawn)

    with monkeypatch.context() as patch:
        patch.setattr(EpochBatches, "load", damaged)
        hit = Run(make_panel, make_config).go()
    assert [line["kind"] for line in hit.lines if "event" in line] == ["order"]
    assert all(torch.equal(clean.weights[key], each) for key, each in hit.weights.items())


def test_a_cell_that_the_model_limits_is_counted_and_named(make_panel, make_config, caplog):
    for value, words in ((1e20, "it was damaged in memory"), (2e3, "the largest with 2e+03: variable 1 of site 0")):
        hit = Run(make_panel, make_config)
        hit.windows.values_STC[0, 40, 1] = value
        hit.windows.observed_STC[0, 40, 1] = True
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            hit.go()
        assert [line["limited"] for line in hit.lines if "epoch" in line and "event" not in line] == [1, 1]
        assert "1 cell(s) of the training windows" in caplog.text and words in caplog.text


def test_a_training_loss_far_below_the_validation_loss_is_said():
    plain = TrainConfig()
    assert "learned its training windows by heart" in overfit(0.004, 0.43, plain)
    for training, validation in ((0.4, 0.43), (0.01, 0.05), (None, 0.4), (0.004, float("nan"))):
        assert overfit(training, validation, plain) is None
    assert overfit(0.004, 0.43, TrainConfig(focal_gamma=2)) is None


def test_the_gap_is_in_the_history_and_in_the_result(make_panel, make_config, monkeypatch, caplog):
    monkeypatch.setattr(loop, "log_loss", lambda *_: 9.0)
    monkeypatch.setattr(loop, "calibrated_loss", lambda *_: 9.0)
    hit = Run(make_panel, make_config).go()
    epochs = [line for line in hit.lines if "event" not in line]
    assert all("is far below the validation loss 9" in line["overfit"] for line in epochs)
    assert hit.result.overfit == epochs[0]["overfit"] and hit.result.best_training_loss == epochs[0]["train_loss"]
    assert "far below the validation loss" in caplog.text
