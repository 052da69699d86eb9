"""A small network of sites that see each other, and trainings on it, for the tests of scenes."""

import io
import signal
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pandas as pd
import torch
import xarray as xr
from rich.console import Console

from llueve.config import parse_config
from llueve.distributed.processes import Processes
from llueve.errors import Interrupted
from llueve.panel import UNKNOWN
from llueve.runs.directory import Run
from llueve.runs.saved_model import SavedModel
from llueve.samples.scale import fit_scaler
from llueve.samples.split import split_panel
from llueve.training.fit import Job, fit
from llueve.training.saved_states import SavedStates
from llueve.training.stepper import Stepper

SITES, TIMES = 6, 150
LAST_END = 66
"""Last issue time of the training: no other training window holds a cell of this time."""
SECTIONS = {
    "data": {"path": "unused.csv"},
    "target": {"label": "rain", "horizon_hours": 24},
    "split": {"validation_fraction": 0.25, "test_fraction": 0.25},
    "windows": {"context": 8},
    "model": {
        **{"patch_length": 4, "width": 16, "layers": 1, "heads": 2, "feed_forward": 16},
        **{"site_layers": 2, "site_width": 16, "site_heads": 2},
    },
    "train": {
        **{"epochs": 2, "patience": 9, "batch_size": 4, "warmup_steps": 3, "average_decay": 0.9},
        **{"forecast_weight": 1.0, "precision": "float32"},
    },
    "guard": {"max_skipped": 0.1},
    "verify": {"bootstrap": 100},
}


def network_panel(missing=0.1, unknown=0.1):
    """Six sites with positions; some rows are absent, some cells are missing, and some labels are unknown.

    At `LAST_END` every row is there; site 0 has an unknown label, site 1 a known one.
    """
    random = np.random.default_rng(1)
    cube_CST = random.normal(size=(3, SITES, TIMES)).astype(np.float32)
    label_ST = (cube_CST[0] > 0).astype(np.float32)
    absent_ST = random.random(label_ST.shape) < missing
    label_ST[random.random(label_ST.shape) < unknown] = np.nan
    absent_ST[:, LAST_END], label_ST[:2, LAST_END] = False, (np.nan, 1)
    cube_CST[random.random(cube_CST.shape) < missing] = np.nan
    cube_CST[:, absent_ST] = label_ST[absent_ST] = np.nan
    variables = {name: (("site", "time"), each) for name, each in zip("abc", cube_CST, strict=True)}
    return xr.Dataset(
        {**variables, "rain": (("site", "time"), label_ST, {"role": "label", "classes": ["0", "1"]})},
        coords={
            "site": [f"s{each}" for each in range(SITES)],
            "time": np.datetime64("2020-01-01", "ns") + np.arange(TIMES) * np.timedelta64(1, "D"),
            "recorded": (("site", "time"), ~absent_ST),
            **{name: ("site", random.uniform(-5, 5, SITES)) for name in ("latitude", "longitude")},
        },
        attrs={"step_hours": 24.0, "findings": ()},
    )


class NetworkTraining:
    """A training of a small network; keyword arguments are sections of the configuration, merged over `SECTIONS`."""

    def __init__(self, panel=None, **sections):
        table = {name: {**SECTIONS.get(name, {}), **sections.get(name, {})} for name in {*SECTIONS, *sections}}
        self.panel, self.config = network_panel() if panel is None else panel, parse_config(table, "test")
        self.split = split_panel(self.panel, self.config)
        self.saved = SavedModel.build(
            self.panel, self.split, fit_scaler(self.panel, self.split.training_rows), self.config
        )
        self.windows = self.saved.windows(self.panel)
        self.training = self.windows.network.complete(self.split.training)
        self.events, self.history, self.attempts, self.quarantined = [], [], [], []

    def go(self, folder, *, interrupt=0, resume=False):
        """Train in a run directory; with `interrupt`, until a signal comes during this attempt."""
        self.folder, states, run = folder, SavedStates(folder), Run(folder)
        lines = SimpleNamespace(record=lambda line: (self.events if "event" in line else self.history).append(line))
        job = Job(self.config, run, Processes(), Console(file=io.StringIO()), lines)
        if not resume:
            run.create(self.config, False)
        attempt, training = Stepper.attempt, self

        def watched(stepper, *rerun):
            found = attempt(stepper, *rerun)
            if not rerun and found is not None:
                training.attempts.append(found)
                training.quarantined = [(each.site, each.end) for each in stepper.state.ledger.held()]
                if len(training.attempts) == interrupt:
                    stepper._environment.interruption.number = signal.SIGTERM
            return found

        torch.manual_seed(0)  # whatever ran before
        with mock.patch.object(Stepper, "attempt", watched):
            try:
                fit(job, self.saved, self.panel, self.split, self.windows, states.newest() if resume else None)
            except Interrupted:
                assert interrupt
        return self

    @property
    def weights(self):
        return self.saved.classifier.state_dict()

    def lines(self):
        """The history without its seconds."""
        return [{**line, "seconds": None} for line in self.history]


def same(one, other):
    """True if two trainings ended in the same bits."""
    return one.lines() == other.lines() and all(torch.equal(each, other.weights[k]) for k, each in one.weights.items())


def unknown(part):
    return part.y == UNKNOWN


TABLE = """
[data]
path = "table.csv"
site = "site"
position_columns = ["latitude", "longitude"]
[target]
label = "rain"
[split]
validation_fraction = 0.2
test_fraction = 0.2
[windows]
context = 8
[model]
patch_length = 4
width = 16
layers = 1
heads = 2
feed_forward = 16
sites = "together"
site_layers = 2
site_width = 16
site_heads = 2
{model}
[train]
epochs = 2
patience = 9
batch_size = 5
forecast_weight = 0.5
average_decay = 0.9
[checkpoints]
steps = 3
[verify]
bootstrap = 100
"""


def write_network_table(folder, model=""):
    """A table of daily rows at six sites, some of them absent, and a configuration of a training on it."""
    random, frames, days = np.random.default_rng(3), [], 120
    common = np.convolve(random.standard_normal(days), np.ones(5) / 5, mode="same")
    for site in "abcdef":
        wet = common + 0.3 * random.standard_normal(days)
        columns = {
            "site": site,
            "time": pd.date_range("2020-01-01", periods=days, freq="D"),
            "latitude": round(random.uniform(-5, 5), 2),
            "longitude": round(random.uniform(-5, 5), 2),
            "humidity": wet + 0.3 * random.standard_normal(days),
            "pressure": random.standard_normal(days),
            "rain": (np.roll(wet, -1) > 0.1).astype(int),
        }
        frames.append(pd.DataFrame(columns)[random.random(days) > 0.1])
    pd.concat(frames).to_csv(folder / "table.csv", index=False)
    path = folder / "config.toml"
    path.write_text(TABLE.format(model=model), encoding="utf-8")
    return path
