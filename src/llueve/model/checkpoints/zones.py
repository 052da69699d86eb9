"""Climate zones of the weather encoder: the recalibration of its forecasts, and their skill at sites that it never saw.

Both stand in the model card, a JSON file beside the weights, under the key `zones`. R amounts of rain.
"""

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llueve.config import Section
from llueve.config.tree_bounds import tree_problem
from llueve.errors import CheckpointError
from llueve.files import read_small
from llueve.model.checkpoints.locate import EMBEDDED_FILE
from llueve.model.weather_xl import RAIN_MM

CARD_FILE = EMBEDDED_FILE.with_suffix(".json")
MOST_CARD_BYTES = 2**20
FEWEST_PLACES = 3
"""Fewest held-out sites whose scores say something about a zone."""
AMOUNTS = len(RAIN_MM)


class ClimateZone(StrEnum):
    """A zone by the distance from the equator."""

    TROPICAL = "tropical"
    SUBTROPICAL = "subtropical"
    TEMPERATE = "temperate"
    POLAR = "polar"


LIMITS = {23.5: ClimateZone.TROPICAL, 35.0: ClimateZone.SUBTROPICAL, 55.0: ClimateZone.TEMPERATE}
"""Absolute latitude in degrees at which each zone ends; the zone beyond all of them is polar."""

Skill = Annotated[float, Field(ge=-1e6, le=1)] | None
Share = Annotated[float, Field(ge=0, le=1)] | None
Coefficient = Annotated[float, Field(ge=-100, le=100)]


def zone_at(latitude: float) -> ClimateZone:
    """The climate zone of a latitude in degrees, −90…90."""
    return next((zone for limit, zone in LIMITS.items() if abs(latitude) < limit), ClimateZone.POLAR)


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


class _Card(BaseModel):
    """The part of a model card that forecasts need; others may be added to the file."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    zones: list[ZoneSkill] = Field(max_length=len(ClimateZone))


def read_zones(path: Path | None = None) -> dict[ClimateZone, ZoneSkill]:
    """The verified zones in a model card, by default that of the weights in the package.

    Raises:
        CheckpointError: the file is missing, damaged, or lacks a value of `ZoneSkill`.
    """
    path = path or CARD_FILE
    if not path.exists():
        raise CheckpointError(f"{path}: the model card is missing, so the skill is unknown; install llueve again")
    content = read_small(path, MOST_CARD_BYTES)
    try:
        document = json.loads(content)
        if problem := tree_problem(document):
            raise ValueError(problem)
        zones = _Card.model_validate(document).zones
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the card"
        raise CheckpointError(f"{path}: {place}: {first['msg']}; install llueve again") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not the JSON of a model card ({error}); install llueve again") from error
    found = {each.zone: each for each in zones}
    if len(found) < len(zones):
        raise CheckpointError(f"{path}: zones: a zone has two entries; install llueve again")
    return found


def sigmoid(logit: float) -> float:
    """The probability of a logit, 1 / (1 + exp(−logit)), for a number of any size."""
    small = math.exp(-abs(logit))
    return 1 / (1 + small) if logit >= 0 else small / (1 + small)
