"""Incidents back from their files, which may be torn, damaged or hostile."""

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from llueve.errors import CheckpointError, RunError, UsageError, listed
from llueve.run import INCIDENT, INCIDENTS, TENSORS
from llueve.stability.incident.description import (
    FEATURES,
    FORMAT,
    KEYS,
    UNSEALED,
    Description,
    Incident,
    StoredFile,
    empty_model,
    last_replaced,
    numbers_of,
    refuse_link,
)
from llueve.stability.step import Batch

LARGEST_DESCRIPTION = 64 * 2**20
"""Bytes of an `incident.json`."""


@dataclass(frozen=True)
class Listed:
    """One line of the list of incidents."""

    number: int
    about: Description | None
    fault: str | None
    """Why it cannot be used; None if it can, as far as its sizes tell."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        if self.about is None:
            return {"number": self.number, "fault": self.fault}
        chosen = {"kind", "epoch", "step", "reason", "loss", "gradient_norm"}
        return {"number": self.number, "fault": None, **self.about.model_dump(include=chosen)}


def list_incidents(directory: str | Path) -> list[Listed]:
    """Every incident of a run, torn and damaged ones too; sizes are compared, hashes are not.

    Raises:
        RunError: there is no such directory, or its incidents are a link.
    """
    found = []
    for number in numbers_of(Path(directory)):
        try:
            about = _describe(Path(directory) / INCIDENTS / f"{number:03d}")
            found.append(Listed(number, about, None))
        except (RunError, CheckpointError) as error:
            found.append(Listed(number, None, str(error)))
    return found


def load_incident(directory: str | Path, number: int | None = None) -> Incident:
    """Read one incident back; nothing in it is run.

    Args:
        directory: the run's.
        number: N of `incidents/N`; the last one if None.

    Raises:
        RunError: there is none, or it is torn. UsageError: there is none of that number. CheckpointError: it is damaged, or
            its parts do not belong together.
    """
    numbers = numbers_of(Path(directory))
    if not numbers:
        raise RunError(f"{directory}: has no incidents: no step of this run was refused, or none was kept")
    if number is not None and number not in numbers:
        raise UsageError(f"{directory}: has no incident {number}; those that it has are {listed(numbers, 20)}")
    folder = Path(directory) / INCIDENTS / f"{numbers[-1] if number is None else number:03d}"
    about = _describe(folder)
    batch, before, optimiser, random_state = (_tensors(folder / name, about.files[name]) for name in TENSORS)
    problem = (
        _batch_problem(about, batch)
        or _model_problem(about, before, optimiser)
        or _features_problem(about, batch)
        or _random_problem(about, random_state)
    )
    if problem:
        raise CheckpointError(f"{folder}: its parts do not belong together: {problem}; it is not used")
    return Incident(
        folder,
        about,
        Batch(**{name: _laid_out(batch[name], about.memory[name]) for name in about.batch_types}),
        batch["site_B"],
        batch["end_B"],
        before,
        optimiser,
        random_state,
    )


def _describe(folder: Path) -> Description:
    """The description of an incident whose files are all there.

    Raises:
        RunError: it is torn, or a link. CheckpointError: it is damaged.
    """
    refuse_link(folder)
    path = folder / INCIDENT
    if not os.path.lexists(path):
        raise RunError(
            f"{folder}: is torn: {INCIDENT}, which is written last, is not there, as after a kill; remove it"
        )
    content = read_small(path, LARGEST_DESCRIPTION)
    try:
        about = Description.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if where == "format" and first["type"] == "literal_error":
            raise CheckpointError(
                f"{path}: was written by another version of llueve; this one reads {FORMAT}"
            ) from None
        raise CheckpointError(f"{path}: is damaged ({where}: {first['msg']})") from None
    text = content.decode()
    if hashlib.sha256(last_replaced(text, about.sha256, UNSEALED).encode()).hexdigest() != about.sha256:
        raise CheckpointError(f"{path}: is damaged (its hash is not that of its content)")
    for name, stored in about.files.items():
        if (size := _size(folder / name)) != stored.size:
            raise CheckpointError(f"{folder / name}: is damaged ({size:,} bytes, expected {stored.size:,})")
    return about


def _size(path: Path) -> int:
    """Bytes of a plain file.

    Raises:
        CheckpointError: it is absent, a link, or no file.
    """
    try:
        status = path.lstat()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: is no plain file; links are not followed")
    return status.st_size


def read_small(path: Path, most: int) -> bytes:
    """The bytes of a plain file of at most that size.

    Raises:
        CheckpointError: it is larger, a link, or cannot be read.
    """
    if (size := _size(path)) > most:
        raise CheckpointError(f"{path}: has {size:,} bytes, expected at most {most:,}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


def _tensors(path: Path, stored: StoredFile) -> dict[str, Tensor]:
    """The tensors of a file that is as it was written."""
    content = read_small(path, stored.size)
    if hashlib.sha256(content).hexdigest() != stored.sha256:
        raise CheckpointError(f"{path}: is damaged (its hash is not the recorded one)")
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no safetensors file ({error})") from error


def _laid_out(tensor: Tensor, order: Sequence[int]) -> Tensor:
    """The tensor in its recorded order in memory, in memory of its own."""
    inverse = [order.index(dimension) for dimension in range(tensor.ndim)]
    return tensor.permute(*order).clone(memory_format=torch.contiguous_format).permute(*inverse)


def _batch_problem(about: Description, batch: Mapping[str, Tensor]) -> str | None:
    """What in a batch does not fit the rest; None if all does."""
    if {name: tensor.dtype for name, tensor in batch.items()} != {**about.batch_types, **KEYS}:
        return f"the batch holds {sorted(batch)}, or other types than expected"
    samples, steps = len(about.sites), batch["x_BLC"].shape[1:2].numel()
    window = (samples, steps, len(about.variables))
    expected = {"x_BLC": window, "observed_BLC": window, "facts_BF": (samples, about.facts)}
    for name in (*about.batch_types, *KEYS):  # what was read comes in any order
        tensor = batch[name]
        if name not in FEATURES and tuple(tensor.shape) != (shape := expected.get(name, (samples,))):
            return f"{name} has the shape {tuple(tensor.shape)}, expected {shape}"
        if name not in KEYS and sorted(about.memory[name]) != list(range(tensor.ndim)):
            return f"the memory order of {name} is {about.memory[name]}"
    if not samples or not steps or len(about.times) != samples:
        return f"{samples} samples of {steps} steps with {len(about.times)} times"
    if not 0 <= int(batch["y_B"].min()) <= int(batch["y_B"].max()) < len(about.classes):
        return f"y_B goes from {batch['y_B'].min()} to {batch['y_B'].max()} with {len(about.classes)} classes"
    if min(int(batch[name].min()) for name in KEYS) < 0:
        return "a sample's site or time has a negative index"
    return None


def _model_problem(about: Description, weights: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]) -> str | None:
    """What in weights and moments does not fit the described model; None if all does."""
    sizes = about.model
    room = sum(tensor.numel() for tensor in weights.values())
    largest = max(sizes.patch_length, sizes.width, sizes.feed_forward)
    if sizes.layers > len(weights) or largest > room or about.facts > room:  # before anything of that size is made
        return "the model is larger than its weights"
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in empty_model(about).state_dict().items()}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
    if wrong := sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)):
        return f"absent, left over, or of another shape or type than the model's: {listed(wrong)}"
    for key, tensor in optimiser.items():
        name = key.rpartition(".")[0]
        if name not in expected or (tensor.ndim and tensor.shape != expected[name][0]):
            return f"the optimiser's {key} belongs to no parameter, or has another shape"
    return None


def _features_problem(about: Description, batch: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the features of a batch that has some; None if they fit the model, whose sizes are sound."""
    shape = (len(about.sites), *empty_model(about).pooled_shape(len(about.variables)))
    if "features" in batch and tuple(batch["features"].shape) != shape:
        return f"features has the shape {tuple(batch['features'].shape)}, expected {shape}"
    return None


def _random_problem(about: Description, states: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the states of the random generators; None if torch takes them."""
    if set(states) != ({"cpu", "cuda"} if about.device == "cuda" else {"cpu"}):
        return f"random states of {sorted(states)} for a step on {about.device}"
    for name, state in states.items():
        if name == "cpu" or torch.cuda.is_available():
            try:
                torch.Generator(name).set_state(state)
            except (RuntimeError, TypeError) as error:
                return f"the random state of {name} is none ({str(error).splitlines()[0]})"
    return None
