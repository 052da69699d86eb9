"""What each flag becomes in llueve's configuration."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llueve.compatibility.flags import IDLE, MEANT, Flags
from llueve.compatibility.table import Table
from llueve.errors import UsageError

LABELS = ("rain_24h", "rain_tomorrow")
FUTURE = ("precipitation",)
"""Columns of the Peru table that hold rain of the future."""
HORIZON_HOURS = 24
VALIDATION, TEST = 0.15, 0.15
"""Shares of the record, as OpenLTM's Peru loader cut it; here by date, and the same for every region."""
UNITS = {
    "tp": "m",
    "t2m": "K",
    "d2m": "K",
    "sp": "Pa",
    "msl": "Pa",
    "u10": "m s-1",
    "v10": "m s-1",
    "tcwv": "kg m-2",
    "cape": "J kg-1",
    "wind_speed": "m s-1",
    "wind_direction": "rad",
    "td_spread": "K",
    "relative_humidity": "%",
    "pressure_tendency_12h": "Pa",
}
SIZES = {
    "input_token_len": "patch_length",
    "d_model": "width",
    "e_layers": "layers",
    "n_heads": "heads",
    "d_ff": "feed_forward",
}
DIRECT = {
    "dropout": ("model", "dropout"),
    "use_norm": ("model", "instance_norm"),
    "subset_rand_ratio": ("train", "fraction"),
    "train_epochs": ("train", "epochs"),
    "batch_size": ("train", "batch_size"),
    "patience": ("train", "patience"),
    "weight_decay": ("train", "weight_decay"),
    "seed": ("train", "seed"),
}
"""Flags whose value is that of one key."""
ALWAYS = {
    "data_path",
    "seq_len",
    "adaptation",
    "n_classes",
    "learning_rate",
    "cosine",
    "use_focal_loss",
    *DIRECT,
    *SIZES,
}
"""Flags that are shown with OpenLTM's default where they are not given."""
LOSSES = ("ce", "crossentropy", "cross_entropy", "focal")


@dataclass(frozen=True)
class Row:
    """One flag, and what became of it."""

    flag: str
    value: str
    became: str


@dataclass(frozen=True)
class Mapped:
    """A command as llueve understands it."""

    table: dict[str, Any]
    """Sections of the configuration."""
    rows: tuple[Row, ...]


def run_directory(flags: Flags) -> Path:
    """Where the run of this command lies.

    Raises:
        UsageError: the command is none of classification, or its name of the run is a path.
    """
    for name, allowed in (
        ("task_name", ("classification", "forecast")),  # old scripts said forecast: the model decided
        ("model", ("timer_xl_classifier",)),
        ("data", ("PeruRainfall", "custom")),
        ("is_training", (0, 1)),
    ):
        if flags[name] not in allowed:
            raise UsageError(f"--{name} {flags[name]}: expected {' or '.join(map(str, allowed))}")
    if flags["model_id"] in ("", ".", "..") or Path(flags["model_id"]).name != flags["model_id"]:
        raise UsageError(f"--model_id {flags['model_id']}: expected a name without folders; --checkpoints holds them")
    return Path(flags["checkpoints"], flags["model_id"])


def map_flags(flags: Flags, table: Table, sizes: Mapping[str, Any] | None = None) -> Mapped:
    """The configuration of a training command.

    Args:
        table: the CSV of --root_path and --data_path.
        sizes: of the checkpoint, with --adaptation; they win over the command's.

    Raises:
        UsageError: flags contradict each other or the table, or ask for what a classifier does not do.
    """
    _refuse_contradictions(flags)
    label, classes = _label(flags, table)
    context, too_long = _context(flags["seq_len"], table)
    weights = _weights(flags)
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
    if weights is not None:
        sections["train"]["class_weights"] = weights
    for name, (section, key) in DIRECT.items():
        sections[section][key] = flags[name]
    if sizes is None:
        sections["model"] |= {key: flags[name] for name, key in SIZES.items()}
    else:
        sections["model"]["pretrained"] = str(Path(flags["pretrain_model_path"]).resolve())
    became = _became(flags, table, sections, sizes) | {"seq_len": f"windows.context = {context}{too_long}"}
    shown = [name for name in MEANT if name in flags or name in ALWAYS] + [name for name in IDLE if name in flags]
    rows = (Row(name, f"{flags[name]}" if name in flags else f"({flags[name]})", became[name]) for name in shown)
    return Mapped(sections, tuple(rows))


