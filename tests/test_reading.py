"""Derived variables and positions on the whole way: read, trained, predicted from newer data."""

import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from llueve import pipeline
from llueve.audit import audit_panel
from llueve.config import load_config
from llueve.errors import DataError
from llueve.panel import seen_only
from llueve.samples.read import read_panel, read_source
from llueve.samples.split import split_panel

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


@pytest.fixture
def with_buoys(project):
    """The same project with two buoys: one whose rain is negative noise of a broken gauge, one without rain."""
    table = pd.read_csv(project / "table.csv")
    buoys = [
        table[table["site"] == "north"].assign(site=name, rain=rain)
        for name, rain in (("buoy_1", -5.0), ("buoy_2", np.nan))
    ]
    pd.concat([table, *buoys]).to_csv(project / "table.csv", index=False)
    (project / "places.csv").write_text("site,latitude,longitude\nnorth,1,0\nsouth,0,0\nbuoy_1,1,1\nbuoy_2,0,-1\n")
    return project


def test_sites_that_are_only_seen_are_read_and_never_forecast(with_buoys):
    config = load_config(with_buoys / "mine.toml", ('data.seen_only=["buoy_*"]',))
    panel = read_panel(config)
    assert dict(zip(panel["site"].values.tolist(), seen_only(panel).tolist(), strict=True)) == {
        "buoy_1": True, "buoy_2": True, "north": False, "south": False,
    }  # fmt: skip
    split = split_panel(panel, config)
    assert np.isnan(split.labels_ST[:2]).all() and not np.isnan(split.labels_ST[2:, :-1]).any()
    assert {site for part in split.parts for site in part.site.tolist()} == {2, 3}
    audit = audit_panel(panel, config)
    assert audit.errors == [] and audit.splits["test"]["n"] == 2 * 39  # the last day has no outcome
    (found,) = [finding for finding in audit.findings if finding.code == "seen_only"]
    assert found.message == "2 of 4 sites are seen but not forecast: buoy_1, buoy_2"
    pipeline.train(config, with_buoys / "run", console=Console(quiet=True))
    forecasts = pd.read_csv(with_buoys / "run" / "predictions.csv")
    assert set(forecasts["site"]) == {"north", "south"}


def test_the_hours_that_a_seen_site_reports_do_not_make_up_for_those_of_the_others(with_buoys):
    table = pd.read_csv(with_buoys / "table.csv")
    table["time"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(table.groupby("site").cumcount() * 12, "h")
    midnight = table["time"].dt.hour == 0
    table["rain"] = table["rain"].abs().fillna(0.0).where(midnight | table["site"].str.startswith("buoy"))
    table.to_csv(with_buoys / "table.csv", index=False)
    config = load_config(with_buoys / "mine.toml", ('data.seen_only=["buoy_*"]',))
    (error,) = audit_panel(read_panel(config), config).errors
    assert error.code == "hours_never_reported"


@pytest.mark.parametrize(
    ("patterns", "why"),
    [
        ('["buoy_*", "Buoy_1"]', "data.seen_only names Buoy_1, but the sites are buoy_1, buoy_2, north, south"),
        ('["buoy_*", "*th"]', "data.seen_only names every site"),
    ],
)
def test_patterns_that_name_no_site_or_all_are_refused(with_buoys, patterns, why):
    with pytest.raises(DataError, match=re.escape(why)):
        read_panel(load_config(with_buoys / "mine.toml", (f"data.seen_only={patterns}",)))


def test_newer_data_may_lack_a_seen_site(with_buoys):
    config = load_config(with_buoys / "mine.toml", ('data.seen_only=["buoy_1", "buoy_2"]',))
    table = pd.read_csv(with_buoys / "table.csv")
    table[table["site"] != "buoy_2"].to_csv(with_buoys / "newer.csv", index=False)
    assert seen_only(read_source(config, new=str(with_buoys / "newer.csv"))).tolist() == [True, False, False]
