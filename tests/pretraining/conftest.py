"""A small corpus of made-up weather, and the configuration of a pre-training on it."""

import numpy as np
import pandas as pd
import pytest

CONFIG = """
[corpus]
path = "corpus"
held_out = 0.25
windows = 160
validation_windows = 60
score_windows = 400
[model]
width = 8
layers = 1
heads = 2
feed_forward = 8
{model}
[train]
epochs = 2
batch_size = 16
warmup_steps = 2
epoch_share = 0.5
average_decay = 0.9
{train}
"""
PROVENANCE = """# Of made-up weather
- source: not of a group
## hourly_north
- source: drawn at random
- licence: CC0
"""


def weather(name, latitude, hours, seed):
    """One site whose rain follows a slow wave of its humidity."""
    random = np.random.default_rng(seed)
    wave = np.convolve(random.standard_normal(hours + 71), np.ones(72) / 8.5, mode="valid")
    return pd.DataFrame(
        {
            "site": name,
            "latitude": latitude,
            "longitude": np.nan if np.isnan(latitude) else 10.0,
            "time": pd.date_range("2023-01-01", periods=hours, freq="h").astype("datetime64[ms]"),
            "temperature_c": (15 - wave + random.standard_normal(hours)).astype(np.float32),
            "relative_humidity_pct": np.clip(70 + 12 * wave, 5, 100).astype(np.float32),
            "precipitation_mm": np.where(wave > 0.8, random.gamma(1, 0.8, hours), 0).astype(np.float32),
        }
    )


@pytest.fixture(scope="session")
def write_corpus():
    """Write a corpus and a configuration into a folder; returns the path of the configuration."""

    def write(folder, model="", train="", sites=8, days=150):
        (folder / "corpus").mkdir()
        for group, latitude in (("north", 48.0), ("tropics", -5.0)):
            names = [f"{group} {number}" for number in range(sites)]
            frames = [weather(name, latitude, 24 * days, len(group) + at) for at, name in enumerate(names)]
            pd.concat(frames).to_parquet(folder / "corpus" / f"hourly_{group}.parquet")
        daily = weather("daily", 48.0, 24 * 60, 0).iloc[::24]
        daily.to_parquet(folder / "corpus" / "hourly_only_by_name.parquet")
        (folder / "corpus" / "PROVENANCE.md").write_text(PROVENANCE, encoding="utf-8")
        path = folder / "pretrain.toml"
        path.write_text(CONFIG.format(model=model, train=train), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module")
def config(write_corpus, tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))
