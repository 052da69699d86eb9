"""Keys of the encoder and its head: `[model]`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from llueve.config.section import Section
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES

MOST_LAYERS = 256
DAY_HOURS = 24
"""Length of a patch of the weather encoder, whose values are hourly."""
MOST_HEADS = 4096
WEIGHT_WORDS = ("auto", "none", "embedded")
"""Words of `pretrained`; everything else is a place."""
SIZES = ("patch_length", "width", "layers", "heads", "feed_forward")
"""Keys with the sizes of an encoder."""
LARGEST_SIZE = 2**20
"""Largest width of anything in an encoder."""
LARGEST_MODEL = 2 * 10**9
"""Most weights of an encoder: 8 GB. The largest published one has 84 million."""


class ModelConfig(Section):
    """The Timer-XL encoder and its classification head (`[model]`)."""

    head: Literal["variables", "mean"] = "variables"
    """Classification head. `variables` pools each variable separately and adds its level and spread; `mean` is the head
    of the troubleshooting note, the mean over all tokens."""
    pretrained: str = Field("auto", min_length=1)
    """Weights to start from. `embedded`: the weather encoder of the package. A file, a folder, or
    `hf://ORGANISATION/NAME@REVISION` for a repository of the Hugging Face hub, where `@REVISION` may be left out. `none`: a
    fresh encoder. `auto`: `embedded` for steps of 1 to 6 hours, if at least three quantities are known and no key below
    asks for other sizes; otherwise `none`."""
    allow_missing: tuple[str, ...] = ()
    """Names of tensors that may be absent from the checkpoint or unused in it; `*` matches any text."""
    architecture: Literal["timer_xl", "timer", "weather_xl"] = "timer_xl"
    """Encoder. `timer_xl` attends across all variables, `timer` within each. `weather_xl` is a Timer-XL that knows the
    quantity of each variable, place and time. A checkpoint decides it and the sizes below."""
    patch_length: int = Field(96, ge=1, le=LARGEST_SIZE)
    """Steps in one token (patch)."""
    width: int = Field(64, ge=2, le=LARGEST_SIZE)
    """Numbers in one token inside the encoder; a multiple of `heads`, and `width / heads` a multiple of 4."""
    layers: int = Field(2, ge=1, le=MOST_LAYERS)
    """Number of transformer layers."""
    heads: int = Field(4, ge=1, le=MOST_HEADS)
    """Number of attention heads in each layer."""
    feed_forward: int = Field(128, ge=1, le=LARGEST_SIZE)
    """Width of the feed-forward network in each layer."""
    dropout: float = Field(0.15, ge=0, lt=1)
    """Share of activations that training sets to zero at random. It is 0 in forecasts."""
    positions: Literal["flattened", "time"] = "flattened"
    """Index of a token's rotary position in `timer_xl`. `flattened`, as in the public code, runs over variable and patch;
    `time` runs over the patch alone."""
    instance_norm: bool = True
    """Normalise each variable of each window by its own mean and spread, as the published checkpoints expect."""

    quantities: tuple[str, ...] = ()
    """Quantities that the encoder `weather_xl` sees, as CF standard names. Empty: all that the training period has."""
    sites: Literal["auto", "together", "alone"] = "auto"
    """Sites that the model sees in one forecast. `together`: all sites of the issue time, which attend to each other; it needs
    their positions and the head `variables`. `alone`: one site. `auto`: `together` for more than two sites with positions."""
    site_layers: int = Field(3, ge=1, le=MOST_LAYERS)
    """Layers of the attention across sites."""
    site_width: int = Field(96, ge=2, le=LARGEST_SIZE)
    """Numbers in the vector of a site inside these layers; a multiple of `site_heads`."""
    site_heads: int = Field(4, ge=1, le=MOST_HEADS)
    """Attention heads of these layers."""
    sites_per_scene: int = Field(256, ge=2, le=LARGEST_SIZE)
    """Most sites that see each other. Training draws this number of a larger network at random; a forecast sees the nearest
    ones. Time and memory of a step grow with its square."""

    @property
    def asks_for_sizes(self) -> bool:
        """True if a key asks for another encoder than the default."""
        own = ("head", "architecture", "positions", "instance_norm", *SIZES)
        return any(getattr(self, key) != type(self).model_fields[key].default for key in own)

    @property
    def is_fresh(self) -> bool:
        """True if these keys alone decide that the encoder starts without weights."""
        return self.pretrained == "none" or (self.pretrained == "auto" and self.asks_for_sizes)

    @property
    def names_weights(self) -> bool:
        """True if `pretrained` names weights: `embedded` or a place."""
        return self.pretrained not in ("auto", "none")

    @property
    def pretrained_path(self) -> str | None:
        """The checkpoint to start from, if it is not one of the words of `pretrained`."""
        return None if self.pretrained in WEIGHT_WORDS else self.pretrained

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if (size := self.width // self.heads) % 4:
            raise ValueError(f"width / heads is {size}; half of it is rotated in pairs, so it must be a multiple of 4")
        if self.site_width % self.site_heads:
            raise ValueError(f"site_width {self.site_width} is not a multiple of site_heads {self.site_heads}")
        if self.head == "mean" and self.sites == "together":
            raise ValueError('sites = "together" needs head = "variables": the head "mean" sees no level of a site')
        if wrong := sorted({*self.quantities} - {*ENCODER_QUANTITIES}):
            raise ValueError(
                f"quantities names {wrong[0]!r}; the weather encoder knows {', '.join(ENCODER_QUANTITIES)}"
            )
        if len({*self.quantities}) < len(self.quantities):
            raise ValueError("quantities names one twice")
        if self.architecture == "weather_xl" and (self.head != "variables" or self.patch_length != DAY_HOURS):
            needs = f'head = "variables" and patch_length = {DAY_HOURS}, a day of hours'
            raise ValueError(f'architecture = "weather_xl" needs {needs}')
        in_layer = self.width * (4 * self.width + 2 * self.feed_forward)
        if (count := self.layers * in_layer + 2 * self.width * self.patch_length) > LARGEST_MODEL:
            raise ValueError(f"these sizes make an encoder of {count:,} weights, expected at most {LARGEST_MODEL:,}")
        return self
