"""The commands that make and use a run: `train`, `evaluate` and `predict`."""

from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Argument, Option

from llueve.cli.arguments import AsJson, ConfigFile, Overrides, RunDirectory, a_path, path_text
from llueve.cli.output import say, show, verification_table, write
from llueve.distributed.torchrun import process_rank
from llueve.errors import RunError, UsageError
from llueve.files import write_result


def train(
    config: ConfigFile,
    run: Annotated[Path, Option("--run", "-r", metavar="DIR", parser=a_path, help="Run directory to create.")],
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an earlier run when this one is verified.")] = False,
    resume: Annotated[bool, Option("--resume", help="Resume an interrupted run, or start a new one.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train a model, verify it on the test period, and print the verdict."""
    from llueve.config import load_config
    from llueve.runs.directory import CONFIG

    settings = load_config(config, tuple(overrides or ()))
    if not resume and (run / CONFIG).exists() and config.samefile(run / CONFIG):
        raise UsageError(
            f"{config}: lies in the run directory, which would replace it; copy it elsewhere, or give another --run"
        )
    from llueve import pipeline  # imports torch

    first = process_rank() == 0
    result = pipeline.train(settings, run, overwrite, Console(stderr=True, emoji=False, quiet=not first), resume)
    if first:
        show(verification_table(result.verification))
        say(f"run directory: {result.directory}")


def evaluate(run: RunDirectory, as_json: AsJson = False) -> None:
    """Verify a trained run again on its test period."""
    from llueve import pipeline

    verification = pipeline.evaluate(run)
    show(verification_table(verification), verification, as_json)


def predict(
    run: RunDirectory,
    table: Annotated[
        str, Argument(metavar="INPUT", parser=path_text, help="Table or archive like that of the training.")
    ],
    every_window: Annotated[bool, Option("--all", help="Forecast every complete window of each site.")] = False,
    output: Annotated[
        Path | None, Option(metavar="FILE.csv", parser=a_path, help="Write here, not to the screen.")
    ] = None,
) -> None:
    """Forecast the event: CSV with the columns site, time, probability and event (1 from the threshold on, otherwise 0)."""
    if output is not None:
        from llueve.runs.directory import Run
        from llueve.runs.outputs import input_paths, require_separate

        require_separate(output, (table, *input_paths(Run.open(run)[1])), run)
    from llueve import pipeline
    from llueve.csv_text import with_safe_sites

    content = with_safe_sites(pipeline.predict(run, table, every_window)).to_csv(index=False, float_format="%.6f")
    if output is None:
        write(content)
        return
    try:
        write_result(output, content.encode())
    except OSError as error:
        raise RunError(
            f"{output}: cannot be written ({error.strerror or error}); give --output a file in a folder that exists"
        ) from error
