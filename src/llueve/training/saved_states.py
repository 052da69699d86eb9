"""Saved states of an unfinished training on disk: whole or absent, sealed by a hash, each with a record of its health.

`RUN/checkpoints/000007.safetensors` holds one state of a training: its tensors (`llueve.training.snapshot`), its facts and
its health. `best-0003.safetensors` holds the weights of the best epoch so far, and `member-001.safetensors` those of the first
member of `train.members` once it is trained.
"""

import json
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from llueve.errors import CheckpointError, RunError
from llueve.files import make_folder
from llueve.runs.directory import CHECKPOINT_NAME, CHECKPOINTS
from llueve.runs.sealed_file import read_sealed, read_sealed_text, write_sealed
from llueve.training.snapshot import Snapshot

logger = logging.getLogger(__name__)

FORMAT = 3
"""Format number; raised when older code would misread the content."""
NUMBERED = re.compile(r"\d{6}\.safetensors")
MEMBER = re.compile(r"member-\d{3}\.safetensors")
KEPT = 2
"""Newest states that stay on disk, besides the newest healthy one."""


@dataclass(frozen=True)
class Health:
    """The record that decides whether a training may resume from a state."""

    finite: bool
    """True if every number is finite, and no weight or average is absurd."""
    canary_loss: float | None
    """Log-loss of a fixed set of validation windows; None if it is not finite."""

    @property
    def sound(self) -> bool:
        """True if a training may resume from the state."""
        return self.finite and self.canary_loss is not None

    @classmethod
    def of(cls, snapshot: Snapshot, canary_loss: float) -> Self:
        """Record the health of a state."""
        return cls(snapshot.is_sound, canary_loss if torch.tensor(canary_loss).isfinite() else None)


@dataclass(frozen=True)
class SavedState:
    """A state that was read from disk."""

    path: Path
    snapshot: Snapshot
    health: Health


@dataclass(frozen=True)
class FinishedMember:
    """The weights of a trained member of `train.members`."""

    weights: dict[str, Tensor]
    facts: dict[str, Any]
    """Facts of the run when the member was finished, as those of a saved state."""


class SavedStates:
    """The saved states of one run, in a folder of the run directory that the first state creates."""

    def __init__(self, run_directory: Path) -> None:
        self.folder = run_directory / CHECKPOINTS

    def write(self, snapshot: Snapshot, health: Health) -> Path:
        """Save a state, and remove older ones that are no longer needed.

        Raises:
            RunError: the disk is full or read-only; the earlier states are intact.
        """
        earlier = self._numbered()
        path = self.folder / f"{int(earlier[-1].stem) + 1 if earlier else 1:06d}.safetensors"
        self._write(path, snapshot.tensors, {"facts": dict(snapshot.facts), "health": asdict(health)})
        self._remove_old(path if health.sound else None)
        return path

    def write_best(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Save the weights of the best epoch; earlier best weights stay while a saved state needs them.

        Raises:
            RunError: the disk is full or read-only.
        """
        self._write(self._best(epoch), weights, {"epoch": epoch})

    def read_best(self, epoch: int) -> dict[str, Tensor]:
        """Read the weights of the best epoch.

        Raises:
            CheckpointError: they are absent or damaged.
        """
        return _read(self._best(epoch))[0]

    def write_member(self, number: int, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Save the weights of a trained member, counted from 1, and remove the states that led to them.

        Raises:
            RunError: the disk is full or read-only.
        """
        self._write(self.folder / f"member-{number:03d}.safetensors", weights, {"facts": dict(facts)})
        for path in self._files():
            if not MEMBER.fullmatch(path.name):
                with suppress(OSError):
                    path.unlink()

    def members(self) -> list[FinishedMember]:
        """Read the trained members from the first one on, up to one that is absent or damaged."""
        found: list[FinishedMember] = []
        while (path := self.folder / f"member-{len(found) + 1:03d}.safetensors").is_file():
            try:
                weights, content = _read(path)
                found.append(FinishedMember(weights, dict(content["facts"])))
            except (CheckpointError, KeyError, TypeError) as error:
                logger.warning("%s: cannot be used (%s); this member is trained again", path, error)
                break
        return found

    def newest(self) -> SavedState | None:
        """Read the newest state that is whole and sound; the log names the states that are skipped.

        Raises:
            RunError: the folder cannot be read.
        """
        for path in reversed(self._numbered()):
            try:
                found = self._state(path)
            except CheckpointError as error:
                logger.warning("%s; the state before it is used", error)
                continue
            if found.health.sound:
                return found
            fault = found.snapshot.first_fault() or "its loss on a few validation windows is not finite"
            logger.warning("%s: unhealthy, so it is skipped: %s", path, fault)
        return None

    def _state(self, path: Path) -> SavedState:
        """Read one state, and check that its best weights are there."""
        tensors, content = _read(path)
        try:
            snapshot = Snapshot(tensors, content["facts"])
            health = Health(**content["health"])
            best = snapshot.place.best_epoch
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: is damaged (its facts are not complete: {error})") from error
        if best:
            self.read_best(best)
        return SavedState(path, snapshot, health)

    def _best(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch:04d}.safetensors"

    def _numbered(self) -> list[Path]:
        """The files of states, oldest first."""
        return sorted(path for path in self._files() if NUMBERED.fullmatch(path.name))

    def _files(self) -> list[Path]:
        """Files of this class, torn pieces included; links are not followed."""
        try:
            if self.folder.is_symlink():
                raise RunError(f"{self.folder}: is a link, which is not followed; remove it")
            present = list(self.folder.iterdir()) if self.folder.is_dir() else []
        except OSError as error:
            raise RunError(f"{self.folder}: cannot be read ({error.strerror or error})") from error
        return [path for path in present if CHECKPOINT_NAME.fullmatch(path.name) and not path.is_symlink()]

    def _write(self, path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        try:
            make_folder(self.folder)
            write_sealed(path, tensors, json.dumps({"format": FORMAT, **content}, allow_nan=False))
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror or error}); the saved states before it are intact. Free the "
                "disk and continue with --resume"
            ) from error

    def _remove_old(self, healthy: Path | None) -> None:
        """Keep the newest states, the newest healthy one and their best weights; remove the others."""
        paths = self._numbered()
        kept = paths[-KEPT:]
        if healthy is None:
            kept += [path for path in paths if path not in kept and _summary(path)[0]][-1:]
        best = {self._best(epoch) for path in kept if (epoch := _summary(path)[1])}
        for path in self._files():
            needed = path in kept or path in best or MEMBER.fullmatch(path.name)
            if not needed and not (path.name.startswith("best") and not best):
                with suppress(OSError):
                    path.unlink()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and content of a file that is exactly as it was written."""
    tensors, text = read_sealed(path)
    return tensors, _parsed(path, text)


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: was written by another version of llueve, or by another program")
    return content


def _summary(path: Path) -> tuple[bool, int]:
    """True if a state is sound, and its best epoch; False and 0 if it cannot be read."""
    try:
        content = _parsed(path, read_sealed_text(path))
        return Health(**content["health"]).sound, content["facts"]["place"]["best_epoch"]
    except (CheckpointError, KeyError, TypeError):
        return False, 0
