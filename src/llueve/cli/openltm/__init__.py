"""OpenLTM's command line for classification, so that its commands and notebooks keep working."""

from llueve.cli.openltm.command import run
from llueve.cli.openltm.csv_summary import CsvSummary, summarise_csv
from llueve.cli.openltm.flags import parse_flags
from llueve.cli.openltm.mapping import map_flags

__all__ = ["CsvSummary", "map_flags", "parse_flags", "run", "summarise_csv"]
