"""How often the guard cries wolf: many small, healthy trainings, all unlike, in which nothing should be refused.

    OMP_NUM_THREADS=1 python benchmarks/false_alarms.py [--steps 100000] [--seed 0] [--json FILE]

Each training draws its own data (windows, variables, missing cells, heavy tails, classes and their shares, how much of the
label can be known), model (width, depth, heads, both encoders, both classification heads, dropout), and way of training
(batch size, accumulation, rates from usual to high, schedule, precision, losses, phases, moving average, feature cache). The
policy is `skip`, so that a refused step costs nothing but is counted. Refusals, stops, repairs and warnings are counted by
kind, with the settings of the trainings that they happened in. Any of the first three makes the exit code 1; a warning
that forecasts are all alike is true of some of these trainings, and is counted apart.
"""

import argparse
import io
import json
import logging
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from llueve.config import GuardConfig, ModelConfig, TrainConfig
from llueve.errors import GuardStop, UsageError
from llueve.model.classifier import KNOTS
from llueve.saved import build_classifier, build_encoder
from llueve.training.course import Surroundings
from llueve.training.loop import train_model
from llueve.windows import Part, Windows

SITES, FACTS = 2, 2
VALIDATION = 64
PHASES: tuple[dict[str, Any], ...] = (
    {},
    {},
    {"recipe": "default"},
    {"phases": [{"name": "head", "freeze": "encoder", "epochs": 2}, {"name": "all", "freeze": ["layers:1", "norms"]}]},
)


class Warned(logging.Handler):
    """Counts what the package warns of, by what is the same in each message."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Count one."""
        self.seen["collapse" if "validation:" in record.msg else str(record.msg)] += 1


