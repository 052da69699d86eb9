"""A command of OpenLTM's, run: its flags are mapped and shown, then it trains or evaluates."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Shown
from rich.text import Text

from llueve.compatibility.flags import IDLE, Flags, parse_flags
from llueve.compatibility.mapping import Mapped, Row, map_flags, run_directory
from llueve.compatibility.table import look_at
from llueve.config import Config, parse_config

HELP = "OpenLTM's flags for classification, as llueve understands them: docs/training.md. For all else: llueve --help"


def run(arguments: Sequence[str] | None = None) -> None:
    """Train or evaluate as a command of OpenLTM's says; without arguments, those of this process.

    Raises:
        UsageError: a flag is unknown or impossible, or flags contradict each other. Others: see `llueve.errors`.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    out = Console(emoji=False)
    if "--help" in given or "-h" in given:
        out.print(HELP, highlight=False, markup=False)
        return
    flags = parse_flags(given)
    directory = run_directory(flags)
    if flags["is_training"]:
        config, mapped = _configuration(flags)
        out.print(render(mapped.rows))
    else:
        config = None
        out.print(render((Row("is_training", "0", f"evaluate the run {directory}, with its own configuration"),)))
    from llueve import pipeline  # imports torch
    from llueve.verification.verify import render as render_verification

    if config is None:
        verification = pipeline.evaluate(directory)
    else:
        verification = pipeline.train(
            config, directory, overwrite=True, console=Console(stderr=True, emoji=False)
        ).verification
    out.print(render_verification(verification))
    out.print(verification["verdict"], style="bold", highlight=False)
    out.print(f"run directory: {directory}", highlight=False, markup=False, soft_wrap=True)


def _configuration(flags: Flags) -> tuple[Config, Mapped]:
    table = look_at(Path(flags["root_path"]) / flags["data_path"], flags["target"])
    map_flags(flags, table)  # contradictions cost no look at a large checkpoint
    sizes = None
    if flags["adaptation"]:
        from llueve.model.pretrained import inspect_checkpoint  # imports torch

        sizes = vars(inspect_checkpoint(flags["pretrain_model_path"])[0].sizes)
    mapped = map_flags(flags, table, sizes)
    return parse_config(mapped.table, where="run.py"), mapped


def render(rows: Sequence[Row]) -> Shown:
    """The mapping as a table: flag, value (OpenLTM's default in parentheses), what it became."""
    shown = Shown("flag", "value", "became", box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        style = "dim" if row.flag in IDLE else ""
        shown.add_row(*(Text(text, overflow="fold") for text in (f"--{row.flag}", row.value, row.became)), style=style)
    return shown
