"""Every error that llueve raises on purpose, as one tree.

Each message gives the expected and the found value, the place (file, row, site, time, variable) and the next step.
The command line prints the message alone, without a traceback, and exits with the class's `exit_code`.
"""

from collections.abc import Sequence

MOST_QUOTED = 60
"""Largest number of characters of a cell that a message quotes."""
MOST_LISTED = 250
"""Largest number of characters of one item in a list of a message."""


class LlueveError(Exception):
    """Root of the tree: catch it to catch every error that llueve raises on purpose."""

    exit_code = 1


class ConfigError(LlueveError, ValueError):
    """The configuration holds an unknown key or an impossible value: correct the TOML file."""

    exit_code = 2


class UsageError(LlueveError, ValueError):
    """A command or function got arguments that it cannot work with: change the call."""

    exit_code = 2


class DataError(LlueveError, ValueError):
    """A source cannot be read into a correct panel, or lacks a name of the configuration: correct the data."""


class AuditError(LlueveError):
    """The audit found errors that would make the training meaningless: see the findings in `audit.json`."""

    exit_code = 4


class GuardStop(LlueveError):
    """The guard ended the work because of non-finite numbers: neither a model nor a score is written."""

    exit_code = 3


class RunError(LlueveError):
    """A run directory is missing or incomplete, already exists, or cannot be written."""


class CheckpointError(LlueveError, ValueError):
    """A weight file is damaged, hostile, or does not fit the architecture."""


class WorkerLost(LlueveError):
    """Another process of the same training ended or does not answer: resume from the newest saved state with --resume."""


class Interrupted(LlueveError):
    """A signal ended the work. A training first wrote its state, and --resume continues it.

    The exit code is 128 more than the number of the signal, as in shells.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def shortened(text: str) -> str:
    """A text from a file in quotes, cut after 60 characters: `'1111…' (100,000 characters)`."""
    return repr(text) if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]!r}… ({len(text):,} characters)"


def listed(items: Sequence[object], most: int = 5) -> str:
    """The first `most` items as text, with the number of the others: `3, 7, 9 and 4 more`. A very long item is cut."""
    texts = [str(item) for item in items[:most]]
    shown = ", ".join(text if len(text) <= MOST_LISTED else f"{text[:MOST_LISTED]}…" for text in texts)
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
