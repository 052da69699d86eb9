"""The verdict on a model beside its references: a code, one sentence with its numbers, and a table of the scores."""

from collections.abc import Mapping
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from llueve.samples.periods import FEW_EVENTS
from llueve.verification.bootstrap import FEWEST_BLOCKS

VerdictCode = Literal["beats", "ties", "does_not_beat", "too_short", "too_few_events"]

_COLUMNS = (
    # key, heading, True if more is better
    ("brier", "Brier", False),
    ("bss", "BSS", True),
    ("log_score", "log score", False),
    ("auc", "AUC", True),
    ("accuracy", "accuracy", True),
    ("f1", "F1", True),
)


def verdict(found: Mapping[str, Any]) -> tuple[VerdictCode, str]:
    """Code of the verdict and one sentence with its numbers; `found` is the content of `verification.json`."""
    comparison, model = found["comparison"], found["model"]
    cautions = {each["code"]: each["message"] for each in found["cautions"]}
    if (few := cautions.pop(FEW_EVENTS, None)) is not None:
        return "too_few_events", _with_cautions(f"No verdict: {few}.", cautions)
    code: VerdictCode = "too_short"
    if (interval := comparison["interval"]) is not None:
        code = "beats" if interval[0] > 0 else "does_not_beat" if interval[1] < 0 else "ties"
    reference = _words(comparison["best_reference"])
    best = f"{reference}, the best of the four references"
    claim = {
        "beats": f"The model beats {best}:",
        "ties": f"The model ties with {best}:",
        "does_not_beat": f"The model does not beat {best}:",
        "too_short": (
            f"The {found['part']} period is too short to tell whether the model beats {best}: it has "
            f"{comparison['blocks']} blocks of {comparison['block_days']} days where {FEWEST_BLOCKS} are needed;"
        ),
    }[code]
    scores = f"Brier {model['brier']:.4f} against {found['references'][comparison['best_reference']]['brier']:.4f}"
    if comparison["skill_interval"] is not None:
        low, high = comparison["skill_interval"]
        skill = f"skill relative to {reference} {comparison['skill_over_best']:+.3f}"
        scores += f"; {skill} (95 % interval {low:+.3f} to {high:+.3f})"
    elif interval is not None:
        low, high = interval
        difference = f"Brier score of {reference} minus that of the model {comparison['brier_difference']:+.4f}"
        scores += f"; {difference} (95 % interval {low:+.4f} to {high:+.4f})"
    bss = "undefined, since it is perfect," if model["bss"] is None else f"{model['bss']:.3f}"
    sentence = f"{claim} {scores}; BSS over climatology {bss} on {found['n']:,} forecasts."
    if (constant := found["constant"]["brier"]) <= model["brier"]:
        sentence += f" It is no better than a constant at the period's own rate (Brier {constant:.4f})."
    return code, _with_cautions(sentence, cautions)


def _with_cautions(sentence: str, cautions: Mapping[str, str]) -> str:
    return " ".join([sentence, *(f"Caution: {message}." for message in cautions.values())])


def render(verification: Mapping[str, Any]) -> Table:
    """The scores of the model, the references and the constant as a table, the best value of each column in bold."""
    constant = f"constant {verification['base_rate']:.1%}"
    rows = {"model": verification["model"], **verification["references"], constant: verification["constant"]}
    title = f"{verification['part']}: {verification['n']:,} forecasts, {verification['base_rate']:.1%} events"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("forecast", min_width=11)
    best = {}
    for key, heading, more_is_better in _COLUMNS:
        table.add_column(heading, justify="right")
        # The constant knows the rate of the period, so it competes for nothing.
        values = [row[key] for name, row in rows.items() if row[key] is not None and name != constant]
        best[key] = (max if more_is_better else min)(values, default=None)
    for name, row in rows.items():
        best_here = {} if name == constant else best
        table.add_row(_words(name), *(_cell(row[key], best_here.get(key)) for key, _, _ in _COLUMNS))
    return table


def _words(name: str) -> str:
    """The key of a forecast as words."""
    return "logistic regression" if name == "logistic" else name.replace("_", " ")


def _cell(value: float | None, best: float | None) -> str:
    """A score with four decimals, bold if it is the best of its column; a dash if it is undefined."""
    if value is None:
        return "–"
    return f"[bold]{value:.4f}[/bold]" if value == best else f"{value:.4f}"
