"""Every error that llueve raises on purpose, as one tree.

Each message says what was expected, what was found, where (file, row, site, time, variable) and what to do next.
The command line prints the message alone, without a traceback, and exits with the class's `exit_code`.
"""

from collections.abc import Sequence


class LlueveError(Exception):
    """Root of the tree: catch it to catch everything that llueve refuses on purpose."""

    exit_code = 1


class ConfigError(LlueveError, ValueError):
    """The configuration holds an unknown key or an impossible value: mend the TOML file."""

    exit_code = 2


class UsageError(LlueveError, ValueError):
    """A command or function was asked for something that cannot be done: change the call."""

    exit_code = 2


class DataError(LlueveError, ValueError):
    """A source cannot be read into a correct panel, or does not hold what the configuration names: mend the data."""


class AuditError(LlueveError):
    """The audit found what would make the training meaningless: see the findings in `audit.json`."""

    exit_code = 4


class GuardStop(LlueveError):
    """The guard ended the work because a non-finite number reached it: no model of that training, no score is written."""

    exit_code = 3


class RunError(LlueveError):
    """A run directory is missing, incomplete, already there, or cannot be written."""


class CheckpointError(LlueveError, ValueError):
    """A weight file is damaged, hostile, or does not fit the architecture."""


class WorkerLost(LlueveError):
    """Another process of the same training is gone or silent: go on from the newest checkpoint with --resume."""


class Interrupted(LlueveError):
    """A signal ended the work; a training has written a checkpoint, from which --resume goes on.

    Args:
        message: what was done.
        number: of the signal; the exit code is 128 more, as shells have it.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


def listed(items: Sequence[object], most: int = 5) -> str:
    """The first `most` items as text, with a count of those left out: `3, 7, 9 and 4 more`."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
