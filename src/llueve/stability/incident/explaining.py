"""The cause of an incident, in the names of its data: sites, times and variables instead of indices."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from llueve.errors import listed
from llueve.model.classifier import TimerXLForClassification
from llueve.saved import build_classifier, build_encoder
from llueve.stability.causes import ADVICE, Explanation, Step, explain
from llueve.stability.incident.description import Incident
from llueve.stability.incident.render import plain
from llueve.stability.incident.replay import as_it_was, device_for
from llueve.stability.incident.stored import joined

Language = Literal["en", "es"]

WORDS = {
    "cause": ("Cause", "Causa"),
    "born": ("Born", "Origen"),
    "cells": ("Cells to blame", "Celdas culpables"),
    "samples": ("Samples to blame", "Muestras culpables"),
    "facts": ("Facts to blame (sample: number)", "Datos culpables (muestra: número)"),
    "numbers": ("Numbers of the memory to blame", "Números de la memoria culpables"),
    "variable": ("variable", "variable"),
    "site": ("site", "sitio"),
    "first": ("first", "primera"),
    "last": ("last", "última"),
    "count": ("count", "cantidad"),
    "unusable": ("Not used", "No usado"),
    "change": ("under this change alone", "con este único cambio"),
    "loss": ("loss", "pérdida"),
    "norm": ("gradient norm", "norma del gradiente"),
    "cures": ("cures it", "lo cura"),
    "yes": ("yes", "sí"),
    "no": ("no", "no"),
}


@dataclass(frozen=True)
class Blamed:
    """Cells of one variable at one site that the cause rests on."""

    variable: str
    site: str
    first: str
    last: str
    count: int
    """Different times."""


@dataclass(frozen=True)
class Told:
    """An explanation with the names of what it speaks of."""

    incident: Incident
    explanation: Explanation
    blamed: tuple[Blamed, ...]
    times: Mapping[tuple[str, str], frozenset[np.datetime64]]
    """Of the cells to blame, by variable and site."""
    damaged: str | None = None
    """What is wrong with the explanation that the training loop left."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        about = self.incident.about
        return {
            "incident": self.incident.number,
            "kind": about.kind,
            **self.explanation.as_dict(),
            "samples": [{"site": about.sites[row], "time": about.times[row]} for row in self.explanation.samples],
            "cells": [vars(each) for each in self.blamed],
            "facts": [{"sample": sample, "fact": fact} for sample, fact in self.explanation.facts],
            "not_used": self.damaged,
        }


def explain_incident(incident: Incident) -> Told:
    """Find the cause of an incident by replaying it under single changes; see `llueve.stability.causes`.

    What the training loop found out with the steps before it, and left beside the incident, is added.
    """
    about, device = incident.about, device_for(incident)

    def fresh() -> TimerXLForClassification:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(about.train.seed)  # of the processor alone, where new models are made
            model = build_classifier(
                build_encoder(about.model), about.model, len(about.variables), about.facts, len(about.classes)
            )
        return model.train(about.mode == "train")

    with as_it_was(incident):
        explanation = explain(
            Step(
                model=incident.build_model().to(device),
                # From the windows: features that alone are bad are then cured by computing them again, as a transient fault.
                batch=incident.batch.without_features().to(device),
                config=about.train,
                precision=incident.precision,
                random_state=incident.random_state,
                kind=about.kind,
                moments=incident.optimiser,
                rates=tuple(float(rate) for rate in about.rates),
                fresh=fresh,
                recorded_norm=about.gradient_norm.number,
            )
        )
    whole, damaged = joined(explanation, incident.folder)
    times = _times(incident, whole)
    blamed = tuple(
        Blamed(variable, site, str(min(seen)), str(max(seen)), len(seen)) for (variable, site), seen in times.items()
    )
    return Told(incident, whole, blamed, times, damaged)


def _times(incident: Incident, explanation: Explanation) -> dict[tuple[str, str], frozenset[np.datetime64]]:
    """Times of the cells to blame by variable and site, each once though several windows see it."""
    about, steps = incident.about, incident.batch.x_BLC.shape[1]
    hour = np.timedelta64(round(about.step_hours * 3600), "s")
    seen: dict[tuple[str, str], set[np.datetime64]] = defaultdict(set)
    for sample, step, variable in explanation.cells:
        time = np.datetime64(about.times[sample], "s") - (steps - 1 - step) * hour
        seen[about.variables[variable][0], about.sites[sample]].add(time)
    return {key: frozenset(times) for key, times in sorted(seen.items())}


def render_explanation(told: Told, language: Language = "en") -> Group:
    """The explanation as a person reads it."""
    pick = 0 if language == "en" else 1
    words = {key: each[pick] for key, each in WORDS.items()}
    found = told.explanation
    lines = [Text(f"{words['cause']}: {found.cause}: {ADVICE[found.cause][pick]}.", style="bold")]
    if told.damaged:
        lines.append(plain(f"{words['unusable']}: {told.damaged}"))
    if found.trace is not None:
        lines.append(Text(f"{words['born']}: {found.trace.sentence()}."))
    if found.samples:
        about = told.incident.about
        named = "; ".join(f"{about.sites[row]}, {about.times[row]}" for row in found.samples)
        lines.append(plain(f"{words['samples']}: {named}."))
    if found.facts:
        lines.append(Text(f"{words['facts']}: {listed([f'{sample}: {fact}' for sample, fact in found.facts])}."))
    if found.numbers:
        lines.append(plain(f"{words['numbers']}: {listed([f'{name}{list(index)}' for name, index in found.numbers])}."))
    columns = (words[key] for key in ("variable", "site", "first", "last", "count"))
    cells = Table(*columns, title=words["cells"], title_justify="left")
    for each in told.blamed:
        cells.add_row(plain(each.variable), plain(each.site), each.first, each.last, str(each.count))
    table = Table(words["change"], words["loss"], words["norm"], words["cures"])
    for experiment in found.experiments:
        cures = words["yes"] if experiment.cures else words["no"]
        table.add_row(plain(experiment.change), f"{experiment.loss:.4g}", f"{experiment.gradient_norm:.4g}", cures)
    return Group(*lines, *([cells] if told.blamed else []), table)
