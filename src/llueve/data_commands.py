"""The commands `llueve data …`: arguments in, files out."""

from datetime import date, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llueve.errors import UsageError

app = typer.Typer(help="Get weather data: Open-Meteo (no key), ERA5 (Copernicus key).", no_args_is_help=True)

Variables = Annotated[
    list[str] | None, typer.Option("--variables", metavar="NAME,NAME", help="With commas between; may be repeated.")
]


@app.command()
def openmeteo(
    latitude: Annotated[list[float], typer.Option("--latitude", help="Degrees north; repeat it for several points.")],
    longitude: Annotated[list[float], typer.Option("--longitude", help="Degrees east, one per latitude.")],
    start: Annotated[str, typer.Option("--start", metavar="YYYY-MM-DD", help="First day, from 1940 on.")],
    end: Annotated[str, typer.Option("--end", metavar="YYYY-MM-DD", help="Last day.")],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="Ends in .csv, .parquet or .json.")],
    site: Annotated[list[str] | None, typer.Option("--site", metavar="NAME", help="Name of each point.")] = None,
    variables: Variables = None,
    model: Annotated[str | None, typer.Option("--model", help="Archive; era5 is one reanalysis throughout.")] = None,
    url: Annotated[str | None, typer.Option("--url", help="Another server of the same API.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")] = False,
) -> None:
    """Hourly weather since 1940 at any point (ERA5), and a configuration to start from; no key needed.

    Data by Open-Meteo.com, CC BY 4.0. Interrupted, it continues where it was.
    """
    from llueve.sources import openmeteo_archive as archives
    from llueve.sources import openmeteo_files as files

    request = archives.Request(
        tuple(latitude),
        tuple(longitude),
        _day("--start", start),
        _day("--end", end),
        tuple(site or ()),
        _names(variables) or archives.VARIABLES,
        model or archives.MODEL,
        url or archives.URL,
    )
    files.check_output(output, overwrite)
    parts = output.with_name(f"{output.name}.parts")
    archive = archives.download(request, parts, Console(stderr=True, emoji=False))
    files.write_archive(archive, output)
    configuration, fresh = files.write_configuration(request, archive, output)
    archives.forget(request, parts)
    for finding in archive.findings:
        _say(f"{finding.severity}: {finding.message}", error=True)
    hours = max(len(one.times) for one in archive.series)
    _say(f"wrote {output}: {len(archive.series)} site(s), {hours} hours, {len(request.variables)} variables")
    if configuration is not None:
        what = "a configuration to start from" if fresh else "the configuration that is there stays as it is"
        _say(f"{what}: {configuration}")
        _say(f"next: llueve audit {configuration}; llueve train {configuration} --run runs/{output.stem}")


@app.command()
def era5(
    area: Annotated[tuple[float, float, float, float], typer.Option("--area", metavar="N W S E", help="In degrees.")],
    start: Annotated[str, typer.Option("--start", metavar="YYYY-MM-DD", help="First day, from 1940 on.")],
    end: Annotated[str, typer.Option("--end", metavar="YYYY-MM-DD", help="Last day; ERA5 is five days late.")],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Folder for one file per month.")],
    variables: Variables = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="Single levels by default.")] = None,
    parallel: Annotated[int, typer.Option("--parallel", min=1, max=16, help="Months at once.")] = 3,
) -> None:
    """ERA5 for an area from the Climate Data Store, every hour, one file per month; needs a (free) key and llueve[cds].

    Interrupted, it continues where it was: finished months are known by their checksums.
    """
    from llueve.sources import cds

    request = cds.Request(
        area, _day("--start", start), _day("--end", end), _names(variables) or cds.VARIABLES, dataset or cds.DATASET
    )
    done = cds.download_era5(request, output, Console(stderr=True, emoji=False), parallel=parallel)
    kept = len(done.files) - done.fresh
    _say(f"{output}: {len(done.files)} months, {done.fresh} downloaded now, {kept} there before")


def _day(option: str, text: str) -> date:
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError as error:
        raise UsageError(f"{option} {text}: expected a day such as 2024-01-31") from error


def _names(texts: list[str] | None) -> tuple[str, ...]:
    """The names in options that may be repeated and hold commas."""
    return tuple(name for text in texts or () for part in text.split(",") if (name := part.strip()))


def _say(text: str, error: bool = False) -> None:
    Console(stderr=error, emoji=False).print(text, highlight=False, markup=False, soft_wrap=True)
