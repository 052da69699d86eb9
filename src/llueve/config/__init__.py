"""One validated, frozen configuration: TOML in, TOML out.

An unknown key or an impossible value is refused, with the key, the value, what was expected and the nearest valid name.
Lengths in time have their unit in the name; `context`, `stride` and `lags` count steps of the panel.
"""

from llueve.config.data_keys import DataConfig, FeaturesConfig, RegionConfig, Rolling, Statistic
from llueve.config.forecast_keys import CalibrationConfig, CalibrationMethod, DecisionConfig, DecisionRule
from llueve.config.model_keys import ModelConfig
from llueve.config.pretrain_keys import PretrainConfig
from llueve.config.root import Config
from llueve.config.run_keys import AuditConfig, CheckpointConfig, GuardConfig, TrackConfig, VerifyConfig
from llueve.config.sample_keys import SplitConfig, TargetConfig, WindowsConfig
from llueve.config.section import Moment, Section
from llueve.config.toml import load_config, load_pretrain_config, override_verify, parse_config, parse_pretrain_config
from llueve.config.train_keys import PhaseConfig, TrainConfig, frozen_layers

__all__ = ["AuditConfig", "CheckpointConfig", "Config", "DataConfig", "FeaturesConfig", "GuardConfig", "ModelConfig"]
__all__ += ["Moment", "PhaseConfig", "RegionConfig", "Rolling", "Section", "SplitConfig", "Statistic", "TargetConfig"]
__all__ += ["TrackConfig", "TrainConfig", "VerifyConfig", "WindowsConfig"]
__all__ += ["CalibrationConfig", "CalibrationMethod", "DecisionConfig", "DecisionRule"]
__all__ += ["PretrainConfig", "frozen_layers", "load_config", "load_pretrain_config", "override_verify", "parse_config"]
__all__ += ["parse_pretrain_config"]
