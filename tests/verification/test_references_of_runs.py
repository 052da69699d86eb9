"""A run hands the positions of its sites to the references, if it has more than two."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from llueve import pipeline
from llueve.config import parse_config
from llueve.verification.reference_data import ReferenceData

POSITIONS = {"a": (-12.0, -77.0), "b": (-12.5, -76.0), "c": (-15.8, -70.0)}


class Verified(Exception):
    """Ends a training where its verification would begin."""


@pytest.mark.parametrize(("sites", "given", "seen"), [("abc", True, True), ("abc", False, False), ("ab", True, False)])
def test_references_get_the_positions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sites: str, given: bool, seen: bool
) -> None:
    random, days = np.random.default_rng(0), 90
    frames = [
        pd.DataFrame(
            {
                "site": site,
                "time": pd.date_range("2020-01-01", periods=days, freq="D"),
                "humidity": random.normal(size=days),
                "rain": random.integers(0, 2, days),
            }
        )
        for site in sites
    ]
    pd.concat(frames).to_csv(tmp_path / "table.csv", index=False)
    table = "".join(f"{site},{north},{east}\n" for site, (north, east) in POSITIONS.items())
    (tmp_path / "positions.csv").write_text(f"site,latitude,longitude\n{table}")
    data = {"path": str(tmp_path / "table.csv"), "site": "site"}
    if given:
        data["positions"] = str(tmp_path / "positions.csv")
    config = parse_config(
        {
            "data": data,
            "target": {"label": "rain"},
            "split": {"validation_fraction": 0.2, "test_fraction": 0.2},
            "windows": {"context": 4},
            "model": {"patch_length": 2, "width": 8, "layers": 1, "heads": 2, "feed_forward": 8},
            "train": {"epochs": 1, "batch_size": 64},
        },
        "test",
    )
    found: list[ReferenceData] = []

    def verify(data: ReferenceData, *rest: object, **keys: object) -> None:
        found.append(data)
        raise Verified

    monkeypatch.setattr(pipeline, "verify", verify)
    with pytest.raises(Verified):
        pipeline.train(config, tmp_path / "run")
    expected = [POSITIONS[site] for site in sites] if seen else None
    assert expected == (
        None if found[0].position_S2 is None else [tuple(each) for each in found[0].position_S2.tolist()]
    )
