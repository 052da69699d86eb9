"""The command line: parses arguments, calls the pipeline, prints what comes back.

Exit codes: 0 fine, 1 failed, 2 wrong use or configuration, 3 stopped by the guard, 4 errors in the audit, 130 and
143 ended by SIGINT and SIGTERM.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from llueve import data_commands
from llueve.errors import LlueveError, RunError, UsageError
from llueve.torchrun import is_first_to_say, process_count, process_rank

app = typer.Typer(
    name="llueve",
    help="Will it rain? Train, verify and use a Timer-XL rain / no-rain classifier.\n\n"
    "Exit codes: 0 fine, 1 failed, 2 wrong use, 3 stopped by the guard, 4 errors in the audit.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Work with configuration files.", no_args_is_help=True)
app.add_typer(config_app, name="config")
checkpoint_app = typer.Typer(help="Look into and convert published checkpoints.", no_args_is_help=True)
app.add_typer(checkpoint_app, name="checkpoint")
app.add_typer(data_commands.app, name="data")
incident_app = typer.Typer(help="Look at refused training steps, and run them again.", no_args_is_help=True)
app.add_typer(incident_app, name="incident")

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG.toml", help="The configuration; examples/ has complete ones.")
]
RunDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="A run directory, as `llueve train` leaves it.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one setting; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def train(
    config: ConfigFile,
    run: Annotated[Path, typer.Option("--run", "-r", metavar="DIR", help="The run directory to make.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run there.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run; begin it if there is none.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Train a model, verify it on the test period, and print the verdict."""
    from llueve.config import load_config
    from llueve.run import CONFIG

    settings = load_config(config, tuple(overrides or ()))
    if not resume and config.resolve() == (run / CONFIG).resolve():
        raise UsageError(
            f"{config}: lies in the run directory, which would replace it; copy it elsewhere, or give another --run"
        )
    from llueve import pipeline  # imports torch
    from llueve.verification.verify import render

    first = process_rank() == 0
    result = pipeline.train(settings, run, overwrite, Console(stderr=True, emoji=False, quiet=not first), resume)
    if not first:
        return
    out = Console(emoji=False)
    out.print(render(result.verification))
    out.print(result.verdict, style="bold", highlight=False)
    out.print(f"run directory: {result.directory}", highlight=False)


@app.command()
def evaluate(run: RunDirectory, as_json: AsJson = False) -> None:
    """Verify a trained run on its test period again."""
    from llueve import pipeline
    from llueve.verification.verify import render

    verification = pipeline.evaluate(run)
    if as_json:
        sys.stdout.write(json.dumps(verification, indent=2) + "\n")
        return
    out = Console(emoji=False)
    out.print(render(verification))
    out.print(verification["verdict"], style="bold", highlight=False)


@app.command()
def predict(
    run: RunDirectory,
    table: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="A table with the trained columns, or a trained archive's newer files."),
    ],
    every_window: Annotated[bool, typer.Option("--all", help="Every complete window, not each site's last.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE.csv", help="Write there, not to the screen.")
    ] = None,
) -> None:
    """Give the probability of the event: one per site, as CSV with site, time, probability."""
    from llueve import pipeline

    forecasts = pipeline.predict(run, table, every_window)
    try:
        forecasts.to_csv(output if output is not None else sys.stdout, index=False, float_format="%.6f")
    except OSError as error:
        if output is None:
            raise
        raise RunError(
            f"{output}: cannot be written ({error.strerror or error}); give --output a file in a folder that exists"
        ) from error


@app.command()
def audit(
    config: ConfigFile,
    overrides: Overrides = None,
    concatenated: Annotated[
        bool,
        typer.Option(
            "--concatenated", help="Judge the table laid end to end, site below site, as OpenLTM would cut it."
        ),
    ] = False,
    context: Annotated[
        int | None, typer.Option("--context", metavar="STEPS", help="Instead of windows.context.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", metavar="WINDOWS", help="Instead of train.batch_size.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge the data before training: missing cells, gaps, marks, units, leaks, and the forecast of failure."""
    from llueve.audit import audit_laid_end_to_end, audit_panel, render
    from llueve.config import load_config
    from llueve.reading import read_panel

    given = {"windows.context": context, "train.batch_size": batch_size}
    changes = [f"{key}={value}" for key, value in given.items() if value is not None]
    if concatenated:
        changes.append("data.exclude=[]")  # as the original did: the columns that know the future too
    settings = load_config(config, (*(overrides or ()), *changes))
    judge = audit_laid_end_to_end if concatenated else audit_panel
    report = judge(read_panel(settings), settings)
    if as_json:
        sys.stdout.write(json.dumps(report.as_dict(), indent=2) + "\n")
    else:
        Console(emoji=False).print(render(report))
    if report.errors:
        raise typer.Exit(4)


@config_app.command("check")
def config_check(config: ConfigFile, overrides: Overrides = None) -> None:
    """Validate a configuration and print it with every default."""
    from llueve.config import load_config

    sys.stdout.write(load_config(config, tuple(overrides or ())).to_toml())


Checkpoint = Annotated[
    str, typer.Argument(metavar="FILE", help="A .pth or .safetensors file, a folder with one, or a Hugging Face name.")
]


@checkpoint_app.command("inspect")
def checkpoint_inspect(file: Checkpoint, as_json: AsJson = False) -> None:
    """Tell format, sizes, and what of a checkpoint would load; nothing in the file is run."""
    from llueve.model.pretrained import inspect_checkpoint

    report, _ = inspect_checkpoint(file)
    if as_json:
        sys.stdout.write(json.dumps(report.as_dict(), indent=2) + "\n")
    else:
        Console(emoji=False).print(report.render(), highlight=False)
    if report.problems(()):
        raise typer.Exit(1)


@checkpoint_app.command("convert")
def checkpoint_convert(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A checkpoint, or a run directory for its encoder.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="openltm, huggingface or safetensors.")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for the new file.")],
    allow_missing: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-missing", metavar="NAME", help="A tensor that may be absent or left over; * is any text."
        ),
    ] = None,
) -> None:
    """Write an encoder in another published format, where its architecture has one."""
    if to not in ("openltm", "huggingface", "safetensors"):
        raise UsageError(f"--to {to}: expected openltm, huggingface or safetensors")
    from llueve import pipeline

    for path in pipeline.convert(file, to, output, tuple(allow_missing or ())):  # type: ignore[arg-type]
        Console(emoji=False).print(f"wrote {path}", highlight=False, markup=False)


