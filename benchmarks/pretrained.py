"""The tables of the weather encoder in docs/results.md: `python -m benchmarks.pretrained mine.toml --seeds 0 1 2`.

For one configuration of a single place or more: the encoder without training (its probability of at least the threshold,
recalibrated on the validation period), frozen under a convex head, fine-tuned, and the same network from scratch, each with
shares of the training period. Beside them the learned references with the same shares. BSS is against EPC15.

Each training is one `llueve train` in a process of its own. The test period is scored once, at the end of each.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.skill import run
from llueve.calibration.calibrate import calibrate
from llueve.config import Config, load_config
from llueve.model.checkpoints.pretrained import read_pretrained
from llueve.model.weather_xl import RAIN_MM
from llueve.runs.saved_model import SavedModel
from llueve.samples.climatology import seasonal_frequency
from llueve.samples.read import read_panel
from llueve.samples.scale import fit_scaler
from llueve.samples.split import Part, split_panel
from llueve.samples.target import event_outcomes
from llueve.step.predict import as_batch
from llueve.verification.scores import auc, brier_skill

EMBEDDED = "model.pretrained=embedded"
SIZES = ("patch_length=24", "width=96", "layers=3", "feed_forward=256")
"""Sizes of the embedded encoder."""
WAYS = {
    "frozen": (EMBEDDED, "train.recipe=frozen", "train.head_learning_rate=1e-20"),
    "auto": (EMBEDDED,),
    "scratch": ("model.pretrained=none", "model.architecture=weather_xl", *(f"model.{each}" for each in SIZES)),
}
"""Overrides of each way to train. `frozen` is the convex start alone: its steps change nothing."""
AT_ONCE = 1024


def rain_logits(config: Config) -> dict[str, Any]:
    """Logits of the encoder's own probability of the threshold on validation and test, with outcomes and climatology."""
    panel = read_panel(config)
    split = split_panel(panel, config)
    pretrained = read_pretrained("embedded")
    saved = SavedModel.build(panel, split, fit_scaler(panel, split.training_rows), config, pretrained)
    windows, model = saved.windows(panel), saved.classifier.eval()
    amount = RAIN_MM.index(config.target.threshold_mm or 1.0) - len(RAIN_MM)
    event_ST = event_outcomes(split.labels_ST, saved.event_index)

    def logits(part: Part) -> NDArray[np.float64]:
        found = []
        with torch.inference_mode():
            for start in range(0, len(part), AT_ONCE):
                batch = as_batch(windows, part[start : start + AT_ONCE], torch.device("cpu"))
                found.append(model.pool(batch.x_BLC, batch.observed_BLC, batch.facts_BF)[:, amount].numpy())
        return np.concatenate(found).astype(np.float64)

    return {
        "validation": (logits(split.validation), split.validation.y),
        "test": (logits(split.test), split.test.y),
        "climatology": seasonal_frequency(event_ST, panel["time"].values, split.training, split.test),
    }


def zero_shot(config: Config) -> dict[str, Any]:
    """Scores without training: as the encoder gives it, and with a Platt map from the validation period."""
    found = rain_logits(config)
    (earlier_n, earlier_y), (logit_n, y) = found["validation"], found["test"]
    platt = calibrate(
        np.stack([np.zeros_like(earlier_n), earlier_n], 1), earlier_y, "platt", np.zeros(len(earlier_y), int)
    )
    scores = {"n": len(y), "auc": auc(1 / (1 + np.exp(-logit_n)), y)}
    for name, z_n in (("plain", logit_n), ("recalibrated", platt.slope * logit_n + platt.shift)):
        scores[name] = brier_skill(1 / (1 + np.exp(-z_n)), y, found["climatology"])
    return scores


def trained(config: Path, overrides: Sequence[str], way: str, fraction: float, seed: int) -> dict[str, Any]:
    """One training: its scores, those of the learned references, and the skill relative to each."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [*overrides, *WAYS[way], f"train.fraction={fraction:g}", f"train.seed={seed}"]
        found = run(config, settings, Path(folder) / "run")
        history = [json.loads(line) for line in (Path(folder) / "run" / "history.jsonl").read_text().splitlines()]
    scored = {"model": found["model"], **found["references"]}
    losses = [line["calibrated_loss"] for line in history if line.get("calibrated_loss") is not None]
    return {
        "way": way,
        "fraction": fraction,
        "seed": seed,
        "seconds": round(found["seconds"]),
        "losses": losses,
        **{name: {key: scores[key] for key in ("bss", "auc", "brier")} for name, scores in scored.items()},
        "verdict": found["verdict"],
    }


def main() -> None:
    """Print one JSON object for each training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--set", dest="overrides", nargs="+", default=[])
    arguments = parser.parse_args()
    print(json.dumps({"way": "zero-shot", **zero_shot(load_config(arguments.config, arguments.overrides))}), flush=True)
    for fraction in arguments.fractions:
        for way in arguments.ways:
            for seed in arguments.seeds:
                print(json.dumps(trained(arguments.config, arguments.overrides, way, fraction, seed)), flush=True)


if __name__ == "__main__":
    main()
