"""A refused step that is skipped changes nothing, whatever it was refused for: the run is as if its batch had not been."""

import hashlib
import io
import math

import pytest
import torch
from rich.console import Console

from llueve.config import GuardConfig
from llueve.model.build import build_encoder
from llueve.model.classifier import TimerXLForClassification
from llueve.samples.scale import fit_scaler
from llueve.samples.split import split_panel
from llueve.samples.windows import build_windows
from llueve.stability.reading import FaultKind
from llueve.stability.usual import ENOUGH
from llueve.training import loop, stepper
from llueve.training.environment import Environment
from llueve.training.trainer import Trainer

NAN = float("nan")


@pytest.fixture
def make_course(make_panel, make_config):
    def make(**train):
        sections = {"epochs": 3, "patience": 3, "batch_size": 4, "average_decay": 0.9, "clip_norm": 1e30, **train}
        panel, config = make_panel(times=300), make_config(train=sections)
        split = split_panel(panel, config)
        windows = build_windows(panel, fit_scaler(panel, split.training_rows), config.windows.context, "mask")
        torch.manual_seed(3)
        model = TimerXLForClassification(build_encoder(config.model), 2, "variables", num_variables=3, num_facts=2)
        return Trainer(
            model,
            windows,
            split.training,
            split.validation,
            config.train,
            GuardConfig(policy="skip", max_skipped=1),
            Environment(lambda _: None, lambda _: None, lambda: model, Console(file=io.StringIO())),
        )

    return make


def spoil(here, monkeypatch, loss=None, gradient=None):
    """The next steps come out with this loss, or with this gradient at one place."""
    compute = stepper.loss_and_gradients

    def spoilt(model, *arguments):
        found = compute(model, *arguments)
        if gradient is not None:
            model.head.out.bias.grad[0] = gradient
        return found if loss is None else torch.tensor(loss)

    monkeypatch.setattr(stepper, "loss_and_gradients", spoilt)


def put(tensor, value):
    with torch.no_grad():
        tensor.view(-1)[3] = value


FAULTS = {
    "learning_rate": lambda here, patch: patch.setattr(here.stepper, "_rate_factor", lambda _: NAN),
    "weights": lambda here, _: put(here.state.model.encoder.embedding.weight, NAN),
    "moments": lambda here, _: put(here.state.optimiser.second_moment, -1.0),
    "average": lambda here, _: put(here.state.average.block, math.inf),
    "memory": lambda here, _: put(here.state.model.encoder.embedding.weight, 0.25),
    "loss": lambda here, patch: spoil(here, patch, loss=NAN),
    "gradient": lambda here, patch: spoil(here, patch, gradient=math.inf),
    "gradient_overflow": lambda here, patch: spoil(here, patch, gradient=3e18),
    "loss_start": lambda here, patch: spoil(here, patch, loss=1e3),
    "loss_spike": lambda here, patch: spoil(here, patch, loss=1e6),
    "gradient_spike": lambda here, patch: spoil(here, patch, gradient=1e6),
}


def hashes(here):
    """Of all that decides the steps to come; the counts of what was refused, and the position in the order, apart."""
    state = here.state.capture()
    groups = {}
    for name, tensor in state.tensors.items():
        digest = groups.setdefault(name.split(".")[0], hashlib.sha256())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    found = {group: digest.hexdigest() for group, digest in groups.items()}
    guard = {name: value for name, value in state.facts["guard"].items() if name not in ("skipped", "reasons")}
    place = {
        name: value for name, value in state.facts["place"].items() if name not in ("position", "batches", "refused")
    }
    return {**found, "guard": guard, "place": place, "ledger": here.state.ledger.as_dict()}


def test_every_kind_has_its_fault_here():
    assert {*FAULTS, "processes"} == set(FaultKind)  # the last needs several: tests/training/test_processes.py


@pytest.mark.parametrize("kind", FAULTS)
def test_a_refused_step_changes_nothing(make_course, monkeypatch, kind):
    here = make_course()
    here.state.model.train()
    for _ in range(2 if kind == "loss_start" else ENOUGH + 3):
        loop._run_step(here)
    assert here.state.place.refused == 0
    kinds = []
    monkeypatch.setattr(
        loop, "recover", lambda *each, recover=loop.recover: (kinds.append(each[2].kind), recover(*each))[1]
    )
    with monkeypatch.context() as patch:
        FAULTS[kind](here, patch)
        before, position = hashes(here), here.state.place.position
        assert {"model", "optimiser", "average", "random"} <= set(before)
        for number in (1, 2):
            loop._run_step(here)
            assert kinds == [kind] * number
            assert hashes(here) == before
        assert (
            here.state.place.position == position + 2 * here.batches.batch_size
            and here.state.guard.skipped == 2 * here.batches.batch_size
        )


@pytest.mark.parametrize("kind", ["learning_rate", "loss", "gradient", "gradient_overflow", "loss_start"])
def test_a_skipped_batch_might_as_well_not_have_been_there(make_course, monkeypatch, kind):
    """Bit for bit, dropout too."""
    ends = []
    for absent in (False, True):
        here = make_course()
        here.state.model.train()
        for _ in range(3):
            loop._run_step(here)
        if absent:
            here.state.place.position += here.batches.batch_size
        else:
            with monkeypatch.context() as patch:
                FAULTS[kind](here, patch)
                loop._run_step(here)
            assert here.state.place.refused == 1
        for _ in range(10):
            loop._run_step(here)
        ends.append(hashes(here))
    assert ends[0] == ends[1]
