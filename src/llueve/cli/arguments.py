"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

from typer import Argument, BadParameter, Option


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


ConfigFile = Annotated[Path, Argument(metavar="CONFIG.toml", help="Configuration; examples/ has complete files.")]
RunDirectory = Annotated[Path, Argument(metavar="DIR", help="Run directory, the output of `llueve train`.")]
Overrides = Annotated[
    list[str] | None, Option("--set", metavar="KEY=VALUE", help="Change a key, as in train.epochs=5; repeatable.")
]
AsJson = Annotated[bool, Option("--json", help="Print JSON instead of a table.")]
