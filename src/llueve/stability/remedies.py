"""Choose a remedy for a refused step by its cause, and keep the ledger of all remedies of a run.

Each remedy follows from a cause that an experiment has shown, and has a budget. If the budget is used up, or nothing cures
the step, the run stops. A number is never replaced to hide a fault.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from llueve.stability.diagnosis import WARMUP_STEPS, Cause, Explanation
from llueve.stability.diagnosis.causes import INPUT_CAUSES, STORED_CAUSES
from llueve.stability.reading import FaultKind

MOST_ROLLBACKS = 3
"""Most roll-backs of one run."""
LOWERED = 0.1
"""Factor of the rates after a roll-back if no experiment found one."""
COOL_DOWN_STEPS = WARMUP_STEPS
"""Steps over which rates rise again after a roll-back because of rates."""
MOST_READMISSIONS = 64
"""Most quarantined samples that are tested again at the start of an epoch."""

SAMPLES = (*INPUT_CAUSES, Cause.CONSTANT_WINDOW, Cause.EMPTY_ATTENTION_ROW)
"""Causes that lie in the content of single samples."""
DAMAGE = (*STORED_CAUSES, Cause.DAMAGED_WEIGHTS, Cause.POISONED_AVERAGE)
"""Causes that disappear when an earlier state is restored."""
DRIFT = (Cause.LEARNING_RATE, Cause.MISSING_WARMUP, Cause.OVERFLOW, Cause.ENCODER_WEIGHTS, Cause.HEAD_INITIALISATION)
"""Causes that training itself led to."""


class Action(StrEnum):
    """A way to deal with a refused step."""

    RERUN = "rerun"
    QUARANTINE = "quarantine"
    ROLL_BACK = "roll_back"
    CLIP = "clip"
    RAISE_PRECISION = "raise_precision"
    FRESH_HEAD = "fresh_head"
    SKIP = "skip"
    STOP = "stop"


@dataclass(frozen=True)
class Remedy:
    """The chosen action with its numbers."""

    action: Action
    why: str
    """The action in words, for the history."""
    samples: tuple[int, ...] = ()
    """Rows of the batch to quarantine."""
    layers: tuple[int, ...] = ()
    """Layers of the encoder to compute in float32."""
    rate_factor: float = 1.0
    """Factor of all rates from now on."""
    ramp: bool = False
    """True if the rates rise from zero after the roll-back."""


@dataclass
class Quarantined:
    """A training window that was quarantined."""

    site: int
    end: int
    """Index of the issue time in the panel; `site` is that of the site."""
    epoch: int
    cause: Cause
    tries: int = 0
    """Times that it was readmitted."""
    inside: bool = True
    """True while it is left out."""


@dataclass
class Ledger:
    """All remedies of a run, from which the remaining budgets follow."""

    rollbacks: int = 0
    rate: float = 1.0
    """Product of the factors that lowered the rates of this phase."""
    ramp_from: int | None = None
    """Applied step of the phase at which the rates began to rise again; None without such a roll-back."""
    clip_norm: float | None = None
    """Clipping norm that replaces the configured one; None if none does."""
    exact_layers: list[int] = field(default_factory=list)
    """Layers of the encoder that are computed in float32, whatever the precision of the step."""
    fresh_heads: int = 0
    quarantined: list[Quarantined] = field(default_factory=list)
    explained: int = 0
    """Refused steps whose cause was searched for."""

    def held(self) -> list[Quarantined]:
        """Windows that are left out now."""
        return [each for each in self.quarantined if each.inside]

    def quarantine(self, site: int, end: int, epoch: int, cause: Cause) -> None:
        """Leave a window out."""
        for each in self.quarantined:
            if (each.site, each.end) == (site, end):
                each.epoch, each.cause, each.inside = epoch, cause, True
                return
        self.quarantined.append(Quarantined(site, end, epoch, cause))

    def readmit(self, window: Quarantined) -> None:
        """Take a window back into training; each is readmitted once at most."""
        window.inside, window.tries = False, window.tries + 1

    def count_explained(self) -> None:
        """The cause of one more refused step was searched for."""
        self.explained += 1

    def clip_at(self, norm: float) -> None:
        """Clip gradients at this norm from now on."""
        self.clip_norm = norm

    def compute_exactly(self, layers: Iterable[int]) -> None:
        """Compute these layers of the encoder in float32 from now on."""
        self.exact_layers = sorted({*self.exact_layers, *layers})

    def next_phase(self) -> None:
        """Reset what belongs to the rates of the last phase."""
        self.rate, self.ramp_from = 1.0, None

    def rate_factor(self, steps: int) -> float:
        """Factor of the scheduled rates at an applied step of the phase."""
        ramp = 1.0 if self.ramp_from is None else min(1.0, (steps - self.ramp_from + 1) / COOL_DOWN_STEPS)
        return self.rate * ramp

    def as_dict(self) -> dict[str, Any]:
        """The ledger for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        """Restore the ledger that `as_dict` returned."""
        quarantined = [Quarantined(**{**each, "cause": Cause(each["cause"])}) for each in content["quarantined"]]
        return cls(**{**content, "quarantined": quarantined})


