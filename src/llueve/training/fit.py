"""Train the model of a run: connect the training loop with the run directory, the trackers and the processes."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import xarray as xr
from rich.console import Console

from llueve.config import Config
from llueve.distributed.processes import Processes
from llueve.errors import DataError
from llueve.model.classifier import KNOTS
from llueve.runs.directory import FEATURES, Run
from llueve.runs.saved_model import SavedModel
from llueve.samples.split import Part, Split, few_shot, thinned
from llueve.samples.windows import Windows
from llueve.stability.incidents import DataNames, IncidentFolder
from llueve.training.environment import Environment
from llueve.training.interruption import Interruption
from llueve.training.linear_start import start_from_regression
from llueve.training.loop import train_model
from llueve.training.resume import training_facts
from llueve.training.saved_states import SavedState, SavedStates
from llueve.training.tracking import Tracking


@dataclass(frozen=True)
class Job:
    """One `llueve train`: its configuration, its run directory, its processes and its outputs for people."""

    config: Config
    run: Run
    processes: Processes
    console: Console
    tracking: Tracking | None
    """The trackers; process 0 alone has them."""

    def record(self, line: dict[str, Any]) -> None:
        """Write one line of the history, and pass it to the trackers."""
        if self.processes.is_first:
            self.run.append_history(line)
        if self.tracking is not None:
            self.tracking.record(line)


def fit(
    job: Job, saved: SavedModel, panel: xr.Dataset, split: Split, windows: Windows, resume: SavedState | None
) -> None:
    """Train a model in place on the training period, with early stopping on the validation period.

    Args:
        job, panel, split, windows: the run and its data.
        saved: the new model; its weights and `trained` change.
        resume: the saved state to resume from; process 0 alone has it.

    Raises:
        DataError: the table differs between the processes.
        GuardStop, Interrupted, RunError, WorkerLost: see `llueve.training.loop.train_model`.
    """
    config, run, processes = job.config, job.run, job.processes
    if processes.on_first(lambda: saved.fingerprint) != saved.fingerprint:
        raise DataError(
            f"{config.data.path}: process {processes.rank} reads another table there than process 0; bring the same one to "
            "every machine"
        )
    knots_CJ = windows.quantiles(split.training_rows, KNOTS)
    saved.classifier.set_knots(knots_CJ)
    training = _training_windows(config, panel, split, windows)
    if config.train.linear_start and windows.network is None:
        start_from_regression(saved.classifier, windows, training, split.validation)
    names = DataNames(
        model=saved.model,
        variables=saved.variables,
        classes=saved.classes,
        sites=panel["site"].values.tolist(),
        times=panel["time"].values,
        step_hours=saved.step_hours,
        missing=config.windows.missing,
        site_vectors=saved.site_vectors,
    )
    with Interruption() as interruption:
        environment = Environment(
            record=job.record,
            keep_incident=IncidentFolder(run.directory, names).keep,
            new_model=partial(saved.fresh, knots_CJ),
            console=job.console,
            names=names,
            saved_states=SavedStates(run.directory),
            save_every=config.checkpoints,
            features=run.directory / FEATURES,
            run_facts=lambda: training_facts(saved, config, run),
            interruption=interruption,
            processes=processes,
        )
        trained = train_model(
            saved.classifier,
            windows,
            training,
            split.validation,
            config.train,
            config.guard,
            environment,
            resume,
        )
    saved.trained.update(asdict(trained))


def _training_windows(config: Config, panel: xr.Dataset, split: Split, windows: Windows) -> Part:
    """The training windows that the configuration asks for; with a network, those of all sites at their issue times."""
    training = thinned(split.training, config.windows.stride)
    training = few_shot(training, panel["time"].values, config.train.fraction, config.train.seed)
    return training if windows.network is None else windows.network.complete(training)
