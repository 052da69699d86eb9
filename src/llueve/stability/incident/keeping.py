"""A refused step into files: all of them or, when the disk is full, none."""

import hashlib
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from llueve.config import ModelConfig, TrainConfig
from llueve.errors import RunError
from llueve.model.classifier import TimerXLForClassification
from llueve.run import INCIDENT, INCIDENTS, TENSORS, Run
from llueve.stability.incident.description import (
    BATCH,
    FEATURES,
    FORMAT,
    UNSEALED,
    Description,
    Scalar,
    StoredFile,
    last_replaced,
    numbers_of,
    refuse_link,
    this_machine,
    versions,
    worded,
)
from llueve.stability.step import Batch
from llueve.windows import Part

logger = logging.getLogger(__name__)

MOST = 20
"""Incidents of one run that are kept: the first ones, since later ones mostly follow from them."""
MOST_BYTES = 4 * 2**30
"""Together they take no more than this, though the first is kept whatever its size if it leaves half of the free disk."""


def keep_incident(
    run_directory: Path,
    *,
    kind: str,
    reason: str,
    epoch: int,
    step: int,
    loss: float,
    gradient_norm: float,
    rates: Sequence[float],
    model: TimerXLForClassification,
    optimiser: torch.optim.Optimizer | None,
    batch: Batch,
    part: Part,
    random_state: Mapping[str, Tensor],
    precision: torch.dtype,
    train: TrainConfig,
    model_config: ModelConfig,
    variables: Sequence[tuple[str, str | None]],
    classes: Sequence[str],
    sites: Sequence[str],
    times: NDArray[np.datetime64],
    step_hours: float,
) -> Path | None:
    """Keep a step that was refused, before anything of it is changed.

    Args:
        run_directory: the run's.
        kind, reason: what is wrong, as a code and in words.
        loss, gradient_norm: of the step, before clipping; float32 numbers, finite or not.
        rates: learning rates.
        model, optimiser: not yet stepped, so as they were before the step.
        batch, part: what the model was given, and the windows that it was made of.
        random_state: `llueve.stability.step.random_states` from before the forward pass.
        variables: name and unit of each.
        sites, times, step_hours: of the whole panel.

    Returns:
        The new folder; None, with a line in the log, if there are too many already or the disk is too full.

    Raises:
        RunError: it cannot be written; what was begun is removed.
    """
    contents = {
        "batch.safetensors": {
            **_parts(batch),
            "site_B": torch.from_numpy(part.site.astype(np.int64)),
            "end_B": torch.from_numpy(part.end.astype(np.int64)),
        },
        "before.safetensors": dict(model.state_dict()),
        "optimiser.safetensors": _optimiser_tensors(model, optimiser),
        "random.safetensors": dict(random_state),
    }
    folder = _next_folder(run_directory, sum(each.nbytes for tensors in contents.values() for each in tensors.values()))
    if folder is None:
        return None
    about: dict[str, Any] = {
        "format": FORMAT,
        "kind": kind,
        "reason": reason,
        "epoch": epoch,
        "step": step,
        "loss": Scalar.of(loss),
        "gradient_norm": Scalar.of(gradient_norm),
        "rates": [worded(rate) for rate in rates],
        "mode": "train" if model.training else "eval",
        "device": batch.x_BLC.device.type,
        "precision": str(precision).removeprefix("torch."),
        "train": train,
        "model": model_config,
        "variables": list(variables),
        "facts": batch.facts_BF.shape[1],
        "classes": list(classes),
        "frozen": [name for name, parameter in model.named_parameters() if not parameter.requires_grad],
        "sites": [str(sites[index]) for index in part.site],
        "times": np.datetime_as_string(times[part.end], unit="s").tolist(),
        "step_hours": step_hours,
        "memory": {name: _memory_order(tensor) for name, tensor in _parts(batch).items()},
        "versions": versions(),
        "machine": this_machine(batch.x_BLC.device),
    }
    _write(folder, contents, about)
    logger.info("kept in %s", folder)
    return folder


def _next_folder(run_directory: Path, size: int) -> Path | None:
    """The folder of the next incident, made; None if it may not be kept."""
    folder = run_directory / INCIDENTS
    try:
        refuse_link(folder)
        folder.mkdir(exist_ok=True)
        numbers = numbers_of(run_directory)
        used = sum(path.lstat().st_size for number in numbers for path in (folder / f"{number:03d}").iterdir())
        too_much = None
        if len(numbers) >= MOST or (numbers and numbers[-1] == 999):
            too_much = f"{len(numbers)} are there"
        elif numbers and used + size > MOST_BYTES:
            too_much = f"those that are there have {used:,} bytes, this one {size:,}, together at most {MOST_BYTES:,}"
        elif size > (free := shutil.disk_usage(folder).free) // 2:
            too_much = f"it has {size:,} bytes and the disk has {free:,} left, half of which are for the model"
        if too_much:
            logger.warning("this step is not kept in %s: %s", folder, too_much)
            return None
        place = folder / f"{numbers[-1] + 1 if numbers else 1:03d}"
        place.mkdir()
    except OSError as error:
        raise _unwritable(folder, error) from error
    return place


def _write(folder: Path, contents: Mapping[str, Mapping[str, Tensor]], about: dict[str, Any]) -> None:
    """Write the tensors and then the description; if that fails, nothing stays."""
    files = {}
    try:
        for name, tensors in contents.items():
            content = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
            Run(folder).write(name, _filling(content))
            files[name] = StoredFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        text = Description(**about, files=files, sha256=UNSEALED).model_dump_json(indent=2) + "\n"
        Run(folder).write_text(INCIDENT, last_replaced(text, UNSEALED, hashlib.sha256(text.encode()).hexdigest()))
    except RunError as error:
        for name in TENSORS:
            with suppress(OSError):
                (folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()
        raise _unwritable(folder, error.__cause__ or error) from error


def _filling(content: bytes) -> Callable[[Path], None]:
    def fill(path: Path) -> None:
        path.write_bytes(content)

    return fill


def _unwritable(folder: Path, error: BaseException) -> RunError:
    what = getattr(error, "strerror", None) or error
    return RunError(f"{folder}: a refused step cannot be kept there ({what}); free the disk, or choose another --run")


def _parts(batch: Batch) -> dict[str, Tensor]:
    held = {name: getattr(batch, name) for name in (*BATCH, *FEATURES)}
    return {name: tensor for name, tensor in held.items() if tensor is not None}


def _optimiser_tensors(model: nn.Module, optimiser: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """Everything that the optimiser remembers, by parameter."""
    if optimiser is None:
        return {}
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def _memory_order(tensor: Tensor) -> list[int]:
    strides = tensor.stride()
    return sorted(range(tensor.ndim), key=lambda dimension: -strides[dimension])
