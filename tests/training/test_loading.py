"""Batches prepared ahead: the same bits as without, only what is asked for, and no thread that stays."""

import io
import threading
from dataclasses import fields

import numpy as np
import pytest
import torch
from rich.console import Console

from llueve.config import GuardConfig
from llueve.errors import GuardStop, Interrupted
from llueve.model.build import HeadSizes, build_classifier, build_encoder
from llueve.samples.scale import fit_scaler
from llueve.samples.split import split_panel
from llueve.samples.windows import build_windows
from llueve.step.predict import as_batch
from llueve.training import loop
from llueve.training.batches import epoch
from llueve.training.batches.prefetch import Loader
from llueve.training.environment import Environment
from llueve.training.interruption import Interruption
from llueve.training.stepper import Stepper
from llueve.training.trainer import Trainer

CPU = torch.device("cpu")
NAN = float("nan")


@pytest.fixture
def prepared(make_panel, make_config):
    """A model, windows, their split and the configuration."""

    def make(**train):
        panel = make_panel(times=300)
        config = make_config(train={"epochs": 2, "patience": 9, "batch_size": 16, **train})
        split = split_panel(panel, config)
        windows = build_windows(panel, fit_scaler(panel, split.training_rows), config.windows.context, "mask")
        torch.manual_seed(0)
        return build_classifier(build_encoder(config.model), config.model, HeadSizes(3, 2, 2)), windows, split, config

    return make


def run(model, windows, split, config, folder=None, interruption=None, policy="repair"):
    events = []
    torch.manual_seed(7)
    loop.train_model(
        model,
        windows,
        split.training,
        split.validation,
        config.train,
        GuardConfig(max_skipped=0.2, policy=policy),
        Environment(
            lambda line: events.append(line) if "event" in line else None,
            lambda step: None,
            lambda: build_classifier(build_encoder(config.model), config.model, HeadSizes(3, 2, 2)),
            Console(file=io.StringIO()),
            features=folder,
            interruption=interruption or Interruption(),
        ),
    )
    return [event["action"] for event in events]


def loading_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("llueve")]


def without_preparation(monkeypatch):
    monkeypatch.setattr(epoch, "Loader", lambda gather: Loader(gather, ahead=0))


def same(first, second):
    return all(torch.equal(first.state_dict()[name], second.state_dict()[name]) for name in first.state_dict())


def equal(first, second):
    return all(
        (one is None and other is None) or torch.equal(one, other)
        for one, other in ((getattr(first, each.name), getattr(second, each.name)) for each in fields(first))
    )


class Counted:
    """A gatherer that remembers for which windows, and in which thread, it was called."""

    def __init__(self, windows, part):
        self.calls, self._windows, self._part = [], windows, part

    def __call__(self, chosen):
        self.calls.append((chosen.tolist(), threading.current_thread().name))
        return as_batch(self._windows, self._part[chosen], CPU)


def quarantine(course_, at):
    """Two cells are NaN from the start."""
    if at == 1:
        for row in (20, 90):
            site, end = course_.batches.training.site[row], course_.batches.training.end[row]
            course_.batches.windows.values_STC[site, end, 1] = NAN


def roll_back(course_, at):
    """Once, a weight becomes NaN."""
    if at == 9:
        with torch.no_grad():
            course_.state.model.encoder.embedding.weight.view(-1)[3] = NAN


def run_again(course_, at):
    """Once, an optimiser's moment becomes NaN, which is mended without a roll-back."""
    if at == 5:
        course_.state.optimiser.first_moment[2] = NAN


@pytest.mark.parametrize("damage", [None, quarantine, roll_back, run_again])
@pytest.mark.parametrize("train", [{}, {"accumulate": 3}, {"recipe": "default"}])
def test_preparing_changes_no_bit(prepared, monkeypatch, tmp_path, damage, train):
    """Also where the order changes between two steps: after a quarantine, a roll-back, a step that is run again."""
    attempt, models, actions = Stepper.attempt, [], []
    for ahead in (True, False):
        with monkeypatch.context() as patch:
            if not ahead:
                without_preparation(patch)
            calls = []

            def planted(self, *arguments, calls=calls):
                calls.append(None)
                if damage is not None:
                    damage(self, len(calls))
                return attempt(self, *arguments)

            patch.setattr(Stepper, "attempt", planted)
            model, *rest = prepared(**train)
            actions.append(run(model, *rest))
            models.append(model)
    assert actions[0] == actions[1]
    assert bool(actions[0]) == (damage is not None)
    assert same(*models)


