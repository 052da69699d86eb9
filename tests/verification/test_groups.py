"""Scores by group equal the scores of the rows of the group, and few rows are called insufficient."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import numpy as np
import pytest

from llueve.samples.periods import few_events
from llueve.verification import scores
from llueve.verification.enso import enso_phases
from llueve.verification.groups import groups

sys.path.insert(0, str(Path(__file__).parent))
from forecast_cases import noisy_forecasts


def months(*names: str) -> np.ndarray:
    return np.array(names, dtype="datetime64[M]")


def season(month: int) -> str:
    return {12: "DJF", 1: "DJF", 2: "DJF", 3: "MAM", 4: "MAM", 5: "MAM", 6: "JJA", 7: "JJA", 8: "JJA"}.get(month, "SON")


def test_each_group_has_the_scores_of_its_rows() -> None:
    forecasts = noisy_forecasts(days=365)
    dates = forecasts.issued_n.astype("datetime64[D]").astype(str)
    month = np.array([int(date[5:7]) for date in dates])
    kinds = {
        "site": np.array(forecasts.sites)[forecasts.site_n],
        "season": np.array([season(each) for each in month]),
        "month": np.array([f"{each:02}" for each in month]),
        "hour": np.full(len(dates), "00 UTC"),
        "lead": np.full(len(dates), "24 h"),
    }
    found = groups(forecasts)
    assert list(found) == ["site", "season", "month", "hour", "lead", "enso"]
    for kind, name_n in kinds.items():
        assert {row["name"] for row in found[kind]} == set(name_n)
        for row in found[kind]:
            at = name_n == row["name"]
            y, p = forecasts.y_n[at], forecasts.model_p[at]
            assert (row["n"], row["events"]) == (at.sum(), y.sum()) and row["base_rate"] == pytest.approx(y.mean())
            assert row["insufficient"] is (few_events(y, forecasts.issued_n[at]) is not None)
            if row["insufficient"]:
                assert row["brier"] is row["bss"] is row["best_reference"] is row["best_reference_brier"] is None
                continue
            references = {name: scores.brier(each[at], y) for name, each in forecasts.reference_p.items()}
            best = min(references, key=references.get)
            assert row["brier"] == pytest.approx(scores.brier(p, y))
            assert row["bss"] == pytest.approx(scores.brier_skill(p, y, forecasts.reference_p["climatology"][at]))
            assert row["best_reference"] == best and row["best_reference_brier"] == pytest.approx(references[best])
    for kind, rows in found.items():
        assert sum(row["n"] for row in rows) == len(forecasts), kind


def test_issue_hours_are_told_apart() -> None:
    forecasts = noisy_forecasts(days=200)
    twice = replace(forecasts, issued_n=forecasts.issued_n + np.timedelta64(12, "h") * (np.arange(600) % 2))
    assert [row["name"] for row in groups(twice)["hour"]] == ["00 UTC", "12 UTC"]


def test_a_group_with_few_events_is_insufficient() -> None:
    forecasts = noisy_forecasts(days=120)
    y = forecasts.y_n.copy()
    y[forecasts.site_n == 1] = 0
    rows = groups(replace(forecasts, y_n=y))["site"]
    assert [row["insufficient"] for row in rows] == [False, True, False]
    assert rows[1] == {
        "name": "site 1",
        "n": 120,
        "events": 0,
        "base_rate": 0.0,
        "brier": None,
        "bss": None,
        "best_reference": None,
        "best_reference_brier": None,
        "insufficient": True,
    }


def test_without_references_there_is_neither_skill_nor_a_best_one() -> None:
    (row,) = groups(replace(noisy_forecasts(), reference_p={}, horizon_hours=None))["lead"]
    assert row["name"] == "unknown" and row["brier"] is not None
    assert row["bss"] is None and row["best_reference"] is None and row["best_reference_brier"] is None


def test_the_phases_of_well_known_years() -> None:
    assert enso_phases(months("1997-12", "1988-11", "2015-12", "2012-08", "1949-12", "2150-01")) == [
        "El Niño",
        "La Niña",
        "El Niño",
        "neutral",
        "unknown",
        "unknown",
    ]
    forecasts = noisy_forecasts(days=730, start="2015-01-01")
    assert {row["name"] for row in groups(forecasts)["enso"]} == {"El Niño", "La Niña", "neutral"}


def test_the_table_of_phases_follows_from_the_index(shared: Callable[[str], Path]) -> None:
    """Every month by the rule of NOAA: one of the runs of at least 5 seasons at or beyond half a kelvin."""
    lines = shared("data/oni/oni.ascii.txt").read_text().splitlines()
    rows = [line.split() for line in lines if re.match(r"\s*[A-Z]{3} \d{4}", line)]
    seasons = ["DJF", "JFM", "FMA", "MAM", "AMJ", "MJJ", "JJA", "JAS", "ASO", "SON", "OND", "NDJ"]
    index = [float(Decimal(row[3]).quantize(Decimal("0.1"), ROUND_HALF_UP)) for row in rows]
    signs = "".join("E" if value >= 0.5 else "L" if value <= -0.5 else "N" for value in index)
    expected = re.sub(r"(E{5,}|L{5,})|[EL]", lambda match: match[1] or "N", signs)
    names = {"E": "El Niño", "L": "La Niña", "N": "neutral"}
    found = enso_phases(months(*(f"{row[1]}-{seasons.index(row[0]) + 1:02}" for row in rows)))
    assert found == [names[letter] for letter in expected] and len(found) > 900
