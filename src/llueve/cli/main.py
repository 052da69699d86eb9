"""The command line: it parses arguments, calls the pipeline, and prints the result."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from types import FrameType
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from rich.markup import escape

from llueve.cli import (
    checkpoint_commands,
    config_commands,
    data_commands,
    forecast_command,
    incident_commands,
    pretrain_command,
    run_commands,
)
from llueve.cli.output import Screen, say, unwritable
from llueve.distributed.torchrun import is_first_to_say, process_count, process_rank
from llueve.errors import LlueveError, RunError
from llueve.version import __version__

EXIT_CODES = {
    0: "success",
    1: "failure",
    2: "wrong use or wrong configuration",
    3: "stopped by the guard",
    4: "errors in the audit",
    130: "ended by SIGINT (Ctrl-C)",
    143: "ended by SIGTERM",
}
app = typer.Typer(
    name="llueve",
    help="Will it rain? Train, verify and use a Timer-XL rain / no-rain classifier.\n\n"
    f"Exit codes: {', '.join(f'{code} {meaning}' for code, meaning in EXIT_CODES.items())}.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(epilog="Example: llueve train examples/seattle.toml --run runs/seattle")(run_commands.train)
app.command(epilog="Example: llueve evaluate runs/seattle --json")(run_commands.evaluate)
app.command(epilog="Example: llueve predict runs/seattle new.csv --output forecasts.csv")(run_commands.predict)
app.command(epilog="Example: llueve forecast --latitude -12.05 --longitude -77.04")(forecast_command.forecast)
app.command(epilog="Example: llueve pretrain examples/pretrain.toml --run runs/encoder")(pretrain_command.pretrain)
app.command(epilog="Example: llueve audit examples/seattle.toml --json")(config_commands.audit)
app.add_typer(config_commands.app, name="config")
app.add_typer(checkpoint_commands.app, name="checkpoint")
app.add_typer(data_commands.app, name="data")
app.add_typer(incident_commands.app, name="incident")


def _print_version(asked: bool) -> None:
    if asked:
        say(f"llueve {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of `llueve` itself."""


def main(command: Callable[[], object] | None = None) -> None:
    """Entry point: an error of llueve becomes its message and its exit code, without a traceback."""
    _prepare_streams()
    console = Screen(stderr=True, emoji=False)
    logging.basicConfig(
        level=logging.INFO if process_rank() == 0 else logging.ERROR,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_path=False, show_time=False)],
    )
    # Threads that spin delay every small operation while another process needs a core (docs/decisions/0007).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    earlier: Any = signal.signal(signal.SIGTERM, _exit_by_exception)
    try:
        _run(command or app)
    except LlueveError as error:
        if process_count() > 1:
            earlier = signal.SIG_IGN  # as `_exit_by_exception` does, until Python has ended
        if is_first_to_say(str(error)):
            with suppress(OSError):  # standard error is closed, or its disk is full
                console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _exit_by_exception(number: int, _: FrameType | None) -> None:
    """Handle SIGTERM: an exit by an exception removes temporary folders."""
    # torchrun sends SIGTERM to the other processes as soon as one ends. Each must exit with the code of its own error.
    if process_count() > 1 and _comes_from_error(sys.exception()):
        return
    sys.exit(128 + number)


def _comes_from_error(handled: BaseException | None) -> bool:
    """True for an error of llueve, and for an exception that was raised while one was handled."""
    while handled is not None and not isinstance(handled, LlueveError):
        handled = handled.__context__
    return handled is not None


def _run(command: Callable[[], object]) -> None:
    """Run a command, and write all of its output; what the operating system refuses becomes an error of llueve."""
    try:
        try:
            command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        if error.filename is None:
            _discard_output()
            raise unwritable(error) from error
        raise RunError(f"{error.filename}: {error.strerror or error}; check the path and its permissions") from error
    except RunError:
        _discard_output()
        raise


def _prepare_streams() -> None:
    """Give the numbers of closed standard streams to nothing else, and print characters that the screen lacks as codes."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a file that took the number 1 or 2 would receive messages
    os.close(number)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """Send output that could not be written nowhere: Python writes it once more when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        return
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
