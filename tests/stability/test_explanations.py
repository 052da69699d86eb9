"""Explanations: the run and `explain` agree, and advice is given only where it applies and helps."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llueve.cli import main as cli
from llueve.config import TrainConfig, load_config
from llueve.pipeline import train
from llueve.stability.diagnosis import Cause, Change, Experiment, Explanation, Settings, explain
from llueve.stability.diagnosis.advice import advise
from llueve.stability.incidents import DataNames, explain_incident, keep_incident, load_incident, write_explanation
from llueve.step import gradients
from llueve.training.stepper import Stepper

sys.path.insert(0, str(Path(__file__).parent))
from planted import NAN, planted


def advice_of(step, evidence, **settings):
    return explain(step, replace(evidence, settings=Settings(**settings))).words


# Advice


@pytest.mark.parametrize(
    ("missing", "words", "never"),
    [
        ("raw", 'Set windows.missing = "mask"', "memory"),
        ("mask", "these cells changed after the table was read", "Set windows"),
        (None, "Fill the cells at their source", "windows.missing"),
    ],
)
def test_masking_is_advised_only_where_it_is_off(missing, words, never):
    step, evidence = planted()
    step.batch.x_BLC[5, 7, 1] = NAN
    advice = advice_of(step, evidence, missing=missing)
    assert words in advice.en and never not in advice.en


def test_masking_is_not_advised_for_a_fact():
    step, evidence = planted()
    step.batch.facts_BF[5, 1] = NAN
    advice = advice_of(step, evidence, missing="raw")
    assert "Correct the facts" in advice.en and "windows.missing" not in advice.en


def test_a_value_that_no_table_can_give_is_no_error_of_typing(monkeypatch):
    monkeypatch.setattr("llueve.model.classifier.LARGEST", 1e38)
    for value, words in ((1e30, "these changed after it was read"), (1e14, "Correct these cells")):
        step, _ = planted()
        step.batch.x_BLC[2, 3, 0] = value
        advice = advise(Cause.OUTLIER_INPUT, step, [Experiment(Change.FAR_CELLS, "", 1, 1, True)], Settings())
        assert words in advice.en


def class_one_fails(logits_BK, y_B, gamma, smoothing):
    """A loss that is NaN for one class, whatever its settings."""
    return torch.where(y_B == 1, NAN, torch.nn.functional.cross_entropy(logits_BK, y_B, reduction="none"))


def focal_factor_fails(logits_BK, y_B, gamma, smoothing):
    """A loss that is NaN with a focal factor."""
    return torch.nn.functional.cross_entropy(logits_BK, y_B, reduction="none") * (NAN if gamma else 1.0)


def either_fails(logits_BK, y_B, gamma, smoothing):
    """A loss that is NaN with a focal factor or with smoothing."""
    factor = NAN if gamma or smoothing else 1.0
    return torch.nn.functional.cross_entropy(logits_BK, y_B, reduction="none") * factor


@pytest.mark.parametrize(
    ("loss", "config", "words"),
    [
        (class_one_fails, {}, "No setting of the loss prevents it. Keep the incident and report it"),
        (class_one_fails, {"focal_gamma": 2}, "No setting of the loss prevents it. Keep the incident and report it"),
        (focal_factor_fails, {"focal_gamma": 2, "label_smoothing": 0.1}, "Set train.focal_gamma = 0"),
        (
            either_fails,
            {"focal_gamma": 2, "label_smoothing": 0.1, "class_weights": (1, 2)},
            "Set train.focal_gamma = 0, train.label_smoothing = 0, train.class_weights = [1.0, 1.0]",
        ),
    ],
)
def test_a_setting_of_the_loss_is_advised_only_if_it_helps(monkeypatch, loss, config, words):
    monkeypatch.setattr(gradients, "sample_losses", loss)
    found = explain(*planted(config=TrainConfig(**config)))
    assert found.cause == "loss_edge" and found.advice.en == words


@pytest.mark.parametrize(
    ("cause", "done", "config", "words"),
    [
        (
            "learning_rate",
            (Change.SLOWED_RERUN, "100"),
            {},
            "train.encoder_learning_rate = 1e-05, train.head_learning_rate",
        ),
        ("learning_rate", (Change.HEALTHY_WEIGHTS, ""), {}, "No lower rate that was tried"),
        ("missing_warmup", (Change.WARMED_RERUN, "50"), {"warmup_steps": 0}, "Set train.warmup_steps = 50"),
        ("missing_warmup", (Change.WARMED_RERUN, "50"), {"warmup_epochs": 1}, "Raise train.warmup_epochs"),
        ("exploding_gradient", (Change.CLIPPED_RERUN, "0.5"), {"clip_norm": 9}, "Set train.clip_norm = 0.5"),
        ("exploding_gradient", (Change.CLIPPED_RERUN, "0.5"), {"clip_norm": 0.1}, "Look at these samples"),
    ],
)
def test_rates_and_clipping_are_advised_as_they_were_tried(cause, done, config, words):
    step, _ = planted(config=TrainConfig(**config))
    experiments = [Experiment(*done, 1.0, 1.0, True)]
    assert words in advise(Cause(cause), step, experiments, Settings()).en
    step.model.freeze_encoder()
    assert "encoder_learning_rate" not in advise(Cause(cause), step, experiments, Settings()).en


def test_the_checkpoint_is_looked_at_only_if_there_is_one():
    step, _ = planted()
    assert "checkpoint inspect" in advise(Cause.ENCODER_WEIGHTS, step, (), Settings(pretrained=True)).en
    assert "train.seed" in advise(Cause.ENCODER_WEIGHTS, step, (), Settings(pretrained=False)).en


def test_every_cause_has_advice_in_both_languages():
    step, _ = planted()
    for cause in Cause:
        advice = advise(cause, step, (), Settings())
        assert len(advice.en) > 10 and len(advice.es) > 10 and advice.en != advice.es


# The run and `explain`


@pytest.fixture
def kept(make_config, tmp_path):
    """A run directory with one incident, whose step is sound when it is replayed."""
    config = make_config(model={"width": 16, "layers": 2, "feed_forward": 24, "dropout": 0.1})
    step, _ = planted(config=config.train)
    names = DataNames(
        config.model, [("a", None)] * 3, ["0", "1"], ["s"], torch.arange(8).numpy().astype("datetime64[s]"), 168
    )
    assert keep_incident(tmp_path, step, names) is not None
    return tmp_path


def test_explain_shows_the_cause_of_the_run_and_says_that_the_replay_differs(kept, capsys, monkeypatch):
    experiments = (Experiment(Change.FLOAT32, "", 0.7, 1.0, True),)
    write_explanation(kept / "incidents" / "001", Explanation(Cause.HALF_PRECISION, experiments=experiments))
    found = explain_incident(load_incident(kept))
    assert found.explanation.cause == "half_precision" and found.other.cause == "transient"
    assert [each.change for each in found.explanation.experiments] == ["float32"]
    for arguments in ((), ("--all",), ("--json",)):
        monkeypatch.setattr("sys.argv", ["llueve", "incident", "explain", str(kept), *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = " ".join(capsys.readouterr().out.split())
        assert not caught.value.code and "half_precision" in shown and "test the memory" not in shown
    told = json.loads(shown)
    assert told["cause"] == "half_precision" and told["replay"]["cause"] == "transient"
    assert 'Set train.precision = "float32"' in told["advice"]["en"]


@pytest.mark.parametrize(
    "change",
    [
        {"cells": [[8, 0, 0]]},
        {"samples": [10**30]},
        {"facts": [[0, 2]]},
        {"samples": [-1]},
        {"numbers": [["a", "b"]]},
    ],
)
def test_an_explanation_of_another_incident_is_not_used(kept, change):
    folder = kept / "incidents" / "001"
    write_explanation(folder, Explanation(Cause.HALF_PRECISION))
    path = folder / "explanation.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    found = explain_incident(load_incident(kept))
    assert found.explanation.cause == "transient" and "explanation.json" in found.not_used


@pytest.mark.parametrize("detail", ["abc", "0", "-1", "nan", "1e999", ""])
@pytest.mark.parametrize("change", [Change.SLOWED_RERUN, Change.WARMED_RERUN, Change.CLIPPED_RERUN])
def test_a_number_that_someone_wrote_into_an_explanation_does_no_harm(change, detail):
    step, _ = planted()
    for cause in Cause:
        assert advise(cause, step, [Experiment(change, detail, 1, 1, True)], Settings()).en


@pytest.mark.parametrize("value", [math.nan, 0.123])
def test_a_damaged_buffer_has_one_cause_and_one_place_everywhere(write_rainy_table, tmp_path, monkeypatch, value):
    config = load_config(write_rainy_table(tmp_path, "[train]\nepochs = 1\nbatch_size = 32\n", days=200))
    attempt, calls = Stepper.attempt, []

    def damaged(self, *arguments):
        calls.append(None)
        if len(calls) == 2:
            self.state.model.head.knots_CJ[1, 5] = value
        return attempt(self, *arguments)

    monkeypatch.setattr(Stepper, "attempt", damaged)
    train(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert [line["cause"] for line in lines if line.get("event") == "refused"] == ["corrupt_buffer"]
    found = explain_incident(load_incident(tmp_path / "run"))
    assert found.explanation.cause == "corrupt_buffer"
    assert found.explanation.numbers == (("head.knots_CJ", (1, 5)),)
