"""The run directory: what a training leaves behind, written whole or not at all.

| file | content |
| --- | --- |
| `config.toml` | the configuration, with every default |
| `audit.json` | what the audit found |
| `history.jsonl` | one JSON object per epoch |
| `model.safetensors` | the weights |
| `model.json` | everything else that a prediction needs |
| `predictions.csv` | site, time, observed, probability of the test period |
| `verification.json` | scores, references and verdict |
| `checkpoints/` | states of an unfinished training, to go on from: see `llueve.training.checkpoint` |
| `features/` | what a frozen encoder gave, while it is: see `llueve.training.feature_cache` |
| `tensorboard/`, `mlflow.json` | what trackers were told, if any are asked for: see `llueve.training.tracking` |
| `incidents/NNN/` | a training step that was refused, if there was one: see `llueve.stability.incident` |
"""

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llueve.config import Config, load_config
from llueve.errors import RunError

CONFIG, AUDIT, HISTORY = "config.toml", "audit.json", "history.jsonl"
WEIGHTS, MODEL, PREDICTIONS, VERIFICATION = "model.safetensors", "model.json", "predictions.csv", "verification.json"
FILES = (CONFIG, AUDIT, HISTORY, WEIGHTS, MODEL, PREDICTIONS, VERIFICATION)
INCIDENTS, INCIDENT = "incidents", "incident.json"
TENSORS = ("batch.safetensors", "before.safetensors", "optimiser.safetensors", "random.safetensors")
"""Files of an incident besides its description."""
EXPLANATION = "explanation.json"
"""What the training loop found out about an incident, if it looked."""
INCIDENT_NAME = re.compile(r"[0-9]{3}")
"""Folder of an incident."""
CHECKPOINTS = "checkpoints"
CHECKPOINT_NAME = re.compile(r"\.?(\d{6}|best-\d{4,})\.safetensors(\.part)?")
"""File of a state of an unfinished training, or a torn piece of one."""
FEATURES = "features"
FEATURES_NAME = re.compile(r"(?P<part>[a-z]+)-(?P<model>[0-9a-f]{16})-[0-9a-f]{16}\.(features|json)(\.part)?")
"""File of the features that a frozen encoder gave, or a torn piece of one."""
TENSORBOARD, MLFLOW = "tensorboard", "mlflow.json"
"""Where trackers write: a folder of events, and which run of MLflow it is."""
EVENTS_PREFIX = "events.out.tfevents.llueve."
"""What each file of events begins with."""
EVENTS_NAME = re.compile(re.escape(EVENTS_PREFIX) + r"[0-9]+")


