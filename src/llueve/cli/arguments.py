"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option

from llueve.paths import path_problem


def number(text: str) -> float:
    """Parse a number of the command line."""
    try:
        return float(text)
    except ValueError:
        raise BadParameter(f"{text}: expected a number") from None


def whole_number(text: str) -> int:
    """Parse a whole number of the command line."""
    try:
        return int(text)
    except ValueError:
        raise BadParameter(f"{text}: expected a whole number") from None


def path_text(text: str) -> str:
    """Check a path of the command line, or the address of a store or a repository."""
    if problem := path_problem(text):
        raise BadParameter(f"{text[:100]!r}: {problem}")
    return text


def a_path(text: str) -> Path:
    """Parse a path of the command line."""
    return Path(path_text(text))


ConfigFile = Annotated[
    Path, Argument(metavar="CONFIG.toml", parser=a_path, help="Configuration; examples/ has complete files.")
]
RunDirectory = Annotated[
    Path, Argument(metavar="DIR", parser=a_path, help="Run directory, the output of `llueve train`.")
]
Overrides = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change a key, as in train.epochs=5; repeatable.")
]
AsJson = Annotated[bool, Option("--json", help="Print JSON instead of a table.")]
