"""Build a fresh encoder and a classifier from sizes, or from the `[model]` section of the configuration."""

from dataclasses import dataclass
from typing import Literal

from llueve.config import ModelConfig
from llueve.model.classifier import TimerXLForClassification
from llueve.model.patches import PatchEncoder
from llueve.model.sites import SiteAttention
from llueve.model.timer import Timer
from llueve.model.timer_xl import Positions, TimerXL


@dataclass(frozen=True)
class EncoderSizes:
    """Architecture and sizes of an encoder, under the names of the `[model]` section."""

    architecture: Literal["timer_xl", "timer"]
    patch_length: int
    width: int
    layers: int
    heads: int
    feed_forward: int

    def build(self, dropout: float = 0.1, positions: Positions = "flattened") -> PatchEncoder:
        """Return a fresh encoder of these sizes; Timer has no `positions`."""
        sizes = (self.patch_length, self.width, self.layers, self.heads, self.feed_forward, dropout)
        return Timer(*sizes) if self.architecture == "timer" else TimerXL(*sizes, positions)


def build_encoder(model: ModelConfig) -> PatchEncoder:
    """Return a fresh encoder of the configured architecture and sizes."""
    sizes = EncoderSizes(
        model.architecture, model.patch_length, model.width, model.layers, model.heads, model.feed_forward
    )
    return sizes.build(model.dropout, model.positions)


def build_classifier(
    encoder: PatchEncoder, model: ModelConfig, variables: int, facts: int, classes: int, sites: int | None = None
) -> TimerXLForClassification:
    """Return the encoder with a fresh head of the configured kind, for C variables, F facts and K classes.

    Args:
        sites: number of sites with a learned vector, which see each other; None if each site is alone.
    """
    attention = None
    if sites is not None:
        attention = SiteAttention(model.site_width, model.site_layers, model.site_heads, sites, model.dropout)
    return TimerXLForClassification(
        encoder,
        classes,
        model.head,
        num_variables=variables,
        num_facts=facts,
        dropout=model.dropout,
        instance_norm=model.instance_norm,
        sites=attention,
    )
