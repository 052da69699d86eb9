"""Small trainings into which a fault is planted just before a chosen step, and their outcome.

A trial has two phases: one epoch of the head alone, then two epochs of the whole model. Shapes: B batch, C variables, S sites,
T times.
"""

import hashlib
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import xarray as xr
from rich.console import Console

from llueve.config import Config, parse_config
from llueve.distributed.processes import Processes
from llueve.errors import ConfigError, GuardStop, Interrupted
from llueve.model.classifier import TimerXLForClassification
from llueve.runs.directory import Run
from llueve.runs.saved_model import SavedModel
from llueve.samples.scale import fit_scaler
from llueve.samples.split import split_panel
from llueve.stability.diagnosis import Evidence, Explanation
from llueve.stability.incidents import explain_incident, load_incident
from llueve.stability.reading import Fault as GuardFault
from llueve.stability.refused_step import RefusedStep
from llueve.training import loop, recovery
from llueve.training.fit import Job, fit
from llueve.training.saved_states import SavedState, SavedStates
from llueve.training.stepper import Attempt, Stepper
from llueve.training.trainer import Trainer

TIMINGS = ("first step", "head phase", "first unfrozen step", "middle of an epoch", "last step")
PHASES = [{"name": "head", "freeze": "encoder", "epochs": 1}, {"name": "all", "epochs": 2}]

Plant = Callable[[Trainer], Any]
"""Does the damage; its result is kept as the truth about the damage."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a trial, and the other differences between the development shapes and the held-out ones."""

    architecture: str = "timer_xl"
    head: str = "variables"
    width: int = 16
    layers: int = 2
    heads: int = 2
    feed_forward: int = 24
    patch_length: int = 4
    context: int = 8
    variables: int = 3
    sites: int = 2
    times: int = 190
    batch_size: int = 8
    missing: float = 0.1
    instance_norm: bool = True
    learning_rate: float = 1e-3
    together: bool = False
    """True if the sites of an issue time see each other; a batch then has `batch_size` issue times."""
    sites_per_scene: int = 256
    forecast_weight: float = 0.0


@dataclass
class Outcome:
    """The result of a trial."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    validation_loss: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    stop: str | None = None
    """Message of the guard that ended the trial."""
    refused_at: list[int] = field(default_factory=list)
    """Numbers of the refused attempts, from 1."""
    untouched: bool | None = None
    """True if the first refused step left the whole state as it was."""
    explanation: Explanation | None = None
    """Explanation of the first refused step."""
    cells: set[tuple[int, int, int]] = field(default_factory=set)
    """Site, time and variable of each cell that the explanation names."""
    samples: set[tuple[int, int]] = field(default_factory=set)
    """Site and issue time of each sample that the explanation names."""
    quarantined: list[tuple[int, int]] = field(default_factory=list)
    loads: bool | None = None
    """True if training can resume from the newest saved state."""
    refusal: str | None = None
    """Message of the configuration that refused the trial."""
    error: str | None = None
    """Any other exception, which is a defect of llueve."""

    @property
    def reason(self) -> str:
        """The guard's first reason."""
        return next((each["reason"] for each in self.events if "reason" in each), "")

    @property
    def is_finite(self) -> bool:
        """True if the trial left weights, all of them finite."""
        return bool(self.weights) and all(bool(each.isfinite().all()) for each in self.weights.values())

    def take(self, found: Explanation, step: RefusedStep) -> None:
        """Keep the explanation of a step, with its cells and samples by site and time."""
        site_B, end_B, first = step.rows.site.tolist(), step.rows.end.tolist(), step.batch.x_BLC.shape[1] - 1
        self.explanation = found
        self.cells = {(site_B[row], end_B[row] - first + step, variable) for row, step, variable in found.cells}
        self.samples = {(site_B[row], end_B[row]) for row in found.samples}


