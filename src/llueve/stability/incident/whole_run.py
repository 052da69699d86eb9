"""All refused steps of a run explained together: how many there were, by which causes, and which cells they rest on."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from llueve.errors import CheckpointError, RunError, listed
from llueve.run import HISTORY
from llueve.stability.causes import ADVICE
from llueve.stability.incident.description import numbers_of
from llueve.stability.incident.explaining import WORDS, Language, Told, explain_incident
from llueve.stability.incident.reading import load_incident, read_small
from llueve.stability.incident.render import plain

LARGEST_HISTORY = 64 * 2**20
"""Bytes of a `history.jsonl`."""
SHOWN = 6
"""Stretches of one variable that a table shows."""
LEFT_OUT = "without samples"

TITLES = {
    "stretches": ("stretches", "tramos"),
    "tried": ("tried", "probado"),
    "cured": ("cured", "curó"),
}


@dataclass(frozen=True)
class Counted:
    """What the history tells of a run."""

    epochs: int
    steps: int
    refused: int


@dataclass(frozen=True)
class BlamedInRun:
    """Cells of one variable at one site that some cause rests on."""

    variable: str
    site: str
    first: str
    last: str
    count: int
    """Different times."""
    stretches: tuple[tuple[str, str], ...]
    """First and last time of each run of consecutive steps."""


@dataclass(frozen=True)
class Change:
    """One experiment over all incidents."""

    change: str
    tried: int
    """Incidents in which it was run."""
    cured: int


@dataclass(frozen=True)
class ToldRun:
    """The explanations of all incidents of a run that can be used."""

    counted: Counted | None
    """None if the history does not tell."""
    told: tuple[Told, ...]
    unusable: tuple[str, ...]
    """What is wrong with the others."""

    @property
    def causes(self) -> dict[str, int]:
        """Incidents by cause, the most frequent first."""
        return dict(Counter(each.explanation.cause for each in self.told).most_common())

    @property
    def blamed(self) -> tuple[BlamedInRun, ...]:
        """Cells by variable and site, each time once though several incidents see it."""
        merged: dict[tuple[str, str], set[np.datetime64]] = defaultdict(set)
        for each in self.told:
            for key, times in each.times.items():
                merged[key] |= times
        hours = self.told[0].incident.about.step_hours if self.told else 1.0
        return tuple(_blamed(*key, sorted(times), hours) for key, times in sorted(merged.items()))

    @property
    def changes(self) -> tuple[Change, ...]:
        """Each experiment, in how many incidents it was run, and in how many it cured."""
        tried: Counter[str] = Counter()
        cured: Counter[str] = Counter()
        for each in self.told:
            experiments = {_kind_of(one.change): one.cures for one in each.explanation.experiments}
            tried.update(experiments.keys())
            cured.update(change for change, cures in experiments.items() if cures)
        return tuple(Change(change, number, cured[change]) for change, number in tried.items())

    def sentence(self, language: Language = "en") -> str:
        """How much was refused and kept, and by which causes."""
        kept = len(self.told)
        causes = self.causes
        if language == "en":
            of = "all of them: " if len(causes) == 1 and kept > 1 else ""
            what = f"{kept} {'was' if kept == 1 else 'were'} kept"
        else:
            of = "todos por: " if len(causes) == 1 and kept > 1 else ""
            what = "se guardó 1" if kept == 1 else f"se guardaron {kept}"
        named = (
            next(iter(causes)) if len(causes) == 1 else ", ".join(f"{name} {count}" for name, count in causes.items())
        )
        what += f"{', ' if of else ': '}{of}{named}" if causes else ""
        return what if self.counted is None else f"{_refused(self.counted, language)}; {what}"

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "sentence": {"en": self.sentence("en"), "es": self.sentence("es")},
            "history": None if self.counted is None else vars(self.counted),
            "causes": [
                {"cause": cause, "incidents": count, "advice": {"en": ADVICE[cause][0], "es": ADVICE[cause][1]}}
                for cause, count in self.causes.items()
            ],
            "cells": [vars(each) for each in self.blamed],
            "experiments": [vars(each) for each in self.changes],
            "incidents": [{"incident": each.incident.number, "cause": each.explanation.cause} for each in self.told],
            "not_used": list(self.unusable),
        }


def explain_run(directory: str | Path) -> ToldRun:
    """Explain every incident of a run.

    Raises:
        RunError: there is none. CheckpointError: none of them can be used.
    """
    numbers = numbers_of(Path(directory))
    if not numbers:
        raise RunError(f"{directory}: has no incidents: no step of this run was refused, or none was kept")
    told: list[Told] = []
    unusable: list[str] = []
    for number in numbers:
        try:
            told.append(explain_incident(load_incident(directory, number)))
        except (CheckpointError, RunError) as error:
            unusable.append(str(error))
    if not told:
        raise CheckpointError(f"{directory}: none of its {len(numbers)} incidents can be used: {unusable[0]}")
    unusable += [each.damaged for each in told if each.damaged]
    return ToldRun(_count(Path(directory) / HISTORY), tuple(told), tuple(unusable))


def render_run(told: ToldRun, language: Language = "en") -> Group:
    """The explanations as a person reads them."""
    pick = 0 if language == "en" else 1
    words = {key: each[pick] for key, each in {**WORDS, **TITLES}.items()}
    lines = [Text(f"{told.sentence(language)}.", style="bold")]
    lines += [Text(f"{words['cause']}: {cause}: {ADVICE[cause][pick]}.") for cause in told.causes]
    lines += [plain(f"{words['unusable']}: {each}") for each in told.unusable]
    columns = (words[key] for key in ("variable", "site", "count", "stretches"))
    cells = Table(*columns, title=words["cells"], title_justify="left")
    for each in told.blamed:
        spans = listed([first if first == last else f"{first} – {last}" for first, last in each.stretches], SHOWN)
        cells.add_row(plain(each.variable), plain(each.site), str(each.count), spans)
    table = Table(words["change"], words["tried"], words["cured"])
    for change in told.changes:
        table.add_row(plain(change.change), str(change.tried), str(change.cured))
    return Group(*lines, *([cells] if told.blamed else []), table)


def _refused(counted: Counted, language: Language) -> str:
    numbers = f"{counted.refused:d} {'of' if language == 'en' else 'de'} {counted.steps:d}"
    plural = "s" if counted.epochs != 1 else ""
    if language == "en":
        return f"{numbers} steps of {counted.epochs} epoch{plural} were refused"
    return f"{numbers} pasos de {counted.epochs} época{plural} fueron rechazados"


def _kind_of(change: str) -> str:
    """Changes that differ from incident to incident under one name."""
    return LEFT_OUT if change.startswith(LEFT_OUT) else change.partition(": ")[0]


def _blamed(variable: str, site: str, times: list[np.datetime64], step_hours: float) -> BlamedInRun:
    moments = np.array(times)
    apart = np.diff(moments) > np.timedelta64(round(step_hours * 3600), "s")
    stretches = tuple((str(each[0]), str(each[-1])) for each in np.split(moments, np.flatnonzero(apart) + 1))
    return BlamedInRun(variable, site, str(times[0]), str(times[-1]), len(times), stretches)


def _count(path: Path) -> Counted | None:
    """Sums over the lines of the history that tell steps and refused steps."""
    try:
        lines = read_small(path, LARGEST_HISTORY).decode(errors="replace").splitlines()
    except CheckpointError:
        return None
    epochs, steps, refused = set(), 0, 0
    for record in _records(lines):
        numbers = [record.get(name) for name in ("epoch", "steps", "refused")]
        if all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in numbers):
            epochs.add(numbers[0])
            steps, refused = steps + int(numbers[1] or 0), refused + int(numbers[2] or 0)
    return Counted(len(epochs), steps, refused) if epochs else None


def _records(lines: Iterable[str]) -> Iterable[dict[str, Any]]:
    """Each line that is a JSON object; the last one may be torn."""
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record
