"""`llueve forecast` as its user meets it: what it prints, at every width, and what it refuses."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llueve.cli.main import main
from llueve.model.checkpoints import zone_skill
from llueve.sources.downloads import recent_weather
from llueve.sources.tables.plain_table import read_plain_table
from model_cards import card, zone

MAPS = [[1e-6, 5], [1e-6, 1], [1e-6, 0], [1e-6, -9]]  # whatever the weights
BSS, FREQUENCY = [0.14, 0.13, -0.02, 0.03], [0.4, 0.3, 0.15, 0.1]
ZONES = [zone(name, places, MAPS, BSS, FREQUENCY, 0.9) for name, places in (("tropical", 12), ("polar", 1))]
LIMA = ("--latitude", "-12.05", "--longitude", "-77.04")
Llueve = Callable[..., tuple[int, str, str]]


def weather(days: int = 70, **columns: Any) -> pd.DataFrame:
    hours = days * 24
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "time": pd.date_range("2024-01-01", periods=hours, freq="h").strftime("%Y-%m-%dT%H:%MZ"),
            "temperature [degC]": 20 + random.standard_normal(hours),
            "humidity [%]": 70 + random.standard_normal(hours),
            "rain [mm]": np.where(random.random(hours) > 0.9, 1.0, 0.0),
            **columns,
        }
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "weather.csv"
    weather().to_csv(path, index=False)
    return path


@pytest.fixture
def llueve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Llueve:
    """Run a forecast in this process, with a model card that verified the tropics: exit code and both outputs."""
    file = tmp_path / "card.json"
    file.write_text(json.dumps(card(*ZONES)), encoding="utf-8")
    monkeypatch.setattr(zone_skill, "CARD_FILE", file)

    def run(*arguments: object, width: int = 80) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llueve", "forecast", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code is None or isinstance(caught.value.code, int)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return caught.value.code or 0, shown.out, shown.err

    return run


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_forecast_on_the_screen(width: int, table: Path, llueve: Llueve) -> None:
    code, out, err = llueve("--input", table, *LIMA, width=width)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= width
    rows = {line.split()[1]: line.split() for line in out.splitlines() if line.startswith(" ≥")}
    assert [rows[amount][-1] for amount in ("0.2", "1", "5", "10")] == ["+0.14", "+0.13", "-0.02", "+0.03"]
    assert rows["0.2"][3:5] == ["99", "%"] and rows["5"][3] == "–" and rows["10"][3:6] == ["<", "1", "%"]
    text = " ".join(out.split())
    for words in (
        "site (12.05° S, 77.04° W, tropical) 24 hours after 2024-03-10 23:00 UTC",
        "usual: here, at this time of year, in a record of 70 days",
        "skill: Brier skill score over climatology at 12 tropical sites that the encoder never saw, positive at 90 %",
        "no probability of 5 mm: at these sites it was not better than climatology",
        "uncertain: the record covers 70 days of the year",
        "Not an official warning.",
    ):
        assert words in text


def test_a_forecast_as_json(table: Path, llueve: Llueve) -> None:
    code, out, err = llueve("--input", table, *LIMA, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    (place,) = document["forecasts"]
    assert "official warning" in document["limits"]
    assert (place["issued"], place["zone"], place["verified_places"]) == ("2024-03-10T23:00:00Z", "tropical", 12)
    assert [each["amount_mm"] for each in place["amounts"]] == [0.2, 1.0, 5.0, 10.0]
    assert set(place["amounts"][0]) == {"amount_mm", "logit", "probability", "usual", "skill"}
    assert place["amounts"][2]["probability"] is None and 0 < place["amounts"][0]["probability"] < 1


def test_many_sites_are_one_table(tmp_path: Path, llueve: Llueve) -> None:
    sites = [("Lima", -12.0, 70), ("Puno", -15.8, 70), ("Ica", -14.1, 70), ("[b]Base[/b]", -70.0, 70), ("new", 0.0, 30)]
    frames = [weather(days, site=name, latitude=north, longitude=-77.0) for name, north, days in sites]
    pd.concat(frames).to_csv(tmp_path / "many.csv", index=False)
    code, out, _ = llueve("--input", tmp_path / "many.csv", width=60)
    assert code == 0 and max(map(len, out.splitlines())) <= 60
    assert [line.split()[:2] for line in out.splitlines() if "2024-03-10" in line] == [
        [name, "2024-03-10"] for name in ("Ica", "Lima", "Puno")
    ]
    text = " ".join(out.split())
    assert (
        "skill of tropical sites: +0.14 for 0.2 mm, +0.13 for 1 mm, -0.02 for 5 mm, +0.03 for 10 mm (3 sites)" in text
    )
    assert "no forecast: the encoder was verified at 1 polar site(s)" in text
    assert "no forecast: the record has 30 days" in text and text.count("(1 site)") == 2
    assert "[b]Base[/b] (70° S, 77° W, polar)" in llueve("--input", _only(tmp_path, frames[3], frames[0]))[1]


def _only(folder: Path, *frames: pd.DataFrame) -> Path:
    pd.concat(frames).to_csv(folder / "some.csv", index=False)
    return folder / "some.csv"


@pytest.mark.parametrize(("option", "folder"), [((), "llueve"), (("--no-cache",), None)])
def test_a_place_is_downloaded(
    option: tuple[str, ...], folder: str | None, table: Path, llueve: Llueve, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def recent_panel(latitude: float, longitude: float, cache: Path | None, console: Any) -> Any:
        asked.append((latitude, longitude, None if cache is None else cache.name))
        panel = read_plain_table(str(table))
        return panel.assign_coords(latitude=("site", [latitude]), longitude=("site", [longitude]))

    monkeypatch.setattr(recent_weather, "recent_panel", recent_panel)
    code, out, _ = llueve("--latitude", "-12.05", "--longitude", "282.96", *option)
    assert code == 0 and "77.04° W, tropical" in out
    assert asked == [(-12.05, pytest.approx(-77.04), folder)]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "give the latitude and the longitude of a place, or a table with --input"),
        (("--latitude", "-12.05"), 2, "give the other one, too"),
        (("--latitude", "north", "--longitude", "1"), 2, "north: expected a number"),
        (("--latitude", "nan", "--longitude", "1"), 2, "expected a latitude in −90…90"),
        (("--input", "absent.csv"), 1, "absent.csv: no such file"),
        (("--input", "TABLE", "--latitude", "-80", "--longitude", "0"), 1, "verified at 1 polar site(s) that it had not seen"),
        (("--input", "TABLE", "--latitude", "40", "--longitude", "0"), 1, "not verified at any temperate site; train a model"),
    ],
)  # fmt: skip
def test_a_forecast_that_is_not_possible(
    arguments: tuple[str, ...], code: int, words: str, table: Path, llueve: Llueve
) -> None:
    found, out, err = llueve(*(str(table) if each == "TABLE" else each for each in arguments), width=500)
    assert (found, out) == (code, "") and words in err
