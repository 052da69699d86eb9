"""Build a fresh encoder and a classifier from sizes, or from the `[model]` section of the configuration."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from llueve.config import ModelConfig
from llueve.errors import ConfigError
from llueve.model.classifier import TimerXLForClassification
from llueve.model.heads import MeanHead, VariablesHead
from llueve.model.patches import PatchEncoder
from llueve.model.sites import SiteAttention
from llueve.model.timer import Timer
from llueve.model.timer_xl import Positions, TimerXL
from llueve.model.weather_xl import WeatherXL
from llueve.panel import whole_steps
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES

RECENT_HOURS = (6, 24, 72)
"""Hours up to the issue time whose means are levels: of rain, they are its sums."""


@dataclass(frozen=True)
class EncoderSizes:
    """Architecture and sizes of an encoder, under the names of the `[model]` section."""

    architecture: Literal["timer_xl", "timer", "weather_xl"]
    patch_length: int
    width: int
    layers: int
    heads: int
    feed_forward: int

    def build(self, dropout: float = 0.1, positions: Positions = "flattened") -> PatchEncoder:
        """Return a fresh encoder of these sizes; only Timer-XL itself has a choice of `positions`."""
        sizes = (self.patch_length, self.width, self.layers, self.heads, self.feed_forward, dropout)
        if self.architecture == "weather_xl":
            return WeatherXL(len(ENCODER_QUANTITIES), *sizes)
        return Timer(*sizes) if self.architecture == "timer" else TimerXL(*sizes, positions)


def with_sizes(model: ModelConfig, sizes: EncoderSizes) -> ModelConfig:
    """The `[model]` section with architecture and sizes of a checkpoint.

    Raises:
        ConfigError: the section asks for others.
    """
    for name, size in vars(sizes).items():
        asked = getattr(model, name)
        if name in model.model_fields_set and asked not in (size, ModelConfig.model_fields[name].default):
            raise ConfigError(
                f"model.{name} = {asked}: the checkpoint {model.pretrained} has {size}; leave the key out"
            )
    changes: dict[str, Any] = {
        **vars(sizes),
        "pretrained": "embedded" if model.pretrained == "auto" else model.pretrained,
    }
    if sizes.architecture == "weather_xl":
        changes = changes | {"positions": "time", "instance_norm": False}
    return model.model_copy(update=changes)


class _Uninitialised(TorchFunctionMode):
    """Inside, the functions of `torch.nn.init` do nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else given["tensor"]
        return func(*args, **given)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, a new module has names and shapes, but no numbers: it costs neither memory nor time."""
    # To fill a tensor without numbers, torch would first load its compiler, which takes seconds.
    with torch.device("meta"), _Uninitialised():
        yield


def build_encoder(model: ModelConfig) -> PatchEncoder:
    """Return a fresh encoder of the configured architecture and sizes."""
    sizes = EncoderSizes(
        model.architecture, model.patch_length, model.width, model.layers, model.heads, model.feed_forward
    )
    return sizes.build(model.dropout, model.positions)


@dataclass(frozen=True)
class HeadSizes:
    """The variables, facts, classes and sites that a head is made for."""

    variables: int
    """All variables of a window, those of a weather encoder included."""
    facts: int
    classes: int
    recent_steps: tuple[int, ...] = ()
    """Numbers of steps up to the issue time whose means are levels, too."""
    sites: int | None = None
    """Number of sites with a learned vector, which see each other; None if each site is alone."""
    step_hours: float = 1.0
    """Hours of a step, which a weather encoder needs."""


def recent_steps(step_hours: float, context: int) -> tuple[int, ...]:
    """Return the numbers of steps in `RECENT_HOURS` that are whole, more than one, and shorter than the context."""
    steps = {whole_steps(hours, step_hours) for hours in RECENT_HOURS}
    return tuple(sorted(each for each in steps if each is not None and 1 < each < context))


def build_classifier(encoder: PatchEncoder, model: ModelConfig, sizes: HeadSizes) -> TimerXLForClassification:
    """Return the encoder with a fresh head of the configured kind."""
    head: MeanHead | VariablesHead
    if model.head == "mean":
        head = MeanHead(encoder.patch_length, sizes.classes)
    else:
        attention = None
        if sizes.sites is not None:
            attention = SiteAttention(model.site_width, model.site_layers, model.site_heads, sizes.sites, model.dropout)
        of_encoder, summary = 0, 0
        if isinstance(encoder, WeatherXL):
            of_encoder, summary = encoder.variables, encoder.newest_size
            if model.quantities:
                encoder.seen = tuple(ENCODER_QUANTITIES.index(name) for name in model.quantities)
        head = VariablesHead(
            encoder.width,
            sizes.variables - of_encoder,
            sizes.facts,
            sizes.classes,
            model.dropout,
            sizes.recent_steps,
            attention,
            summary,
        )
    step_hours = round(sizes.step_hours) if isinstance(encoder, WeatherXL) else 1
    return TimerXLForClassification(
        encoder, sizes.classes, head, instance_norm=model.instance_norm, step_hours=step_hours
    )
