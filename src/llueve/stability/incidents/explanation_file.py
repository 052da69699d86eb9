"""The explanation that the training wrote beside an incident, when it still had the steps before it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from llueve.config.tree_bounds import tree_problem
from llueve.errors import CheckpointError, RunError
from llueve.files import read_small, write_whole
from llueve.model.batch import Batch
from llueve.runs.directory import EXPLANATION
from llueve.stability.diagnosis import Cause, Change, Experiment, Explanation
from llueve.stability.incidents.format import Incident, NotFinite, damaged

LARGEST = 2**20
"""Most bytes of an `explanation.json`."""
MOST_CELLS = 1000
"""Most cells, facts or samples that are written; the incident itself holds all of them."""

StoredNumber = Annotated[tuple[Annotated[str, Field(max_length=1000)], list[int]], Field(strict=False)]
StoredCell = Annotated[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt], Field(strict=False)]
StoredFact = Annotated[tuple[NonNegativeInt, NonNegativeInt], Field(strict=False)]
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
    samples: list[NonNegativeInt] = Field(default=[], max_length=MOST_CELLS)
    cells: list[StoredCell] = Field(default=[], max_length=MOST_CELLS)
    facts: list[StoredFact] = Field(default=[], max_length=MOST_CELLS)
    numbers: list[StoredNumber] = Field(default=[], max_length=100)

    def problem(self, batch: Batch) -> str | None:
        """The first place that the batch does not have; None if it has all of them."""
        for name, places, shape in (
            ("samples", [(each,) for each in self.samples], batch.y_B.shape),
            ("cells", self.cells, batch.x_BLC.shape),
            ("facts", self.facts, batch.facts_BF.shape),
        ):
            for place in places:
                if any(index >= size for index, size in zip(place, shape, strict=True)):
                    return f"{name}: {list(place)} is not in a batch of {list(shape)}"
        return None


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


def read_explanation(incident: Incident) -> Explanation | None:
    """Read the explanation that the training wrote, without its trace; None if there is none.

    Raises:
        CheckpointError: it is damaged, or belongs to another incident.
    """
    path = incident.folder / EXPLANATION
    if not path.is_symlink() and not path.exists():
        return None
    text = read_small(path, LARGEST)
    try:
        problem = tree_problem(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged ({error})") from error
    if problem:
        raise CheckpointError(f"{path}: is damaged ({problem})")
    try:
        stored = StoredExplanation.model_validate_json(text)
    except ValidationError as error:
        raise damaged(path, error) from None
    if problem := stored.problem(incident.step.batch):
        raise CheckpointError(f"{path}: belongs to another incident ({problem})")
    return Explanation(
        cause=stored.cause,
        experiments=tuple(
            Experiment(each.change, each.detail, float(each.loss), float(each.gradient_norm), each.cures)
            for each in stored.experiments
        ),
        samples=tuple(stored.samples),
        cells=tuple(stored.cells),
        facts=tuple(stored.facts),
        numbers=tuple((name, tuple(index)) for name, index in stored.numbers),
    )


def together(kept: Explanation, here: Explanation) -> Explanation:
    """The explanation of the training, with what a replay of the same cause adds to it: all cells, and the origin."""
    known = {(each.change, each.detail) for each in kept.experiments}
    more = [each for each in here.experiments if (each.change, each.detail) not in known]
    return replace(
        here,
        experiments=(*kept.experiments, *more),
        samples=here.samples or kept.samples,
        cells=here.cells or kept.cells,
        facts=here.facts or kept.facts,
        numbers=here.numbers or kept.numbers,
    )
