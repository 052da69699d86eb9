"""The content of an incident: its description, and the incident as it is read back."""

import os
import platform
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from llueve.config import ModelConfig, Section, TrainConfig
from llueve.config.model_keys import DAY_HOURS, LARGEST_SIZE
from llueve.config.section import MOST_STEPS
from llueve.errors import CheckpointError, RunError
from llueve.model.build import HeadSizes, build_classifier, build_encoder, recent_steps
from llueve.model.classifier import TimerXLForClassification
from llueve.model.heads import DayHead
from llueve.model.weather_xl import DAYS as MOST_DAYS
from llueve.model.weather_xl import PLACE_FACTS
from llueve.panel import minute
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES
from llueve.runs.directory import INCIDENT_NAME, INCIDENTS
from llueve.samples.encoder_inputs import require_day_steps
from llueve.stability.diagnosis import Settings
from llueve.stability.reading import FaultKind, as_word
from llueve.stability.refused_step import RefusedStep
from llueve.version import __version__

FORMAT = 4
"""Format number; raised when older code would misread an incident."""
BATCH = {"x_BLC": torch.float32, "observed_BLC": torch.bool, "facts_BF": torch.float32, "y_B": torch.int64}
"""Tensors of every batch."""
SCENES = {"scene_B": torch.int64, "vector_B": torch.int64, "position_B2": torch.float32}
"""Further tensors of a batch whose windows see each other."""
FUTURE = {"future_BC": torch.float32, "future_known_BC": torch.bool}
"""Further tensors of a batch with a forecasting loss."""
DAYS = {
    "next_BCNP": torch.float32,
    "next_known_BCNP": torch.bool,
    "rain_BNR": torch.float32,
    "rain_known_BNR": torch.bool,
}
"""Further tensors of a batch of a pre-training."""
FEATURES = {"features": torch.float32}
"""Further tensor of a batch that starts from cached features of the encoder."""
ROWS = {"site_B": torch.int64, "end_B": torch.int64}
"""Index of each sample's site and issue time in the panel."""

NotFinite = Literal["nan", "inf", "-inf"]


@dataclass(frozen=True)
class DataNames:
    """Names and sizes that make an incident readable without its data."""

    model: ModelConfig
    variables: Sequence[tuple[str, str | None]]
    """Name and unit of each variable."""
    classes: Sequence[str]
    sites: Sequence[str]
    times: NDArray[np.datetime64]
    """All sites and times of the panel."""
    step_hours: float
    missing: Literal["mask", "raw"] | None = None
    """`windows.missing`, which advice depends on; None if it is not known."""
    site_vectors: int | None = None
    """Number of sites with a learned vector; None if the model sees each site alone."""
    pretraining: bool = False
    """True if the weather encoder is pre-trained: it sees its own quantities alone, and forecasts what follows each day."""

    @property
    def settings(self) -> Settings:
        """Settings that advice depends on."""
        return Settings(self.missing, self.model.pretrained != "none")

    def cell(self, site: int, time: int, variable: int) -> str:
        """A cell of the panel, by its indices, in words."""
        return f"{self.variables[variable][0]} of {self.sites[site]} at {minute(self.times[time])}"


class Scalar(Section):
    """A float32 number for readers, with its exact bits; NaN and infinities are words."""

    value: float | NotFinite
    bits: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]

    @classmethod
    def of(cls, number: float) -> Self:
        """The number, rounded to float32."""
        rounded = torch.tensor(number, dtype=torch.float64).float()
        bits = f"{int(rounded.view(torch.int32)) & 0xFFFFFFFF:08x}"
        return cls(value=as_word(float(rounded)), bits=bits)

    @property
    def number(self) -> float:
        """The number as a float."""
        return float(self.value)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        exact = struct.unpack(">f", bytes.fromhex(self.bits))[0]
        if exact != self.number and not (np.isnan(exact) and np.isnan(self.number)):
            raise ValueError(f"the bits {self.bits} are not those of {self.value}")
        return self


class Machine(Section):
    """The machine and settings that decide the last bits of a sum."""

    processor: str
    instructions: str
    """Vector instructions that torch uses."""
    accelerator: str | None
    cores: int
    threads: Annotated[int, Field(ge=1, le=4096)]
    platform: str


