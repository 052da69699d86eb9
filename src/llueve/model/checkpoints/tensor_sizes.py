"""Architecture and sizes of the encoder in a checkpoint, from the shapes of its tensors and from a `config.json` beside it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from llueve.config.model_keys import LARGEST_SIZE, MOST_HEADS, MOST_LAYERS
from llueve.errors import CheckpointError, listed
from llueve.model.build import EncoderSizes
from llueve.model.checkpoints.weight_files import short_message

LAYER = "blocks.attn_layers"
VARIABLE_BIAS = "attention.inner_attention.attn_bias.emb.weight"
WEATHER_TENSOR = "variable_CD"
"""A tensor that only the weather encoder has."""
LARGEST_CONFIG = 1024 * 1024
"""Bytes of a `config.json`."""


class TimerJson(BaseModel):
    """The entries of a Hugging Face `config.json` that are read."""

    model_config = ConfigDict(extra="ignore", strict=True)

    num_attention_heads: int = Field(ge=1, le=MOST_HEADS)
    rope_theta: Literal[10000] = 10000
    hidden_act: Literal["silu"] = "silu"
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    input_token_len: int | None = None


def sizes_of(file: Path, named: Mapping[str, Tensor]) -> EncoderSizes:
    """Return the sizes of the encoder that these tensors, under the encoder's names, belong to.

    Raises:
        CheckpointError: the tensors belong to neither architecture, or a size is missing.
    """
    if any(name.startswith(("model.layers.", "model.embed_layer.")) for name in named):
        return _timer_sizes(file, named)
    layers = _layers(file, named, LAYER)
    if layers == 0:
        raise CheckpointError(
            f"{file}: holds neither Timer-XL ({LAYER}.…) nor Timer (model.layers.…); its tensors are "
            f"{listed(sorted(named)) or 'none'}"
        )
    # OpenLTM saves only the tensors that were trained, so any layer may be the first in the file.
    bias, inner = ([f"{LAYER}.{n}.{part}" for n in range(layers)] for part in (VARIABLE_BIAS, "conv1.weight"))
    return EncoderSizes(
        architecture="weather_xl" if WEATHER_TENSOR in named else "timer_xl",
        patch_length=_size(file, named, 1, "embedding.weight", "head.bias"),
        width=_size(file, named, 0, "embedding.weight", "embedding.bias", "blocks.norm.weight"),
        layers=layers,
        heads=_size(file, named, 1, *bias),
        feed_forward=_size(file, named, 0, *inner),
    )


def _timer_sizes(file: Path, named: Mapping[str, Tensor]) -> EncoderSizes:
    path = file.parent / "config.json"
    config = _read_timer_json(file, path)
    sizes = EncoderSizes(
        architecture="timer",
        patch_length=_size(file, named, 1, "model.embed_layer.emb.weight"),
        width=_size(file, named, 0, "model.embed_layer.emb.weight", "model.norm.weight"),
        layers=_layers(file, named, "model.layers"),
        heads=config.num_attention_heads,
        feed_forward=_size(
            file, named, 0, *(f"model.layers.0.ffn_layer.{part}_proj.weight" for part in ("gate", "up"))
        ),
    )
    stated = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.input_token_len)
    held = (sizes.width, sizes.feed_forward, sizes.layers, sizes.patch_length)
    if any(a is not None and a != b for a, b in zip(stated, held, strict=True)):
        raise CheckpointError(
            f"{path}: gives width, feed-forward, layers, patch {stated}, but the tensors of {file.name} have {held}; the two "
            "files do not belong together"
        )
    return sizes


def _read_timer_json(file: Path, path: Path) -> TimerJson:
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > LARGEST_CONFIG):
            raise ValueError(f"expected a regular file of at most {LARGEST_CONFIG:,} bytes")
        return TimerJson.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file}: a Hugging Face Timer needs its config.json beside it (no tensor holds the number of heads); copy it "
            f"to {path}"
        ) from error
    except ValidationError as error:
        keys = listed([".".join(map(str, each["loc"])) or "the whole file" for each in error.errors()])
        raise CheckpointError(f"{path}: is not the configuration of a Timer (missing or wrong: {keys})") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not the configuration of a Timer ({short_message(error)})") from error


def _layers(file: Path, named: Mapping[str, Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d{1,4})\.")
    count = max((int(match[1]) for name in named if (match := pattern.match(name))), default=-1) + 1
    if count > MOST_LAYERS:
        raise CheckpointError(f"{file}: names layer {count - 1}; expected at most {MOST_LAYERS} layers")
    return count


def _size(file: Path, named: Mapping[str, Tensor], dimension: int, *candidates: str) -> int:
    """One dimension of the first candidate that the file holds."""
    for name in candidates:
        if name in named:
            shape = named[name].shape
            at = min(dimension, len(shape) - 1)
            if at < 0 or not 1 <= shape[at] <= LARGEST_SIZE:
                raise CheckpointError(f"{file}: {name} has the shape {list(shape)}, from which no size can be read")
            return int(shape[at])
    raise CheckpointError(f"{file}: has none of {listed(candidates, 3)}, so a size of the encoder is unknown")
