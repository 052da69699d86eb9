"""Results on the screen: a line, a table, or JSON."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from rich.console import Console, Group, RenderableType
from rich.text import Text

from llueve.errors import RunError


class Screen(Console):
    """A console that reports a closed pipe as an error; rich would end the program."""

    def on_broken_pipe(self) -> NoReturn:
        """Called by rich when the reader of the output is gone."""
        raise BrokenPipeError("its reader is gone")


def write(text: str) -> None:
    """Write to standard output as it is.

    Raises:
        RunError: standard output is closed, or its disk is full.
    """
    with _writing():
        sys.stdout.write(text)


def say(text: str, error: bool = False) -> None:
    """Write one message as it is: no markup, no line breaks of its own; `RunError` as for `write`."""
    with suppress(OSError) if error else _writing():
        Screen(stderr=error, emoji=False).print(text, highlight=False, markup=False, soft_wrap=True)


def show(shown: RenderableType, data: Any = None, as_json: bool = False) -> None:
    """Write a result to standard output: its table, or `data` as JSON; `RunError` as for `write`."""
    if as_json:
        write(json.dumps(data, indent=2, allow_nan=False) + "\n")
    else:
        with _writing():
            Screen(emoji=False, highlight=False).print(shown)


def verification_table(verification: Mapping[str, Any]) -> Group:
    """The scores of a run, and its verdict in bold."""
    from llueve.verification.score_table import render

    return Group(render(verification), Text(verification["verdict"], style="bold"))


@contextmanager
def _writing() -> Iterator[None]:
    if sys.stdout is None:
        raise RunError("standard output: is closed; run the command without `>&-`")
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        raise unwritable(error) from error


def unwritable(error: OSError) -> RunError:
    """The error for a standard output that takes no more text."""
    return RunError(
        f"standard output: cannot be written ({error.strerror or error}); free the disk, or keep its reader open"
    )
