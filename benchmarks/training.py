"""Whole trainings: seconds an epoch, seconds to a given validation loss, and memory against rows and against context.

    python benchmarks/training.py [--parts epochs target rows context] [--quick] [--json FILE]

`epochs` and `target` train on the Australian table (`--config`), from an encoder that is trained from scratch on the same
table first and brought through `llueve checkpoint convert`. `epochs`: with the encoder frozen (the first one computes its
features, the later ones read them), fine-tuning, and from scratch. `target`: each recipe until its validation log-loss is at
most `--target`, or its epochs or `--seconds` are over; validation after each epoch is included, reading the table is not.

`rows` and `context` train a small model for a few steps on a generated panel of 8 daily variables, each in a process of its
own: the most memory that it had resident beyond what a tiny training takes, while windows are made of the panel and while
it trains; the panel itself is in both. `--quick` does all of it in a few minutes, on few windows, to see that it works.
"""

import argparse
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from rich.console import Console

from llueve.config import Config, GuardConfig, ModelConfig, TrainConfig, load_config, parse_config
from llueve.errors import Interrupted
from llueve.model.classifier import KNOTS
from llueve.reading import read_panel
from llueve.saved import SavedModel
from llueve.training.course import Surroundings
from llueve.training.interruption import Interruption
from llueve.training.loop import train_model
from llueve.windows import Part, Scaler, Split, Windows, build_windows, few_shot, fit_scaler, split_panel

PARTS = ("epochs", "target", "rows", "context")
EXAMPLE = Path(__file__).parents[1] / "examples" / "weather_aus.toml"
PEAK = Path("/proc/self/clear_refs")
VARIABLES, SITES = 8, 50
"""Of a generated panel, at most."""


@dataclass
class Table:
    """A table that is read, split and laid out once."""

    config: Config
    panel: xr.Dataset
    split: Split
    scaler: Scaler
    windows: Windows
    training: Part

    @classmethod
    def of(cls, config: Config, panel: xr.Dataset, fraction: float = 1.0) -> "Table":
        """A panel as the pipeline prepares it."""
        split = split_panel(panel, config)
        scaler = fit_scaler(panel, split.training_rows)
        windows = build_windows(panel, scaler, config.windows.context, config.windows.missing)
        training = few_shot(split.training, panel["time"].values, fraction, 0)
        return cls(config, panel, split, scaler, windows, training)


@dataclass
class Watch:
    """Remembers when each epoch was over, and asks for the end."""

    target: float | None = None
    seconds: float = float("inf")
    interruption: Interruption = field(default_factory=Interruption)
    begun: float = field(default_factory=time.perf_counter)
    epochs: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def record(self, line: dict[str, Any]) -> None:
        """A line of the history."""
        now = time.perf_counter() - self.begun
        if "event" in line:
            return
        self.epochs.append((now, line))
        loss = line["validation_loss"]
        reached = self.target is not None and loss is not None and loss <= self.target
        if reached or now > self.seconds:
            self.interruption.number = signal.SIGTERM


def trained(table: Table, train: TrainConfig, model: ModelConfig, watch: Watch) -> None:
    """Train as the pipeline does, without files but the features."""
    config = table.config.model_copy(update={"train": train, "model": model})
    saved = SavedModel.build(table.panel, table.split, table.scaler, config)
    saved.classifier.set_knots(table.windows.quantiles(table.split.training_rows, KNOTS))
    with tempfile.TemporaryDirectory() as folder:
        watch.begun = time.perf_counter()
        around = Surroundings(
            record=watch.record,
            keep=lambda **_: None,
            fresh=saved.fresh,
            console=Console(stderr=True),
            features=Path(folder) / "features",
            interruption=watch.interruption,
        )
        try:
            train_model(
                saved.classifier, table.windows, table.training, table.split.validation, train, GuardConfig(), around
            )
        except Interrupted:
            return


def encoder(config: Path, settings: list[str], folder: Path) -> Path:
    """An encoder that was trained from scratch, as a checkpoint that `model.pretrained` takes."""
    changes = [word for each in ("verify.bootstrap=100", *settings) for word in ("--set", each)]
    llueve = [sys.executable, "-m", "llueve"]
    subprocess.run([*llueve, "train", str(config), "--run", str(folder / "run"), *changes], check=True)
    convert = ["checkpoint", "convert", str(folder / "run"), "--to", "safetensors", "--output", str(folder / "encoder")]
    subprocess.run([*llueve, *convert], check=True)
    (file,) = (folder / "encoder").glob("*.safetensors")
    return file


