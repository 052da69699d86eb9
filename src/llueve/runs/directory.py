"""The run directory: the output of a training. Each file is written whole or not at all.

| file | content |
| --- | --- |
| `config.toml` | the configuration, with every default |
| `audit.json` | the findings of the audit |
| `history.jsonl` | one JSON object per epoch and per refused step |
| `model.safetensors` | the weights |
| `model.json` | everything else that a prediction needs |
| `predictions.csv` | site, time, observed, probability of the test period |
| `verification.json` | scores, references and verdict |
| `encoder.safetensors` | of a pre-training: the weights of the encoder |
| `model_card.json`, `MODEL_CARD.md` | of a pre-training: origin, sizes, scores and recalibration of the encoder |
| `checkpoints/` | saved states of an unfinished training: see `llueve.training.saved_states` |
| `features/` | features of a frozen encoder during the training: see `llueve.training.batches.feature_cache` |
| `tensorboard/`, `mlflow.json` | output of the trackers: see `llueve.training.tracking` |
| `incidents/NNN/` | refused training steps: see `llueve.stability.incidents` |
| `unfinished/` | the run that is to replace this one, in training: see `llueve.runs.replacement` |
| `.lock` | process and host of the command that uses the directory: see `llueve.runs.lock` |
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llueve.config import Config, PretrainConfig, load_config, load_pretrain_config
from llueve.errors import ConfigError, RunError, UsageError
from llueve.files import append, flush_folder, make_folder, shorten, write_whole
from llueve.paths import path_problem
from llueve.runs.lock import LOCK

CONFIG, AUDIT, HISTORY = "config.toml", "audit.json", "history.jsonl"
WEIGHTS, MODEL, PREDICTIONS, VERIFICATION = "model.safetensors", "model.json", "predictions.csv", "verification.json"
FILES = (CONFIG, AUDIT, HISTORY, WEIGHTS, MODEL, PREDICTIONS, VERIFICATION)
ENCODER, CARD, CARD_TEXT = "encoder.safetensors", "model_card.json", "MODEL_CARD.md"
PRETRAINING_FILES = (ENCODER, CARD, CARD_TEXT)
"""Further files of a pre-training."""
COMPLETE = ((CONFIG, MODEL, WEIGHTS, VERIFICATION), (CONFIG, ENCODER, CARD))
"""Files of a finished training, and of a finished pre-training."""
INCIDENTS, INCIDENT = "incidents", "step.safetensors"
EXPLANATION = "explanation.json"
"""File with the cause of an incident, if the training searched for it."""
INCIDENT_NAME = re.compile(r"[0-9]{3}")
CHECKPOINTS = "checkpoints"
CHECKPOINT_NAME = re.compile(r"\.?(\d{6}|best-\d{4,}|member-\d{3})\.safetensors(\.part)?")
"""Name of a saved state, of the best weights, or of a finished member, complete or not."""
FEATURES = "features"
FEATURES_NAME = re.compile(r"\.?(?P<part>[a-z]+)-(?P<model>[0-9a-f]{16})-[0-9a-f]{16}\.(features|json)(\.part)?")
"""Name of a file of cached features, complete or not."""
TENSORBOARD, MLFLOW = "tensorboard", "mlflow.json"
"""Folder of TensorBoard's events, and file with the address and number of the MLflow run."""
EVENTS_PREFIX = "events.out.tfevents.llueve."
EVENTS_NAME = re.compile(re.escape(EVENTS_PREFIX) + r"[0-9]+")
UNFINISHED, REPLACING = "unfinished", ".replacing"
"""Folder of the run that is to replace this one; and its name from the moment when it counts as this run."""
BEFORE_A_RUN = (LOCK, f".{CONFIG}.part")
"""Files that a process may leave behind which was killed before the run began."""
LARGEST_JSON = 16 * 2**20
"""Most bytes of a JSON file of a run."""


