"""The examples on their real data: the case that llueve was born from, and the demo."""

import json
from pathlib import Path

import pandas as pd
import pytest
from pyarrow import parquet
from rich.console import Console

import llueve
from llueve import pipeline
from llueve.audit import audit_panel
from llueve.config import load_config
from llueve.errors import GuardStop
from llueve.runs.directory import Run
from llueve.runs.model_files import load_model
from llueve.sources.tables.table import read_table

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = (
    "windows.context=120",
    "model.patch_length=24",
    "train.epochs=1",
    "train.batch_size=64",
    "model.width=16",
    "model.layers=1",
    "model.feed_forward=16",
    "train.linear_start=false",
    "verify.bootstrap=100",
    "verify.lags=[1]",
)


@pytest.fixture
def seed_case(shared):
    shared("data/seed_case/peru_rainfall.csv")
    return EXAMPLES / "seed_case.toml"


def test_the_seed_case_trains_without_one_skipped_sample(seed_case, tmp_path):
    result = pipeline.train(load_config(seed_case, QUICK), tmp_path / "run", console=Console(quiet=True))
    *_, line = [json.loads(text) for text in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert (line["epoch"], line["skipped"]) == (1, 0)
    assert line["train_loss"] < 1.25 and line["validation_loss"] < 0.75  # twice the forecasting loss is in the first
    assert result.verification["n"] == 1830
    assert result.verification["base_rate"] == pytest.approx(492 / 1830)


def test_the_seed_case_without_masks_stops_at_once_and_prints_no_score(seed_case, tmp_path):
    """Windows of 120 steps, five regions: those that reach back to a region's first six steps hold a NaN, 6 each."""
    config = load_config(seed_case, (*QUICK, 'windows.missing="raw"', 'guard.policy="skip"'))
    with pytest.raises(GuardStop, match="before the first step: 30 of 6100 training samples hold a non-finite value"):
        pipeline.train(config, tmp_path / "run", console=Console(quiet=True))
    assert {"model.json", "predictions.csv", "verification.json"}.isdisjoint(
        path.name for path in (tmp_path / "run").iterdir()
    )


def test_the_seed_case_without_masks_is_trained_without_those_samples(seed_case, tmp_path):
    config = load_config(seed_case, (*QUICK, 'windows.missing="raw"'))
    pipeline.train(config, tmp_path / "run", console=Console(quiet=True))
    lines = [json.loads(text) for text in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert {each["cause"] for each in lines if each.get("event") == "refused"} == {"missing_input"}
    assert lines[-1]["quarantined"] == 30 and lines[-1]["skipped"] == 0


def test_the_seed_cases_future_column_is_named(seed_case):
    config = load_config(seed_case, ("data.exclude=[]",))
    audit = audit_panel(read_table(config.data, config.target), config)
    assert [finding.variable for finding in audit.errors] == ["precipitation"]
    assert audit.errors[0].code == "holds_future"


def test_weather_aus_has_the_published_rows_and_counts(shared):
    shared("data/weather_aus/weatherAUS.csv")
    config = load_config(EXAMPLES / "weather_aus.toml")
    audit = audit_panel(read_table(config.data, config.target), config)
    assert not audit.errors
    assert audit.sites == 49
    assert audit.splits["test"]["n"] == 25_974  # every labelled row from 2016 on
    assert audit.splits["test"]["classes"] == {"No": 20_028, "Yes": 5_946}
    missing = {finding.variable: finding.count for finding in audit.findings if finding.code == "missing_cells"}
    assert (missing["MinTemp"], missing["Sunshine"]) == (1_485, 69_835)  # as pandas counts them in the file
    past = {finding.variable for finding in audit.findings if finding.code == "past_outcome"}
    assert past == {"Rainfall", "RainToday=Yes"}


def test_the_single_place_runs_on_the_embedded_data(tmp_path):
    config = load_config(EXAMPLES / "seattle.toml", QUICK)
    result = pipeline.train(config, tmp_path / "run", console=Console(quiet=True))
    assert result.verification["n"] == 364
    assert result.verification["base_rate"] == pytest.approx(116 / 364)
    assert (
        (tmp_path / "run" / "predictions.csv")
        .read_text()
        .startswith(
            "site,time,observed,probability,climatology,persistence,markov,logistic,gradient_boosting\nSeattle,2015-01-01,"
        )
    )


def test_the_network_of_the_demo_is_seen_together(tmp_path):
    """Twelve of its stations for nine months, one epoch: every station is forecast, twice a day."""
    whole = parquet.read_table(Path(llueve.__file__).parent / "data" / "inmet_brazil.parquet")
    frame = whole.select(["site", "time"]).to_pandas()
    chosen = sorted(frame["site"].unique())[:12]
    rows = frame["site"].isin(chosen) & (frame["time"] < "2023-10-01")
    parquet.write_table(whole.filter(rows.to_numpy()), tmp_path / "network.parquet")
    config = load_config(
        EXAMPLES / "brazil.toml",
        (
            f'data.path="{tmp_path / "network.parquet"}"',
            "split.validation_start=2023-07-01",
            "split.test_start=2023-08-15",
            "train.epochs=1",
            "verify.bootstrap=100",
            "verify.lags=[1]",
        ),
    )
    result = pipeline.train(config, tmp_path / "run", console=Console(quiet=True))
    saved = load_model(Run(tmp_path / "run"))
    assert [site.name for site in saved.sites] == chosen
    predictions = pd.read_csv(tmp_path / "run" / "predictions.csv", parse_dates=["time"])
    assert set(predictions["site"]) <= set(chosen) and set(predictions["time"].dt.hour) == {0, 12}
    assert len(predictions) == result.verification["n"]
