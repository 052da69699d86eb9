"""The description, the weights and the configuration of a run belong together, or are refused."""

import json
import math
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llueve import pipeline
from llueve.errors import CheckpointError
from llueve.runs.directory import CONFIG, MODEL, WEIGHTS, Run
from llueve.runs.model_files import load_model
from llueve.runs.sealed_file import read_sealed, write_sealed

EDITS = {
    "event": lambda model: model.update(event_index=0),
    "classes": lambda model: model["classes"].reverse(),
    "variables": lambda model: model["variables"].reverse(),
    "units": lambda model: model["variables"][0].__setitem__(1, "K"),
    "context": lambda model: model.update(context=4),
    "step": lambda model: model.update(step_hours=12.0),
    "missing": lambda model: model.update(missing="raw"),
    "positions": lambda model: model["model"].update(positions="time"),
    "norm": lambda model: model["model"].update(instance_norm=False),
    "dropout": lambda model: model["model"].update(dropout=0.5),
    "scale": lambda model: model["scaler"]["mean"].reverse(),
    "last digit": lambda model: model["scaler"]["std"].__setitem__(0, model["scaler"]["std"][0] * (1 + 1e-7)),
    "fingerprint": lambda model: model.update(fingerprint="0" * 64),
    "split": lambda model: model["split"].update(test_start="2020-05-01"),
    "trained": lambda model: model["trained"].update(best_epoch=7),
}


def every_use(run):
    """Each command that reads a model."""
    table = run.config().data.path
    return {
        "load": lambda: load_model(Run(run.run)),
        "predict": lambda: pipeline.predict(run.run, table),
        "evaluate": lambda: pipeline.evaluate(run.run),
        "convert": lambda: pipeline.convert(run.run, "safetensors", run.run.parent / "converted"),
    }


def refused(run, match, *, but=()):
    before = run.content()
    for name, use in every_use(run).items():
        if name not in but:
            with pytest.raises(CheckpointError, match=match):
                use()
    assert run.content() == before and not (run.run.parent / "converted").exists()


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_description_is_refused(copied, edit):
    model = json.loads((copied.run / MODEL).read_text())
    EDITS[edit](model)
    (copied.run / MODEL).write_text(json.dumps(model))
    with pytest.raises(CheckpointError, match=r"model\.json: does not belong to these weights"):
        load_model(Run(copied.run))


def test_every_command_refuses_it(copied):
    model = json.loads((copied.run / MODEL).read_text())
    EDITS["event"](model)
    (copied.run / MODEL).write_text(json.dumps(model))
    refused(copied, "does not belong to these weights")


def test_other_spaces_and_another_order_are_the_same_description(copied):
    model = json.loads((copied.run / MODEL).read_text())
    (copied.run / MODEL).write_text(json.dumps(dict(reversed(model.items()))))
    load_model(Run(copied.run))


def test_weights_may_lie_behind_a_link(copied, tmp_path):
    shutil.move(copied.run / WEIGHTS, tmp_path / "elsewhere")
    (copied.run / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    load_model(Run(copied.run))


@pytest.fixture
def foreign(trained, tmp_path_factory):
    """Another run of the same sizes."""
    found = type(trained)(tmp_path_factory.mktemp("foreign") / "run", trained.toml)
    found.train("train.seed=1", "windows.stride=2")
    return found


def test_files_of_another_run_are_refused(copied, foreign, tmp_path):
    shutil.copy(copied.run / CONFIG, tmp_path / CONFIG)
    shutil.copy(foreign.run / CONFIG, copied.run / CONFIG)
    refused(copied, r"config\.toml: does not belong to the model.*train\.seed was 0 and is 1", but=("load", "convert"))
    shutil.copy(tmp_path / CONFIG, copied.run / CONFIG)
    shutil.copy(foreign.run / WEIGHTS, copied.run / WEIGHTS)
    refused(copied, "does not belong to these weights")


def test_keys_that_decide_no_step_may_change(copied):
    text = (copied.run / CONFIG).read_text()
    (copied.run / CONFIG).write_text(text.replace("bootstrap = 100", "bootstrap = 150"))
    assert pipeline.evaluate(copied.run)["n"] > 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(copied, value):
    tensors, text = read_sealed(copied.run / WEIGHTS)
    name = next(each for each in tensors if "conv1.weight" in each)
    tensors[name].view(-1)[3] = value
    write_sealed(copied.run / WEIGHTS, tensors, text)
    refused(copied, f"not finite in {name}")
    save_file(tensors, copied.run / WEIGHTS)  # without hashes
    refused(copied, f"not finite in {name}")


def test_one_changed_number_is_refused(copied):
    with safe_open(copied.run / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(copied.run / WEIGHTS)
    tensors["head.out.bias"][0] += 1
    save_file(tensors, copied.run / WEIGHTS, metadata)
    refused(copied, "is damaged")


def test_weights_without_hashes_are_refused(copied):
    save_file(load_file(copied.run / WEIGHTS), copied.run / WEIGHTS)
    refused(copied, "was not written by this version of llueve")


def test_a_run_of_an_earlier_format_is_refused(copied):
    model = json.loads((copied.run / MODEL).read_text())
    (copied.run / MODEL).write_text(json.dumps({**model, "format": 1}))
    refused(copied, "was written by another version of llueve; train again")


def test_a_checkpoint_that_is_not_finite_is_not_converted(trained, tmp_path):
    (file,) = pipeline.convert(trained.run, "openltm", tmp_path / "one")
    state = torch.load(file, weights_only=True)
    name = next(iter(state))
    state[name].view(-1)[0] = math.nan
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        pipeline.convert(file, "safetensors", tmp_path / "two")
    assert not (tmp_path / "two").exists()
