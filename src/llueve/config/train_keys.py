"""Keys of the training and of its phases: `[train]`."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_type_hints

from pydantic import BeforeValidator, Field, create_model, model_validator

from llueve.config.section import MOST_STEPS, Section

Recipe = Literal["auto", "plain", "frozen", "default", "conservative", "scratch"]

LAYERS = re.compile(r"layers:([1-9][0-9]{0,3})")
STAIRS = 10
"""Steps of the staircase up to the full rate, as in the troubleshooting note: 1e-7, 2e-7 … of 1e-6."""


def frozen_layers(freeze: tuple[str, ...]) -> int:
    """Number of layers that `layers:N` freezes, above the embedding, which it freezes too; 0 without it."""
    return max((int(match[1]) for each in freeze if (match := LAYERS.fullmatch(each))), default=0)


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class PhaseKeys(Section):
    """Keys of `[train]` that a phase may also set for itself."""

    epochs: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 10
    """Largest number of epochs."""
    patience: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 3
    """Epochs without a better calibrated log-loss on validation after which training ends."""
    batch_size: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 64
    """Windows in one batch; with `model.sites = "together"`, issue times in one batch."""
    accumulate: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 1
    """Number of batches whose gradients make one optimiser step."""
    encoder_learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Highest learning rate of the encoder, above 0 and at most 1."""
    head_learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Highest learning rate of the head, above 0 and at most 1."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Learning rate of a layer as a share of that of the layer above, above 0 and at most 1. The last layer has the
    encoder's rate; the embedding counts as the layer below the first."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Weight decay of AdamW, 0 to 1."""
    warmup_steps: Annotated[int, Field(ge=0, le=MOST_STEPS)] = 100
    """Optimiser steps over which the learning rates rise linearly from zero."""
    warmup_epochs: Annotated[float, Field(ge=0, le=MOST_STEPS)] = 0.0
    """Epochs of warm-up. Above zero, it replaces `warmup_steps`."""
    warmup: Literal["linear", "staircase"] = "linear"
    """Shape of the warm-up. `linear` rises with each step. `staircase` rises with each epoch, counted from 0, to
    (epoch + 1) tenths of the rates and then to the full rates; it needs `warmup_epochs` from 1 to 10, whole."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rates after the warm-up: a cosine to zero over the epochs, or constant."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest total gradient norm of one step; a larger gradient is scaled down to it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the matrix products in training steps. `auto` uses bfloat16 if the machine supports it, the encoder
    is wide enough and a first batch gives similar results. Forecasts and their scores always use float32."""


