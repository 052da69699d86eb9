"""Read incidents back from files that may be torn, damaged or hostile. Nothing in them is executed."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from llueve.config.model_keys import DAY_HOURS
from llueve.config.tree_bounds import tree_problem
from llueve.errors import CheckpointError, RunError, UsageError, listed
from llueve.model.batch import Batch
from llueve.model.weather_xl import RAIN_MM
from llueve.panel import UNKNOWN
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES
from llueve.runs.directory import INCIDENT
from llueve.runs.sealed_file import read_sealed, read_sealed_text
from llueve.samples.split import Part
from llueve.stability.incidents.format import (
    BATCH,
    DAYS,
    FEATURES,
    FORMAT,
    FUTURE,
    ROWS,
    SCENES,
    Description,
    Incident,
    damaged,
    incident_folders,
    new_model,
    refuse_link,
)
from llueve.stability.reading import Reading
from llueve.stability.refused_step import RefusedStep

TYPES = {**BATCH, **SCENES, **FUTURE, **DAYS, **FEATURES}
LARGEST_DESCRIPTION = 16 * 2**20
"""Most characters of the text of an incident."""

MOST_SCORES = 2**31
"""Most attention scores of a scene: a small file must not need a large memory."""

Groups = dict[str, dict[str, Tensor]]
"""The tensors of a file by the first part of their names, and by the rest."""


@dataclass(frozen=True)
class ListedIncident:
    """One line of the list of incidents."""

    number: int
    about: Description | None
    fault: str | None
    """The reason why it cannot be used; None if its text is sound."""

    def as_dict(self) -> dict[str, Any]:
        """The line for JSON."""
        if self.about is None:
            return {"number": self.number, "fault": self.fault}
        chosen = {"kind", "epoch", "step", "reason", "loss", "gradient_norm"}
        return {"number": self.number, "fault": None, **self.about.model_dump(mode="json", include=chosen)}


def list_incidents(directory: str | Path) -> list[ListedIncident]:
    """List every incident of a run, torn and damaged ones included. Hashes are not checked.

    Raises:
        RunError: the directory does not exist, or its incidents are a link.
    """
    found = []
    for number, folder in incident_folders(Path(directory)).items():
        try:
            path = _incident_file(folder)
            found.append(ListedIncident(number, _description(path, read_sealed_text(path)), None))
        except (RunError, CheckpointError) as error:
            found.append(ListedIncident(number, None, str(error)))
    return found


def kept_incidents(directory: str | Path) -> dict[int, Path]:
    """Folders of all incidents of a run by number; a `RunError` if the run has no incident."""
    if folders := incident_folders(Path(directory)):
        return folders
    raise RunError(f"{directory}: has no incidents: no step of this run was refused, or none was kept")


def load_incident(directory: str | Path, number: int | None = None) -> Incident:
    """Read incident N of a run directory; without N, the last one.

    Raises:
        RunError: the run has no incident, or it is torn. UsageError: the run has no incident N.
        CheckpointError: it is damaged, or its parts do not belong together.
    """
    folders = kept_incidents(directory)
    number = max(folders) if number is None else number
    if number not in folders:
        raise UsageError(f"{directory}: has no incident {number}; it has {listed(list(folders), 20)}")
    path = _incident_file(folders[number])
    tensors, text = read_sealed(path)
    about = _description(path, text)
    groups = _groups(tensors)
    if problem := _batch_problem(about, groups) or _model_problem(about, groups) or _random_problem(about, groups):
        raise CheckpointError(f"{path.parent}: its parts do not belong together: {problem}; it is not used")
    return Incident(path.parent, about, _step(about, groups))


def _incident_file(folder: Path) -> Path:
    refuse_link(folder)
    path = folder / INCIDENT
    if not os.path.lexists(path):
        raise RunError(f"{folder}: is torn: it has no {INCIDENT}, as after a kill; remove it")
    return path


def _description(path: Path, text: str) -> Description:
    if len(text) > LARGEST_DESCRIPTION:
        most = f"expected at most {LARGEST_DESCRIPTION:,}"
        raise CheckpointError(f"{path}: its text has {len(text):,} characters, {most}")
    try:
        content = json.loads(text)
        found_format = content.get("format")
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: is damaged ({type(error).__name__})") from None
    if problem := tree_problem(content):
        raise CheckpointError(f"{path}: is damaged ({problem})")
    if found_format != FORMAT:
        raise CheckpointError(f"{path}: was written by another version of llueve; this one reads format {FORMAT}")
    try:
        return Description.model_validate_json(text)
    except ValidationError as error:
        raise damaged(path, error) from None


def _groups(tensors: Mapping[str, Tensor]) -> Groups:
    groups: Groups = {name: {} for name in ("batch", "rows", "model", "moments", "random")}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = tensor
    return groups


def _step(about: Description, groups: Groups) -> RefusedStep:
    batch, rows = groups["batch"], groups["rows"]
    model = new_model(about)
    model.load_state_dict(dict(groups["model"]), assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in about.frozen)
    rates, loss, norm = tuple(float(rate) for rate in about.rates), about.loss.number, about.gradient_norm.number
    return RefusedStep(
        kind=about.kind,
        reason=about.reason,
        epoch=about.epoch,
        reading=Reading(about.step, len(about.sites), loss, norm, rates, changed=tuple(about.changed)),
        rows=Part("incident", rows["site_B"].numpy(), rows["end_B"].numpy(), batch["y_B"].numpy()),
        batch=Batch.of({name: _laid_out(batch[name], about.memory[name]) for name in about.memory}),
        model=model.train(about.mode == "train"),
        moments=groups["moments"],
        random_state=groups["random"],
        config=about.train,
        precision=torch.bfloat16 if about.precision == "bfloat16" else torch.float32,
    )


def _laid_out(tensor: Tensor, order: Sequence[int]) -> Tensor:
    inverse = [order.index(dimension) for dimension in range(tensor.ndim)]
    return tensor.permute(*order).clone(memory_format=torch.contiguous_format).permute(*inverse)


def _batch_problem(about: Description, groups: Groups) -> str | None:
    """The first part that does not fit the rest; None if all parts fit. The checks below answer likewise."""
    batch, rows = groups["batch"], groups["rows"]
    found = {name: tensor.dtype for name, tensor in {**batch, **rows}.items()}
    if found != {**{name: TYPES[name] for name in about.memory}, **ROWS}:
        return f"the batch holds {sorted(found)}, or other types than expected"
    samples, steps = len(about.sites), batch["x_BLC"].shape[1:2].numel()
    window = (samples, steps, len(about.variables))
    is_weather = about.model.architecture == "weather_xl"
    future = (samples, len(about.variables) - (len(ENCODER_QUANTITIES) if is_weather else 0))
    expected = {"x_BLC": window, "observed_BLC": window, "facts_BF": (samples, about.facts)}
    expected |= {"position_B2": (samples, 2), "future_BC": future, "future_known_BC": future}
    days = steps // DAY_HOURS
    expected |= dict.fromkeys(("next_BCNP", "next_known_BCNP"), (samples, len(about.variables), days, DAY_HOURS))
    expected |= dict.fromkeys(("rain_BNR", "rain_known_BNR"), (samples, days, len(RAIN_MM)))
    for name, tensor in ((name, {**batch, **rows}[name]) for name in (*about.memory, *ROWS)):
        if name != "features" and tuple(tensor.shape) != (shape := expected.get(name, (samples,))):
            return f"{name} has the shape {tuple(tensor.shape)}, expected {shape}"
        if name not in ROWS and sorted(about.memory[name]) != list(range(tensor.ndim)):
            return f"the memory order of {name} is {about.memory[name]}"
    if not samples or steps != about.context or len(about.times) != samples:
        return f"{samples} samples of {steps} steps with {len(about.times)} times and a context of {about.context}"
    least = 0 if about.site_vectors is None else UNKNOWN
    if not least <= int(batch["y_B"].min()) <= int(batch["y_B"].max()) < len(about.classes):
        return f"y_B goes from {batch['y_B'].min()} to {batch['y_B'].max()} with {len(about.classes)} classes"
    if about.site_vectors is not None and (problem := _scene_problem(about, batch, rows["end_B"], about.site_vectors)):
        return problem
    if min(int(tensor.min()) for tensor in rows.values()) < 0:
        return "a sample's site or time has a negative index"
    return None


def _scene_problem(about: Description, batch: Mapping[str, Tensor], end_B: Tensor, sites: int) -> str | None:
    vector_B, scene_B = batch["vector_B"], batch["scene_B"]
    if not 0 <= int(vector_B.min()) <= int(vector_B.max()) <= sites:
        return f"vector_B goes from {vector_B.min()} to {vector_B.max()} with {sites} sites of the training"
    if not torch.equal(scene_B, end_B):
        return "scene_B is not the issue time of each sample"
    found, size_Z = scene_B.unique_consecutive(return_counts=True)
    if len(found.unique()) < len(found):
        return "the samples of one issue time are not next to each other"
    if (most := int(size_Z.max())) > about.model.sites_per_scene or most**2 * about.model.site_heads > MOST_SCORES:
        return f"a scene has {most:,} samples, more than model.sites_per_scene allows, or more than fit in memory"
    return None


def _model_problem(about: Description, groups: Groups) -> str | None:
    sizes, weights = about.model, groups["model"]
    room = sum(tensor.numel() for tensor in weights.values())
    largest = max(sizes.patch_length, sizes.width, sizes.feed_forward, about.facts)
    if about.site_vectors is not None:
        largest = max(largest, sizes.site_width, about.site_vectors)
        if sizes.site_layers > len(weights):
            return "the model is larger than its weights"
    if sizes.layers > len(weights) or largest > room:  # before anything of that size is built
        return "the model is larger than its weights"
    model = new_model(about)
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
    if wrong := sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)):
        return f"absent, unexpected, or of another shape or type than the model's: {listed(wrong)}"
    for key, tensor in groups["moments"].items():
        name = key.rpartition(".")[0]
        if name not in expected or (tensor.ndim and tensor.shape != expected[name][0]):
            return f"the optimiser's {key} belongs to no parameter, or has another shape"
    features, shape = groups["batch"].get("features"), (len(about.sites), *model.pooled_shape(len(about.variables)))
    if features is not None and tuple(features.shape) != shape:
        return f"features has the shape {tuple(features.shape)}, expected {shape}"
    return None


def _random_problem(about: Description, groups: Groups) -> str | None:
    states = groups["random"]
    if set(states) != ({"cpu", "cuda"} if about.device == "cuda" else {"cpu"}):
        return f"random states of {sorted(states)} for a step on {about.device}"
    for name, state in states.items():
        if name == "cpu" or torch.cuda.is_available():
            try:
                torch.Generator(name).set_state(state)
            except (RuntimeError, TypeError) as error:
                return f"the random state of {name} is not valid ({str(error).splitlines()[0]})"
    return None
