"""The commands that read a configuration without training: `audit` and `config check`."""

from typing import Annotated

from typer import Exit, Option, Typer

from llueve.cli.arguments import AsJson, ConfigFile, Overrides, whole_number
from llueve.cli.output import show, write

app = Typer(help="Work with configuration files.", no_args_is_help=True)


@app.command(epilog="Example: llueve config check examples/seattle.toml --set train.epochs=5")
def check(config: ConfigFile, overrides: Overrides = None) -> None:
    """Validate a configuration, and print it with all defaults."""
    from llueve.config import load_config

    write(load_config(config, tuple(overrides or ())).to_toml())


def audit(
    config: ConfigFile,
    overrides: Overrides = None,
    concatenated: Annotated[bool, Option("--concatenated", help="Concatenate the sites, as OpenLTM does.")] = False,
    context: Annotated[int | None, Option(metavar="STEPS", parser=whole_number, help="Sets windows.context.")] = None,
    batch_size: Annotated[int | None, Option(metavar="N", parser=whole_number, help="Sets train.batch_size.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check the data before training: missing cells, gaps, sentinels, units, leaks, and the risk of failed steps."""
    from llueve.audit import audit_concatenated, audit_panel, render
    from llueve.config import load_config
    from llueve.samples.read import read_panel

    given = {"windows.context": context, "train.batch_size": batch_size}
    changes = [f"{key}={value}" for key, value in given.items() if value is not None]
    if concatenated:
        changes.append("data.exclude=[]")  # OpenLTM keeps all columns, also those that hold the future
    settings = load_config(config, (*(overrides or ()), *changes))
    judge = audit_concatenated if concatenated else audit_panel
    report = judge(read_panel(settings), settings)
    show(render(report), report.as_dict(), as_json)
    if report.errors:
        raise Exit(4)
