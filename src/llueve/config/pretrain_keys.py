"""The configuration of a pre-training: corpus, encoder, training."""

from pydantic import Field

from llueve.config.model_keys import LARGEST_SIZE, MOST_HEADS, MOST_LAYERS
from llueve.config.run_keys import CheckpointConfig, GuardConfig, ProcessesConfig, TrackConfig
from llueve.config.section import MOST_STEPS, Section
from llueve.config.train_keys import TrainConfig


class CorpusConfig(Section):
    """The records to learn from (`[corpus]`)."""

    path: str
    """Folder with Parquet files of hourly values: columns site, latitude, longitude, time (UTC), and quantities with their
    units."""
    files: tuple[str, ...] = ("hourly_*.parquet", "scene_*.parquet")
    """Patterns of file names. Files with a longer step than an hour are left out."""
    windows: int = Field(200_000, ge=1, le=MOST_STEPS)
    """Training windows that are drawn from all places."""
    validation_windows: int = Field(6_000, ge=1, le=MOST_STEPS)
    """Windows of the places that are held out."""


class EncoderConfig(Section):
    """Sizes of the weather encoder (`[model]`)."""

    width: int = Field(96, ge=2, le=LARGEST_SIZE)
    """Width of a token; a multiple of four times `heads`."""
    layers: int = Field(3, ge=1, le=MOST_LAYERS)
    """Number of layers."""
    heads: int = Field(4, ge=1, le=MOST_HEADS)
    """Number of attention heads in each layer."""
    feed_forward: int = Field(256, ge=1, le=LARGEST_SIZE)
    """Width of the feed-forward network in each layer."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of activations that training sets to zero at random."""


class PretrainConfig(Section):
    """The configuration of `llueve pretrain`."""

    corpus: CorpusConfig
    model: EncoderConfig = EncoderConfig()
    train: TrainConfig = TrainConfig()
    guard: GuardConfig = GuardConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = TrackConfig()
    processes: ProcessesConfig = ProcessesConfig()