@dataclass(frozen=True)
class Run:
    """A run directory."""

    directory: Path

    def require_free(self, overwrite: bool) -> None:
        """Check that a new run may take this directory; nothing is changed.

        Raises:
            RunError: it holds a run and `overwrite` is not given, or something that is no run.
        """
        try:
            present = [path.name for path in self.directory.iterdir()]
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise RunError(f"{self.directory}: is a file; expected a directory, or a name that is free") from error
        except OSError as error:
            raise self._unwritable(error) from error
        if present and not overwrite:
            if self.is_finished:
                raise RunError(
                    f"{self.directory}: holds a finished run; give another --run, or --overwrite to replace it"
                )
            going_on = ", --resume to go on with it" if CONFIG in present else ""
            raise RunError(
                f"{self.directory}: already exists; give another --run{going_on}, or --overwrite to replace it"
            )
        if present and CONFIG not in present:
            raise RunError(
                f"{self.directory}: holds files but no run ({CONFIG} is not there), so it is not overwritten"
            )
        if (self.directory / INCIDENTS).is_symlink():
            raise RunError(f"{self.directory / INCIDENTS}: is a link, which is not followed; remove it")

    def create(self, config: Config, overwrite: bool) -> None:
        """Make the directory and write the configuration into it.

        With `overwrite`, the files of an earlier run there are removed, and nothing else.

        Raises:
            RunError: as `require_free`, or it cannot be written.
        """
        self.require_free(overwrite)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for name in (*FILES, MLFLOW):
                (self.directory / name).unlink(missing_ok=True)
            _remove_incidents(self.directory / INCIDENTS)
            self.remove_checkpoints()
            remove_matching(self.directory / TENSORBOARD, EVENTS_NAME)
        except OSError as error:
            raise self._unwritable(error) from error
        self.write_text(CONFIG, config.to_toml())

    @classmethod
    def open(cls, directory: str | Path) -> tuple["Run", Config]:
        """An existing run and its configuration.

        Raises:
            RunError: the directory holds no run.
        """
        run = cls(Path(directory))
        if not (run.directory / CONFIG).is_file():
            raise RunError(
                f"{directory}: is no run directory (no {CONFIG} in it); give the DIR of `llueve train --run DIR`"
            )
        return run, load_config(run.directory / CONFIG)

    def path(self, name: str) -> Path:
        """Path of one file of the run.

        Raises:
            RunError: it is not there, as when the training was stopped.
        """
        path = self.directory / name
        if not path.is_file():
            raise RunError(
                f"{self.directory}: has no {name}: the training did not finish; train again with --overwrite"
            )
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        """One JSON file of the run.

        Raises:
            RunError: it is not there or damaged.
        """
        path = self.path(name)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error
        except ValueError as error:
            raise RunError(f"{path}: is damaged ({error}); train again with --overwrite") from error
        if not isinstance(content, dict):
            raise RunError(f"{path}: is damaged (expected a JSON object); train again with --overwrite")
        return content

    @property
    def is_finished(self) -> bool:
        """Whether it was trained and verified to its end."""
        return all((self.directory / name).is_file() for name in (CONFIG, MODEL, WEIGHTS, VERIFICATION))

    @property
    def history_bytes(self) -> int:
        """Length of the history so far."""
        path = self.directory / HISTORY
        return path.stat().st_size if path.is_file() else 0

    def shorten_history(self, size: int) -> None:
        """Drop what was recorded after its first `size` bytes.

        Raises:
            RunError: the disk is full or read-only.
        """
        try:
            if self.history_bytes > size:
                os.truncate(self.directory / HISTORY, size)
        except OSError as error:
            raise self._unwritable(error) from error

    @property
    def newest_incident(self) -> int:
        """Number of the refused step that was kept last; 0 while there is none."""
        return max((number for number, _ in _incidents(self.directory / INCIDENTS)), default=0)

    def forget_incidents(self, after: int) -> None:
        """Remove the refused steps that were kept after this one: a training that goes on from before comes to them again.

        Raises:
            RunError: they cannot be removed.
        """
        try:
            _remove_incidents(self.directory / INCIDENTS, after)
        except OSError as error:
            raise self._unwritable(error) from error

    def remove_checkpoints(self) -> None:
        """Remove the states of a training that is over, and the features of its encoder.

        No link is followed, and a folder that holds more stays.
        """
        remove_matching(self.directory / CHECKPOINTS, CHECKPOINT_NAME)
        remove_matching(self.directory / FEATURES, FEATURES_NAME)

    def write(self, name: str, fill: Callable[[Path], None]) -> None:
        """Let `fill` write a file under a temporary name, then put it in place, so that a torn file is never seen.

        Raises:
            RunError: the disk is full or read-only.
        """
        temporary = self.directory / f".{name}.part"
        try:
            fill(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(self.directory / name)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> None:
        """Write one text file whole."""
        self.write(name, lambda path: _write(path, text))

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write one JSON file whole; a NaN in it is a programming error, since JSON has none."""
        self.write_text(name, json.dumps(content, indent=2, allow_nan=False) + "\n")

    def append_history(self, record: dict[str, Any]) -> None:
        """Add one line to the history.

        Raises:
            RunError: the disk is full or read-only.
        """
        try:
            with (self.directory / HISTORY).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, allow_nan=False) + "\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.directory}: cannot be written ({error.strerror or error}); choose another --run, or free the disk"
        )


def remove_matching(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the files with such names, and their folder; no link is followed, and a folder that holds more stays."""
    if folder.is_symlink() or not folder.is_dir():
        return
    with suppress(OSError):
        for path in folder.iterdir():
            if names.fullmatch(path.name) and not path.is_symlink():
                path.unlink(missing_ok=True)
        folder.rmdir()


def _remove_incidents(folder: Path, after: int = 0) -> None:
    """Remove incidents with higher numbers; no link is followed, and a folder that holds more than them stays."""
    for number, place in _incidents(folder):
        if number > after:
            for name in (*TENSORS, INCIDENT, EXPLANATION):
                (place / name).unlink(missing_ok=True)
                (place / f".{name}.part").unlink(missing_ok=True)
            with suppress(OSError):
                place.rmdir()
    with suppress(OSError):
        folder.rmdir()


def _incidents(folder: Path) -> list[tuple[int, Path]]:
    """Number and folder of each refused step that was kept, links left out."""
    present = list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    named = [path for path in present if INCIDENT_NAME.fullmatch(path.name)]
    return [(int(path.name), path) for path in named if path.is_dir() and not path.is_symlink()]


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
