"""The verb of the command `pretrain`: corpus → windows → guarded training → scores → weights and model card."""

import logging
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from llueve.config.pretrain_keys import PretrainConfig
from llueve.distributed.processes import Processes, join_processes
from llueve.distributed.torchrun import has_begun, is_restarted, remember_begun
from llueve.errors import ConfigError, DataError, UsageError
from llueve.model.checkpoints.model_card import ModelCard, read_card
from llueve.pretraining.finish import finish
from llueve.pretraining.prepare import Prepared, prepare
from llueve.quantities.catalogue import QUANTITIES
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES
from llueve.runs.decisive_keys import decisive_pretraining_keys, differences
from llueve.runs.directory import CARD, Run
from llueve.runs.lock import RunLock
from llueve.runs.replacement import replace_run, saying_how_to_resume
from llueve.stability.incidents import DataNames, IncidentFolder
from llueve.training.environment import Environment
from llueve.training.interruption import Interruption
from llueve.training.loop import train_model
from llueve.training.resume import StartingPoint, begin_run, finished, rewind, starting_point
from llueve.training.saved_states import SavedStates
from llueve.training.tracking import Tracking, require_trackers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainedRun:
    """A finished pre-training."""

    directory: Path
    card: ModelCard


def pretrain(
    config: PretrainConfig,
    directory: str | Path,
    overwrite: bool = False,
    console: Console | None = None,
    resume: bool = False,
) -> PretrainedRun:
    """Pre-train the weather encoder, score it at held-out sites, and leave a run directory.

    Under torchrun all processes train together.

    Args:
        config, directory: the configuration, and the run directory to create.
        overwrite: replace an earlier run there. That run stays whole until the new one is scored.
        console: receives the progress; standard error if None.
        resume: continue an interrupted pre-training there, bit-for-bit identical to an uninterrupted one. If there is none
            yet, start it; if it is finished, leave it as it is.

    Raises:
        DataError, GuardStop, Interrupted, RunError, WorkerLost: see `llueve.errors`.
    """
    require_trackers(config.track)
    if resume and overwrite:
        raise UsageError("resume keeps what overwrite replaces: give one of them")
    run = Run(Path(directory))
    timeout = timedelta(minutes=config.processes.timeout_minutes)
    with join_processes(timeout) as processes, RunLock(run.directory) as lock:
        start = processes.on_first(
            lambda: _find_start(run, config, overwrite, resume, lock),
            lambda found: [str(found.run.directory), found.verification],
            lambda found: StartingPoint(Run(Path(found[0])), verification=found[1]),
        )
        if start.verification is not None:
            return PretrainedRun(run.directory, read_card(run.directory / CARD))
        prepared = prepare(config)
        if processes.on_first(lambda: prepared.fingerprint) != prepared.fingerprint:
            raise DataError(
                f"{config.corpus.path}: process {processes.rank} reads another corpus there than process 0; bring the same "
                "one to every machine"
            )
        processes.on_first(lambda: _begin(run, config, start, prepared, lock))

        console = console or Console(stderr=True, quiet=not processes.is_first)
        with (
            saying_how_to_resume(run, start.run, "pretrain") if processes.is_first else nullcontext(),
            Tracking(config, start.run.directory, run.directory.resolve().name)
            if processes.is_first
            else nullcontext() as tracking,
        ):
            trained = _fit(prepared, config, start, processes, console, tracking)
            card = processes.on_first(lambda: finish(prepared, config, start.run, trained, console, tracking))
            processes.on_first(lambda: replace_run(run) if start.run != run else None)
            return PretrainedRun(run.directory, ModelCard.model_validate(card))


def _find_start(run: Run, config: PretrainConfig, overwrite: bool, resume: bool, lock: RunLock) -> StartingPoint:
    """The starting point, under the lock of the run directory if there is a run in it."""
    if run.exists:
        lock.take(is_restarted())
    if has_begun(run.directory):  # torchrun starts the same command again after a process was lost
        resume, overwrite = True, False
    return starting_point(run, overwrite, resume, lambda begun: _resumed(begun, run, config))


def _resumed(run: Run, whole: Run, config: PretrainConfig) -> StartingPoint:
    """The starting point of a pre-training that has begun; `whole` is the run directory of the command."""
    _, begun = Run.open_pretraining(run.directory)
    if different := differences(decisive_pretraining_keys(begun), decisive_pretraining_keys(config)):
        raise ConfigError(
            f"{run.directory}: began with another configuration: {'; '.join(different)}. Give the same values, or "
            "pre-train again with --overwrite"
        )
    if run.is_finished:
        return finished(run, whole, CARD)
    if (state := SavedStates(run.directory).newest()) is not None:
        logger.info("resuming from %s", state.path)
        return StartingPoint(run, state=state, facts=dict(state.snapshot.facts))
    logger.warning("%s: has no saved state to resume from, so it starts again", run.directory)
    return StartingPoint(run, replace=True)


def _begin(run: Run, config: PretrainConfig, start: StartingPoint, prepared: Prepared, lock: RunLock) -> None:
    """Create the run, or bring it to the state that the training resumes from."""
    if start.facts is None:
        begin_run(run, config, start, lock)
    else:
        if start.facts.get("fingerprint") != prepared.fingerprint:
            raise DataError(
                f"{config.corpus.path}: is not the corpus that this pre-training began with: its files have changed; restore "
                "them, or pre-train again with --overwrite"
            )
        rewind(start.run, start.facts, config)
    remember_begun(run.directory)


def _fit(
    prepared: Prepared,
    config: PretrainConfig,
    start: StartingPoint,
    processes: Processes,
    console: Console,
    tracking: Tracking | None,
) -> dict[str, Any]:
    """Train the encoder in place; returns the outcome of the training."""
    run, corpus = start.run, prepared.corpus

    def record(line: dict[str, Any]) -> None:
        if processes.is_first:
            run.append_history(line)
        if tracking is not None:
            tracking.record(line)

    names = DataNames(
        model=config.model.as_model(),
        variables=[(name, QUANTITIES[name].units) for name in ENCODER_QUANTITIES],
        classes=("dry", "wet"),
        sites=[each.name for each in corpus.stretches],
        times=corpus.times,
        step_hours=1.0,
        missing="mask",
        pretraining=True,
    )
    with Interruption() as interruption:
        environment = Environment(
            record=record,
            keep_incident=IncidentFolder(run.directory, names).keep,
            new_model=prepared.fresh,
            console=console,
            names=names,
            saved_states=SavedStates(run.directory),
            save_every=config.checkpoints,
            run_facts=partial(_facts, run, prepared.fingerprint),
            interruption=interruption,
            processes=processes,
        )
        trained = train_model(
            prepared.model,
            prepared.windows,
            prepared.training,
            prepared.validation,
            config.train.with_one_rate(),
            config.guard,
            environment,
            start.state,
        )
    return asdict(trained)


def _facts(run: Run, fingerprint: str) -> dict[str, Any]:
    """Facts about the run for a saved state."""
    return {**run.facts(), "fingerprint": fingerprint}
