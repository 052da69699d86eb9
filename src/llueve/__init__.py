"""llueve: Timer-XL as a rain / no-rain classifier, with verified probabilities and never a silent NaN.

All parts are imported when first used, so that `llueve --help` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llueve.errors import LlueveError
from llueve.version import __version__ as __version__

if TYPE_CHECKING:
    from llueve.config import Config, load_config
    from llueve.model.checkpoints.pretrained import load_pretrained
    from llueve.model.classifier import TimerXLForClassification
    from llueve.pipeline import Result, evaluate, predict, train
    from llueve.zero_shot import forecast

_LAZY = {
    "Config": "llueve.config",
    "Result": "llueve.pipeline",
    "TimerXLForClassification": "llueve.model.classifier",
    "evaluate": "llueve.pipeline",
    "forecast": "llueve.zero_shot",
    "load_config": "llueve.config",
    "load_pretrained": "llueve.model.checkpoints.pretrained",
    "predict": "llueve.pipeline",
    "train": "llueve.pipeline",
}
__all__ = [
    "Config",
    "LlueveError",
    "Result",
    "TimerXLForClassification",
    "evaluate",
    "forecast",
    "load_config",
    "load_pretrained",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'llueve' has no attribute {name!r}")
