"""Why a step went wrong, decided by experiment: the step is replayed under single changes, and the smallest that cures it
names the cause.

Nothing here judges by appearance: a cause is named only if taking it away makes loss and gradients finite (or, for a
spike, usual again). What no experiment cures is called unknown.

Shapes: B batch, L steps, C variables.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from llueve.config import TrainConfig
from llueve.model.classifier import LARGEST, TimerXLForClassification
from llueve.stability.step import Batch, loss_and_gradients
from llueve.stability.trace import Trace, trace_step

CURED_RATIO = 30.0
"""A spike counts as cured where the gradient norm falls by so many times."""

ADVICE: dict[str, tuple[str, str]] = {
    "transient": (
        "the same step gives finite numbers when it is run again: a fault of the machine that did not repeat. Train again; "
        "if it comes back, test the memory",
        "el mismo paso da números finitos al repetirlo: un fallo de la máquina que no se repite. Entrene otra vez; si "
        "vuelve, compruebe la memoria",
    ),
    "missing_input": (
        'cells without a value reach the model. Set windows.missing = "mask", or mend the cells',
        'celdas sin valor llegan al modelo. Ponga windows.missing = "mask", o repare las celdas',
    ),
    "infinite_input": (
        'infinite cells reach the model. Mend them, or set data.infinite = "missing"',
        'celdas infinitas llegan al modelo. Repárelas, o ponga data.infinite = "missing"',
    ),
    "outlier_input": (
        "a few cells are so far from all others that their squares overflow: a mark for missing, or a wrong unit. Name the "
        "mark in data.sentinels, or correct the unit",
        "unas pocas celdas están tan lejos de las demás que sus cuadrados desbordan: una marca de dato ausente o una unidad "
        "equivocada. Nombre la marca en data.sentinels, o corrija la unidad",
    ),
    "corrupt_weights": (
        "weights that are not finite were there before the step. Look at the checkpoint with `llueve checkpoint inspect`",
        "ya antes del paso había pesos no finitos. Mire el checkpoint con `llueve checkpoint inspect`",
    ),
    "corrupt_buffer": (
        "a stored table of the model that is not finite was there before the step. Train again",
        "ya antes del paso había una tabla del modelo no finita. Entrene otra vez",
    ),
    "poisoned_moments": (
        "the optimiser's memory of earlier gradients is not sound; the step itself is. Train again from before it",
        "la memoria del optimizador sobre gradientes anteriores no es sana; el paso sí. Entrene desde antes",
    ),
    "learning_rate": (
        "a learning rate that is no positive number, or weights that too large a rate has driven away. Lower "
        "train.encoder_learning_rate and train.head_learning_rate",
        "una tasa de aprendizaje que no es un número positivo, o pesos que una tasa demasiado alta ha disparado. Baje "
        "train.encoder_learning_rate y train.head_learning_rate",
    ),
    "half_precision": (
        'float32 gives finite numbers where bfloat16 does not. Set train.precision = "float32"',
        'float32 da números finitos donde bfloat16 no. Ponga train.precision = "float32"',
    ),
    "overflow": (
        "numbers beyond float32: float64 gives finite ones. Weights or inputs are of an absurd scale",
        "números fuera de float32: float64 los da finitos. Los pesos o las entradas tienen una escala absurda",
    ),
    "head_initialisation": (
        "the head's weights are of an absurd scale; a fresh head cures it. Initialise it anew",
        "los pesos de la cabeza tienen una escala absurda; una cabeza nueva lo cura. Inicialícela de nuevo",
    ),
    "encoder_weights": (
        "the encoder's weights are of an absurd scale, or of another architecture; a fresh encoder cures it. Look at the "
        "checkpoint, or lower the rate that drove them there",
        "los pesos del codificador tienen una escala absurda, o son de otra arquitectura; un codificador nuevo lo cura. Mire "
        "el checkpoint, o baje la tasa que los llevó ahí",
    ),
    "few_samples": (
        "a few samples alone make the step what it is. Look at them",
        "unas pocas muestras por sí solas causan el paso. Mírelas",
    ),
    "unknown": (
        "no single change cures it. Keep the incident and report it",
        "ningún cambio por sí solo lo cura. Guarde el incidente y comuníquelo",
    ),
}
"""What each cause means and what to do, in English and in Spanish."""


@dataclass(frozen=True)
class Conduct:
    """How a course of steps is done in another way."""

    rate_factor: float = 1.0
    warmup_steps: int = 0
    clip_norm: float | None = None


@dataclass(frozen=True)
class Step:
    """Everything that a step is computed from, as an incident holds it."""

    model: TimerXLForClassification
    batch: Batch
    config: TrainConfig
    precision: torch.dtype
    random_state: Tensor
    kind: str
    """What the guard called it."""
    moments: Mapping[str, Tensor]
    """Of the optimiser, by parameter."""
    rates: tuple[float, ...]
    fresh: Callable[[], TimerXLForClassification]
    """A model of the same sizes, newly initialised."""
    healthy: Mapping[str, Tensor] | None = None
    healthy_moments: Mapping[str, Tensor] | None = None
    average: Mapping[str, Tensor] | None = None
    course: Callable[[Conduct], tuple[float, float]] | None = None
    usual_norm: float | None = None
    usual_loss: float | None = None


@dataclass(frozen=True)
class Experiment:
    """The step under one change."""

    change: str
    loss: float
    gradient_norm: float
    cures: bool

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        loss, norm = (each if math.isfinite(each) else str(each) for each in (self.loss, self.gradient_norm))
        return {"change": self.change, "loss": loss, "gradient_norm": norm, "cures": self.cures}


@dataclass(frozen=True)
class Explanation:
    """The cause of an incident, with its evidence."""

    cause: str
    """A key of `ADVICE`."""
    trace: Trace | None
    """Where the first non-finite number was born; None if the step repeats without one."""
    experiments: tuple[Experiment, ...]
    samples: tuple[int, ...]
    """Rows of the batch that are to blame, where single ones are."""
    cells: tuple[tuple[int, int, int], ...]
    """Sample, step and variable of each cell to blame."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "cause": self.cause,
            "advice": {"en": ADVICE[self.cause][0], "es": ADVICE[self.cause][1]},
            "trace": None if self.trace is None else self.trace.as_dict(),
            "experiments": [each.as_dict() for each in self.experiments],
            "samples": list(self.samples),
            "cells": [list(cell) for cell in self.cells],
        }


