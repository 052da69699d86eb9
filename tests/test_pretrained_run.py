"""A published checkpoint through the whole way: sizes from the file, training, prediction, and back to its format."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from llueve import pipeline
from llueve.config import load_config
from llueve.errors import CheckpointError, ConfigError, UsageError
from llueve.model.build import EncoderSizes
from llueve.model.checkpoints.convert import encode_checkpoint
from llueve.model.checkpoints.pretrained import load_pretrained
from llueve.runs.directory import Run
from llueve.runs.model_files import load_model

CONFIG = """
[data]
path = "table.csv"
[target]
label = "wet"
[split]
validation_fraction = 0.2
test_fraction = 0.2
[windows]
context = 8
[model]
pretrained = "CHECKPOINT"
[train]
epochs = 1
encoder_learning_rate = 1e-9
weight_decay = 0.0
[verify]
bootstrap = 100
lags = [1]
"""


@pytest.fixture(params=["timer_xl", "timer"])
def project(request, tmp_path):
    """A table, a checkpoint of either architecture, and a configuration that names it by a relative path."""
    random = np.random.default_rng(0)
    rain = random.normal(size=300)
    times = pd.date_range("2020-01-01", periods=300).strftime("%Y-%m-%d")
    wet = (np.roll(rain, -1) + rain > 0).astype(int)
    pd.DataFrame({"time": times, "rain": rain, "noise": random.normal(size=300), "wet": wet}).to_csv(
        tmp_path / "table.csv", index=False
    )
    torch.manual_seed(1)
    encoder = EncoderSizes(request.param, patch_length=4, width=8, layers=1, heads=2, feed_forward=8).build()
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name, content in encode_checkpoint(
        encoder, "openltm" if request.param == "timer_xl" else "huggingface"
    ).items():
        (folder / name).write_bytes(content)
    (tmp_path / "mine.toml").write_text(CONFIG.replace("CHECKPOINT", "checkpoint"))
    return tmp_path


def trained(project, *overrides):
    config = load_config(project / "mine.toml", overrides)
    pipeline.train(config, project / "run", overwrite=True, console=Console(quiet=True))
    return json.loads((project / "run" / "model.json").read_text())


def test_a_run_starts_from_the_checkpoint_and_does_not_need_it_afterwards(project):
    sizes = trained(project)["model"]
    before, report = load_pretrained(project / "checkpoint")
    assert {name: sizes[name] for name in vars(report.sizes)} == vars(report.sizes)
    written = pipeline.convert(project / "run", "safetensors", project / "out")
    after = load_pretrained(project / "out")[0].state_dict()
    assert all(torch.allclose(after[name], tensor, atol=1e-6) for name, tensor in before.state_dict().items())
    assert written[0].name == "model.safetensors"
    for path in (project / "checkpoint").iterdir():
        path.unlink()
    assert len(pipeline.predict(project / "run", project / "table.csv")) == 1
    assert pipeline.evaluate(project / "run")["n"] == 60


def test_a_run_forecasts_as_it_was_verified(project):
    """Also with another rotary index than the checkpoint's own."""
    trained(project, 'model.positions="time"', "train.head_learning_rate=0.05", "train.epochs=3")
    verified = pd.read_csv(project / "run" / "predictions.csv")
    again = pipeline.predict(project / "run", project / "table.csv", every_window=True)
    again["time"] = again["time"].astype(str)
    both = verified.merge(again, on=["site", "time"], suffixes=("", "_again"))
    assert len(both) == len(verified) and both["probability"].std() > 0.01  # it has an opinion
    np.testing.assert_allclose(both["probability"], both["probability_again"], atol=1e-6)


def test_other_sizes_than_the_checkpoints_are_refused(project):
    with pytest.raises(ConfigError, match=r"model\.width = 16: the checkpoint .* has 8; leave the key out"):
        trained(project, "model.width=16", "model.heads=2")


def test_a_checkpoint_that_is_not_there_is_named(project):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: does not exist"):
        trained(project, "model.pretrained=nowhere.pth")
    assert not (project / "run").exists()


def test_a_checkpoint_that_does_not_load_costs_no_earlier_run(project):
    trained(project)
    before = {path.name: path.read_bytes() for path in (project / "run").iterdir()}
    (weights,) = (path for path in (project / "checkpoint").iterdir() if path.suffix != ".json")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged"):
        trained(project)
    assert {path.name: path.read_bytes() for path in (project / "run").iterdir()} == before


def test_none_is_a_fresh_encoder_even_beside_a_folder_of_that_name(project):
    (project / "checkpoint").rename(project / "none")
    trained(project, "model.pretrained=none")
    assert load_model(Run.open(project / "run")[0]).checkpoint is None


@pytest.mark.parametrize("project", ["timer_xl"], indirect=True)
def test_a_partial_checkpoint_converts_when_its_absent_tensors_are_allowed(project):
    file = project / "checkpoint" / "checkpoint.pth"
    state = torch.load(file, weights_only=True)
    torch.save({name: tensor for name, tensor in state.items() if not name.startswith("head.")}, file)
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        pipeline.convert(file, "safetensors", project / "out")
    pipeline.convert(file, "safetensors", project / "out", ("head.*",))
    written = load_pretrained(project / "out")[0].state_dict()
    assert all(torch.equal(written[name], state[name]) for name in written if not name.startswith("head."))


@pytest.mark.parametrize("project", ["timer_xl"], indirect=True)
def test_other_positions_have_no_openltm_form(project):
    trained(project, 'model.positions="time"')
    with pytest.raises(UsageError, match="positions = 'time'"):
        pipeline.convert(project / "run", "openltm", project / "out")
    assert pipeline.convert(project / "run", "safetensors", project / "out")


def test_a_name_that_is_no_name_is_refused(project):
    with pytest.raises(CheckpointError, match="holds a name of 5,000 bytes"):
        pipeline.convert("x" * 5000, "safetensors", project / "out")
