"""Explain one incident in the names of its data: sites, times and variables instead of indices."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llueve.stability.diagnosis import Evidence, Explanation, explain
from llueve.stability.incidents.explanation_file import with_stored
from llueve.stability.incidents.format import Incident, new_model
from llueve.stability.incidents.replay import device_for, recorded_circumstances


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


Cell = tuple[str, str, np.datetime64]
"""Variable, site and time."""


def cells_at_fault(cells: Iterable[Cell], step_hours: float) -> tuple[CellsAtFault, ...]:
    """Gather cells by variable and site, each once although several windows or incidents see it."""
    seen: dict[tuple[str, str], set[np.datetime64]] = defaultdict(set)
    for variable, site, time in cells:
        seen[variable, site].add(time)
    return tuple(CellsAtFault(*key, frozenset(times), step_hours) for key, times in sorted(seen.items()))


@dataclass(frozen=True)
class ExplainedIncident:
    """The explanation of an incident, with the names of its data."""

    incident: Incident
    explanation: Explanation
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
            "not_used": self.not_used,
        }


def explain_incident(incident: Incident) -> ExplainedIncident:
    """Find the cause of an incident by experiment (see `llueve.stability.diagnosis`).

    Findings of the training, which had the steps before, are added if they lie beside the incident.
    """
    about = incident.about
    # From the windows: if only cached features are bad, computing them again cures the step, as for a transient fault.
    step = incident.step.to(device_for(incident)).without_features()
    with recorded_circumstances(incident):
        own = explain(step, Evidence(new_model=lambda: new_model(about, about.train.seed)))
    return ExplainedIncident(incident, *with_stored(own, incident.folder))
