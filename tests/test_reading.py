"""Derived variables and positions on the whole way: read, trained, predicted from newer data."""

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from llueve import pipeline
from llueve.config import load_config
from llueve.samples.read import read_panel

CONFIG = """
[data]
path = "table.csv"
site = "site"
positions = "places.csv"
units = { t = "degC", td = "degC", rain = "mm" }
[features]
relative_humidity = { rh = ["t", "td"] }
lag_hours = { rain = [48] }
rolling = [{ variable = "rain", hours = 72, statistic = "sum" }]
neighbours = 1
neighbour_variables = ["rain"]
[target]
variable = "rain"
threshold_mm = 1.0
[split]
validation_fraction = 0.2
test_fraction = 0.2
[windows]
context = 8
[model]
patch_length = 4
width = 8
layers = 1
heads = 2
feed_forward = 8
[train]
epochs = 1
[verify]
bootstrap = 100
lags = [1]
"""


@pytest.fixture
def project(tmp_path):
    random = np.random.default_rng(0)
    frames = []
    for site in ("north", "south"):
        warm = random.normal(20, 5, 200)
        frames.append(
            pd.DataFrame(
                {
                    "time": pd.date_range("2020-01-01", periods=200).strftime("%Y-%m-%d"),
                    "site": site,
                    "t": warm,
                    "td": warm - random.gamma(2, 2, 200),
                    "rain": random.gamma(0.4, 4, 200),
                }
            )
        )
    pd.concat(frames).to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "places.csv").write_text("site,latitude,longitude\nnorth,1,0\nsouth,0,0\n")
    (tmp_path / "mine.toml").write_text(CONFIG)
    return tmp_path


def test_derived_variables_are_trained_on_and_forecast_from_newer_data(project):
    config = load_config(project / "mine.toml")
    panel = read_panel(config)
    assert list(panel.data_vars) == ["t", "td", "rain", "rh", "rain_lag_48h", "rain_sum_72h", "rain_near1"]
    np.testing.assert_array_equal(panel["rain_near1"].sel(site="north"), panel["rain"].sel(site="south"))
    pipeline.train(config, project / "run", console=Console(quiet=True))
    newer = pd.read_csv(project / "table.csv").groupby("site").tail(30)
    newer.to_csv(project / "newer.csv", index=False)
    told = pipeline.predict(project / "run", project / "newer.csv")
    assert told["site"].tolist() == ["north", "south"] and told["probability"].between(0, 1).all()
    assert pipeline.evaluate(project / "run")["n"] > 0


def test_the_audit_tells_what_lags_lack(project):
    pipeline.train(load_config(project / "mine.toml"), project / "run", console=Console(quiet=True))
    text = (project / "run" / "audit.json").read_text()
    assert "rain_lag_48h: missing in the first 2 steps of north" in text
