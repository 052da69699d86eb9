"""Faults that llueve must refuse before a training or a forecast: a damaged checkpoint, files of two runs, absurd rates.

Each function returns the answers of one row of the table.
"""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.faults.fault import NAN
from benchmarks.faults.scene import Random, put
from benchmarks.faults.trial import PHASES, Shape, Trial
from llueve.errors import LlueveError
from llueve.model.checkpoints.convert import encode_checkpoint
from llueve.model.checkpoints.pretrained import load_pretrained
from llueve.runs.directory import CONFIG, MODEL, WEIGHTS, Run
from llueve.runs.model_files import load_model, require_own_configuration, save_model

Answers = dict[str, Any]


def damaged_checkpoint(shape: Shape, seed: int, random: Random) -> Answers:
    """Put a NaN into one tensor of a checkpoint; loading must fail, and name the tensor and the index."""
    encoder = Trial(shape, seed, "float32").model.encoder
    names = [name for name, each in encoder.named_parameters() if each.ndim > 1]
    name = names[int(random.integers(len(names)))]
    layout = "openltm" if shape.architecture == "timer_xl" else "huggingface"
    message = ""
    with tempfile.TemporaryDirectory() as folder:
        for file, content in encode_checkpoint(encoder, layout).items():
            (Path(folder) / file).write_bytes(content)
        index = put(encoder.get_parameter(name), NAN, random)
        if layout == "openltm":
            torch.save(encoder.state_dict(), Path(folder) / "checkpoint.pth")
        else:
            save_file(encoder.state_dict(), Path(folder) / "model.safetensors", metadata={"format": "pt"})
        try:
            load_pretrained(folder)
        except LlueveError as error:
            message = str(error)
    located = name in message and str(list(index)) in message
    return {"detected": bool(message), "located": located, "recovered": bool(message), "error": None}


def wrong_pair(name: str, shape: Shape, seed: int, _random: Random) -> Answers:
    """Replace one file of a run by that of another run of the same sizes; reading it must fail, and name the file."""
    message = ""
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for number in range(2):
            trial, run = Trial(shape, seed + 100 * number, "float32"), Run(Path(folder) / str(number))
            run.create(trial.config, overwrite=False)
            save_model(run, trial.saved)
            runs.append(run)
            load_model(run)
        shutil.copy(runs[1].directory / name, runs[0].directory / name)
        try:
            run, config = Run.open(runs[0].directory)
            require_own_configuration(run, config, load_model(run))
        except LlueveError as error:
            message = str(error)
    return {"detected": bool(message), "located": name in message, "recovered": bool(message), "error": None}


def absurd_phase(key: str, shape: Shape, seed: int, _random: Random) -> Answers:
    """Configure a rate for the second phase that is 10,000 times that of the first; no step may be run."""
    low, high = 1e-5, 0.1
    usual = {"encoder_learning_rate": low, "head_learning_rate": low}
    phases = [{**PHASES[0], **usual}, {**PHASES[1], **usual, key: high}]
    trial = Trial(shape, seed, "float32", phases=phases)
    refusal = trial.run().refusal
    detected = refusal is not None and trial.attempts == 0
    return {"detected": detected, "located": f"all: {key}" in (refusal or ""), "recovered": detected, "error": None}


REFUSALS: dict[str, Callable[[Shape, int, Random], Answers]] = {
    "checkpoint: NaN in a published file": damaged_checkpoint,
    "files: weights of another run": partial(wrong_pair, WEIGHTS),
    "files: model.json of another run": partial(wrong_pair, MODEL),
    "files: config.toml of another run": partial(wrong_pair, CONFIG),
    "rate: × 1e4, configured for the encoder at unfreezing": partial(absurd_phase, "encoder_learning_rate"),
    "rate: × 1e4, configured for the head at unfreezing": partial(absurd_phase, "head_learning_rate"),
}
