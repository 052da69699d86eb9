"""Explain all incidents of a run together: their number, their causes, and the cells that these rest on."""

from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from llueve.errors import CheckpointError, RunError
from llueve.files import read_small
from llueve.runs.directory import HISTORY
from llueve.stability.diagnosis import Cause, Change, Explanation
from llueve.stability.incidents.explain import CellsAtFault, ExplainedIncident, cells_at_fault, explain_incident
from llueve.stability.incidents.parse import kept_incidents, load_incident
from llueve.stability.language import Language, Words

LARGEST_HISTORY = 64 * 2**20
"""Most bytes of a `history.jsonl`."""
WITH_OWN_DETAIL = (Change.WITHOUT_SAMPLES, Change.UNDAMAGED_WEIGHTS)
"""Changes whose detail differs from incident to incident, so that it is left out of the sums."""

REFUSED = Words(
    "{refused} of {steps} steps of {epochs} {unit} were refused; ",
    "{refused} de {steps} pasos de {epochs} {unit} fueron rechazados; ",
)
EPOCH = (Words("epoch", "época"), Words("epochs", "épocas"))
KEPT = (Words("1 was kept", "se guardó 1"), Words("{} were kept", "se guardaron {}"))
"""Each for one and for several."""
ALL_BY = Words(", all of them: {}", ", todos por: {}")


class HistoryLine(BaseModel):
    """Counts of one epoch in the history."""

    model_config = ConfigDict(strict=True)

    epoch: NonNegativeInt
    steps: NonNegativeInt
    refused: NonNegativeInt


class ChangeCounts(NamedTuple):
    """One change over all incidents."""

    change: Change
    detail: str
    tried: int
    """Incidents in which the experiment ran."""
    cured: int

    def words(self, language: Language = Language.ENGLISH) -> str:
        """The change in words."""
        return self.change.in_words(self.detail, language).rstrip(": ")

    def as_dict(self) -> dict[str, Any]:
        """The counts for JSON."""
        return {**self._asdict(), "words": {language: self.words(language) for language in Language}}


@dataclass(frozen=True)
class ExplainedRun:
    """The explanations of all usable incidents of a run."""

    counts: dict[str, int] | None
    """Number of `epochs`, `steps` and `refused` steps; None if the history does not hold them."""
    incidents: tuple[ExplainedIncident, ...]
    not_used: tuple[str, ...]
    """Faults of the other incidents, and of explanations that the training wrote."""

    @property
    def causes(self) -> dict[Cause, int]:
        """Incidents by cause, the most frequent first."""
        return dict(Counter(each.explanation.cause for each in self.incidents).most_common())

    def example(self, cause: Cause) -> Explanation:
        """The explanation of the first incident with a cause."""
        return next(each.explanation for each in self.incidents if each.explanation.cause == cause)

    @property
    def cells(self) -> tuple[CellsAtFault, ...]:
        """Cells at fault by variable and site, each once although several incidents see it."""
        cells = chain.from_iterable(each.named_cells() for each in self.incidents)
        return cells_at_fault(cells, self.incidents[0].incident.about.step_hours)

    @property
    def changes(self) -> tuple[ChangeCounts, ...]:
        """The number of incidents in which each change was tried, and in which it cured the step."""
        cures: dict[tuple[Change, str], dict[int, bool]] = defaultdict(dict)
        for each in self.incidents:
            for done in each.explanation.experiments:
                detail = "" if done.change in WITH_OWN_DETAIL else done.detail
                cures[done.change, detail][each.incident.number] = done.cures
        return tuple(ChangeCounts(*key, len(found), sum(found.values())) for key, found in cures.items())

    def sentence(self, language: Language = Language.ENGLISH) -> str:
        """Number of refused and kept steps, and their causes."""
        causes, count = self.causes, len(self.incidents)
        begin = ""
        if self.counts is not None:
            unit = EPOCH[self.counts["epochs"] != 1].of(language)
            begin = REFUSED.of(language).format(**self.counts, unit=unit)
        kept = KEPT[count != 1].of(language).format(count)
        if len(causes) == 1:
            cause = next(iter(causes))
            return begin + kept + (ALL_BY.of(language).format(cause) if count > 1 else f": {cause}")
        return begin + kept + ": " + ", ".join(f"{cause} {number}" for cause, number in causes.items())

    def as_dict(self) -> dict[str, Any]:
        """The explanation for JSON."""
        causes = self.causes.items()
        return {
            "sentence": {language: self.sentence(language) for language in Language},
            "history": self.counts,
            "causes": [
                {"cause": each, "incidents": count, "advice": self.example(each).words._asdict()}
                for each, count in causes
            ],
            "cells": [each.as_dict() for each in self.cells],
            "experiments": [each.as_dict() for each in self.changes],
            "incidents": [
                {"incident": each.incident.number, "cause": each.explanation.cause} for each in self.incidents
            ],
            "not_used": list(self.not_used),
        }


def explain_run(directory: str | Path) -> ExplainedRun:
    """Explain every incident of a run.

    Raises:
        RunError: the run has no incident. CheckpointError: none of them can be used.
    """
    explained: list[ExplainedIncident] = []
    not_used: list[str] = []
    for number in kept_incidents(directory):
        try:
            explained.append(explain_incident(load_incident(directory, number)))
        except (CheckpointError, RunError) as error:
            not_used.append(str(error))
    if not explained:
        raise CheckpointError(f"{directory}: none of its {len(not_used)} incidents can be used: {not_used[0]}")
    not_used += [each.not_used for each in explained if each.not_used]
    return ExplainedRun(_step_counts(Path(directory) / HISTORY), tuple(explained), tuple(not_used))


def _step_counts(path: Path) -> dict[str, int] | None:
    found = []
    with suppress(CheckpointError):  # no history, or an unreadable one
        for line in read_small(path, LARGEST_HISTORY).decode(errors="replace").splitlines():
            with suppress(ValidationError):  # a line without counts, or a torn one
                found.append(HistoryLine.model_validate_json(line))
    if not found:
        return None
    sums = {name: sum(getattr(each, name) for each in found) for name in ("steps", "refused")}
    return {"epochs": len({each.epoch for each in found}), **sums}
