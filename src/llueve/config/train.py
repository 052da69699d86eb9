"""How the model is trained: `[train]` and its phases."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from llueve.config.section import Section

Recipe = Literal["plain", "default", "conservative", "scratch"]
Schedule = Literal["cosine", "constant"]
Warmup = Literal["linear", "staircase"]
Precision = Literal["auto", "float32", "bfloat16"]

Epochs = Annotated[int, Field(ge=1)]
Patience = Annotated[int, Field(ge=1)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
LayerDecay = Annotated[float, Field(gt=0, le=1)]
WeightDecay = Annotated[float, Field(ge=0, le=1)]
WarmupSteps = Annotated[int, Field(ge=0)]
WarmupEpochs = Annotated[float, Field(ge=0)]
BatchSize = Annotated[int, Field(ge=1)]
Accumulate = Annotated[int, Field(ge=1)]
ClipNorm = Annotated[float, Field(gt=0)]

LAYERS = re.compile(r"layers:([1-9][0-9]*)")
STAIRS = 10
"""Steps of the staircase from nothing to the full rate, as the troubleshooting note has it: 1e-7, 2e-7 … of 1e-6."""


def frozen_layers(freeze: tuple[str, ...]) -> int:
    """How many layers, and the embedding before them, are not trained for `layers:N`; 0 without it."""
    return max((int(match[1]) for each in freeze if (match := LAYERS.fullmatch(each))), default=0)


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class PhaseConfig(Section):
    """A part of the training (an entry of `[[train.phases]]`); what it leaves out it takes from `[train]`."""

    name: str = Field(min_length=1)
    freeze: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ("none",)
    """What is not trained: `none`, `encoder`, `norms` (of the encoder), `layers:N` (the embedding and the first N
    layers), or a list of them."""
    epochs: Epochs | None = None
    patience: Patience | None = None
    encoder_learning_rate: LearningRate | None = None
    head_learning_rate: LearningRate | None = None
    layer_decay: LayerDecay | None = None
    weight_decay: WeightDecay | None = None
    warmup_steps: WarmupSteps | None = None
    warmup_epochs: WarmupEpochs | None = None
    warmup: Warmup | None = None
    schedule: Schedule | None = None
    batch_size: BatchSize | None = None
    accumulate: Accumulate | None = None
    clip_norm: ClipNorm | None = None
    precision: Precision | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        for each in self.freeze:
            if each not in ("none", "encoder", "norms") and not LAYERS.fullmatch(each):
                raise ValueError(
                    f'freeze = {each!r}: expected "none", "encoder", "norms" or "layers:N" such as "layers:4"'
                )
        if not self.freeze or ("none" in self.freeze and len(self.freeze) > 1):
            raise ValueError(f'freeze = {list(self.freeze)}: expected "none" alone, or what is frozen')
        return self

    @property
    def overrides(self) -> dict[str, Any]:
        """The keys that this phase does not take from `[train]`."""
        return self.model_dump(exclude_none=True, exclude={"name", "freeze"})


RECIPES: dict[Recipe, tuple[PhaseConfig, ...]] = {
    "plain": (),
    "default": (
        PhaseConfig(name="head", freeze=("encoder",), epochs=3, head_learning_rate=1e-3),
        PhaseConfig(name="all", encoder_learning_rate=1e-4, head_learning_rate=5e-4, layer_decay=0.8),
    ),
    # The troubleshooting note, to the letter: its phase 1, then its phase 2.
    "conservative": tuple(
        PhaseConfig(
            name=name,
            freeze=(freeze,),
            epochs=epochs,
            encoder_learning_rate=1e-6,
            head_learning_rate=1e-6,
            warmup_steps=0,
            warmup_epochs=warmup_epochs,
            warmup=warmup,
            schedule="constant",
            clip_norm=1.0,
            batch_size=16,
        )
        for name, freeze, epochs, warmup_epochs, warmup in (
            ("head", "encoder", 5, 0, "linear"),
            ("all", "none", None, 5, "staircase"),
        )
    ),
    "scratch": (),
}
"""A last phase has the epochs of `[train]`."""


class TrainConfig(Section):
    """How the model is trained (`[train]`)."""

    recipe: Recipe = "plain"
    """`plain`: one phase of the keys below. `default`: the head alone, then everything with lower rates from the top
    down. `conservative`: the troubleshooting note's strategy. `scratch`: one phase, no pre-trained weights.
    Keys of `[train]` that are given hold in every phase of a recipe, `epochs` in its last one."""
    phases: tuple[PhaseConfig, ...] = ()
    """The phases, one after the other; without them, what the recipe says."""
    epochs: Epochs = 10
    batch_size: BatchSize = 64
    accumulate: Accumulate = 1
    """Batches whose gradients make one optimiser step."""
    encoder_learning_rate: LearningRate = 1e-3
    head_learning_rate: LearningRate = 1e-3
    layer_decay: LayerDecay = 1.0
    """The last layer learns at the encoder's rate, each layer below it at this share of the next one's; so does the
    embedding, below the first."""
    weight_decay: WeightDecay = 0.01
    warmup_steps: WarmupSteps = 100
    """Optimiser steps over which the rates rise linearly from zero."""
    warmup_epochs: WarmupEpochs = 0.0
    """Above zero, epochs of warm-up; it takes the place of `warmup_steps`."""
    warmup: Warmup = "linear"
    """`linear` rises with each step; `staircase` with each epoch, to (epoch + 1) tenths of the rates, then to all."""
    schedule: Schedule = "cosine"
    clip_norm: ClipNorm = 1.0
    """Largest total gradient norm of one step."""
    patience: Patience = 3
    """Epochs without a better validation log-loss before training ends."""
    precision: Precision = "auto"
    """Of training steps: `auto` takes bfloat16 products where the machine has them, the encoder is wide enough, and a
    first batch comes out alike. Forecasts, and every score of them, are computed in float32."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training windows that is trained on: of every class and calendar month alike, drawn by the seed."""
    class_weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Weight of each class in the loss, in the order of the classes; without it all count alike."""
    focal_gamma: float = Field(0.0, ge=0, le=10)
    """Above zero, the focal loss: samples that are already told apart count less, by (1 − p)^gamma."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    average_decay: float = Field(0.0, ge=0, lt=1)
    """Above zero, validation and the model itself use a moving average of the weights, which keeps this share of itself at
    each step; 0.999 is usual."""
    feature_cache_gb: float = Field(8.0, ge=0)
    """Disk for what a frozen encoder gives for each window, so that it is computed once; 0 for none."""
    seed: int = Field(0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _phases(self) -> Self:
        if self.phases and self.recipe != "plain":
            raise ValueError(f"recipe = {self.recipe!r}: has phases of its own; leave it out, or leave out phases")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phases: names must differ, found {names}")
        for phase in self.resolved().phases or (None,):
            flat = self if phase is None else self.in_phase(phase)
            if flat.warmup == "staircase" and not (0 < flat.warmup_epochs <= STAIRS and flat.warmup_epochs % 1 == 0):
                raise ValueError(
                    f'warmup = "staircase": needs warmup_epochs from 1 to {STAIRS}, whole, found {flat.warmup_epochs:g}'
                )
        return self

    def resolved(self) -> "TrainConfig":
        """The same training with its phases written out instead of the recipe's name."""
        if self.recipe == "plain":
            return self
        given = self.model_fields_set - {"epochs"}
        # Warm-up in steps, or none, was asked for: a recipe's warm-up in epochs must not take its place.
        if given & {"warmup_steps", "warmup_epochs"} and not self.warmup_epochs:
            given |= {"warmup_epochs", "warmup"}
        left_out = dict.fromkeys(given & set(PhaseConfig.model_fields))
        phases = tuple(phase.model_copy(update=left_out) for phase in RECIPES[self.recipe])
        return self.model_copy(update={"recipe": "plain", "phases": phases})

    def in_phase(self, phase: PhaseConfig) -> "TrainConfig":
        """The keys that hold in a phase, as a training of that phase alone."""
        changes = phase.overrides
        if "warmup_steps" in changes and "warmup_epochs" not in changes:
            changes |= {"warmup_epochs": 0.0, "warmup": "linear"}
        return self.model_copy(update={"recipe": "plain", "phases": (), **changes})
