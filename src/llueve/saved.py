"""A trained model with everything that a prediction needs, as `model.safetensors` and `model.json`.

Shapes: C variables.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from llueve import run as files
from llueve.config import Config, ModelConfig, Section
from llueve.errors import CheckpointError, DataError, listed
from llueve.model.classifier import TimerXLForClassification, VariablesHead
from llueve.model.patches import PatchEncoder
from llueve.model.pretrained import Sizes, load_pretrained
from llueve.panel import feature_names, label_name, static_names
from llueve.run import Run
from llueve.windows import Scaler, Split, calendar_facts

FORMAT = 1
"""Raised when `model.json` changes in a way that older code would misread."""


class ScalerFile(Section):
    """The scaler as `model.json` holds it."""

    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


class ModelFile(Section):
    """`model.json`, checked as it is read: see `SavedModel` for what each entry means."""

    format: int
    model: ModelConfig
    variables: list[tuple[str, str | None]] = Field(min_length=1)
    statics: list[str]
    scaler: ScalerFile
    categories: dict[str, list[str]]
    classes: list[str] = Field(min_length=2)
    event_index: int = Field(ge=0)
    context: int = Field(ge=1, strict=True)
    step_hours: float = Field(gt=0)
    missing: Literal["mask", "raw"]
    split: dict[str, Any]
    fingerprint: str
    trained: dict[str, Any]
    cells: dict[str, dict[str, int | str]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _event_is_a_class(self) -> Self:
        if self.event_index >= len(self.classes):
            raise ValueError(f"event_index {self.event_index} is none of the {len(self.classes)} classes")
        return self


@dataclass
class SavedModel:
    """The classifier and its surroundings."""

    classifier: TimerXLForClassification
    model: ModelConfig
    variables: list[tuple[str, str | None]]
    """Name and unit of each feature, in the order that the model expects."""
    statics: list[str]
    scaler: Scaler
    categories: Mapping[str, Sequence[str]]
    """Values of each category column, in the order of the variables made of them."""
    classes: list[str]
    event_index: int
    context: int
    step_hours: float
    missing: Literal["mask", "raw"]
    split: dict[str, Any]
    fingerprint: str
    """Of the panel that it was trained and verified on."""
    trained: dict[str, Any] = field(default_factory=dict)
    """Best epoch, its validation loss, samples skipped."""
    cells: Mapping[str, Mapping[str, int | str]] = field(default_factory=dict)
    """Of each region of a gridded archive: cells, cells with values, and SHA-256 of where they lie."""

    @classmethod
    def build(cls, panel: xr.Dataset, split: Split, scaler: Scaler, config: Config) -> "SavedModel":
        """A model for a panel, its new parts initialised from `train.seed`.

        Raises:
            CheckpointError: the checkpoint of `model.pretrained` does not load.
        """
        names, step_hours = feature_names(panel), float(panel.attrs["step_hours"])
        torch.manual_seed(config.train.seed)
        model = config.model
        encoder = (
            build_encoder(model)
            if model.pretrained == "none"
            else load_pretrained(model.pretrained, model.allow_missing, model.dropout, model.positions)[0]
        )
        return cls(
            classifier=_classifier(
                encoder, model, len(names), static_names(panel), step_hours, config.target.class_names
            ),
            model=model,
            variables=[(name, panel[name].attrs.get("units")) for name in names],
            statics=static_names(panel),
            scaler=scaler,
            categories=panel.attrs.get("categories", {}),
            classes=list(config.target.class_names),
            event_index=config.target.event_index,
            context=config.windows.context,
            step_hours=step_hours,
            missing=config.windows.missing,
            fingerprint=fingerprint(panel),
            cells=panel.attrs.get("cells", {}),
            split={
                "validation_start": str(split.validation_start),
                "test_start": str(split.test_start),
                "windows": {part.name: len(part) for part in split.parts},
            },
        )

    def fresh(self) -> TimerXLForClassification:
        """A model of the same sizes, newly initialised: nothing of this one, nothing pre-trained."""
        with torch.random.fork_rng(devices=[]):
            # Of the processor alone: a step on an accelerator draws from its own.
            torch.default_generator.manual_seed(0)
            fresh = _classifier(
                build_encoder(self.model), self.model, len(self.variables), self.statics, self.step_hours, self.classes
            )
        if isinstance(fresh.head, VariablesHead) and isinstance(self.classifier.head, VariablesHead):
            fresh.head.knots_CJ.copy_(self.classifier.head.knots_CJ)
        return fresh.train()

    def aligned(self, panel: xr.Dataset) -> xr.Dataset:
        """The panel with the trained variables in the trained order.

        Raises:
            DataError: variables, units, step or the cells of a region differ from the trained ones; each difference is named.
        """
        step_hours = float(panel.attrs["step_hours"])
        here = {name: panel[name].attrs.get("units") for name in feature_names(panel)}
        trained = dict(self.variables)
        problems = []
        if not np.isclose(step_hours, self.step_hours):
            problems.append(f"its step is {step_hours:g} h, trained on {self.step_hours:g} h")
        if absent := [name for name in trained if name not in here]:
            problems.append(f"it lacks the variables {listed(absent, 10)}")
        if unknown := [name for name in here if name not in trained]:
            problems.append(f"it has variables that the model never saw: {listed(unknown, 10)}")
        problems.extend(
            f"{name} is {_in_units(here[name])}, trained {_in_units(units)}"
            for name, units in trained.items()
            if name in here and here[name] != units
        )
        if sorted(static_names(panel)) != sorted(self.statics):
            problems.append(f"its static columns are {static_names(panel)}, trained with {self.statics}")
        problems.extend(
            f"the region {name} is {_in_cells(cells)}, trained on {_in_cells(self.cells[name])}: means of another place"
            for name, cells in panel.attrs.get("cells", {}).items()
            if name in self.cells and cells != self.cells[name]
        )
        if problems:
            source = panel.attrs.get("source", "the table")
            raise DataError(f"{source}: differs from what the model was trained on: {'; '.join(problems)}")
        label = label_name(panel)
        return panel[[*trained, *self.statics, *([] if label is None else [label])]]


def _in_units(units: str | None) -> str:
    return "without a unit (write it into the header: name [unit])" if units is None else f"in {units}"


def _in_cells(cells: Mapping[str, int | str]) -> str:
    return f"{cells['count']} cells ({cells['with_values']} with values, at {str(cells['sha256'])[:8]})"


def fingerprint(panel: xr.Dataset) -> str:
    """SHA-256 of sites, times and every cell of a panel, whatever the order of its variables."""
    digest = hashlib.sha256()
    digest.update("\n".join(panel["site"].values.tolist()).encode())
    digest.update(panel["time"].values.astype("datetime64[ns]").astype(np.int64).tobytes())
    for name in sorted(map(str, panel.data_vars)):
        digest.update(name.encode())
        digest.update(panel[name].values.tobytes())
    return digest.hexdigest()


def build_encoder(model: ModelConfig) -> PatchEncoder:
    """A fresh encoder of the configured architecture and sizes."""
    sizes = Sizes(model.architecture, model.patch_length, model.width, model.layers, model.heads, model.feed_forward)
    return sizes.build(model.dropout, model.positions)


def build_classifier(
    encoder: PatchEncoder, model: ModelConfig, variables: int, facts: int, classes: int
) -> TimerXLForClassification:
    """The encoder with a fresh head of the configured kind."""
    return TimerXLForClassification(
        encoder,
        classes,
        model.head,
        num_variables=variables,
        num_facts=facts,
        dropout=model.dropout,
        instance_norm=model.instance_norm,
    )


def _classifier(
    encoder: PatchEncoder,
    model: ModelConfig,
    variables: int,
    statics: Sequence[str],
    step_hours: float,
    classes: Sequence[str],
) -> TimerXLForClassification:
    calendar = calendar_facts(np.zeros(1, dtype="datetime64[ns]"), step_hours).shape[1]
    return build_classifier(encoder, model, variables, calendar + len(statics), len(classes))


def save_model(run: Run, saved: SavedModel) -> None:
    """Write both files; the description last, so that a model without it was not finished."""
    weights = {name: value.contiguous() for name, value in saved.classifier.state_dict().items()}
    # Bytes first: safetensors' own writer reports a full disk as something that is no OSError.
    content = save(weights)
    run.write(files.WEIGHTS, lambda path: _write(path, content))
    description = {name: value for name, value in vars(saved).items() if name not in ("classifier", "scaler", "model")}
    run.write_json(
        files.MODEL,
        {
            "format": FORMAT,
            **description,
            "scaler": {"mean": saved.scaler.mean_C.tolist(), "std": saved.scaler.std_C.tolist()},
            "model": saved.model.model_dump(),
        },
    )


def load_model(run: Run) -> SavedModel:
    """Read a model back, exactly as it was.

    Raises:
        RunError: a file is absent. CheckpointError: one is damaged or they do not fit each other.
    """
    path = run.path(files.WEIGHTS)
    description = run.read_json(files.MODEL)
    if description.get("format") != FORMAT:
        raise CheckpointError(f"{run.directory / files.MODEL}: was written by another version of llueve; train again")
    try:
        known = ModelFile.model_validate(description)
        count = len(known.variables)
        encoder = build_encoder(known.model)
        classifier = _classifier(encoder, known.model, count, known.statics, known.step_hours, known.classes)
        classifier.load_state_dict(load_file(path))
        mean_C, std_C = (np.array(each, np.float32).reshape(count) for each in (known.scaler.mean, known.scaler.std))
    except (SafetensorError, OSError, RuntimeError, ValidationError, ValueError) as error:
        raise CheckpointError(
            f"{path}: weights and {files.MODEL} cannot be read together ({error}); train again"
        ) from error
    rest = {name: getattr(known, name) for name in ModelFile.model_fields if name not in ("format", "scaler")}
    return SavedModel(classifier=classifier, scaler=Scaler(mean_C, std_C), **rest)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