@dataclass(frozen=True)
class Situation:
    """Facts besides the cause that decide about the remedy."""

    kind: FaultKind
    repeated: bool
    """True if this step was run again or rolled back before."""
    steps: int
    """Steps applied in this phase."""
    samples_left: int
    """Windows that may still be quarantined."""
    layers: int
    """Layers of the encoder."""
    healthy: bool = True
    """True if there is a sound state to roll back to."""


def choose(found: Explanation, ledger: Ledger, situation: Situation) -> Remedy:
    """The remedy for a cause, within the remaining budgets."""
    cause = found.cause
    rows = tuple(sorted({*found.samples, *(cell[0] for cell in found.cells)}))
    if cause in (*SAMPLES, Cause.FEW_SAMPLES) and rows:
        if len(rows) > situation.samples_left:
            return Remedy(Action.STOP, f"{len(rows)} more samples would be left out than guard.max_skipped allows")
        return Remedy(Action.QUARANTINE, f"{len(rows)} sample(s) are left out from now on", samples=rows)
    if cause == Cause.LEARNING_RATE and situation.kind == FaultKind.LEARNING_RATE:
        # The rates are computed again at each step, so a wrong one comes from the schedule or from damaged memory.
        if not situation.repeated:
            return Remedy(Action.RERUN, "the rates are computed again, and the step is run again")
        return Remedy(Action.STOP, "the schedule gives such rates")
    if cause == Cause.TRANSIENT:
        if not situation.repeated:
            return Remedy(Action.RERUN, "the step is run again")
        return Remedy(Action.SKIP, "the step went wrong again when it was repeated, so its batch is left out")
    if cause == Cause.HALF_PRECISION:
        if layers := _layers(found, situation.layers, ledger.exact_layers):
            where = f"layer {layers[0]}" if len(layers) == 1 else "every layer"
            why = f"{where} of the encoder is computed in float32 from now on"
            return Remedy(Action.RAISE_PRECISION, why, layers=layers)
        return Remedy(Action.SKIP, "it is computed in float32 already, so its batch is left out")
    if cause == Cause.EXPLODING_GRADIENT and ledger.clip_norm is None:
        return Remedy(Action.CLIP, "gradients are clipped at their usual norm from now on, and the step is run again")
    if cause == Cause.HEAD_INITIALISATION and situation.steps == 0 and not ledger.fresh_heads:
        return Remedy(Action.FRESH_HEAD, "the head is initialised again")
    if cause in (*DAMAGE, *DRIFT):
        return _roll_back(found, ledger, situation)
    return Remedy(Action.SKIP, "its batch is left out")


def _roll_back(found: Explanation, ledger: Ledger, situation: Situation) -> Remedy:
    cause = found.cause
    if ledger.rollbacks >= MOST_ROLLBACKS:
        return Remedy(Action.STOP, f"{MOST_ROLLBACKS} roll-backs were made already")
    if not situation.healthy or (situation.steps == 0 and cause not in DAMAGE):
        return Remedy(Action.STOP, "the fault was there from the start, so there is no sound state to roll back to")
    if cause in DAMAGE:
        if situation.repeated:
            return Remedy(Action.STOP, "the fault returned after a roll-back to the last healthy state")
        return Remedy(Action.ROLL_BACK, "roll back to the last healthy state and continue as before")
    factor = 1.0 if cause == Cause.MISSING_WARMUP and not ledger.rollbacks else found.rate_factor or LOWERED
    how = "at the same rates" if factor == 1 else f"at {factor:g} times the rates"
    why = f"roll back to the last healthy state and continue {how}, rising over {COOL_DOWN_STEPS} steps"
    return Remedy(Action.ROLL_BACK, why, rate_factor=factor, ramp=True)


def _layers(found: Explanation, layers: int, exact: Sequence[int]) -> tuple[int, ...]:
    """The layer that the trace names; otherwise all layers that are not computed in float32 yet."""
    named = re.search(r"layers\.(\d+)", found.trace.module) if found.trace is not None else None
    if named and int(named[1]) not in exact:
        return (int(named[1]),)
    return tuple(number for number in range(layers) if number not in exact)
