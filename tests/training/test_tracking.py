"""Trackers: they hold what the history holds, go on with it, and never end a training."""

import importlib.util
import json
import logging
import math
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from llueve import pipeline
from llueve.config import TrackConfig, parse_config
from llueve.errors import ConfigError, GuardStop
from llueve.runs.directory import Run
from llueve.training.tracking import Tracking, flattened, numbers, require_trackers

LINE = {"epoch": 1, "phase": "all", "train_loss": 0.5, "validation_loss": None, "steps": 7, "collapsed": None}
SCORES = {"model": {"brier": 0.11, "auc": None, "decomposition": {"mcb": 0.01}}, "verdict": "beats"}


def line(epoch, loss):
    return {**LINE, "epoch": epoch, "train_loss": loss}


def scalars(folder):
    """What TensorBoard would show: {tag: [(step, value)]}."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    found = EventAccumulator(str(folder))
    found.Reload()
    return {
        tag: [(event.step, float(make_ndarray(event.tensor_proto))) for event in found.Tensors(tag)]
        for tag in found.Tags()["tensors"]
    }


def mlflow_run(place):
    """The only run under a folder, with its metrics over the steps."""
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=Path(place).resolve().as_uri())
    experiments = {each.name: each.experiment_id for each in client.search_experiments()}
    (run,) = client.search_runs([experiments["rain"]])
    metrics = {
        name: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }
    return run, metrics


@pytest.fixture
def track(make_config, tmp_path):
    """A configuration with both trackers."""
    for name in ("tensorboard", "mlflow"):
        pytest.importorskip(name)
    return make_config(track={"tensorboard": True, "mlflow": str(tmp_path / "mlruns"), "experiment": "rain"})


def test_both_hold_what_the_history_holds(track, tmp_path):
    with Tracking(track, tmp_path) as tracking:
        for epoch, loss in ((1, 0.5), (2, 0.4)):
            tracking.record(line(epoch, loss))
        tracking.record({"event": "refused", "epoch": 2, "reason": "loss nan"})
        tracking.scores(SCORES)
    shown = scalars(tmp_path / "tensorboard")
    run, metrics = mlflow_run(tmp_path / "mlruns")
    for found in (shown, metrics):
        assert set(found) == {"epoch", "train_loss", "steps", "verification/brier", "verification/decomposition/mcb"}
        assert found["train_loss"] == [(1, pytest.approx(0.5)), (2, pytest.approx(0.4))]
        assert found["verification/brier"] == [(2, pytest.approx(0.11))]
    assert run.info.status == "FINISHED"
    assert run.data.params["train.epochs"] == "2" and run.data.params["windows.context"] == "8"
    assert not any(name.startswith("track") for name in run.data.params)


def test_a_resumed_training_goes_on_in_the_same_place(track, tmp_path):
    """An epoch that is run again after the last checkpoint is there once."""
    run = Run(tmp_path)

    def tell(tracking, *lines):
        for each in lines:
            run.append_history(each)
            tracking.record(each)

    with suppress(KeyboardInterrupt), Tracking(track, tmp_path) as tracking:
        tell(tracking, line(1, 0.5))
        kept = run.history_bytes
        tell(tracking, line(2, 0.4), line(3, 0.3))
        raise KeyboardInterrupt
    assert mlflow_run(tmp_path / "mlruns")[0].info.status == "KILLED"
    run.shorten_history(kept)
    with Tracking(track, tmp_path) as tracking:
        tell(tracking, line(2, 0.4), line(3, 0.3), line(4, 0.2))
    found, metrics = mlflow_run(tmp_path / "mlruns")
    wanted = [(1, pytest.approx(0.5)), (2, pytest.approx(0.4)), (3, pytest.approx(0.3)), (4, pytest.approx(0.2))]
    assert metrics["train_loss"] == wanted
    assert scalars(tmp_path / "tensorboard")["train_loss"] == wanted
    assert found.info.status == "FINISHED"


def test_a_run_that_was_stopped_has_failed(track, tmp_path):
    with suppress(GuardStop), Tracking(track, tmp_path) as tracking:
        tracking.record(LINE)
        raise GuardStop("stopped by the guard")
    assert mlflow_run(tmp_path / "mlruns")[0].info.status == "FAILED"


def test_a_full_disk_costs_one_warning(track, tmp_path, caplog):
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is absent: nothing here plays a full disk")
    track = track.model_copy(update={"track": track.track.model_copy(update={"mlflow": None})})
    with caplog.at_level(logging.WARNING), Tracking(track, tmp_path) as tracking:
        tracking.record(line(1, 0.5))
        (file,) = (tmp_path / "tensorboard").iterdir()
        file.unlink()
        file.symlink_to("/dev/full")
        for epoch in (2, 3):
            tracking.record(line(epoch, 0.4))
        tracking.scores(SCORES)
    assert [record.message for record in caplog.records] == [
        "track.tensorboard: [Errno 28] No space left on device; the run is no longer tracked there"
    ]


def test_a_server_that_is_away_costs_one_warning(make_config, tmp_path, caplog, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nothing listens there
        config = make_config(track={"mlflow": f"http://127.0.0.1:{free.getsockname()[1]}"})
        with caplog.at_level(logging.WARNING, "llueve"), Tracking(config, tmp_path) as tracking:
            for epoch in (1, 2):
                tracking.record(line(epoch, 0.5))
            tracking.scores(SCORES)
    (warning,) = [record.message for record in caplog.records if record.name.startswith("llueve")]
    assert warning.startswith("track.mlflow: ") and warning.endswith("the run is no longer tracked there")


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_without_the_extra_it_is_refused_before_anything_is_done(make_config, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    config = make_config(track={name: True if name == "tensorboard" else "mlruns"})
    with pytest.raises(ConfigError, match=rf"track\.{name}: needs an extra: pip install 'llueve\[track\]'"):
        pipeline.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_nothing_is_asked_for_and_nothing_is_imported(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: pytest.fail(f"looked for {name}"))
    require_trackers(make_config().track)
    with Tracking(make_config(), tmp_path) as tracking:
        tracking.record(LINE)
        tracking.scores(SCORES)
    assert list(tmp_path.iterdir()) == []


def test_only_finite_numbers_are_passed_on():
    values = {"a": 1, "b": None, "c": "text", "d": math.nan, "e": True, "f": {"g": 0.5, "h": [1, 2]}}
    assert dict(numbers(values)) == {"a": 1.0, "f/g": 0.5}


def test_a_configuration_as_names_and_text():
    table = {"train": {"epochs": 2, "phases": [{"name": "head"}]}, "data": {"lags": [1, 2]}}
    assert dict(flattened(table)) == {"train.epochs": "2", "train.phases.0.name": "head", "data.lags": "[1, 2]"}


def test_a_folder_of_mlflow_lies_beside_the_configuration(tmp_path):
    table = {"data": {"path": "x.csv"}, "target": {"label": "wet"}, "windows": {"context": 8}}
    table["split"] = {"validation_fraction": 0.2, "test_fraction": 0.2}
    for given, wanted in (
        ("mlruns", str(tmp_path / "mlruns")),
        ("/srv/mlruns", "/srv/mlruns"),
        ("https://mlflow.example.org", "https://mlflow.example.org"),
        ("file:///srv/mlruns", "file:///srv/mlruns"),
    ):
        config = parse_config({**table, "track": {"mlflow": given}}, "test", tmp_path)
        assert config.track.mlflow == wanted
    with pytest.raises(ConfigError, match=r"track.tensorbord = true.*did you mean track.tensorboard"):
        parse_config({**table, "track": {"tensorbord": True}}, "test")


def test_a_whole_training_is_tracked(tmp_path):
    """From the command line's function on: history, events and metrics tell the same."""
    for name in ("tensorboard", "mlflow", "vega_datasets"):
        pytest.importorskip(name)
    from llueve.config import load_config

    example = Path(__file__).parents[2] / "examples" / "seattle.toml"
    settings = ("train.epochs=2", "track.tensorboard=true", f'track.mlflow="{tmp_path}/mlruns"')
    config = load_config(example, (*settings, "track.experiment=rain", "model.width=8", "verify.bootstrap=100"))
    result = pipeline.train(config, tmp_path / "run")
    history = [json.loads(each) for each in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    run, metrics = mlflow_run(tmp_path / "mlruns")
    shown = scalars(tmp_path / "run" / "tensorboard")
    for found in (shown, metrics):
        assert [step for step, _ in found["validation_loss"]] == [1, 2]
        wanted = [each["validation_loss"] for each in history if "event" not in each]
        assert [value for _, value in found["validation_loss"]] == pytest.approx(wanted, rel=1e-6)
        assert found["verification/brier"][0][1] == pytest.approx(result.verification["model"]["brier"], rel=1e-6)
    assert run.info.status == "FINISHED"
    other = config.model_copy(update={"track": TrackConfig()})
    pipeline.train(other, tmp_path / "run", resume=True)  # trackers are no part of what was begun
    pipeline.train(config, tmp_path / "run", overwrite=True)  # an earlier run's events do not stay beside it
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
