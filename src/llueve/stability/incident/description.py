"""What an incident is: its description, as `incident.json` holds it, and the incident as it was read back.

Shapes: B batch, L steps, C variables, F facts."""

import os
import platform
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

import llueve
from llueve.config import ModelConfig, Section, TrainConfig
from llueve.errors import RunError
from llueve.model.classifier import TimerXLForClassification
from llueve.run import INCIDENT_NAME, INCIDENTS, TENSORS
from llueve.saved import build_classifier, build_encoder
from llueve.stability.step import Batch

FORMAT = 1
"""Raised when the files change in a way that older code would misread."""
UNSEALED = "0" * 64
"""Stands in the place of the file's own hash while that is taken."""
BATCH = {"x_BLC": torch.float32, "observed_BLC": torch.bool, "facts_BF": torch.float32, "y_B": torch.int64}
FEATURES = {"features": torch.float32}
"""Of a batch whose step began at what the encoder had given before."""
KEYS = {"site_B": torch.int64, "end_B": torch.int64}

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
NotFinite = Literal["nan", "inf", "-inf"]


class Scalar(Section):
    """A float32 number for readers, and its exact bits; JSON has no NaN, so that and infinities are words."""

    value: float | NotFinite
    bits: str = Field(pattern=r"^[0-9a-f]{8}$")

    @classmethod
    def of(cls, number: float) -> Self:
        """The number in float32."""
        rounded = torch.tensor(number, dtype=torch.float64).float()
        bits = f"{int(rounded.view(torch.int32)) & 0xFFFFFFFF:08x}"
        return cls(value=float(rounded) if rounded.isfinite() else str(float(rounded)), bits=bits)

    @property
    def number(self) -> float:
        """As Python has it."""
        return float(self.value)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        exact = struct.unpack(">f", bytes.fromhex(self.bits))[0]
        if exact != self.number and not (np.isnan(exact) and np.isnan(self.number)):
            raise ValueError(f"the bits {self.bits} are not those of {self.value}")
        return self


class Machine(Section):
    """What the last bits of a sum depend on."""

    processor: str
    instructions: str
    """The vector instructions that torch uses."""
    accelerator: str | None
    cores: int
    threads: int = Field(ge=1, le=4096)
    platform: str


class StoredFile(Section):
    """Size and SHA-256 of one file."""

    size: int = Field(ge=0)
    sha256: Hash


class Description(Section):
    """`incident.json`, checked as it is read."""

    format: Literal[1]
    kind: str
    """What the guard calls it, such as `loss` or `gradient`."""
    reason: str
    epoch: int = Field(ge=0)
    step: int = Field(ge=0)
    loss: Scalar
    gradient_norm: Scalar
    """Before clipping."""
    rates: list[float | NotFinite]
    """Learning rate of each group, encoder first."""
    mode: Literal["train", "eval"]
    device: Literal["cpu", "cuda"]
    precision: Literal["float32", "bfloat16"]
    train: TrainConfig
    model: ModelConfig
    variables: list[tuple[str, str | None]] = Field(min_length=1)
    """Name and unit."""
    facts: int = Field(ge=0)
    classes: list[str] = Field(min_length=2)
    frozen: list[str]
    """Parameters that were not trained."""
    sites: list[str]
    times: list[str]
    """Site and issue time of each sample."""
    step_hours: float = Field(gt=0)
    memory: dict[str, list[int]]
    """Dimensions of each tensor of the batch in their order in memory: the order of a sum decides its last bits."""
    versions: dict[str, str]
    machine: Machine
    files: dict[str, StoredFile]
    sha256: Hash
    """Of this file, with zeros in the place of this."""

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.train.class_weights is not None and len(self.train.class_weights) != len(self.classes):
            raise ValueError(f"{len(self.train.class_weights)} class weights for {len(self.classes)} classes")
        if set(self.files) != set(TENSORS):
            raise ValueError(f"files are {sorted(self.files)}, expected {sorted(TENSORS)}")
        if set(self.memory) not in (set(BATCH), {*BATCH, *FEATURES}):
            raise ValueError(f"memory orders are of {sorted(self.memory)}, expected {sorted(BATCH)}")
        return self

    @property
    def batch_types(self) -> dict[str, torch.dtype]:
        """Name and type of each tensor of the batch."""
        return {name: dtype for name, dtype in {**BATCH, **FEATURES}.items() if name in self.memory}


@dataclass(frozen=True)
class Incident:
    """One refused step, with all that it was computed from."""

    folder: Path
    about: Description
    batch: Batch
    site_B: Tensor
    """Index of each sample's site in the panel."""
    end_B: Tensor
    """Index of its issue time."""
    weights: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    random_state: dict[str, Tensor]

    @property
    def number(self) -> int:
        """N of `llueve incident … DIR N`."""
        return int(self.folder.name)

    @property
    def precision(self) -> torch.dtype:
        """Of the step."""
        return torch.bfloat16 if self.about.precision == "bfloat16" else torch.float32

    def build_model(self) -> TimerXLForClassification:
        """The model as it was before the step, on the processor; its weights are copies, free to be changed."""
        model = empty_model(self.about)
        model.load_state_dict({name: tensor.clone() for name, tensor in self.weights.items()}, assign=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in self.about.frozen)
        return model.train(self.about.mode == "train")


def empty_model(about: Description) -> TimerXLForClassification:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return build_classifier(
            build_encoder(about.model), about.model, len(about.variables), about.facts, len(about.classes)
        )


def worded(number: float) -> float | str:
    """The number as JSON can hold it."""
    return number if np.isfinite(number) else str(float(number))


def versions() -> dict[str, str]:
    """Of what the numbers of a step depend on."""
    return {"torch": torch.__version__, "numpy": np.__version__, "llueve": llueve.__version__}


def this_machine(device: torch.device) -> Machine:
    """The machine as it is now."""
    return Machine(
        processor=_processor(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        accelerator=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        platform=platform.platform(),
    )


def _processor() -> str:
    """The processor's name as its maker has it, where the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def last_replaced(text: str, old: str, new: str) -> str:
    """The text with the last `old` in it exchanged."""
    before, _, after = text.rpartition(old)
    return before + new + after


def numbers_of(directory: Path) -> list[int]:
    """Numbers of the incidents that are there, whole or not.

    Raises:
        RunError: the directory is not there, or something cannot be read.
    """
    folder = directory / INCIDENTS
    try:
        if not directory.is_dir():
            raise RunError(f"{directory}: is no directory; give the DIR of `llueve train --run DIR`")
        refuse_link(folder)
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise RunError(f"{folder}: cannot be read ({error.strerror or error})") from error
    return sorted(int(name) for name in names if INCIDENT_NAME.fullmatch(name))


def refuse_link(path: Path) -> None:
    """Raise `RunError` if the path is a symbolic link."""
    if path.is_symlink():
        raise RunError(f"{path}: is a link, which is not followed; expected a folder that llueve made")
