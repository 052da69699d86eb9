"""Incidents and their explanations as tables for people.

The words come from files that anyone may have written, so characters that are not printable are shown as �.
"""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llueve.errors import listed
from llueve.stability.diagnosis import Explanation
from llueve.stability.incidents.explain import ExplainedIncident
from llueve.stability.incidents.explain_run import ExplainedRun
from llueve.stability.incidents.format import Description
from llueve.stability.incidents.parse import ListedIncident
from llueve.stability.language import Language, Words

SHOWN = 6
"""Most facts, numbers or stretches of time that an explanation shows."""
CAUSE = Words("Cause", "Causa")
ORIGIN = Words("Origin", "Origen")
CELLS = Words("Cells at fault", "Celdas culpables")
SAMPLES = Words("Samples at fault", "Muestras culpables")
FACTS = Words("Facts at fault (sample: number)", "Datos culpables (muestra: número)")
NUMBERS = Words("Stored numbers at fault", "Números guardados culpables")
REPLAY = Words("Replay", "Repetición")
NOT_USED = Words("Not used", "No usado")
VARIABLE, SITE, COUNT = Words("variable", "variable"), Words("site", "sitio"), Words("count", "cantidad")
CELL_COLUMNS = (VARIABLE, SITE, Words("first", "primera"), Words("last", "última"), COUNT)
STRETCH_COLUMNS = (VARIABLE, SITE, COUNT, Words("stretches", "tramos"))
CHANGE = Words("under this change alone", "con este único cambio")
LOSS, NORM = Words("loss", "pérdida"), Words("gradient norm", "norma del gradiente")
EXPERIMENT_COLUMNS = (CHANGE, LOSS, NORM, Words("cures it", "lo cura"))
CHANGE_COLUMNS = (CHANGE, Words("tried", "probado"), Words("cured", "curó"))
CURES = (Words("no", "no"), Words("yes", "sí"))
MORE = Words("{} and {} more", "{} y {} más")


def render_list(incidents: Sequence[ListedIncident]) -> Table:
    """A table with one row per incident."""
    table = Table("N", "epoch", "step", "kind", "reason")
    for each in incidents:
        cells = ("", "", "unusable", each.fault or "")
        if (about := each.about) is not None:
            cells = (str(about.epoch), str(about.step), about.kind, about.reason)
        table.add_row(str(each.number), *map(plain, cells))
    return table


def render_description(about: Description) -> Table:
    """A table with one row per fact of an incident."""
    machine = about.machine
    samples = [f"{site} at {_minute(time)}" for site, time in zip(about.sites, about.times, strict=True)]
    rows = {
        "kind": about.kind,
        "reason": about.reason,
        "when": f"epoch {about.epoch}, step {about.step}",
        "loss": f"{about.loss.value} (bits {about.loss.bits})",
        "gradient norm": f"{about.gradient_norm.value} (bits {about.gradient_norm.bits})",
        "learning rates": ", ".join(f"{float(rate):g}" for rate in about.rates),
        "precision": f"{about.precision} on {about.device}, {machine.threads} thread(s)",
        "model": f"{about.model.architecture}, width {about.model.width}, head {about.model.head}",
        "variables": listed([name for name, _ in about.variables], 10),
        "samples": f"{len(samples)}: {listed(samples, 10)}",
        "machine": f"{machine.processor} ({machine.instructions}), {machine.cores} cores, {machine.platform}",
        "versions": ", ".join(f"{name} {version}" for name, version in about.versions.items()),
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, plain(value))
    return table


def render_explanation(explained: ExplainedIncident, language: Language = Language.ENGLISH) -> Group:
    """The explanation of one incident."""
    found, about = explained.explanation, explained.incident.about
    facts = (
        (ORIGIN, found.trace and found.trace.sentence(language)),
        (SAMPLES, "; ".join(f"{about.sites[row]}, {_minute(about.times[row])}" for row in found.samples)),
        (FACTS, _listed([f"{sample}: {fact}" for sample, fact in found.facts], language)),
        (NUMBERS, _listed([f"{name}{list(index)}" for name, index in found.numbers], language)),
    )
    lines = [_cause(found, language, "bold")]
    lines += [plain(f"{REPLAY.of(language)}: {explained.other.sentence(language)}.")] if explained.other else []
    lines += [plain(f"{NOT_USED.of(language)}: {explained.not_used}")] if explained.not_used else []
    lines += [plain(f"{label.of(language)}: {text}.") for label, text in facts if text]
    cells = _table(CELL_COLUMNS, language, CELLS)
    for each in explained.cells:
        first, last = min(each.times), max(each.times)
        cells.add_row(plain(each.variable), plain(each.site), _minute(first), _minute(last), str(len(each.times)))
    experiments = _table(EXPERIMENT_COLUMNS, language)
    for experiment in found.experiments:
        values = f"{experiment.loss:.4g}", f"{experiment.gradient_norm:.4g}", CURES[experiment.cures].of(language)
        experiments.add_row(plain(experiment.words(language)), *values)
    return Group(*lines, *([cells] if cells.rows else []), experiments)


def render_run(explained: ExplainedRun, language: Language = Language.ENGLISH) -> Group:
    """The explanations of all incidents of a run."""
    lines = [Text(f"{explained.sentence(language)}.", style="bold")]
    lines += [_cause(explained.example(cause), language) for cause in explained.causes]
    lines += [plain(f"{NOT_USED.of(language)}: {each}") for each in explained.not_used]
    cells = _table(STRETCH_COLUMNS, language, CELLS)
    for each in explained.cells:
        stretches = [(_minute(first), _minute(last)) for first, last in each.stretches()]
        spans = [first if first == last else f"{first} – {last}" for first, last in stretches]
        cells.add_row(plain(each.variable), plain(each.site), str(len(each.times)), _listed(spans, language))
    table = _table(CHANGE_COLUMNS, language)
    for change in explained.changes:
        table.add_row(plain(change.words(language)), str(change.tried), str(change.cured))
    return Group(*lines, *([cells] if cells.rows else []), table)


def plain(text: str) -> Text:
    """Text without markup and without characters that control a terminal."""
    return Text("".join(letter if letter.isprintable() else "\ufffd" for letter in text), overflow="fold")


def _listed(items: Sequence[str], language: Language) -> str:
    shown = ", ".join(items[:SHOWN])
    return shown if len(items) <= SHOWN else MORE.of(language).format(shown, len(items) - SHOWN)


def _minute(time: object) -> str:
    """A time as people read it: `2022-01-02 07:00`."""
    return str(time)[:16].replace("T", " ")


def _cause(found: Explanation, language: Language, style: str = "") -> Text:
    return Text(f"{CAUSE.of(language)}: {found.cause}: {found.words.of(language)}.", style=style)


def _table(columns: Sequence[Words], language: Language, title: Words | None = None) -> Table:
    return Table(*(column.of(language) for column in columns), title=title and title.of(language), title_justify="left")
