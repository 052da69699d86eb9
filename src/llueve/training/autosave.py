"""Save the state of a training to disk, and resume from it."""

import logging
from collections.abc import Mapping
from typing import Any

import torch

from llueve.errors import RunError
from llueve.training.saved_states import Health, SavedState
from llueve.training.snapshot import Snapshot
from llueve.training.trainer import Trainer

logger = logging.getLogger(__name__)


def save_state(trainer: Trainer) -> None:
    """Save the present state; if it is sound, it is also the one to roll back to.

    Raises:
        RunError: it cannot be written.
    """
    state = trainer.state
    if trainer.environment.saved_states is None or not state.is_alike():
        return
    if trainer.processes.gather([float(state.changed(everything=True).any())]).any():
        logger.warning(
            "the state is not saved: stored numbers have changed between two steps; the next step is refused"
        )
        return
    snapshot = state.capture()
    sound = trainer.processes.on_first(lambda: _write(trainer, snapshot))
    state.model.train()  # the loss of a few windows was computed in evaluation mode
    trainer.stepper.mark_saved()
    if sound:
        state.mark_healthy(snapshot)


def save_state_if_due(trainer: Trainer) -> None:
    """Save the present state if `checkpoints.steps` or `checkpoints.minutes` ask for it."""
    every = trainer.environment.save_every
    by_steps = every.steps is not None and trainer.state.place.steps % every.steps == 0
    if by_steps or trainer.stepper.is_save_due:
        save_state(trainer)


def save_after_loss_of_a_process(trainer: Trainer) -> None:
    """Save the state before the step in which another process was lost; nothing of that step was applied."""
    if not trainer.processes.is_first:
        return
    trainer.processes.leave()
    trainer.state.rewind_random_state(trainer.state.random_state)
    try:
        save_state(trainer)
    except RunError as error:
        logger.warning("%s", error)


def save_best(trainer: Trainer, loss: float) -> None:
    """Keep the present weights as the best so far, in memory and on disk.

    Raises:
        RunError: they cannot be written.
    """
    epoch, saved_states = trainer.state.place.epoch, trainer.environment.saved_states
    best = trainer.state.keep_best(loss, epoch)
    if saved_states is not None:
        trainer.processes.on_first(lambda: saved_states.write_best(epoch, best))


def resume_from(trainer: Trainer, found: SavedState | None) -> None:
    """Bring a training to a saved state, which process 0 alone has and sends to the others.

    Raises:
        RunError: it belongs to another training. CheckpointError: the best weights are damaged.
    """
    state, processes = trainer.state, trainer.processes
    facts = processes.on_first(lambda: dict(_required(found).snapshot.facts))
    _warn_of_differences(facts, trainer)
    state.load_facts(facts)
    trainer.start_phase()
    trainer.start_order()
    processes.on_first(lambda: _restore(trainer, _required(found)))
    state.agree()
    saved_states = trainer.environment.saved_states
    if state.place.best_epoch and saved_states is not None:
        state.load_best(lambda: saved_states.read_best(state.place.best_epoch))
    state.mark_healthy()


def _write(trainer: Trainer, snapshot: Snapshot) -> bool:
    """Write a state; returns True if it is sound."""
    state, saved_states = trainer.state, trainer.environment.saved_states
    assert saved_states is not None
    health = Health.of(snapshot, trainer.validation.canary_loss(state.model))
    facts = {
        **snapshot.facts,
        **state.facts(),
        "threads": torch.get_num_threads(),
        "device": state.device.type,
        "processes": trainer.processes.started,
        **trainer.environment.run_facts(),
    }
    saved_states.write(Snapshot(snapshot.tensors, facts), health)
    return health.sound


def _required(found: SavedState | None) -> SavedState:
    assert found is not None  # process 0 has it
    return found


def _warn_of_differences(facts: Mapping[str, Any], trainer: Trainer) -> None:
    """Warn of circumstances that changed since the run began and may change its last bits."""
    threads, processes = torch.get_num_threads(), trainer.processes.started
    device = trainer.state.device.type
    for before, now, difference in (
        (f"with {facts['threads']} thread(s)", f"with {threads} thread(s)", "last bits may"),
        (f"with {facts.get('processes', 1)} process(es)", f"with {processes} process(es)", "last bits may"),
        (f"on {facts.get('device', device)}", f"on {device}", "numbers will"),
    ):
        if before != now:
            change = f"began {before} and resumes {now}"
            logger.warning("the run %s: its %s differ from those of an uninterrupted run", change, difference)


def _restore(trainer: Trainer, found: SavedState) -> None:
    try:
        trainer.state.restore(found.snapshot)
    except (RuntimeError, KeyError, TypeError) as error:
        raise RunError(f"{found.path}: belongs to another training ({error}); train again with --overwrite") from error
