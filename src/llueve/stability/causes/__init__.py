"""Why a step went wrong, decided by experiment: the step is replayed under single changes, and the smallest that cures it
names the cause.

Nothing here judges by appearance: a cause is named only if taking it away makes loss and gradients finite (or, for a
spike, usual again). Where the steps before it are at hand, they are run again as well, under another conduct. What no
experiment cures is called unknown. The list of causes is closed: the keys of `ADVICE`.
"""

from llueve.stability.causes.advice import ADVICE
from llueve.stability.causes.decide import GATHERED, UNDAMAGED, WARMUP_STEPS, explain
from llueve.stability.causes.step import Conduct, Experiment, Explanation, Step

__all__ = ["ADVICE", "GATHERED", "UNDAMAGED", "WARMUP_STEPS", "Conduct", "Experiment", "Explanation", "Step", "explain"]
