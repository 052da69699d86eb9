"""Explain one incident in the names of its data: sites, times and variables instead of indices."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llueve.errors import CheckpointError
from llueve.stability.diagnosis import Cause, Evidence, Explanation, Settings, explain
from llueve.stability.diagnosis.advice import advise
from llueve.stability.incidents.explanation_file import read_explanation, together
from llueve.stability.incidents.format import Incident, new_model
from llueve.stability.incidents.replay import device_for, differences, recorded_circumstances
from llueve.stability.language import Language, Words

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellsAtFault:
    """Cells of one variable at one site that a cause rests on."""

    variable: str
    site: str
    times: frozenset[np.datetime64]
    step_hours: float

    def as_dict(self) -> dict[str, Any]:
        """The cells for JSON."""
        first, last, stretches = str(min(self.times)), str(max(self.times)), self.stretches()
        span = {"first": first, "last": last, "count": len(self.times), "stretches": stretches}
        return {"variable": self.variable, "site": self.site, **span}

    def stretches(self) -> list[tuple[str, str]]:
        """First and last time of each run of consecutive steps."""
        moments = np.array(sorted(self.times))
        apart = np.diff(moments) > np.timedelta64(round(self.step_hours * 3600), "s")
        return [(str(each[0]), str(each[-1])) for each in np.split(moments, np.flatnonzero(apart) + 1)]


OTHER = Words(
    "the replay of this step alone supports {}; the training had the data and the steps before",
    "la repetición de este paso solo apoya {}; el entrenamiento tenía los datos y los pasos anteriores",
)
MACHINES = Words("; the circumstances differ: {}", "; las circunstancias son otras: {}")
Cell = tuple[str, str, np.datetime64]
"""Variable, site and time."""


def cells_at_fault(cells: Iterable[Cell], step_hours: float) -> tuple[CellsAtFault, ...]:
    """Gather cells by variable and site, each once although several windows or incidents see it."""
    seen: dict[tuple[str, str], set[np.datetime64]] = defaultdict(set)
    for variable, site, time in cells:
        seen[variable, site].add(time)
    return tuple(CellsAtFault(*key, frozenset(times), step_hours) for key, times in sorted(seen.items()))


@dataclass(frozen=True)
class OtherCause:
    """The cause that a replay here finds, where it is not the cause that the training found."""

    cause: Cause
    elsewhere: tuple[str, ...]
    """Differences between this machine and that of the training."""

    def sentence(self, language: Language = Language.ENGLISH) -> str:
        """The difference in words."""
        machines = MACHINES.of(language).format("; ".join(self.elsewhere)) if self.elsewhere else ""
        return OTHER.of(language).format(self.cause) + machines

    def as_dict(self) -> dict[str, Any]:
        """The difference for JSON."""
        words = {language: self.sentence(language) for language in Language}
        return {"cause": self.cause, "elsewhere": list(self.elsewhere), "words": words}


@dataclass(frozen=True)
class ExplainedIncident:
    """The explanation of an incident, with the names of its data."""

    incident: Incident
    explanation: Explanation
    """That of the training, if it wrote one; otherwise that of a replay here."""
    other: OtherCause | None = None
    """The cause that a replay here finds, if it is another one than the training found."""
    not_used: str | None = None
    """Fault of the explanation that the training wrote; None if that was read or is absent."""

    def named_cells(self) -> Iterator[Cell]:
        """Each cell at fault, once for each window that sees it."""
        about, steps = self.incident.about, self.incident.step.batch.x_BLC.shape[1]
        length = np.timedelta64(round(about.step_hours * 3600), "s")
        for sample, step, variable in self.explanation.cells:
            time = np.datetime64(about.times[sample], "s") - (steps - 1 - step) * length
            yield about.variables[variable][0], about.sites[sample], time

    @property
    def cells(self) -> tuple[CellsAtFault, ...]:
        """Cells at fault by variable and site."""
        return cells_at_fault(self.named_cells(), self.incident.about.step_hours)

    def as_dict(self) -> dict[str, Any]:
        """The explanation for JSON."""
        about, found = self.incident.about, self.explanation
        return {
            "incident": self.incident.number,
            "kind": about.kind,
            **found.as_dict(),
            "samples": [{"site": about.sites[row], "time": about.times[row]} for row in found.samples],
            "cells": [each.as_dict() for each in self.cells],
            "facts": [{"sample": sample, "fact": fact} for sample, fact in found.facts],
            "replay": None if self.other is None else self.other.as_dict(),
            "not_used": self.not_used,
        }


def explain_incident(incident: Incident) -> ExplainedIncident:
    """Return the explanation that the training wrote, or find the cause by experiment (see `llueve.stability.diagnosis`).

    The training had the data and the steps before; an incident holds one step. The experiments run here in any case. If they
    find another cause than the training, both are given.
    """
    about = incident.about
    settings = Settings(about.missing, about.model.pretrained != "none")
    # From the windows: if only cached features are bad, computing them again cures the step, as for a transient fault.
    step = incident.step.to(device_for(incident)).without_features()
    with recorded_circumstances(incident):
        here = explain(step, Evidence(lambda: new_model(about, about.train.seed), settings=settings))
        elsewhere = differences(incident, device_for(incident))
    try:
        kept = read_explanation(incident)
    except CheckpointError as error:
        logger.warning("%s; it is not used", error)
        return ExplainedIncident(incident, here, not_used=str(error))
    if kept is None:
        return ExplainedIncident(incident, here)
    if kept.cause == here.cause:
        return ExplainedIncident(incident, together(kept, here))
    advised = replace(kept, advice=advise(kept.cause, step, kept.experiments, settings))
    return ExplainedIncident(incident, advised, OtherCause(here.cause, elsewhere))
