"""Small trainings into which a fault is planted just before a chosen step, and what became of them.

A training has two phases, the head alone for one epoch and everything for two. Shapes: B batch, C variables, L steps, S sites,
T times.
"""

import hashlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import xarray as xr
from rich.console import Console

from llueve.config import CheckpointConfig, Config, parse_config
from llueve.errors import GuardStop, Interrupted
from llueve.model.classifier import TimerXLForClassification
from llueve.saved import build_encoder
from llueve.stability.causes import Explanation, Step
from llueve.stability.incident import explain_incident, keep_incident, load_incident
from llueve.training import mending
from llueve.training.checkpoint import Checkpoints
from llueve.training.course import Attempt, Course, Surroundings
from llueve.training.interruption import Interruption
from llueve.training.loop import train_model
from llueve.windows import Part, build_windows, fit_scaler, split_panel

TIMINGS = ("first step", "head phase", "first unfrozen step", "middle of an epoch", "last step")


@dataclass(frozen=True)
class Shape:
    """Sizes of a training, and what else differs between those used for development and the others."""

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


@dataclass
class Outcome:
    """What a training with a planted fault left."""

    shape: Shape
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    validation_loss: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    stop: str | None = None
    """Message of the guard that ended it."""
    refused_at: list[int] = field(default_factory=list)
    """Numbers of the attempts that were refused, the planted one's first."""
    untouched: bool | None = None
    """Whether the refused step left everything as it was."""
    explanation: Explanation | None = None
    """Of the first refused step."""
    cells: set[tuple[int, int, int]] = field(default_factory=set)
    """Site, time and variable of each cell that the explanation blames."""
    samples: set[tuple[int, int]] = field(default_factory=set)
    """Site and issue time of each sample that it blames."""
    reason: str = ""
    quarantined: list[tuple[int, int]] = field(default_factory=list)
    loads: bool | None = None
    """Whether the newest healthy checkpoint can be gone on from."""
    error: str | None = None
    """Any other exception: a fault of llueve's own."""


Plant = Callable[["Training", Course], Any]
"""Does the damage; what it returns is kept as the truth about it."""


