"""Source and licence of each group of a corpus, from the file `PROVENANCE.md` beside its files."""

import re
from dataclasses import dataclass
from pathlib import Path

from llueve.errors import CheckpointError, DataError
from llueve.files import read_small

NAME = "PROVENANCE.md"
LARGEST = 2**22
"""Most bytes of the file."""
ENTRY = re.compile(r"- (source|licen[cs]e): *(.*)")


@dataclass(frozen=True)
class Provenance:
    """The origin of one group; None for what the file does not say."""

    source: str | None = None
    licence: str | None = None


def read_provenance(folder: Path) -> dict[str, Provenance]:
    """Origin of each group by its name: the lines `- source:` and `- licence:` under a heading `## group`.

    It is empty if the folder has no such file.

    Raises:
        DataError: the file cannot be read.
    """
    if not (folder / NAME).exists():
        return {}
    try:
        text = read_small(folder / NAME, LARGEST).decode("utf-8", errors="replace")
    except CheckpointError as error:
        raise DataError(f"{error}; correct it, or move it away") from error
    found: dict[str, dict[str, str]] = {}
    group = None
    for line in text.splitlines():
        if line.startswith("#"):
            group = line.removeprefix("## ").strip() if line.startswith("## ") else None
        elif group is not None and (entry := ENTRY.match(line)):
            key = "source" if entry[1] == "source" else "licence"
            found.setdefault(group, {}).setdefault(key, entry[2].strip())
    return {name: Provenance(**entries) for name, entries in found.items()}
