"""Write an encoder in a published format."""

import io
import json
from typing import Any

import torch
from safetensors.torch import save

from llueve.errors import CheckpointError, UsageError, listed
from llueve.model.checkpoints.pretrained import Format
from llueve.model.patches import PatchEncoder
from llueve.model.timer import Timer
from llueve.model.timer_xl import TimerXL
from llueve.model.weather_xl import WeatherXL

TIMER_XL_PARTS = ("embedding.", "blocks.", "head.")
"""Beginnings of the names of the tensors that every Timer-XL has."""


def encode_checkpoint(encoder: PatchEncoder, to: Format) -> dict[str, bytes]:
    """Return the files of an encoder in a published format: file name → content.

    `openltm` and `huggingface` exist for one architecture each, `safetensors` for both.

    Raises:
        UsageError: the architecture has no such format, or the format cannot hold the encoder's positions.
        CheckpointError: a weight is not finite.
    """
    timer = isinstance(encoder, Timer)
    state = {name: tensor.detach().contiguous() for name, tensor in encoder.state_dict().items()}
    if bad := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise CheckpointError(f"the encoder has numbers that are not finite in {listed(bad)}; nothing is written")
    if to == "huggingface" and not timer:
        raise UsageError(
            "Timer-XL has no Hugging Face form: that Timer has gated feed-forwards, no bias for variables and other "
            "rotations, so its weights cannot be computed from these; use openltm or safetensors"
        )
    if to == "openltm" and timer:
        raise UsageError(
            "the Hugging Face Timer has no OpenLTM form: Timer-XL has plain feed-forwards, a bias for variables and other "
            "rotations, so its weights cannot be computed from these; use huggingface or safetensors"
        )
    if to == "openltm" and isinstance(encoder, WeatherXL):
        # What remains is a plain Timer-XL.
        state = {name: tensor for name, tensor in state.items() if name.startswith(TIMER_XL_PARTS)}
    elif to == "openltm" and isinstance(encoder, TimerXL) and encoder.positions != "flattened":
        raise UsageError(
            f"the encoder was trained with positions = {encoder.positions!r}, but OpenLTM computes with flattened positions, "
            "so the file would give other forecasts there; use safetensors"
        )
    if to == "openltm":
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return {"checkpoint.pth": buffer.getvalue()}
    content = {"model.safetensors": save(state, metadata={"format": "pt"})}
    if isinstance(encoder, Timer):
        content["config.json"] = _timer_json(encoder)
    return content


def _timer_json(encoder: Timer) -> bytes:
    """`config.json` as it lies beside the weights of the published Timer."""
    first: Any = encoder.model.layers[0]
    return json.dumps(
        {
            "model_type": "timer",
            "architectures": ["TimerForPrediction"],
            "hidden_size": encoder.width,
            "intermediate_size": first.ffn_layer.gate_proj.out_features,
            "num_hidden_layers": len(encoder.model.layers),
            "num_attention_heads": encoder.heads,
            "input_token_len": encoder.patch_length,
            "output_token_lens": [encoder.patch_length],
            "hidden_act": "silu",
            "rope_theta": 10000,
            "max_position_embeddings": 10000,
            "attention_dropout": 0.0,
        },
        indent=2,
    ).encode()
