"""Climate zones, and the model card that holds their recalibration and skill."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llueve.errors import CheckpointError
from llueve.model.checkpoints.climate_zone import ClimateZone, zone_of
from llueve.model.checkpoints.zone_skill import ZoneSkill, read_zones, sigmoid
from model_cards import card, zone

MAPS = [[0.9, 0.1], [0.8, 0.0], [0.7, -0.2], [-0.6, -0.5]]
TROPICAL = zone("tropical", 12, MAPS, [0.14, 0.13, -0.02, 0.1], [0.4, 0.3, 0.15, 0.1], 0.9)


def written(folder: Path, content: Any) -> Path:
    path = folder / "card.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("latitude", "name"),
    [
        (0, "tropical"), (-23.4, "tropical"), (23.5, "subtropical"), (-34.9, "subtropical"), (35, "temperate"),
        (-66.4, "temperate"), (66.5, "polar"), (-90, "polar"), (math.nan, "unknown"),
    ],
)  # fmt: skip
def test_a_latitude_has_one_zone(latitude: float, name: str) -> None:
    assert zone_of(latitude) == name


def test_the_probability_is_that_of_the_map(tmp_path: Path) -> None:
    tropical = read_zones(written(tmp_path, card(TROPICAL)))[ClimateZone.TROPICAL]
    assert tropical.probability(0, 2.0) == pytest.approx(1 / (1 + math.exp(-(0.9 * 2.0 + 0.1))))
    assert tropical.probability(2, -3.0) == pytest.approx(1 / (1 + math.exp(0.7 * 3.0 + 0.2)))
    assert [sigmoid(logit) for logit in (0.0, 1e4, -1e4)] == [0.5, 1.0, 0.0]


def test_an_amount_needs_skill_and_a_rising_map(tmp_path: Path) -> None:
    tropical = read_zones(written(tmp_path, card(TROPICAL)))[ClimateZone.TROPICAL]
    assert [tropical.is_skilful(amount) for amount in range(4)] == [True, True, False, False]
    assert tropical.problem() is None


def test_the_numbers_of_a_zone_are_those_of_its_card(tmp_path: Path) -> None:
    """Amounts that the card lacks have no score; the unknown zone is no zone of a place."""
    few = {**TROPICAL, "amounts": TROPICAL["amounts"][:2]}
    zones = read_zones(written(tmp_path, card(few, {**TROPICAL, "zone": "unknown"})))
    assert set(zones) == {ClimateZone.TROPICAL}
    tropical = zones[ClimateZone.TROPICAL]
    assert tropical.places == 12 and tropical.share_positive == 0.9
    assert tropical.bss_calibrated == [0.14, 0.13, None, None] and tropical.frequency == [0.4, 0.3, None, None]
    assert [tropical.is_skilful(amount) for amount in range(4)] == [True, True, False, False]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"places": 2}, "verified at 2 tropical site(s) that it had not seen; at least 3 are needed"),
        ({"places": 0, "bss": [None] * 4}, "verified at 0 tropical site(s)"),
        ({"bss": [-0.1, 0.0, None, -2.0]}, "-0.10 for 0.2 mm, +0.00 for 1 mm, unknown for 5 mm, -2.00 for 10"),
    ],
)
def test_a_zone_without_skill_says_what_was_verified(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    known = {"name": "tropical", "places": 12, "maps": MAPS, "bss": [0.1] * 4, "frequency": [0.1] * 4, "share": 0.9}
    found: dict[ClimateZone, ZoneSkill] = read_zones(written(tmp_path, card(zone(**{**known, **changes}))))
    problem = found[ClimateZone.TROPICAL].problem()
    assert problem is not None and words in problem


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "the model card is missing"),
        ("{", "is damaged"),
        ("[" * 10_000, "is damaged"),
        ('{"zones": ' + "[" * 100 + "]" * 100 + "}", "is nested too deep"),
        ("[]", "invalid entries: its text"),
        ("{}", "invalid entries: llueve, width"),
        (card({**TROPICAL, "zone": "lunar"}), "zones.0.zone"),
        (card({**TROPICAL, "amounts": [{}]}), "zones.0.amounts.0.mm"),
        (card({**TROPICAL, "held_out": -1}), "zones.0.held_out"),
    ],
)
def test_a_damaged_card_is_refused(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    if content is not None:
        written(tmp_path, content)
    with pytest.raises(CheckpointError) as caught:
        read_zones(path)
    assert str(path) in str(caught.value) and words in str(caught.value)
