"""Decide what a training starts from: nothing, a saved state of the same run, or a run that is finished already."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llueve.config import Config, PretrainConfig
from llueve.distributed.torchrun import is_restarted
from llueve.errors import ConfigError, DataError, UsageError
from llueve.files import make_folder
from llueve.runs.decisive_keys import decisive_keys, differences, other_keys
from llueve.runs.directory import AUDIT, CONFIG, HISTORY, UNFINISHED, VERIFICATION, Run
from llueve.runs.lock import RunLock
from llueve.runs.replacement import complete_replacement, replace_run, unfinished_replacement
from llueve.runs.saved_model import SavedModel
from llueve.training.saved_states import SavedState, SavedStates

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartingPoint:
    """The state of the run directory before a training."""

    run: Run
    """The run to train: that of the directory, or the one that is to replace it."""
    replace: bool = False
    """True if the files of an earlier training of this run are removed."""
    state: SavedState | None = None
    """The state to resume from; process 0 alone has it."""
    members: int = 0
    """Number of members of `train.members` that are trained already; all processes have it."""
    facts: dict[str, Any] | None = None
    """Facts of the state, or of the last trained member, to resume from; process 0 alone has them."""
    verification: dict[str, Any] | None = None
    """The verification of a run that is finished already, or the model card of a pre-training; all processes have it."""


def find_start(run: Run, config: Config, overwrite: bool, resume: bool) -> StartingPoint:
    """Look into the run directory. An interrupted move of a finished run is completed; nothing else in it is changed.

    Raises:
        ConfigError: the run to resume began with another configuration.
        RunError: the directory is not free, or cannot be read. UsageError: it is the `unfinished` of another run.
    """
    return starting_point(run, overwrite, resume, lambda begun: _resumed(begun, run, config))


def starting_point(run: Run, overwrite: bool, resume: bool, resumed: Callable[[Run], StartingPoint]) -> StartingPoint:
    """Look into the run directory of a training or a pre-training.

    Args:
        resumed: finds the starting point in a run that has begun: the one of the directory, or the one that is to replace it.

    Raises:
        RunError: the directory is not free, or cannot be read. UsageError: it is the `unfinished` of another run.
    """
    _refuse_unfinished(run)
    if resume or overwrite:
        complete_replacement(run)
    replacement = unfinished_replacement(run)
    if resume and replacement is not None:
        return resumed(replacement)
    if resume and (run.directory / CONFIG).is_file():
        return resumed(run)
    if not resume:
        run.require_free(overwrite)
    if overwrite and run.exists:
        return StartingPoint(Run(run.directory / UNFINISHED), replace=True)
    return StartingPoint(run)


def resume_run(run: Run, facts: dict[str, Any], saved: SavedModel, config: Config) -> None:
    """Check that a training began with this table and this checkpoint, and bring the run directory to its state.

    The facts are those of the state, as `training_facts` gives them.

    Records that are newer than the state are dropped, and `config.toml` holds the present configuration.

    Raises:
        DataError: the table or the checkpoint has changed.
    """
    path = config.data.path
    if facts.get("fingerprint") != saved.fingerprint:
        raise DataError(
            f"{path}: is not the table that {run.directory} was trained on: its cells have changed; restore it, or "
            "train again with --overwrite"
        )
    if changed := [name for name, known in facts["variables"] if [name, known] not in _variables(saved)]:
        raise DataError(
            f"{path}: {changed[0]} has another unit than at the beginning of this training; restore the table"
        )
    if facts["variables"] != _variables(saved):
        raise DataError(f"{path}: has its columns in another order than at the beginning of this training; restore it")
    if facts["checkpoint"] != saved.checkpoint:
        raise DataError(
            f"{config.model.pretrained}: is not the checkpoint that this training began with: its weights have changed; "
            "restore it, or train again with --overwrite"
        )
    if facts["feature_cache_gb"] != config.train.feature_cache_gb:
        logger.warning(
            "train.feature_cache_gb has changed: the last bits may differ from those of an uninterrupted run"
        )
    rewind(run, facts, config)


def rewind(run: Run, facts: dict[str, Any], config: Config | PretrainConfig) -> None:
    """Bring the run directory to a saved state with these facts: newer records go, `config.toml` holds what is given."""
    run.shorten_history(facts["history_bytes"])
    run.forget_incidents(facts["incidents"])
    run.write(CONFIG, config.to_toml().encode())


def training_facts(saved: SavedModel, config: Config, run: Run, member: int) -> dict[str, Any]:
    """Facts that `resume_run` compares, for a saved state; `member` counts from 0."""
    return {
        **run.facts(),
        "member": member,
        "fingerprint": saved.fingerprint,
        "variables": _variables(saved),
        "checkpoint": saved.checkpoint,
        "feature_cache_gb": config.train.feature_cache_gb,
    }


def _resumed(run: Run, whole: Run, config: Config) -> StartingPoint:
    """The starting point of a run that has begun; `whole` is the run directory of the command."""
    _, begun = Run.open(run.directory)
    different = differences(decisive_keys(begun), decisive_keys(config))
    if run.is_finished:
        different += _other_differences(begun, config, run)
    if different:
        raise ConfigError(
            f"{run.directory}: began with another configuration: {'; '.join(different)}. Give the same values, or "
            "train again with --overwrite"
        )
    if run.is_finished:
        return finished(run, whole, VERIFICATION)
    saved_states = SavedStates(run.directory)
    state, members = saved_states.newest(), saved_states.members()
    # After a kill, a state may belong to a member whose end was already saved.
    if state is not None and state.snapshot.facts.get("member") == len(members):
        logger.info("resuming from %s", state.path)
        return StartingPoint(run, state=state, members=len(members), facts=dict(state.snapshot.facts))
    if members:
        logger.info("resuming after member %d of %d", len(members), config.train.members)
        return StartingPoint(run, members=len(members), facts=members[-1].facts)
    logger.warning("%s: has no saved state to resume from, so it starts again", run.directory)
    return StartingPoint(run, replace=True)


def finished(run: Run, whole: Run, result: str) -> StartingPoint:
    """The starting point of a finished run, with its file `result`; `whole` is the run directory of the command."""
    run.remove_checkpoints()
    if run != whole:
        replace_run(whole)
    logger.info("%s: is finished already", whole.directory)
    return StartingPoint(whole, verification=whole.read_json(result))


def begin_run(run: Run, config: Config | PretrainConfig, start: StartingPoint, lock: RunLock) -> None:
    """Create a run that resumes from nothing, under the lock of the run directory of the command."""
    with run.writing():
        make_folder(run.directory)
    lock.take(is_restarted())
    start.run.create(config, start.replace)


def _other_differences(begun: Config, config: Config, run: Run) -> list[str]:
    """Differences that matter for a finished run: another place of the data; others are named in the log."""
    before, now = other_keys(begun), other_keys(config)
    scored = [key for key in before if key.startswith(("calibration.", "decision.", "verify.", "target."))]
    changed = differences({key: before.get(key) for key in scored}, {key: now.get(key) for key in scored})
    if changed:
        logger.warning(
            "%s: is finished, so its calibration and verification stay as they are: %s. To change them, train again with "
            "--overwrite",
            run.directory,
            "; ".join(changed),
        )
    places = {*before, *now} - {*scored}
    return differences({key: before.get(key) for key in places}, {key: now.get(key) for key in places})


def _refuse_unfinished(run: Run) -> None:
    """Refuse the directory in which the replacement of another run is trained."""
    owner = run.directory.resolve().parent
    known = any((owner / name).is_file() for name in (AUDIT, HISTORY))
    if run.directory.resolve().name == UNFINISHED and known and (owner / CONFIG).is_file():
        raise UsageError(
            f"{run.directory}: is to replace the run {owner}; give --run {owner}, with --resume to continue it"
        )


def _variables(saved: SavedModel) -> list[list[str | None]]:
    """Names and units of the variables in their order, as JSON holds them."""
    return [list(each) for each in saved.variables]
