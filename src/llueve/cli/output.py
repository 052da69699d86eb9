"""Results on the screen: a line, a table, or JSON."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text


def say(text: str, error: bool = False) -> None:
    """Write one message as it is: no markup, no line breaks of its own."""
    Console(stderr=error, emoji=False).print(text, highlight=False, markup=False, soft_wrap=True)


def show(shown: RenderableType, data: Any = None, as_json: bool = False) -> None:
    """Write a result to standard output: its table, or `data` as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(data, indent=2, allow_nan=False) + "\n")
    else:
        Console(emoji=False, highlight=False).print(shown)


def verification_table(verification: Mapping[str, Any]) -> Group:
    """The scores of a run, and its verdict in bold."""
    from llueve.verification.verdict import render

    return Group(render(verification), Text(verification["verdict"], style="bold"))
