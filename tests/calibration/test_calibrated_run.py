"""A training fits calibration and threshold on the validation period, keeps both, and uses them for every forecast."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llueve import pipeline
from llueve.config import load_config
from llueve.runs.directory import Run
from llueve.runs.model_files import load_model

SECTIONS = """
[train]
epochs = 1
batch_size = 128
[calibration]
method = "{method}"
[decision]
rule = "recall"
required_recall = 0.9
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, write_rainy_table: Callable[..., Path]) -> dict[str, Path]:
    """Two trainings that differ in their calibration alone."""
    found = {}
    for method in ("none", "platt"):
        folder = tmp_path_factory.mktemp(method)
        config = load_config(write_rainy_table(folder, SECTIONS.format(method=method), days=160))
        found[method] = pipeline.train(config, folder / "run").directory
    return found


def verified(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "predictions.csv")


def test_the_probabilities_are_those_of_the_model_through_the_fitted_map(runs: dict[str, Path]) -> None:
    plain, fitted = verified(runs["none"]), verified(runs["platt"])
    calibration = load_model(Run(runs["platt"])).calibration
    assert calibration.method == "platt" and (calibration.slope, calibration.shift) != (1, 0)
    log_odds = np.log(plain["probability"] / (1 - plain["probability"]))
    expected = 1 / (1 + np.exp(-(calibration.slope * log_odds + calibration.shift)))
    np.testing.assert_allclose(fitted["probability"], expected, rtol=1e-6)


def test_the_threshold_finds_the_required_share_and_is_used_in_the_verification(runs: dict[str, Path]) -> None:
    table, run = verified(runs["platt"]), runs["platt"]
    decision = load_model(Run(run)).decision
    assert decision.rule == "recall" and decision.threshold != 0.5
    assert decision.validation["recall"] is not None and decision.validation["recall"] >= 0.9
    yes = table["probability"] >= decision.threshold
    counts = json.loads((run / "verification.json").read_text())["model"]["confusion"]
    assert counts["hits"] == (yes & (table["observed"] == 1)).sum()
    assert counts["false_alarms"] == (yes & (table["observed"] == 0)).sum()


def test_predict_and_evaluate_use_both(runs: dict[str, Path]) -> None:
    run = runs["platt"]
    before = (run / "verification.json").read_bytes()
    pipeline.evaluate(run)
    assert (run / "verification.json").read_bytes() == before
    forecasts = pipeline.predict(run, run.parent / "table.csv", every_window=True)
    assert list(forecasts) == ["site", "time", "probability", "event"]
    assert (forecasts["event"] == (forecasts["probability"] >= load_model(Run(run)).decision.threshold)).all()
    table = verified(run).astype({"time": "datetime64[ns]"})
    both = table.merge(forecasts, on=["site", "time"])
    assert len(both) == len(table) > 0
    np.testing.assert_allclose(both["probability_x"], both["probability_y"], rtol=1e-5)