def epochs(table: Table, pretrained: ModelConfig, count: int) -> dict[str, Any]:
    """Seconds of the first epoch, with all that goes before it, and of the later ones on average."""
    batch, scratch = table.config.train.batch_size, table.config.model
    cases = {
        "frozen": (
            TrainConfig.model_validate({"batch_size": batch, "phases": [{"name": "h", "freeze": "encoder"}]}),
            pretrained,
        ),
        "fine-tuning": (TrainConfig(batch_size=batch), pretrained),
        "scratch": (TrainConfig(batch_size=batch, recipe="scratch"), scratch),
    }
    found = {}
    for name, (train, model) in cases.items():
        watch = Watch()
        trained(table, train.model_copy(update={"epochs": count, "patience": count}), model, watch)
        ends = [now for now, _ in watch.epochs]
        later = float(np.diff(ends).mean()) if len(ends) > 1 else None
        found[name] = {"windows": len(table.training), "batch": batch, "first_s": ends[0], "later_s": later}
        print(f"{name}: {len(table.training):,} windows, first epoch {ends[0]:.1f} s, later {later or 0:.2f} s")
    return found


def target(table: Table, pretrained: ModelConfig, loss: float, count: int, seconds: float) -> dict[str, Any]:
    """When each recipe reached a validation log-loss."""
    own, batch = table.config.train, table.config.train.batch_size
    note = pretrained.model_copy(update={"head": "mean"})
    cases = {
        "default": (TrainConfig(recipe="default", epochs=count, batch_size=batch), pretrained),
        "conservative": (TrainConfig(recipe="conservative", epochs=count), note),
        "scratch": (own.model_copy(update={"recipe": "scratch", "epochs": count}), table.config.model),
    }
    found = {}
    for name, (train, model) in cases.items():
        watch = Watch(loss, seconds)
        trained(table, train, model, watch)
        losses = [line["validation_loss"] for _, line in watch.epochs]
        reached = next((now for now, line in watch.epochs if (line["validation_loss"] or 1e9) <= loss), None)
        found[name] = {"target": loss, "reached_s": reached, "best": min(losses), "spent_s": watch.epochs[-1][0]}
        found[name]["epochs"] = [(round(now, 2), line["phase"], line["validation_loss"]) for now, line in watch.epochs]
        when = "not reached" if reached is None else f"{reached:.1f} s"
        print(f"{name}: validation log-loss ≤ {loss}: {when}; best {min(losses):.4f} in {watch.epochs[-1][0]:.1f} s")
    return found


# Memory, each case in a process of its own


