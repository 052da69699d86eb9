"""Faults of files: a damaged saved state of an interrupted training.

The log must name a damaged state, and the resumed training must end bit for bit as the training without an interruption.
"""

import logging
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.fault import INF, NAN
from benchmarks.faults.scene import Random, put
from benchmarks.faults.trial import Shape, Trial
from llueve.training.saved_states import Health, SavedStates
from llueve.training.snapshot import Snapshot
from llueve.training.trainer import Trainer

Damage = Callable[[SavedStates, Path, Random], tuple[Path, str]]
"""Returns the damaged file, and the words that must name it."""


def torn(_states: SavedStates, path: Path, random: Random) -> tuple[Path, str]:
    """Keep only the beginning of the file."""
    path.write_bytes(path.read_bytes()[: int(random.integers(1, path.stat().st_size))])
    return path, path.name


def flipped(_states: SavedStates, path: Path, random: Random) -> tuple[Path, str]:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    content[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
    path.write_bytes(content)
    return path, path.name


def poisoned(value: float, where: str, states: SavedStates, path: Path, random: Random) -> tuple[Path, str]:
    """Write a whole file again, with a number that no sound training reaches."""
    found = states.newest()
    assert found is not None and found.path == path
    tensors = {name: each.clone() for name, each in found.snapshot.tensors.items()}
    floats = [name for name, each in tensors.items() if each.is_floating_point() and each.numel()]
    names = [name for name in floats if name.startswith(where)]
    name = names[int(random.integers(len(names)))]
    index = put(tensors[name], value, random)
    snapshot = Snapshot(tensors, found.snapshot.facts)
    written = states.write(snapshot, Health.of(snapshot, 0.5))
    path.unlink()
    return written, f"{name}{list(index)}"


STATE_FAULTS: dict[str, Damage] = {
    "checkpoint: torn newest state": torn,
    "checkpoint: flipped bit in the newest state": flipped,
    "checkpoint: NaN in the weights of the newest state": partial(poisoned, NAN, "model.encoder"),
    "checkpoint: infinity in the moments of the newest state": partial(poisoned, INF, "optimiser.second"),
}


def interrupt(trainer: Trainer) -> None:
    """Do as a signal does."""
    trainer.environment.interruption.number = signal.SIGTERM


def interrupted(shape: Shape, seed: int, precision: str, timing: str, damage: Damage, random: Random) -> dict[str, Any]:
    """Interrupt a training, damage its newest state, resume, and judge the result."""
    clean = Trial(shape, seed, precision).run()
    with tempfile.TemporaryDirectory() as name:
        folder, first = Path(name), Trial(shape, seed, precision)
        first.run(interrupt, first.attempt_at(timing), folder)
        states = SavedStates(folder)
        found = states.newest()
        if found is None:  # before the last step the training ends by itself
            return {}
        damaged, words = damage(states, found.path, random)
        newest = states.newest()
        with logged() as lines:
            outcome = Trial(shape, seed, precision).run(folder=folder, resume=True)
    ended = outcome.weights.keys() == clean.weights.keys()
    same = ended and all(torch.equal(each, outcome.weights[name]) for name, each in clean.weights.items())
    return {
        "detected": newest is None or newest.path != damaged,
        "located": any(words in line for line in lines),
        "recovered": same,
        "error": outcome.error or outcome.stop or outcome.refusal,
    }


@contextmanager
def logged() -> Iterator[list[str]]:
    """Collect what llueve logs."""
    lines: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("llueve")
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.disable(logging.NOTSET)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logging.disable(logging.CRITICAL)
