"""Climate zones, and the model card that holds their recalibration and skill."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llueve.errors import CheckpointError
from llueve.model.checkpoints.zones import ClimateZone, ZoneSkill, read_zones, sigmoid, zone_at

TROPICAL: dict[str, Any] = {
    "zone": "tropical",
    "places": 12,
    "maps": [[0.9, 0.1], [0.8, 0.0], [0.7, -0.2], [-0.6, -0.5]],
    "bss": [0.1, 0.12, 0.05, -0.01],
    "bss_calibrated": [0.14, 0.13, -0.02, 0.1],
    "share_positive": 0.9,
    "frequency": [0.4, 0.3, 0.15, 0.1],
}


def card(folder: Path, *zones: Any, **others: Any) -> Path:
    path = folder / "card.json"
    path.write_text(json.dumps({"zones": zones, **others}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("latitude", "zone"),
    [
        (0, "tropical"), (-23.4, "tropical"), (23.5, "subtropical"), (-34.9, "subtropical"), (35, "temperate"),
        (-54.9, "temperate"), (55, "polar"), (-90, "polar"),
    ],
)  # fmt: skip
def test_a_latitude_has_one_zone(latitude: float, zone: str) -> None:
    assert zone_at(latitude) == zone


def test_the_probability_is_that_of_the_map(tmp_path: Path) -> None:
    tropical = read_zones(card(tmp_path, TROPICAL, name="others may stand there"))[ClimateZone.TROPICAL]
    assert tropical.probability(0, 2.0) == pytest.approx(1 / (1 + math.exp(-(0.9 * 2.0 + 0.1))))
    assert tropical.probability(2, -3.0) == pytest.approx(1 / (1 + math.exp(0.7 * 3.0 + 0.2)))
    assert [sigmoid(logit) for logit in (0.0, 1e4, -1e4)] == [0.5, 1.0, 0.0]


def test_an_amount_needs_skill_and_a_rising_map(tmp_path: Path) -> None:
    tropical = read_zones(card(tmp_path, TROPICAL))[ClimateZone.TROPICAL]
    assert [tropical.is_skilful(amount) for amount in range(4)] == [True, True, False, False]
    assert tropical.problem() is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"places": 2}, "verified at 2 tropical site(s) that it had not seen; at least 3 are needed"),
        ({"places": 0, "bss_calibrated": [None] * 4}, "verified at 0 tropical site(s)"),
        (
            {"bss_calibrated": [-0.1, 0.0, None, -2.0]},
            "-0.10 for 0.2 mm, +0.00 for 1 mm, unknown for 5 mm, -2.00 for 10",
        ),
    ],
)
def test_a_zone_without_skill_says_what_was_verified(changes: dict[str, Any], words: str) -> None:
    problem = ZoneSkill.model_validate({**TROPICAL, **changes}).problem()
    assert problem is not None and words in problem


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "the model card is missing"),
        ("{", "is not the JSON of a model card"),
        ("[" * 10_000, "is not the JSON of a model card"),
        ('{"zones": ' + "[" * 100 + "]" * 100 + "}", "is nested too deep"),
        ("[]", "the card: "),
        ("{}", "zones: Field required"),
        (json.dumps({"zones": [{**TROPICAL, "zone": "lunar"}]}), "zones.0.zone"),
        (json.dumps({"zones": [{**TROPICAL, "maps": [[1, 0]]}]}), "zones.0.maps"),
        (json.dumps({"zones": [{**TROPICAL, "frequency": [2, 0, 0, 0]}]}), "zones.0.frequency.0"),
        (json.dumps({"zones": [{**TROPICAL, "bss": [float("nan")] * 4}]}), "zones.0.bss.0"),
        (json.dumps({"zones": [{**TROPICAL, "places": 10**30}]}), "is a whole number of"),
        (json.dumps({"zones": [TROPICAL, TROPICAL]}), "a zone has two entries"),
    ],
)
def test_a_damaged_card_is_refused(content: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        read_zones(path)
    assert str(path) in str(caught.value) and words in str(caught.value) and "install llueve again" in str(caught.value)
