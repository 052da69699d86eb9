"""The commands `llueve checkpoint …`: published weight files."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option, Typer

from llueve.cli.arguments import AsJson, a_path, path_text
from llueve.cli.output import say, show
from llueve.errors import UsageError

app = Typer(help="Inspect and convert published checkpoints.", no_args_is_help=True)


@app.command(epilog="Example: llueve checkpoint inspect checkpoint.pth")
def inspect(
    file: Annotated[
        str, Argument(metavar="FILE", parser=path_text, help="A weights file, its folder, or hf://ORG/NAME.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show format, sizes and tensors of a checkpoint, and if it would load; nothing in the file is executed."""
    from llueve.model.checkpoints.pretrained import inspect_checkpoint

    report, _ = inspect_checkpoint(file)
    show(report.render(), report.as_dict(), as_json)
    if report.problems(()):
        raise Exit(1)


@app.command(epilog="Example: llueve checkpoint convert runs/seattle --to openltm --output converted")
def convert(
    file: Annotated[
        str, Argument(metavar="FILE", parser=path_text, help="A checkpoint, or a run directory for its encoder.")
    ],
    to: Annotated[str, Option(metavar="FORMAT", help="openltm, huggingface or safetensors.")],
    output: Annotated[Path, Option(metavar="DIR", parser=a_path, help="Folder for the new file.")],
    allow_missing: Annotated[
        list[str] | None, Option(metavar="NAME", help="Tensor that may be absent or left over; * is any text.")
    ] = None,
) -> None:
    """Write an encoder in another published format, if that format has its architecture."""
    if to not in ("openltm", "huggingface", "safetensors"):
        raise UsageError(f"--to {to}: expected openltm, huggingface or safetensors")
    from llueve import pipeline

    for path in pipeline.convert(file, to, output, tuple(allow_missing or ())):  # type: ignore[arg-type]
        say(f"wrote {path}")
