"""The configuration of a pre-training: corpus, encoder, training."""

from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, model_validator

from llueve.config.model_keys import DAY_HOURS, LARGEST_SIZE, MOST_HEADS, MOST_LAYERS, ModelConfig
from llueve.config.root import with_comments
from llueve.config.run_keys import CheckpointConfig, GuardConfig, ProcessesConfig, TrackConfig
from llueve.config.section import MOST_STEPS, Moment, Section
from llueve.config.train_keys import Recipe, TrainConfig

MOST_WINDOWS = 10_000_000
"""Most windows that are drawn from a corpus."""
UNUSED = (
    "head_learning_rate", "recipe", "phases", "members", "fraction", "class_weights", "focal_gamma",
    "label_smoothing", "linear_start", "feature_cache_gb",
)  # fmt: skip
"""Keys of `[train]` without effect in a pre-training, which therefore refuses them."""


class CorpusConfig(Section):
    """The records to learn from (`[corpus]`)."""

    path: str
    """Folder with Parquet files of hourly values: columns site, latitude, longitude, time (UTC), and quantities with their
    units."""
    files: tuple[str, ...] = ("*.parquet",)
    """Patterns of file names. A file whose step is not one hour is left out."""
    held_out: float = Field(0.05, gt=0, lt=1)
    """Share of the sites of each file that the pre-training never sees, above 0 and below 1. They stop the training and are
    scored at its end."""
    until: dict[str, Moment] = Field(default_factory=dict)
    """End of the record of a group, by the name of its file without the ending, UTC: its hours from then on are not read, so
    that they can judge the encoder later."""
    windows: int = Field(300_000, ge=1, le=MOST_WINDOWS)
    """Training windows that are drawn from all other sites."""
    validation_windows: int = Field(6_000, ge=1, le=MOST_WINDOWS)
    """Windows of the sites that are held out, for the validation after each epoch."""
    score_windows: int = Field(12_000, ge=1, le=MOST_WINDOWS)
    """Windows of these sites for the scores at the end, and as many of the others for the recalibration."""


class EncoderConfig(Section):
    """Sizes of the weather encoder (`[model]`)."""

    width: int = Field(96, ge=2, le=LARGEST_SIZE)
    """Numbers in one token; a multiple of `heads`, and `width / heads` a multiple of 4."""
    layers: int = Field(3, ge=1, le=MOST_LAYERS)
    """Number of layers."""
    heads: int = Field(4, ge=1, le=MOST_HEADS)
    """Number of attention heads in each layer."""
    feed_forward: int = Field(256, ge=1, le=LARGEST_SIZE)
    """Width of the feed-forward network in each layer."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of activations that training sets to zero at random."""
    storage: Literal["float16", "float32"] = "float16"
    """Number format of the weights in `encoder.safetensors`. The scores are those of the stored weights."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        self.as_model()
        return self

    def as_model(self) -> ModelConfig:
        """The same sizes as a `[model]` section of a training.

        Raises:
            ValueError: there is no encoder of these sizes.
        """
        return ModelConfig(
            architecture="weather_xl",
            patch_length=DAY_HOURS,
            positions="time",
            instance_norm=False,
            pretrained="none",
            **self.model_dump(exclude={"storage"}),
        )


class EncoderTrainConfig(TrainConfig):
    """The training (`[train]`), with the defaults of a pre-training."""

    epochs: int = Field(20, ge=1, le=MOST_STEPS)
    patience: int = Field(20, ge=1, le=MOST_STEPS)
    encoder_learning_rate: float = Field(2e-3, gt=0, le=1)
    warmup_steps: int = Field(300, ge=0, le=MOST_STEPS)
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    recipe: Recipe = "plain"
    forecast_weight: float = Field(0.5, gt=0, le=100)
    """Weight of the loss of the next day's values beside that of its rain; above 0."""
    epoch_share: float = Field(0.0667, gt=0, le=1)
    average_decay: float = Field(0.998, ge=0, lt=1)

    def with_one_rate(self) -> TrainConfig:
        """The same training with the encoder's rate for the head, which has no weights of its own."""
        return self.model_copy(update={"head_learning_rate": self.encoder_learning_rate})

    def unset_keys(self) -> list[str]:
        """As for any section, without the keys that have no effect."""
        return [line for line in super().unset_keys() if line.split()[1] not in UNUSED]


class PretrainConfig(Section):
    """The configuration of `llueve pretrain`."""

    corpus: CorpusConfig
    model: EncoderConfig = EncoderConfig()
    train: EncoderTrainConfig = EncoderTrainConfig()
    guard: GuardConfig = GuardConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = TrackConfig()
    processes: ProcessesConfig = ProcessesConfig()

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        fields = EncoderTrainConfig.model_fields
        if idle := [key for key in UNUSED if getattr(self.train, key) != fields[key].default]:
            raise ValueError(f"train.{idle[0]}: has no effect in a pre-training; remove it")
        return self

    def to_toml(self) -> str:
        """The configuration as TOML, with every default, and a comment for each key that is not set."""
        table: dict[str, Any] = self.model_dump(exclude_none=True, exclude={"train": {*UNUSED}})
        return with_comments(tomli_w.dumps(table), self)
