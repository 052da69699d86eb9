"""All sections together."""

from typing import Self

import tomli_w
from pydantic import Field, model_validator

from llueve.config.data import DataConfig, RegionConfig
from llueve.config.features import FeaturesConfig
from llueve.config.judging import AuditConfig, CheckpointConfig, GuardConfig, ProcessesConfig, VerifyConfig
from llueve.config.model import ModelConfig
from llueve.config.section import Section
from llueve.config.target import TargetConfig
from llueve.config.track import TrackConfig
from llueve.config.train import TrainConfig, frozen_layers
from llueve.config.windows import SplitConfig, WindowsConfig


class Config(Section):
    """The whole configuration of a run."""

    data: DataConfig
    regions: dict[str, RegionConfig] = Field(default_factory=dict)
    """Sites of an ERA5 archive by name; without it each cell is a site."""
    target: TargetConfig
    features: FeaturesConfig = FeaturesConfig()
    split: SplitConfig
    windows: WindowsConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    audit: AuditConfig = AuditConfig()
    guard: GuardConfig = GuardConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = TrackConfig()
    processes: ProcessesConfig = ProcessesConfig()
    verify: VerifyConfig = VerifyConfig()

    @model_validator(mode="after")
    def _weights(self) -> Self:
        weights, names = self.train.class_weights, self.target.class_names
        if weights is not None and len(weights) != len(names):
            raise ValueError(f"train.class_weights has {len(weights)} numbers for {len(names)} classes {list(names)}")
        return self

    @model_validator(mode="after")
    def _phases_fit(self) -> Self:
        model = self.model
        if self.train.recipe == "scratch" and model.pretrained != "none":
            raise ValueError(
                f'train.recipe = "scratch": trains without pre-trained weights, but model.pretrained = {model.pretrained!r}; '
                "leave one of them out"
            )
        for phase in self.train.phases:
            if model.pretrained == "none" and (count := frozen_layers(phase.freeze)) > model.layers:
                raise ValueError(
                    f"train.phases: {phase.name} freezes layers:{count}, but model.layers = {model.layers}"
                )
        return self

    def to_toml(self) -> str:
        """The configuration as TOML, with every default written out, and the phases of a recipe."""
        written = self.model_copy(update={"train": self.train.resolved()})
        return tomli_w.dumps(written.model_dump(exclude_none=True))