def _became(
    flags: Flags, table: Table, sections: dict[str, dict[str, Any]], sizes: Mapping[str, Any] | None
) -> dict[str, str]:
    """What to say of each flag."""
    train, target, model = sections["train"], sections["target"], sections["model"]
    site = "one site" if table.site is None else f"a site per {table.site}"
    weighed = f"train.class_weights = {train.get('class_weights')}"
    return {
        "task_name": "classification",
        "is_training": "train, then verify on the test period",
        "model_id": f"run directory {run_directory(flags)}; an earlier run there is replaced",
        "model": 'model.head = "mean" on a Timer-XL encoder',
        "data": f"{site}; the last {TEST:.0%} of the time is the test, the {VALIDATION:.0%} before it validation",
        "root_path": "with --data_path",
        "data_path": f"data.path = {table.path}",
        "target": f"target.label = {target['label']!r}",
        "checkpoints": "with --model_id",
        "output_token_len": "the same as --input_token_len",
        "test_seq_len": "the same as --seq_len",
        "activation": "relu, as ever",
        "adaptation": "from the weights of --pretrain_model_path"
        if flags["adaptation"]
        else 'model.pretrained = "none"',
        "pretrain_model_path": (
            f"model.pretrained = {model['pretrained']}" if "pretrained" in model else "unused without --adaptation"
        ),
        "n_classes": f"target.classes = {target['classes']} of the column {target['label']}",
        "learning_rate": f"train.encoder_learning_rate = train.head_learning_rate = {flags['learning_rate']:g}",
        "cosine": f"train.schedule = {train['schedule']}",
        "loss": "the focal loss" if flags["use_focal_loss"] else "cross-entropy",
        "use_focal_loss": f"train.focal_gamma = {train['focal_gamma']:g}",
        "focal_gamma": f"train.focal_gamma = {train['focal_gamma']:g}",
        "focal_alpha": weighed,
        "class_weights": weighed,
        **{name: f"{section}.{key} = {sections[section][key]}" for name, (section, key) in DIRECT.items()},
        **{name: _size(name, flags, sizes) for name in SIZES},
        **{name: f"nothing: {why}" for name, (_, why) in IDLE.items()},
    }


def _refuse_contradictions(flags: Flags) -> None:
    """Raise where the command speaks against itself, or asks for what a classifier does not do."""
    run_directory(flags)

    def both(first: str, second: str) -> bool:
        return first in flags and second in flags

    if both("input_token_len", "output_token_len") and flags["input_token_len"] != flags["output_token_len"]:
        raise UsageError(
            f"--output_token_len {flags['output_token_len']}: Timer-XL's tokens come out as long as they go in; expected "
            f"--input_token_len {flags['input_token_len']}"
        )
    if "test_seq_len" in flags and flags["test_seq_len"] != flags["seq_len"]:
        raise UsageError(
            f"--test_seq_len {flags['test_seq_len']}: a model is verified on windows as it was trained on; expected "
            f"--seq_len {flags['seq_len']}"
        )
    if flags["activation"].lower() != "relu":
        raise UsageError(f"--activation {flags['activation']}: Timer-XL's encoder was published with relu alone")
    if flags["loss"] is not None and flags["loss"].lower() not in LOSSES:
        raise UsageError(f"--loss {flags['loss']}: a classifier is trained with CE, or with --use_focal_loss")
    for name in ("focal_alpha", "focal_gamma"):
        if name in flags and not flags["use_focal_loss"]:
            raise UsageError(f"--{name} {flags[name]}: belongs to --use_focal_loss; add it, or leave this out")
    if both("focal_alpha", "class_weights"):
        raise UsageError("--focal_alpha and --class_weights: both weigh the classes; give one of them")
    if flags.given.get("dp") and flags.given.get("ddp"):
        raise UsageError("--dp and --ddp exclude each other, and neither is needed")
    if flags["adaptation"] and flags["pretrain_model_path"] is None:
        raise UsageError("--adaptation: needs --pretrain_model_path FILE, the checkpoint to start from")


def _label(flags: Flags, table: Table) -> tuple[str, list[str]]:
    """Label column, and its classes in order; -1 marks the unknown.

    Raises:
        UsageError: the table has none, or other classes than the command says.
    """
    count = flags["n_classes"]
    if flags["target"] is None and flags["data"] == "custom":
        raise UsageError("--data custom: needs --target COLUMN, the label to learn")
    if flags["target"] is None:
        label = next((name for name in LABELS if name in table.columns), None)
        if label is None:
            raise UsageError(f"{table.path}: has neither {' nor '.join(LABELS)}; name its label with --target COLUMN")
        return label, [str(number) for number in range(count)]
    classes = [value for value in table.classes if value != "-1"]
    if len(classes) != count:
        raise UsageError(
            f"--n_classes {count}: the column {flags['target']} holds the {len(classes)} values {classes[:20]}"
        )
    return flags["target"], classes


def _context(seq_len: int, table: Table) -> tuple[int, str]:
    """Steps of context, and why they are not those of the command.

    Validation gives up context + horizon steps before the test; at least half of it must remain. A length that is too
    long in steps is read in hours: OpenLTM laid the regions end to end, so that any length seemed to fit.

    Raises:
        UsageError: it is too long in hours too.
    """
    room = int(table.steps * VALIDATION / 2 - HORIZON_HOURS / table.step_hours)
    if seq_len <= room:
        return seq_len, ""
    hours = int(seq_len / table.step_hours)
    too_long = (
        f"{seq_len} steps of {table.step_hours:g} h are too long for a record of {table.steps} steps without a leak"
    )
    if not 1 <= hours <= room:
        raise UsageError(f"--seq_len {seq_len}: {too_long}; expected at most {max(room, 0)}")
    return hours, f": {too_long}, so they are read as hours, {seq_len / 24:g} days"


def _weights(flags: Flags) -> list[float] | None:
    """Weight of each class, if the command weighs them.

    Raises:
        UsageError: they are no numbers, or not one per class.
    """
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


def _size(name: str, flags: Flags, sizes: Mapping[str, Any] | None) -> str:
    """What a size of the command became: the checkpoint's, if there is one."""
    key, asked = SIZES[name], flags[name]
    if sizes is None:
        return f"model.{key} = {asked}"
    return f"{sizes[key]}, as the checkpoint has it" + (
        "" if sizes[key] == asked or name not in flags else f", not {asked}"
    )
