"""Runs with the weather encoder: its inputs, saved models, other steps of the data, and the best start."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from llueve import pipeline
from llueve.config import load_config
from llueve.errors import ConfigError, DataError
from llueve.model.weather_xl import WeatherXL
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES, RAIN
from llueve.runs.directory import Run
from llueve.runs.model_files import load_model
from llueve.samples.encoder_inputs import encoder_inputs
from llueve.samples.read import read_panel
from llueve.samples.split import split_panel
from llueve.stability.incidents import load_incident, replay

CONFIG = """
[data]
path = "table.csv"
site = "site"
position_columns = ["latitude", "longitude"]
[target]
variable = "precipitation"
threshold_mm = 1.0
horizon_hours = 24
[split]
validation_fraction = 0.2
test_fraction = 0.2
[windows]
context = CONTEXT
issue_hours = [0, 12]
[model]
pretrained = "encoder.safetensors"
sites = "alone"
[train]
epochs = 1
[verify]
bootstrap = 100
"""
PLACES = {"north": (60.0, 10.0), "south": (-30.0, 150.0), "middle": (5.0, -70.0)}
VALUES = ["temperature [degC]", "dewpoint [degC]", "pressure_sea [hPa]", "precipitation [mm]", "oddity"]
NAMES = [each.partition(" ")[0] for each in VALUES]


def table(step, days=150, sites=PLACES):
    rows = []
    for number, (site, (latitude, longitude)) in enumerate(sites.items()):
        draw, count = np.random.default_rng(number), days * 24 // step
        cycle = np.sin(np.arange(count) * step * 2 * np.pi / 24)
        wet = np.repeat(draw.random(count // (24 // step) + 1) < 0.4, 24 // step)[:count]
        rows.append(
            pd.DataFrame(
                {
                    "time": pd.date_range("2023-01-01", periods=count, freq=f"{step}h").strftime("%Y-%m-%d %H:%M"),
                    "site": site, "latitude": latitude, "longitude": longitude,
                    "temperature [degC]": 10 * number + 5 * cycle + draw.normal(size=count),
                    "dewpoint [degC]": 10 * number - 4 + np.roll(3 * wet, -(12 // step)) + draw.normal(size=count),
                    "pressure_sea [hPa]": 1013 - np.roll(8 * wet, -(24 // step)) + draw.normal(size=count),
                    "precipitation [mm]": np.where(wet, draw.gamma(0.5, 0.5 * step, count), 0.0).round(1),
                    "oddity": draw.normal(size=count),
                }
            )
        )  # fmt: skip
    return pd.concat(rows, ignore_index=True)


@pytest.fixture
def project(tmp_path):
    """Builds a table of some step, a small weather encoder, and a configuration."""

    def build(step=1, **changes):
        table(step, **changes).to_csv(tmp_path / "table.csv", index=False)
        torch.manual_seed(0)
        encoder = WeatherXL(len(ENCODER_QUANTITIES), width=16, layers=1, heads=2, feed_forward=16)
        save_file(
            {name: each.contiguous() for name, each in encoder.state_dict().items()}, tmp_path / "encoder.safetensors"
        )
        (tmp_path / "mine.toml").write_text(CONFIG.replace("CONTEXT", str(72 // step)))
        return tmp_path

    return build


def trained(folder, *overrides):
    config = load_config(folder / "mine.toml", overrides)
    pipeline.train(config, folder / "run", overwrite=True, console=Console(quiet=True))
    return load_model(Run.open(folder / "run")[0])


@pytest.mark.parametrize("step", [1, 6])
def test_a_run_forecasts_as_it_was_verified(project, step):
    folder = project(step)
    saved = trained(folder)
    assert saved.model.architecture == "weather_xl" and saved.classifier.step_hours == step
    assert [name for name, _ in saved.variables] == NAMES
    known = {"air_temperature", "dew_point_temperature", "relative_humidity", "air_pressure_at_mean_sea_level", RAIN}
    assert set(saved.model.quantities) == known and len(saved.classifier.encoder.seen) == len(known)
    verified = pd.read_csv(folder / "run" / "predictions.csv")
    again = pipeline.predict(folder / "run", folder / "table.csv", every_window=True)
    again["time"] = again["time"].astype(str).str.replace(" ", "T")
    verified["time"] = verified["time"].astype(str).str.replace(" ", "T")
    both = verified.merge(again, on=["site", "time"], suffixes=("", "_again"))
    assert len(both) == len(verified) > 100 and both["probability"].std() > 0.01
    np.testing.assert_allclose(both["probability"], both["probability_again"], atol=1e-6)


def test_the_inputs_are_in_units_of_each_place_and_of_its_training_period(project):
    folder = project()
    config = load_config(folder / "mine.toml")
    panel, saved = read_panel(config), trained(folder)
    assert saved.places is not None and [place.name for place in saved.places] == sorted(PLACES)
    inputs_STQ = encoder_inputs(panel, saved.places)
    warm, wet = ENCODER_QUANTITIES.index("air_temperature"), ENCODER_QUANTITIES.index(RAIN)
    values_ST = panel["temperature"].values.astype(float)
    rows = split_panel(panel, config).training_rows
    for site in range(3):
        mean, spread = values_ST[site, :rows].mean(), max(values_ST[site, :rows].std(), 2.0)
        np.testing.assert_allclose(inputs_STQ[site, :, warm], (values_ST[site] - mean) / spread, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(inputs_STQ[..., wet], np.log1p(panel["precipitation"].values), rtol=1e-5)
    unknown = ENCODER_QUANTITIES.index("cloud_area_fraction")
    assert np.isnan(inputs_STQ[..., unknown]).all()


def test_later_values_change_no_earlier_forecast(project):
    """Causality through the whole run: what comes after an issue time cannot reach its forecast."""
    folder = project(sites={"north": PLACES["north"], "south": PLACES["south"]})
    trained(folder)
    before = pipeline.predict(folder / "run", folder / "table.csv", every_window=True)
    changed = pd.read_csv(folder / "table.csv")
    late = changed["time"] > "2023-05-01 00:00"
    changed.loc[late, VALUES[:3]] += 50.0
    changed.loc[late, VALUES[3]] += 9.0
    changed.to_csv(folder / "changed.csv", index=False)
    after = pipeline.predict(folder / "run", folder / "changed.csv", every_window=True)
    early = pd.to_datetime(before["time"]) <= "2023-05-01"
    assert early.sum() > 100
    np.testing.assert_array_equal(before.loc[early, "probability"], after.loc[early, "probability"])
    assert not np.allclose(before.loc[~early, "probability"], after.loc[~early, "probability"])


def test_a_new_table_keeps_the_quantities_of_the_training(project):
    """Values that would suggest another quantity do not change what the encoder is given."""
    folder = project()
    saved = trained(folder, 'data.quantities={oddity="cloud_area_fraction"}', 'data.units={oddity="%"}')
    assert saved.quantities["oddity"]["quantity"] == "cloud_area_fraction"
    panel = saved.aligned(read_panel(load_config(folder / "mine.toml", ('data.units={oddity="%"}',))))
    unknown = ENCODER_QUANTITIES.index("cloud_area_fraction")
    assert np.isfinite(encoder_inputs(panel, saved.places)[..., unknown]).all()


def test_a_site_that_training_had_not_is_compared_with_its_own_record(project, caplog):
    folder = project(sites={name: PLACES[name] for name in ("north", "south")})
    trained(folder)
    table(1).to_csv(folder / "new.csv", index=False)
    forecast = pipeline.predict(folder / "run", folder / "new.csv")
    assert set(forecast["site"]) == set(PLACES) and forecast["probability"].between(0, 1).all()
    assert "compared with their own record" in caplog.text and "middle" in caplog.text


def test_the_start_is_validated_and_kept_if_no_epoch_is_better(project):
    folder = project()
    saved = trained(
        folder, "train.encoder_learning_rate=1e-20", "train.head_learning_rate=1e-20", "train.weight_decay=0.0"
    )
    first = json.loads((folder / "run" / "history.jsonl").read_text().splitlines()[0])
    assert first["event"] == "start" and first["calibrated_loss"] < 0.69
    assert saved.trained["best_epoch"] == 0 and saved.trained["best_validation_loss"] == first["calibrated_loss"]


def test_an_interrupted_run_ends_in_the_same_bits(project, monkeypatch):
    folder = project()
    overrides = ("train.epochs=2", "checkpoints.steps=3", "train.recipe=default")
    whole = trained(folder, *overrides).classifier.state_dict()
    config = load_config(folder / "mine.toml", overrides)
    from llueve.training import loop

    validate = loop._validate
    monkeypatch.setattr(loop, "_validate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(config, folder / "second", console=Console(quiet=True))
    monkeypatch.setattr(loop, "_validate", validate)
    pipeline.train(config, folder / "second", console=Console(quiet=True), resume=True)
    again = load_model(Run.open(folder / "second")[0]).classifier.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_scenes_see_the_summary_of_each_site(project):
    folder = project()
    saved = trained(folder, "model.sites=together", "model.site_width=8", "model.site_heads=2", "model.site_layers=1")
    assert saved.classifier.sees_sites and saved.site_vectors == 3
    assert len(pipeline.predict(folder / "run", folder / "table.csv")) == 3


def test_an_incident_names_the_quantity_and_repeats(project):
    folder = project()
    bad = pd.read_csv(folder / "table.csv", dtype={"temperature [degC]": object})
    bad.loc[500, "temperature [degC]"] = ""
    bad.to_csv(folder / "table.csv", index=False)
    config = load_config(
        folder / "mine.toml", ("windows.missing=raw", "train.linear_start=false", "guard.max_skipped=0.05")
    )
    pipeline.train(config, folder / "run", console=Console(quiet=True))
    incident = load_incident(folder / "run")
    assert replay(incident).same
    assert incident.about.variables[-len(ENCODER_QUANTITIES)][0] == "encoder air_temperature"


def test_daily_data_are_refused_with_the_reason(tmp_path, project):
    folder = project()
    daily = table(24, days=400)
    daily.to_csv(folder / "table.csv", index=False)
    config = load_config(folder / "mine.toml", ("windows.context=8", "windows.issue_hours=[0]"))
    with pytest.raises(DataError, match=r"reads steps of 1, 2, 3, 4, 6 hours.*24 h.*model\.pretrained = \"none\""):
        pipeline.train(config, folder / "run", console=Console(quiet=True))


def test_too_few_quantities_are_refused_and_auto_starts_fresh(project):
    folder = project(days=90)
    few = pd.read_csv(folder / "table.csv").drop(columns=VALUES[:3])
    few.to_csv(folder / "table.csv", index=False)
    with pytest.raises(DataError, match=r"at least 3 of .*found precipitation_amount: name the others"):
        trained(folder)
    saved = trained(folder, "model.pretrained=auto")
    assert saved.model.architecture == "timer_xl" and saved.model.pretrained == "none" and saved.checkpoint is None


def test_a_patch_of_another_length_is_refused(project):
    folder = project()
    with pytest.raises(ConfigError, match="patch_length = 24"):
        load_config(folder / "mine.toml", ("model.pretrained=none", "model.architecture=weather_xl"))
