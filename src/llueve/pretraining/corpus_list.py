"""The list of a corpus: the sites that a pre-training would use, and the share of each group in its windows."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llueve.config.pretrain_keys import CorpusConfig
from llueve.pretraining.corpus import EPOCH, Corpus, read_corpus
from llueve.pretraining.prepare import corpus_files
from llueve.pretraining.window_shares import window_shares
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES, RAIN

LETTERS = "TDHPSENWGRCL"
"""One letter for each quantity of the encoder, in its order."""
MEANINGS = (
    "temperature", "dew point", "humidity", "surface pressure", "sea-level pressure", "eastward wind", "northward wind",
    "wind speed", "gust", "rain", "cloud", "solar radiation (light)",
)  # fmt: skip
_RAIN = ENCODER_QUANTITIES.index(RAIN)


@dataclass(frozen=True)
class ListedSite:
    """One site of the corpus."""

    group: str
    site: str
    latitude: float | None
    longitude: float | None
    """Degrees; None if unknown."""
    first: str
    last: str
    """First and last hour that is used, UTC."""
    hours: int
    rain: float
    """Share of the hours with an observation of rain, 0…1."""
    quantities: tuple[str, ...]
    """Quantities with at least one value, some of them derived."""
    held_out: bool


@dataclass(frozen=True)
class ListedGroup:
    """One file of the corpus."""

    group: str
    sites: int
    held_out: int
    hours: int
    window_share: float
    """Its share of the training windows, 0…1."""


@dataclass(frozen=True)
class CorpusList:
    """The part of a corpus that a pre-training would use."""

    groups: tuple[ListedGroup, ...]
    sites: tuple[ListedSite, ...]
    left_out: dict[str, str]
    """Files that are not used: name → reason."""

    def as_dict(self) -> dict[str, Any]:
        """The list for JSON."""
        return {**asdict(self), "quantities": list(ENCODER_QUANTITIES)}

    def render(self) -> RenderableType:
        """The list for a terminal of 80 columns."""
        parts: list[RenderableType] = []
        for group in self.groups:
            parts.append(Text(f"{group.group}: {_summary(group)}", style="bold"))
            parts.append(_site_table([each for each in self.sites if each.group == group.group]))
        legend = ", ".join(f"{letter} {meaning}" for letter, meaning in zip(LETTERS, MEANINGS, strict=True))
        parts.append(Text(f"* held out. {legend}.\n"))
        parts.append(_group_table(self.groups))
        parts.extend(Text(f"{name}: left out: {reason}") for name, reason in self.left_out.items())
        return Group(*parts)


def list_corpus(config: CorpusConfig) -> CorpusList:
    """Read a corpus and list its sites; nothing is trained.

    Raises:
        DataError: see `read_corpus`.
    """
    corpus = read_corpus(corpus_files(config), config.held_out, config.until)
    sites = tuple(_listed_sites(corpus))
    share_S = window_shares(corpus, held_out=False)
    group_S = np.array([each.group for each in corpus.stretches])
    groups = []
    for name in dict.fromkeys(each.group for each in sites):
        inside = [each for each in sites if each.group == name]
        held_out, hours = sum(each.held_out for each in inside), sum(each.hours for each in inside)
        groups.append(ListedGroup(name, len(inside), held_out, hours, float(share_S[group_S == name].sum())))
    return CorpusList(tuple(groups), sites, corpus.left_out)


def _listed_sites(corpus: Corpus) -> Iterator[ListedSite]:
    bounds = np.append(np.flatnonzero(np.diff(corpus.site_S, prepend=-1)), len(corpus.stretches))
    for begin, end in pairwise(bounds.tolist()):
        first, last = corpus.stretches[begin], end - 1
        values_HQ = corpus.values_HQ[corpus.start_S[begin] : corpus.start_S[end]]
        known_Q = np.asarray(~np.isnan(values_HQ).all(axis=0))
        yield ListedSite(
            group=first.group,
            site=first.name,
            latitude=None if np.isnan(first.latitude) else round(first.latitude, 4),
            longitude=None if np.isnan(first.longitude) else round(first.longitude, 4),
            first=str(EPOCH + first.first),
            last=str(EPOCH + corpus.first_S[last] + corpus.hours_S[last] - 1),
            hours=len(values_HQ),
            rain=round(float((~np.isnan(values_HQ[:, _RAIN])).mean()), 4),
            quantities=tuple(name for name, known in zip(ENCODER_QUANTITIES, known_Q, strict=True) if known),
            held_out=first.held_out,
        )


def _summary(group: ListedGroup) -> str:
    return (
        f"{group.sites:,} sites, {group.held_out} held out, {group.hours:,} h, {group.window_share:.1%} of the windows"
    )


def _site_table(sites: list[ListedSite]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("site", overflow="ellipsis", no_wrap=True, width=20)
    for heading in ("lat", "lon"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("to", no_wrap=True)
    for heading in ("hours", "rain"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("quantities", no_wrap=True)
    for each in sites:
        present = zip(LETTERS, ENCODER_QUANTITIES, strict=True)
        table.add_row(
            Text(f"{each.site}{'*' if each.held_out else ''}"),
            _degrees(each.latitude),
            _degrees(each.longitude),
            each.first[:7],
            each.last[:7],
            f"{each.hours:,}",
            f"{each.rain:.0%}",
            "".join(letter if name in each.quantities else "." for letter, name in present),
        )
    return table


def _group_table(groups: tuple[ListedGroup, ...]) -> Table:
    table = Table(title="groups", title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("group", overflow="ellipsis", no_wrap=True)
    for heading in ("sites", "held out", "hours", "share of windows"):
        table.add_column(heading, justify="right")
    for each in groups:
        table.add_row(
            Text(each.group), f"{each.sites:,}", str(each.held_out), f"{each.hours:,}", f"{each.window_share:.1%}"
        )
    sums = [f"{sum(getattr(each, name) for each in groups):,}" for name in ("sites", "held_out", "hours")]
    table.add_row("all", *sums, "100.0%", style="bold")
    return table


def _degrees(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