class Description(Section):
    """The text of an incident file, validated when it is read."""

    format: Literal[4]
    kind: FaultKind
    reason: str
    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    loss: Scalar
    gradient_norm: Scalar
    """Gradient norm before clipping."""
    rates: list[float | NotFinite]
    """Learning rate of each parameter group, encoder first."""
    changed: list[str] = Field(default=[], max_length=10)
    """Parts of the stored numbers whose bits changed between two steps."""
    mode: Literal["train", "eval"]
    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]
    train: TrainConfig
    model: ModelConfig
    variables: list[tuple[str, str | None]] = Field(min_length=1)
    """Name and unit of each variable."""
    facts: int = Field(ge=0)
    classes: list[str] = Field(min_length=2)
    frozen: list[str]
    """Parameters that were not trained."""
    sites: list[str]
    times: list[str]
    """Site and issue time of each sample."""
    step_hours: float = Field(gt=0)
    context: int = Field(ge=1, le=MOST_STEPS)
    """Steps of a window."""
    missing: Literal["mask", "raw"] | None = None
    """`windows.missing`; None if it is not known."""
    site_vectors: int | None = Field(None, ge=0, le=LARGEST_SIZE)
    """Number of sites with a learned vector; None if the model sees each site alone."""
    pretraining: bool = False
    """True if the weather encoder was pre-trained."""
    memory: dict[str, list[int]]
    """Dimensions of each tensor of the batch in memory order, which decides the last bits of a sum."""
    versions: dict[str, str]
    machine: Machine

    def _is_of_pretraining(self) -> None:
        """Raise ValueError unless the sizes are those of a pre-training."""
        found = (len(self.variables), self.facts, len(self.classes), self.step_hours, self.site_vectors)
        if self.model.architecture != "weather_xl" or found != (len(ENCODER_QUANTITIES), PLACE_FACTS, 2, 1, None):
            raise ValueError(f"a pre-training of {self.model.architecture} with {found}")
        if self.context % DAY_HOURS or self.context > MOST_DAYS * DAY_HOURS:
            raise ValueError(f"a pre-training with windows of {self.context} hours")

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.train.class_weights is not None and len(self.train.class_weights) != len(self.classes):
            raise ValueError(f"{len(self.train.class_weights)} class weights for {len(self.classes)} classes")
        if self.model.architecture == "weather_xl":
            if len(self.variables) <= len(ENCODER_QUANTITIES) - self.pretraining or self.facts < PLACE_FACTS:
                raise ValueError(f"{len(self.variables)} variables and {self.facts} facts with a weather encoder")
            require_day_steps(self.step_hours)
        if self.pretraining:
            self._is_of_pretraining()
        expected = {*BATCH, *(() if self.site_vectors is None else SCENES), *(DAYS if self.pretraining else ())}
        if set(self.memory) - {*FUTURE, *FEATURES} != expected or len({*self.memory} & {*FUTURE}) == 1:
            raise ValueError(f"memory orders are of {sorted(self.memory)}, expected {sorted(expected)}")
        return self


@dataclass(frozen=True)
class Incident:
    """A refused step that was read back from its file."""

    folder: Path
    about: Description
    step: RefusedStep

    @property
    def number(self) -> int:
        """N of `llueve incident … DIR N`."""
        return int(self.folder.name)


def new_model(about: Description, seed: int | None = None) -> TimerXLForClassification:
    """A model of the described sizes, newly initialised; without a seed it has no memory for its weights."""
    if seed is None:
        with torch.device("meta"):
            return _described_model(about)
    with torch.random.fork_rng(devices=[]):
        # The seed of the processor alone: new models are made there.
        torch.default_generator.manual_seed(seed)
        return _described_model(about).train(about.mode == "train")


def _described_model(about: Description) -> TimerXLForClassification:
    if about.pretraining:
        return day_classifier(about.model)
    recent = recent_steps(about.step_hours, about.context)
    sizes = HeadSizes(
        len(about.variables), about.facts, len(about.classes), recent, about.site_vectors, about.step_hours
    )
    return build_classifier(build_encoder(about.model), about.model, sizes)


def day_classifier(model: ModelConfig) -> TimerXLForClassification:
    """A fresh weather encoder with the head of the pre-training."""
    return TimerXLForClassification(build_encoder(model), 2, DayHead(), instance_norm=False)


def versions() -> dict[str, str]:
    """Versions of the software that decides the numbers of a step."""
    return {"torch": torch.__version__, "numpy": np.__version__, "llueve": __version__}


def this_machine(device: torch.device) -> Machine:
    """The machine that this process runs on."""
    return Machine(
        processor=_processor(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        accelerator=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        platform=platform.platform(),
    )


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def incident_folders(directory: Path) -> dict[int, Path]:
    """Folders of all incidents of a run by number, in order, torn ones included.

    Raises:
        RunError: the directory does not exist, or cannot be read.
    """
    folder = directory / INCIDENTS
    try:
        if not directory.is_dir():
            raise RunError(f"{directory}: is not a directory; give the DIR of `llueve train --run DIR`")
        refuse_link(folder)
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise RunError(f"{folder}: cannot be read ({error.strerror or error})") from error
    return {int(name): folder / name for name in sorted(names) if INCIDENT_NAME.fullmatch(name)}


def refuse_link(path: Path) -> None:
    """Raise `RunError` if the path is a symbolic link."""
    if path.is_symlink():
        raise RunError(f"{path}: is a link, which is not followed; expected a folder that llueve made")


def damaged(path: Path, error: ValidationError) -> CheckpointError:
    """The error for a damaged text: its first wrong entry and, if it is known, the reason."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "its text"
    return CheckpointError(
        f"{path}: is damaged ({where}: {first.get('ctx', {}).get('error', 'a value that llueve does not write')})"
    )
