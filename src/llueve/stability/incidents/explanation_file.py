"""The explanation that the training wrote beside an incident, when it still had the steps before it."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llueve.errors import CheckpointError, RunError
from llueve.files import read_small, write_whole
from llueve.runs.directory import EXPLANATION
from llueve.stability.diagnosis import Cause, Change, Experiment, Explanation
from llueve.stability.diagnosis.causes import INPUT_CAUSES, STORED_CAUSES
from llueve.stability.diagnosis.explanation import RERUNS
from llueve.stability.incidents.format import NotFinite, damaged

logger = logging.getLogger(__name__)

LARGEST = 2**20
"""Most bytes of an `explanation.json`."""
MOST_CELLS = 1000
"""Most cells, facts or samples that are written; the incident itself holds all of them."""
TRAINING_CHANGES = (Change.GATHERED_AGAIN, Change.UNDAMAGED_WEIGHTS, Change.SAME_RERUN, Change.REBUILT, *RERUNS)
"""Changes that need the data, the steps before, or the last healthy state. An incident file does not hold these."""
RATE_CAUSES = (Cause.LEARNING_RATE, Cause.MISSING_WARMUP, Cause.EXPLODING_GRADIENT)
TRAINING_CAUSES = (*RATE_CAUSES, Cause.DAMAGED_WEIGHTS, Cause.TRANSIENT, Cause.POISONED_AVERAGE)
"""Causes that rest on facts which an incident file does not hold."""

StoredNumber = Annotated[tuple[Annotated[str, Field(max_length=1000)], list[int]], Field(strict=False)]
Number = Annotated[float, Field(allow_inf_nan=False)] | NotFinite


class StoredExperiment(BaseModel):
    """One experiment of the file."""

    model_config = ConfigDict(strict=True)

    change: Change
    detail: str = Field(max_length=1000)
    loss: Number
    gradient_norm: Number
    cures: bool


class StoredExplanation(BaseModel):
    """The part of the file that is used."""

    model_config = ConfigDict(strict=True)

    cause: Cause
    experiments: list[StoredExperiment] = Field(max_length=1000)
    numbers: list[StoredNumber] = Field(default=[], max_length=100)


def write_explanation(folder: Path, explanation: Explanation) -> None:
    """Write an explanation beside the incident that it explains.

    Raises:
        RunError: it cannot be written.
    """
    content = explanation.as_dict()
    shortened = {name: content[name][:MOST_CELLS] for name in ("samples", "cells", "facts")}
    text = json.dumps({**content, **shortened}, indent=2, allow_nan=False) + "\n"
    try:
        write_whole(folder / EXPLANATION, [text.encode()])
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror or error}); free the disk") from error


def with_stored(own: Explanation, folder: Path) -> tuple[Explanation, str | None]:
    """Add the findings of the training to an explanation; also returns the fault of a damaged file, which is not used."""
    path = folder / EXPLANATION
    if not path.is_symlink() and not path.exists():
        return own, None
    try:
        stored = StoredExplanation.model_validate_json(read_small(path, LARGEST))
    except (CheckpointError, ValidationError) as error:
        fault = str(error if isinstance(error, CheckpointError) else damaged(path, error))
        logger.warning("%s; it is not used", fault)
        return own, fault
    known = {(each.change, each.detail) for each in own.experiments}
    added = tuple(
        Experiment(each.change, each.detail, float(each.loss), float(each.gradient_norm), each.cures)
        for each in stored.experiments
        if each.change in TRAINING_CHANGES and (each.change, each.detail) not in known
    )
    whole = replace(own, experiments=(*own.experiments, *added))
    only_in_memory = any(each.change == Change.GATHERED_AGAIN and each.cures for each in stored.experiments)
    if stored.cause in TRAINING_CAUSES and (own.cause not in (*INPUT_CAUSES, *STORED_CAUSES) or only_in_memory):
        numbers = tuple((name, tuple(index)) for name, index in stored.numbers)
        whole = replace(whole, cause=stored.cause, numbers=numbers, rate_factor=None)
    return whole, None
