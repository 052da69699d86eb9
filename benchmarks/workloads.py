"""Models of several sizes and random data, shared by the speed benchmarks."""

import argparse
import io
from dataclasses import dataclass, replace

import numpy as np
import torch
from rich.console import Console

from llueve.config import GuardConfig, TrainConfig
from llueve.distributed.processes import Processes
from llueve.model.classifier import TimerXLForClassification
from llueve.model.timer_xl import TimerXL
from llueve.samples.split import Part
from llueve.samples.windows import Windows
from llueve.training.environment import Environment
from llueve.training.trainer import Trainer


@dataclass(frozen=True)
class Workload:
    """Sizes of a Timer-XL, and of the windows that it is trained on."""

    batch: int
    width: int
    layers: int
    feed_forward: int
    heads: int = 8
    patch: int = 96
    context: int = 1440
    variables: int = 27

    def encoder(self) -> TimerXL:
        """A fresh encoder."""
        return TimerXL(self.patch, self.width, self.layers, self.heads, self.feed_forward, dropout=0.1)

    def classifier(self) -> TimerXLForClassification:
        """A fresh classifier in training mode."""
        return TimerXLForClassification(
            self.encoder(), 2, "variables", num_variables=self.variables, num_facts=2
        ).train()

    def windows(self, sites: int, times: int, missing: float = 0.0) -> tuple[Windows, Part]:
        """A random panel in the memory order of `build_windows`, and all of its windows."""
        random = np.random.default_rng(0)
        observed_SCT = random.random((sites, self.variables, times), np.float32) >= missing
        values_SCT = random.standard_normal((sites, self.variables, times), np.float32) * observed_SCT
        facts_TF, statics_SF = random.standard_normal((times, 2), np.float32), np.zeros((sites, 0), np.float32)
        site, end = np.nonzero(np.ones((sites, times - self.context + 1), bool))
        values_STC, observed_STC = values_SCT.transpose(0, 2, 1), observed_SCT.transpose(0, 2, 1)
        part = Part("training", site, end + self.context - 1, random.integers(2, size=len(site)))
        return Windows(values_STC, observed_STC, facts_TF, statics_SF, self.context), part

    def trainer(
        self, windows: int, precision: torch.dtype = torch.float32, processes: Processes | None = None
    ) -> Trainer:
        """A training on this many random windows of one site, before its first step."""
        torch.manual_seed(0)
        data, part = self.windows(1, windows + self.context - 1)
        environment = Environment(
            record=lambda _: None,
            keep_incident=lambda _: None,
            new_model=self.classifier,
            console=Console(file=io.StringIO()),
            processes=processes or Processes(),
        )
        config = TrainConfig(batch_size=self.batch, precision=name_of(precision), epochs=10_000)  # type: ignore[arg-type]
        validation = replace(part[:64], name="validation")
        return Trainer(self.classifier(), data, part, validation, config, GuardConfig(), environment)


SMALL = Workload(batch=64, width=64, layers=2, feed_forward=128, heads=4, patch=8, context=32, variables=23)
MEDIUM = Workload(batch=64, width=256, layers=4, feed_forward=512, patch=8, context=32, variables=23)
WORKLOADS = {
    "width 256, 4 layers, batch 16": Workload(batch=16, width=256, layers=4, feed_forward=512),
    "width 1024, 8 layers, batch 2": Workload(batch=2, width=1024, layers=8, feed_forward=2048),
}
if torch.cuda.is_available():
    WORKLOADS["width 1024, 8 layers, batch 16"] = Workload(batch=16, width=1024, layers=8, feed_forward=2048)
TINY = {"width 32, 2 layers, batch 2": Workload(batch=2, width=32, layers=2, feed_forward=32)}


def name_of(dtype: torch.dtype) -> str:
    """`float32` or `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def chosen(given: argparse.Namespace, cases: dict[str, Workload] = WORKLOADS) -> dict[str, Workload]:
    """The cases that the command line asks for."""
    return {name: case for name, case in (TINY if given.tiny else cases).items() if given.only in name}
