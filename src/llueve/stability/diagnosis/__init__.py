"""The cause of a refused step, found by experiment.

The step runs again under one change at a time, and the smallest change that makes it sound names the cause. If the steps
before it are available, they run again under other settings too. A cause is named only if removing it makes loss and
gradients finite, or a spike usual again. If no experiment cures the step, the cause is unknown. `Cause` is the closed list.
"""

from llueve.stability.diagnosis.advice import Settings
from llueve.stability.diagnosis.case import Evidence, Rerun, Stored
from llueve.stability.diagnosis.causes import Cause
from llueve.stability.diagnosis.diagnose import WARMUP_STEPS, explain
from llueve.stability.diagnosis.explanation import Change, Experiment, Explanation

__all__ = [
    "WARMUP_STEPS",
    "Cause",
    "Change",
    "Evidence",
    "Experiment",
    "Explanation",
    "Rerun",
    "Settings",
    "Stored",
    "explain",
]
