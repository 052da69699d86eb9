"""Whole trainings: seconds per epoch, seconds to a given validation loss, and memory by number of rows and by context.

    python benchmarks/training.py [--parts epochs target rows context] [--tiny] [--json FILE]

`epochs` and `target` train on the Australian table (`--config`). They start from an encoder that is first trained from
scratch on the same table and passed through `llueve checkpoint convert`. `epochs`: with the encoder frozen (the first epoch
computes its features, the later ones read them), fine-tuning, and from scratch. `target`: each recipe until its validation
log-loss is at most `--target`, or until its epochs or `--seconds` are over; this includes validation after each epoch, but
not reading the table.

`rows` and `context` train a small model for a few steps on a generated panel of 8 hourly variables, each size in a process
of its own. They report the peak memory beyond that of a tiny training, first while windows are made of the panel and then
while it trains; both include the panel.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
import xarray as xr
from rich.console import Console

from llueve.config import Config, GuardConfig, ModelConfig, TrainConfig, load_config, parse_config
from llueve.errors import Interrupted
from llueve.model.heads import KNOTS
from llueve.runs.saved_model import SavedModel
from llueve.samples.read import read_panel
from llueve.samples.scale import fit_scaler
from llueve.samples.split import few_shot, split_panel
from llueve.samples.windows import build_windows
from llueve.training.environment import Environment
from llueve.training.interruption import Interruption
from llueve.training.loop import train_model
from llueve.training.trainer import Trainer

PARTS = ("epochs", "target", "rows", "context")
VARIABLES, SITES = 8, 50
"""Of a generated panel, at most."""
OPTIONS: dict[str, dict[str, Any]] = {
    "parts": {"nargs": "+", "choices": PARTS, "default": PARTS},
    "config": {"type": Path, "default": Path(__file__).parents[1] / "examples" / "weather_aus.toml"},
    "fraction": {"type": float, "default": 1.0, "help": "share of the training windows, for epochs and target"},
    "epochs": {"type": int, "default": 3, "help": "epochs of each case of `epochs`"},
    "encoder_epochs": {"type": int, "default": 3, "help": "epochs of the encoder that the other trainings start from"},
    "encoder": {"type": Path, "help": "checkpoint with the configuration's sizes, instead of training one"},
    "target": {"type": float, "default": 0.335, "help": "validation log-loss"},
    "target_epochs": {"type": int, "default": 8, "help": "epochs of the last phase of each recipe"},
    "seconds": {"type": float, "default": 900, "help": "about the longest time of each recipe"},
    "rows": {"type": float, "nargs": "+", "default": [1e4, 1e5, 1e6, 1e7]},
    "contexts": {"type": int, "nargs": "+", "default": [16, 64, 256, 1440]},
    "context_rows": {"type": float, "default": 1e6},
    "batch": {"type": int, "default": 16, "help": "windows of a step of `rows` and `context`"},
    "steps": {"type": int, "default": 5, "help": "steps of `rows` and `context`"},
}
TINY: dict[str, Any] = {"fraction": 0.02, "epochs": 2, "encoder_epochs": 1, "target_epochs": 2, "target": 0.6}
TINY |= {"seconds": 30, "rows": [1e4, 1e5], "contexts": [16, 64], "context_rows": 1e5}


class Table:
    """A table that is read, split and prepared once."""

    def __init__(self, config: Config, panel: xr.Dataset, fraction: float = 1.0) -> None:
        self.config, self.panel, self.split = config, panel, split_panel(panel, config)
        self.scaler = fit_scaler(panel, self.split.training_rows)
        self.windows = build_windows(panel, self.scaler, config.windows.context, config.windows.missing)
        self.training = few_shot(self.split.training, panel["time"].values, fraction, 0)

    def parts(self, config: TrainConfig, model: ModelConfig, **environment: Any) -> tuple[Any, ...]:
        """The arguments of a training as the pipeline builds it, with files only where the environment names some."""
        own = self.config.model_copy(update={"train": config, "model": model})
        saved = SavedModel.build(self.panel, self.split, self.scaler, own)
        saved.classifier.set_knots(self.windows.quantiles(self.split.training_rows, KNOTS))
        usual = {"record": lambda _: None, "keep_incident": lambda _: None, "console": Console(stderr=True)}
        around = Environment(new_model=saved.fresh, **{**usual, **environment})
        return saved.classifier, self.windows, self.training, self.split.validation, config, GuardConfig(), around


@dataclass
class Watch:
    """Notes the end of each epoch, and interrupts the training at a loss or after a time."""

    target: float | None = None
    seconds: float = float("inf")
    interruption: Interruption = field(default_factory=Interruption)
    start: float = field(default_factory=time.perf_counter)
    epochs: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def record(self, line: dict[str, Any]) -> None:
        """Take a line of the history."""
        if "event" in line:
            return
        now = time.perf_counter() - self.start
        self.epochs.append((now, line))
        if self.reached_s is not None or now > self.seconds:
            self.interruption.number = signal.SIGTERM

    @property
    def reached_s(self) -> float | None:
        """Seconds to the first epoch with the wanted loss."""
        losses = ((now, line["validation_loss"]) for now, line in self.epochs)
        reached = (now for now, loss in losses if loss is not None and self.target is not None and loss <= self.target)
        return next(reached, None)


def train(table: Table, config: TrainConfig, model: ModelConfig, watch: Watch) -> Watch:
    """Train as the pipeline does, without files except the features."""
    with tempfile.TemporaryDirectory() as folder, suppress(Interrupted):
        features = Path(folder) / "features"
        parts = table.parts(config, model, record=watch.record, interruption=watch.interruption, features=features)
        watch.start = time.perf_counter()
        train_model(*parts)
    return watch


def encoder(config: Path, settings: list[str], folder: Path) -> Path:
    """Checkpoint of an encoder that is trained from scratch, in the format of `model.pretrained`."""
    changes = [word for each in ("verify.bootstrap=100", *settings) for word in ("--set", each)]
    llueve = [sys.executable, "-m", "llueve"]
    subprocess.run([*llueve, "train", str(config), "--run", str(folder / "run"), *changes], check=True)
    convert = ["checkpoint", "convert", str(folder / "run"), "--to", "safetensors", "--output", str(folder / "encoder")]
    subprocess.run([*llueve, *convert], check=True)
    (file,) = (folder / "encoder").glob("*.safetensors")
    return file


def epochs(table: Table, pretrained: ModelConfig, count: int) -> dict[str, Any]:
    """Seconds of the first epoch, with the work before it, and the mean of the later ones."""
    common = {"batch_size": table.config.train.batch_size, "epochs": count, "patience": count}
    frozen = {"phases": [{"name": "h", "freeze": "encoder", "epochs": count}]}
    cases = {"frozen": (frozen, pretrained), "fine-tuning": ({}, pretrained)}
    found = {}
    for name, (more, model) in {**cases, "scratch": ({"recipe": "scratch"}, table.config.model)}.items():
        watch = train(table, TrainConfig.model_validate({**common, **more}), model, Watch())
        ends = [now for now, _ in watch.epochs]
        later = float(np.diff(ends).mean()) if len(ends) > 1 else None
        found[name] = {"windows": len(table.training), "first_s": ends[0], "later_s": later}
        print(f"{name}: {len(table.training):,} windows, first epoch {ends[0]:.1f} s, later {later or 0:.2f} s")
    return found


def target(table: Table, pretrained: ModelConfig, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds until each recipe reaches the validation log-loss."""
    own, batch, count = table.config.train, table.config.train.batch_size, given.target_epochs
    published_head = pretrained.model_copy(update={"head": "mean"})
    cases = {
        "default": (TrainConfig(recipe="default", epochs=count, batch_size=batch), pretrained),
        "conservative": (TrainConfig(recipe="conservative", epochs=count), published_head),
        "scratch": (own.model_copy(update={"recipe": "scratch", "epochs": count}), table.config.model),
    }
    found = {}
    for name, (config, model) in cases.items():
        watch = train(table, config, model, Watch(given.target, given.seconds))
        lines = [(round(now, 2), line["phase"], line["validation_loss"]) for now, line in watch.epochs]
        spent, best, reached = watch.epochs[-1][0], min(loss for *_, loss in lines), watch.reached_s
        found[name] = {"target": given.target, "reached_s": reached, "best": best, "spent_s": spent, "epochs": lines}
        when = "not reached" if reached is None else f"{reached:.1f} s"
        print(f"{name}: validation log-loss ≤ {given.target}: {when}; best {best:.4f} in {spent:.1f} s")
    return found


