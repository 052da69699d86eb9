"""The command `llueve forecast`: rain in the next 24 hours at any place, without training."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from llueve.cli.arguments import AsJson, number, path_text
from llueve.cli.output import show

if TYPE_CHECKING:
    from rich.console import Group

    from llueve.zero_shot import PlaceForecast

LIMITS = "From the past week alone (of a downloaded place: analysis data). Not an official warning."
MOST_IN_FULL = 3
"""Largest number of sites with a table of their own."""


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
    """The forecasts for a terminal: a table for each site, or one table with a line for each of many sites."""
    from rich.console import Group
    from rich.text import Text

    parts = _many(places) if len(places) > MOST_IN_FULL else [part for place in places for part in _lines(place)]
    return Group(*parts, Text(f"Limits: {LIMITS[0].lower()}{LIMITS[1:]}", style="dim"))


def _many(places: "Sequence[PlaceForecast]") -> list[Any]:
    """One table for all sites, then each explanation once."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    good = [each for each in places if each.refused is None]
    table = Table("site", "UTC", box=SIMPLE_HEAD, pad_edge=False)
    for each in good[0].amounts:
        table.add_column(f"{each.amount_mm:g} mm", justify="right", no_wrap=True)
    for place in good:
        table.add_row(Text(place.site), _time(place), *(_percent(each.probability) for each in place.amounts))
    remarks = Counter(remark for place in good for remark in (*_scores(place), *_verified(place), *_doubts(place)))
    refused = Counter(f"no forecast: {place.refused}" for place in places if place.refused is not None)
    shown = [f"{text} ({count} site{'s' * (count > 1)})" for text, count in (*remarks.items(), *refused.items())]
    heading = Text("Probability of at least this amount of rain in 24 hours", style="bold")
    return [heading, table, *map(Text, shown), Text()]


def _lines(place: "PlaceForecast") -> list[Any]:
    """Heading, table and remarks of one site."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    heading = Text(place.site, style="bold")
    heading.append(f" ({_where(place)})", style="not bold")
    if place.issued is not None:
        heading.append(f"\n24 hours after {_time(place)} UTC", style="not bold")
    if place.refused is not None:
        return [heading, Text(f"no forecast: {place.refused}\n")]
    table = Table("rain", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("probability", "usual", *(["skill"] if place.zone else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for each in place.amounts:
        cells = [f"≥ {each.amount_mm:g} mm", _percent(each.probability), _percent(each.usual)]
        table.add_row(*cells, *([_score(each.skill)] if place.zone else []))
    usual = {
        "record": f"usual: here, at this time of year, in a record of {place.record_days:.0f} days",
        "zone": f"usual: at the verified {place.zone} sites, in the whole year",
    }
    remarks = [*([usual[place.usual_from]] if place.usual_from else []), *_verified(place), *_doubts(place)]
    return [heading, table, *map(Text, remarks), Text()]


def _time(place: "PlaceForecast") -> str:
    return (place.issued or "")[:16].replace("T", " ")


def _where(place: "PlaceForecast") -> str:
    """Position and zone."""
    if place.latitude is None or place.longitude is None:
        return "position unknown"
    north, east = place.latitude, place.longitude
    position = f"{abs(north):g}° {'NS'[north < 0]}, {abs(east):g}° {'EW'[east < 0]}"
    return position if place.zone is None else f"{position}, {place.zone}"


def _verified(place: "PlaceForecast") -> list[str]:
    """The meaning of the skill, and of an amount without a probability."""
    if place.zone is None:
        return []
    positive = "" if place.share_positive is None else f", positive at {_percent(place.share_positive)} of them"
    scores = (
        f"Brier skill score over climatology at {place.verified_places} {place.zone} sites that the encoder never saw"
    )
    lines = [f"skill: {scores}{positive}; 0 is climatology, 1 is perfect"]
    if missing := [f"{each.amount_mm:g} mm" for each in place.amounts if each.probability is None]:
        lines.append(f"no probability of {', '.join(missing)}: at these sites it was not better than climatology")
    return lines


def _scores(place: "PlaceForecast") -> list[str]:
    """The skill of each amount in one line."""
    scores = [f"{_score(each.skill)} for {each.amount_mm:g} mm" for each in place.amounts]
    return [f"skill of {place.zone} sites: {', '.join(scores)}"] if place.zone else []


def _doubts(place: "PlaceForecast") -> list[str]:
    return [f"uncertain: {reason}" for reason in place.uncertain]


def _percent(share: float | None) -> str:
    """A share in percent; values that round to 0 or 100 stay distinct from them."""
    if share is None:
        return "–"
    if 0 < share < 0.005:
        return "< 1 %"
    return "> 99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def _score(skill: float | None) -> str:
    return "–" if skill is None else f"{skill:+.2f}"
