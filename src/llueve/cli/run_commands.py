"""The commands that make and use a run: `train`, `evaluate` and `predict`."""

import json
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


def evaluate(
    run: Annotated[Path | None, Argument(metavar="DIR", parser=a_path, help="Run directory to verify again.")] = None,
    predictions: Annotated[
        Path | None,
        Option(metavar="FILE.csv", parser=a_path, help="Verify the forecasts of a table, whoever made them."),
    ] = None,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, Option(metavar="FILE.json", parser=a_path, help="Write the JSON here as well.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="Change a key, as in verify.bootstrap=200; repeatable."),
    ] = None,
) -> None:
    """Verify a trained run again on its test period, or the forecasts of a table."""
    if (run is None) == (predictions is None):
        raise UsageError("give a run directory, or --predictions FILE.csv, one of them")
    if output is not None:
        from llueve.runs.directory import Run
        from llueve.runs.outputs import input_paths, require_separate

        inputs = [str(predictions)] if run is None else input_paths(Run.open(run)[1])
        require_separate(output, inputs, run)
    if run is not None:
        from llueve import pipeline  # imports torch

        verification = pipeline.evaluate(run, overrides=tuple(overrides or ()))
    else:
        from llueve.config import VerifyConfig, override_verify
        from llueve.verification.given_forecasts import verify_file

        settings = override_verify(VerifyConfig(), tuple(overrides or ()))
        with Console(stderr=True, emoji=False).status("verifying the forecasts"):
            verification = verify_file(str(predictions), settings)
    if output is not None:
        _write_output(output, (json.dumps(verification, indent=2, allow_nan=False) + "\n").encode())
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
    else:
        _write_output(output, content.encode())


def _write_output(output: Path, content: bytes) -> None:
    """Write a result to the path of `--output`."""
    try:
        write_result(output, content)
    except OSError as error:
        raise RunError(
            f"{output}: cannot be written ({error.strerror or error}); give --output a file in a folder that exists"
        ) from error
