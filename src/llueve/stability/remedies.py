"""What is done about a refused step whose cause is known, and the ledger of all that was done.

Each remedy follows from a cause that an experiment has shown, and has a budget. What has none left, or nothing that would
cure it, ends the run; nothing is ever multiplied by zero, replaced by a number, or passed over for good.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from llueve.stability.causes import WARMUP_STEPS, Explanation

Action = Literal["rerun", "quarantine", "roll_back", "clip", "raise_precision", "fresh_head", "skip", "stop"]

MOST_ROLLBACKS = 3
"""Of one run."""
LOWERED = 0.1
"""What a rate that drove the weights away is multiplied by where no experiment tells."""
COOL_DOWN_STEPS = WARMUP_STEPS
"""Steps over which rates rise again after a roll-back for their sake."""
MOST_READMISSIONS = 64
"""Quarantined samples that are tried again at the start of an epoch."""

SAMPLES = (
    "missing_input",
    "infinite_input",
    "sentinel_or_unit",
    "outlier_input",
    "constant_window",
    "empty_attention_row",
)
"""Causes that lie in what single samples hold."""
DAMAGE = ("corrupt_weights", "corrupt_buffer", "damaged_weights", "poisoned_moments", "poisoned_average")
"""Causes that do not come back once an earlier state is there again."""
DRIFT = ("learning_rate", "missing_warmup", "overflow", "encoder_weights", "head_initialisation")
"""Causes that training itself led to."""


@dataclass(frozen=True)
class Remedy:
    """What is done."""

    action: Action
    why: str
    """In words, as the history tells it."""
    samples: tuple[int, ...] = ()
    """Rows of the batch to leave out from now on."""
    layers: tuple[int, ...] = ()
    """Layers of the encoder to compute in float32 from now on; none means all."""
    rate_factor: float = 1.0
    """What all rates are multiplied by from now on."""
    ramp: bool = False
    """Whether the rates rise again from zero after a roll-back."""


@dataclass
class Quarantined:
    """A training window that is left out."""

    site: int
    end: int
    """Indices of site and issue time in the panel."""
    epoch: int
    """In which it was put there."""
    cause: str
    tries: int = 0
    """How often it was let back."""
    inside: bool = True


@dataclass
class Ledger:
    """Everything that was done for the sake of stability, and what is left of each budget."""

    rollbacks: int = 0
    rate: float = 1.0
    """Product of all that the rates of this phase were multiplied by."""
    ramp_from: int | None = None
    """Applied step of the phase at which the rates began to rise again."""
    clip_norm: float | None = None
    """Largest gradient norm, where the configured one turned out too large."""
    exact_layers: list[int] = field(default_factory=list)
    """Layers of the encoder that are computed in float32."""
    fresh_heads: int = 0
    quarantined: list[Quarantined] = field(default_factory=list)
    explained: int = 0
    """Refused steps whose cause was looked for."""

    def held(self) -> list[Quarantined]:
        """Windows that are left out now."""
        return [each for each in self.quarantined if each.inside]

    def quarantine(self, site: int, end: int, epoch: int, cause: str) -> None:
        """Leave a window out."""
        for each in self.quarantined:
            if (each.site, each.end) == (site, end):
                each.epoch, each.cause, each.inside = epoch, cause, True
                return
        self.quarantined.append(Quarantined(site, end, epoch, cause))

    def next_phase(self) -> None:
        """Its rates are others, so what was done about those of the last phase is over."""
        self.rate, self.ramp_from = 1.0, None

    def rate_factor(self, steps: int) -> float:
        """What the schedule is multiplied by at an applied step of the phase."""
        ramp = 1.0 if self.ramp_from is None else min(1.0, (steps - self.ramp_from + 1) / COOL_DOWN_STEPS)
        return self.rate * ramp

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def of(cls, content: dict[str, Any]) -> Self:
        """What `as_dict` told."""
        return cls(**{**content, "quarantined": [Quarantined(**each) for each in content["quarantined"]]})


@dataclass(frozen=True)
class Standing:
    """What the choice of a remedy rests on besides the cause."""

    kind: str
    """What the guard called it."""
    repeated: bool
    """Whether this very step was run again, or rolled back, already."""
    steps: int
    """Applied in this phase."""
    samples_left: int
    """Windows that may still be quarantined."""
    layers: int
    """Of the encoder."""
    healthy: bool = True
    """Whether there is a sound state to go back to."""


def choose(found: Explanation, ledger: Ledger, standing: Standing) -> Remedy:
    """The remedy for a cause, within what is left of the budgets."""
    cause = found.cause
    rows = tuple(sorted({*found.samples, *(cell[0] for cell in found.cells)}))
    if cause in (*SAMPLES, "few_samples") and rows:
        if len(rows) > standing.samples_left:
            return Remedy("stop", f"{len(rows)} more samples would be left out than guard.max_skipped allows")
        return Remedy("quarantine", f"{len(rows)} sample(s) are left out from now on", samples=rows)
    if cause == "learning_rate" and standing.kind == "learning_rate":
        # The rates are computed anew at each step, so a wrong one is a wrong schedule or damaged memory.
        if not standing.repeated:
            return Remedy("rerun", "the rates are computed again, and the step is run again")
        return Remedy("stop", "the schedule gives such rates")
    if cause == "transient":
        if not standing.repeated:
            return Remedy("rerun", "the step is run again")
        return Remedy("skip", "the step went wrong again when it was repeated, so its batch is left out")
    if cause == "half_precision":
        layers = _layers(found, standing.layers, ledger.exact_layers)
        if layers:
            where = f"layer {layers[0]}" if len(layers) == 1 else "every layer"
            return Remedy(
                "raise_precision", f"{where} of the encoder is computed in float32 from now on", layers=layers
            )
        return Remedy("skip", "it is computed in float32 already, so its batch is left out")
    if cause == "exploding_gradient" and ledger.clip_norm is None:
        return Remedy("clip", "gradients are clipped at their usual norm from now on, and the step is run again")
    if cause == "head_initialisation" and standing.steps == 0 and not ledger.fresh_heads:
        return Remedy("fresh_head", "the head is initialised anew")
    if cause in (*DAMAGE, *DRIFT):
        return _roll_back(found, ledger, standing)
    return Remedy("skip", "its batch is left out")


def _roll_back(found: Explanation, ledger: Ledger, standing: Standing) -> Remedy:
    cause = found.cause
    if ledger.rollbacks >= MOST_ROLLBACKS:
        return Remedy("stop", f"{MOST_ROLLBACKS} roll-backs were made already")
    if not standing.healthy:
        return Remedy("stop", "it was there from the start, so there is no sound state to go back to")
    if cause in DAMAGE:
        if standing.repeated:
            return Remedy("stop", "it came back after a roll-back to the last healthy state")
        return Remedy("roll_back", "back to the last healthy state, and on from there as before")
    if standing.steps == 0:
        return Remedy("stop", "it is there before the first step, so there is no healthy state to go back to")
    factor = 1.0 if cause == "missing_warmup" and not ledger.rollbacks else found.rate_factor or LOWERED
    how = "at the same rates" if factor == 1 else f"at {factor:g} times the rates"
    return Remedy(
        "roll_back",
        f"back to the last healthy state, and on from there {how}, which rise over {COOL_DOWN_STEPS} steps",
        rate_factor=factor,
        ramp=True,
    )


def _layers(found: Explanation, layers: int, exact: Sequence[int]) -> tuple[int, ...]:
    """The layer that the trace names; all that are left where it names none, or one that is computed exactly already."""
    named = re.search(r"layers\.(\d+)", found.trace.module) if found.trace is not None else None
    if named and int(named[1]) not in exact:
        return (int(named[1]),)
    return tuple(number for number in range(layers) if number not in exact)
