"""Judge a model's probabilities on one part: scores beside the references', and whether a difference is more than luck.

Shapes: n rows of the part, B blocks of dates, R resamples.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from llueve.errors import DataError, GuardStop, UsageError
from llueve.verification.references import ReferenceData, all_references
from llueve.verification.scores import summary
from llueve.windows import Part

FEWEST_BLOCKS = 5
"""Below this many blocks of dates a resampled interval would say more than the data do."""
COVERAGE = (0.025, 0.975)
"""Quantiles between which the 95 % interval lies."""
RESAMPLES_AT_ONCE = 1000
"""Resamples drawn together, so that 100,000 of them do not need the memory of 100,000 × B counts."""

_COLUMNS = (
    # key, heading, whether more is better
    ("brier", "Brier", False),
    ("bss", "BSS", True),
    ("log_score", "log score", False),
    ("auc", "AUC", True),
    ("accuracy", "accuracy", True),
    ("f1", "F1", True),
)


def verify(
    data: ReferenceData,
    part: Part,
    model_p: ArrayLike,
    sites: Sequence[str],
    bootstrap: int,
    block_days: int,
    event_index: int,
) -> dict[str, Any]:
    """Everything that `verification.json` holds about one part.

    Args:
        model_p: probability of the event for each row of `part` (n,), in [0, 1].
        sites: names in the order of `data.cube_STC`.
        bootstrap: resamples behind each interval.
        block_days: days that are resampled together; never shorter than the horizon.
        event_index: class that is the event.

    Returns:
        `part`, `n`, `base_rate`, `model` and `references` (each a `scores.summary`), `comparison` with the reference of
        lowest Brier score (see `compare`), `verdict` and `verdict_code`: `beats`, `ties`, `does_not_beat`, `too_short`.

    Raises:
        GuardStop: a probability of the model is not finite; nothing is scored then.
        UsageError: there is not one probability per row.
        DataError: a probability is out of range, a part has no row, or part and data differ in an outcome.
    """
    p_n = _accepted(model_p, data, part, sites)
    y_n = (part.y == event_index).astype(np.int64)
    _refuse_other_outcomes(y_n, data, part, sites)
    rivals = all_references(data, part)
    references = {name: summary(p, y_n, rivals["climatology"]) for name, p in rivals.items()}
    best = min(references, key=lambda name: references[name]["brier"])
    compared = compare(p_n, rivals[best], y_n, data, part, bootstrap=bootstrap, block_days=block_days)
    found: dict[str, Any] = {
        "part": part.name,
        "n": len(part),
        "base_rate": float(y_n.mean()),
        "model": summary(p_n, y_n, rivals["climatology"]),
        "references": references,
        "comparison": {"best_reference": best} | compared,
    }
    code = _verdict_code(compared)
    return found | {"verdict": _verdict(code, found), "verdict_code": code}


def compare(
    model_p: NDArray[np.float64],
    reference_p: NDArray[np.float64],
    y: NDArray[np.int64],
    data: ReferenceData,
    part: Part,
    *,
    bootstrap: int,
    block_days: int,
) -> dict[str, Any]:
    """How much better the model is than one reference on the same rows, with 95 % intervals.

    Paired block bootstrap: calendar blocks, all sites of a date together, are drawn with replacement, since
    neighbouring days and sites are alike and drawing single rows would make the intervals too narrow. Blocks differ in
    rows, so each resample is a ratio of sums.

    Returns:
        `brier_difference` (reference minus model: positive means that the model is better) with `interval`;
        `skill_over_best` = 1 - BS_model / BS_reference with `skill_interval`; `blocks`, `block_days` (at least the
        horizon) and `resamples`. Intervals are None with fewer than 5 blocks; skill where the reference is perfect.

    Reference: Künsch 1989, Annals of Statistics 17, doi:10.1214/aos/1176347265; Hamill 1999, Weather and
    Forecasting 14, doi:10.1175/1520-0434(1999)014<0155:HTFENP>2.0.CO;2
    """
    days = max(block_days, math.ceil(data.horizon_hours / 24))
    errors_n3 = np.stack([(model_p - y) ** 2, (reference_p - y) ** 2, np.ones(len(y))], axis=-1)
    block_n, blocks = _blocks(data.times[part.end], days)
    sums_B3 = np.zeros((blocks, 3))
    np.add.at(sums_B3, block_n, errors_n3)
    model, reference, rows = sums_B3.sum(axis=0)
    interval, skill_interval = _intervals(sums_B3, bootstrap, data.seed) if blocks >= FEWEST_BLOCKS else (None, None)
    return {
        "brier_difference": float((reference - model) / rows),
        "interval": interval,
        "skill_over_best": float(1 - model / reference) if reference > 0 else None,
        "skill_interval": skill_interval,
        "blocks": blocks,
        "block_days": days,
        "resamples": bootstrap,
    }


def render(verification: dict[str, Any]) -> Table:
    """The scores of the model and the references as a table, the best value of each column in bold."""
    rows = {"model": verification["model"], **verification["references"]}
    table = Table(
        title=f"{verification['part']}: {verification['n']:,} forecasts, {verification['base_rate']:.1%} events",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("forecast", no_wrap=True)
    best = {}
    for key, heading, more_is_better in _COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
        values = [row[key] for row in rows.values() if row[key] is not None]
        best[key] = (max if more_is_better else min)(values, default=None)
    for name, row in rows.items():
        cells = [_cell(row[key], best[key]) for key, _, _ in _COLUMNS]
        table.add_row(_plain(name), *cells)
    return table


def _accepted(model_p: ArrayLike, data: ReferenceData, part: Part, sites: Sequence[str]) -> NDArray[np.float64]:
    """One finite probability per row: no score is reported that a non-finite one has touched."""
    p_n = np.asarray(model_p, dtype=np.float64)
    if p_n.shape != (len(part),):
        raise UsageError(f"{part.name} has {len(part)} rows; expected one probability each, found an array {p_n.shape}")
    bad = ~np.isfinite(p_n)
    if bad.any():
        at = int(np.argmax(bad))
        raise GuardStop(
            f"the model gave {bad.sum():,} non-finite probabilities for the {len(part):,} rows of {part.name}, the "
            f"first {p_n[at]} at {_where(at, data, part, sites)}; expected numbers in [0, 1]. Nothing is verified: look for "
            "missing or absurd values there with the audit, and check the weights"
        )
    return p_n


def _refuse_other_outcomes(y_n: NDArray[np.int64], data: ReferenceData, part: Part, sites: Sequence[str]) -> None:
    """Model and references must forecast the same event, or comparing them means nothing."""
    differs = data.event_ST[part.site, part.end] != y_n
    if differs.any():
        at = int(np.argmax(differs))
        raise DataError(
            f"{part.name}: the outcome of {differs.sum():,} of {len(part):,} rows is not that of the references, the "
            f"first at {_where(at, data, part, sites)}; expected event_ST to be 1 exactly where the class is the event"
        )


def _where(row: int, data: ReferenceData, part: Part, sites: Sequence[str]) -> str:
    """Site and issue time of a row."""
    return f"site {sites[part.site[row]]}, issue time {np.datetime_as_string(data.times[part.end[row]], unit='m')} UTC"


def _blocks(times: NDArray[np.datetime64], days: int) -> tuple[NDArray[np.intp], int]:
    """Index of the calendar block of each row, counted from the first date, and how many blocks hold any row."""
    day = times.astype("datetime64[D]").astype(np.int64)
    filled, block = np.unique((day - day.min()) // days, return_inverse=True)
    return block, len(filled)


def _intervals(sums_B3: NDArray[np.float64], resamples: int, seed: int) -> tuple[list[float], list[float] | None]:
    """95 % percentile intervals of Brier difference and skill over B blocks drawn with replacement.

    How often each block is drawn follows a multinomial distribution, so that a resample is one row of a matrix product.
    """
    random = np.random.default_rng(seed)
    blocks = len(sums_B3)
    sizes = [min(RESAMPLES_AT_ONCE, resamples - start) for start in range(0, resamples, RESAMPLES_AT_ONCE)]
    chance = np.full(blocks, 1 / blocks)
    totals_R3 = np.concatenate([random.multinomial(blocks, chance, size=size) @ sums_B3 for size in sizes])
    model_R, reference_R, rows_R = totals_R3.T
    difference = np.quantile((reference_R - model_R) / rows_R, COVERAGE).tolist()
    # A resample in which the reference is perfect has no skill to speak of, and leaving it out would bend the interval.
    skill = np.quantile(1 - model_R / reference_R, COVERAGE).tolist() if (reference_R > 0).all() else None
    return difference, skill


def _verdict_code(comparison: dict[str, Any]) -> str:
    """What the interval of the Brier difference allows to say."""
    if comparison["interval"] is None:
        return "too_short"
    low, high = comparison["interval"]
    if low > 0:
        return "beats"
    return "does_not_beat" if high < 0 else "ties"


def _verdict(code: str, found: dict[str, Any]) -> str:
    """The verdict as one sentence with its numbers."""
    comparison, model = found["comparison"], found["model"]
    name = comparison["best_reference"]
    best = f"{_plain(name)}, the best of the four references"
    claim = {
        "beats": f"The model beats {best}",
        "ties": f"The model ties with {best}",
        "does_not_beat": f"The model does not beat {best}",
        "too_short": (
            f"The {found['part']} period is too short to tell whether the model beats {best}: it has "
            f"{comparison['blocks']} blocks of {comparison['block_days']} days where {FEWEST_BLOCKS} are needed"
        ),
    }[code]
    scores = f"Brier {model['brier']:.4f} against {found['references'][name]['brier']:.4f}"
    if comparison["skill_interval"] is not None:
        low, high = comparison["skill_interval"]
        scores += f", skill over it {comparison['skill_over_best']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
    elif comparison["interval"] is not None:
        low, high = comparison["interval"]
        scores += f", better by {comparison['brier_difference']:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"
    skill = "undefined, since it is perfect," if model["bss"] is None else f"{model['bss']:.3f}"
    mark = ";" if code == "too_short" else ":"
    return f"{claim}{mark} {scores}; BSS over climatology {skill} on {found['n']:,} forecasts."


def _plain(name: str) -> str:
    """A key as words."""
    return "logistic regression" if name == "logistic" else name.replace("_", " ")


def _cell(value: float | None, best: float | None) -> str:
    """A score with four decimals, bold if it is the best of its column; a dash where it is undefined."""
    if value is None:
        return "–"
    return f"[bold]{value:.4f}[/bold]" if value == best else f"{value:.4f}"
