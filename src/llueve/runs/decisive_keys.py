"""The part of a configuration that decides the steps of a training, in one form for all spellings of the same training.

The rest does not: places of the data and of the checkpoint (hashes decide about their content), the audit, calibration,
decision and verification, saving, trackers and processes.
"""

from collections.abc import Mapping
from typing import Any

from llueve.config import Config, PhaseConfig, PretrainConfig, TrainConfig
from llueve.config.train_keys import PhaseKeys

PLACES = {"data": {"path", "more_paths", "format", "land_mask", "positions", "dask"}, "model": {"pretrained"}}
"""Keys that say where data and weights are, and how they are read there."""
PERMISSIONS = {"target": {"allow_sampled"}, "model": {"allow_missing"}}
"""Keys that only let something pass."""
SCORED = {"target": {"event"}}
"""Keys that choose the scores, and no step."""
AFTERWARDS = {"calibration": True, "decision": True, "verify": True}
"""Sections about the trained model."""
ABSENT = "not used"
"""Value, in messages, of a key that is not set or has no effect."""


def decisive_keys(config: Config) -> dict[str, Any]:
    """Return name and value of each key that decides a step; the values are as JSON holds them.

    Recipes are written out as phases, and a key that has no effect beside the others is left out.
    """
    table = config.model_dump(mode="json", include={"data", "target", "features", "split", "windows", "model", "guard"})
    for left_out in (PLACES, PERMISSIONS, SCORED):
        for section, keys in left_out.items():
            table[section] = {key: value for key, value in table[section].items() if key not in keys}
    if config.data.site is not None:
        del table["data"]["site_name"]
    if not config.data.quantities:
        del table["data"]["quantities"]
    if not config.features.neighbours:
        del table["features"]["neighbour_variables"]
    if config.model.architecture == "timer":
        del table["model"]["positions"]
    for name, region in config.regions.items():
        table[f"regions.{name}"] = region.model_dump(mode="json", exclude={"polygon", "mask"})
    named = {f"{section}.{key}": value for section, keys in table.items() for key, value in keys.items()}
    return {**named, **_training_keys(config.train)}


def decisive_pretraining_keys(config: PretrainConfig) -> dict[str, Any]:
    """Return name and value of each key that decides the encoder of a pre-training or its scores, as `decisive_keys`."""
    table = config.model_dump(mode="json", include={"corpus", "model", "guard"}, exclude={"corpus": {"path"}})
    named = {f"{section}.{key}": value for section, keys in table.items() for key, value in keys.items()}
    return {**named, **_training_keys(config.train)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys with other values, in words."""
    return [
        f"{key} was {_in_words(before.get(key, ABSENT))} and is {_in_words(now.get(key, ABSENT))}"
        for key in sorted({*before, *now})
        if before.get(key, ABSENT) != now.get(key, ABSENT)
    ]


def _in_words(value: Any) -> str:
    return "not given" if value is None else repr(value)


def other_keys(config: Config) -> dict[str, Any]:
    """Return the keys that decide no step, but which table a run has, and how it was calibrated and verified."""
    table = config.model_dump(mode="json", include={**PLACES, **SCORED, **AFTERWARDS, "regions": True})
    named = {f"{section}.{key}": value for section, keys in table.items() for key, value in keys.items()}
    return {key: value for key, value in named.items() if key not in ("data.format", "data.dask")}


def _training_keys(configured: TrainConfig) -> dict[str, Any]:
    train = configured.resolved()
    own = train.model_dump(mode="json", exclude={*PhaseKeys.model_fields, "recipe", "phases", "feature_cache_gb"})
    found = {f"train.{key}": value for key, value in own.items()}
    phases = train.phases or (PhaseConfig(name="training"),)
    found["train.phases"] = [[phase.name, *sorted(phase.freeze)] for phase in phases]
    for phase in phases:
        keys = train.in_phase(phase).model_dump(mode="json", include=set(PhaseKeys.model_fields))
        if keys["warmup_epochs"]:
            del keys["warmup_steps"]
        if "encoder" in phase.freeze:
            del keys["encoder_learning_rate"], keys["layer_decay"]
        before = "train" if len(phases) == 1 else f"train.phases.{phase.name}"
        found |= {f"{before}.{key}": value for key, value in keys.items()}
    return found
