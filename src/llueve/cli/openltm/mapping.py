"""Mapping of OpenLTM's flags to the configuration of llueve."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llueve.cli.openltm.csv_summary import CsvSummary
from llueve.cli.openltm.flags import IGNORED_FLAGS, MAPPED_FLAGS, Flags
from llueve.errors import UsageError

LABELS = ("rain_24h", "rain_tomorrow")
FUTURE = ("precipitation",)
"""Columns of the Peru table that hold rain of the future."""
HORIZON_HOURS = 24
VALIDATION, TEST = 0.15, 0.15
"""Shares of the record, as in OpenLTM's Peru loader; here by date, with the same dates for all regions."""
UNITS = {
    **{"tp": "m", "tcwv": "kg m-2", "cape": "J kg-1", "wind_direction": "rad", "relative_humidity": "%"},
    **dict.fromkeys(("t2m", "d2m", "td_spread"), "K"),
    **dict.fromkeys(("sp", "msl", "pressure_tendency_12h"), "Pa"),
    **dict.fromkeys(("u10", "v10", "wind_speed"), "m s-1"),
}
QUIET_DEFAULTS = ("root_path", "checkpoints", "output_token_len", "activation", "focal_gamma")
"""Flags that are not shown with OpenLTM's default if they are not given."""
LOSSES = ("ce", "crossentropy", "cross_entropy", "focal")


class MappedFlag(NamedTuple):
    """One flag and its effect in llueve."""

    name: str
    value: str
    effect: str


class MappedCommand(NamedTuple):
    """A training command in llueve's terms: the sections of the configuration, and the effect of each flag."""

    sections: dict[str, dict[str, Any]]
    flags: tuple[MappedFlag, ...]


def run_directory(flags: Flags) -> Path:
    """The run directory of a command.

    Raises:
        UsageError: the command is not one of classification, or the name of the run is a path.
    """
    for name, allowed in (
        ("task_name", ("classification", "forecast")),  # in old scripts the model decided, also with "forecast"
        ("model", ("timer_xl_classifier",)),
        ("data", ("PeruRainfall", "custom")),
        ("is_training", (0, 1)),
    ):
        if flags[name] not in allowed:
            raise UsageError(f"--{name} {flags[name]}: expected {' or '.join(map(str, allowed))}")
    name = flags["model_id"]
    if name in ("", ".", "..") or Path(name).name != name:
        raise UsageError(f"--model_id {name}: expected a name without folders; give those to --checkpoints")
    return Path(flags["checkpoints"], name)


def map_flags(flags: Flags, table: CsvSummary, sizes: Mapping[str, Any] | None = None) -> MappedCommand:
    """The configuration of a training command.

    Args:
        flags: the command.
        table: the CSV of --root_path and --data_path.
        sizes: with --adaptation, the sizes of the checkpoint; they replace those of the command.

    Raises:
        UsageError: flags contradict each other or the table, or a classifier cannot do what they ask for.
    """
    _refuse_contradictions(flags)
    label, classes = _label(flags, table)
    context, too_long = _context(flags["seq_len"], table)
    sections: dict[str, dict[str, Any]] = {
        "data": {
            "path": str(table.path.resolve()),
            "time": table.time,
            "exclude": [name for name in (*FUTURE, *LABELS) if name in table.columns and name != label],
            "units": {name: unit for name, unit in UNITS.items() if name in table.columns},
        },
        "target": {"label": label, "classes": classes, "missing": ["-1"], "horizon_hours": HORIZON_HOURS},
        "split": {"validation_fraction": VALIDATION, "test_fraction": TEST},
        "windows": {"context": context},
        "model": {"head": "mean"},
        "train": {
            "encoder_learning_rate": flags["learning_rate"],
            "head_learning_rate": flags["learning_rate"],
            "warmup_steps": 0,
            "schedule": "cosine" if flags["cosine"] else "constant",
            "focal_gamma": flags["focal_gamma"] if flags["use_focal_loss"] else 0.0,
        },
    }
    if table.site is not None:
        sections["data"]["site"] = table.site
    if (weights := _class_weights(flags)) is not None:
        sections["train"]["class_weights"] = weights
    if sizes:
        sections["model"]["pretrained"] = str(Path(flags["pretrain_model_path"]).resolve())
    effects = _effects(flags, table, sections) | {"seq_len": f"windows.context = {context}{too_long}"}
    for name, flag in MAPPED_FLAGS.items():
        section, _, key = flag.key.partition(".")
        if sizes and key in sizes:
            replaced = f", not {flags[name]}" if name in flags and flags[name] != sizes[key] else ""
            effects[name] = f"{sizes[key]}, as in the checkpoint{replaced}"
        elif key:
            sections[section][key] = flags[name]
    defaults = [name for name, flag in MAPPED_FLAGS.items() if flag.default is not None and name not in QUIET_DEFAULTS]
    shown = [name for name in MAPPED_FLAGS | IGNORED_FLAGS if name in flags or name in defaults]
    values = {name: f"{flags[name]}" if name in flags else f"({flags[name]})" for name in shown}
    return MappedCommand(sections, tuple(MappedFlag(name, values[name], effects[name]) for name in shown))


