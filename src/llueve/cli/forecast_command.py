"""The command `llueve forecast`: rain in the next 24 hours at any place, without training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from llueve.cli.arguments import AsJson, number, path_text
from llueve.cli.output import show

if TYPE_CHECKING:
    from rich.console import Group

    from llueve.zero_shot import PlaceForecast

LIMITS = "From analyses and records, not from a weather model; not an official warning."


def forecast(
    latitude: Annotated[
        float | None, Option(metavar="DEGREES", parser=number, help="Degrees north, negative in the south.")
    ] = None,
    longitude: Annotated[
        float | None, Option(metavar="DEGREES", parser=number, help="Degrees east, negative in the west.")
    ] = None,
    table: Annotated[
        str | None,
        Option("--input", metavar="TABLE", parser=path_text, help="Forecast from this record, without a download."),
    ] = None,
    no_cache: Annotated[bool, Option("--no-cache", help="Do not keep the downloaded record.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forecast rain in the next 24 hours at any place, without training: with the weather encoder of the package.

    The weather of the place is downloaded (Open-Meteo.com, CC BY 4.0, no key), or comes from a table of 60 days or more.
    """
    from llueve import zero_shot  # imports torch

    places = zero_shot.forecast(latitude=latitude, longitude=longitude, table=table, cache=not no_cache)
    show(render(places), {"forecasts": [each.as_dict() for each in places], "limits": LIMITS}, as_json)


def render(places: "Sequence[PlaceForecast]") -> "Group":
    """The forecasts for a terminal."""
    from rich.console import Group
    from rich.text import Text

    parts = [part for place in places for part in _lines(place)]
    return Group(*parts, Text(LIMITS, style="dim"))


def _lines(place: "PlaceForecast") -> list[Any]:
    """Heading, table and remarks of one site."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    heading = Text(place.site, style="bold")
    heading.append(f" ({_where(place)})", style="not bold")
    if place.issued is not None:
        heading.append(f"\n24 hours after {place.issued.replace('T', ' ')[:16]} UTC", style="not bold")
    if place.refused is not None:
        return [heading, Text(f"no forecast: {place.refused}\n")]
    table = Table("rain", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("probability", "usual", *(["skill"] if place.zone else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for each in place.amounts:
        cells = [f"≥ {each.amount_mm:g} mm", _percent(each.probability), _percent(each.usual)]
        table.add_row(*cells, *([_score(each.skill)] if place.zone else []))
    remarks = [*_explained(place), *(f"uncertain: {reason}" for reason in place.uncertain)]
    return [heading, table, *(Text(remark) for remark in remarks), Text()]


def _where(place: "PlaceForecast") -> str:
    """Position and zone."""
    if place.latitude is None or place.longitude is None:
        return "position unknown"
    north, east = place.latitude, place.longitude
    position = f"{abs(north):g}° {'NS'[north < 0]}, {abs(east):g}° {'EW'[east < 0]}"
    return position if place.zone is None else f"{position}, {place.zone}"


def _explained(place: "PlaceForecast") -> list[str]:
    """The meaning of the columns."""
    lines = []
    if place.usual_from == "record":
        lines.append(f"usual: here, at this time of year, in a record of {place.record_days:.0f} days")
    elif place.usual_from is not None:
        lines.append(f"usual: at the verified {place.zone} sites, in the whole year")
    if place.zone is not None:
        positive = "" if place.share_positive is None else f"; positive at {place.share_positive:.0%} of them"
        lines.append(
            f"skill: Brier skill score over climatology at {place.verified_places} {place.zone} sites that the encoder never "
            f"saw{positive}. 0 is climatology, 1 is perfect"
        )
    if any(each.probability is None for each in place.amounts):
        lines.append("no probability: this amount was not forecast better than climatology there")
    return lines


def _percent(share: float | None) -> str:
    """A share in percent; values that round to 0 or 100 stay distinct from them."""
    if share is None:
        return "–"
    if 0 < share < 0.005:
        return "< 1 %"
    return "> 99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def _score(skill: float | None) -> str:
    return "–" if skill is None else f"{skill:+.2f}"