@dataclass(frozen=True)
class Run:
    """A run directory. Each method that changes it raises RunError if the disk is full or read-only."""

    directory: Path

    def __post_init__(self) -> None:
        """Refuse a path that no directory can have, with a `UsageError`."""
        if problem := path_problem(str(self.directory)):
            raise UsageError(f"{str(self.directory)[:100]!r}: {problem}; give another run directory")

    def require_free(self, overwrite: bool) -> None:
        """Check that a new run may use this directory, and with `overwrite` replace a run in it; nothing is changed.

        Raises:
            RunError: the directory holds a run that may not be replaced, or other files than those of a run.
        """
        try:
            present = [path.name for path in self.directory.iterdir() if path.name not in BEFORE_A_RUN]
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            raise RunError(f"{self.directory}: is a file; expected a directory, or a free name") from error
        except OSError as error:
            raise self._unwritable(error) from error
        if present and not overwrite:
            state = "holds a finished run" if self.is_finished else "already exists"
            if UNFINISHED in present:
                state += f", and in {UNFINISHED} a training that is to replace it"
            has_more = CONFIG in present and (UNFINISHED in present or not self.is_finished)
            resume = ", --resume to continue it" if has_more else ""
            raise RunError(f"{self.directory}: {state}; give another --run{resume}, or --overwrite to replace it")
        if present and not {CONFIG, UNFINISHED} & {*present}:
            raise RunError(f"{self.directory}: holds files but no run (no {CONFIG}); give another --run")
        for name in (INCIDENTS, TENSORBOARD, CHECKPOINTS, FEATURES):
            if (self.directory / name).is_symlink():
                raise RunError(f"{self.directory / name}: is a link, which is not followed; remove it")

    def create(self, config: Config | PretrainConfig, overwrite: bool) -> None:
        """Make the directory and write the configuration into it.

        With `overwrite`, the files of an earlier run are removed first, and no others. Its configuration is replaced
        last, so that the directory is that of a run at any moment.

        Raises:
            RunError: as for `require_free`, or the directory cannot be written.
        """
        self.require_free(overwrite)
        with self.writing():
            make_folder(self.directory)
            self.remove_files(keep=CONFIG)
        self.write(CONFIG, config.to_toml().encode())

    def remove_files(self, keep: str | None = None) -> None:
        """Remove what a run has made, and no other files; may raise OSError."""
        for name in (*FILES, *PRETRAINING_FILES, MLFLOW):
            if name != keep:
                (self.directory / name).unlink(missing_ok=True)
            with suppress(OSError):  # a folder of this name is not of the run
                (self.directory / f".{name}.part").unlink(missing_ok=True)
        _remove_incidents(self.directory / INCIDENTS)
        self.remove_checkpoints()
        remove_matching(self.directory / TENSORBOARD, EVENTS_NAME)
        flush_folder(self.directory)

    @property
    def replacing(self) -> Path:
        """Folder of a finished run that is being moved over this one."""
        return self.directory / REPLACING

    @property
    def exists(self) -> bool:
        """True if the directory holds a run, or a part of one."""
        return any((self.directory / name).exists() for name in (CONFIG, UNFINISHED, REPLACING))

    @classmethod
    def open(cls, directory: str | Path) -> tuple["Run", Config]:
        """Return an existing run and its configuration; a directory without a run raises RunError."""
        run = cls._present(directory, "train")
        try:
            return run, load_config(run.directory / CONFIG)
        except ConfigError:
            if run._holds(load_pretrain_config):
                raise RunError(
                    f"{directory}: is the run directory of a pre-training; expected that of a training. To use its encoder, "
                    f"set model.pretrained to its {ENCODER}, and train"
                ) from None
            raise

    @classmethod
    def open_pretraining(cls, directory: str | Path) -> tuple["Run", PretrainConfig]:
        """Return the existing run of a pre-training and its configuration, as `open`."""
        run = cls._present(directory, "pretrain")
        try:
            return run, load_pretrain_config(run.directory / CONFIG)
        except ConfigError:
            if run._holds(load_config):
                raise RunError(
                    f"{directory}: is the run directory of a training, not of a pre-training; give another --run"
                ) from None
            raise

    @classmethod
    def _present(cls, directory: str | Path, command: str) -> "Run":
        """An existing run; `command` is that of its kind."""
        run = cls(Path(directory))
        if run.replacing.is_dir():
            config = next(
                (each / CONFIG for each in (run.replacing, run.directory) if (each / CONFIG).is_file()), CONFIG
            )
            raise RunError(
                f"{directory}: a new run was to replace it, and the move of its files was interrupted; complete it with "
                f"`llueve {command} {config} --run {directory} --resume`"
            )
        if not (run.directory / CONFIG).is_file():
            raise RunError(
                f"{directory}: is not a run directory (no {CONFIG} in it); give the DIR of `llueve {command} --run DIR`"
            )
        return run

    def _holds(self, load: Callable[[Path], object]) -> bool:
        """True if the configuration is of the kind that `load` reads."""
        try:
            load(self.directory / CONFIG)
        except ConfigError:
            return False
        return True

    def path(self, name: str) -> Path:
        """Return the path of one file; without it, which means an unfinished training, RunError is raised."""
        path = self.directory / name
        if not path.is_file():
            raise RunError(
                f"{self.directory}: has no {name}: the training did not finish; continue it with --resume, or train again "
                "with --overwrite"
            )
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the content of one JSON file; RunError is raised if it does not exist, or is damaged."""
        path = self.path(name)
        try:
            if (size := path.stat().st_size) > LARGEST_JSON:
                raise ValueError(f"it has {size:,} bytes, expected at most {LARGEST_JSON:,}")
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path}: is damaged ({error}); train again with --overwrite") from error
        if not isinstance(content, dict):
            raise RunError(f"{path}: is damaged (expected a JSON object); train again with --overwrite")
        return content

    @property
    def is_finished(self) -> bool:
        """True if the run was trained and verified, or an encoder was pre-trained and scored."""
        return any(all((self.directory / name).is_file() for name in names) for names in COMPLETE)

    @property
    def history_bytes(self) -> int:
        """Length of the history, in bytes."""
        path = self.directory / HISTORY
        return path.stat().st_size if path.is_file() else 0

    def shorten_history(self, size: int) -> None:
        """Remove everything after the first `size` bytes of the history."""
        with self.writing():
            if self.history_bytes > size:
                shorten(self.directory / HISTORY, size)

    def facts(self) -> dict[str, int]:
        """The length of the records, for a saved state: newer records are dropped when a training resumes from it."""
        newest = max((number for number, _ in _incidents(self.directory / INCIDENTS)), default=0)
        return {"history_bytes": self.history_bytes, "incidents": newest}

    def forget_incidents(self, after: int) -> None:
        """Remove the incidents with higher numbers: a training that resumes before them meets them again."""
        with self.writing():
            _remove_incidents(self.directory / INCIDENTS, after)

    def remove_checkpoints(self) -> None:
        """Remove the saved states and the cached features of a finished training, as `remove_matching`."""
        remove_matching(self.directory / CHECKPOINTS, CHECKPOINT_NAME)
        remove_matching(self.directory / FEATURES, FEATURES_NAME)

    def write(self, name: str, content: bytes) -> None:
        """Write one file whole or not at all."""
        with self.writing():
            write_whole(self.directory / name, [content])

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write one JSON file, as `write`; a NaN in it raises ValueError, since JSON has no NaN."""
        self.write(name, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())

    def append_history(self, record: dict[str, Any]) -> None:
        """Add one line to the history."""
        with self.writing():
            append(self.directory / HISTORY, (json.dumps(record, allow_nan=False) + "\n").encode())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Inside, an OSError becomes the RunError of a disk that is full or read-only."""
        try:
            yield
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.directory}: cannot be written ({error.strerror or error}); choose another --run, or free the disk"
        )


def remove_matching(folder: Path, names: re.Pattern[str]) -> None:
    """Remove the files with such names, and their folder; no link is followed, and a folder with other files stays."""
    if folder.is_symlink() or not folder.is_dir():
        return
    with suppress(OSError):
        for path in folder.iterdir():
            if names.fullmatch(path.name) and not path.is_symlink():
                path.unlink(missing_ok=True)
        folder.rmdir()


def _remove_incidents(folder: Path, after: int = 0) -> None:
    for number, incident in _incidents(folder):
        if number > after:
            for name in (INCIDENT, EXPLANATION):
                (incident / name).unlink(missing_ok=True)
                (incident / f".{name}.part").unlink(missing_ok=True)
            with suppress(OSError):
                incident.rmdir()
    with suppress(OSError):
        folder.rmdir()


def _incidents(folder: Path) -> list[tuple[int, Path]]:
    """Number and folder of each incident, without links."""
    present = list(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    named = [path for path in present if INCIDENT_NAME.fullmatch(path.name)]
    return [(int(path.name), path) for path in named if path.is_dir() and not path.is_symlink()]
