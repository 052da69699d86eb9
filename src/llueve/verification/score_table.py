"""The tables of a verification on the screen: scores, calibration, and yes/no forecasts."""

from collections.abc import Mapping
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from llueve.verification.verdict import words

Better = Literal["more", "less", "nearer to 1", "neither"]
Column = tuple[str, str, Better]
"""Key of the score, heading, and the direction in which it is better."""

PROBABILITIES: tuple[Column, ...] = (
    ("brier", "Brier", "less"),
    ("bss", "BSS", "more"),
    ("auc", "AUC", "more"),
    ("average_precision", "PR-AUC", "more"),
    ("log_score", "log score", "less"),
)
CALIBRATION: tuple[Column, ...] = (
    ("mcb", "MCB", "less"),
    ("dsc", "DSC", "more"),
    ("ece", "ECE", "less"),
    ("sharpness", "sharpness", "neither"),
)
YES_NO: tuple[Column, ...] = (
    ("pod", "POD", "more"),
    ("far", "FAR", "less"),
    ("bias", "bias", "nearer to 1"),
    ("csi", "CSI", "more"),
    ("f1", "F1", "more"),
    ("accuracy", "accuracy", "more"),
)


def render(verification: Mapping[str, Any]) -> Group:
    """Three tables with model, references and constant, each readable in 60 columns; the best of a column is bold."""
    title = f"{escape(verification['part'])}: {verification['n']:,} forecasts, {verification['base_rate']:.1%} events"
    threshold = f"{verification['threshold']:.3f}".rstrip("0").ljust(4, "0")
    return Group(
        _table(verification, title, PROBABILITIES, 4),
        _table(verification, f"calibration: Brier = MCB - DSC + {verification['constant']['unc']:.4f}", CALIBRATION, 4),
        _table(verification, f"yes from a probability of {threshold}", YES_NO, 3),
    )


def _table(verification: Mapping[str, Any], title: str, columns: tuple[Column, ...], digits: int) -> Table:
    constant = f"constant {verification['base_rate']:.1%}"
    rows = {"model": verification["model"], **verification["references"]}
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("forecast", min_width=11)
    for _, heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    # The constant knows the rate of the period, so it competes for nothing.
    best = {key: _best([row[key] for row in rows.values()], better) for key, _, better in columns}
    for name, row in rows.items():
        table.add_row(escape(words(name)), *(_cell(row[key], best[key], digits) for key, _, _ in columns))
    table.add_row(constant, *(_cell(verification["constant"][key], None, digits) for key, _, _ in columns))
    return table


def _best(values: list[float | None], better: Better) -> float | None:
    known = [value for value in values if value is not None]
    if not known or better == "neither":
        return None
    return {"more": max(known), "less": min(known), "nearer to 1": min(known, key=lambda value: abs(value - 1))}[better]


def _cell(value: float | None, best: float | None, digits: int) -> str:
    """A score, bold if it is the best of its column; a dash if it is undefined."""
    if value is None:
        return "–"
    return f"[bold]{value:.{digits}f}[/bold]" if value == best else f"{value:.{digits}f}"