def test_cached_features_are_prepared_too(prepared, monkeypatch, tmp_path):
    models = []
    for ahead in (True, False):
        with monkeypatch.context() as patch:
            if not ahead:
                without_preparation(patch)
            model, *rest = prepared(recipe="default")
            assert run(model, *rest, folder=tmp_path / f"features{ahead}") == []
            models.append(model)
    assert same(*models)


def test_damaged_features_that_are_prepared_are_not_used(prepared, tmp_path, monkeypatch):
    """Features with a NaN are computed in each step from then on, and what was gathered of them is dropped."""
    clean, *rest = prepared(recipe="default")
    run(clean, *rest)
    opened = Trainer._features

    def damaged(self, part):
        cache = opened(self, part)
        if cache is not None and part.name == "training":
            rows = cache.rows.copy()
            rows[:] = NAN
            object.__setattr__(cache, "rows", rows)
        return cache

    monkeypatch.setattr(Trainer, "_features", damaged)
    model, *rest = prepared(recipe="default")
    assert run(model, *rest, folder=tmp_path / "features") == ["rerun"]
    assert same(model, clean)


def test_a_training_prepares_its_batches_in_one_thread(prepared, monkeypatch):
    model, windows, split, config = prepared()
    counted = []

    def watched(gather):
        def counting(chosen):
            counted.append(threading.current_thread().name)
            return gather(chosen)

        return Loader(counting)

    monkeypatch.setattr(epoch, "Loader", watched)
    run(model, windows, split, config)
    steps = -(-len(split.training) // 16) * 2
    assert len(counted) == steps  # none is gathered twice
    assert counted.count("llueve-loading_0") == steps - 2  # all but the first of each epoch


def test_no_thread_survives_the_end(prepared):
    run(*prepared())
    assert loading_threads() == []


@pytest.mark.parametrize("where", ["the guard", "a signal", "a failure in a step", "a failure in the thread"])
def test_no_thread_survives_an_error(prepared, monkeypatch, where):
    setup, interruption = prepared(), Interruption()
    attempt, calls, alive = Stepper.attempt, [], []

    def planted(self, *arguments):
        calls.append(None)
        alive.extend(loading_threads())
        if len(calls) == 5:
            if where == "the guard":
                self.state.optimiser.first_moment[2] = NAN
            elif where == "a signal":
                interruption.number = 15
            elif where == "a failure in a step":
                raise MemoryError
            else:
                monkeypatch.setattr(epoch, "as_batch", None)
        return attempt(self, *arguments)

    monkeypatch.setattr(Stepper, "attempt", planted)
    with pytest.raises((GuardStop, Interrupted, MemoryError, TypeError)):
        run(*setup, interruption=interruption, policy="stop")
    assert alive and loading_threads() == []


def test_only_what_was_asked_for_is_used(prepared):
    """Prepared batches that are for other windows, or for the same ones in another order, are dropped."""
    _, windows, split, _ = prepared()
    gather = Counted(windows, split.training)
    loader = Loader(gather)
    first, second, third = np.arange(4), np.arange(4, 8), np.arange(8, 12)
    try:
        assert equal(loader.take(first, iter([second, third])), gather(first))
        assert equal(loader.take(second[::-1], [third]), gather(second[::-1]))
        assert equal(loader.take(third, []), gather(third))
        assert equal(loader.take(third, []), gather(third))  # asked for again, it is gathered again
    finally:
        loader.close()
    ahead = [rows for rows, thread in gather.calls if thread.startswith("llueve")]
    assert all(rows in (second.tolist(), third.tolist()) for rows in ahead)
    assert ahead.count(third.tolist()) == 1  # kept from one call to the next


def test_no_more_is_prepared_than_was_said(prepared):
    _, windows, split, _ = prepared()
    gather = Counted(windows, split.training)
    loader = Loader(gather, ahead=2)
    drawn = []

    def endless():
        for start in range(4, 400, 4):
            drawn.append(start)
            yield np.arange(start, start + 4)

    loader.take(np.arange(4), endless())
    loader.close()
    assert len(drawn) == 2 and len(gather.calls) <= 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_copies_from_pinned_memory(prepared, monkeypatch):
    pinned, seen = epoch.pinned, []

    def watched(batch, device):
        seen.append(pinned(batch, device))
        return seen[-1]

    monkeypatch.setattr(epoch, "pinned", watched)
    model, *rest = prepared(recipe="default")
    run(model, *rest)
    assert all(batch.x_BLC.is_pinned() and batch.y_B.is_pinned() for batch in seen)
