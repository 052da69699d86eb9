"""The flags of OpenLTM's `run.py`, as far as classification used them; their defaults are OpenLTM's."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llueve.errors import UsageError

REQUIRED = ("task_name", "is_training", "model_id", "model", "data")
MEANT: dict[str, tuple[type, Any]] = {
    "task_name": (str, None),
    "is_training": (int, None),
    "model_id": (str, None),
    "model": (str, None),
    "data": (str, None),
    "root_path": (str, "."),
    "data_path": (str, "peru_rainfall.csv"),
    "target": (str, None),
    "checkpoints": (str, "./checkpoints/"),
    "seq_len": (int, 672),
    "input_token_len": (int, 576),
    "output_token_len": (int, 96),
    "test_seq_len": (int, None),
    "d_model": (int, 512),
    "e_layers": (int, 1),
    "n_heads": (int, 8),
    "d_ff": (int, 2048),
    "dropout": (float, 0.1),
    "activation": (str, "relu"),
    "use_norm": (bool, False),
    "adaptation": (bool, False),
    "pretrain_model_path": (str, None),
    "subset_rand_ratio": (float, 1.0),
    "n_classes": (int, 2),
    "train_epochs": (int, 10),
    "batch_size": (int, 32),
    "patience": (int, 3),
    "learning_rate": (float, 1e-4),
    "weight_decay": (float, 0.0),
    "cosine": (bool, False),
    "loss": (str, None),
    "use_focal_loss": (bool, False),
    "focal_alpha": (str, None),
    "focal_gamma": (float, 2.0),
    "class_weights": (str, None),
    "seed": (int, 2021),
}
"""Flags that become something: name → type, default."""

WINDOWS = "windows are views over one array in memory; nothing is loaded aside"
TORCHRUN = "processes are started by torchrun, not by a flag"
FORECASTING = "of forecasting; a classifier has no use for it"
OTHER_MODELS = "of other models than timer_xl_classifier"
IDLE: dict[str, tuple[type, str]] = {
    "test_pred_len": (int, "the label column says how far the outcome lies ahead"),
    "tmax": (int, "the cosine falls over all epochs"),
    "lradj": (str, "the rate follows the cosine, or stays as it is"),
    "num_workers": (int, WINDOWS),
    "drop_last": (bool, "no window is left out"),
    "valid_last": (bool, "every window of validation counts"),
    "last_token": (bool, FORECASTING),
    "nonautoregressive": (bool, FORECASTING),
    "covariate": (bool, "every variable sees the past of every other"),
    "flash_attention": (bool, "attention is always fused, and exact"),
    "output_attention": (bool, "attention is fused: its matrix is never built"),
    "visualize": (bool, "figures are made of a run's predictions.csv"),
    "gpu": (int, "the first visible one is used, if there is one; CUDA_VISIBLE_DEVICES chooses"),
    "devices": (str, TORCHRUN),
    "dp": (bool, TORCHRUN),
    "ddp": (bool, TORCHRUN),
    "local_rank": (int, TORCHRUN),
    "itr": (int, "one training; start others with another --seed and --model_id"),
    "des": (str, "the run directory is named by --model_id alone"),
    "test_flag": (str, FORECASTING),
    "test_dir": (str, "the run directory holds the model"),
    "test_file_name": (str, "the run directory holds the model"),
    "load_time_stamp": (str, "the calendar is always known"),
    "node": (int, OTHER_MODELS),
    "node_num": (int, OTHER_MODELS),
    "node_list": (str, OTHER_MODELS),
    **dict.fromkeys(
        ("gpt_layers", "patch_size", "kernel_size", "stride", "n_vars", "factor", "AP_levels", "d_layers", "d_d_model"),
        (int, OTHER_MODELS),
    ),
    **dict.fromkeys(("layers", "hidden_dim", "ts_vocab_size", "llm_layers"), (int, OTHER_MODELS)),
    **dict.fromkeys(("mode", "d_mode", "domain_des", "llm_model"), (str, OTHER_MODELS)),
    **dict.fromkeys(("use_decoder", "mix_embeds"), (bool, OTHER_MODELS)),
}
"""Flags that no longer mean anything: name → type, why."""

KINDS = {name: kind for name, (kind, _) in (MEANT | IDLE).items()}
WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True)
class Flags:
    """A parsed command."""

    given: dict[str, Any]
    """Flags of the command, in its order."""

    def __getitem__(self, name: str) -> Any:
        return self.given[name] if name in self.given else MEANT[name][1]

    def __contains__(self, name: str) -> bool:
        return name in self.given


def parse_flags(arguments: Sequence[str]) -> Flags:
    """Parse `--name value`, `--name=value`, and switches alone or with 0 or 1.

    Raises:
        UsageError: a flag is unknown (the nearest is named), lacks its value or has an impossible one, or a required
            flag is not there.
    """
    given: dict[str, Any] = {}
    waiting = list(arguments)
    while waiting:
        name, equals, text = waiting.pop(0).partition("=")
        kind = KINDS.get(name.removeprefix("--")) if name.startswith("--") else None
        if kind is None:
            raise UsageError(f"{name}: there is no such flag; {_nearest(name)}")
        if not equals:
            switched = kind is bool and not (waiting and waiting[0].lower() in WORDS)
            if not switched and (not waiting or waiting[0].startswith("--")):
                raise UsageError(f"{name}: expected a value after it")
            text = "1" if switched else waiting.pop(0)
        given[name.removeprefix("--")] = _value(name, kind, text)
    if absent := [f"--{name}" for name in REQUIRED if name not in given]:
        raise UsageError(f"{', '.join(absent)}: needed; see docs/training.md for a whole command")
    return Flags(given)


def _value(name: str, kind: type, text: str) -> Any:
    try:
        return WORDS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        expected = {int: "a whole number", float: "a number", bool: "0 or 1"}[kind]
        raise UsageError(f"{name} {text}: expected {expected}") from None


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name.lstrip("-"), KINDS, n=1)
    return f"did you mean --{close[0]}?" if close else f"those that mean something are --{', --'.join(MEANT)}"