def _effects(flags: Flags, table: CsvSummary, sections: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Effect of each flag, in words."""
    checkpoint, target, train = sections["model"].get("pretrained"), sections["target"], sections["train"]
    site = "one site" if table.site is None else f"one site per {table.site}"
    return {
        **{name: flag.effect or f"{flag.key} = {flags[name]}" for name, flag in MAPPED_FLAGS.items()},
        **{name: f"no effect: {reason}" for name, (_, reason) in IGNORED_FLAGS.items()},
        "model_id": f"run directory {run_directory(flags)}; an earlier run in it is replaced when this one is verified",
        "data": f"{site}; the last {TEST:.0%} of the time is the test period, the {VALIDATION:.0%} before it validation",
        "data_path": f"data.path = {table.path}",
        "target": f"target.label = {target['label']}",
        "adaptation": "from the weights of --pretrain_model_path"
        if checkpoint
        else "no model.pretrained: a fresh encoder",
        "pretrain_model_path": f"model.pretrained = {checkpoint}" if checkpoint else "unused without --adaptation",
        "n_classes": f"target.classes = {target['classes']} of the column {target['label']}",
        "learning_rate": f"train.encoder_learning_rate = train.head_learning_rate = {flags['learning_rate']:g}",
        "cosine": f"train.schedule = {train['schedule']}",
        "loss": "focal loss" if flags["use_focal_loss"] else "cross-entropy",
        **dict.fromkeys(("use_focal_loss", "focal_gamma"), f"train.focal_gamma = {train['focal_gamma']}"),
        **dict.fromkeys(("focal_alpha", "class_weights"), f"train.class_weights = {train.get('class_weights')}"),
    }


def _refuse_contradictions(flags: Flags) -> None:
    """Raise if flags contradict each other, or a classifier cannot do what they ask for."""
    run_directory(flags)
    patch, output = flags["input_token_len"], flags["output_token_len"]
    length, test_length = flags["seq_len"], flags["test_seq_len"]
    if "input_token_len" in flags and "output_token_len" in flags and patch != output:
        raise UsageError(
            f"--output_token_len {output}: Timer-XL's output tokens are as long as its input tokens; expected "
            f"--input_token_len {patch}"
        )
    if test_length not in (None, length):
        raise UsageError(
            f"--test_seq_len {test_length}: a model is verified on windows of the same length as in training; "
            f"expected --seq_len {length}"
        )
    if flags["activation"].lower() != "relu":
        raise UsageError(f"--activation {flags['activation']}: Timer-XL's encoder was published with relu only")
    if flags["loss"] is not None and flags["loss"].lower() not in LOSSES:
        raise UsageError(f"--loss {flags['loss']}: a classifier is trained with CE, or with --use_focal_loss")
    for name in ("focal_alpha", "focal_gamma"):
        if name in flags and not flags["use_focal_loss"]:
            raise UsageError(f"--{name} {flags[name]}: belongs to --use_focal_loss; add that flag, or remove this one")
    if "focal_alpha" in flags and "class_weights" in flags:
        raise UsageError("--focal_alpha and --class_weights: both weight the classes; give one of them")
    if flags.get("dp") and flags.get("ddp"):
        raise UsageError("--dp and --ddp: exclude each other; neither is needed")
    if flags["adaptation"] and flags["pretrain_model_path"] is None:
        raise UsageError("--adaptation: needs --pretrain_model_path FILE, the checkpoint to start from")


def _label(flags: Flags, table: CsvSummary) -> tuple[str, list[str]]:
    """Label column and its classes in order; the value -1 means unknown."""
    count, label = flags["n_classes"], flags["target"]
    if label is not None:
        classes = [value for value in table.classes if value != "-1"]
        if len(classes) != count:
            raise UsageError(f"--n_classes {count}: the column {label} holds the {len(classes)} values {classes[:20]}")
        return label, classes
    if flags["data"] == "custom":
        raise UsageError("--data custom: needs --target COLUMN, the label to learn")
    if (label := next((name for name in LABELS if name in table.columns), None)) is None:
        raise UsageError(f"{table.path}: has no column {' or '.join(LABELS)}; give its label with --target COLUMN")
    return label, [str(number) for number in range(count)]


def _context(seq_len: int, table: CsvSummary) -> tuple[int, str]:
    """Steps of context, and the reason if they differ from the command.

    Validation loses context + horizon steps before the test period; at least half of it must remain. A length that is
    too long in steps is read in hours: OpenLTM concatenated the regions, where any length seemed to fit.
    """
    longest = int(table.steps * VALIDATION / 2 - HORIZON_HOURS / table.step_hours)
    if seq_len <= longest:
        return seq_len, ""
    hours = int(seq_len / table.step_hours)
    reason = (
        f"{seq_len} steps of {table.step_hours:g} h are too long for a record of {table.steps} steps without a leak"
    )
    if not 1 <= hours <= longest:
        raise UsageError(f"--seq_len {seq_len}: {reason}; expected at most {max(longest, 0)}")
    return hours, f": {reason}, so they are read as hours, {seq_len / 24:g} days"


def _class_weights(flags: Flags) -> list[float] | None:
    """Weight of each class, if the command has weights."""
    name = "focal_alpha" if "focal_alpha" in flags else "class_weights"
    text, count = flags[name], flags["n_classes"]
    if text is None:
        return None
    try:
        weights = [float(each) for each in text.strip("[]() ").split(",")]
    except ValueError:
        raise UsageError(f"--{name} {text}: expected numbers with commas between them, such as 0.3,0.7") from None
    if name == "focal_alpha" and len(weights) == 1 and count == 2:
        weights = [round(1 - weights[0], 12), weights[0]]  # α is the weight of class 1 (Lin et al., arXiv:1708.02002)
    if len(weights) != count or not all(0 < weight < math.inf for weight in weights):
        raise UsageError(f"--{name} {text}: expected {count} numbers above zero, one per class")
    return weights
