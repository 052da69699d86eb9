"""Scores of parts of a period: by site, season, month, issue hour, lead and phase of El Niño. Shapes: n rows, G groups."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llueve.samples.periods import few_events
from llueve.verification.enso import enso_phases
from llueve.verification.forecasts import CLIMATOLOGY, Forecasts

SEASONS = ("DJF", "MAM", "JJA", "SON")
"""Meteorological seasons by the first letters of their months."""


def groups(forecasts: Forecasts) -> dict[str, list[dict[str, Any]]]:
    """The groups of each kind, each with n, base rate, Brier score, skill and the best reference there.

    Months are those of the issue time, UTC. Skill is relative to climatology on the rows of the group. A group with too few
    events, non-events or days (`samples.periods`) is marked `insufficient`; its scores are None, since chance decides them.
    """
    return {kind: list(_rows(forecasts, names, group_n)) for kind, names, group_n in _kinds(forecasts)}


def _kinds(forecasts: Forecasts) -> Iterator[tuple[str, list[str], NDArray[np.intp]]]:
    """Each kind with the names of its groups, and the group of each row."""
    month_n = forecasts.issued_n.astype("datetime64[M]")
    number_n = month_n.astype(np.int64) % 12  # January is 0
    hour_n = (forecasts.issued_n.astype("datetime64[h]").astype(np.int64) % 24).astype(np.intp)
    months, index_n = np.unique(month_n, return_inverse=True)
    phases = enso_phases(months)
    found = sorted(set(phases))
    lead = "unknown" if forecasts.horizon_hours is None else f"{forecasts.horizon_hours:g} h"
    yield "site", [str(site) for site in forecasts.sites], forecasts.site_n
    yield "season", list(SEASONS), (number_n + 1) // 3 % 4
    yield "month", [f"{month:02}" for month in range(1, 13)], number_n
    yield "hour", [f"{hour:02} UTC" for hour in range(24)], hour_n
    yield "lead", [lead], np.zeros(len(forecasts), np.intp)
    yield "enso", found, np.array([found.index(phase) for phase in phases])[index_n]


def _rows(forecasts: Forecasts, names: list[str], group_n: NDArray[np.intp]) -> Iterator[dict[str, Any]]:
    """One row for each group that has forecasts, in the order of `names`."""
    each = {"model": forecasts.model_p, **forecasts.reference_p}
    rows_G = np.bincount(group_n, minlength=len(names))
    sums = {
        name: np.bincount(group_n, weights=(p_n - forecasts.y_n) ** 2, minlength=len(names))
        for name, p_n in each.items()
    }
    order = np.argsort(group_n, kind="stable")
    behind_G = np.cumsum(rows_G)
    for group in np.flatnonzero(rows_G):
        at = order[behind_G[group] - rows_G[group] : behind_G[group]]
        n, y_n = int(rows_G[group]), forecasts.y_n[at]
        brier = {name: float(sums[name][group] / n) for name in each}
        insufficient = few_events(y_n, forecasts.issued_n[at]) is not None
        row: dict[str, Any] = {"name": names[group], "n": n, "events": int(y_n.sum()), "base_rate": float(y_n.mean())}
        yield row | _scores(brier, insufficient) | {"insufficient": insufficient}


def _scores(brier: dict[str, float], insufficient: bool) -> dict[str, Any]:
    """The scores of one group from the Brier scores of model and references there."""
    model, references = brier["model"], {name: value for name, value in brier.items() if name != "model"}
    best = min(references, key=lambda name: references[name], default=None)
    climatology = references.get(CLIMATOLOGY)
    if insufficient:
        return dict.fromkeys(("brier", "bss", "best_reference", "best_reference_brier"))
    return {
        "brier": model,
        "bss": 1 - model / climatology if climatology else None,
        "best_reference": best,
        "best_reference_brier": None if best is None else references[best],
    }