class Trial:
    """One small training."""

    def __init__(self, shape: Shape, seed: int, precision: str, **train: Any) -> None:
        self.shape, self.seed, self.precision = shape, seed, precision
        self.config = _config(shape, seed, precision, train)
        self.panel = _panel(shape, seed)
        self.split = split_panel(self.panel, self.config)
        scaler = fit_scaler(self.panel, self.split.training_rows)
        self.saved = SavedModel.build(self.panel, self.split, scaler, self.config)
        self.windows = self.saved.windows(self.panel)
        network, training = self.windows.network, self.split.training
        self.training = training if network is None else network.complete(training)
        self.reference_loss: float | None = None
        """Validation loss that the trial should reach, where it is not that of the clean trial."""
        self.impossible = False
        """True if the fault cannot be planted into this shape."""
        self.active = False
        """True once a prepared fault takes effect."""
        self.truth: Any = None
        """The place of the planted fault."""
        self.patches = ExitStack()
        self.trainer: Trainer | None = None
        self.attempts = 0

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        units = len(np.unique(self.training.end)) if self.shape.together else len(self.training)
        return -(-units // self.shape.batch_size)

    def attempt_at(self, timing: str) -> int:
        """Number of the attempt, from 1, that a timing names, if nothing is refused before it."""
        steps = self.steps
        numbers = (1, steps // 2 + 1, steps + 1, 2 * steps + steps // 2 + 1, 3 * steps)
        return dict(zip(TIMINGS, numbers, strict=True))[timing]

    @property
    def model(self) -> TimerXLForClassification:
        """The model that is trained."""
        return self.saved.classifier

    def patch(self, target: Any, name: str, new: Any) -> None:
        """Replace an attribute until the end of the trial."""
        self.patches.enter_context(mock.patch.object(target, name, new))

    def run(
        self,
        plant: Plant | None = None,
        at: int = 1,
        folder: Path | None = None,
        *,
        resume: bool = False,
        files: bool = False,
    ) -> Outcome:
        """Train, and plant a fault just before attempt `at`.

        Args:
            folder: run directory; None for a temporary one.
            files: take the explanation of `llueve incident explain`, which replays the first incident from its files,
                instead of the training's own.
        """
        outcome = Outcome()
        torch.manual_seed(self.seed + 7)
        with ExitStack() as stack:
            folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(self._watched(outcome, plant, at))
            stack.enter_context(self.patches)
            saved = SavedStates(folder)
            try:
                self._fit(folder, saved.newest() if resume else None, outcome)
                outcome.validation_loss = self.saved.trained["best_validation_loss"]
                outcome.weights = {name: each.clone() for name, each in self.model.state_dict().items()}
            except GuardStop as stop:
                outcome.stop = str(stop)
            except ConfigError as error:
                outcome.refusal = str(error)
            except Interrupted:
                pass
            except Exception as error:  # noqa: BLE001 (any exception counts as a miss, and is reported)
                outcome.error = f"{type(error).__name__}: {error}"
            newest = None if resume or not saved.folder.exists() else saved.newest()
            outcome.loads = None if newest is None else newest.snapshot.is_sound
            if files and (folder / "incidents" / "001").exists():
                incident = load_incident(folder, 1)
                outcome.take(explain_incident(incident).explanation, incident.step)
        if self.trainer is not None:
            outcome.quarantined = [(each.site, each.end) for each in self.trainer.state.ledger.held()]
        return outcome

    def _fit(self, folder: Path, start: SavedState | None, outcome: Outcome) -> None:
        """Train as `llueve train` does; a tracker receives the lines of the history."""
        lines = SimpleNamespace(
            record=lambda line: (outcome.events if "event" in line else outcome.history).append(line)
        )
        job = Job(self.config, Run(folder), Processes(), Console(file=io.StringIO()), lines)
        if start is None:
            job.run.create(self.config, job.run.exists)  # a run without a sound state starts again
        fit(job, self.saved, self.panel, self.split, self.windows, start)

    @contextmanager
    def _watched(self, outcome: Outcome, plant: Plant | None, at: int) -> Iterator[None]:
        """Count attempts, plant before the chosen one, and compare the state before and after a refusal."""
        begin, attempt, recover, explain = Trainer.__init__, Stepper.attempt, recovery.recover, recovery.explain
        before = ""

        def remembered(trainer: Trainer, *arguments: Any) -> None:
            begin(trainer, *arguments)
            self.trainer = trainer

        def counted(stepper: Stepper, *rerun: Any) -> Attempt | None:
            nonlocal before
            if not rerun:  # otherwise an experiment runs the step again
                self.attempts += 1
                if plant is not None and self.attempts == at:
                    self.truth = plant(self.trainer)
                    stepper.batches.forget_prepared()  # they hold the data from before the fault
                before = state_hash(self.trainer)
            return attempt(stepper, *rerun)

        def recovered(trainer: Trainer, tried: Attempt, fault: GuardFault) -> None:
            outcome.refused_at.append(self.attempts)
            if outcome.untouched is None:
                outcome.untouched = state_hash(trainer) == before
            recover(trainer, tried, fault)

        def explained(step: RefusedStep, evidence: Evidence) -> Explanation:
            found = explain(step, evidence)
            if outcome.explanation is None and len(outcome.refused_at) == 1:
                outcome.take(found, step)
            return found

        with (
            mock.patch.object(Trainer, "__init__", remembered),
            mock.patch.object(Stepper, "attempt", counted),
            mock.patch.object(loop, "recover", recovered),
            mock.patch.object(recovery, "explain", explained),
        ):
            yield


def state_hash(trainer: Trainer) -> str:
    """SHA-256 of weights, buffers, moments, average, place, guard and ledger."""
    state = trainer.state
    words = (state.place.steps, state.place.position, state.ledger, state.guard.as_dict())
    digest = hashlib.sha256(repr(words).encode())
    tensors = {**state.model.state_dict(), **state.optimiser.tensors()}
    if state.average is not None:
        tensors["average"] = state.average.block
    for name in sorted(tensors):
        digest.update(tensors[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _config(shape: Shape, seed: int, precision: str, train: dict[str, Any]) -> Config:
    sizes = ("architecture", "head", "patch_length", "width", "layers", "heads", "feed_forward", "instance_norm")
    usual = {
        "batch_size": shape.batch_size,
        "encoder_learning_rate": shape.learning_rate,
        "head_learning_rate": shape.learning_rate,
        "warmup_steps": 5,
        "schedule": "constant",
        "average_decay": 0.9,
        "patience": 9,
        "precision": precision,
        "seed": seed,
        "forecast_weight": shape.forecast_weight,
        "feature_cache_gb": 0,  # otherwise the data of the head's phase are read once, before any of its steps
        "phases": PHASES,
    }
    sites = {"sites": "together" if shape.together else "alone", "sites_per_scene": shape.sites_per_scene}
    sites |= {"site_layers": 2, "site_width": 16, "site_heads": 2}
    sections = {
        "data": {"path": "unused.csv"},
        "target": {"label": "rain", "horizon_hours": 24},
        "split": {"validation_fraction": 0.25, "test_fraction": 0.1},
        "windows": {"context": shape.context},
        "model": {**{name: getattr(shape, name) for name in sizes}, **sites},
        "train": {**usual, **train},
        "guard": {"max_skipped": 0.2},
        "verify": {"bootstrap": 100},
    }
    return parse_config(sections, "faults")


def _panel(shape: Shape, seed: int) -> xr.Dataset:
    """Noise, with a label that the first variable decides. Sites that see each other lack some rows and some labels."""
    random = np.random.default_rng(seed)
    cube_CST = random.normal(size=(shape.variables, shape.sites, shape.times)).astype(np.float32)
    label_ST = (cube_CST[0] > 0).astype(np.float32)
    cube_CST[random.random(cube_CST.shape) < shape.missing] = np.nan
    coordinates = {}
    if shape.together:
        absent_ST = random.random(label_ST.shape) < shape.missing
        cube_CST[:, absent_ST] = np.nan
        label_ST[absent_ST | (random.random(label_ST.shape) < 0.1)] = np.nan
        coordinates = {name: ("site", random.uniform(-5, 5, shape.sites)) for name in ("latitude", "longitude")}
        coordinates["recorded"] = (("site", "time"), ~absent_ST)
    label = (("site", "time"), label_ST, {"role": "label", "classes": ["0", "1"]})
    return xr.Dataset(
        {**{f"v{number}": (("site", "time"), each) for number, each in enumerate(cube_CST)}, "rain": label},
        coords={
            "site": [f"s{each}" for each in range(shape.sites)],
            "time": np.datetime64("2020-01-01", "ns") + np.arange(shape.times) * np.timedelta64(1, "D"),
            **coordinates,
        },
        attrs={"step_hours": 24.0, "findings": ()},
    )