def data(random: np.random.Generator) -> tuple[Windows, Part, Part, int, dict[str, Any]]:
    """Windows of made-up weather, the training and the validation part, the number of classes, and how they were drawn."""
    drawn = {
        "patch": int(random.choice([2, 4, 8])),
        "patches": int(random.integers(1, 5)),
        "variables": int(random.integers(1, 7)),
        "windows": int(random.choice([100, 300, 1000])),
        "missing": float(random.choice([0, 0.1, 0.5])),
        "tail": float(random.choice([1.5, 3, 30])),
        "classes": int(random.choice([2, 2, 3, 6])),
        "rare": float(random.choice([0.02, 0.1, 0.5])),
        "noise": float(random.choice([0, 0.3, 3])),
    }
    context, variables = drawn["patch"] * drawn["patches"], drawn["variables"]
    times = context - 1 + -(-(drawn["windows"] + VALIDATION) // SITES)
    values_STC = random.standard_t(drawn["tail"], (SITES, times, variables))
    values_STC = (values_STC / values_STC.std((0, 1))).astype(np.float32)
    observed_STC = random.random(values_STC.shape) >= drawn["missing"]
    known_ST = values_STC[..., 0].clip(-3, 3) + drawn["noise"] * random.standard_normal((SITES, times))
    # Class 0 has what the others leave, each of them `rare` or its even share.
    share = min(drawn["rare"], 1 / drawn["classes"])
    cuts = np.quantile(known_ST, 1 - share * np.arange(drawn["classes"] - 1, 0, -1))
    class_ST = np.searchsorted(cuts, known_ST)
    site, end = np.nonzero(np.ones((SITES, times - context + 1), bool))
    end = end + context - 1
    order = random.permutation(len(site))
    facts_TF = random.standard_normal((times, FACTS)).astype(np.float32)
    windows = Windows(
        np.where(observed_STC, values_STC, 0), observed_STC, facts_TF, np.zeros((SITES, 0), np.float32), context
    )

    def part(name: str, chosen: Any) -> Part:
        return Part(name, site[chosen], end[chosen], class_ST[site[chosen], end[chosen]].astype(np.int64))

    training, validation = part("training", order[VALIDATION:]), part("validation", order[:VALIDATION])
    return windows, training, validation, drawn["classes"], drawn


def model_of(random: np.random.Generator, patch: int) -> ModelConfig:
    """Any small model."""
    heads = int(random.choice([1, 2]))
    return ModelConfig(
        architecture=str(random.choice(["timer_xl", "timer"])),
        head=str(random.choice(["variables", "variables", "mean"])),
        patch_length=patch,
        width=heads * int(random.choice([4, 8, 16, 32])),
        layers=int(random.choice([1, 2, 3], p=[0.5, 0.35, 0.15])),
        heads=heads,
        feed_forward=int(random.choice([8, 32, 64])),
        dropout=float(random.choice([0, 0.1, 0.3])),
        instance_norm=bool(random.random() < 0.8),
    )


def training_of(random: np.random.Generator, classes: int, windows: int) -> TrainConfig:
    """Any training of some hundred steps, with rates that people use and ten times those."""
    batch = int(random.choice([2, 8, 16, 32, 64]))
    epochs = max(2, round(600 * batch / windows))
    weighted = random.random() < 0.2
    return TrainConfig.model_validate(
        {
            "epochs": min(epochs, 40),
            "patience": 40,
            "batch_size": batch,
            "accumulate": int(random.choice([1, 1, 2])),
            "encoder_learning_rate": 10 ** random.uniform(-6, -2),
            "head_learning_rate": 10 ** random.uniform(-5, -2),
            "layer_decay": float(random.choice([1, 0.8])),
            "warmup_steps": int(random.choice([0, 10, 100])),
            "schedule": str(random.choice(["cosine", "constant"])),
            "clip_norm": float(random.choice([1, 1, 1e6])),
            "precision": str(random.choice(["auto", "float32", "bfloat16"], p=[0.5, 0.35, 0.15])),
            "class_weights": random.uniform(0.2, 5, classes).tolist() if weighted else None,
            "focal_gamma": float(random.choice([0, 0, 2])),
            "label_smoothing": float(random.choice([0, 0, 0.1])),
            "average_decay": float(random.choice([0, 0, 0.99])),
            "seed": int(random.integers(1000)),
            **PHASES[random.integers(len(PHASES))],
        }
    )


def train(seed: int, console: Console) -> dict[str, Any]:
    """One training: applied steps, alarms by kind, and its settings."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    windows, training, validation, classes, drawn = data(random)
    model_config = model_of(random, drawn["patch"])
    config = training_of(random, classes, len(training))
    cached = random.random() < 0.5
    alarms: Counter[str] = Counter()
    steps = 0

    def record(line: dict[str, Any]) -> None:
        nonlocal steps
        if "event" in line:
            alarms[f"{line['event']}: {line.get('kind', line['reason'])}"] += 1
        else:
            steps += line["steps"] - line["refused"]

    def fresh() -> Any:
        classifier = build_classifier(build_encoder(model_config), model_config, drawn["variables"], FACTS, classes)
        classifier.set_knots(windows.quantiles(windows.values_STC.shape[1], KNOTS))
        return classifier

    with tempfile.TemporaryDirectory() as folder:
        features = Path(folder) / "features" if cached else None
        surroundings = Surroundings(record, lambda **_: None, fresh, console, features=features)
        arguments = (windows, training, validation)
        guard = GuardConfig(policy="skip", max_skipped=1)
        try:
            train_model(fresh(), *arguments, config, guard, surroundings)
        except UsageError:  # bfloat16 is not good enough for this model, as it says: not a question for the guard
            config = config.model_copy(update={"precision": "float32"})
            train_model(fresh(), *arguments, config, guard, surroundings)
        except GuardStop:
            pass  # recorded above
    settings = {"number": seed, **drawn, **model_config.model_dump(), **config.model_dump(exclude={"phases"})}
    return {"steps": steps, "alarms": dict(alarms), "settings": settings}


def main() -> None:
    """Train until enough steps are done, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warned = Warned()
    logger = logging.getLogger("llueve")
    logger.addHandler(warned)
    logger.propagate = False
    console = Console(file=io.StringIO())
    steps, trainings, started, alarmed = 0, 0, time.perf_counter(), []
    while steps < arguments.steps:
        found = train(arguments.seed * 1_000_000 + trainings, console)
        steps, trainings = steps + found["steps"], trainings + 1
        if found["alarms"]:
            alarmed.append(found)
            print(f"{found['alarms']} in {found['settings']}", flush=True)
        if trainings % 20 == 0:
            print(f"{trainings} trainings, {steps} steps, {time.perf_counter() - started:.0f} s", flush=True)
    collapsed = warned.seen.pop("collapse", 0)
    alarms = sum((Counter(each["alarms"]) for each in alarmed), Counter())
    print(f"{steps} applied steps in {trainings} trainings, {time.perf_counter() - started:.0f} s")
    print(f"refusals, stops and repairs: {alarms.total()} {dict(alarms)}, in {len(alarmed)} trainings")
    print(f"warnings: {warned.seen.total()} {dict(warned.seen)}; besides, {collapsed} epochs with forecasts all alike")
    if arguments.json:
        whole = {
            "steps": steps,
            "trainings": trainings,
            "alarmed": alarmed,
            "warnings": dict(warned.seen),
            "all_alike": collapsed,
        }
        arguments.json.write_text(json.dumps(whole, indent=2) + "\n")
    raise SystemExit(1 if alarmed else 0)


if __name__ == "__main__":
    main()
