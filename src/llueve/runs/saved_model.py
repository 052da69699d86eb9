"""The trained model of a run: its weights in `model.safetensors`, everything else that a prediction needs in `model.json`.

Shapes: C variables.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import xarray as xr
from pydantic import Field, PlainSerializer, PlainValidator, ValidationError, ValidationInfo, field_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from llueve.config import Config, ModelConfig, Section
from llueve.errors import CheckpointError, DataError, listed
from llueve.model.build import build_classifier, build_encoder
from llueve.model.checkpoints.pretrained import PretrainedWeights
from llueve.model.classifier import TimerXLForClassification
from llueve.model.patches import PatchEncoder
from llueve.panel import FloatArray, feature_names, fingerprint, label_name, static_names
from llueve.runs.directory import MODEL, WEIGHTS, Run
from llueve.samples.scale import Scaler
from llueve.samples.split import Split
from llueve.samples.windows import calendar_facts

FORMAT = 1
"""Version of `model.json`: raised when older code would misread it."""


class ScalerNumbers(Section):
    """Mean and standard deviation of each variable, as `model.json` holds them."""

    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]


def _read_scaler(value: Any, info: ValidationInfo) -> Scaler:
    if not isinstance(value, Scaler):
        numbers = ScalerNumbers.model_validate(value)
        value = Scaler(np.array(numbers.mean, np.float32), np.array(numbers.std, np.float32))
    if not len(value.mean_C) == len(value.std_C) == len(info.data.get("variables", ())):
        raise ValueError("the number of variables differs")
    return cast(Scaler, value)


class ModelDescription(Section):
    """The content of `model.json`, checked when it is read."""

    format: int = FORMAT
    variables: list[tuple[str, str | None]] = Field(min_length=1)
    """Name and unit of each feature, in the order that the model expects."""
    statics: list[str]
    categories: dict[str, list[str]]
    """Values of each category column, in the order of the variables made of them."""
    classes: list[str] = Field(min_length=2)
    event_index: int = Field(ge=0)
    """Index of the class whose probability is forecast."""
    context: int = Field(ge=1, strict=True)
    step_hours: float = Field(gt=0)
    missing: Literal["mask", "raw"]
    split: dict[str, Any]
    """First times of the validation and test periods, and the number of windows in each period."""
    fingerprint: str
    """SHA-256 of the panel that the model was trained and verified on."""
    trained: dict[str, Any] = Field(default_factory=dict)
    """Best epoch, its validation loss, number of skipped samples."""
    cells: dict[str, dict[str, int | str]] = Field(default_factory=dict)
    """For each region of a gridded archive: number of cells, number of cells with values, SHA-256 of their positions."""
    scaler: Annotated[
        Scaler,
        PlainValidator(_read_scaler),
        PlainSerializer(lambda scaler: {"mean": scaler.mean_C.tolist(), "std": scaler.std_C.tolist()}),
    ]
    """Mean and standard deviation of each variable in the training period."""
    model: ModelConfig

    @field_validator("event_index")
    @classmethod
    def _event_is_a_class(cls, index: int, info: ValidationInfo) -> int:
        if index >= len(info.data.get("classes", ())):
            raise ValueError("the class does not exist")
        return index

    def build_classifier(self, encoder: PatchEncoder) -> TimerXLForClassification:
        """Return the encoder with a fresh head for these variables, facts and classes."""
        facts = calendar_facts(np.zeros(1, "datetime64[ns]"), self.step_hours).shape[1] + len(self.statics)
        return build_classifier(encoder, self.model, len(self.variables), facts, len(self.classes))


class SavedModel(ModelDescription, arbitrary_types_allowed=True):
    """A classifier with its description: all that a prediction needs."""

    classifier: TimerXLForClassification = Field(exclude=True)

    @classmethod
    def build(
        cls,
        panel: xr.Dataset,
        split: Split,
        scaler: Scaler,
        config: Config,
        pretrained: PretrainedWeights | None = None,
    ) -> "SavedModel":
        """Return a model for a panel, with a new encoder unless weights are given; new parts come from `train.seed`."""
        names, model = feature_names(panel), config.model
        description = ModelDescription(
            variables=[(name, panel[name].attrs.get("units")) for name in names],
            statics=static_names(panel),
            categories=panel.attrs.get("categories", {}),
            classes=list(config.target.class_names),
            event_index=config.target.event_index,
            context=config.windows.context,
            step_hours=float(panel.attrs["step_hours"]),
            missing=config.windows.missing,
            split={
                "validation_start": str(split.validation_start),
                "test_start": str(split.test_start),
                "windows": {part.name: len(part) for part in split.parts},
            },
            fingerprint=fingerprint(panel),
            cells=panel.attrs.get("cells", {}),
            scaler=scaler,
            model=model,
        )
        torch.manual_seed(config.train.seed)
        encoder = build_encoder(model) if pretrained is None else pretrained.build(model.dropout, model.positions)
        return cls(classifier=description.build_classifier(encoder), **dict(description))

    def fresh(self, knots_CJ: FloatArray | None = None) -> TimerXLForClassification:
        """Return a newly initialised classifier of the same sizes; nothing of the present one is copied.

        Args:
            knots_CJ: knots of the levels, as `TimerXLForClassification.set_knots` takes them; None for those of a new head.
        """
        with torch.random.fork_rng(devices=[]):
            # The seed is set on the processor alone: steps on an accelerator draw from a generator of their own.
            torch.default_generator.manual_seed(0)
            fresh = self.build_classifier(build_encoder(self.model))
        if knots_CJ is not None:
            fresh.set_knots(knots_CJ)
        return fresh.train()

    def aligned(self, panel: xr.Dataset) -> xr.Dataset:
        """Return the panel with the trained variables in the trained order.

        Raises:
            DataError: variables, units, step, static columns or cells of a region differ; the message names each difference.
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
            raise DataError(f"{source}: differs from the data that the model was trained on: {'; '.join(problems)}")
        label = label_name(panel)
        return panel[[*trained, *self.statics, *([] if label is None else [label])]]


def _in_units(units: str | None) -> str:
    return "without a unit (write it into the header: name [unit])" if units is None else f"in {units}"


def _in_cells(cells: Mapping[str, int | str]) -> str:
    return f"{cells['count']} cells ({cells['with_values']} with values, at {str(cells['sha256'])[:8]})"


def save_model(run: Run, saved: SavedModel) -> None:
    """Write both files. The description comes last: a run without it is not finished."""
    weights = {name: value.contiguous() for name, value in saved.classifier.state_dict().items()}
    # safetensors' own file writer does not report a full disk as an OSError.
    run.write(WEIGHTS, save(weights))
    run.write_json(MODEL, saved.model_dump())


def load_model(run: Run) -> SavedModel:
    """Read a model, exactly as it was saved.

    Raises:
        RunError: a file is absent.
        CheckpointError: a file is damaged, or the two do not belong together.
    """
    weights, content, path = run.path(WEIGHTS), run.read_json(MODEL), run.directory / MODEL
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: was written by another version of llueve; train again")
    try:
        description = ModelDescription.model_validate(content)
    except ValidationError as error:
        keys = listed([".".join(map(str, each["loc"])) for each in error.errors()])
        raise CheckpointError(f"{path}: has missing, unknown or invalid entries: {keys}; train again") from error
    try:
        classifier = description.build_classifier(build_encoder(description.model))
        classifier.load_state_dict(load_file(weights))
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{weights}: cannot be read together with {MODEL} ({error}); train again") from error
    return SavedModel(classifier=classifier, **dict(description))
