"""Advice on a cause: only what the configuration of the step allows, and settings only if an experiment showed that they help."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from llueve.samples.scale import MOST_SPREADS
from llueve.stability.diagnosis.causes import Cause
from llueve.stability.diagnosis.explanation import Change, Experiment
from llueve.stability.language import Words
from llueve.stability.reading import FaultKind
from llueve.stability.refused_step import RefusedStep

MEMORY = Words(
    "Train again; if it happens again, test the memory of the machine",
    "Entrene otra vez; si vuelve a ocurrir, compruebe la memoria de la máquina",
)
TEST = Words(
    "If it happens again, test the memory of the machine", "Si vuelve a ocurrir, compruebe la memoria de la máquina"
)
REPORT = Words("Keep the incident and report it", "Guarde el incidente y comuníquelo")
MASK = Words(
    'Set windows.missing = "mask", or fill the cells at their source',
    'Ponga windows.missing = "mask", o complete las celdas en su origen',
)
FILL = Words("Fill the cells at their source", "Complete las celdas en su origen")
AFTER_READING = Words(
    'windows.missing = "mask" was set, so these cells changed after the table was read',
    'windows.missing = "mask" estaba puesto, así que estas celdas cambiaron después de leer la tabla',
)
REFUSED_VALUES = Words(
    f"A table with values beyond {MOST_SPREADS:g} training spreads is refused, so these changed after it was read",
    f"Una tabla con valores a más de {MOST_SPREADS:g} dispersiones se rechaza, así que estos cambiaron después de leerla",
)
CORRECT = Words("Correct them at their source", "Corríjalas en su origen")
CORRECT_INFINITE = Words(
    "Correct them at their source; if they are finite there, test the memory of the machine",
    "Corríjalas en su origen; si allí son finitas, compruebe la memoria de la máquina",
)
FACTS = Words("Correct the facts of these samples at their source", "Corrija los datos de estas muestras en su origen")
EMPTY = Words("Correct these cells, or leave them empty", "Corrija estas celdas, o déjelas vacías")
SENTINEL = Words(
    "Name the mark in data.sentinels, or correct the unit at its source",
    "Nombre la marca en data.sentinels, o corrija la unidad en su origen",
)
EXCLUDE = Words("Leave the variable out with data.exclude", "Excluya la variable con data.exclude")
WHOLE_PATCHES = Words(
    "Leave out the site or period in which whole patches are missing, or fill them at their source",
    "Excluya el sitio o periodo en que faltan parches enteros, o complételos en su origen",
)
SET = Words("Set {}", "Ponga {}")
NO_SETTING = Words("No setting of the loss prevents it", "Ningún ajuste de la pérdida lo evita")
RATE_CHANGED = Words(
    "The configured rates are sound, so a rate changed in memory",
    "Las tasas configuradas son sanas, así que una tasa cambió en la memoria",
)
LOWER = Words(
    "Lower {} in this phase: with these rates the same steps are sound",
    "Baje {} en esta fase: con estas tasas los mismos pasos son sanos",
)
NO_RATE = Words(
    "No lower rate that was tried makes the steps sound: look at the scale of the data and of the weights",
    "Ninguna tasa menor de las probadas hace sanos los pasos: mire la escala de los datos y de los pesos",
)
EPOCHS_OF_WARMUP = Words(
    "Raise train.warmup_epochs, so that the warm-up has at least {} steps",
    "Suba train.warmup_epochs, para que el calentamiento tenga al menos {} pasos",
)
SCALE = Words(
    "Look at the scale of the inputs with `llueve audit`", "Mire la escala de las entradas con `llueve audit`"
)
SEED = Words("Train again with another train.seed", "Entrene otra vez con otra train.seed")
INSPECT = Words(
    "Look at the checkpoint with `llueve checkpoint inspect`", "Mire el checkpoint con `llueve checkpoint inspect`"
)
SAMPLES = Words("Look at these samples in the table", "Mire estas muestras en la tabla")


@dataclass(frozen=True)
class Settings:
    """The settings of a run, besides `[train]`, that advice depends on; None if they are not known."""

    missing: Literal["mask", "raw"] | None = None
    """`windows.missing`."""
    pretrained: bool | None = None
    """True if the encoder came from a checkpoint."""


@dataclass(frozen=True)
class Shown:
    """Everything that advice may rest on."""

    step: RefusedStep
    experiments: Sequence[Experiment]
    settings: Settings

    def cured(self, *changes: Change) -> bool:
        """True if one of these changes made the step sound."""
        return any(each.cures for each in self.experiments if each.change in changes)

    def detail(self, *changes: Change) -> str | None:
        """The detail of the first of these changes that made the step sound."""
        return next((each.detail for each in self.experiments if each.change in changes and each.cures), None)

    def number(self, *changes: Change) -> float | None:
        """That detail as a positive number; None if it is not one, as in a file that someone has changed."""
        with suppress(ValueError):
            number = float(self.detail(*changes) or "nan")
            return number if 0 < number < math.inf else None
        return None

    @property
    def is_beyond_tables(self) -> bool:
        """True if a finite cell is larger than any that a table can give."""
        x_BLC = self.step.batch.x_BLC
        return bool((x_BLC.isfinite() & (x_BLC.abs() > MOST_SPREADS)).any())


def advise(cause: Cause, step: RefusedStep, experiments: Sequence[Experiment], settings: Settings) -> Words:
    """Return what to do about a cause, in one or more sentences without a final period."""
    shown = Shown(step, experiments, settings)
    pieces = _ADVICE[cause](shown) if cause in _ADVICE else [MEMORY]
    return Words(". ".join(each.en for each in pieces), ". ".join(each.es for each in pieces))


def _filled(words: Words, detail: str) -> Words:
    return Words(words.en.replace("{}", detail), words.es.replace("{}", detail))


def _missing(shown: Shown) -> list[Words]:
    pieces = []
    if shown.cured(Change.CELLS, Change.CELLS_AND_FACTS):
        known = {"mask": [AFTER_READING, MEMORY], "raw": [MASK]}
        pieces += known.get(shown.settings.missing or "", [FILL])
    if shown.cured(Change.FACTS, Change.CELLS_AND_FACTS):
        pieces.append(FACTS)
    return pieces or [FILL]


def _far(own: Words, shown: Shown) -> list[Words]:
    if shown.is_beyond_tables:
        return [REFUSED_VALUES, MEMORY]
    if not shown.cured(Change.FAR_CELLS, Change.UNUSUAL_CELLS):
        return [FACTS]
    return [CORRECT if own == EMPTY and shown.settings.missing == "raw" else own]


def _loss_edge(shown: Shown) -> list[Words]:
    setting = shown.detail(Change.LOSS_SETTING)
    return [NO_SETTING, REPORT] if setting is None else [_filled(SET, setting)]


def _learning_rate(shown: Shown) -> list[Words]:
    if shown.step.kind == FaultKind.LEARNING_RATE:
        return [RATE_CHANGED, TEST]
    divisor = shown.number(Change.SLOWED_RERUN)
    if divisor is None:
        return [NO_RATE]
    config, model = shown.step.config, shown.step.model
    rates = {} if model.is_encoder_frozen else {"encoder_learning_rate": config.encoder_learning_rate}
    rates["head_learning_rate"] = config.head_learning_rate
    named = [f"train.{name} = {rate / divisor:g}" for name, rate in rates.items()]
    return [_filled(LOWER, ", ".join(named))]


def _warmup(shown: Shown) -> list[Words]:
    steps, config = shown.number(Change.WARMED_RERUN), shown.step.config
    if steps is None:
        return [NO_RATE]
    if config.warmup_epochs:
        return [_filled(EPOCHS_OF_WARMUP, f"{steps:g}")]
    return [_filled(SET, f"train.warmup_steps = {max(round(steps), config.warmup_steps + 1)}")]


def _clipping(shown: Shown) -> list[Words]:
    norm = shown.number(Change.CLIPPED_RERUN, Change.CLIPPED)
    if norm is None or norm >= shown.step.config.clip_norm:
        return [SAMPLES]
    return [_filled(SET, f"train.clip_norm = {norm:g}")]


def _encoder(shown: Shown) -> list[Words]:
    return [INSPECT] if shown.settings.pretrained else [SEED]


_ADVICE: dict[Cause, Callable[[Shown], list[Words]]] = {
    Cause.TRANSIENT: lambda _: [TEST],
    Cause.MISSING_INPUT: _missing,
    Cause.INFINITE_INPUT: lambda shown: [
        CORRECT_INFINITE if shown.cured(Change.CELLS, Change.CELLS_AND_FACTS) else FACTS
    ],
    Cause.SENTINEL_OR_UNIT: lambda shown: _far(SENTINEL, shown),
    Cause.OUTLIER_INPUT: lambda shown: _far(EMPTY, shown),
    Cause.CONSTANT_WINDOW: lambda _: [EXCLUDE],
    Cause.EMPTY_ATTENTION_ROW: lambda _: [WHOLE_PATCHES],
    Cause.LOSS_EDGE: _loss_edge,
    Cause.LEARNING_RATE: _learning_rate,
    Cause.MISSING_WARMUP: _warmup,
    Cause.EXPLODING_GRADIENT: _clipping,
    Cause.HALF_PRECISION: lambda _: [_filled(SET, 'train.precision = "float32"')],
    Cause.OVERFLOW: lambda _: [SCALE],
    Cause.HEAD_INITIALISATION: lambda _: [SEED],
    Cause.ENCODER_WEIGHTS: _encoder,
    Cause.FEW_SAMPLES: lambda _: [SAMPLES],
    Cause.UNKNOWN: lambda _: [REPORT],
}
"""Causes that are not here are damaged memory."""
