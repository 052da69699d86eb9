"""Phases of a training: the parameters that each phase trains, their learning rates, and the schedule of the rates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from llueve.config import PhaseConfig, TrainConfig, frozen_layers
from llueve.errors import ConfigError
from llueve.model.classifier import TimerXLForClassification

STAIR = 0.1
"""Share of the rates that the staircase adds with each epoch: 1e-7 of 1e-6 in the troubleshooting note."""


LARGEST_RISE = 1000
"""Largest factor by which a learning rate may rise from one phase to the next."""
MOST_CHECKED = 100_000
"""Most steps of a phase whose learning rates are checked before it."""


@dataclass(frozen=True)
class Phase:
    """One phase of a training."""

    name: str
    freeze: tuple[str, ...]
    """Parts that are not trained, as in `train.phases`."""
    config: TrainConfig
    """The `[train]` section with the keys of this phase."""


def plan(train: TrainConfig) -> tuple[Phase, ...]:
    """Return the phases of a training, in order; there is at least one."""
    train = train.resolved()
    phases = train.phases or (PhaseConfig(name="training"),)
    return tuple(Phase(phase.name, phase.freeze, train.in_phase(phase)) for phase in phases)


def is_encoder_frozen(phase: Phase) -> bool:
    """Return True if no parameter of the encoder is trained: then its output for a window never changes."""
    return "encoder" in phase.freeze


def apply_freeze(model: TimerXLForClassification, phase: Phase) -> None:
    """Freeze and unfreeze the parts of the model for this phase; a frozen encoder has no dropout.

    The gap embedding is added before the first layer, and is frozen together with the patch embedding.

    Raises:
        ConfigError: the phase freezes more layers than the encoder has.
    """
    stack = model.encoder.stack
    if (count := frozen_layers(phase.freeze)) > len(stack) - 1:
        raise ConfigError(f"train.phases: {phase.name} freezes layers:{count}, but the encoder has {len(stack) - 1}")
    model.requires_grad_(True)
    model.unfreeze_encoder()
    if is_encoder_frozen(phase):
        model.freeze_encoder()
    if count:
        model.gap_embedding_D.requires_grad_(False)
        for module in stack[: count + 1]:
            module.requires_grad_(False)
    if "norms" in phase.freeze:
        for module in model.encoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(False)


def parameter_groups(model: TimerXLForClassification, phase: Phase) -> list[dict[str, Any]]:
    """Return the groups of trained parameters for AdamW: the encoder from the embedding upwards, then the head.

    With a layer decay d, layer i of n has the rate r · d^(n−1−i) and the embedding r · d^n, where r is the encoder's rate.
    The final norm and the forecasting head have the rate r. Without layer decay the encoder is a single group.
    """
    config, whole = phase.config, list(model.encoder.parameters())
    rate, stack, parts = config.encoder_learning_rate, model.encoder.stack, []
    top = whole
    if config.layer_decay < 1:
        for place, module in enumerate(stack):
            name = f"encoder.layers.{place - 1}" if place else "encoder.embedding"
            parts.append((name, rate * config.layer_decay ** (len(stack) - 1 - place), list(module.parameters())))
        top = _without(whole, [each for _, _, lower in parts for each in lower])
    parts.append(("encoder.top" if parts else "encoder", rate, top))
    parts.append(("head", config.head_learning_rate, _without(list(model.parameters()), whole)))
    return [
        {"name": name, "params": trained, "lr": rate, "weight_decay": config.weight_decay}
        for name, rate, parameters in parts
        if (trained := [each for each in parameters if each.requires_grad])
    ]


def check_rates(phases: Sequence[Phase], windows: int) -> None:
    """Check the learning rates of every phase, over its whole schedule, before the first step of a training.

    Args:
        windows: number of training windows, or of scenes, which decides the steps of an epoch.

    Raises:
        ConfigError: a rate leaves the range from zero to the configured one, all are zero, or a phase has a rate more than
            1,000 times that of the phase before it.
    """
    earlier: dict[str, float] = {}
    for phase in phases:
        config, rates = phase.config, _highest_rates(phase)
        steps_per_epoch = -(-windows // (config.batch_size * config.accumulate))
        factor, steps = rate_factor(config, steps_per_epoch), steps_per_epoch * config.epochs
        factors = [factor(step) for step in range(0, steps, -(-steps // MOST_CHECKED))]
        # `not <=` also catches NaN.
        if wrong := next((each for each in factors if not 0 <= each <= 1), None):
            raise ConfigError(
                f"train.phases: {phase.name}: the schedule multiplies its learning rates by {wrong:g}; expected 0 to 1. "
                "Check train.schedule, train.warmup_steps and train.warmup_epochs"
            )
        for key, rate in rates.items():
            before = earlier.get(key, max(earlier.values(), default=rate))
            if rate > LARGEST_RISE * before:
                raise ConfigError(
                    f"train.phases: {phase.name}: {key} = {rate:g} is {rate / before:,.0f} times that of the phase before it "
                    f"({before:g}); expected at most {LARGEST_RISE:,} times. Lower it, or put a phase between them"
                )
        earlier |= rates


def _highest_rates(phase: Phase) -> dict[str, float]:
    """The rates of what a phase trains, by their key."""
    head = {"head_learning_rate": phase.config.head_learning_rate}
    encoder = {"encoder_learning_rate": phase.config.encoder_learning_rate}
    return head if is_encoder_frozen(phase) else {**encoder, **head}


def _without(parameters: list[nn.Parameter], others: list[nn.Parameter]) -> list[nn.Parameter]:
    known = {id(each) for each in others}
    return [each for each in parameters if id(each) not in known]


def rate_factor(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the schedule of a phase: warm-up, times a cosine that falls to zero over its epochs, or times one.

    It is a function from the number of applied steps of the phase to the factor of the rates. An epoch has
    ⌈batches / accumulate⌉ optimiser steps.
    """
    total = steps_per_epoch * config.epochs
    rise = config.warmup_epochs * steps_per_epoch if config.warmup_epochs else config.warmup_steps

    def warm(step: int) -> float:
        if config.warmup == "staircase":
            epoch = step // steps_per_epoch
            return min(1.0, STAIR * (epoch + 1)) if epoch < config.warmup_epochs else 1.0
        return min(1.0, (step + 1) / rise) if rise else 1.0

    def factor(step: int) -> float:
        if config.schedule == "constant":
            return warm(step)
        return warm(step) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

    return factor
