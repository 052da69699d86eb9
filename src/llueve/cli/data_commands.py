"""The commands `llueve data …`: weather data from public archives."""

from datetime import date, datetime
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Option, Typer

from llueve.cli.arguments import a_path, number, whole_number
from llueve.cli.output import say
from llueve.errors import UsageError

app = Typer(help="Download weather data: Open-Meteo (no key), ERA5 (Copernicus key).", no_args_is_help=True)

Variables = Annotated[list[str] | None, Option(metavar="NAME,NAME", help="Names with commas; repeatable.")]
FirstDay = Annotated[str, Option(metavar="YYYY-MM-DD", help="First day, 1940-01-01 or later.")]


@app.command(
    epilog="Example: llueve data openmeteo --latitude -12 --longitude -77 --start 2015-01-01 --end 2023-12-31 --output lima.csv"
)
def openmeteo(
    latitude: Annotated[list[float], Option(metavar="DEGREES", parser=number, help="Degrees north; repeatable.")],
    longitude: Annotated[list[float], Option(metavar="DEGREES", parser=number, help="Degrees east, one per latitude.")],
    start: FirstDay,
    end: Annotated[str, Option(metavar="YYYY-MM-DD", help="Last day.")],
    output: Annotated[Path, Option(metavar="FILE", parser=a_path, help="File to write: .csv, .parquet or .json.")],
    site: Annotated[list[str] | None, Option(metavar="NAME", help="Name of each point.")] = None,
    variables: Variables = None,
    model: Annotated[str | None, Option(metavar="MODEL", help="Weather model; era5 without it.")] = None,
    url: Annotated[str | None, Option(metavar="URL", help="Another server with the same API.")] = None,
    surroundings: Annotated[
        bool, Option("--surroundings", help="Add 16 points around each, at 250 and 700 km, that the model sees only.")
    ] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Download hourly weather of any point since 1940 (ERA5, no key), and write a configuration for it.

    Data by Open-Meteo.com, CC BY 4.0. The same command continues an interrupted download.
    """
    from llueve.runs.outputs import require_separate
    from llueve.sources.downloads import openmeteo_files as files
    from llueve.sources.downloads import openmeteo_surroundings as rings
    from llueve.sources.downloads.openmeteo_archive import MODEL, URL, VARIABLES, OpenMeteoRequest, download, forget

    first, last = _day("--start", start), _day("--end", end)
    points = tuple(latitude), tuple(longitude)
    names = _names(variables) or VARIABLES
    request = OpenMeteoRequest(*points, first, last, tuple(site or ()), names, model or MODEL, url or URL)
    files.check_output(output, overwrite)
    require_separate(output, [])
    parts = output.with_name(f"{output.name}.parts")
    around = [sector.request for sector in rings.sector_requests(request)] if surroundings else []
    get = rings.download_with_surroundings if surroundings else download
    archive = get(request, parts, Console(stderr=True, emoji=False))
    files.write_series(archive, output)
    configuration, is_new = files.write_configuration(request, archive, output)
    for each in (request, *around):
        forget(each, parts)
    for finding in archive.findings:
        say(f"{finding.severity}: {finding.message}", error=True)
    hours = max(len(one.times) for one in archive.series)
    sites = f"{len(archive.series) - archive.around} site(s)"
    sites += f" and {archive.around} points around" if archive.around else ""
    say(f"wrote {output}: {sites}, {hours} hours, {len(request.variables)} variables")
    if configuration is not None:
        say(f"wrote {configuration}" if is_new else f"kept {configuration}, which existed before")
        say(f"next: llueve audit {configuration}; llueve train {configuration} --run runs/{output.stem}")


@app.command(epilog="Example: llueve data era5 --area 0 -82 -18 -68 --start 2015-01-01 --end 2023-12-31 --output peru")
def era5(
    area: Annotated[
        tuple[float, float, float, float],
        Option(metavar="N W S E", parser=number, help="North, west, south, east in degrees."),
    ],
    start: FirstDay,
    end: Annotated[str, Option(metavar="YYYY-MM-DD", help="Last day; ERA5 has a delay of five days.")],
    output: Annotated[Path, Option(metavar="DIR", parser=a_path, help="Folder for one file per month.")],
    variables: Variables = None,
    dataset: Annotated[str | None, Option(metavar="NAME", help="Data set; single levels without it.")] = None,
    parallel: Annotated[int, Option(metavar="MONTHS", parser=whole_number, help="Months at once, 1 to 16.")] = 3,
) -> None:
    """Download hourly ERA5 of an area from the Climate Data Store; it needs a free key and the extra `cds`.

    The same command continues an interrupted download. It recognises finished months by their checksums.
    """
    if not 1 <= parallel <= 16:
        raise UsageError(f"--parallel {parallel}: expected 1 to 16 months")
    from llueve.sources.downloads.cds import DATASET, VARIABLES, CdsRequest, download_era5

    first, last = _day("--start", start), _day("--end", end)
    request = CdsRequest(area, first, last, _names(variables) or VARIABLES, dataset or DATASET)
    done = download_era5(request, output, Console(stderr=True, emoji=False), parallel=parallel)
    kept = len(done.files) - done.fresh
    say(f"{output}: {len(done.files)} months, {done.fresh} downloaded now, {kept} downloaded before")


def _day(option: str, text: str) -> date:
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError as error:
        raise UsageError(f"{option} {text}: expected a day such as 2024-01-31") from error


def _names(texts: list[str] | None) -> tuple[str, ...]:
    return tuple(name for text in texts or () for part in text.split(",") if (name := part.strip()))
