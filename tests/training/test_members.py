"""Several members are one model: the mean of trainings that could each be one of their own."""

import json
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from llueve import pipeline
from llueve.config import load_config
from llueve.errors import Interrupted
from llueve.runs import directory as files
from llueve.runs.directory import Run
from llueve.runs.model_files import load_model
from llueve.training import loop

TRAIN = """
[train]
epochs = 2
batch_size = 16
warmup_steps = 2
linear_start = false
[calibration]
method = "none"
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory, write_rainy_table):
    return write_rainy_table(tmp_path_factory.mktemp("table"), TRAIN, days=160)


def train(table, run, *overrides, **more):
    return pipeline.train(load_config(table, overrides), run, **more)


@pytest.fixture(scope="module")
def three(table, tmp_path_factory):
    run = tmp_path_factory.mktemp("three") / "run"
    train(table, run, "train.members=3")
    return run


def test_members_are_trainings_of_their_own(table, three, tmp_path):
    """Each has the bits of a run with its seed; the forecast is the mean, and the spread is reported."""
    weights, probability = load_file(three / files.WEIGHTS), []
    for number in range(3):
        train(table, tmp_path / str(number), f"train.seed={number}")
        alone = load_file(tmp_path / str(number) / files.WEIGHTS)
        assert all(torch.equal(tensor, weights[f"members.{number}.{name}"]) for name, tensor in alone.items())
        probability.append(pd.read_csv(tmp_path / str(number) / files.PREDICTIONS)["probability"])
    found = pd.read_csv(three / files.PREDICTIONS)
    np.testing.assert_allclose(found["probability"], np.mean(probability, axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["spread"], np.std(probability, axis=0), rtol=1e-6, atol=1e-9)
    assert len(weights) == 3 * len(alone)
    lines = [json.loads(line) for line in (three / files.HISTORY).read_text().splitlines()]
    assert [line["member"] for line in lines if "validation_loss" in line] == [1, 1, 2, 2, 3, 3]
    assert not (three / files.CHECKPOINTS).exists()


def test_a_model_of_members_is_read_back_and_forecasts(table, three):
    saved = load_model(Run(three))
    assert saved.members == len(saved.classifiers) == len(saved.trained["members"]) == 3
    forecast = pipeline.predict(three, table.parent / "table.csv")
    assert list(forecast) == ["site", "time", "probability", "event", "spread"] and (forecast["spread"] > 0).all()
    again = pipeline.evaluate(three)
    assert again == json.loads((three / files.VERIFICATION).read_text())


@pytest.mark.parametrize("epochs", [2, 3])
def test_an_interrupted_member_resumes_to_the_same_bits(table, three, tmp_path, monkeypatch, epochs):
    """Stopped after that many epochs of all members together: in a member, and between two of them."""
    save, seen = loop.save_state, []

    def stopping(trainer):
        save(trainer)
        seen.append(None)
        if len(seen) == epochs:
            trainer.environment.interruption.number = signal.SIGTERM

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", stopping)
        with pytest.raises(Interrupted):
            train(table, run, "train.members=3")
    train(table, run, "train.members=3", resume=True)
    for name in (files.WEIGHTS, files.PREDICTIONS):
        assert (run / name).read_bytes() == (three / name).read_bytes()

    def history(directory):
        lines = [json.loads(line) for line in (directory / files.HISTORY).read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]

    assert history(run) == history(three)


def test_a_damaged_member_is_trained_again(table, three, tmp_path, monkeypatch, caplog):
    run = tmp_path / "run"
    seen, save = [], loop.save_state

    def stopping(trainer):
        save(trainer)
        seen.append(None)
        if len(seen) == 5:
            trainer.environment.interruption.number = signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", stopping)
        with pytest.raises(Interrupted):
            train(table, run, "train.members=3")
    member = run / files.CHECKPOINTS / "member-002.safetensors"
    member.write_bytes(member.read_bytes()[:-7])
    train(table, run, "train.members=3", resume=True)
    assert "member-002.safetensors: cannot be used" in caplog.text
    assert (run / files.WEIGHTS).read_bytes() == (three / files.WEIGHTS).read_bytes()
