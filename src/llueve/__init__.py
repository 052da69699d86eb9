"""llueve: Timer-XL as a rain / no-rain classifier, with verified probabilities and never a silent NaN.

All parts are imported when first used, so that `llueve --help` answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llueve.errors import LlueveError

if TYPE_CHECKING:
    from llueve.config import Config, load_config
    from llueve.pipeline import Result, evaluate, predict, train

__version__ = "0.1.0"
__all__ = ["Config", "LlueveError", "Result", "evaluate", "load_config", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name in ("Config", "load_config"):
        return getattr(import_module("llueve.config"), name)
    if name in ("Result", "evaluate", "predict", "train"):
        return getattr(import_module("llueve.pipeline"), name)
    raise AttributeError(f"module 'llueve' has no attribute {name!r}")
