"""One validated, frozen configuration: TOML in, TOML out.

Unknown keys and impossible values are refused with the key, the value, what was expected, and the nearest valid name.
Lengths in time carry their unit in the name; `context`, `stride` and `lags` count steps of the panel.
"""

from llueve.config.data import DataConfig, RegionConfig
from llueve.config.features import FeaturesConfig, Rolling, Statistic
from llueve.config.judging import AuditConfig, CheckpointConfig, GuardConfig, VerifyConfig
from llueve.config.loading import load_config, parse_config
from llueve.config.model import ModelConfig
from llueve.config.section import Moment, Section
from llueve.config.target import TargetConfig
from llueve.config.track import TrackConfig
from llueve.config.train import PhaseConfig, TrainConfig, frozen_layers
from llueve.config.whole import Config
from llueve.config.windows import SplitConfig, WindowsConfig

__all__ = [
    "AuditConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "FeaturesConfig",
    "GuardConfig",
    "ModelConfig",
    "Moment",
    "PhaseConfig",
    "RegionConfig",
    "Rolling",
    "Section",
    "SplitConfig",
    "Statistic",
    "TargetConfig",
    "TrackConfig",
    "TrainConfig",
    "VerifyConfig",
    "WindowsConfig",
    "frozen_layers",
    "load_config",
    "parse_config",
]
