"""Refused keys and values of the configuration, each as a sentence: key, value, what was expected, nearest valid name."""

import difflib
from collections.abc import Iterator
from datetime import date, time
from typing import Any, get_args

from pydantic_core import ErrorDetails

from llueve.config.section import Section

EXPECTED = {
    "string_type": "text in quotes",
    "string_too_short": "text that is not empty",
    "string_unicode": "text without lone surrogates",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    "int_parsing_size": "a whole number of fewer digits",
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    "greater_than": "a number above {gt:,.12g}",
    "greater_than_equal": "a number of at least {ge:,.12g}",
    "less_than": "a number below {lt:,.12g}",
    "less_than_equal": "a number of at most {le:,.12g}",
    "literal_error": "{expected}",
    "moment": "a date, or a date and time, such as 2022-01-02 or 2022-01-02 07:00:00",
    "tuple_type": "a list in square brackets",
    "too_long": "a list of {max_length}, found {actual_length}",
    "dict_type": "a table, with names and values",
    "model_type": "a table, with the keys of this section",
}
"""Expected value for each type of pydantic error, with the names of its context in braces."""
LONGEST_REASON = 500
"""Most characters of a reason that lists values."""


def explain(problem: ErrorDetails, whole: type[Section]) -> str:
    """One refused key of a configuration, of the class `whole`, as a sentence."""
    location = [str(part) for part in problem["loc"]]
    key, kind, found = ".".join(location), problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"{key} = {shown(found)}: this key does not exist; {_nearest(location, whole)}"
    if kind == "missing" and isinstance(number := problem["loc"][-1], int):
        return f"{'.'.join(location[:-1])}: value {number + 1} of the list is missing"
    if kind == "missing":
        return f"{key}: {'section is missing' if len(location) == 1 else 'is missing'}; add it (examples/ has complete files)"
    context = problem.get("ctx", {})
    if kind == "value_error":
        reason = str(context["error"])
        reason = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]}…"
        return f"{key}: {reason}" if key else reason
    message = f"{key} = {shown(found)}: expected {EXPECTED.get(kind, 'another value').format(**context)}"
    if kind == "literal_error" and isinstance(found, str):
        words = context["expected"].replace(" or ", ", ").strip("'").split("', '")
        close = difflib.get_close_matches(found, words, n=1)
        message += f"; did you mean {close[0]!r}?" if close else ""
    return message


def shown(value: object) -> str:
    """A value as TOML writes it, or nearly; a long one is shortened."""
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value) if isinstance(value, date | time) else repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _section_at(location: list[str], whole: type[Section]) -> type[Section]:
    """Class of the section that a location leads into."""
    section = whole
    for part in location:
        field = section.model_fields.get(part)
        section = next(_sections(field.annotation), section) if field is not None else section
    return section


def _sections(annotation: Any) -> Iterator[type[Section]]:
    """Classes of sections inside a type such as `tuple[PhaseConfig, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)


def _nearest(location: list[str], whole: type[Section]) -> str:
    """Advice for an unknown key: the nearest key here, the same key in another section, or all keys here."""
    *section, unknown = location
    here = list(_section_at(section, whole).model_fields)
    if close := difflib.get_close_matches(unknown, here, n=1):
        return f"did you mean {'.'.join([*section, close[0]])}?"
    for name in whole.model_fields:
        if unknown in _section_at([name], whole).model_fields:
            return f"did you mean {name}.{unknown}?"
    return f"valid names here are {', '.join(here)}"