class Training:
    """One training, with whatever is planted in it."""

    def __init__(self, shape: Shape, seed: int, precision: str, **train: Any) -> None:
        self.shape, self.seed, self.precision = shape, seed, precision
        self.reference_loss: float | None = None
        """Validation loss of the run that the recovered one must be like, where that is not the clean one."""
        self.impossible = False
        """Whether the kind cannot be planted into this shape."""
        self.config = _config(shape, seed, precision, train)
        panel = _panel(shape, seed)
        self.panel = panel
        self.split = split_panel(panel, self.config)
        scaler = fit_scaler(panel, self.split.training_rows)
        self.windows = build_windows(panel, scaler, shape.context, "mask")
        self.training = self.split.training
        self.model = self.fresh(seed)
        self.course: Course | None = None
        self.attempts = 0
        self.truth: Any = None
        self.patches = ExitStack()
        self.interruption = Interruption()

    @property
    def steps(self) -> int:
        """Of one epoch."""
        return -(-len(self.training) // self.shape.batch_size)

    def attempt_at(self, timing: str) -> int:
        """Number of the attempt, from 1, that a timing names, when nothing was refused before it."""
        steps = self.steps
        return {
            "first step": 1,
            "head phase": steps // 2 + 1,
            "first unfrozen step": steps + 1,
            "middle of an epoch": 2 * steps + steps // 2 + 1,
            "last step": 3 * steps,
        }[timing]

    def fresh(self, seed: int = 4711) -> TimerXLForClassification:
        """A newly initialised model."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return TimerXLForClassification(
                build_encoder(self.config.model),
                2,
                self.config.model.head,
                num_variables=self.shape.variables,
                num_facts=2,
                instance_norm=self.shape.instance_norm,
            ).train()

    def run(
        self,
        plant: Plant | None = None,
        at: int = 1,
        folder: Path | None = None,
        resume: bool = False,
        from_files: bool = False,
    ) -> Outcome:
        """Train, with `plant` done once just before attempt `at`.

        Args:
            from_files: whether the explanation is that of `llueve incident explain`, which replays the first incident from
                its files; otherwise it is the loop's own.
        """
        outcome = Outcome(self.shape)
        torch.manual_seed(self.seed + 7)
        with ExitStack() as stack:
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(self._watched(outcome, plant, at))
            stack.enter_context(self.patches)
            checkpoints = Checkpoints(folder)
            try:
                trained = train_model(
                    self.model,
                    self.windows,
                    self.training,
                    self.split.validation,
                    self.config.train,
                    self.config.guard,
                    self._surroundings(folder, checkpoints, outcome),
                    checkpoints.newest() if resume else None,
                )
                outcome.validation_loss = trained.best_validation_loss
                outcome.weights = {name: each.clone() for name, each in self.model.state_dict().items()}
            except GuardStop as stop:
                outcome.stop = str(stop)
            except Interrupted:
                pass
            except Exception as error:  # noqa: BLE001 (whatever it is, it is a miss, and told)
                outcome.error = f"{type(error).__name__}: {error}"
            outcome.reason = next((each["reason"] for each in outcome.events if "reason" in each), "")
            newest = None if resume or not checkpoints.folder.exists() else checkpoints.newest()
            outcome.loads = None if newest is None else newest.snapshot.is_sound
            if from_files:
                self._explain(folder, outcome)
        if self.course is not None:
            outcome.quarantined = [(each.site, each.end) for each in self.course.ledger.held()]
        return outcome

    def _surroundings(self, folder: Path, checkpoints: Checkpoints, outcome: Outcome) -> Surroundings:
        def keep(**step: Any) -> Path | None:
            return keep_incident(
                folder,
                **step,
                model_config=self.config.model,
                variables=[(f"v{each}", None) for each in range(self.shape.variables)],
                classes=["0", "1"],
                sites=self.panel["site"].values.tolist(),
                times=self.panel["time"].values,
                step_hours=24.0,
            )

        return Surroundings(
            record=lambda line: (outcome.events if "event" in line else outcome.history).append(line),
            keep=keep,
            fresh=self.fresh,
            console=Console(file=io.StringIO()),
            checkpoints=checkpoints,
            every=CheckpointConfig(),
            facts=lambda: {"history_bytes": 0},
            interruption=self.interruption,
        )

    @contextmanager
    def _watched(self, outcome: Outcome, plant: Plant | None, at: int) -> Iterator[None]:
        """Count attempts, plant before the chosen one, and compare the state around a refusal."""
        attempt, mend, numbers, search = Course.attempt, mending.mend, Course.__init__, mending.explain
        first = self.shape.context - 1

        def counted(here: Course, *conduct: Any) -> Attempt | None:
            if not conduct:  # and not one of the experiments on the course
                self.attempts += 1
                if plant is not None and self.attempts == at:
                    self.truth = plant(self, here)
                    here.loader.forget()  # what was gathered ahead holds the data as they were
                self.before = state_hash(here)
            return attempt(here, *conduct)

        def mended(here: Course, tried: Attempt, kind: Any, reason: str) -> None:
            outcome.refused_at.append(self.attempts)
            self.rows = here.whole(tried).rows
            if outcome.untouched is None:
                outcome.untouched = state_hash(here) == self.before
            mend(here, tried, kind, reason)

        def searched(step: Step) -> Explanation:
            found = search(step)
            if outcome.explanation is None and len(outcome.refused_at) == 1:
                outcome.explanation, site_B, end_B = found, self.rows.site.tolist(), self.rows.end.tolist()
                outcome.cells = {(site_B[row], end_B[row] - first + back, which) for row, back, which in found.cells}
                outcome.samples = {(site_B[row], end_B[row]) for row in found.samples}
            return found

        def remembered(here: Course, *arguments: Any) -> None:
            self.course = here
            numbers(here, *arguments)

        with (
            mock.patch.object(Course, "attempt", counted),
            mock.patch("llueve.training.loop.mend", mended),
            mock.patch.object(Course, "__init__", remembered),
            mock.patch("llueve.training.mending.explain", searched),
        ):
            yield

    def _explain(self, folder: Path, outcome: Outcome) -> None:
        """What a user is told of the first incident."""
        if not (folder / "incidents" / "001").exists():
            return
        incident = load_incident(folder, 1)
        outcome.explanation = explain_incident(incident).explanation
        site_B, end_B = incident.site_B.tolist(), incident.end_B.tolist()
        first = self.shape.context - 1
        outcome.cells = {
            (site_B[row], end_B[row] - first + step, variable) for row, step, variable in outcome.explanation.cells
        }
        outcome.samples = {(site_B[row], end_B[row]) for row in outcome.explanation.samples}


def state_hash(here: Course) -> str:
    """SHA-256 of weights, buffers, moments, average, place, guard and ledger."""
    digest = hashlib.sha256(repr((here.place.steps, here.place.position, here.ledger, here.guard.as_dict())).encode())
    tensors = {**here.model.state_dict(), **here.optimiser.tensors()}
    if here.average is not None:
        tensors["average"] = here.average.block
    for name in sorted(tensors):
        digest.update(tensors[name].detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def next_rows(here: Course) -> Part:
    """The windows of the step that comes next."""
    return here.training[here._draw(here.place.position)[0]]


def _config(shape: Shape, seed: int, precision: str, train: dict[str, Any]) -> Config:
    rates = {"encoder_learning_rate": shape.learning_rate, "head_learning_rate": shape.learning_rate}
    return parse_config(
        {
            "data": {"path": "unused.csv"},
            "target": {"label": "rain", "horizon_hours": 24},
            "split": {"validation_fraction": 0.25, "test_fraction": 0.1},
            "windows": {"context": shape.context},
            "model": {
                "architecture": shape.architecture,
                "head": shape.head,
                "patch_length": shape.patch_length,
                "width": shape.width,
                "layers": shape.layers,
                "heads": shape.heads,
                "feed_forward": shape.feed_forward,
                "instance_norm": shape.instance_norm,
            },
            "train": {
                "batch_size": shape.batch_size,
                "warmup_steps": 5,
                "schedule": "constant",
                "average_decay": 0.9,
                "patience": 9,
                "precision": precision,
                "seed": seed,
                "phases": [{"name": "head", "freeze": "encoder", "epochs": 1}, {"name": "all", "epochs": 2}],
                **rates,
                **train,
            },
            "guard": {"max_skipped": 0.2},
            "verify": {"bootstrap": 100},
        },
        "faults",
    )


def _panel(shape: Shape, seed: int) -> xr.Dataset:
    """Noise with a label that the first variable decides."""
    random = np.random.default_rng(seed)
    cube_CST = random.normal(size=(shape.variables, shape.sites, shape.times)).astype(np.float32)
    label_ST = (cube_CST[0] > 0).astype(np.float32)
    cube_CST[random.random(cube_CST.shape) < shape.missing] = np.nan
    return xr.Dataset(
        {
            **{f"v{each}": (("site", "time"), cube_CST[each]) for each in range(shape.variables)},
            "rain": (("site", "time"), label_ST, {"role": "label", "classes": ["0", "1"]}),
        },
        coords={
            "site": [f"s{each}" for each in range(shape.sites)],
            "time": np.datetime64("2020-01-01", "ns") + np.arange(shape.times) * np.timedelta64(1, "D"),
        },
        attrs={"step_hours": 24.0, "findings": ()},
    )


def quiet() -> None:
    """One thread, and no log: thousands of trainings are told in one table."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