IncidentNumber = Annotated[
    int | None, typer.Argument(metavar="[N]", help="Number of the incident; the last one without it.")
]


@incident_app.command("list")
def incident_list(run: RunDirectory, as_json: AsJson = False) -> None:
    """List the training steps of a run that were refused and kept."""
    from llueve.stability import incident

    found = incident.list_incidents(run)
    if as_json:
        sys.stdout.write(json.dumps([each.as_dict() for each in found], indent=2) + "\n")
    elif found:
        Console(emoji=False).print(incident.render_list(found))
    else:
        Console(emoji=False).print(f"{run}: no incidents", highlight=False, markup=False)


@incident_app.command("show")
def incident_show(run: RunDirectory, number: IncidentNumber = None, as_json: AsJson = False) -> None:
    """Tell what one refused step was: why, when, with which samples, where it was computed."""
    from llueve.stability import incident

    about = incident.load_incident(run, number).about
    if as_json:
        sys.stdout.write(json.dumps(about.model_dump(), indent=2) + "\n")
    else:
        Console(emoji=False).print(incident.render_description(about))


@incident_app.command("replay")
def incident_replay(run: RunDirectory, number: IncidentNumber = None, as_json: AsJson = False) -> None:
    """Run one refused step again, and tell whether it gives the same bits here."""
    from llueve.stability import incident

    replayed = incident.replay(incident.load_incident(run, number))
    if as_json:
        sys.stdout.write(json.dumps(replayed.as_dict(), indent=2) + "\n")
    else:
        Console(emoji=False).print(replayed.verdict, highlight=False, markup=False)


@incident_app.command("explain")
def incident_explain(
    run: RunDirectory,
    number: IncidentNumber = None,
    whole_run: Annotated[bool, typer.Option("--all", help="Every kept step of the run, together.")] = False,
    language: Annotated[str, typer.Option("--language", metavar="en|es", help="English or Spanish.")] = "en",
    as_json: AsJson = False,
) -> None:
    """Find the cause of one refused step by replaying it under single changes, and tell what to do."""
    if language not in ("en", "es"):
        raise UsageError(f"--language {language}: expected en or es")
    if whole_run and number is not None:
        raise UsageError(f"--all explains every incident, so leave out the number {number}")
    from llueve.stability import incident

    if whole_run:
        whole = incident.explain_run(run)
        if as_json:
            sys.stdout.write(json.dumps(whole.as_dict(), indent=2, allow_nan=False) + "\n")
        else:
            Console(emoji=False).print(incident.render_run(whole, language), highlight=False)  # type: ignore[arg-type]
        return
    told = incident.explain_incident(incident.load_incident(run, number))
    if as_json:
        sys.stdout.write(json.dumps(told.as_dict(), indent=2, allow_nan=False) + "\n")
    else:
        Console(emoji=False).print(incident.render_explanation(told, language), highlight=False)  # type: ignore[arg-type]


def main(command: Callable[[], object] | None = None) -> None:
    """Entry point: an error of llueve's own tree becomes its message and exit code, without a traceback."""
    logging.basicConfig(
        level=logging.INFO if process_rank() == 0 else logging.ERROR,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True, emoji=False), show_path=False, show_time=False)],
    )
    # Spinning threads stall every small operation as soon as another process needs a core (docs/decisions/0007).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    earlier: Any = signal.signal(signal.SIGTERM, _terminated)
    try:
        (command or app)()
    except LlueveError as error:
        if process_count() > 1:
            # torchrun ends the others as soon as one has: each is to leave with the code of its own error.
            earlier = signal.SIG_IGN
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if is_first_to_say(str(error)):
            Console(stderr=True, emoji=False).print(
                f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True
            )
        sys.exit(error.exit_code)
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _terminated(number: int, _: object) -> NoReturn:
    """End as an exception does, so that unpacked files leave the temporary folder."""
    sys.exit(128 + number)
