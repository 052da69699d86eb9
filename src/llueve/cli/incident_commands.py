"""The commands `llueve incident …`: refused training steps."""

from typing import Annotated

from typer import Argument, Option, Typer

from llueve.cli.arguments import AsJson, RunDirectory, whole_number
from llueve.cli.output import say, show
from llueve.errors import UsageError
from llueve.stability.language import Language

app = Typer(help="Look at refused training steps, and run them again.", no_args_is_help=True)

IncidentNumber = Annotated[
    int | None, Argument(metavar="N", parser=whole_number, help="Number of the incident; without it, the last one.")
]


@app.command("list", epilog="Example: llueve incident list runs/seattle")
def list_all(run: RunDirectory, as_json: AsJson = False) -> None:
    """List the refused training steps of a run."""
    from llueve.stability import incidents

    found = incidents.list_incidents(run)
    if found or as_json:
        show(incidents.render_list(found), [each.as_dict() for each in found], as_json)
    else:
        say(f"{run}: no incidents")


@app.command("show", epilog="Example: llueve incident show runs/seattle 1")
def describe(run: RunDirectory, number: IncidentNumber = None, as_json: AsJson = False) -> None:
    """Describe one refused step: the reason, the samples, and the machine that computed it."""
    from llueve.stability import incidents

    about = incidents.load_incident(run, number).about
    show(incidents.render_description(about), about.model_dump(), as_json)


@app.command(epilog="Example: llueve incident replay runs/seattle 1")
def replay(run: RunDirectory, number: IncidentNumber = None, as_json: AsJson = False) -> None:
    """Run one refused step again, and compare the result bit for bit."""
    from llueve.stability import incidents

    replayed = incidents.replay(incidents.load_incident(run, number))
    show(replayed.verdict, replayed.as_dict(), as_json)


@app.command(epilog="Example: llueve incident explain runs/seattle --all --language es")
def explain(
    run: RunDirectory,
    number: IncidentNumber = None,
    whole_run: Annotated[bool, Option("--all", help="Explain all incidents of the run together.")] = False,
    language: Annotated[str, Option(metavar="en|es", help="English or Spanish.")] = "en",
    as_json: AsJson = False,
) -> None:
    """Find the cause of one refused step by experiments, and recommend a remedy."""
    if language not in list(Language):
        raise UsageError(f"--language {language}: expected {' or '.join(Language)}")
    if whole_run and number is not None:
        raise UsageError(f"--all explains all incidents, so leave out the number {number}")
    from llueve.stability import incidents

    if whole_run:
        summary = incidents.explain_run(run)
        show(incidents.render_run(summary, Language(language)), summary.as_dict(), as_json)
    else:
        explanation = incidents.explain_incident(incidents.load_incident(run, number))
        show(incidents.render_explanation(explanation, Language(language)), explanation.as_dict(), as_json)
