"""A command of OpenLTM: its flags are mapped and shown, then it trains or evaluates."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llueve.cli.openltm.csv_summary import summarise_csv
from llueve.cli.openltm.flags import IGNORED_FLAGS, parse_flags
from llueve.cli.openltm.mapping import MappedFlag, map_flags, run_directory
from llueve.cli.output import say, show, verification_table
from llueve.config import parse_config


def run(arguments: Sequence[str] | None = None) -> None:
    """Train or evaluate with OpenLTM's flags; without `arguments`, with those of this process.

    Raises:
        UsageError: a flag is unknown or impossible, or flags contradict each other. Others: see `llueve.errors`.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if "--help" in given or "-h" in given:
        say("OpenLTM's flags for classification; docs/training.md lists them. For all other commands: llueve --help")
        return
    flags = parse_flags(given)
    directory = run_directory(flags)
    if flags["is_training"]:
        table = summarise_csv(Path(flags["root_path"], flags["data_path"]), flags["target"])
        mapped = map_flags(flags, table)  # reports contradictions before a large checkpoint is read
        if flags["adaptation"]:
            from llueve.model.checkpoints.pretrained import inspect_checkpoint

            mapped = map_flags(flags, table, vars(inspect_checkpoint(flags["pretrain_model_path"])[0].sizes))
        config = parse_config(mapped.sections, where="run.py")
        show(render(mapped.flags))
        from llueve import pipeline  # imports torch

        console = Console(stderr=True, emoji=False)
        verification = pipeline.train(config, directory, overwrite=True, console=console).verification
    else:
        show(render([MappedFlag("is_training", "0", f"evaluate the run {directory}, with its own configuration")]))
        from llueve import pipeline

        verification = pipeline.evaluate(directory)
    show(verification_table(verification))
    say(f"run directory: {directory}")


def render(flags: Sequence[MappedFlag]) -> Table:
    """The mapping as a table: flag, value (OpenLTM's default in parentheses), and effect."""
    table = Table("flag", "value", "effect", box=SIMPLE_HEAD, pad_edge=False)
    for name, *others in flags:
        cells = (Text(text, overflow="fold") for text in (f"--{name}", *others))
        table.add_row(*cells, style="dim" if name in IGNORED_FLAGS else "")
    return table
