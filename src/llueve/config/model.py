"""The encoder and its head: `[model]`."""

from typing import Literal, Self

from pydantic import Field, model_validator

from llueve.config.section import Section


class ModelConfig(Section):
    """The Timer-XL encoder and its classification head (`[model]`)."""

    head: Literal["variables", "mean"] = "variables"
    """`variables` pools each variable apart and keeps its level and spread; `mean` is the troubleshooting note's head."""
    pretrained: str = "none"
    """`none` for a fresh encoder, or a checkpoint: a file, a folder, or the name of a Hugging Face repository."""
    allow_missing: tuple[str, ...] = ()
    """Tensors of the checkpoint that may be absent or left over; `*` matches any text."""
    architecture: Literal["timer_xl", "timer"] = "timer_xl"
    """`timer_xl` sees all variables together, `timer` each alone. A checkpoint decides it, and the sizes below."""
    patch_length: int = Field(96, ge=1)
    """Steps in one token."""
    width: int = Field(64, ge=2)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    feed_forward: int = Field(128, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    positions: Literal["flattened", "time"] = "flattened"
    """Rotary index: `flattened` runs over variable × patch as the public code does, `time` over the patch alone."""
    instance_norm: bool = True
    """Normalise each variable of each window by its own mean and spread, as the public checkpoints were trained."""

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if (self.width // self.heads) % 4:
            raise ValueError(
                f"width / heads is {self.width // self.heads}; half of it is rotated in pairs, so it must be a multiple of 4"
            )
        return self
