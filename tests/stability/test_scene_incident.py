"""Incidents of steps on scenes: replayed bit for bit in another process, explained, and refused when their parts disagree."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from forks import LLUEVE, forks
from llueve.config import TrainConfig
from llueve.errors import CheckpointError
from llueve.model.batch import Future
from llueve.runs.directory import INCIDENT, INCIDENTS
from llueve.runs.sealed_file import read_sealed, write_sealed
from llueve.stability.diagnosis import explain
from llueve.stability.incidents import explain_incident, load_incident, replay
from llueve.step import gradients
from small_network import LAST_END, NetworkTraining

sys.path.insert(0, str(Path(__file__).parent))
from planted import NAN, planted


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with an incident of a bad cell at one site."""
    training = NetworkTraining(train={"epochs": 1})
    training.windows.values_STC[3, LAST_END, 1] = NAN
    training.windows.observed_STC[3, LAST_END, 1] = True
    training.go(tmp_path_factory.mktemp("run") / "run")
    return training


def test_a_step_on_scenes_is_read_as_it_was(run):
    found = load_incident(run.folder)
    refused = next(each for each in run.attempts if not torch.isfinite(torch.tensor(each.reading.loss)))
    there, here = found.step.batch.tensors(), refused.batch.tensors()
    assert there.keys() == here.keys() >= {"scene_B", "vector_B", "position_B2", "future_BC", "future_known_BC"}
    assert all(torch.equal(each.nan_to_num(7.0), here[name].nan_to_num(7.0)) for name, each in there.items())
    assert found.about.sites == [f"s{each}" for each in refused.rows.site]
    assert -1 in found.step.rows.y


def test_another_process_replays_and_explains_it(run):
    done = forks().run(LLUEVE, "incident", "replay", run.folder, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["same"] and not found["elsewhere"] and found["here"] == found["recorded"]
    done = forks().run(LLUEVE, "incident", "explain", run.folder, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["cause"] == "missing_input" and found["replay"] is None
    (cells,), (sample,) = found["cells"], found["samples"]
    assert (cells["site"], cells["variable"], cells["count"]) == (sample["site"], "b", 1) == ("s3", "b", 1)
    for command in ("show", "list"):
        assert forks().run(LLUEVE, "incident", command, run.folder).returncode == 0


def changed(training, tmp_path, name, change):
    """An incident in which a tensor of the batch is another one, with the seal made right."""
    here = tmp_path / INCIDENTS / "001"
    here.mkdir(parents=True)
    tensors, text = read_sealed(training.folder / INCIDENTS / "001" / INCIDENT)
    write_sealed(here / INCIDENT, {**tensors, name: change(tensors[name].clone())}, text)
    return tmp_path


def put(index, value):
    def change(tensor):
        tensor[index] = value
        return tensor

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("batch.vector_B", put(2, 7), "vector_B goes from 1 to 7 with 6 sites"),
        ("batch.vector_B", put(2, -1), "vector_B goes from -1 to"),
        ("batch.scene_B", put(2, 99), "scene_B is not the issue time"),
        ("batch.scene_B", torch.zeros_like, "scene_B is not the issue time"),
        ("batch.scene_B", lambda each: each.double(), "other types"),
        ("batch.position_B2", lambda each: each[:, :1], "position_B2 has the shape"),
        ("batch.future_BC", lambda each: each[:, :2], "future_BC has the shape"),
        ("batch.y_B", put(2, -2), "y_B goes from -2"),
    ],
)
def test_parts_that_disagree_are_refused(run, tmp_path, name, change, message):
    with pytest.raises(CheckpointError, match=message):
        load_incident(changed(run, tmp_path, name, change))


def test_a_scene_in_pieces_and_a_scene_that_is_too_large_are_refused(run, tmp_path):
    tensors, text = read_sealed(run.folder / INCIDENTS / "001" / INCIDENT)
    target = tmp_path / INCIDENTS / "001"
    target.mkdir(parents=True)
    for order, message in (
        (lambda end_B: torch.arange(len(end_B)) % 2, "not next to each other"),
        (torch.zeros_like, "a scene has .* samples"),
    ):
        end_B = order(tensors["rows.end_B"])
        content = json.loads(text)
        content["model"]["sites_per_scene"] = 6
        write_sealed(
            target / INCIDENT, {**tensors, "rows.end_B": end_B, "batch.scene_B": end_B.clone()}, json.dumps(content)
        )
        with pytest.raises(CheckpointError, match=message):
            load_incident(tmp_path)


@pytest.mark.parametrize(
    ("name", "index"), [("position", ("batch.position_B2", (3, 0))), ("future", ("batch.future_BC", (3, 1)))]
)
def test_a_number_that_memory_damaged_is_the_input_at_fault(run, tmp_path, name, index):
    """It is refused by no check: it may be the fault that an incident was kept for."""
    (place, at) = index
    changed(run, tmp_path, place, put(at, NAN))
    tensors, text = read_sealed(tmp_path / INCIDENTS / "001" / INCIDENT)
    x_BLC, seen_BLC = tensors["batch.x_BLC"].nan_to_num(0.0), tensors["batch.observed_BLC"]
    known_BC, y_B = tensors["batch.future_known_BC"].clone(), tensors["batch.y_B"].clone()
    known_BC[at], y_B[at[0]] = True, 0
    sound = {"batch.x_BLC": x_BLC, "batch.observed_BLC": seen_BLC}
    sound |= {"batch.future_known_BC": known_BC, "batch.y_B": y_B}
    write_sealed(tmp_path / INCIDENTS / "001" / INCIDENT, {**tensors, **sound}, text)
    found = explain_incident(load_incident(tmp_path)).explanation
    assert (found.trace.phase, found.trace.tensor, found.trace.sample) == ("input", name, 3)
    assert found.samples == (3,)


def test_a_replay_depends_on_who_sees_whom(run, tmp_path):
    """Without it, the replay above would prove nothing about scenes."""
    incident = load_incident(run.folder)
    assert replay(incident).same
    tensors, text = read_sealed(run.folder / INCIDENTS / "001" / INCIDENT)
    x_BLC = tensors["batch.x_BLC"].nan_to_num(0.0)
    found = []
    for number, position_B2 in enumerate((tensors["batch.position_B2"], tensors["batch.position_B2"] * 2)):
        target = tmp_path / str(number) / INCIDENTS / "001"
        target.mkdir(parents=True)
        write_sealed(target / INCIDENT, {**tensors, "batch.x_BLC": x_BLC, "batch.position_B2": position_B2}, text)
        found.append(replay(load_incident(tmp_path / str(number))).gradient_norm)
    assert found[0] != found[1]


def test_the_forecasting_loss_is_a_setting_that_advice_may_name(monkeypatch):
    monkeypatch.setattr(gradients, "forecast_losses", lambda forecast_BC, *_: forecast_BC.mean(-1) * NAN)
    step, evidence = planted(config=TrainConfig(focal_gamma=2, forecast_weight=0.5))
    future = Future(torch.randn(8, 3), torch.ones(8, 3, dtype=torch.bool))
    found = explain(replace(step, batch=replace(step.batch, future=future)), evidence)
    assert found.cause == "loss_edge" and found.advice.en == "Set train.forecast_weight = 0"
