"""Runs a step, or the course that led to it, under changes, and judges whether that cured it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from llueve.stability.causes.numbers import are_sound_moments
from llueve.stability.causes.step import Conduct, Experiment, Step
from llueve.stability.guard import LARGEST_NORM, LARGEST_WEIGHT, unsound_weights
from llueve.stability.step import finite_norm, loss_and_gradients, set_random_states

CURED_RATIO = 30.0
"""A spike counts as cured below so many times the usual; where that is unknown, once it fell by so many times."""
ABSURD_LOSS = 30.0
"""A loss is absurd from so many times that of a forecast without knowledge, ln K, on."""
FEW_SUSPECTS = 16
"""Samples that are tried one by one."""

Loss = Callable[[Tensor, Tensor], Tensor]


class Laboratory:
    """Runs a step under changes, each from the same random state, and keeps what came out."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.experiments: list[Experiment] = []
        self.recorded_norm = math.nan if step.recorded_norm is None else step.recorded_norm
        self.tries_left = 4 * math.ceil(math.log2(max(2, len(step.batch)))) + 4

    def run(self, change: str, step: Step | None, other_loss: Loss | None = None) -> None:
        """One experiment; None where the change does not apply to this step."""
        if step is None:
            return
        loss, norm = _outcome(step, other_loss)
        if not self.experiments and step.recorded_norm is None:
            self.recorded_norm = norm
        cures = self._is_usual(loss, norm, step.config.clip_norm) and _is_sound_state(step)
        self.experiments.append(Experiment(change, loss, norm, cures))

    def run_course(self, change: str, conduct: Conduct, most: float = math.inf) -> None:
        """One experiment on the steps since the last healthy state.

        Args:
            most: how many times the usual loss, or that of a forecast without knowledge, its losses may be for it to count as
                cured; else they must only be absurd no longer.
        """
        assert self.step.course is not None
        loss, norm = self.step.course(conduct)
        # A gradient of nil is that of weights so far away that every forecast is certain.
        cures = norm > 0 and self._is_usual(loss, norm, min(self.step.config.clip_norm, conduct.clip_norm or math.inf))
        usual = max(self.step.usual_loss or 0.0, math.log(self.step.model.num_classes))
        cures = cures and loss <= most * usual
        self.experiments.append(Experiment(change, loss, norm, cures))

    def cured_by(self, *beginnings: str) -> bool:
        """Whether an experiment of such a name cured the step."""
        return any(each.cures for each in self.experiments if each.change.startswith(beginnings))

    def has_run(self, beginning: str) -> bool:
        """Whether there was an experiment of that name."""
        return any(each.change.startswith(beginning) for each in self.experiments)

    def leave_out(self, suspected: Sequence[int]) -> tuple[int, ...]:
        """The samples without which the step is sound; empty if it is not one or few of them.

        Args:
            suspected: samples to leave out first; if they are none, or not all, they are looked for by halves.
        """
        # What looks like the fault is not always one: of a few, those that are sound on their own are let off.
        alone = [row for row in suspected if not self._is_sound([row])] if 1 < len(suspected) <= FEW_SUSPECTS else []
        for some in (alone, suspected):
            if self._is_sound_without(some):
                return tuple(some)
        rows = list(range(len(self.step.batch)))
        guilty = self._guilty(rows)
        if not guilty or len(guilty) > max(1, len(rows) // 4) or not self._is_sound_without(guilty):
            return ()
        return tuple(guilty)

    def _is_sound_without(self, rows: Sequence[int]) -> bool:
        rest = [row for row in range(len(self.step.batch)) if row not in set(rows)]
        if not rows or not rest:
            return False
        name = f"without samples {', '.join(map(str, rows))}"
        self.run(name, replace(self.step, batch=self.step.batch[torch.tensor(rest)]))
        return self.experiments[-1].cures

    def _guilty(self, rows: list[int]) -> list[int]:
        """Samples that are not sound on their own, by halves, level by level; empty once that takes too many tries."""
        blocks, guilty = [rows], []
        while blocks:
            block = blocks.pop(0)
            if self.tries_left == 0:
                return []
            self.tries_left -= 1
            if self._is_sound(block):
                continue
            if len(block) == 1:
                guilty += block
            else:
                blocks += [block[: len(block) // 2], block[len(block) // 2 :]]
        return sorted(guilty)

    def _is_sound(self, rows: list[int]) -> bool:
        step = replace(self.step, batch=self.step.batch[torch.tensor(rows)])
        return self._is_usual(*_outcome(step), step.config.clip_norm)

    def _is_usual(self, loss: float, norm: float, clip_norm: float) -> bool:
        """Whether a loss and gradient norm have nothing of what the guard refused."""
        step = self.step
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return False
        if step.kind == "gradient_overflow":
            return min(norm, clip_norm) <= LARGEST_NORM
        if step.kind == "loss_start":
            return loss <= ABSURD_LOSS * math.log(step.model.num_classes)
        if step.kind == "loss_spike" and step.usual_loss is not None:
            return loss <= CURED_RATIO * step.usual_loss
        if step.kind == "gradient_spike" and step.usual_norm is not None:
            return norm <= CURED_RATIO * step.usual_norm
        return not step.kind.endswith("_spike") or norm * CURED_RATIO <= self.recorded_norm


def are_rates(rates: Sequence[float]) -> bool:
    """Whether learning rates are numbers that can be applied."""
    return all(math.isfinite(rate) and rate >= 0 for rate in rates)


def _outcome(step: Step, other_loss: Loss | None = None) -> tuple[float, float]:
    """Loss and gradient norm of a step, from its own random state."""
    set_random_states(step.random_state, step.batch.y_B.device)
    loss = loss_and_gradients(step.model, step.batch, step.config, step.precision, other_loss)
    norm = finite_norm(step.model)
    step.model.zero_grad(set_to_none=True)
    return float(loss), norm


def _is_sound_state(step: Step) -> bool:
    """Whether rates, moments and what else the guard looks at would leave sound weights, given sound gradients."""
    return (
        are_rates(step.rates)
        and are_sound_moments(step.moments, step.config.clip_norm if step.kind == "moments" else math.inf)
        and all(bool((each.abs() <= LARGEST_WEIGHT).all()) for each in (step.average or {}).values())
        and (step.kind != "weights" or not unsound_weights(step.model))
    )
