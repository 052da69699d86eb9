"""The verdict on a model beside its references: a code, and sentences with its numbers."""

from collections.abc import Mapping
from typing import Any, Literal

from llueve.samples.periods import FEW_EVENTS
from llueve.verification.bootstrap import FEWEST_BLOCKS
from llueve.verification.forecasts import CLIMATOLOGY

VerdictCode = Literal[
    "collapsed",
    "too_few_events",
    "does_not_beat_climatology",
    "too_short",
    "beats",
    "ties",
    "does_not_beat",
    "no_reference",
]
CONSTANT_RANGE = 1e-6
"""Difference of the largest and the smallest forecast up to which they are one number."""
LEAST_SPREAD = 0.01
"""Standard deviation of the forecasts, relative to that of the outcomes, below which they are constant for every use. A
calibrated forecast with such a spread explains 0.01 % of the variance of the outcomes."""
_NUMBERS = ("no", "only", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def is_collapsed(spread: float, least: float, largest: float, base_rate: float) -> bool:
    """True if the forecasts, of standard deviation `spread`, tell hardly anything apart."""
    return largest - least <= CONSTANT_RANGE or spread < LEAST_SPREAD * float((base_rate * (1 - base_rate)) ** 0.5)


def verdict(found: Mapping[str, Any]) -> tuple[VerdictCode, str]:
    """Code of the verdict and its sentences; `found` is the content of `verification.json`.

    The first sentence says the most important fact: a collapsed model, then too few events, then no skill over
    climatology, then the comparison with the best reference.
    """
    cautions = {each["code"]: each["message"] for each in found["cautions"]}
    few = cautions.pop(FEW_EVENTS, None)
    code = _code(found, few is not None)
    sentences = [_first_sentence(code, found, few)]
    if code == "collapsed" and few is not None:
        sentences.append(f"No verdict otherwise: {few}.")
    if few is None:
        if code in ("collapsed", "does_not_beat_climatology") and found["comparison"]["best_reference"] is not None:
            best = found["comparison"]["best_reference"]
            sentences.append(
                f"The best of the references is {words(best)} (Brier {found['references'][best]['brier']:.4f})."
            )
        if code != "no_reference" and (constant := found["constant"]["brier"]) <= found["model"]["brier"]:
            sentences.append(f"It is no better than a constant at the period's own rate (Brier {constant:.4f}).")
    return code, " ".join([*sentences, *(f"Caution: {message}." for message in cautions.values())])


def _code(found: Mapping[str, Any], few: bool) -> VerdictCode:
    bss, interval = found["model"]["bss"], found["comparison"]["interval"]
    if found["collapsed"]:
        return "collapsed"
    if few:
        return "too_few_events"
    if bss is not None and bss <= 0:
        return "does_not_beat_climatology"
    if not found["references"]:
        return "no_reference"
    if interval is None:
        return "too_short"
    return "beats" if interval[0] > 0 else "does_not_beat" if interval[1] < 0 else "ties"


def _first_sentence(code: VerdictCode, found: Mapping[str, Any], few: str | None) -> str:
    model, on = found["model"], f"on {found['n']:,} forecasts"
    match code:
        case "collapsed":
            spread = model["sharpness"] ** 0.5
            return (
                f"The model collapsed: its forecasts are constant or nearly so (mean {found['mean_forecast']:.4f}, standard "
                f"deviation {spread:.1g}); Brier {model['brier']:.4f} {on}."
            )
        case "too_few_events":
            return f"No verdict: {few}."
        case "does_not_beat_climatology":
            climatology = found["references"][CLIMATOLOGY]["brier"]
            return (
                f"The model does not beat climatology: BSS {model['bss']:.3f}{_interval(found['intervals']['bss'])}, Brier "
                f"{model['brier']:.4f} against {climatology:.4f}, {on}."
            )
        case "no_reference":
            constant = found["constant"]["brier"]
            than = "better" if model["brier"] < constant else "no better"
            return (
                f"No comparison, since no reference forecast is given: Brier {model['brier']:.4f} {on}, {than} than a "
                f"constant at the period's own rate (Brier {constant:.4f})."
            )
    return _beside_the_best(code, found)


def _beside_the_best(code: VerdictCode, found: Mapping[str, Any]) -> str:
    """The sentence on the best reference."""
    comparison, model = found["comparison"], found["model"]
    reference, count = words(comparison["best_reference"]), len(found["references"])
    number = _NUMBERS[count] if count < len(_NUMBERS) else str(count)
    best = f"{reference}, the only reference" if count == 1 else f"{reference}, the best of the {number} references"
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
        skill = f"skill relative to {reference} {comparison['skill_over_best']:+.3f}"
        scores += f"; {skill}{_interval(comparison['skill_interval'])}"
    elif comparison["interval"] is not None:
        difference = f"Brier score of {reference} minus that of the model {comparison['brier_difference']:+.4f}"
        scores += f"; {difference}{_interval(comparison['interval'], 4)}"
    skill_over = ""
    if CLIMATOLOGY in found["references"]:
        bss = "undefined, since it is perfect," if model["bss"] is None else f"{model['bss']:.3f}"
        skill_over = f"; BSS over climatology {bss}"
    return f"{claim} {scores}{skill_over} on {found['n']:,} forecasts."


def _interval(bounds: list[float] | None, digits: int = 3) -> str:
    return "" if bounds is None else f" (95 % interval {bounds[0]:+.{digits}f} to {bounds[1]:+.{digits}f})"


def words(name: str) -> str:
    """The key of a forecast as words."""
    return "logistic regression" if name == "logistic" else name.replace("_", " ")
