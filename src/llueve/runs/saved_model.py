"""The trained model of a run: its weights in `model.safetensors`, everything else that a prediction needs in `model.json`.

Shapes: C variables.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import xarray as xr
from pydantic import Field, PlainSerializer, PlainValidator, ValidationError, ValidationInfo, field_validator
from torch import Tensor

from llueve.calibration.calibrate import Calibration
from llueve.calibration.decision import EventThreshold
from llueve.config import Config, ModelConfig, Section
from llueve.config.section import MOST_STEPS, TEN_YEARS
from llueve.config.tree_bounds import tree_problem
from llueve.errors import CheckpointError, DataError, GuardStop, listed
from llueve.model.build import HeadSizes, build_classifier, build_encoder, recent_steps
from llueve.model.checkpoints.pretrained import PretrainedWeights
from llueve.model.classifier import TimerXLForClassification
from llueve.model.patches import PatchEncoder
from llueve.panel import FloatArray, feature_names, fingerprint, label_name, static_names
from llueve.runs.decisive_keys import decisive_keys, differences
from llueve.runs.directory import CONFIG, MODEL, WEIGHTS, Run
from llueve.runs.sealed_file import read_unchecked, seal, sealed_text, write_sealed
from llueve.runs.trained_sites import TrainedSite, network_of, sites_seen_together
from llueve.samples.scale import Scaler
from llueve.samples.split import Split, whole_windows
from llueve.samples.windows import Windows, build_windows, calendar_facts

FORMAT = 3
"""Version of `model.json`: raised when older code would misread it."""
DESCRIBED = "description_sha256"
"""Entry of the sealed text in the weights: the hash of their description."""
FLOAT = np.finfo(np.float32)
"""Limits of the numbers that the model computes with."""


class ScalerNumbers(Section):
    """Mean, standard deviation and usual amount of each variable, as `model.json` holds them."""

    mean: list[Annotated[float, Field(ge=-FLOAT.max, le=FLOAT.max)]]
    std: list[Annotated[float, Field(ge=FLOAT.tiny, le=FLOAT.max)]]
    amount: list[Annotated[float, Field(ge=FLOAT.tiny, le=FLOAT.max)] | None]


def _read_scaler(value: Any, info: ValidationInfo) -> Scaler:
    if not isinstance(value, Scaler):
        numbers = ScalerNumbers.model_validate(value)
        parts = (numbers.mean, numbers.std, numbers.amount)  # None becomes NaN
        value = Scaler(*(np.array(each, np.float32) for each in parts))
    if not len(value.mean_C) == len(value.std_C) == len(value.amount_C) == len(info.data.get("variables", ())):
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
    context: int = Field(ge=1, le=MOST_STEPS, strict=True)
    step_hours: float = Field(gt=0, le=TEN_YEARS)
    missing: Literal["mask", "raw"]
    split: dict[str, Any]
    """First times of the validation and test periods, and the number of windows in each period."""
    fingerprint: str
    """SHA-256 of the panel that the model was trained and verified on."""
    trained: dict[str, Any] = Field(default_factory=dict)
    """Best epoch, its validation loss, number of skipped samples."""
    calibration: Calibration = Calibration()
    """Map from logits to probabilities, fitted on the validation period after the training."""
    decision: EventThreshold = EventThreshold()
    """Probability from which the forecast says yes."""
    cells: dict[str, dict[str, int | str]] = Field(default_factory=dict)
    """For each region of a gridded archive: number of cells, number of cells with values, SHA-256 of their positions."""
    scaler: Annotated[
        Scaler,
        PlainValidator(_read_scaler),
        PlainSerializer(
            lambda scaler: {
                "mean": scaler.mean_C.tolist(),
                "std": scaler.std_C.tolist(),
                "amount": [None if np.isnan(each) else each for each in scaler.amount_C.tolist()],
            }
        ),
    ]
    """Mean, standard deviation and usual amount of each variable in the training period."""
    model: ModelConfig
    sites: list[TrainedSite] | None = None
    """The sites of the training in the order of their vectors; None if the model sees each site alone."""
    configuration: dict[str, Any]
    """The keys of the configuration that decided the steps of the training: see `llueve.runs.decisive_keys`."""
    checkpoint: str | None = None
    """SHA-256 of the tensors of the checkpoint that the encoder began with."""

    @field_validator("event_index")
    @classmethod
    def _event_is_a_class(cls, index: int, info: ValidationInfo) -> int:
        if index >= len(info.data.get("classes", ())):
            raise ValueError("the class does not exist")
        return index

    def build_classifier(self, encoder: PatchEncoder) -> TimerXLForClassification:
        """Return the encoder with a fresh head for these variables, facts and classes."""
        facts = calendar_facts(np.zeros(1, "datetime64[ns]"), self.step_hours).shape[1] + len(self.statics)
        sizes = HeadSizes(
            len(self.variables),
            facts,
            len(self.classes),
            recent_steps(self.step_hours, self.context),
            self.site_vectors,
        )
        return build_classifier(encoder, self.model, sizes)

    @property
    def site_vectors(self) -> int | None:
        """Number of sites with a learned vector; None if the model sees each site alone."""
        return None if self.sites is None else len(self.sites)


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
            variables=[(name, panel.variables[name].attrs.get("units")) for name in names],
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
            sites=sites_seen_together(panel, model),
            configuration=decisive_keys(config),
            checkpoint=None if pretrained is None else seal("", pretrained.tensors),
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

    def windows(self, panel: xr.Dataset, horizon_steps: int = 1) -> Windows:
        """The windows of a panel as this model sees them; `horizon_steps` is for the forecasting loss.

        Raises:
            DataError: a value is absurd, or a site that training did not have has no position.
        """
        network = None
        if self.sites is not None:
            present_ST = whole_windows(panel, self.context)
            network = network_of(panel, self.sites, present_ST, self.model.sites_per_scene)
        return build_windows(panel, self.scaler, self.context, self.missing, horizon_steps, network)

    def aligned(self, panel: xr.Dataset) -> xr.Dataset:
        """Return the panel with the trained variables in the trained order.

        Raises:
            DataError: variables, units, step, static columns or cells of a region differ; the message names each difference.
        """
        step_hours = float(panel.attrs["step_hours"])
        here = {name: panel.variables[name].attrs.get("units") for name in feature_names(panel)}
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
    """Write both files. The description comes last: a run without it is not finished.

    Raises:
        GuardStop: a weight is not finite; nothing is written. RunError: the disk is full or read-only.
    """
    weights, description = saved.classifier.state_dict(), saved.model_dump(mode="json")
    if bad := not_finite(weights):
        raise GuardStop(f"no model is written: weights are not finite in {listed(bad)}; see history.jsonl")
    with run.writing():
        write_sealed(run.directory / WEIGHTS, weights, json.dumps({DESCRIBED: _sha256(description)}))
    run.write_json(MODEL, description)


def load_model(run: Run) -> SavedModel:
    """Read a model, exactly as it was saved.

    Raises:
        RunError: a file is absent.
        CheckpointError: a file is damaged, a weight is not finite, or the two files do not belong together.
    """
    weights, content, path = run.path(WEIGHTS), run.read_json(MODEL), run.directory / MODEL
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: was written by another version of llueve; train again")
    if problem := tree_problem(content):
        raise CheckpointError(f"{path}: is damaged ({problem}); train again")
    try:
        description = ModelDescription.model_validate(content)
    except ValidationError as error:
        keys = listed([".".join(map(str, each["loc"])) for each in error.errors()])
        raise CheckpointError(f"{path}: has missing, unknown or invalid entries: {keys}; train again") from error
    tensors, metadata = read_unchecked(weights.resolve())
    if bad := not_finite(tensors):
        raise CheckpointError(
            f"{weights}: has numbers that are not finite in {listed(bad)}; restore it, or train again"
        )
    if sealed_text(weights, tensors, metadata) != json.dumps({DESCRIBED: _sha256(content)}):
        raise CheckpointError(
            f"{path}: does not belong to these weights ({WEIGHTS} records the hash of another description): one of the two "
            "was changed, or comes from another run; restore both from the same run, or train again"
        )
    # A wrong size in `model.json` must not cost memory or time: the weights decide before anything is built.
    with torch.device("meta"):
        claimed = description.build_classifier(build_encoder(description.model)).state_dict()
    expected, found = ({name: (each.dtype, each.shape) for name, each in state.items()} for state in (claimed, tensors))
    if wrong := sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)):
        names = f"absent, unexpected or of another shape: {listed(wrong)}"
        raise CheckpointError(f"{weights}: does not belong to {MODEL} ({names}); train again")
    try:
        classifier = description.build_classifier(build_encoder(description.model))
        classifier.load_state_dict(tensors)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{weights}: cannot be read together with {MODEL} ({error}); train again") from error
    return SavedModel(classifier=classifier, **dict(description))


def require_own_configuration(run: Run, config: Config, saved: SavedModel) -> None:
    """Check that the configuration of a run is the one that its model was trained with.

    Raises:
        CheckpointError: it is that of another training; the message names the keys that differ.
    """
    if different := differences(saved.configuration, decisive_keys(config)):
        raise CheckpointError(
            f"{run.directory / CONFIG}: does not belong to the model of this run: {'; '.join(different)}. Restore it"
        )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with a number that is not finite."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def _sha256(description: Any) -> str:
    """Hash of a description as JSON holds it, whatever the order and the spacing of its entries."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
