"""The whole configuration: all sections together."""

from typing import Self

import tomli_w
from pydantic import Field, model_validator

from llueve.config.data_keys import DataConfig, FeaturesConfig, RegionConfig
from llueve.config.forecast_keys import CalibrationConfig, DecisionConfig
from llueve.config.model_keys import ModelConfig
from llueve.config.run_keys import (
    AuditConfig,
    CheckpointConfig,
    GuardConfig,
    ProcessesConfig,
    TrackConfig,
    VerifyConfig,
)
from llueve.config.sample_keys import SplitConfig, TargetConfig, WindowsConfig
from llueve.config.section import Section
from llueve.config.train_keys import TrainConfig, frozen_layers


class Config(Section):
    """The configuration of a run."""

    data: DataConfig
    regions: dict[str, RegionConfig] = Field(default_factory=dict)
    """Sites of an ERA5 archive by name. Without any, each cell is a site."""
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
    calibration: CalibrationConfig = CalibrationConfig()
    decision: DecisionConfig = DecisionConfig()
    verify: VerifyConfig = VerifyConfig()

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        weights, names = self.train.class_weights, self.target.class_names
        if weights is not None and len(weights) != len(names):
            raise ValueError(f"train.class_weights has {len(weights)} numbers for {len(names)} classes {list(names)}")
        if len(names) > 2 and self.calibration.method in ("platt", "isotonic"):
            raise ValueError(
                f'calibration.method = "{self.calibration.method}" is for two classes, and target.classes has {len(names)}: '
                'choose "temperature", "none" or "auto"'
            )
        model = self.model
        if self.train.recipe == "scratch" and model.names_weights:
            but = f"trains without pre-trained weights, but model.pretrained = {model.pretrained!r}; remove one of them"
            raise ValueError(f'train.recipe = "scratch": {but}')
        for phase in self.train.phases:
            if model.is_fresh and (count := frozen_layers(phase.freeze)) > model.layers:
                raise ValueError(
                    f"train.phases: {phase.name} freezes layers:{count}, but model.layers = {model.layers}"
                )
        return self

    def to_toml(self) -> str:
        """The configuration as TOML, with every default, the phases of a recipe, and a comment for each key that is not set."""
        written = self.model_copy(update={"train": self.train.resolved()})
        return with_comments(tomli_w.dumps(written.model_dump(exclude_none=True)), written)


def with_comments(text: str, config: Section) -> str:
    """A configuration in TOML, with a comment for each key that is not set at the beginning of its section."""
    for name, section in config:
        if isinstance(section, Section):
            text = text.replace(f"[{name}]\n", "\n".join([f"[{name}]", *section.unset_keys(), ""]), 1)
    return text