class After(Interruption):
    """Asks for the end after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left, self.times = steps, [time.perf_counter()]

    @property
    def number(self) -> int | None:  # type: ignore[override]
        """Asked for once between any two steps."""
        self.times.append(time.perf_counter())
        self.left -= 1
        return signal.SIGTERM if self.left <= 0 else None

    @number.setter
    def number(self, value: int | None) -> None:
        """Nobody asks for the end but this."""


def peak_bytes() -> int:
    """Most memory resident since the last `forget_peak`, or since the beginning where the system cannot forget."""
    if PEAK.exists():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def forget_peak() -> None:
    """Begin to measure anew."""
    if PEAK.exists():
        PEAK.write_text("5")


def generated(rows: int, context: int) -> tuple[xr.Dataset, Config]:
    """A panel with about so many rows, and a configuration for it."""
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


def child(rows: int, context: int, batch: int, steps: int) -> dict[str, Any]:
    """What one size takes."""
    torch.set_num_threads(1)
    panel, config = generated(5000, 16)
    trained(Table.of(config, panel), config.train, config.model, Watch(interruption=After(2)))  # loads what it needs
    forget_peak()
    before = peak_bytes()
    panel, config = generated(rows, context)
    forget_peak()
    start = time.perf_counter()
    table = Table.of(config, panel)
    prepared, ready, count = peak_bytes() - before, time.perf_counter(), len(table.training)
    forget_peak()
    watch = Watch(interruption=After(steps))
    trained(table, config.train.model_copy(update={"batch_size": batch}), config.model, watch)
    own = np.diff(watch.interruption.times)  # type: ignore[attr-defined]
    return {
        "rows": panel.sizes["site"] * panel.sizes["time"],
        "training_windows": count,
        "context": context,
        "batch": batch,
        "data_bytes": sum(array.nbytes for array in panel.data_vars.values()),
        "prepared_bytes": prepared,
        "trained_bytes": peak_bytes() - before,
        "prepare_s": ready - start,
        "before_second_step_s": float(own[0]),
        "step_s": float(np.median(own[1:])),
    }


def memory(sizes: list[tuple[int, int]], batch: int, steps: int) -> list[dict[str, Any]]:
    """Every size in a process of its own."""
    found = []
    for rows, context in sizes:
        given = json.dumps({"rows": rows, "context": context, "batch": batch, "steps": steps})
        done = subprocess.run(
            [sys.executable, __file__, "--child", given], check=True, stdout=subprocess.PIPE, text=True
        )
        found.append(row := json.loads(done.stdout.splitlines()[-1]))
        print(
            f"{row['rows']:,} rows × {VARIABLES} ({row['data_bytes'] / 1e6:,.1f} MB), context {context}: "
            f"{row['prepared_bytes'] / 1e6:,.0f} MB at most while windows are made in {row['prepare_s']:.1f} s, "
            f"{row['trained_bytes'] / 1e6:,.0f} MB while training ({row['trained_bytes'] / row['rows']:,.0f} bytes a row); "
            f"first step after {row['before_second_step_s']:.1f} s, then {row['step_s'] * 1e3:.1f} ms each"
        )
    return found


def arguments() -> argparse.Namespace:
    """What is asked for, with what `--quick` makes of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="few windows, to see that it works")
    parser.add_argument("--config", type=Path, default=EXAMPLE)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the training windows, for epochs and target")
    parser.add_argument("--epochs", type=int, default=3, help="of each case of `epochs`")
    parser.add_argument("--encoder-epochs", type=int, default=3, help="of the encoder that is started from")
    parser.add_argument(
        "--encoder", type=Path, help="a checkpoint of the configuration's sizes, instead of training one"
    )
    parser.add_argument("--target", type=float, default=0.335, help="validation log-loss")
    parser.add_argument("--target-epochs", type=int, default=8, help="of the last phase of each recipe")
    parser.add_argument("--seconds", type=float, default=900, help="of each recipe, at most about")
    parser.add_argument("--rows", type=float, nargs="+", default=[1e4, 1e5, 1e6, 1e7])
    parser.add_argument("--contexts", type=int, nargs="+", default=[16, 64, 256, 1440])
    parser.add_argument("--context-rows", type=float, default=1e6)
    parser.add_argument("--batch", type=int, default=16, help="of `rows` and `context`")
    parser.add_argument("--steps", type=int, default=5, help="of `rows` and `context`")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.quick:
        given.fraction, given.epochs, given.encoder_epochs, given.target_epochs = 0.02, 2, 1, 2
        given.target, given.seconds, given.rows, given.contexts, given.context_rows = 0.6, 30, [1e4, 1e5], [16, 64], 1e5
    return given


def main() -> None:
    """Measure what is asked for, print, and keep."""
    given, found = arguments(), {}
    if given.child:
        print(json.dumps(child(**json.loads(given.child))))
        return
    if {"epochs", "target"} & set(given.parts):
        with tempfile.TemporaryDirectory() as folder:
            settings = [f"train.epochs={given.encoder_epochs}", f"train.fraction={given.fraction}"]
            start = given.encoder or encoder(given.config, settings, Path(folder))
            config = load_config(given.config)
            table = Table.of(config, read_panel(config), given.fraction)
            pretrained = config.model.model_copy(update={"pretrained": str(start)})
            if "epochs" in given.parts:
                found["epochs"] = epochs(table, pretrained, given.epochs)
            if "target" in given.parts:
                found["target"] = target(table, pretrained, given.target, given.target_epochs, given.seconds)
    if "rows" in given.parts:
        found["rows"] = memory([(int(rows), 32) for rows in given.rows], given.batch, given.steps)
    if "context" in given.parts:
        sizes = [(int(given.context_rows), context) for context in given.contexts]
        found["context"] = memory(sizes, given.batch, given.steps)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
