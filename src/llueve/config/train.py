"""How the model is trained: `[train]`."""

from typing import Annotated, Literal

from pydantic import Field

from llueve.config.section import Section


class TrainConfig(Section):
    """How the model is trained (`[train]`)."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(64, ge=1)
    encoder_learning_rate: float = Field(1e-3, gt=0, le=1)
    head_learning_rate: float = Field(1e-3, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0, le=1)
    warmup_steps: int = Field(100, ge=0)
    """Optimiser steps over which both rates rise linearly from zero."""
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float = Field(1.0, gt=0)
    """Largest total gradient norm of one step."""
    patience: int = Field(3, ge=1)
    """Epochs without a better validation log-loss before training ends."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of training steps: `auto` takes bfloat16 products where the machine has them, the encoder is wide enough, and a
    first batch comes out alike. Forecasts, and every score of them, are computed in float32."""
    class_weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Weight of each class in the loss, in the order of the classes; without it all count alike."""
    focal_gamma: float = Field(0.0, ge=0, le=10)
    """Above zero, the focal loss: samples that are already told apart count less, by (1 − p)^gamma."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    seed: int = Field(0, ge=0, lt=2**63)
