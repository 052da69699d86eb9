"""Trackers of a training: TensorBoard and MLflow receive the numbers of `history.jsonl`, and the final scores.

A tracker that fails, because of a full disk or an absent server, gives one warning; the training continues without it.
When a training is resumed, a tracker first receives the history so far: the file of events is written again, and the MLflow
run receives the epochs that it lacks.
"""

import importlib.util
import json
import logging
import math
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from llueve.config import Config, PretrainConfig, TrackConfig
from llueve.errors import ConfigError, Interrupted
from llueve.files import write_whole
from llueve.runs.directory import EVENTS_NAME, EVENTS_PREFIX, HISTORY, MLFLOW, TENSORBOARD, remove_matching

logger = logging.getLogger(__name__)

MOST_PARAMS, LONGEST_PARAM = 100, 500
"""Parameters in one call, and characters of a parameter's value, that every version of MLflow accepts."""
MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""MLflow waits for an absent server for seconds, instead of minutes."""


class Tracker(ABC):
    """Receives the numbers of a training; each method may raise any exception."""

    last_epoch = 0
    """The newest epoch that the tracker has; epochs count from 1."""

    def send(self, line: Mapping[str, Any]) -> None:
        """Record the numbers of a line of the history, unless it is an event or the tracker has its epoch already."""
        if "event" not in line and line["epoch"] > self.last_epoch:
            self.last_epoch = line["epoch"]
            self.record(dict(numbers(line)))

    @abstractmethod
    def record(self, values: Mapping[str, float]) -> None:
        """Record numbers at the newest epoch."""

    @abstractmethod
    def close(self, ending: str) -> None:
        """End the record of the training: `FINISHED`, `FAILED` or `KILLED`."""


def require_trackers(track: TrackConfig) -> None:
    """Check that the configured trackers are installed.

    Raises:
        ConfigError: a tracker is not installed; the message names the extra.
    """
    for name, wanted in (("tensorboard", track.tensorboard), ("mlflow", track.mlflow is not None)):
        if wanted and importlib.util.find_spec(name) is None:
            raise ConfigError(f"track.{name}: needs an extra: pip install 'llueve[track]', or leave track.{name} out")


class Tracking:
    """The trackers of a run directory: opened with the first numbers, and closed at the end of the `with` block."""

    def __init__(self, config: Config | PretrainConfig, directory: Path, name: str | None = None) -> None:
        self._openers: dict[str, Callable[[], Tracker]] = {}
        if config.track.tensorboard:
            self._openers["tensorboard"] = lambda: _TensorBoard(directory / TENSORBOARD)
        if config.track.mlflow is not None:
            self._openers["mlflow"] = lambda: _MLflow(config, directory, name or directory.resolve().name)
        self._open: dict[str, Tracker] = {}
        self._history = directory / HISTORY

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        killed = isinstance(error, Interrupted | KeyboardInterrupt)
        ending = "FINISHED" if error is None else "KILLED" if killed else "FAILED"
        for name in [*self._open]:
            self._call(name, lambda tracker: tracker.close(ending))

    def record(self, line: Mapping[str, Any]) -> None:
        """Send the numbers of a new line of the history; lines of events are not sent."""
        for name in [*self._openers]:
            self._call(name, lambda tracker: tracker.send(line))

    def scores(self, verification: Mapping[str, Any]) -> None:
        """Send the scores of the model in `verification.json`."""
        values = {f"verification/{name}": value for name, value in numbers(verification["model"])}
        for name in [*self._openers]:
            self._call(name, lambda tracker: tracker.record(values))

    def _call(self, name: str, method: Callable[[Tracker], None]) -> None:
        try:
            if name not in self._open:
                self._open[name] = self._openers[name]()
                for line in self._history.read_text(encoding="utf-8").splitlines() if self._history.is_file() else ():
                    self._open[name].send(json.loads(line))
            method(self._open[name])
        except Exception as error:  # noqa: BLE001 - no error of a tracker may end the training
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            logger.warning("track.%s: %s; the run is no longer tracked there", name, reason)
            self._openers.pop(name, None)
            self._open.pop(name, None)


def numbers(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """Yield name and value of the finite numbers in a table and in the tables inside it."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{before}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{before}{name}", float(value)


def flattened(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield the entries of a configuration: names with dots, and values as text."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{before}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
            yield from flattened({str(place): each for place, each in enumerate(value)}, f"{before}{name}.")
        else:
            yield f"{before}{name}", str(value)


class _TensorBoard(Tracker):
    """A file of events, opened for each write: it needs no thread, and a full disk raises an error at once."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._scalar, self._writer = Event, scalar_pb, RecordWriter
        remove_matching(folder, EVENTS_NAME)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{EVENTS_PREFIX}{time.time_ns()}"
        self._write({"file_version": "brain.Event:2"})

    def record(self, values: Mapping[str, float]) -> None:
        step = self.last_epoch
        self._write(*({"step": step, "summary": self._scalar(name, value)} for name, value in values.items()))

    def close(self, ending: str) -> None:
        pass  # every write is complete

    def _write(self, *events: Mapping[str, Any]) -> None:
        with self._path.open("ab") as file:
            writer = self._writer(file)
            for event in events:
                writer.write(self._event(wall_time=time.time(), **event).SerializeToString())


class _MLflow(Tracker):
    """A run in MLflow: the configuration as parameters, the history as metrics."""

    def __init__(self, config: Config | PretrainConfig, directory: Path, name: str) -> None:
        for setting, value in MLFLOW_SETTINGS.items():
            os.environ.setdefault(setting, value)
        address = config.track.mlflow
        if config.track.mlflow_folder is not None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            address = Path(config.track.mlflow_folder).resolve().as_uri()
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=address)
        self._run = self._open_run(config.track.experiment, address, directory / MLFLOW, name)
        if self.last_epoch:
            return
        table = config.model_dump(exclude={"track"}, exclude_none=True)
        params = [Param(re.sub(r"[^\w\-. /]", "_", name), value[:LONGEST_PARAM]) for name, value in flattened(table)]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._run, params=params[start : start + MOST_PARAMS])

    def _open_run(self, experiment: str, address: str | None, known_file: Path, name: str) -> str:
        """Identifier of the MLflow run: the one of the interrupted training if it has the same address, or a new one."""
        if known_file.is_file():
            known: dict[str, str] = json.loads(known_file.read_text(encoding="utf-8"))
            if known["address"] == address:
                self._client.update_run(known["run"], status="RUNNING")
                self.last_epoch = int(self._client.get_run(known["run"]).data.metrics.get("epoch", 0))
                return known["run"]
        found = self._client.get_experiment_by_name(experiment)
        number = self._client.create_experiment(experiment) if found is None else str(found.experiment_id)
        run = str(self._client.create_run(number, run_name=name).info.run_id)
        write_whole(known_file, [(json.dumps({"address": address, "run": run}) + "\n").encode()])
        return run

    def record(self, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, self.last_epoch) for name, value in values.items()]
        self._client.log_batch(self._run, metrics)

    def close(self, ending: str) -> None:
        self._client.set_terminated(self._run, ending)
