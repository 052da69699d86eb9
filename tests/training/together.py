"""Run by torchrun in `test_processes.py`: small trainings by all processes together, each with something planted in one.

    torchrun … together.py CONFIG.toml FOLDER

Each process writes what it has seen to `FOLDER/<rank>.json`: by scenario the places of its steps, lines of the history,
refused steps that it kept, its last weights as a hash, and the error that ended it.
"""

import hashlib
import json
import math
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from rich.console import Console

from llueve.config import load_config
from llueve.distributed.processes import join_processes
from llueve.errors import LlueveError
from llueve.runs.saved_model import SavedModel
from llueve.samples.read import read_panel
from llueve.samples.scale import fit_scaler
from llueve.samples.split import split_panel
from llueve.samples.windows import build_windows
from llueve.training import stepper
from llueve.training.environment import Environment
from llueve.training.loop import train_model
from llueve.training.stepper import Stepper

RANK = int(os.environ["RANK"])
NAN = float("nan")


def put(tensor, index, value):
    with torch.no_grad():
        tensor.view(-1)[index] = value


def first_layer(here):
    return here.state.model.encoder.blocks.attn_layers[0].conv1.weight


DAMAGES = {
    "a weight": lambda here: put(first_layer(here), 5, NAN),
    "a weight, in silence": lambda here: put(first_layer(here), 5, 0.5),
    "an unused weight": lambda here: put(here.state.model.encoder.head.weight, 5, 1e30),
    "a first moment": lambda here: put(here.state.optimiser.first_moment, 11, NAN),
    "a second moment, in silence": lambda here: put(here.state.optimiser.second_moment, 11, 1e-9),
    "the average": lambda here: put(here.state.average.block, 9, NAN),
    "the random state": lambda here: torch.rand(3),
}
SCENARIOS = {
    "clean": {},
    "wrong loss": {"loss": NAN, "rank": 1},
    "wrong loss, to stop": {"loss": NAN, "rank": 1, "policy": "stop"},
    "wrong loss, to skip": {"loss": NAN, "rank": 1, "policy": "skip"},
    "a bad window": {"window": True},
    "a signal": {"rank": 1, "damage": lambda here: here._environment.interruption._remember(signal.SIGTERM, None)},
    "class weights": {"train": {"class_weights": (1.0, 3.0), "batch_size": 1, "accumulate": 5, "epochs": 1}},
    **{f"{what}, process 1": {"damage": damage, "rank": 1} for what, damage in DAMAGES.items()},
    "a weight, process 0": {"damage": DAMAGES["a weight"], "rank": 0},
    "a weight, in silence, process 0": {"damage": DAMAGES["a weight, in silence"], "rank": 0},
    "damage, to stop": {"damage": DAMAGES["a weight"], "rank": 1, "policy": "stop"},
}


def run(config, panel, processes, about):
    """One training; what this process has seen of it."""
    train = config.train.model_copy(update=about.get("train", {}))
    guard = config.guard.model_copy(update={"policy": about.get("policy", "repair"), "max_skipped": 0.2})
    split = split_panel(panel, config)
    training, validation = split.training[:64], split.validation[:50]
    scaler = fit_scaler(panel, split.training_rows)
    saved = SavedModel.build(panel, split, scaler, config)
    windows = build_windows(panel, scaler, config.windows.context, config.windows.missing)
    if "window" in about:
        windows.values_STC[training.site[50], training.end[50], 0] = NAN
    seen = SimpleNamespace(places=[], lines=[], kept=0)
    attempt, gradients = Stepper.attempt, stepper.loss_and_gradients

    def planted_attempt(self, *arguments):
        if processes.count == processes.started:  # not what process 0 tries alone
            seen.places.append((self.state.place.epoch, self.state.place.position))
            if len(seen.places) == 7 and about.get("rank") == RANK:
                about.get("damage", lambda here: None)(self)
        return attempt(self, *arguments)

    def planted_gradients(*arguments):
        loss = gradients(*arguments)
        hit = len(seen.places) == 7 and about.get("rank") == RANK and "loss" in about
        return loss * about.pop("loss") if hit else loss

    def keep(_):
        seen.kept += 1

    error = None
    with (
        mock.patch.object(Stepper, "attempt", planted_attempt),
        mock.patch.object(stepper, "loss_and_gradients", planted_gradients),
    ):
        try:
            train_model(
                saved.classifier,
                windows,
                training,
                validation,
                train,
                guard,
                Environment(seen.lines.append, keep, saved.fresh, Console(quiet=True), processes=processes),
            )
        except LlueveError as end:
            error = [type(end).__name__, str(end)]
    digest = hashlib.sha256()
    for each in saved.classifier.state_dict().values():
        digest.update(each.contiguous().view(torch.uint8).numpy().data)
    for line in seen.lines:
        line.pop("seconds", None)
    return {**vars(seen), "weights": digest.hexdigest(), "error": error}


def main():
    torch.set_num_threads(1)
    config = load_config(sys.argv[1])
    panel = read_panel(config)
    with join_processes(timedelta(seconds=60)) as processes:
        found = {name: run(config, panel, processes, dict(about)) for name, about in SCENARIOS.items()}
        found["alone"] = processes.on_first(lambda: {"first": processes.rank, "nan": math.nan})
    Path(sys.argv[2], f"{RANK}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
