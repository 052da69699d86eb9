"""What a training begins with: nothing, an earlier state of the same run, or a run that is finished already."""

import logging
from dataclasses import dataclass
from typing import Any

from llueve import run as files
from llueve.config import Config
from llueve.errors import ConfigError, DataError
from llueve.run import Run
from llueve.saved import SavedModel
from llueve.training.checkpoint import Checkpoint, Checkpoints

logger = logging.getLogger(__name__)


@dataclass
class Beginning:
    """What a training begins with, as process 0 finds it in the run directory."""

    overwrite: bool
    """Whether what is there is replaced."""
    checkpoint: Checkpoint | None = None
    """To go on from."""
    verification: dict[str, Any] | None = None
    """Of a run that is finished already."""

    def look(self, run: Run, config: Config) -> None:
        """Find what to go on from; nothing, if the run has not begun.

        Raises:
            ConfigError: the run was begun with another configuration. RunError: it cannot be read.
        """
        if not (run.directory / files.CONFIG).is_file():
            return
        _, begun = Run.open(run.directory)
        if different := _differences(begun, config):
            raise ConfigError(f"{run.directory}: was begun with another configuration: {'; '.join(different)}")
        if run.is_finished:
            logger.info("%s: is finished already", run.directory)
            self.verification = run.read_json(files.VERIFICATION)
            return
        self.checkpoint = Checkpoints(run.directory).newest()
        if self.checkpoint is None:
            logger.warning("%s: has no state to go on from, so it is begun anew", run.directory)
            self.overwrite = True
        else:
            logger.info("going on from %s", self.checkpoint.path)


def require_same_table(saved: SavedModel, config: Config, run: Run, resume: Checkpoint | None) -> None:
    """What is gone on from must have been trained on this table; what was recorded after it is dropped.

    Raises:
        DataError: the table has changed.
    """
    if resume is None:
        return
    if resume.snapshot.facts.get("fingerprint") != saved.fingerprint:
        raise DataError(
            f"{config.data.path}: is not the table that {resume.path} was trained on: its cells have changed; restore it, or "
            "train again with --overwrite"
        )
    run.shorten_history(resume.snapshot.facts["history_bytes"])
    run.forget_incidents(resume.snapshot.facts["incidents"])


def _differences(begun: Config, now: Config) -> list[str]:
    """Keys with other values, in words."""
    # How long processes wait for each other changes nothing of a training.
    before, after = (each.model_dump(exclude={"processes"}) for each in (begun, now))
    return [
        f"{section}.{key} was {before[section].get(key)!r} and is {after[section].get(key)!r}"
        for section in before
        if section != "track"  # which changes nothing of the training
        for key in sorted({*before[section], *after[section]})
        if before[section].get(key) != after[section].get(key)
    ]
