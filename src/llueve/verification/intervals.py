"""Intervals of the scores of a model, of its differences to each reference, and of its reliability, all from the same draws.

Shapes: n rows, R resamples, B blocks, F references, Q points of a curve.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llueve.verification.bootstrap import (
    DateBlocks,
    Floats,
    RankedForecast,
    interval,
    interval_from_halves,
    resampled_auc,
    resampled_recalibration,
)
from llueve.verification.curves import Reliability, reliability
from llueve.verification.decomposition import decompose
from llueve.verification.forecasts import CLIMATOLOGY, Forecasts
from llueve.verification.scores import auc, brier, log_losses

SCORES = ("brier", "bss", "log_score", "auc", "mcb")
"""Scores of the model that have an interval."""


@dataclass(frozen=True, eq=False)
class Resampled:
    """The values of each statistic in R resamples."""

    brier_RF: Floats
    """Brier scores: the model, then each reference."""
    auc_RF: Floats
    """NaN in a resample without events or without non-events."""
    log_score_R: Floats
    frequency_RQ: Floats
    """Frequency of events in each bin of the reliability diagram, NaN in a resample without a row there."""


@dataclass(frozen=True, eq=False)
class HalfSampled:
    """The values of what isotonic regression gives, in R half samples."""

    mcb_R: Floats
    isotonic_RQ: Floats
    """The isotonic reliability curve at the probabilities that it is given at."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Everything that was drawn from the blocks of a period."""

    blocks: DateBlocks
    scores: Resampled
    calibration: HalfSampled


def drawn(forecasts: Forecasts, blocks: DateBlocks, bins: Reliability, isotonic_at: Floats) -> Draws:
    """Every statistic in every resample and every half sample of the blocks."""
    ranked = RankedForecast(forecasts.model_p, forecasts.y_n, blocks)
    return Draws(
        blocks, _resampled(forecasts, blocks, bins, ranked), _half_sampled(forecasts, blocks, ranked, isotonic_at)
    )


def _resampled(forecasts: Forecasts, blocks: DateBlocks, bins: Reliability, model: RankedForecast) -> Resampled:
    y_n = forecasts.y_n
    each = [forecasts.model_p, *forecasts.reference_p.values()]
    ranked = [model, *(RankedForecast(p_n, y_n, blocks) for p_n in each[1:])]
    ones = np.ones(len(y_n))
    losses_BS = blocks.sums(*((p_n - y_n) ** 2 for p_n in each), log_losses(forecasts.model_p, y_n), ones)
    rows_BQ = blocks.sums_by_bin(bins.bin_n, len(bins.rows_Q), ones)
    events_BQ = blocks.sums_by_bin(bins.bin_n, len(bins.rows_Q), y_n)
    parts: list[tuple[Floats, ...]] = []
    for counts in blocks.draws():
        losses, rows, events = counts @ losses_BS, counts @ rows_BQ, counts @ events_BQ
        means = losses / losses[:, -1:]
        areas = np.stack([resampled_auc(*forecast.drawn(counts)) for forecast in ranked], axis=1)
        frequency = np.divide(events, rows, out=np.full(rows.shape, np.nan), where=rows > 0)
        parts.append((means[:, :-2], areas, means[:, -2], frequency))
    return Resampled(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def _half_sampled(forecasts: Forecasts, blocks: DateBlocks, model: RankedForecast, isotonic_at: Floats) -> HalfSampled:
    errors = (forecasts.model_p - forecasts.y_n) ** 2
    sums = blocks.sums(errors, np.ones(len(errors)))
    parts: list[tuple[Floats, ...]] = []
    for counts in blocks.halves():
        error, rows = (counts @ sums).T
        recalibrated, curve = resampled_recalibration(*model.drawn(counts), model.probability_G, isotonic_at)
        parts.append((np.maximum(error / rows - recalibrated, 0), curve))
    return HalfSampled(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def score_intervals(forecasts: Forecasts, draws: Draws | None) -> dict[str, list[float] | None]:
    """The 95 % intervals of the model's scores; each is None if it cannot be given."""
    if draws is None:
        return dict.fromkeys(SCORES)
    found = draws.scores
    bss = None
    if CLIMATOLOGY in forecasts.reference_p:
        climatology_R = found.brier_RF[:, 1 + list(forecasts.reference_p).index(CLIMATOLOGY)]
        bss = _skill_interval(found.brier_RF[:, 0], climatology_R)
    return {
        "brier": interval(found.brier_RF[:, 0]),
        "bss": bss,
        "log_score": interval(found.log_score_R),
        "auc": interval(found.auc_RF[:, 0]),
        "mcb": interval_from_halves(
            decompose(forecasts.model_p, forecasts.y_n).mcb, draws.calibration.mcb_R, draws.blocks
        ),
    }


def comparisons(forecasts: Forecasts, draws: Draws | None) -> dict[str, dict[str, Any]]:
    """The model against each reference: differences of Brier score and AUC, and the skill, each with its interval.

    `brier_difference` is reference minus model and `auc_difference` model minus reference: positive if the model is better.
    `skill` is 1 - BS_model / BS_reference, None if the reference is perfect or events are too few.
    """
    y_n, model = forecasts.y_n, forecasts.model_p
    model_brier, model_auc = brier(model, y_n), auc(model, y_n)
    table = {}
    for number, (name, reference) in enumerate(forecasts.reference_p.items(), start=1):
        reference_brier, reference_auc = brier(reference, y_n), auc(reference, y_n)
        row: dict[str, Any] = {
            "brier_difference": reference_brier - model_brier,
            "brier_interval": None,
            "skill": None if reference_brier == 0 or forecasts.too_few else 1 - model_brier / reference_brier,
            "skill_interval": None,
            "auc_difference": None if model_auc is None or reference_auc is None else model_auc - reference_auc,
            "auc_interval": None,
        }
        if draws is not None:
            briers, areas = draws.scores.brier_RF[:, [0, number]], draws.scores.auc_RF[:, [0, number]]
            row["brier_interval"] = interval(briers[:, 1] - briers[:, 0])
            row["skill_interval"] = _skill_interval(briers[:, 0], briers[:, 1])
            row["auc_interval"] = interval(areas[:, 0] - areas[:, 1])
        table[name] = row
    return table


def _skill_interval(model_R: Floats, reference_R: Floats) -> list[float] | None:
    """The interval of the skill; None if the reference is perfect in a resample."""
    return interval(1 - model_R / reference_R) if (reference_R > 0).all() else None


def bins_and_points(forecasts: Forecasts, most_points: int) -> tuple[Reliability, Floats]:
    """The bins of the model's reliability diagram, and the probabilities at which its isotonic curve is given."""
    p_n = forecasts.model_p
    points = np.unique(np.quantile(p_n, np.linspace(0, 1, most_points), method="closest_observation"))
    return reliability(p_n, forecasts.y_n), points
