"""A trained model with everything that a prediction needs, as `model.safetensors` and `model.json`.

Shapes: C variables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from llueve import run as files
from llueve.config import Config, ModelConfig
from llueve.errors import CheckpointError, DataError, listed
from llueve.model.classifier import Classifier
from llueve.panel import feature_names, static_names
from llueve.run import Run
from llueve.windows import Scaler, Split, calendar_facts

FORMAT = 1
"""Raised when `model.json` changes in a way that older code would misread."""


@dataclass
class SavedModel:
    """The classifier and its surroundings."""

    classifier: Classifier
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
    trained: dict[str, Any] = field(default_factory=dict)
    """Best epoch, its validation loss, samples skipped."""

    @classmethod
    def build(cls, panel: xr.Dataset, split: Split, scaler: Scaler, config: Config) -> "SavedModel":
        """A fresh model for a panel, initialised from `train.seed`."""
        names, step_hours = feature_names(panel), float(panel.attrs["step_hours"])
        torch.manual_seed(config.train.seed)
        return cls(
            classifier=_classifier(
                config.model, len(names), static_names(panel), step_hours, config.target.class_names
            ),
            model=config.model,
            variables=[(name, panel[name].attrs.get("units")) for name in names],
            statics=static_names(panel),
            scaler=scaler,
            categories=panel.attrs.get("categories", {}),
            classes=list(config.target.class_names),
            event_index=config.target.event_index,
            context=config.windows.context,
            step_hours=step_hours,
            missing=config.windows.missing,
            split={
                "validation_start": str(split.validation_start),
                "test_start": str(split.test_start),
                "windows": {part.name: len(part) for part in split.parts},
            },
        )

    def require_same_shape(self, panel: xr.Dataset) -> None:
        """Check that a panel has the variables, units and step that the model was trained with.

        Raises:
            DataError: it differs; each difference is named.
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
            f"{name} is in {here[name]}, trained in {units}"
            for name, units in trained.items()
            if name in here and here[name] != units
        )
        if static_names(panel) != self.statics:
            problems.append(f"its static columns are {static_names(panel)}, trained with {self.statics}")
        if problems:
            raise DataError(
                f"{panel.attrs.get('source', 'the table')}: differs from what the model was trained on: {'; '.join(problems)}"
            )
        if list(here) != list(trained):
            raise DataError(
                f"{panel.attrs.get('source', 'the table')}: its columns are in another order than trained; expected "
                f"{', '.join(trained)}"
            )


def _classifier(
    model: ModelConfig, variables: int, statics: Sequence[str], step_hours: float, classes: Sequence[str]
) -> Classifier:
    calendar = calendar_facts(np.zeros(1, dtype="datetime64[ns]"), step_hours).shape[1]
    return Classifier(model, variables, calendar + len(statics), len(classes))


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
    description = run.read_json(files.MODEL)
    if description.pop("format", None) != FORMAT:
        raise CheckpointError(f"{run.directory / files.MODEL}: was written by another version of llueve; train again")
    path = run.path(files.WEIGHTS)
    try:
        model = ModelConfig.model_validate(description.pop("model"))
        scaler = description.pop("scaler")
        variables = [(str(name), units) for name, units in description.pop("variables")]
        classifier = _classifier(
            model, len(variables), description["statics"], description["step_hours"], description["classes"]
        )
        classifier.load_state_dict(load_file(path))
        return SavedModel(
            classifier=classifier,
            model=model,
            variables=variables,
            scaler=Scaler(*(np.array(scaler[name], np.float32).reshape(len(variables)) for name in ("mean", "std"))),
            **description,
        )
    except (SafetensorError, RuntimeError, ValidationError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: weights and {files.MODEL} cannot be read together ({error}); train again"
        ) from error


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
