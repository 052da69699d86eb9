"""Names of sites that differ only in case, spaces or Unicode form: probably one place under several names."""

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable

import pandas as pd

from llueve.config import DataConfig
from llueve.errors import listed, shortened
from llueve.panel import Finding
from llueve.sources.tables.raw_table import RawTable


def spelling_findings(table: RawTable, data: DataConfig, sites: list[str]) -> list[Finding]:
    """Findings on names of sites that look alike; `sites` are the names as they were read, without spaces around them.

    Spaces around a name do not make another site, everything else does. Nothing else is merged.
    """
    if data.site is None:
        return []
    findings = []
    if isinstance(table.frame[data.site].dtype, pd.StringDtype):
        for name, texts in _alike(map(str, pd.unique(table.frame[data.site].dropna())), str.strip):
            message = (
                f"{shortened(name)}: written as {_quoted(texts)}; spaces around a name do not count, so it is one site"
            )
            findings.append(Finding("site_spelling", "warning", message, site=name, count=len(texts)))
    for _, names in _alike(sites, _plain_name):
        message = (
            f"the sites {_quoted(names)} differ only in case, spaces or Unicode form and were read as {len(names)} sites; if "
            "they are one place, give it one name"
        )
        findings.append(Finding("site_spelling", "warning", message, site=names[0], count=len(names)))
    return findings


def _alike(texts: Iterable[str], key: Callable[[str], str]) -> list[tuple[str, list[str]]]:
    """The sets of several texts with the same key, each with the key."""
    groups: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        groups[key(text)].append(text)
    return [(shared, group) for shared, group in groups.items() if len(group) > 1]


def _plain_name(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _quoted(texts: list[str]) -> str:
    return listed([shortened(text) for text in texts])
