"""The explanation that the training loop left in an incident's folder: it had the steps before it at hand."""

import json
import logging
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llueve.errors import CheckpointError
from llueve.run import EXPLANATION, Run
from llueve.stability.causes import ADVICE, GATHERED, UNDAMAGED, Experiment, Explanation
from llueve.stability.incident.description import NotFinite
from llueve.stability.incident.reading import read_small

logger = logging.getLogger(__name__)

LARGEST = 2**20
"""Bytes of an `explanation.json`."""
MOST_CELLS = 1000
"""Cells, facts, or samples that are written; the incident itself holds all of them."""
ONLY_THEN = ("course", GATHERED, UNDAMAGED)
"""How the names begin of experiments with what an incident does not hold: the steps before, the data, the healthy state."""
PREFERRED = (
    "learning_rate",
    "missing_warmup",
    "exploding_gradient",
    "damaged_weights",
    "transient",
    "poisoned_average",
)
"""Causes that rest on what an incident does not hold: the course, the last healthy state, the moving average."""
CERTAIN = (
    "missing_input",
    "infinite_input",
    "sentinel_or_unit",
    "outlier_input",
    "corrupt_weights",
    "corrupt_buffer",
    "poisoned_moments",
)
"""Causes that the incident itself shows, whatever was written."""

StoredNumber = Annotated[tuple[Annotated[str, Field(max_length=1000)], list[int]], Field(strict=False)]
Number = Annotated[float, Field(allow_inf_nan=False)] | NotFinite


class StoredExperiment(BaseModel):
    """One line of the table."""

    model_config = ConfigDict(extra="forbid", strict=True)

    change: str = Field(min_length=1, max_length=1000)
    loss: Number
    gradient_norm: Number
    cures: bool


class StoredExplanation(BaseModel):
    """What is used of the file."""

    model_config = ConfigDict(extra="ignore", strict=True)

    cause: str
    experiments: list[StoredExperiment] = Field(max_length=1000)
    numbers: list[StoredNumber] = Field(default=[], max_length=100)

    @field_validator("cause")
    @classmethod
    def _known(cls, cause: str) -> str:
        if cause not in ADVICE:
            raise ValueError("is no known cause")
        return cause


def write_explanation(folder: Path, explanation: Explanation) -> None:
    """Keep an explanation beside the incident that it explains.

    Raises:
        RunError: it cannot be written.
    """
    content = explanation.as_dict()
    shortened = {name: content[name][:MOST_CELLS] for name in ("samples", "cells", "facts")}
    Run(folder).write_json(EXPLANATION, {**content, **shortened})


def read_explanation(folder: Path) -> StoredExplanation | None:
    """What was kept beside an incident; None if nothing was.

    Raises:
        CheckpointError: the file is damaged, too large, a link, or none of ours.
    """
    path = folder / EXPLANATION
    if not path.is_symlink() and not path.exists():
        return None
    try:
        return StoredExplanation.model_validate(json.loads(read_small(path, LARGEST)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise CheckpointError(f"{path}: is damaged ({where}: {first['msg']})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged ({type(error).__name__})") from None


def joined(own: Explanation, folder: Path) -> tuple[Explanation, str | None]:
    """An explanation with what the training loop knew besides; a damaged file is named, and not used.

    Returns:
        The explanation, and what is wrong with the file.
    """
    try:
        stored = read_explanation(folder)
    except CheckpointError as error:
        logger.warning("%s; it is not used", error)
        return own, str(error)
    if stored is None:
        return own, None
    known = {each.change for each in own.experiments}
    added = tuple(
        Experiment(each.change, float(each.loss), float(each.gradient_norm), each.cures)
        for each in stored.experiments
        if each.change.startswith(ONLY_THEN) and each.change not in known
    )
    only_in_memory = any(each.change == GATHERED and each.cures for each in stored.experiments)
    prefer = stored.cause in PREFERRED and (own.cause not in CERTAIN or only_in_memory)
    whole = Explanation(
        stored.cause if prefer else own.cause,
        own.trace,
        (*own.experiments, *added),
        own.samples,
        own.cells,
        own.facts,
        numbers=tuple((name, tuple(index)) for name, index in stored.numbers) if prefer else own.numbers,
    )
    return whole, None