class NamedPhase(Section):
    """A part of the training (an entry of `[[train.phases]]`). It takes the keys that it does not set from `[train]`."""

    name: str = Field(min_length=1)
    """Name of the phase; each phase has a different one."""
    freeze: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ("none",)
    """Part of the model that is not trained: `none`, `encoder`, `norms` (of the encoder), `layers:N` (the embedding and
    the first N layers), or a list of them."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        for each in self.freeze:
            if each not in ("none", "encoder", "norms") and not LAYERS.fullmatch(each):
                raise ValueError(f'freeze = {each!r}: expected "none", "encoder", "norms" or "layers:N", as "layers:4"')
        if not self.freeze or ("none" in self.freeze and len(self.freeze) > 1):
            raise ValueError(f'freeze = {list(self.freeze)}: expected "none" alone, or the frozen parts')
        return self

    @property
    def overrides(self) -> dict[str, Any]:
        """The keys that this phase sets instead of `[train]`."""
        return self.model_dump(exclude_none=True, exclude={"name", "freeze"})


if TYPE_CHECKING:

    class PhaseConfig(NamedPhase, PhaseKeys):
        """A phase with any of the keys of `PhaseKeys`, and None for the others."""

else:
    _KINDS = get_type_hints(PhaseKeys, include_extras=True)
    PhaseConfig = create_model(
        "PhaseConfig",
        __base__=NamedPhase,
        __doc__=NamedPhase.__doc__,
        __module__=__name__,
        **{key: (_KINDS[key] | None, None) for key in PhaseKeys.model_fields},
    )


_NOTE: dict[str, Any] = {"encoder_learning_rate": 1e-6, "head_learning_rate": 1e-6, "schedule": "constant"}
_NOTE |= {"warmup_steps": 0, "clip_norm": 1.0, "batch_size": 16}
"""Keys of both phases of the troubleshooting note."""
RECIPES: dict[Recipe, tuple[PhaseConfig, ...]] = {
    "plain": (),
    "frozen": (PhaseConfig(name="head", freeze=("encoder",)),),
    "default": (
        PhaseConfig(name="head", freeze=("encoder",), epochs=3, head_learning_rate=1e-3),
        PhaseConfig(name="all", encoder_learning_rate=1e-4, head_learning_rate=5e-4, layer_decay=0.8),
    ),
    "conservative": (
        PhaseConfig(name="head", freeze=("encoder",), epochs=5, warmup_epochs=0, warmup="linear", **_NOTE),
        PhaseConfig(name="all", warmup_epochs=5, warmup="staircase", **_NOTE),
    ),
    "scratch": (),
}
"""Phases of each recipe. The last phase has the epochs of `[train]`."""


class TrainConfig(PhaseKeys):
    """The training (`[train]`)."""

    recipe: Recipe = "auto"
    """List of phases by name. `plain`: one phase with the keys of `[train]`. `frozen`: the head alone. `default`: the head
    alone, then everything, with lower rates towards the embedding. `auto`: `default` with pre-trained weights, otherwise
    `plain`. `conservative`: the strategy of the troubleshooting note. `scratch`: one phase without pre-trained weights. A key
    set in `[train]` holds in every phase of the recipe, `epochs` in the last one."""
    phases: tuple[PhaseConfig, ...] = ()
    """Phases in order, as entries `[[train.phases]]`. Without any, `recipe` decides."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training windows to use, above 0 and at most 1: the same share of every class and calendar month."""
    class_weights: tuple[Annotated[float, Field(gt=0, le=1e6)], ...] | None = None
    """Weight of each class in the loss, above 0, in the order of the classes. Not set: every class has weight 1."""
    focal_gamma: float = Field(0.0, ge=0, le=10)
    """Exponent γ of the focal loss, 0 to 10; 0 is the plain loss. A sample of class probability p counts (1 − p)^γ times."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes, from 0 to below 1."""
    forecast_weight: float = Field(0.0, ge=0, le=100)
    """Weight of the forecasting loss beside that of the classes: the model also forecasts the mean of each variable over the
    horizon. 0 switches it off; it needs `model.head = "variables"`."""
    epoch_share: float = Field(1.0, gt=0, le=1)
    """Share of the training windows, or issue times, in one epoch, above 0 and at most 1. Each epoch draws others. With 0.25,
    a pass over the data is four epochs, each followed by a validation."""
    linear_start: bool = True
    """Start the head `variables` from a logistic regression on its levels, if the model sees each site alone."""
    average_decay: float = Field(0.99, ge=0, lt=1)
    """Decay of a moving average of the weights, 0 to below 1, which validation and the final model use; 0 switches it off."""
    feature_cache_gb: float = Field(8.0, ge=0)
    """Disk space in GB for the outputs of a frozen encoder, which are then computed once; 0 switches this off."""
    members: int = Field(1, ge=1, le=100)
    """Number of models to train, each with the next seed. They are one model: its probability is the mean of theirs."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of all random numbers, 0 or more."""

    @model_validator(mode="after")
    def _phases(self) -> Self:
        if self.phases and self.recipe not in ("auto", "plain"):
            raise ValueError(f"recipe = {self.recipe!r}: has phases of its own; remove it, or remove phases")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError(f"phases: names must differ, found {names}")
        for phase in self.resolved().phases or (None,):
            flat = self if phase is None else self.in_phase(phase)
            if flat.warmup == "staircase" and not (0 < flat.warmup_epochs <= STAIRS and flat.warmup_epochs % 1 == 0):
                needs = f"needs warmup_epochs from 1 to {STAIRS}, whole, found {flat.warmup_epochs:g}"
                raise ValueError(f'warmup = "staircase": {needs}')
        return self

    def resolved(self) -> "TrainConfig":
        """The same training with the phases of its recipe instead of the recipe's name; `auto` stays."""
        if self.recipe in ("auto", "plain"):
            return self
        given = self.model_fields_set - {"epochs"}
        # The user set a warm-up in steps, or none: the warm-up in epochs of a recipe must not replace it.
        if given & {"warmup_steps", "warmup_epochs"} and not self.warmup_epochs:
            given |= {"warmup_epochs", "warmup"}
        left_out = dict.fromkeys(given & set(PhaseConfig.model_fields))
        phases = tuple(phase.model_copy(update=left_out) for phase in RECIPES[self.recipe])
        return self.model_copy(update={"recipe": "plain", "phases": phases})

    def for_encoder(self, is_pretrained: bool) -> "TrainConfig":
        """The same training with the recipe that `auto` stands for."""
        if self.recipe != "auto":
            return self
        recipe: Recipe = "default" if is_pretrained and not self.phases else "plain"
        return self.model_copy(update={"recipe": recipe}).resolved()

    def in_phase(self, phase: PhaseConfig) -> "TrainConfig":
        """The keys of a phase, as a training of that phase alone."""
        changes = phase.overrides
        if "warmup_steps" in changes and "warmup_epochs" not in changes:
            changes |= {"warmup_epochs": 0.0, "warmup": "linear"}
        return self.model_copy(update={"recipe": "plain", "phases": (), **changes})
