"""Checkpoints on disk: whole or not there, checked by hash, each with a record of its health.

`RUN/checkpoints/000007.safetensors` holds one state of a training (`llueve.training.state`): tensors, and in the header its
facts, its health and the SHA-256 of all of it. `best-0003.safetensors` holds the weights of the best epoch so far. A file is
written under another name, flushed to the disk and then renamed, so that neither a kill nor a full disk leaves half of one.
"""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from llueve.errors import CheckpointError, RunError
from llueve.run import CHECKPOINT_NAME, CHECKPOINTS
from llueve.training.state import Snapshot

logger = logging.getLogger(__name__)

FORMAT = 1
"""Raised when the content changes in a way that older code would misread."""
NUMBERED = re.compile(r"(\d{6})\.safetensors")
KEPT = 2
"""Newest checkpoints that stay, besides the newest healthy one."""
ENTRY = "llueve"
"""Of the file's header that holds facts, health and hash."""


@dataclass(frozen=True)
class Health:
    """Whether a state may be gone on from."""

    finite: bool
    """Every weight, buffer, moment and average is, and no weight or average is absurd."""
    canary_loss: float | None
    """Log-loss of a few validation windows that are always the same; None if it is not finite."""
    hashes: Mapping[str, str]
    """SHA-256 of weights, moments, average and random states."""

    @property
    def sound(self) -> bool:
        """Whether nothing speaks against it."""
        return self.finite and self.canary_loss is not None

    @classmethod
    def of(cls, snapshot: Snapshot, canary_loss: float) -> Self:
        """The health of a state."""
        finite = torch.tensor(canary_loss).isfinite().item()
        return cls(snapshot.is_sound, canary_loss if finite else None, _hashes(snapshot.tensors))


@dataclass(frozen=True)
class Checkpoint:
    """A state that was read back."""

    path: Path
    snapshot: Snapshot
    health: Health


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run_directory: the run's; their folder is made with the first of them.
    """

    def __init__(self, run_directory: Path) -> None:
        self.folder = run_directory / CHECKPOINTS

    def write(self, snapshot: Snapshot, health: Health) -> Path:
        """Keep a state, and remove older ones that nothing needs.

        Raises:
            RunError: the disk is full or read-only; what was there before is untouched.
        """
        numbers = self._numbers()
        path = self.folder / f"{numbers[-1] + 1 if numbers else 1:06d}.safetensors"
        content = {"format": FORMAT, "facts": dict(snapshot.facts), "health": asdict(health)}
        self._put(path, snapshot.tensors, content)
        self._rotate(path if health.sound else None)
        return path

    def write_best(self, epoch: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights of the best epoch; the earlier best stays until no checkpoint speaks of it.

        Raises:
            RunError: the disk is full or read-only.
        """
        self._put(self._best(epoch), weights, {"format": FORMAT, "epoch": epoch})

    def read_best(self, epoch: int) -> dict[str, Tensor]:
        """The weights of the best epoch.

        Raises:
            CheckpointError: they are absent or damaged.
        """
        return _read(self._best(epoch))[0]

    def newest(self) -> Checkpoint | None:
        """The newest state that is whole and sound; what is passed over is said. None if there is none.

        Raises:
            RunError: the folder cannot be read.
        """
        for number in reversed(self._numbers()):
            path = self.folder / f"{number:06d}.safetensors"
            try:
                found = self._state(path)
            except CheckpointError as error:
                logger.warning("%s; the one before it is used", error)
                continue
            if found.health.sound:
                return found
            fault = found.snapshot.first_fault() or "its loss on a few validation windows is not finite"
            logger.warning("%s: is not gone on from, as %s", path, fault)
        return None

    def _state(self, path: Path) -> Checkpoint:
        """One state, with the best weights that it speaks of still there."""
        tensors, content = _read(path)
        try:
            snapshot = Snapshot(tensors, content["facts"])
            health = Health(**content["health"])
            best = snapshot.place.best_epoch
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: is damaged (its facts are not complete: {error})") from error
        if best:
            self.read_best(best)
        return Checkpoint(path, snapshot, health)

    def _best(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch:04d}.safetensors"

    def _numbers(self) -> list[int]:
        return sorted(int(found[1]) for path in self._files() if (found := NUMBERED.fullmatch(path.name)))

    def _files(self) -> list[Path]:
        """What this class has written, torn pieces too; links are not followed."""
        try:
            if self.folder.is_symlink():
                raise RunError(f"{self.folder}: is a link, which is not followed; remove it")
            present = list(self.folder.iterdir()) if self.folder.is_dir() else []
        except OSError as error:
            raise _unreadable(self.folder, error) from error
        return [path for path in present if CHECKPOINT_NAME.fullmatch(path.name) and not path.is_symlink()]

    def _put(self, path: Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        on_cpu = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
        text = json.dumps({**content, "sha256": _seal(content, on_cpu)}, allow_nan=False)
        temporary = path.with_name(f".{path.name}.part")
        try:
            self.folder.mkdir(exist_ok=True)
            # Bytes first: safetensors' own writer reports a full disk as something that is no OSError.
            with temporary.open("wb") as file:
                file.write(save(on_cpu, metadata={ENTRY: text}))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _flush(self.folder)
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror or error}); the checkpoints before it are intact. Free the disk and "
                "go on with --resume"
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _rotate(self, healthy: Path | None) -> None:
        """Remove old states but the newest, the newest healthy one, and the best weights that they speak of."""
        paths = [self.folder / f"{number:06d}.safetensors" for number in self._numbers()]
        kept = paths[-KEPT:]
        if healthy is None:
            kept += [path for path in paths if path not in kept and _is_sound(path)][-1:]
        best = {self._best(epoch) for path in kept for epoch in _best_epoch(path)}
        for path in self._files():
            if path not in kept and path not in best and not (path.name.startswith("best") and not best):
                with suppress(OSError):
                    path.unlink()


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and content of a file that is as it was written.

    Raises:
        CheckpointError: it is not.
    """
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {}).get(ENTRY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: is torn or damaged ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: was written by another version of llueve, or by something else")
    sha256 = content.pop("sha256", None)
    if sha256 != _seal(content, tensors):
        raise CheckpointError(f"{path}: is damaged (its hash is not the recorded one)")
    return tensors, content


def _seal(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the content and every tensor."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of each group of tensors, by the first part of their names."""
    groups: dict[str, Any] = {}
    for name in sorted(tensors):
        groups.setdefault(name.split(".")[0], hashlib.sha256()).update(_bytes(tensors[name]))
    return {group: digest.hexdigest() for group, digest in groups.items()}


def _bytes(tensor: Tensor) -> memoryview:
    numbers: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return numbers


def _best_epoch(path: Path) -> Iterable[int]:
    """The best epoch that a state speaks of, if it has one."""
    with suppress(CheckpointError, KeyError, TypeError):
        epoch = _header(path)["facts"]["place"]["best_epoch"]
        if epoch:
            yield epoch


def _is_sound(path: Path) -> bool:
    try:
        return Health(**_header(path)["health"]).sound
    except (CheckpointError, KeyError, TypeError):
        return False


def _header(path: Path) -> dict[str, Any]:
    """Content of a file without its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            content = json.loads((file.metadata() or {}).get(ENTRY, "null"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: is torn or damaged ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: was written by something else")
    return content


def _flush(folder: Path) -> None:
    """Make a renamed file's name lasting."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unreadable(folder: Path, error: OSError) -> RunError:
    return RunError(f"{folder}: cannot be read ({error.strerror or error})")
