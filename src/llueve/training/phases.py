"""Phases of a training: what each trains, at which rates, and how those rise and fall."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from llueve.config import PhaseConfig, TrainConfig, frozen_layers
from llueve.errors import ConfigError
from llueve.model.classifier import TimerXLForClassification

STAIR = 0.1
"""How much of the rates the staircase adds with each epoch: 1e-7 of 1e-6 in the troubleshooting note."""
ONLY = PhaseConfig(name="training")
"""The phase of a training that names none."""


@dataclass(frozen=True)
class Phase:
    """One phase of a training."""

    name: str
    freeze: tuple[str, ...]
    """What is not trained, as in `train.phases`."""
    config: TrainConfig
    """The keys that hold in it, as a training of this phase alone."""


def plan(train: TrainConfig) -> tuple[Phase, ...]:
    """The phases of a training, in order; there is always one."""
    train = train.resolved()
    return tuple(Phase(phase.name, phase.freeze, train.in_phase(phase)) for phase in train.phases or (ONLY,))


def is_encoder_frozen(phase: Phase) -> bool:
    """Whether nothing of the encoder is trained, so that its output for a window never changes."""
    return "encoder" in phase.freeze


def apply_freeze(model: TimerXLForClassification, phase: Phase) -> None:
    """Set what is trained in this phase, and the mode that belongs to it: a frozen encoder has no dropout.

    The gap embedding goes into the first layer beside the embedding, and is frozen with it.

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
    """Groups of what is trained, for AdamW: the encoder first, from the bottom up, the head last.

    With a decay d, layer i of n learns at rate · d^(n−1−i), the embedding at rate · d^n; the final norm and the
    forecasting head, which come after the layers, at the whole rate. Without one the encoder is a single group.
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


def _without(parameters: list[nn.Parameter], others: list[nn.Parameter]) -> list[nn.Parameter]:
    known = {id(each) for each in others}
    return [each for each in parameters if id(each) not in known]


def rate_factor(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Share of the rates at each optimiser step of a phase: warm-up, times a cosine to zero over its epochs or a constant.

    Args:
        config: of the phase.
        steps_per_epoch: optimiser steps, so ⌈batches / accumulate⌉.

    Returns:
        A function of how many steps the phase has applied.
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