def explain(step: Step) -> Explanation:
    """Replay a step under every change of the list, and name the cause that the smallest cure speaks for."""
    lab = _Laboratory(step)
    lab.run("none: the same step again", step)
    torch.set_rng_state(step.random_state)
    trace = trace_step(step.model, step.batch, step.config, step.precision)
    bad_BLC = ~step.batch.x_BLC.isfinite()
    far_BLC = ~bad_BLC & (step.batch.x_BLC.abs() > LARGEST)
    lab.run("missing and infinite cells masked", _masking(step, bad_BLC))
    lab.run(f"cells beyond {LARGEST:g} training spreads masked", _masking(step, far_BLC))
    lab.run("float32", replace(step, precision=torch.float32))
    lab.run("float64", _doubled(step))
    lab.run("weights that are not finite replaced by fresh ones", _mended(step, parameters=True))
    lab.run("stored tables that are not finite replaced by fresh ones", _mended(step, parameters=False))
    lab.run("fresh head", _with_fresh(step, "head"))
    lab.run("fresh encoder, no pre-trained weights", _with_fresh(step, "encoder"))
    lab.run("learning rates divided by 10", step, rates=tuple(rate / 10 for rate in step.rates))
    lab.run("learning rates divided by 100", step, rates=tuple(rate / 100 for rate in step.rates))
    lab.run("gradients clipped at a tenth", replace(step, config=_clipping(step.config, 0.1)))
    lab.run("fresh optimiser moments", replace(step, moments={}))
    samples = lab.leave_out() if not lab.cured_by("none") else ()
    cause = _decide(lab, step, bad_BLC)
    blamed = {"missing_input": bad_BLC, "infinite_input": bad_BLC, "outlier_input": far_BLC}.get(cause)
    cells = () if blamed is None else _cells(blamed)
    return Explanation(cause, trace, tuple(lab.experiments), samples, cells)


class _Laboratory:
    """Runs a step under changes, each from the same random state, and keeps what came out."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.experiments: list[Experiment] = []
        self.recorded_norm = math.nan

    def run(self, change: str, step: Step | None, rates: tuple[float, ...] | None = None) -> None:
        """One experiment; None where the change does not apply to this step."""
        if step is None:
            return
        loss, norm = _outcome(step)
        if not self.experiments:
            self.recorded_norm = norm
        cures = self._is_usual(loss, norm) and _is_sound_update(step, rates or step.rates)
        self.experiments.append(Experiment(change, loss, norm, cures))

    def cured_by(self, beginning: str) -> bool:
        """Whether the experiment of that name cured the step."""
        return any(each.cures for each in self.experiments if each.change.startswith(beginning))

    def leave_out(self) -> tuple[int, ...]:
        """The samples without which the step is sound, by halves; empty if it is not one or few of them."""
        rows = list(range(len(self.step.batch)))
        guilty = self._guilty(rows)
        if not guilty or len(guilty) > max(1, len(rows) // 4):
            return ()
        rest = torch.tensor([row for row in rows if row not in guilty])
        self.run(f"without samples {', '.join(map(str, guilty))}", replace(self.step, batch=self.step.batch[rest]))
        return tuple(guilty) if self.experiments[-1].cures else ()

    def _guilty(self, rows: list[int]) -> list[int]:
        if not rows or self._is_sound(rows):
            return []
        if len(rows) == 1:
            return rows
        half = len(rows) // 2
        return self._guilty(rows[:half]) + self._guilty(rows[half:])

    def _is_sound(self, rows: list[int]) -> bool:
        return self._is_usual(*_outcome(replace(self.step, batch=self.step.batch[torch.tensor(rows)])))

    def _is_usual(self, loss: float, norm: float) -> bool:
        """Whether a loss and gradient norm are finite and, for a spike, far below what was recorded."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return False
        return not self.step.kind.endswith("_spike") or norm * CURED_RATIO <= self.recorded_norm


