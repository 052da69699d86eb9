"""Find out what each variable of a panel is: its physical quantity, and the unit in which it holds it.

The evidence, the most certain first: the configuration, a CF standard name or a defined name in the file, the variable's
name with its unit, its values. A contradiction makes a finding and no quantity. Nothing in the values or units changes.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import xarray as xr

from llueve.errors import DataError, listed, shortened
from llueve.panel import Finding, KnownQuantity, feature_names
from llueve.quantities.catalogue import NONE, QUANTITIES, SAME_AS, Meaning, Origin, Part, Statistic, meaning_of
from llueve.quantities.header_words import LONE_RAIN, VOCABULARIES
from llueve.quantities.name_meanings import NameMeanings, compact, defined_by, look_up
from llueve.quantities.unit_table import unit_of
from llueve.sources.names_and_units import unknown_name
from llueve.sources.pressure_level import pressure_level
from llueve.sources.quantity_agreement import disagreements
from llueve.sources.quantity_values import COMMON_UNITS, Sample, misfit

GUST = "wind_speed_of_gust"
LISTED = 40
"""Largest number of guesses that a finding names."""


@dataclass(frozen=True)
class Doubt:
    """A variable whose evidence contradicts itself, or does not decide."""

    contradicts: bool
    reason: str
    advice: str


Answer = KnownQuantity | Doubt | None


def with_quantities(
    panel: xr.Dataset, configured: Mapping[str, str], wind_directions: tuple[str, ...], *, is_new: bool = False
) -> xr.Dataset:
    """The panel with the quantity of each variable in its attributes, and with findings on guesses and contradictions.

    The attributes are `quantity`, `quantity_detail`, `quantity_from` and `quantity_units`; see `llueve.panel`.

    Args:
        panel: a panel as a reader made it.
        configured: `data.quantities`: a quantity, or `none`, by variable or by column of `wind_directions`.
        wind_directions: columns that became a sine and a cosine.
        is_new: True for newer data of a trained model, which may lack configured variables.

    Raises:
        DataError: `configured` names something that is not a variable, or a column of `wind_directions` that is no direction.
    """
    names = feature_names(panel)
    parts = {f"{column}_{part}": column for column in wind_directions for part in ("sin", "cos")}
    if not is_new:
        variables = [*names, *wind_directions]
        for name in configured:
            if name not in variables:
                raise unknown_name(str(panel.attrs.get("source", "")), "data.quantities", name, "variables", variables)
    answers: dict[str, Answer] = {}
    for name in names:
        column = parts.get(name, name)
        given = configured.get(name, configured.get(column))
        if given is not None:
            answers[name] = _configured(panel, name, given, is_part=name != column)
        elif name != column:
            answers[name] = _direction_part(name, column)
        else:
            answers[name] = _identified(panel, name)
    known = {name: each for name, each in answers.items() if isinstance(each, KnownQuantity)}
    for name, reason in disagreements(panel, known).items():
        answers[name] = _contradiction(name, f"it is taken for {known[name].meaning}, but {reason}")
    defined = frozenset(name for name in names if _definition(_evidence(panel, name)) is not None)
    answers = _alone(answers, defined)
    findings = (*panel.attrs.get("findings", ()), *_findings(panel, answers, defined))
    found = panel.copy(deep=False)
    for name, answer in answers.items():
        if standard_name := _evidence(panel, name).get("standard_name"):
            found.variables[name].attrs["standard_name"] = standard_name
        if isinstance(answer, KnownQuantity):
            found.variables[name].attrs.update(answer.as_attributes())
    found.attrs = {key: value for key, value in panel.attrs.items() if key != "evidence"} | {"findings": findings}
    return found


def _evidence(panel: xr.Dataset, name: str) -> Mapping[str, Any]:
    """Facts of the reader on one variable: standard_name, long_name, cell_methods, step_type, defined_name, above_ground."""
    evidence: Mapping[str, Any] = panel.attrs.get("evidence", {}).get(name, {})
    return evidence


def _configured(panel: xr.Dataset, name: str, text: str, is_part: bool) -> Answer:
    """The quantity that `data.quantities` gives, which overrules all other evidence; a part of a direction must be one."""
    if (meaning := meaning_of(text)) is None:
        return None
    if is_part:
        if meaning.quantity.unit.dimension != "angle":
            source = panel.attrs.get("source", "the data")
            raise DataError(
                f"{source}: data.quantities says {meaning} for a column of data.wind_directions; expected a direction, such as "
                "wind_from_direction: correct one of the two keys"
            )
        meaning = replace(meaning, part=_part_of(name))
    attrs = panel.variables[name].attrs
    units = attrs.get("units") or getattr(look_up(name), "said", None)
    if units is None:
        fitting = _fitting_units(meaning, Sample.of(panel, name))
        units = fitting[0] if len(fitting) == 1 else None
    usable = meaning.part is None and meaning.quantity.conversion(units, 1.0) is not None
    return KnownQuantity(meaning, "configured", units if usable else None)


def _direction_part(name: str, column: str) -> Answer:
    """The sine or cosine of a column of `data.wind_directions`: the configuration says that it is a direction."""
    found = look_up(column)
    directions = [each for each in found.meanings if each.quantity.unit.dimension == "angle"] if found else []
    meaning = directions[0] if directions else Meaning(QUANTITIES["wind_from_direction"])
    return KnownQuantity(replace(meaning, part=_part_of(name)), "configured", None)


def _part_of(name: str) -> Part:
    """The part of a direction that a variable of a column of `data.wind_directions` holds."""
    return "sine" if name.endswith("_sin") else "cosine"


def _identified(panel: xr.Dataset, name: str) -> Answer:
    """The quantity by the standard name in the file, by the definition of its format, or by the names of the variable."""
    evidence = _evidence(panel, name)
    if evidence.get("above_ground"):
        return None
    defined = _definition(evidence)
    if standard := evidence.get("standard_name"):
        quantity = SAME_AS.get(standard, standard)
        if quantity in QUANTITIES:
            meaning = _with_statistic(Meaning(QUANTITIES[quantity]), _statistic(evidence, defined))
            return _checked(panel, name, meaning, "standard_name", f"standard name {standard}")
        if (found := look_up(standard)) is None or found.sure:
            return None  # the file says that it is another quantity
        return _by_name(panel, name, found, standard)
    if defined is not None:
        return _checked(panel, name, _with_statistic(defined, _statistic(evidence, defined)), "name", f"name {name!r}")
    for label in (name, evidence.get("long_name")):
        if label and (found := look_up(label)) is not None:
            return _by_name(panel, name, found, label)
    return None


def _definition(evidence: Mapping[str, Any]) -> Meaning | None:
    """The meaning by a name that the format of the file defines, such as an element of GHCN-Daily."""
    title, name = evidence.get("defined_name", (None, None))
    vocabulary = next((each for each in VOCABULARIES if each.title == title), None)
    return None if vocabulary is None else defined_by(vocabulary, name)


def _statistic(evidence: Mapping[str, Any], defined: Meaning | None) -> Statistic | None:
    """The extreme that the values are: by `cell_methods`, else by a defined name, else by the `stepType` of GRIB."""
    methods = str(evidence.get("cell_methods", ""))
    statistics: tuple[Statistic, Statistic] = ("maximum", "minimum")
    for each in statistics:
        if f"time: {each}" in methods:
            return each
    if defined is not None and defined.statistic is not None:
        return defined.statistic
    by_step: dict[str, Statistic] = {"max": "maximum", "min": "minimum"}
    return by_step.get(str(evidence.get("step_type", "")))


def _with_statistic(meaning: Meaning, statistic: Statistic | None) -> Meaning:
    """The meaning with a statistic; a gust is a maximum by itself."""
    return meaning if meaning.quantity.name == GUST else replace(meaning, statistic=statistic)


def _checked(panel: xr.Dataset, name: str, meaning: Meaning, origin: Origin, evidence: str) -> Answer:
    """A quantity that the file states, unless its unit or its values contradict it."""
    found = NameMeanings((meaning,), said=None)
    return _with_unit(panel, name, found, evidence, origin)


def _by_name(panel: xr.Dataset, name: str, found: NameMeanings, label: str) -> Answer:
    """The quantity by a name that llueve knows, with unit and values that agree."""
    units, said = panel.variables[name].attrs.get("units"), found.said
    evidence = f"name {label!r}"
    if units and said and unit_of(units) is not None and unit_of(units) != unit_of(said):
        return _contradiction(name, f"its {evidence} says {said}, but its unit is {units}")
    return _with_unit(panel, name, found, evidence, None)


def _contradiction(name: str, reason: str) -> Doubt:
    advice = f'set data.quantities = {{ {_key(name)} = "{NONE}" }} or its quantity, or correct data.units'
    return Doubt(True, reason, advice)


def _with_unit(panel: xr.Dataset, name: str, found: NameMeanings, evidence: str, origin: Origin | None) -> Answer:
    """The quantity among the meanings that agrees with unit and values; a doubt if none or several do."""
    sample = Sample.of(panel, name)
    units = panel.variables[name].attrs.get("units") or found.said
    if units is None:
        return _without_unit(panel, name, found, evidence, sample, origin)
    meant = _names(found.meanings)
    quiet = not found.sure and len(compact(name)) < 3  # a letter such as `p` may stand for anything
    if unit_of(units) is None:
        reason = f"its {evidence} says {meant}, but llueve does not know its unit {shortened(units)}"
        return (
            None
            if quiet
            else Doubt(False, reason, f"set data.quantities.{_key(name)}, or write the unit as mm or m s-1")
        )
    fitting = [each for each in found.meanings if each.quantity.conversion(units, sample.hours) is not None]
    if not fitting:
        return None if quiet else _contradiction(name, f"its {evidence} says {meant}, but its unit is {units}")
    misfits = {each: misfit(each.quantity, units, sample) for each in fitting}
    agreeing = [each for each, reason in misfits.items() if reason is None]
    if not agreeing:
        reason = next(reason for reason in misfits.values() if reason is not None)
        return _contradiction(name, f"its {evidence} says {_names(fitting)}, but {reason}")
    if len(agreeing) > 1:
        return _among(panel, name, agreeing, units, evidence)
    decided: Origin = "name" if found.sure else "unit" if len(fitting) == 1 else "values"
    return KnownQuantity(agreeing[0], origin or decided, units)


def _without_unit(
    panel: xr.Dataset, name: str, found: NameMeanings, evidence: str, sample: Sample, origin: Origin | None
) -> Answer:
    """The quantity of a variable without a unit: by a sure name, or if the values fit one quantity in one unit only."""
    fits = {each: units for each in found.meanings if (units := _fitting_units(each, sample))}
    meant = _names(found.meanings)
    unclear = Doubt(
        False, f"its {evidence} may mean {meant}, and it has no unit", f"set its unit in data.units.{_key(name)}"
    )
    if not fits:
        if not found.sure and len(compact(name)) < 3:
            return unclear
        reason = (
            f"its {evidence} says {meant}, but its values, with a median of {sample.median:g}, fit it in no usual unit"
        )
        return _contradiction(name, reason)
    if found.sure:
        ((meaning, units),) = fits.items()
        assumed = [unit for unit in found.units if unit in units]
        unit = assumed[0] if len(assumed) == 1 else units[0] if len(units) == 1 else None
        return KnownQuantity(meaning, origin or "name", unit)
    possible = {unit for units in fits.values() for unit in units}
    if len(possible) > 1:
        return unclear
    (unit,) = possible
    if len(fits) > 1:
        return _among(panel, name, [*fits], unit, evidence)
    return KnownQuantity(next(iter(fits)), "values", unit)


def _among(panel: xr.Dataset, name: str, meanings: list[Meaning], units: str, evidence: str) -> Answer:
    """The one of several meanings that agree with the unit: only for a pressure, whose values may show its level."""
    quantities = [each.quantity.name for each in meanings]
    level, reason = pressure_level(panel, name, units, quantities)
    if level is None:
        advice = f'set data.quantities = {{ {_key(name)} = "{quantities[0]}" }} or another'
        return Doubt(False, f"its {evidence} may mean {_names(meanings)}{reason}", advice)
    return KnownQuantity(meanings[quantities.index(level)], "values", units, reason)


def _names(meanings: Iterable[Meaning]) -> str:
    """The quantities of meanings: `surface_air_pressure or air_pressure_at_mean_sea_level`."""
    return " or ".join(dict.fromkeys(each.quantity.name for each in meanings))


def _fitting_units(meaning: Meaning, sample: Sample) -> list[str]:
    """The usual units in which the values fit a quantity."""
    quantity = meaning.quantity
    kinds = {quantity.unit.dimension, *(("energy",) if "energy" in quantity.accepted else ())}
    common = [unit for kind in kinds for unit in COMMON_UNITS[kind]]
    return [unit for unit in common if misfit(quantity, unit, sample) is None]


def _alone(answers: dict[str, Answer], defined: frozenset[str]) -> dict[str, Answer]:
    """Rain that only its name calls so is all precipitation, unless the data know precipitation besides."""
    rain, total = LONE_RAIN
    known = {name: each for name, each in answers.items() if isinstance(each, KnownQuantity)}
    if any(each.meaning.quantity.name == total for each in known.values()):
        return answers
    changed = {
        name: replace(each, meaning=replace(each.meaning, quantity=QUANTITIES[total]))
        for name, each in known.items()
        if each.meaning.quantity.name == rain and each.origin in ("name", "unit", "values") and name not in defined
    }
    return {**answers, **changed}


def _findings(panel: xr.Dataset, answers: Mapping[str, Answer], defined: frozenset[str]) -> list[Finding]:
    """One finding that lists all guesses, and one for each doubt."""
    findings = []
    guesses = []
    for name, known in answers.items():
        if not isinstance(known, KnownQuantity) or known.origin in ("configured", "standard_name") or name in defined:
            continue
        unit = "unit unknown" if known.units is None else None
        if known.units and not panel.variables[name].attrs.get("units"):
            unit = f"taken as {known.units}"
        facts = (f"by its {known.origin}", known.reason, unit)
        guesses.append(f"{name} = {known.meaning} ({'; '.join(filter(None, facts))})")
    if guesses:
        message = (
            f"quantities by guess: {listed(guesses, LISTED)}; correct a wrong one in data.quantities, and a wrong unit in "
            "data.units"
        )
        findings.append(Finding("quantities_guessed", "info", message, count=len(guesses)))
    for name, answer in answers.items():
        if isinstance(answer, Doubt):
            message = f"{shortened(name)}: {answer.reason}; it gets no quantity: {answer.advice}"
            if answer.contradicts:
                findings.append(Finding("quantity_contradiction", "warning", message, variable=name))
            else:
                findings.append(Finding("quantity_ambiguous", "info", message, variable=name))
    return findings


def _key(name: str) -> str:
    """A name as a key of a table in TOML."""
    is_bare = name.replace("_", "").replace("-", "").isalnum() and name.isascii()
    return name if is_bare else json.dumps(name[:60], ensure_ascii=False)
