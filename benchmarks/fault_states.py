"""Faults of what lies on the disk: a training is interrupted, its newest state damaged, and gone on with.

It must be told by name, and end bit for bit as the training that was never interrupted.
"""

import logging
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fault_course import Outcome, Shape, Training

from llueve.errors import CheckpointError
from llueve.model.pretrained import load_pretrained
from llueve.model.writing import encode_checkpoint
from llueve.training.checkpoint import Checkpoints, Health
from llueve.training.state import Snapshot

Random = np.random.Generator


@dataclass(frozen=True)
class StateFault:
    """One kind of damage to the newest state."""

    name: str
    damage: Callable[[Checkpoints, Path, Random], str]
    """Returns what must be named."""


def torn(_states: Checkpoints, path: Path, random: Random) -> str:
    """Only its beginning was written."""
    path.write_bytes(path.read_bytes()[: int(random.integers(1, path.stat().st_size))])
    return path.name


def flipped(_states: Checkpoints, path: Path, random: Random) -> str:
    """One bit."""
    content = bytearray(path.read_bytes())
    content[int(random.integers(len(content)))] ^= 1 << int(random.integers(8))
    path.write_bytes(content)
    return path.name


def poisoned(value: float, where: str) -> Callable[[Checkpoints, Path, Random], str]:
    """A whole file, of a state that holds a number that no sound training leads to."""

    def damage(states: Checkpoints, path: Path, random: Random) -> str:
        found = states.newest()
        assert found is not None and found.path == path
        tensors = {name: each.clone() for name, each in found.snapshot.tensors.items()}
        names = [
            name
            for name, each in tensors.items()
            if name.startswith(where) and each.is_floating_point() and each.numel()
        ]
        name = names[int(random.integers(len(names)))]
        index = tuple(int(random.integers(size)) for size in tensors[name].shape)
        tensors[name][index] = value
        snapshot = Snapshot(tensors, found.snapshot.facts)
        states.write(snapshot, Health.of(snapshot, 0.5))
        path.unlink()
        return f"{name}{list(index)}"

    return damage


STATE_FAULTS = (
    StateFault("torn newest state", torn),
    StateFault("flipped bit in the newest state", flipped),
    StateFault("NaN in the weights of the newest state", poisoned(float("nan"), "model.encoder")),
    StateFault("infinity in the moments of the newest state", poisoned(float("inf"), "optimiser.second")),
)
"""What the next training is given."""


def interrupted(
    shape: Shape, seed: int, precision: str, timing: str, fault: StateFault, random: Random
) -> dict[str, Any]:
    """Interrupt, damage, go on; what came of it."""
    clean = Training(shape, seed, precision).run()
    with tempfile.TemporaryDirectory() as folder:
        first = Training(shape, seed, precision)

        def stop(training: Training, _course: Any) -> None:
            training.interruption.number = signal.SIGTERM

        first.run(stop, first.attempt_at(timing), Path(folder))
        states = Checkpoints(Path(folder))
        found = states.newest()
        if found is None:  # before the last step the training ends by itself
            return {}
        named = fault.damage(states, found.path, random)
        with _log() as log:
            outcome = Training(shape, seed, precision).run(folder=Path(folder), resume=True)
    return {
        "detected": "is torn" in log.text or "is damaged" in log.text or "is not gone on from" in log.text,
        "located": named in log.text,
        "cause": "checkpoint",
        "cured": True,
        "recovered": _same(clean, outcome),
        "error": outcome.error,
    }


def refused_file(shape: Shape, seed: int, random: Random) -> dict[str, Any]:
    """A checkpoint of the published form with a NaN in one tensor: it must be refused by the tensor's name and the index."""
    training = Training(shape, seed, "float32")
    encoder = training.model.encoder
    names = [name for name, each in encoder.named_parameters() if each.ndim > 1]
    name = names[int(random.integers(len(names)))]
    parameter = encoder.get_parameter(name)
    index = tuple(int(random.integers(size)) for size in parameter.shape)
    with torch.no_grad():
        parameter[index] = float("nan")
    to = "openltm" if shape.architecture == "timer_xl" else "huggingface"
    with tempfile.TemporaryDirectory() as folder:
        for file, content in encode_checkpoint(encoder, to).items():
            (Path(folder) / file).write_bytes(content)
        try:
            load_pretrained(folder)
            message = ""
        except CheckpointError as error:
            message = str(error)
    return {
        "detected": bool(message),
        "located": name in message and str(list(index)) in message,
        "cause": "checkpoint",
        "cured": True,
        "recovered": bool(message),
        "error": None,
    }


def _same(one: Outcome, other: Outcome) -> bool:
    return bool(one.weights) and all(torch.equal(each, other.weights.get(name)) for name, each in one.weights.items())


class _log(logging.Handler):  # noqa: N801 (used as a context)
    """What is logged inside."""

    def __enter__(self) -> "_log":
        self.text = ""
        logging.disable(logging.NOTSET)
        logging.getLogger("llueve").addHandler(self)
        logging.getLogger("llueve").propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("llueve").removeHandler(self)
        logging.disable(logging.CRITICAL)

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        self.text += record.getMessage() + "\n"
