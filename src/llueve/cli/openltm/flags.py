"""The flags of OpenLTM's `run.py` for classification, with OpenLTM's defaults."""

import difflib
from collections.abc import Sequence
from typing import Any, NamedTuple

from llueve.errors import UsageError


class Flag(NamedTuple):
    """A flag with an effect."""

    kind: type
    default: Any = None
    key: str = ""
    """Key of the configuration that the value is copied to, as `section.key`."""
    effect: str = ""
    """Effect in words, if it is the same for all commands."""


REQUIRED_FLAGS = ("task_name", "is_training", "model_id", "model", "data")
MAPPED_FLAGS = {
    "task_name": Flag(str, effect="classification"),
    "is_training": Flag(int, effect="train, then verify on the test period"),
    "model_id": Flag(str),
    "model": Flag(str, effect='model.head = "mean" on a Timer-XL encoder'),
    "data": Flag(str),
    "root_path": Flag(str, ".", effect="folder of --data_path"),
    "data_path": Flag(str, "peru_rainfall.csv"),
    "target": Flag(str),
    "checkpoints": Flag(str, "./checkpoints/", effect="folder of the run directory"),
    "seq_len": Flag(int, 672),
    "input_token_len": Flag(int, 576, "model.patch_length"),
    "output_token_len": Flag(int, 96, effect="the same as --input_token_len"),
    "test_seq_len": Flag(int, effect="the same as --seq_len"),
    "d_model": Flag(int, 512, "model.width"),
    "e_layers": Flag(int, 1, "model.layers"),
    "n_heads": Flag(int, 8, "model.heads"),
    "d_ff": Flag(int, 2048, "model.feed_forward"),
    "dropout": Flag(float, 0.1, "model.dropout"),
    "activation": Flag(str, "relu", effect="relu, the only one of Timer-XL"),
    "use_norm": Flag(bool, False, "model.instance_norm"),
    "adaptation": Flag(bool, False),
    "pretrain_model_path": Flag(str),
    "subset_rand_ratio": Flag(float, 1.0, "train.fraction"),
    "n_classes": Flag(int, 2),
    "train_epochs": Flag(int, 10, "train.epochs"),
    "batch_size": Flag(int, 32, "train.batch_size"),
    "patience": Flag(int, 3, "train.patience"),
    "learning_rate": Flag(float, 1e-4),
    "weight_decay": Flag(float, 0.0, "train.weight_decay"),
    "cosine": Flag(bool, False),
    "loss": Flag(str),
    "use_focal_loss": Flag(bool, False),
    "focal_alpha": Flag(str),
    "focal_gamma": Flag(float, 2.0),
    "class_weights": Flag(str),
    "seed": Flag(int, 2021, "train.seed"),
}

TORCHRUN = "torchrun starts the processes, not a flag"
FORECASTING = "belongs to forecasting; a classifier does not use it"
OTHER_MODELS = "belongs to other models than timer_xl_classifier"
IGNORED_FLAGS: dict[str, tuple[type, str]] = {
    "test_pred_len": (int, "the label column already looks 24 hours ahead"),
    "tmax": (int, "the cosine schedule covers all epochs"),
    "lradj": (str, "the learning rate follows the cosine schedule, or is constant"),
    "num_workers": (int, "windows are views of one array in memory; no loader processes are needed"),
    "drop_last": (bool, "all windows are used"),
    "valid_last": (bool, "all validation windows are used"),
    **{"last_token": (bool, FORECASTING), "nonautoregressive": (bool, FORECASTING), "test_flag": (str, FORECASTING)},
    "covariate": (bool, "every variable attends to the past of all variables"),
    "flash_attention": (bool, "attention is always fused and exact"),
    "output_attention": (bool, "attention is fused, so its matrix does not exist"),
    "visualize": (bool, "use the predictions.csv of the run for figures"),
    "gpu": (int, "the first visible GPU is used; CUDA_VISIBLE_DEVICES selects it"),
    **{"devices": (str, TORCHRUN), "dp": (bool, TORCHRUN), "ddp": (bool, TORCHRUN), "local_rank": (int, TORCHRUN)},
    "itr": (int, "one command is one training; repeat it with another --seed and --model_id"),
    "des": (str, "--model_id alone names the run directory"),
    **dict.fromkeys(("test_dir", "test_file_name"), (str, "the run directory holds the model")),
    "load_time_stamp": (str, "the calendar is always an input"),
    **dict.fromkeys(("node", "node_num", "gpt_layers", "patch_size", "kernel_size", "stride"), (int, OTHER_MODELS)),
    **dict.fromkeys(("n_vars", "factor", "AP_levels", "d_layers", "d_d_model", "layers"), (int, OTHER_MODELS)),
    **dict.fromkeys(("hidden_dim", "ts_vocab_size", "llm_layers"), (int, OTHER_MODELS)),
    **dict.fromkeys(("node_list", "mode", "d_mode", "domain_des", "llm_model"), (str, OTHER_MODELS)),
    **dict.fromkeys(("use_decoder", "mix_embeds"), (bool, OTHER_MODELS)),
}
"""Flags without effect: name → type, reason."""

FLAG_TYPES = {name: flag.kind for name, flag in MAPPED_FLAGS.items()} | {
    name: kind for name, (kind, _) in IGNORED_FLAGS.items()
}
EXPECTED = {int: "a whole number", float: "a number", bool: "0 or 1"}
SWITCH_VALUES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class Flags(dict[str, Any]):
    """The given flags in the order of the command; a flag that is not given has its default."""

    def __missing__(self, name: str) -> Any:
        return MAPPED_FLAGS[name].default


def parse_flags(arguments: Sequence[str]) -> Flags:
    """Parse `--name value`, `--name=value`, and switches alone or with 0 or 1.

    Raises:
        UsageError: a flag is unknown, or its value is missing or impossible, or a required flag is missing.
    """
    flags = Flags()
    remaining = list(arguments)
    while remaining:
        option, equals, text = remaining.pop(0).partition("=")
        name = option.removeprefix("--")
        if name == option or name not in FLAG_TYPES:
            close = difflib.get_close_matches(option.lstrip("-"), FLAG_TYPES, n=1)
            known = (
                f"did you mean --{close[0]}?" if close else f"flags with an effect are --{', --'.join(MAPPED_FLAGS)}"
            )
            raise UsageError(f"{option}: unknown flag; {known}")
        kind = FLAG_TYPES[name]
        if not equals:
            switched = kind is bool and not (remaining and remaining[0].lower() in SWITCH_VALUES)
            if not switched and (not remaining or remaining[0].startswith("--")):
                raise UsageError(f"{option}: expected a value after it")
            text = "1" if switched else remaining.pop(0)
        try:
            flags[name] = SWITCH_VALUES[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise UsageError(f"{option} {text}: expected {EXPECTED[kind]}") from None
    if absent := [f"--{name}" for name in REQUIRED_FLAGS if name not in flags]:
        raise UsageError(f"{', '.join(absent)}: required but not given; see docs/training.md for a complete command")
    return flags