def generated(rows: int, context: int) -> tuple[xr.Dataset, Config]:
    """A panel with about this many rows, and a configuration for it."""
    random = np.random.default_rng(0)
    sites = min(SITES, max(1, rows // (12 * (context + 24))))  # each long enough for validation and test
    shape = (sites, rows // sites)
    features = {}
    for number in range(VARIABLES):
        values = random.standard_normal(shape, np.float32)
        values[random.random(shape, np.float32) < 0.05] = np.nan
        features[f"v{number}"] = (("site", "time"), values)
    wet = (random.random(shape, np.float32) < 0.3).astype(np.float32)
    times = np.datetime64("1900-01-01", "s") + np.arange(shape[1]) * np.timedelta64(1, "h")
    panel = xr.Dataset(
        {**features, "wet": (("site", "time"), wet, {"role": "label", "classes": ["0", "1"]})},
        coords={"site": [f"s{number}" for number in range(sites)], "time": times},
        attrs={"step_hours": 1.0, "findings": ()},
    )
    table = {
        "data": {"path": "generated"},
        "target": {"label": "wet", "horizon_hours": 24},
        "split": {"validation_fraction": 0.1, "test_fraction": 0.1},
        "windows": {"context": context},
        "model": {"patch_length": 8, "width": 16, "layers": 1, "heads": 2, "feed_forward": 32},
        "train": {"epochs": 1},
    }
    return panel, parse_config(table, "benchmark")


def steps_of(table: Table, config: Config, count: int) -> list[float]:
    """Seconds of the first steps of a training; the first one includes the work before it."""
    start, spent = time.perf_counter(), []
    trainer = Trainer(*table.parts(config.train, config.model))
    for _ in range(count):
        attempt = trainer.stepper.attempt()
        assert attempt is not None and trainer.state.guard.refuses(attempt.reading) is None
        trainer.stepper.apply(attempt)
        spent.append(time.perf_counter() - start)
        start = time.perf_counter()
    trainer.close()
    return spent


def child(rows: int, context: int, batch: int, steps: int) -> dict[str, Any]:
    """Memory and time of one size, in this process."""
    torch.set_num_threads(1)
    panel, config = generated(5000, 16)
    steps_of(Table(config, panel), config, 2)  # loads all libraries
    before = measure.forget_peak()
    panel, config = generated(rows, context)
    config = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": batch})})
    measure.forget_peak()
    start = time.perf_counter()
    table = Table(config, panel)
    prepared, ready = measure.peak_mib() - before, time.perf_counter()
    measure.forget_peak()
    first, *later = steps_of(table, config, steps)
    return {
        "rows": panel.sizes["site"] * panel.sizes["time"],
        "training_windows": len(table.training),
        "data_mib": sum(array.nbytes for array in panel.data_vars.values()) / 2**20,
        "prepared_mib": prepared,
        "trained_mib": measure.peak_mib() - before,
        "prepare_s": ready - start,
        "first_step_s": first,
        "step_s": float(np.median(later)),
    }


def memory(sizes: list[tuple[float, int]], given: argparse.Namespace) -> list[dict[str, Any]]:
    """Memory and time of every size, each in a process of its own."""
    found = []
    for rows, context in sizes:
        row = measure.in_child(rows=int(rows), context=context, batch=given.batch, steps=given.steps)
        found.append({"context": context, "batch": given.batch, **row})
        print(
            f"{row['rows']:,} rows × {VARIABLES} ({row['data_mib']:,.1f} MiB), context {context}: peak "
            f"{row['prepared_mib']:,.0f} MiB while windows are made in {row['prepare_s']:.1f} s, {row['trained_mib']:,.0f} "
            f"MiB while training ({row['trained_mib'] * 2**20 / row['rows']:,.0f} bytes a row); first step after "
            f"{row['first_step_s']:.1f} s, then {row['step_s'] * 1e3:.1f} ms each"
        )
    return found


def main() -> None:
    """Measure the parts that are asked for, print, and write."""
    given, found = measure.arguments(__doc__, 1, child, **OPTIONS), {}
    if given.tiny:
        vars(given).update(TINY)
    if {"epochs", "target"} & set(given.parts):
        with tempfile.TemporaryDirectory() as folder:
            settings = [f"train.epochs={given.encoder_epochs}", f"train.fraction={given.fraction}"]
            start = given.encoder or encoder(given.config, settings, Path(folder))
            config = load_config(given.config)
            table = Table(config, read_panel(config), given.fraction)
            pretrained = config.model.model_copy(update={"pretrained": str(start)})
            if "epochs" in given.parts:
                found["epochs"] = epochs(table, pretrained, given.epochs)
            if "target" in given.parts:
                found["target"] = target(table, pretrained, given)
    if "rows" in given.parts:
        found["rows"] = memory([(rows, 32) for rows in given.rows], given)
    if "context" in given.parts:
        found["context"] = memory([(given.context_rows, context) for context in given.contexts], given)
    measure.keep(given, **found)


if __name__ == "__main__":
    main()
