"""Faults of the optimiser and of the random state: moments, learning rates, warm-up, generator."""

from functools import partial
from typing import Any, Literal

import torch

from benchmarks.faults.fault import INF, NAN, TIMINGS, Fault, Size
from benchmarks.faults.scene import Random, Scene, put
from benchmarks.faults.trial import Trial

RATES = (0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4)
WARMUP_STEPS = 50


def moment(which: Literal["exp_avg", "exp_avg_sq"], value: float, scene: Scene) -> Any:
    """Damage one moment."""
    name, parameter = scene.trained()
    return f"{name}.{which}", put(scene.adamw.state[parameter][which], value, scene.random)


def without_warmup(trial: Trial, _random: Random) -> Trial:
    """A trial without warm-up, at a rate that is sound with a warm-up and refused without one."""
    for each in RATES:
        rates = {"encoder_learning_rate": each, "head_learning_rate": each, "phases": [{"name": "all", "epochs": 3}]}
        build = partial(Trial, trial.shape, trial.seed, trial.precision, **rates)
        cold, warm = build(warmup_steps=0).run(), build(warmup_steps=WARMUP_STEPS).run()
        if cold.refused_at and not warm.refused_at and max(line["train_loss"] for line in warm.history) < 1.5:
            found = build(warmup_steps=0)
            found.reference_loss = warm.validation_loss
            return found
    trial.impossible = True
    return trial


def draw(scene: Scene) -> Any:
    """Draw numbers from the generator outside the step."""
    torch.rand(int(scene.random.integers(1, 9)))


def reseed(scene: Scene) -> Any:
    """Seed the generator outside the step."""
    torch.manual_seed(int(scene.random.integers(2**31)))


def faults(size: Size) -> tuple[Fault, ...]:
    """The kinds of this file."""
    moments = partial(Fault, "moments", cause="poisoned_moments", place="number")
    rates = partial(Fault, "rate", cause="learning_rate")
    drift = partial(Fault, "rate", ends="sound", drifts=True)
    state = partial(Fault, "random state", cause="", repaired=True)
    once, high = size(1e6, 30.0), size(1e4, 3e3)
    return (
        moments("NaN in a first moment", plant=partial(moment, "exp_avg", NAN)),
        moments("absurd first moment", plant=partial(moment, "exp_avg", size(1e9, -5e3))),
        moments("negative second moment", plant=partial(moment, "exp_avg_sq", size(-1e-3, -1e-9))),
        moments("infinite second moment", plant=partial(moment, "exp_avg_sq", INF)),
        moments("absurd second moment", plant=partial(moment, "exp_avg_sq", size(1e12, 50.0))),
        moments("a usual second moment", plant=partial(moment, "exp_avg_sq", size(1e-9, 1e-4)), timings=TIMINGS[1:]),
        rates("NaN, once", plant=lambda scene: scene.next_rate(NAN)),
        rates("negative, once", plant=lambda scene: scene.next_rate(-1.0)),
        rates("× 1e6, once", plant=lambda scene: scene.next_rate(once)),
        rates("× 1e4, in memory", plant=lambda scene: scene.scale_rates(high)),
        drift("no warm-up", "missing_warmup", prepare=without_warmup, timings=TIMINGS[:1]),
        state("numbers drawn", plant=draw),
        state("reseeded", plant=reseed),
    )
