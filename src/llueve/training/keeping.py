"""The state of a course, written to the disk, and gone on from."""

import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llueve.errors import RunError
from llueve.forecasting import log_loss, predict_logits
from llueve.stability.remedies import Ledger
from llueve.stability.step import set_random_states
from llueve.training.checkpoint import Checkpoint, Health
from llueve.training.course import Course
from llueve.training.processes import Processes
from llueve.training.state import Snapshot

logger = logging.getLogger(__name__)


def checkpoint(course: Course) -> None:
    """Write the present state to the disk; it is then also the one to come back to.

    Raises:
        RunError: it cannot be written.
    """
    if course.surroundings.checkpoints is None or not course.is_alike():
        return
    snapshot = course.capture()
    sound = course.alone(lambda: _write(course, snapshot))
    course.model.train()
    course.kept_at = time.monotonic()
    if sound:
        course.healthy = snapshot
        course.passed_over.clear()


def _write(course: Course, snapshot: Snapshot) -> bool:
    """Write a state; tells whether it is sound."""
    checkpoints = course.surroundings.checkpoints
    assert checkpoints is not None
    canary_loss = log_loss(predict_logits(course.model, course.windows, course.canaries), course.canaries.y)
    course.model.train()
    health = Health.of(snapshot, canary_loss)
    facts = {
        **snapshot.facts,
        "ledger": course.ledger.as_dict(),
        "troubled": [[*place, count] for place, count in sorted(course.troubled.items())],
        "threads": torch.get_num_threads(),
        "device": course.device.type,
        "processes": course.surroundings.processes.count,
        **course.surroundings.facts(),
    }
    checkpoints.write(Snapshot(snapshot.tensors, facts), health)
    return health.sound


def checkpoint_if_due(course: Course) -> None:
    """Write the present state now and then."""
    every = course.surroundings.every
    by_steps = every.steps is not None and course.place.steps % every.steps == 0
    late = course.calls.checkpoint
    if course.processes.count == 1:
        late = time.monotonic() - course.kept_at >= every.minutes * 60
    if by_steps or late:
        checkpoint(course)


def keep_what_is_left(course: Course) -> None:
    """Write the state before a step in which another process was lost; nothing of that step has been applied."""
    if not course.processes.is_first:
        return
    course.processes = Processes()
    set_random_states(course.random_state, course.device)
    try:
        checkpoint(course)
    except RunError as error:
        logger.warning("%s", error)


def keep_best(course: Course) -> None:
    """The present weights are the best so far.

    Raises:
        RunError: they cannot be written.
    """
    best = {name: value.clone() for name, value in course.model.state_dict().items()}
    course.best = best
    checkpoints = course.surroundings.checkpoints
    if checkpoints is not None:
        course.alone(lambda: checkpoints.write_best(course.place.epoch, best))


def resume(course: Course, found: Checkpoint | None) -> None:
    """Go on from a state on the disk.

    Args:
        found: the state; None in all processes but the first, which tells it to them.

    Raises:
        RunError: it belongs to another training. CheckpointError: the best weights are damaged.
    """
    facts = course.processes.alone(lambda: dict(_required(found).snapshot.facts))
    _compare(facts, course.device.type, course.surroundings.processes)
    course.place = Snapshot({}, facts).place
    course.ledger = Ledger.of(facts["ledger"])
    course.troubled = Counter({(epoch, position): count for epoch, position, count in facts["troubled"]})
    course.model.encoder.exact_layers = frozenset(course.ledger.exact_layers)
    course.enter_phase()
    course.order_epoch()
    course.processes.alone(lambda: _restore(course, _required(found)))
    course.agree()
    checkpoints = course.surroundings.checkpoints
    if course.place.best_epoch and checkpoints is not None:
        best = {name: value.clone() for name, value in course.model.state_dict().items()}
        course.processes.alone(lambda: _fill(best, checkpoints.read_best(course.place.best_epoch)))
        for tensor in best.values():
            course.processes.spread(tensor)
        course.best = best
    course.healthy = course.capture()


def _required(found: Checkpoint | None) -> Checkpoint:
    assert found is not None  # process 0 is given it
    return found


def _compare(facts: Mapping[str, Any], device: str, processes: Processes) -> None:
    """Say what is not as it was when the run was begun, and may change its last bits."""
    for what, before, now in (
        ("thread(s)", facts["threads"], torch.get_num_threads()),
        ("process(es)", facts.get("processes", 1), processes.count),
    ):
        if before != now:
            logger.warning(
                "the run was begun with %d %s and goes on with %d: its last bits may differ from an uninterrupted run's",
                before,
                what,
                now,
            )
    if (begun := facts.get("device", device)) != device:
        logger.warning(
            "the run was begun on %s and goes on on %s: its numbers will differ from an uninterrupted run's",
            begun,
            device,
        )


def _restore(course: Course, found: Checkpoint) -> None:
    try:
        course.restore(found.snapshot)
    except (RuntimeError, KeyError, TypeError) as error:
        raise RunError(f"{found.path}: belongs to another training ({error}); train again with --overwrite") from error


def _fill(weights: Mapping[str, Tensor], read: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        tensor.copy_(read[name])
