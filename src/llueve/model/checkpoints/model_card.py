"""The model card of a pre-trained encoder: its origin, sizes, scores and recalibration, checked when it is read."""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from llueve.config.section import Section
from llueve.config.tree_bounds import tree_problem
from llueve.errors import CheckpointError, listed
from llueve.files import read_small
from llueve.model.checkpoints.climate_zone import ClimateZone

LARGEST = 2**24
"""Most bytes of a model card."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Skill = Annotated[float, Field(le=1)] | None
"""A Brier skill score; None if it is undefined."""


class CorpusGroup(Section):
    """One file of the corpus."""

    group: str
    sites: Count
    held_out: Count
    """Number of these sites that the training never saw."""
    hours: Count
    window_share: Share
    """Its share of the training windows."""
    source: str | None
    licence: str | None
    """From `PROVENANCE.md` beside the files; None if it does not name them."""


class TrainingFacts(Section):
    """The training in numbers."""

    seed: Count
    windows: Count
    epochs: Count
    best_epoch: Count
    steps: Count
    seconds: float = Field(ge=0)
    """Computing time of the epochs, without reading and scoring."""
    skipped: Count
    """Samples that were in no applied step of the best epoch."""
    quarantined: Count


class SkillByAmount(Section):
    """Skill of the probability of one amount of rain in the 24 hours after the issue time."""

    mm: float = Field(gt=0)
    windows: Count
    """Windows whose outcome and climatology are known."""
    events: Count
    brier: Share | None
    skill: Skill
    """Brier skill score against the climatology of the same site (EPC15)."""
    auc: Share | None
    sites_judged: Count
    """Sites with at least 20 events and 20 other windows."""
    sites_better: Count
    """Those of them with a positive skill."""


class GroupScores(Section):
    """Scores at the sites of one group that were held out."""

    group: str
    """Name of the file; `all` for all groups together, `far from training` for sites at least 50 km from the training."""
    sites: Count
    amounts: list[SkillByAmount]


class QuantityError(Section):
    """Mean absolute error of the next 24 hours of one quantity at held-out sites, in the units of the encoder."""

    quantity: str
    values: Count
    """Number of hours that all three forecasts can be compared at."""
    model: float | None
    persistence: float | None
    """The same hour of the day before the issue time."""
    climatology: float | None
    """The mean of the same month and hour at the same site."""


class Recalibration(Section):
    """Map of the log-odds z of one amount in one zone: the probability is 1 / (1 + exp(−(slope · z + shift)))."""

    mm: float = Field(gt=0)
    slope: float
    shift: float
    windows: Count
    """Windows at training sites that it was fitted on."""
    events: Count
    held_out: SkillByAmount
    """Before the map, at the held-out sites of the zone."""
    recalibrated: SkillByAmount
    """After it."""


class ZoneCard(Section):
    """A climate zone."""

    zone: ClimateZone
    sites: Count
    """Training sites with windows whose rain is known."""
    held_out: Count
    """Held-out sites of the same kind."""
    amounts: list[Recalibration]
    """Only amounts with at least 20 events and 20 other windows at training sites."""


class ModelCard(Section):
    """The content of `model_card.json`."""

    format: Literal[1] = 1
    llueve: str
    """Version of llueve."""
    width: Count
    layers: Count
    heads: Count
    feed_forward: Count
    days: Count
    """Most days that the encoder sees."""
    quantities: list[str]
    parameters: Count
    storage: Literal["float16", "float32"]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the file `encoder.safetensors`."""
    corpus: list[CorpusGroup]
    left_out: dict[str, str]
    """Files of the corpus that were not used: name → reason."""
    corpus_sha256: str
    """Hash of everything that the training could see of the corpus."""
    training: TrainingFacts
    scores: list[GroupScores]
    errors: list[QuantityError]
    zones: list[ZoneCard]
    limits: list[str]
    """Cautions about the numbers."""
    command: str
    """The command that makes the same encoder, with the `config.toml` beside this card."""

    @property
    def overall(self) -> GroupScores:
        """The scores of all groups together."""
        return self.scores[0]


def read_card(path: Path) -> ModelCard:
    """Read a model card.

    Raises:
        CheckpointError: it cannot be read, or is damaged.
    """
    text = read_small(path, LARGEST)
    try:
        content = json.loads(text)
        if problem := tree_problem(content):
            raise ValueError(problem)
        return ModelCard.model_validate(content)
    except ValidationError as error:
        keys = listed([".".join(map(str, each["loc"])) or "its text" for each in error.errors()])
        raise CheckpointError(f"{path}: has missing, unknown or invalid entries: {keys}; restore it") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged ({error}); restore it") from error
