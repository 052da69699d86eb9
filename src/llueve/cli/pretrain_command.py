"""The command that pre-trains the weather encoder: `pretrain`."""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Option

from llueve.cli.arguments import AsJson, ConfigFile, Overrides, a_path
from llueve.cli.output import say, show
from llueve.distributed.torchrun import process_rank
from llueve.errors import UsageError


def pretrain(
    config: ConfigFile,
    run: Annotated[
        Path | None, Option("--run", "-r", metavar="DIR", parser=a_path, help="Run directory to create.")
    ] = None,
    list_sites: Annotated[
        bool, Option("--list", help="List the sites of the corpus that would be used; nothing is trained.")
    ] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier run when this one is scored.")] = False,
    resume: Annotated[bool, Option("--resume", help="Resume an interrupted run, or start a new one.")] = False,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Pre-train the weather encoder on a corpus of hourly records, and score it at sites that it never saw."""
    from llueve.config import load_pretrain_config
    from llueve.runs.directory import CONFIG

    if (run is None) != list_sites:
        raise UsageError("give --run DIR to pre-train, or --list to list the sites of the corpus, one of them")
    if list_sites and (overwrite or resume):
        raise UsageError("--list trains nothing: remove --overwrite and --resume")
    settings = load_pretrain_config(config, tuple(overrides or ()))
    if run is None:
        from llueve.pretraining.corpus_list import list_corpus

        with Console(stderr=True, emoji=False).status("reading the corpus"):
            found = list_corpus(settings.corpus)
        show(found.render(), found.as_dict(), as_json)
        return
    if not resume and (run / CONFIG).exists() and config.samefile(run / CONFIG):
        raise UsageError(
            f"{config}: lies in the run directory, which would replace it; copy it elsewhere, or give another --run"
        )
    from llueve.pretraining.card_text import score_table
    from llueve.pretraining.pretrain import pretrain as train_encoder

    first = process_rank() == 0
    console = Console(stderr=True, emoji=False, quiet=not first)
    result = train_encoder(settings, run, overwrite, console, resume)
    if first:
        show(score_table(result.card), result.card.model_dump(mode="json"), as_json)
        if not as_json:
            say(f"run directory: {result.directory}")
