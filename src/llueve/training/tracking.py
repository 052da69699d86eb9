"""Trackers beside a training: TensorBoard and MLflow, told what `history.jsonl` holds and nothing else.

A tracker only listens. One that fails, for a full disk or a server that is away, is left out from then on with one warning;
the training goes on without it. Opened for a training that is resumed, it is told the history so far: events are written
anew, and the MLflow run, which goes on, gets what it has not.
"""

import importlib.util
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from llueve.config import Config, TrackConfig
from llueve.errors import ConfigError, Interrupted
from llueve.run import EVENTS_NAME, EVENTS_PREFIX, HISTORY, MLFLOW, TENSORBOARD, remove_matching

logger = logging.getLogger(__name__)

MOST_PARAMS = 100
"""That MLflow takes at once."""
LONGEST_PARAM = 500
"""Characters of a parameter's value, which every version of MLflow takes."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""A server that is away is given up after seconds, where MLflow would wait for minutes."""


class Tracker(Protocol):
    """Something that follows a training; each method may raise anything."""

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """The numbers of one epoch, counted from 1; one that it has is not taken again."""

    def scores(self, values: Mapping[str, float]) -> None:
        """The final verification."""

    def close(self, ending: str) -> None:
        """The training is over: `FINISHED`, `FAILED` or `KILLED`."""


def require_trackers(track: TrackConfig) -> None:
    """Check that what is asked for is installed.

    Raises:
        ConfigError: it is not; the message names the extra.
    """
    asked = {"tensorboard": track.tensorboard, "mlflow": track.mlflow is not None}
    for name, wanted in asked.items():
        if wanted and importlib.util.find_spec(name) is None:
            raise ConfigError(f"track.{name}: needs an extra: pip install 'llueve[track]', or leave track.{name} out")


class Tracking:
    """The trackers of a run, opened when there is something to tell; leaving it closes them.

    Args:
        config: of the run.
        directory: of the run.
    """

    def __init__(self, config: Config, directory: Path) -> None:
        self._ways: dict[str, Callable[[], Tracker]] = {}
        if config.track.tensorboard:
            self._ways["tensorboard"] = lambda: _TensorBoard(directory / TENSORBOARD)
        if config.track.mlflow is not None:
            self._ways["mlflow"] = lambda: _MLflow(config, directory)
        self._open: dict[str, Tracker] = {}
        self._history = directory / HISTORY

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        killed = isinstance(error, Interrupted | KeyboardInterrupt)
        ending = "FINISHED" if error is None else "KILLED" if killed else "FAILED"
        for name in [*self._open]:
            self._tell(name, lambda tracker: tracker.close(ending))

    def record(self, line: Mapping[str, Any]) -> None:
        """Pass on the numbers of a line that the history has now; events are in the history alone."""
        for name in [*self._ways]:
            self._tell(name, lambda tracker: _pass_on(tracker, line))

    def scores(self, verification: Mapping[str, Any]) -> None:
        """Pass on the scores of the model in `verification.json`."""
        values = {f"verification/{name}": value for name, value in numbers(verification["model"])}
        for name in [*self._ways]:
            self._tell(name, lambda tracker: tracker.scores(values))

    def _tell(self, name: str, what: Callable[[Tracker], None]) -> None:
        try:
            if name not in self._open:
                self._open[name] = self._ways[name]()
                lines = self._history.read_text(encoding="utf-8").splitlines() if self._history.is_file() else []
                for line in lines:
                    _pass_on(self._open[name], json.loads(line))
            what(self._open[name])
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, it must not cost the training
            logger.warning("track.%s: %s; the run is no longer tracked there", name, _first_line(error))
            self._ways.pop(name, None)
            self._open.pop(name, None)


def numbers(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers among some values, and in tables inside them, by name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{before}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{before}{name}", float(value)


def flattened(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """A configuration as names with dots and values as text."""
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{before}{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
            yield from flattened({str(place): each for place, each in enumerate(value)}, f"{before}{name}.")
        else:
            yield f"{before}{name}", str(value)


def _pass_on(tracker: Tracker, line: Mapping[str, Any]) -> None:
    if "event" not in line:
        tracker.epoch(line["epoch"], dict(numbers(line)))


class _TensorBoard:
    """A file of events in a folder, written on the spot and open no longer: no thread, and a full disk shows at once."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._scalar, self._writer = Event, scalar_pb, RecordWriter
        remove_matching(folder, EVENTS_NAME)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{EVENTS_PREFIX}{time.time_ns()}"
        self._write({"file_version": "brain.Event:2"})
        self._last = 0

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """One scalar each, at this step."""
        if number > self._last:
            self._last = number
            self.scores(values)

    def scores(self, values: Mapping[str, float]) -> None:
        """One scalar each, at the last step."""
        self._write(*({"step": self._last, "summary": self._scalar(name, value)} for name, value in values.items()))

    def close(self, ending: str) -> None:
        """All is written already."""

    def _write(self, *events: Mapping[str, Any]) -> None:
        with self._path.open("ab") as file:
            writer = self._writer(file)
            for event in events:
                writer.write(self._event(wall_time=time.time(), **event).SerializeToString())


class _MLflow:
    """A run in MLflow: the configuration as parameters, the history as metrics."""

    def __init__(self, config: Config, directory: Path) -> None:
        for name, value in {**PATIENCE, "MLFLOW_DISABLE_TELEMETRY": "true"}.items():
            os.environ.setdefault(name, value)
        address = config.track.mlflow
        if config.track.mlflow_folder is not None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            address = Path(config.track.mlflow_folder).resolve().as_uri()
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=address)
        self._known = directory / MLFLOW
        self._run, self._last = self._earlier(address) or (self._begin(config, directory.resolve().name, address), 0)
        table = config.model_dump(exclude={"track"}, exclude_none=True)
        params = [
            Param(re.sub(r"[^\w\-. /]", "_", name), value[:LONGEST_PARAM])
            for name, value in flattened(table)
            if not self._last
        ]
        for start in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self._run, params=params[start : start + MOST_PARAMS])

    def _earlier(self, address: str | None) -> tuple[str, int] | None:
        """The run that an interrupted training began there, with the last epoch it has, if any."""
        if not self._known.is_file():
            return None
        known = json.loads(self._known.read_text(encoding="utf-8"))
        if known["address"] != address:
            return None
        self._client.update_run(known["run"], status="RUNNING")
        return known["run"], int(self._client.get_run(known["run"]).data.metrics.get("epoch", 0))

    def _begin(self, config: Config, name: str, address: str | None) -> str:
        """A new run."""
        found = self._client.get_experiment_by_name(config.track.experiment)
        experiment = (
            self._client.create_experiment(config.track.experiment) if found is None else str(found.experiment_id)
        )
        run = str(self._client.create_run(experiment, run_name=name).info.run_id)
        self._known.write_text(json.dumps({"address": address, "run": run}) + "\n", encoding="utf-8")
        return run

    def epoch(self, number: int, values: Mapping[str, float]) -> None:
        """One metric each, at this step."""
        if number > self._last:
            self._last = number
            self.scores(values)

    def scores(self, values: Mapping[str, float]) -> None:
        """One metric each, at the last step."""
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, self._last) for name, value in values.items()]
        self._client.log_batch(self._run, metrics)

    def close(self, ending: str) -> None:
        """Say how the run ended."""
        self._client.set_terminated(self._run, ending)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
