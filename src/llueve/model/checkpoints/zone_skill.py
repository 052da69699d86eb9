"""Climate zones of the weather encoder: the recalibration of its forecasts, and their skill at sites that it never saw.

Both stand in the model card, a JSON file beside the weights. R amounts of rain.
"""

import math
from pathlib import Path
from typing import Annotated

from pydantic import Field

from llueve.config import Section
from llueve.errors import CheckpointError
from llueve.model.checkpoints.climate_zone import ClimateZone
from llueve.model.checkpoints.locate import EMBEDDED_FILE
from llueve.model.checkpoints.model_card import ZoneCard, read_card
from llueve.model.weather_xl import RAIN_MM

CARD_FILE = EMBEDDED_FILE.with_suffix(".json")
FEWEST_PLACES = 3
"""Fewest held-out sites whose scores say something about a zone."""
AMOUNTS = len(RAIN_MM)


Skill = Annotated[float, Field(ge=-1e6, le=1)] | None
Share = Annotated[float, Field(ge=0, le=1)] | None
Coefficient = Annotated[float, Field(ge=-100, le=100)]


class ZoneSkill(Section):
    """Recalibration and skill in one zone, verified at sites that the pre-training never saw. One value per amount of rain.

    A score is None where it could not be computed.
    """

    zone: ClimateZone
    places: int = Field(ge=0, le=10**6)
    """Held-out sites in the zone."""
    maps: list[tuple[Coefficient, Coefficient]] = Field(min_length=AMOUNTS, max_length=AMOUNTS)
    """a and b of the recalibrated probability, 1 / (1 + exp(−(a · logit + b)))."""
    bss: list[Skill] = Field(min_length=AMOUNTS, max_length=AMOUNTS)
    """Brier skill score over climatology before the recalibration."""
    bss_calibrated: list[Skill] = Field(min_length=AMOUNTS, max_length=AMOUNTS)
    """The same after it, with maps that were fitted at other sites."""
    share_positive: Share
    """Share of the sites with a positive score for 1 mm."""
    frequency: list[Share] = Field(min_length=AMOUNTS, max_length=AMOUNTS)
    """Share of the days at these sites on which each amount is reached."""

    def is_skilful(self, amount: int) -> bool:
        """True if the forecasts of an amount, by its index in `RAIN_MM`, were better than climatology at enough sites."""
        skill = self.bss_calibrated[amount]
        # A map with a falling slope turns the order of the forecasts round: they had no skill to keep.
        return self.places >= FEWEST_PLACES and skill is not None and skill > 0 and self.maps[amount][0] > 0

    def probability(self, amount: int, logit: float) -> float:
        """The recalibrated probability of an amount, by its index in `RAIN_MM`, from the encoder's logit."""
        slope, shift = self.maps[amount]
        return sigmoid(slope * logit + shift)

    def problem(self) -> str | None:
        """Reason why no forecast is given in this zone, as a sentence; None if there is one for at least one amount."""
        if self.places < FEWEST_PLACES:
            return (
                f"the encoder was verified at {self.places} {self.zone} site(s) that it had not seen; at least {FEWEST_PLACES} "
                "are needed to say how good it is there"
            )
        if not any(map(self.is_skilful, range(AMOUNTS))):
            scores = ", ".join(
                f"{'unknown' if skill is None else f'{skill:+.2f}'} for {amount:g} mm"
                for amount, skill in zip(RAIN_MM, self.bss_calibrated, strict=True)
            )
            return (
                f"at {self.places} {self.zone} sites that it had not seen, the encoder was not better than climatology "
                f"(Brier skill score {scores})"
            )
        return None


def read_zones(path: Path | None = None) -> dict[ClimateZone, ZoneSkill]:
    """The verified zones in a model card, by default that of the weights in the package; the unknown zone is not among them.

    Raises:
        CheckpointError: the file is missing, or damaged.
    """
    path = path or CARD_FILE
    if not path.exists():
        raise CheckpointError(f"{path}: the model card is missing, so the skill is unknown; install llueve again")
    zones = [each for each in read_card(path).zones if each.zone is not ClimateZone.UNKNOWN]
    return {each.zone: _zone_skill(each) for each in zones}


def _zone_skill(card: ZoneCard) -> ZoneSkill:
    """The zone of a model card with one entry for each amount of rain."""
    by_mm = {each.mm: each for each in card.amounts}
    found = [by_mm.get(amount) for amount in RAIN_MM]
    one = by_mm.get(1.0)
    judged = 0 if one is None else one.recalibrated.sites_judged
    return ZoneSkill(
        zone=card.zone,
        places=card.held_out,
        maps=[(0.0, 0.0) if each is None else (each.slope, each.shift) for each in found],
        bss=[None if each is None else each.held_out.skill for each in found],
        bss_calibrated=[None if each is None else each.recalibrated.skill for each in found],
        share_positive=one.recalibrated.sites_better / judged if one is not None and judged else None,
        frequency=[
            None if each is None or not each.held_out.windows else each.held_out.events / each.held_out.windows
            for each in found
        ],
    )


def sigmoid(logit: float) -> float:
    """The probability of a logit, 1 / (1 + exp(−logit)), for a number of any size."""
    small = math.exp(-abs(logit))
    return 1 / (1 + small) if logit >= 0 else small / (1 + small)
