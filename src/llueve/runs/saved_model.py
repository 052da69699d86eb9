"""The trained model of a run, with all that a prediction needs besides its weights.

Shapes: C variables.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, cast

import numpy as np
import torch
import xarray as xr
from pydantic import Field, PlainSerializer, PlainValidator, ValidationInfo, field_validator, model_validator
from torch import Tensor

from llueve.calibration.calibrate import Calibration
from llueve.calibration.decision import EventThreshold
from llueve.config import Config, ModelConfig, Section
from llueve.config.section import MOST_STEPS, TEN_YEARS
from llueve.errors import DataError, listed
from llueve.model.build import HeadSizes, build_classifier, build_encoder, recent_steps, with_sizes
from llueve.model.checkpoints.pretrained import PretrainedWeights
from llueve.model.classifier import TimerXLForClassification
from llueve.model.patches import PatchEncoder
from llueve.model.weather_xl import PLACE_FACTS
from llueve.panel import FloatArray, feature_names, fingerprint, known_quantities, label_name, static_names
from llueve.quantities.catalogue import ORIGINS, meaning_of
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES
from llueve.runs.decisive_keys import decisive_keys
from llueve.runs.sealed_file import seal
from llueve.runs.trained_sites import TrainedSite, network_of, sites_seen_together
from llueve.samples.encoder_inputs import PlaceScale, encoder_problem, fit_places, require_day_steps
from llueve.samples.scale import Scaler
from llueve.samples.split import Split
from llueve.samples.windows import Windows, build_windows, calendar_facts

FORMAT = 4
"""Version of `model.json`: raised when older code would misread it."""
QUANTITY_ATTRIBUTES = {"quantity", "quantity_detail", "quantity_from", "quantity_units", "quantity_reason"}
"""Attributes of a variable of a panel about its quantity."""
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
    members: int = Field(1, ge=1, le=100)
    """Number of models whose mean probability is the forecast."""
    sites: list[TrainedSite] | None = None
    """The sites of the training in the order of their vectors; None if the model sees each site alone."""
    quantities: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Quantity of each variable that has one, as attributes of a panel: the encoder of another table uses the same."""
    places: list[PlaceScale] | None = None
    """Scales of the trained sites for a weather encoder; None for other encoders."""
    configuration: dict[str, Any]
    """The keys of the configuration that decided the steps of the training: see `llueve.runs.decisive_keys`."""
    checkpoint: str | None = None
    """SHA-256 of the tensors of the checkpoint that the encoder began with."""

    @model_validator(mode="after")
    def _encoder_fits(self) -> Self:
        if (self.places is not None) != (self.model.architecture == "weather_xl"):
            raise ValueError("places belong to a weather encoder")
        if self.places is not None:
            require_day_steps(self.step_hours)
        return self

    @field_validator("event_index")
    @classmethod
    def _event_is_a_class(cls, index: int, info: ValidationInfo) -> int:
        if index >= len(info.data.get("classes", ())):
            raise ValueError("the class does not exist")
        return index

    @field_validator("quantities")
    @classmethod
    def _are_quantities(cls, quantities: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
        for name, attributes in quantities.items():
            if not set(attributes) <= QUANTITY_ATTRIBUTES or attributes.get("quantity_from") not in ORIGINS:
                raise ValueError(f"the quantity of {name} has unknown entries")
            meaning_of(f"{attributes.get('quantity', '')} {attributes.get('quantity_detail', '')}".strip())
        return quantities

    @property
    def inputs(self) -> list[tuple[str, str | None]]:
        """Name and unit of each variable of a window: those of the panel, then those of a weather encoder."""
        of_encoder = [] if self.places is None else ENCODER_QUANTITIES
        return [*self.variables, *((f"encoder {name}", "1") for name in of_encoder)]

    def build_classifier(self, encoder: PatchEncoder) -> TimerXLForClassification:
        """Return the encoder with a fresh head for these variables, facts and classes."""
        facts = calendar_facts(np.zeros(1, "datetime64[ns]"), self.step_hours).shape[1] + len(self.statics)
        sizes = HeadSizes(
            len(self.inputs),
            facts + (0 if self.places is None else PLACE_FACTS),
            len(self.classes),
            recent_steps(self.step_hours, self.context),
            self.site_vectors,
            self.step_hours,
        )
        return build_classifier(encoder, self.model, sizes)

    @property
    def site_vectors(self) -> int | None:
        """Number of sites with a learned vector; None if the model sees each site alone."""
        return None if self.sites is None else len(self.sites)


class SavedModel(ModelDescription, arbitrary_types_allowed=True):
    """A classifier with its description: all that a prediction needs."""

    classifier: TimerXLForClassification = Field(exclude=True)
    """The model, or its first member."""
    others: list[TimerXLForClassification] = Field(default_factory=list, exclude=True)
    """Its further members."""

    @property
    def classifiers(self) -> list[TimerXLForClassification]:
        """All members."""
        return [self.classifier, *self.others]

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
        names = feature_names(panel)
        if pretrained is None:
            model = config.model.model_copy(update={"pretrained": "none"})
        else:
            model = with_sizes(config.model, pretrained.report.sizes)
        known = {name: each.as_attributes() for name, each in known_quantities(panel).items() if name in names}
        places = None
        if model.architecture == "weather_xl":
            if problem := encoder_problem(panel):
                raise DataError(f'{problem}. Or set model.pretrained = "none"')
            places = fit_places(panel, split.training_rows)
            model = model.model_copy(update={"quantities": _seen_by_encoder(model, places)})
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
            quantities=known,
            places=places,
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

    def with_members(self, weights: Sequence[Mapping[str, Tensor]], trained: Sequence[dict[str, Any]]) -> "SavedModel":
        """Return the model of several trained members; `trained` holds the facts of each training."""
        members = [self.fresh() for _ in weights]
        for member, tensors in zip(members, weights, strict=True):
            member.load_state_dict(tensors)
        facts = {"members": list(trained)}
        return self.model_copy(
            update={"classifier": members[0], "others": members[1:], "members": len(members), "trained": facts}
        )

    def windows(self, panel: xr.Dataset, horizon_steps: int = 1) -> Windows:
        """The windows of a panel as this model sees them; `horizon_steps` is for the forecasting loss.

        Raises:
            DataError: a value is absurd, or a site that training did not have has no position.
        """
        network = (
            None if self.sites is None else network_of(panel, self.sites, self.context, self.model.sites_per_scene)
        )
        return build_windows(panel, self.scaler, self.context, self.missing, horizon_steps, network, self.places)

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
        panel = panel[[*trained, *self.statics, *([] if label is None else [label])]]
        for name in trained:  # the quantities of the training, not those that these values suggest
            attributes = {key: value for key, value in panel[name].attrs.items() if key not in QUANTITY_ATTRIBUTES}
            panel[name].attrs = attributes | self.quantities.get(name, {})
        return panel


def _seen_by_encoder(model: ModelConfig, places: Sequence[PlaceScale]) -> tuple[str, ...]:
    """The quantities that a weather encoder computes: those of `model.quantities` with a value in the training period."""
    asked = model.quantities or ENCODER_QUANTITIES
    means = zip(*(place.mean for place in places), strict=True)
    known = {
        name for name, of_places in zip(ENCODER_QUANTITIES, means, strict=True) if any(m is not None for m in of_places)
    }
    return tuple(name for name in ENCODER_QUANTITIES if name in asked and name in known)


def _in_units(units: str | None) -> str:
    return "without a unit (write it into the header: name [unit])" if units is None else f"in {units}"


def _in_cells(cells: Mapping[str, int | str]) -> str:
    return f"{cells['count']} cells ({cells['with_values']} with values, at {str(cells['sha256'])[:8]})"