def _decide(lab: _Laboratory, step: Step, bad_BLC: Tensor) -> str:
    """The cause that the smallest cure speaks for; the order is from the least change to the largest."""
    if step.kind == "learning_rate" or not _are_rates(step.rates):
        return "learning_rate"
    if step.kind == "moments":
        return "poisoned_moments" if lab.cured_by("fresh optimiser moments") else "unknown"
    if lab.cured_by("none"):
        return "transient"
    if lab.cured_by("missing and infinite cells"):
        return "infinite_input" if bool(step.batch.x_BLC[bad_BLC].isinf().all()) else "missing_input"
    if lab.cured_by("weights that are not finite"):
        return "corrupt_weights"
    if lab.cured_by("stored tables"):
        return "corrupt_buffer"
    if lab.cured_by("cells beyond"):
        return "outlier_input"
    if step.precision != torch.float32 and lab.cured_by("float32"):
        return "half_precision"
    if lab.cured_by("fresh head"):
        return "head_initialisation"
    if lab.cured_by("fresh encoder"):
        return "encoder_weights"
    if lab.cured_by("without samples"):
        return "few_samples"
    if lab.cured_by("float64"):
        return "overflow"
    return "unknown"


def _outcome(step: Step) -> tuple[float, float]:
    """Loss and gradient norm of a step, from its own random state."""
    torch.set_rng_state(step.random_state)
    loss = loss_and_gradients(step.model, step.batch, step.config, step.precision)
    norm = nn.utils.clip_grad_norm_(step.model.parameters(), step.config.clip_norm, foreach=True)
    step.model.zero_grad(set_to_none=True)
    return float(loss), float(norm)


def _is_sound_update(step: Step, rates: tuple[float, ...]) -> bool:
    """Whether rates and moments would leave sound weights, given sound gradients."""
    finite = _are_rates(rates)
    for name, moment in step.moments.items():
        finite = finite and bool(moment.isfinite().all())
        finite = finite and not (name.endswith("exp_avg_sq") and bool((moment < 0).any()))
    return finite


def _are_rates(rates: tuple[float, ...]) -> bool:
    return all(math.isfinite(rate) and rate >= 0 for rate in rates)


def _cells(flag_BLC: Tensor) -> tuple[tuple[int, int, int], ...]:
    return tuple((sample, step, variable) for sample, step, variable in flag_BLC.nonzero().tolist())


def _masking(step: Step, flag_BLC: Tensor) -> Step | None:
    """The step with cells taken as not observed."""
    if not bool(flag_BLC.any()):
        return None
    batch = step.batch
    x_BLC = torch.where(flag_BLC, 0.0, batch.x_BLC)
    return replace(step, batch=replace(batch, x_BLC=x_BLC, observed_BLC=batch.observed_BLC & ~flag_BLC))


def _doubled(step: Step) -> Step:
    """The step in float64."""
    model = _copy(step)
    model.double()
    batch = replace(step.batch, x_BLC=step.batch.x_BLC.double(), facts_BF=step.batch.facts_BF.double())
    return replace(step, model=model, batch=batch, precision=torch.float32)


def _mended(step: Step, parameters: bool) -> Step | None:
    """The step with parameters, or buffers, that are not finite replaced by those of a fresh model."""
    named = dict(step.model.named_parameters() if parameters else step.model.named_buffers())
    wrong = [name for name, tensor in named.items() if not bool(tensor.isfinite().all())]
    return _replacing(step, wrong) if wrong else None


def _with_fresh(step: Step, part: str) -> Step:
    """The step with all parameters of the head, or of the encoder, fresh."""
    return _replacing(step, [name for name, _ in step.model.named_parameters() if name.startswith(f"{part}.")])


def _replacing(step: Step, names: list[str]) -> Step:
    model, fresh = _copy(step), step.fresh().state_dict()
    model.load_state_dict({name: fresh[name] if name in names else value for name, value in model.state_dict().items()})
    return replace(step, model=model)


def _copy(step: Step) -> TimerXLForClassification:
    model = step.fresh()
    model.load_state_dict(step.model.state_dict())
    return model.train(step.model.training)


def _clipping(config: TrainConfig, factor: float) -> TrainConfig:
    return config.model_copy(update={"clip_norm": config.clip_norm * factor})
