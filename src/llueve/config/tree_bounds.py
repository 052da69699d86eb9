"""Bounds on a parsed TOML or JSON file, before anything reads its values: depth, entries, digits and lengths."""

from typing import Any

MOST_ENTRIES = 200_000
"""Most keys and values of a file."""
DEEPEST = 16
"""Most levels of tables and lists inside each other; llueve writes five."""
WHOLE_NUMBERS = 64
"""Bits of a whole number, as in TOML."""
LONGEST_TEXT = 10_000
"""Most characters of a text."""
LONGEST_KEY = 1_000


def tree_problem(content: Any) -> str | None:
    """The first value of a file that is too deep, too large or too long, as the end of a message; None if there is none.

    Later code may then print each value, and walk through all of them by recursion.
    """
    waiting: list[tuple[tuple[str, ...], Any]] = [((), content)]
    count = 0
    while waiting:
        place, value = waiting.pop()
        parts: list[tuple[str, Any]] = []
        if isinstance(value, dict):
            parts = list(value.items())
        elif isinstance(value, list):
            parts = [(str(number), each) for number, each in enumerate(value)]
        count += len(parts)
        if count > MOST_ENTRIES:
            return f"has more than {MOST_ENTRIES:,} keys and values"
        if len(place) > DEEPEST:
            return f"{'.'.join(place)}: is nested too deep; expected at most {DEEPEST} levels"
        if problem := _value_problem(value):
            return f"{'.'.join(place)}: {problem}"
        if long := next((key for key, _ in parts if len(key) > LONGEST_KEY or "\0" in key), None):
            return f"the key {long[:100]!r} has a NUL, or {len(long):,} characters; expected at most {LONGEST_KEY:,}"
        waiting += [((*place, key), each) for key, each in reversed(parts)]
    return None


def _value_problem(value: object) -> str | None:
    if isinstance(value, int) and value.bit_length() > WHOLE_NUMBERS:
        return f"is a whole number of {value.bit_length():,} bits; expected at most {WHOLE_NUMBERS}"
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        return f"is a text of {len(value):,} characters; expected at most {LONGEST_TEXT:,}"
    if isinstance(value, str) and "\0" in value:
        return "is a text with a NUL character; remove it"
    return None
