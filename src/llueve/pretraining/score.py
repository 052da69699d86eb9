"""Scores of a pre-trained encoder at the sites that were held out, and its recalibration by climate zone.

Shapes: n windows, R amounts of rain, Q quantities, P hours of the day after the issue time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit

from llueve.calibration.calibrate import Calibration, calibrate
from llueve.config.model_keys import DAY_HOURS
from llueve.errors import GuardStop
from llueve.model.batch import answer, device_of
from llueve.model.checkpoints.climate_zone import ClimateZone, zone_of
from llueve.model.checkpoints.model_card import GroupScores, QuantityError, Recalibration, SkillByAmount, ZoneCard
from llueve.model.classifier import TimerXLForClassification
from llueve.model.kernels.matmul import quick_products
from llueve.model.weather_xl import RAIN_MM
from llueve.panel import BoolArray, FloatArray
from llueve.pretraining.corpus import Corpus
from llueve.pretraining.corpus_windows import CorpusWindows, drawn_windows, rain_reached
from llueve.pretraining.site_references import SiteRecord
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES, RAIN
from llueve.samples.split import Part
from llueve.sphere import distance_km
from llueve.step.predict import as_batch
from llueve.verification.scores import auc, brier, brier_skill

AT_A_TIME = 256
LEAST_CASES = 20
"""Fewest events, and fewest other windows, for the skill of a single site and for a recalibration."""
ALL, FAR = "all", "far from training"
"""Names of the scores of all groups, and of those sites whose distance to every training site is known and large."""
FAR_KM = 50.0
"""Distance from which a site counts as far: nearer ones have nearly the weather that the training saw."""
APART_KM = 20.0
"""Distance from which a site counts in its climate zone: that of the points of a dense grid is smaller."""
_RAIN = ENCODER_QUANTITIES.index(RAIN)

Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RainForecasts:
    """Forecasts of the amounts of rain, what happened, and the climatology of each site."""

    site_n: NDArray[np.int64]
    group_n: NDArray[np.str_]
    zone_n: NDArray[np.str_]
    far_n: BoolArray
    """True at a site that is far from every training site."""
    logit_nR: FloatArray
    reached_nR: BoolArray
    climatology_nR: Doubles
    """NaN where it is unknown."""
    used_nR: BoolArray
    """True where the outcome is known, and for scores the climatology too."""

    def __getitem__(self, chosen: BoolArray) -> "RainForecasts":
        return RainForecasts(**{name: each[chosen] for name, each in vars(self).items()})

    def skill(self, amount: int, recalibration: Calibration | None = None) -> SkillByAmount:
        """Scores of one amount, counted from 0; after a recalibration, if one is given."""
        used_n = self.used_nR[:, amount]
        logit_n = self.logit_nR[used_n, amount].astype(np.float64)
        p_n = expit(logit_n) if recalibration is None else expit(recalibration.slope * logit_n + recalibration.shift)
        happened_n = self.reached_nR[used_n, amount].astype(np.int64)
        return skill_of(RAIN_MM[amount], p_n, happened_n, self.climatology_nR[used_n, amount], self.site_n[used_n])


@dataclass(frozen=True)
class EncoderScores:
    """All scores of an encoder, as its model card holds them."""

    groups: list[GroupScores]
    errors: list[QuantityError]
    zones: list[ZoneCard]


def score_encoder(model: TimerXLForClassification, windows: CorpusWindows, count: int, seed: int) -> EncoderScores:
    """Score an encoder at the held-out sites, and recalibrate it at the others.

    Args:
        count: windows at the held-out sites, and as many at the others; neither the training nor its validation drew them.
        seed: decides these windows.

    Raises:
        GuardStop: a forecast is not finite.
    """
    held_out = drawn_windows(windows.corpus, windows, count, seed, held_out=True)
    trained = drawn_windows(windows.corpus, windows, count, seed + 1, held_out=False)
    # Windows of this name are those of the training, of which some quantities are hidden.
    trained = Part("recalibration", trained.site, trained.end, trained.y)
    logit_nR, next_nQP = _forecasts(model, windows, held_out)
    rain = _with_climatology(windows, held_out, _with_outcomes(windows, held_out, logit_nR))
    before = _with_outcomes(windows, trained, _forecasts(model, windows, trained)[0])
    apart_n = far_from_training(windows.corpus, APART_KM)[held_out.site] | (rain.zone_n == ClimateZone.UNKNOWN)
    zones = [
        zone_card(zone, before[before.zone_n == zone], rain[apart_n & (rain.zone_n == zone)]) for zone in ClimateZone
    ]
    return EncoderScores(group_scores(rain), _errors(windows, held_out, next_nQP), zones)


@quick_products()
def _forecasts(model: TimerXLForClassification, windows: CorpusWindows, part: Part) -> tuple[FloatArray, FloatArray]:
    """Logits of the amounts of rain (n, R) and values (n, Q, P) of the 24 hours after each issue time."""
    model.eval()
    logits, values = [], []
    with torch.inference_mode():
        for start in range(0, len(part), AT_A_TIME):
            found = answer(model, as_batch(windows, part[start : start + AT_A_TIME], device_of(model))).days
            assert found is not None  # the head of the pre-training gives them
            logits.append(found.rain_BNR[:, -1].cpu().numpy())
            values.append(found.next_BCNP[:, :, -1].cpu().numpy())
    logit_nR, next_nQP = np.concatenate(logits), np.concatenate(values)
    if not (np.isfinite(logit_nR).all() and np.isfinite(next_nQP).all()):
        raise GuardStop("no encoder is written: its forecasts at held-out sites are not finite; see history.jsonl")
    return logit_nR, next_nQP


def _with_outcomes(windows: CorpusWindows, part: Part, logit_nR: FloatArray) -> RainForecasts:
    """The forecasts with what happened, without climatology."""
    reached_nR, known_nR = rain_reached(windows.hours(part, DAY_HOURS, DAY_HOURS)[:, _RAIN])
    stretches = [windows.corpus.stretches[each] for each in part.site]
    return RainForecasts(
        windows.corpus.site_S[part.site],
        np.array([each.group for each in stretches]),
        np.array([zone_of(each.latitude) for each in stretches]),
        far_from_training(windows.corpus, FAR_KM)[part.site],
        logit_nR,
        reached_nR,
        np.full(logit_nR.shape, np.nan),
        known_nR,
    )


def _with_climatology(windows: CorpusWindows, part: Part, rain: RainForecasts) -> RainForecasts:
    """The forecasts with the climatology of each site; windows without one are not used."""
    climatology_nR = np.full(rain.logit_nR.shape, np.nan)
    for site, rows in _rows_of_sites(rain.site_n):
        climatology_nR[rows] = SiteRecord.of(windows.corpus, site).rain_frequency(part.end[rows])
    used_nR = rain.used_nR & ~np.isnan(climatology_nR)
    return replace(rain, climatology_nR=climatology_nR, used_nR=used_nR)


def skill_of(
    mm: float, p_n: Doubles, happened_n: NDArray[np.int64], reference_n: Doubles, site_n: NDArray[np.int64]
) -> SkillByAmount:
    """Scores of the probabilities `p_n` of one amount against a reference, over all windows and for each site."""
    events_S, cases_S = (np.bincount(site_n, weights=each) for each in (happened_n, np.ones(len(site_n))))
    own_S, other_S = (np.bincount(site_n, weights=(each - happened_n) ** 2) for each in (p_n, reference_n))
    judged_S = (events_S >= LEAST_CASES) & (cases_S - events_S >= LEAST_CASES)
    some = len(p_n) > 0
    return SkillByAmount(
        mm=mm,
        windows=len(p_n),
        events=int(happened_n.sum()),
        brier=brier(p_n, happened_n) if some else None,
        skill=brier_skill(p_n, happened_n, reference_n) if some else None,
        auc=auc(p_n, happened_n) if some else None,
        sites_judged=int(judged_S.sum()),
        sites_better=int((judged_S & (own_S < other_S)).sum()),
    )


def group_scores(rain: RainForecasts) -> list[GroupScores]:
    """Scores of all groups together, of the sites far from the training, and of each group."""
    groups = [
        (ALL, rain),
        (FAR, rain[rain.far_n]),
        *((str(name), rain[rain.group_n == name]) for name in np.unique(rain.group_n)),
    ]
    return [
        GroupScores(
            group=name,
            sites=len(np.unique(found.site_n)),
            amounts=[found.skill(amount) for amount in range(len(RAIN_MM))],
        )
        for name, found in groups
    ]


def zone_card(zone: ClimateZone, trained: RainForecasts, held_out: RainForecasts) -> ZoneCard:
    """The recalibration of one zone: Platt maps fitted at training sites, and their effect at held-out ones."""
    amounts = []
    for amount, mm in enumerate(RAIN_MM):
        used_n = trained.used_nR[:, amount]
        happened_n = trained.reached_nR[used_n, amount].astype(np.int64)
        events = int(happened_n.sum())
        if min(events, len(happened_n) - events) < LEAST_CASES:
            continue
        logit_n = trained.logit_nR[used_n, amount]
        logits_nK = np.stack([np.zeros_like(logit_n), logit_n], axis=1)
        fitted = calibrate(logits_nK, happened_n, "platt", np.zeros(len(happened_n), np.int64))
        amounts.append(
            Recalibration(
                mm=mm,
                slope=fitted.slope,
                shift=fitted.shift,
                windows=len(happened_n),
                events=events,
                held_out=held_out.skill(amount),
                recalibrated=held_out.skill(amount, fitted),
            )
        )
    sites = [len(np.unique(each.site_n[each.used_nR.any(axis=1)])) for each in (trained, held_out)]
    return ZoneCard(zone=zone, sites=sites[0], held_out=sites[1], amounts=amounts)


def _errors(windows: CorpusWindows, part: Part, next_nQP: FloatArray) -> list[QuantityError]:
    """Mean absolute errors of the values of the next 24 hours, beside those of two references, for each quantity."""
    actual_nQP = windows.hours(part, DAY_HOURS, DAY_HOURS)
    yesterday_nQP = windows.hours(part, DAY_HOURS, 0)
    usual_nQP = np.full_like(actual_nQP, np.nan)
    for site, rows in _rows_of_sites(windows.corpus.site_S[part.site]):
        usual_nQP[rows] = SiteRecord.of(windows.corpus, site).usual_values(part.end[rows])
    forecasts = (next_nQP, yesterday_nQP, usual_nQP)
    all_known_nQP = np.isfinite(actual_nQP) & np.isfinite(yesterday_nQP) & np.isfinite(usual_nQP)
    found = []
    for place, name in enumerate(ENCODER_QUANTITIES):
        known_nP = all_known_nQP[:, place]
        values = int(known_nP.sum())
        error = [
            float(np.abs(each[:, place] - actual_nQP[:, place])[known_nP].mean(dtype=np.float64)) if values else None
            for each in forecasts
        ]
        model, persistence, climatology = error
        found.append(
            QuantityError(quantity=name, values=values, model=model, persistence=persistence, climatology=climatology)
        )
    return found


def far_from_training(corpus: Corpus, km: float) -> BoolArray:
    """True for each stretch whose distance to every site of the training with a position is known and at least `km`, (S,)."""
    latitude_S, longitude_S = corpus.position_S2.T
    held_S = np.array([each.held_out for each in corpus.stretches])
    trained = np.unique(corpus.position_S2[~held_S & ~np.isnan(corpus.position_S2).any(axis=1)], axis=0)
    far_S: BoolArray = held_S & ~np.isnan(latitude_S + longitude_S)
    for stretch in np.flatnonzero(far_S):
        apart = distance_km(latitude_S[stretch], longitude_S[stretch], trained[:, 0], trained[:, 1])
        far_S[stretch] = bool((apart >= km).all())
    return far_S


def _rows_of_sites(site_n: NDArray[np.int64]) -> Sequence[tuple[int, NDArray[np.intp]]]:
    """Each site, and the windows that it has."""
    return [(int(site), np.flatnonzero(site_n == site)) for site in np.unique(site_n)]
