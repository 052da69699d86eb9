"""Model cards for tests, from the numbers that a forecast uses."""

from typing import Any

from llueve.model.weather_xl import RAIN_MM

WINDOWS, JUDGED = 1000, 10


def skill(mm: float, score: float | None, frequency: float, share: float) -> dict[str, Any]:
    """The scores of one amount at the held-out sites of a zone."""
    return {
        "mm": mm, "windows": WINDOWS, "events": round(frequency * WINDOWS), "brier": 0.1, "skill": score, "auc": 0.8,
        "sites_judged": JUDGED, "sites_better": round(share * JUDGED),
    }  # fmt: skip


def zone(name: str, places: int, maps: Any, bss: Any, frequency: Any, share: float) -> dict[str, Any]:
    """One zone of a card; `maps` and `bss` (after the recalibration) have one entry for each amount."""
    amounts = [
        {
            "mm": mm, "slope": slope, "shift": shift, "windows": WINDOWS, "events": 300,
            "held_out": skill(mm, 0.1, often, share), "recalibrated": skill(mm, score, often, share),
        }
        for mm, (slope, shift), score, often in zip(RAIN_MM, maps, bss, frequency, strict=True)
    ]  # fmt: skip
    return {"zone": name, "sites": 30, "held_out": places, "amounts": amounts}


def card(*zones: dict[str, Any]) -> dict[str, Any]:
    """A whole card with these zones."""
    training = {
        "seed": 0, "windows": 1, "epochs": 1, "best_epoch": 1, "steps": 1, "seconds": 1.0, "skipped": 0, "quarantined": 0,
    }  # fmt: skip
    return {
        "llueve": "0", "width": 8, "layers": 1, "heads": 2, "feed_forward": 8, "days": 7, "quantities": [], "parameters": 1,
        "storage": "float16", "sha256": "0" * 64, "corpus": [], "left_out": {}, "corpus_sha256": "", "training": training,
        "scores": [], "errors": [], "zones": list(zones), "limits": [], "command": "",
    }  # fmt: skip
