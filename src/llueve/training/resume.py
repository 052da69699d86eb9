"""Decide what a training starts from: nothing, a saved state of the same run, or a run that is finished already."""

import logging
from dataclasses import dataclass
from typing import Any

from llueve.config import Config
from llueve.errors import ConfigError, DataError
from llueve.runs.directory import CONFIG, VERIFICATION, Run
from llueve.runs.saved_model import SavedModel
from llueve.training.saved_states import SavedState, SavedStates

logger = logging.getLogger(__name__)

IRRELEVANT = ("processes", "track")
"""Sections of the configuration that do not change the result of a training."""


@dataclass(frozen=True)
class StartingPoint:
    """The state of the run directory before a training."""

    replace: bool = False
    """True if an earlier run there is replaced."""
    state: SavedState | None = None
    """The state to resume from; process 0 alone has it."""
    verification: dict[str, Any] | None = None
    """The verification of a run that is finished already; all processes have it."""


def find_start(run: Run, config: Config, overwrite: bool, resume: bool) -> StartingPoint:
    """Look into the run directory; nothing in it is changed.

    Raises:
        ConfigError: the run to resume began with another configuration.
        RunError: the directory is not free, or cannot be read.
    """
    if not resume or not (run.directory / CONFIG).is_file():
        if not resume:
            run.require_free(overwrite)
        return StartingPoint(replace=overwrite)
    _, begun = Run.open(run.directory)
    if different := _differences(begun, config):
        raise ConfigError(f"{run.directory}: began with another configuration: {'; '.join(different)}")
    if run.is_finished:
        logger.info("%s: is finished already", run.directory)
        return StartingPoint(verification=run.read_json(VERIFICATION))
    state = SavedStates(run.directory).newest()
    if state is None:
        logger.warning("%s: has no saved state to resume from, so it starts again", run.directory)
    else:
        logger.info("resuming from %s", state.path)
    return StartingPoint(replace=state is None, state=state)


def require_same_table(saved: SavedModel, config: Config, run: Run, state: SavedState | None) -> None:
    """Check that a state was trained on this table, and drop records that are newer than the state.

    Raises:
        DataError: the table has changed.
    """
    if state is None:
        return
    facts = state.snapshot.facts
    if facts.get("fingerprint") != saved.fingerprint:
        raise DataError(
            f"{config.data.path}: is not the table that {state.path} was trained on: its cells have changed; restore it, or "
            "train again with --overwrite"
        )
    run.shorten_history(facts["history_bytes"])
    run.forget_incidents(facts["incidents"])


def _differences(begun: Config, now: Config) -> list[str]:
    """Keys with other values, in words."""
    before, after = (each.model_dump(exclude=set(IRRELEVANT)) for each in (begun, now))
    return [
        f"{section}.{key} was {before[section].get(key)!r} and is {after[section].get(key)!r}"
        for section in before
        for key in sorted({*before[section], *after[section]})
        if before[section].get(key) != after[section].get(key)
    ]
