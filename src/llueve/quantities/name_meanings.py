"""Look a variable's name up: the meanings that it may have, and the units that its source means."""

import re
import unicodedata
from dataclasses import dataclass, replace
from functools import cache

from llueve.quantities.catalogue import Meaning, Quantity, Statistic, meaning_of
from llueve.quantities.header_words import SEVERAL_MEANINGS, VOCABULARIES
from llueve.quantities.vocabulary import Vocabulary

MOST_NAME = 120
"""Largest number of characters of a name that is looked up."""
_UNIT_SUFFIXES = {
    "c": "degC", "degc": "degC", "celsius": "degC", "k": "K", "kelvin": "K", "f": "degF", "degf": "degF",
    "fahrenheit": "degF", "hpa": "hPa", "pa": "Pa", "kpa": "kPa", "mb": "mbar", "mbar": "mbar", "inhg": "inHg",
    "mm": "mm", "cm": "cm", "m": "m", "in": "in", "inch": "in", "inches": "in", "ms": "m s-1", "mps": "m s-1",
    "kmh": "km/h", "kph": "km/h", "mph": "mph", "kt": "kt", "kts": "kt", "kn": "kt", "knots": "kt", "pct": "%",
    "percent": "%", "deg": "degree", "degrees": "degree", "rad": "rad", "wm2": "W m-2", "jm2": "J m-2", "kjm2": "kJ m-2",
    "mjm2": "MJ m-2", "okta": "okta", "oktas": "okta", "h": "h", "hours": "h",
}  # fmt: skip
"""Last words of a name, such as `temperature_c`, and the unit that they say."""
_STATISTICS: dict[str, Statistic | None] = {
    **dict.fromkeys(("maximum", "maxima", "maximo", "maximale", "max"), "maximum"),
    **dict.fromkeys(("minimum", "minima", "minimo", "minimale", "min"), "minimum"),
    **dict.fromkeys(("mean", "average", "avg", "media", "moyenne", "mittel"), None),
}
_WORDS = "|".join(sorted(_STATISTICS, key=len, reverse=True))
_FIRST = re.compile(rf"(?P<word>{_WORDS})(?P<stem>.+)")
_LAST = re.compile(rf"(?P<stem>.+?)(?P<word>{_WORDS})")
_CLOCK_FIRST = re.compile(r"(?P<hour>[0-9]{1,2})(?P<half>am|pm)(?P<stem>[a-z].*)")
_CLOCK_LAST = re.compile(r"(?P<stem>.*[a-z])(?P<hour>[0-9]{1,2})(?P<half>am|pm)")


@dataclass(frozen=True)
class NameMeanings:
    """The meanings that a name may have."""

    meanings: tuple[Meaning, ...]
    units: tuple[str, ...] = ()
    """Units that the sources with this name mean, where the data give none."""
    sure: bool = True
    """False for a name that is nothing without a unit, such as `T`, or has several meanings, such as `pressure`."""
    said: str | None = None
    """Unit that the name itself says, as in `temperature_c`."""


def compact(name: str) -> str:
    """A name without case, accents, blanks and marks."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss"))
    return re.sub(r"[^a-z0-9]", "", plain.lower())


def _assumed(vocabulary: Vocabulary, quantity: Quantity) -> str | None:
    """The unit that a source means where its file gives none; for an amount of water it must always be given."""
    if "water rate" in quantity.accepted:
        return None
    return vocabulary.units.get(quantity.name) or vocabulary.units.get(quantity.unit.dimension)


def _table() -> dict[str, NameMeanings]:
    found: dict[str, NameMeanings] = {}
    general: set[str] = set()
    for vocabulary in VOCABULARIES:
        for text, names in vocabulary.names.items():
            meaning = meaning_of(text)
            assert meaning is not None
            unit = _assumed(vocabulary, meaning.quantity)
            for name in map(compact, names.split(",")):
                known = found.get(name, NameMeanings(()))
                meanings = dict.fromkeys((*known.meanings, meaning))
                units = dict.fromkeys((*known.units, *([unit] if unit else ())))
                found[name] = NameMeanings(tuple(meanings), tuple(units), len(meanings) == 1 and len(name) > 2)
                general |= set() if vocabulary.units else {name}
    # A name that is also in use with other units says nothing about the unit.
    found |= {name: replace(found[name], units=()) for name in general}
    for names, texts in SEVERAL_MEANINGS.items():
        meanings = dict.fromkeys(meaning for text in texts if (meaning := meaning_of(text)) is not None)
        for name in map(compact, names.split(",")):
            known = found.get(name, NameMeanings(()))
            found[name] = NameMeanings(tuple({**dict.fromkeys(known.meanings), **meanings}), known.units, sure=False)
    return found


_NAMES = _table()


def defined_by(vocabulary: Vocabulary, name: str) -> Meaning | None:
    """The meaning of a name in a format that defines it; None if the format does not name a quantity of the list so."""
    return _definitions(vocabulary.title).get(compact(name))


@cache
def _definitions(title: str) -> dict[str, Meaning]:
    (vocabulary,) = (each for each in VOCABULARIES if each.title == title)
    return {
        compact(name): meaning
        for text, names in vocabulary.names.items()
        if (meaning := meaning_of(text)) is not None
        for name in names.split(",")
    }


def look_up(name: str) -> NameMeanings | None:
    """The meanings of a name; None for a name that llueve does not know. Nothing is searched inside a longer name."""
    if len(name) > MOST_NAME:
        return None
    if found := _by_key(compact(name)):
        return found
    *words, last = re.split(r"[^a-z0-9]+", name.lower())
    if words and last in _UNIT_SUFFIXES and (found := _by_key(compact("".join(words)))):
        return replace(found, said=_UNIT_SUFFIXES[last])
    return None


def _by_key(key: str) -> NameMeanings | None:
    """The meanings of a compact name, or of one that adds a statistic or a clock hour to it."""
    if key in _NAMES:
        return _NAMES[key]
    for pattern in (_FIRST, _LAST):
        if (match := pattern.fullmatch(key)) and (found := _NAMES.get(match["stem"])):
            return _with_statistic(found, _STATISTICS[match["word"]])
    for pattern in (_CLOCK_FIRST, _CLOCK_LAST):
        if (match := pattern.fullmatch(key)) and 1 <= int(match["hour"]) <= 12 and (found := _NAMES.get(match["stem"])):
            clock = f"{int(match['hour']) % 12 + 12 * (match['half'] == 'pm'):02}:00"
            return replace(found, meanings=tuple(replace(each, clock=clock) for each in found.meanings))
    return None


def _with_statistic(found: NameMeanings, statistic: Statistic | None) -> NameMeanings | None:
    """The meanings with a statistic, which a gust has by itself; None if they have another one already."""
    if statistic is None:
        return found if all(each.statistic is None for each in found.meanings) else None
    if any(each.statistic not in (None, statistic) or each.quantity.is_sum for each in found.meanings):
        return None
    return replace(
        found,
        meanings=tuple(
            each if each.quantity.name == "wind_speed_of_gust" else replace(each, statistic=statistic)
            for each in found.meanings
        ),
    )
