"""Train the model of a run: connect the training loop with the run directory, the trackers and the processes."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import xarray as xr
from rich.console import Console

from llueve.config import Config
from llueve.distributed.processes import Processes
from llueve.errors import DataError
from llueve.model.heads import KNOTS
from llueve.runs.directory import FEATURES, Run
from llueve.runs.saved_model import SavedModel
from llueve.samples.split import Part, Split, training_sample
from llueve.samples.windows import Windows
from llueve.stability.incidents import DataNames, IncidentFolder
from llueve.training.environment import Environment
from llueve.training.interruption import Interruption
from llueve.training.linear_start import start_from_regression
from llueve.training.loop import train_model
from llueve.training.resume import StartingPoint, training_facts
from llueve.training.saved_states import SavedState, SavedStates
from llueve.training.tracking import Tracking

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One `llueve train`: its configuration, its run directory, its processes and its outputs for people."""

    config: Config
    run: Run
    processes: Processes
    console: Console
    tracking: Tracking | None
    """The trackers; process 0 alone has them."""
    member: int = 0
    """Member of `train.members` that is trained, counted from 0."""

    def record(self, line: dict[str, Any]) -> None:
        """Write one line of the history, and pass it to the trackers."""
        if self.config.train.members > 1:
            line = {**line, "member": self.member + 1}
        if self.processes.is_first:
            self.run.append_history(line)
        if self.tracking is not None:
            self.tracking.record(line)


def fit_members(
    job: Job,
    saved: SavedModel,
    build: Callable[[Config], SavedModel] | None,
    panel: xr.Dataset,
    split: Split,
    windows: Windows,
    start: StartingPoint,
) -> SavedModel:
    """Train the members of `train.members` one after another, each with the next seed; return them as one model.

    Args:
        job, panel, split, windows: the run and its data.
        saved: the new model, which becomes the first member.
        build: makes a further member for a configuration, which differs in `train.seed` alone; None for a single member.
        start: the members that are trained already, and the state of the next one.

    Raises:
        DataError, GuardStop, Interrupted, RunError, WorkerLost: as `fit`.
    """
    train, states, state = job.config.train, SavedStates(job.run.directory), start.state
    for member in range(start.members, train.members):
        config = job.config.model_copy(update={"train": train.model_copy(update={"seed": train.seed + member})})
        new = saved if member == 0 or build is None else build(config)
        if train.members > 1:
            logger.info("member %d of %d", member + 1, train.members)
        fit(replace(job, config=config, member=member), new, panel, split, windows, state)
        state = None
        if train.members == 1:
            return new
        facts = {**training_facts(new, config, job.run, member), "trained": new.trained}
        job.processes.on_first(partial(states.write_member, member + 1, new.classifier.state_dict(), facts))
    if not job.processes.is_first:
        return saved
    members = states.members()
    return saved.with_members([each.weights for each in members], [each.facts["trained"] for each in members])


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
    starts = config.train.linear_start and windows.network is None
    started = starts and start_from_regression(saved.classifier, windows, training, split.validation)
    names = DataNames(
        model=saved.model,
        variables=saved.inputs,
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
            run_facts=lambda: training_facts(saved, config, run, job.member),
            interruption=interruption,
            forecasts_at_start=started,
            processes=processes,
        )
        model, train, guard = saved.classifier, config.train, config.guard
        trained = train_model(model, windows, training, split.validation, train, guard, environment, resume)
    saved.trained.update(asdict(trained))


def _training_windows(config: Config, panel: xr.Dataset, split: Split, windows: Windows) -> Part:
    """The training windows that the configuration asks for; with a network, those of all sites at their issue times."""
    training = training_sample(split, config, panel["time"].values, float(panel.attrs["step_hours"]))
    return training if windows.network is None else windows.network.complete(training)
