"""The surroundings of a training besides model and data: its records, its files, its processes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from llueve.config import CheckpointConfig
from llueve.distributed.processes import Processes
from llueve.model.classifier import TimerXLForClassification
from llueve.stability.incidents import DataNames
from llueve.stability.refused_step import RefusedStep
from llueve.training.interruption import Interruption
from llueve.training.saved_states import SavedStates

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Environment:
    """The outputs and services that a training uses."""

    record: Callable[[dict[str, Any]], None]
    """Receives each line of `history.jsonl`."""
    keep_incident: Callable[[RefusedStep], Path | None]
    """Keeps a refused step; returns its folder, or None if it is not kept."""
    new_model: Callable[[], TimerXLForClassification]
    """Builds a newly initialised model of the same sizes."""
    console: Console
    names: DataNames | None = None
    """Names of the data for people, and settings besides `[train]`; None to use indices."""
    saved_states: SavedStates | None = None
    """States on disk; None to save none."""
    save_every: CheckpointConfig = field(default_factory=CheckpointConfig)
    features: Path | None = None
    """Folder for the outputs of a frozen encoder; None to compute them in each step."""
    run_facts: Callable[[], dict[str, Any]] = dict
    """Facts about the run for a saved state, such as the length of its history."""
    interruption: Interruption = field(default_factory=Interruption)
    forecasts_at_start: bool = False
    """True if the model can forecast before its first step: its start is then validated, and may be the best epoch."""
    processes: Processes = field(default_factory=Processes)
    """The processes that train this model together."""

    def record_repair(self, epoch: int, kind: str, reason: str) -> None:
        """Write a fault that was repaired without a refused step to the log and the history."""
        logger.warning("%s", reason)
        self.record({"event": "repaired", "epoch": epoch, "kind": kind, "reason": reason, "action": "rerun"})
