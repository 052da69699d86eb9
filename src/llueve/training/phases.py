"""Placeholder until the phases are merged."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from llueve.config import TrainConfig
from llueve.model.classifier import TimerXLForClassification


@dataclass(frozen=True)
class Phase:
    name: str
    freeze: tuple[str, ...]
    config: TrainConfig


def plan(train: TrainConfig) -> tuple[Phase, ...]:
    return (Phase("training", (), train),)


def apply_freeze(model: nn.Module, phase: Phase) -> None: ...


def set_mode(model: nn.Module, phase: Phase) -> None:
    model.train()


def is_encoder_frozen(phase: Phase) -> bool:
    return False


def parameter_groups(model: TimerXLForClassification, phase: Phase) -> list[dict[str, Any]]:
    encoder = list(model.encoder.parameters())
    known = {id(parameter) for parameter in encoder}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    decay = phase.config.weight_decay
    return [
        {"params": encoder, "lr": phase.config.encoder_learning_rate, "weight_decay": decay},
        {"params": rest, "lr": phase.config.head_learning_rate, "weight_decay": decay},
    ]


def rate_factor(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Linear warm-up, then a cosine to zero over the planned epochs, or a constant."""
    total = steps_per_epoch * config.epochs

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
        return warm if config.schedule == "constant" else warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))

    return factor
