"""Run a refused step, or the steps that led to it, under single changes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from llueve.stability.diagnosis.case import Evidence, Rerun
from llueve.stability.diagnosis.explanation import Change, Experiment
from llueve.stability.diagnosis.numbers import are_sound_moments
from llueve.stability.guard import LARGEST_NORM, LARGEST_WEIGHT, START_LOSS, unsound_weights
from llueve.stability.reading import FaultKind
from llueve.stability.refused_step import RefusedStep
from llueve.step.gradients import finite_norm, loss_and_gradients
from llueve.step.random_state import set_random_states

CURED_RATIO = 30.0
"""A spike is cured below this many times the usual size. Without a usual size it must fall by this factor."""
FEW_SUSPECTS = 16
"""Most suspected samples that are tried one by one."""

Loss = Callable[[Tensor, Tensor], Tensor]


class Experiments:
    """The experiments on one refused step, each from the same random state."""

    def __init__(self, step: RefusedStep, evidence: Evidence) -> None:
        self.step, self.evidence = step, evidence
        self.done: list[Experiment] = []
        self._tries_left = 4 * math.ceil(math.log2(max(2, len(step.batch)))) + 4

    def run(self, change: Change, step: RefusedStep | None, detail: str = "", other_loss: Loss | None = None) -> None:
        """Compute the changed step, if the change applies, and record the outcome; `detail` is its number or its names."""
        if step is None:
            return
        loss, norm = _outcome(step, other_loss)
        cures = self._is_usual(loss, norm, step.config.clip_norm) and _is_sound_state(step)
        self.done.append(Experiment(change, detail, loss, norm, cures))

    def run_again(self, change: Change, rerun: Rerun, detail: str = "", most: float = math.inf) -> bool:
        """Run the steps since the last healthy state again under other settings; True if that cures the step.

        The loss must be at most `most` times the usual loss or ln K, whichever is larger.
        """
        assert self.evidence.rerun is not None
        loss, norm = self.evidence.rerun(rerun)
        clip_norm = min(self.step.config.clip_norm, rerun.clip_norm or math.inf)
        usual = max(self.evidence.usual_loss or 0.0, math.log(self.step.model.num_classes))
        # Weights that are very far away make every forecast certain, so their gradient is zero.
        cures = norm > 0 and self._is_usual(loss, norm, clip_norm) and loss <= most * usual
        self.done.append(Experiment(change, detail, loss, norm, cures))
        return cures

    def cured_by(self, *changes: Change) -> bool:
        """True if one of these changes made the step sound."""
        return any(each.cures for each in self.done if each.change in changes)

    def leave_out(self, suspected: Sequence[int]) -> tuple[int, ...]:
        """The one or few samples without which the step is sound: the suspected ones, or those that a search finds."""
        # Not every suspected sample is at fault: of a few, those that are sound on their own are kept.
        bad = [row for row in suspected if not self._is_sound([row])] if 1 < len(suspected) <= FEW_SUSPECTS else []
        for some in (bad, suspected):
            if self._is_sound_without(some):
                return tuple(some)
        found = self._search_by_halves()
        few = len(found) <= max(1, len(self.step.batch) // 4)
        return tuple(found) if few and self._is_sound_without(found) else ()

    def _is_sound_without(self, rows: Sequence[int]) -> bool:
        rest = [row for row in range(len(self.step.batch)) if row not in set(rows)]
        if not rows or not rest:
            return False
        self.run(Change.WITHOUT_SAMPLES, self._of(rest), ", ".join(map(str, rows)))
        return self.done[-1].cures

    def _search_by_halves(self) -> list[int]:
        """Samples that are not sound on their own; empty if the search takes too many tries."""
        blocks, found = [list(range(len(self.step.batch)))], []
        while blocks:
            block = blocks.pop(0)
            if self._tries_left == 0:
                return []
            self._tries_left -= 1
            if self._is_sound(block):
                continue
            if len(block) == 1:
                found += block
            else:
                blocks += [block[: len(block) // 2], block[len(block) // 2 :]]
        return sorted(found)

    def _is_sound(self, rows: list[int]) -> bool:
        return self._is_usual(*_outcome(self._of(rows)), self.step.config.clip_norm)

    def _of(self, rows: list[int]) -> RefusedStep:
        return replace(self.step, batch=self.step.batch[torch.tensor(rows)])

    def _is_usual(self, loss: float, norm: float, clip_norm: float) -> bool:
        """True if loss and gradient norm no longer show the fault of the refused step."""
        kind, evidence = self.step.kind, self.evidence
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return False
        if kind == FaultKind.GRADIENT_OVERFLOW:
            return min(norm, clip_norm) <= LARGEST_NORM
        if kind == FaultKind.LOSS_START:
            return loss <= START_LOSS * math.log(self.step.model.num_classes)
        if kind == FaultKind.LOSS_SPIKE and evidence.usual_loss is not None:
            return loss <= CURED_RATIO * evidence.usual_loss
        if kind == FaultKind.GRADIENT_SPIKE and evidence.usual_norm is not None:
            return norm <= CURED_RATIO * evidence.usual_norm
        return not kind.is_spike or norm * CURED_RATIO <= self.step.reading.gradient_norm


def are_rates(rates: Sequence[float]) -> bool:
    """True if the learning rates are numbers that can be applied."""
    return all(math.isfinite(rate) and rate >= 0 for rate in rates)


def _outcome(step: RefusedStep, other_loss: Loss | None = None) -> tuple[float, float]:
    """Loss and gradient norm of a step, computed from its own random state."""
    set_random_states(step.random_state, step.device)
    loss = loss_and_gradients(step.model, step.batch, step.config, step.precision, other_loss)
    norm = finite_norm(step.model)
    step.model.zero_grad(set_to_none=True)
    return float(loss), norm


def _is_sound_state(step: RefusedStep) -> bool:
    """True if rates, moments, average and weights are sound, so that sound gradients would leave sound weights."""
    largest_moment = step.config.clip_norm if step.kind == FaultKind.MOMENTS else math.inf
    return (
        are_rates(step.reading.rates)
        and (step.kind != FaultKind.MEMORY or not step.reading.changed)
        and are_sound_moments(step.moments, largest_moment)
        and all(bool((each.abs() <= LARGEST_WEIGHT).all()) for each in (step.average or {}).values())
        and (step.kind != FaultKind.WEIGHTS or not unsound_weights(step.model))
    )
