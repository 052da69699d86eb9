"""Faults of the data: cells, facts, and windows that a model without its safeguards cannot take.

Shapes: B batch, C variables, H heads, S sites, T times or tokens.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.faults.fault import INF, NAN, TIMINGS, VARIABLES_HEAD, Fault, Size
from benchmarks.faults.scene import Random, Scene
from benchmarks.faults.trial import Trial
from llueve.model import classifier, timer, timer_xl
from llueve.model.kernels import attention

Cell = tuple[int, int, int]
"""Site, time and variable."""


def fill(scene: Scene, values: dict[Cell, float]) -> set[Cell]:
    """Write cells; returns those that a window of the next step holds."""
    windows, rows, context = scene.trial.windows, scene.rows, scene.trial.shape.context
    for cell, value in values.items():
        windows.values_STC[cell] = value
        windows.observed_STC[cell] = True
    return {
        (site, time, variable)
        for site, time, variable in values
        if any(site == s and end - context < time <= end for s, end in zip(rows.site, rows.end, strict=True))
    }


def random_cell(scene: Scene) -> Cell:
    """A cell of a window of the next step."""
    site, end = scene.window()
    back = int(scene.random.integers(scene.trial.shape.context))
    return site, end - back, scene.variable()


def one_cell(value: float, scene: Scene) -> Any:
    """Damage one cell."""
    return fill(scene, {random_cell(scene): value})


def stretch(length: int, scene: Scene) -> Any:
    """Remove a variable of one site for several steps."""
    site, time, variable = random_cell(scene)
    return fill(scene, {(site, each, variable): NAN for each in range(max(0, time - length + 1), time + 1)})


def whole_row(scene: Scene) -> Any:
    """Remove all variables of one site at one time."""
    site, time, _ = random_cell(scene)
    return fill(scene, {(site, time, each): NAN for each in range(scene.trial.shape.variables)})


def repeated(value: float, scene: Scene) -> Any:
    """Write the same number to several cells of one window."""
    (site, end), variable = scene.window(), scene.variable()
    back = scene.random.choice(scene.trial.shape.context, 3, replace=False)
    return fill(scene, {(site, int(end - each), variable): value for each in back})


def other_unit(factor: float, scene: Scene) -> Any:
    """Give a variable of one site in another unit for one context."""
    (site, end), variable = scene.window(), scene.variable()
    cells = [(site, each, variable) for each in range(max(0, end - scene.trial.shape.context), end + 1)]
    return fill(scene, {cell: factor * (1 + abs(scene.trial.windows.values_STC[cell])) for cell in cells})


def fact(value: float, scene: Scene) -> Any:
    """Damage a calendar number of one time."""
    (_, time), number = scene.window(), int(scene.random.integers(2))
    scene.trial.windows.calendar_TF[time, number] = value
    return {(int(row), number) for row in np.flatnonzero(scene.rows.end == time)}


def constant(scene: Scene) -> Any:
    """Give one variable of a window a spread of zero."""
    (site, end), variable = scene.window(), scene.variable()
    span = slice(end - scene.trial.shape.context + 1, end + 1)
    scene.trial.windows.values_STC[site, span, variable] = float(scene.random.normal())
    scene.trial.windows.observed_STC[site, span, variable] = True
    return "div"


def empty_patch(scene: Scene) -> Any:
    """Remove every observation of the oldest patch of one window, under attention that masks it with −∞."""
    site, end = scene.window()
    first = end - scene.trial.shape.context + 1
    span = slice(first, first + scene.trial.shape.patch_length)
    scene.trial.windows.values_STC[site, span] = 0
    scene.trial.windows.observed_STC[site, span] = False
    scene.trial.active = True
    return "softmax"


def features(value: float, scene: Scene) -> None:
    """Damage one cached feature of a window of the next step."""
    scene.damage_features(value)


# Preparations, which the clean trial shares


def unlimited(trial: Trial, _random: Random) -> None:
    """A model that accepts levels of any size."""
    trial.patch(classifier, "LARGEST", 1e38)


def without_epsilon(trial: Trial, _random: Random) -> None:
    """A normalisation that divides by the spread alone."""

    def spread(_: Any, variance_BC1: Tensor, count_BC1: Tensor) -> Tensor:
        return torch.sqrt(variance_BC1) + 1e-3 * (count_BC1 < 2)

    for each in (timer_xl.TimerXL, timer.Timer):
        trial.patch(each, "spread", spread)


def hard_mask(trial: Trial, _random: Random) -> None:
    """Attention that masks absent keys with −∞ once the fault is active."""

    def plain(
        query: Tensor, key: Tensor, value: Tensor, bias_H2: Tensor, variables: int, absent_BT: Tensor | None = None
    ) -> Tensor:
        token_T = torch.arange(query.shape[2])
        same_TT = token_T[:, None] % variables == token_T % variables
        later_TT = token_T[:, None] // variables < token_T // variables
        delta_H = (bias_H2[:, 1] - bias_H2[:, 0]).to(query.dtype)
        score = (query @ key.transpose(-1, -2) + delta_H[:, None, None] * same_TT) * query.shape[-1] ** -0.5
        score = score.masked_fill(later_TT, -INF)
        if absent_BT is not None and trial.active:
            score = score.masked_fill(absent_BT[:, None, None, :], -INF)
        return score.softmax(-1) @ value.to(query.dtype)

    for module in (attention, timer_xl):  # Timer's own attention calls the kernel of the first
        trial.patch(module, "variable_attention", plain)


def faults(size: Size) -> tuple[Fault, ...]:
    """The kinds of this file."""
    cells = partial(Fault, "data", place="cells", ends="without")
    facts = partial(cells, place="facts", shape=VARIABLES_HEAD)
    levels = partial(cells, prepare=unlimited, shared=True, shape=VARIABLES_HEAD)
    bare = partial(cells, place="operation", shared=True)
    batches = partial(Fault, "batches", cause="", repaired=True)
    live = partial(batches, timings=TIMINGS[:2], train={"feature_cache_gb": 1})
    gapless = {"missing": 0.0, "instance_norm": True}
    return (
        cells("missing cell", "missing_input", partial(one_cell, NAN)),
        cells("infinite cell", "infinite_input", partial(one_cell, INF)),
        cells("minus infinite cell", "infinite_input", partial(one_cell, -INF)),
        cells("lagged column, first steps", "missing_input", partial(stretch, size(4, 6))),
        cells("whole row missing", "missing_input", whole_row),
        facts("missing fact", "missing_input", partial(fact, NAN)),
        facts("infinite fact", "infinite_input", partial(fact, INF)),
        levels("outlier without limit", "outlier_input", partial(one_cell, size(1e30, -4e27))),
        levels("repeated value without limit", "sentinel_or_unit", partial(repeated, size(-1e30, 7e26))),
        levels("unit without limit", "sentinel_or_unit", partial(other_unit, size(1e28, -3e26))),
        batches("the same batch in all later steps", plant=Scene.repeat_batch, timings=TIMINGS[:4]),
        batches("an order that repeats windows", plant=Scene.repeat_order, timings=(TIMINGS[1], TIMINGS[3])),
        live("a usual number in cached features", plant=partial(features, size(0.5, -3.0))),
        live("NaN in cached features", plant=partial(features, NAN)),
        bare("constant window without ε", "constant_window", constant, prepare=without_epsilon, shape=gapless),
        bare("empty attention row", "empty_attention_row", empty_patch, prepare=hard_mask, shape={"missing": 0.0}),
    )
