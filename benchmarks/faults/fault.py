"""A kind of fault: its damage, its cause, its place, and the expected end of the trial."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.faults.scene import Random, Scene
from benchmarks.faults.trial import TIMINGS, Outcome, Trial

NAN, INF = float("nan"), float("inf")
VARIABLES_HEAD = {"head": "variables"}

Size = Callable[[Any, Any], Any]
"""Chooses between the damage used during development and the held-out damage."""
Place = Literal["cells", "facts", "samples", "number", "module", "operation", "reason", "none"]
"""The part of an explanation, or the guard's reason, that must name exactly the planted place; or none."""
Ending = Literal["identical", "without", "sound", "stopped"]
"""Expected end: bit for bit as the clean trial; bit for bit as a trial without the same samples from the same step on; finite,
with a validation loss like that of clean trials; or stopped with the cause named."""


@dataclass(frozen=True)
class Fault:
    """One kind of fault."""

    area: str
    name: str
    cause: str
    plant: Callable[[Scene], Any] = lambda scene: scene.trial.truth
    """Does the damage just before a step, if the preparation has not done it; returns its place."""
    place: Place = "none"
    ends: Ending = "identical"
    timings: tuple[str, ...] = TIMINGS
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    shape: dict[str, Any] = field(default_factory=dict)
    """Sizes that the kind needs."""
    train: dict[str, Any] = field(default_factory=dict)
    """Training configuration that the kind needs."""
    prepare: Callable[[Trial, Random], Trial | None] | None = None
    """Prepares the trial, for example with a layer that can be made to fail; may return another trial to use."""
    shared: bool = False
    """True if the clean trial is prepared in the same way."""
    drifts: bool = False
    """True if the fault shows only some steps after it was planted."""
    repaired: bool = False
    """True if the step is repaired instead of refused."""

    @property
    def title(self) -> str:
        """Area and name."""
        return f"{self.area}: {self.name}"

    def is_located(self, truth: Any, found: Outcome) -> bool | None:
        """True if the outcome names exactly the planted place; None without a place to find."""
        if self.place == "none":
            return None
        if self.place == "reason":
            return truth in found.reason
        if (explanation := found.explanation) is None:
            return False
        trace = explanation.trace
        named = {
            "cells": found.cells,
            "facts": set(explanation.facts),
            "samples": found.samples,
            "number": next(iter(explanation.numbers), None),
            "module": trace and trace.module,
            "operation": trace and trace.operation,
        }
        return bool(named[self.place] == truth)
