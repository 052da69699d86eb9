"""Mutation test of the checks: each check against a silent NaN is removed, one at a time, and a test must then fail.

    python benchmarks/mutations.py [--only TEXT] [--list]

Each mutant is a copy of `src/` with one text replaced, and only the tests that should catch it run on it. The script ends if
a text does not occur exactly once, or if the tests cannot run. The exit code is 1 if a mutant survives.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = r"""
# stability/guard.py: tests/stability/test_guard.py
a learning rate that is not finite | math.isfinite(rate) and rate >= 0 for | not rate < 0 for
a learning rate below zero | math.isfinite(rate) and rate >= 0 for | math.isfinite(rate) for
an unsound weight | if reading.unsound_weights:
moments that are not finite | if not all(map(math.isfinite, reading.moments)):
a second moment below zero | if least_second < 0:
a rate that is not planned | if any(not math.isclose(rate, plan, rel_tol=ROUNDING - 1) for | if any(False for
bits that change between two steps | if reading.changed:
moments beyond clipped gradients | if most > self.largest_clip * ROUNDING:
an absurd average | if (most := max(map(abs, reading.average))) > LARGEST_WEIGHT:
an average that is not finite | if not all(map(math.isfinite, reading.average)):
a loss that is not finite | if not math.isfinite(reading.loss):
a gradient that is not finite | if not math.isfinite(reading.gradient_norm):
a gradient whose square overflows | > LARGEST_NORM: | > math.inf:
an absurd loss at the start | if self.accepted < ENOUGH and reading.loss > START_LOSS * no_knowledge:
a loss spike | and self.usual_loss.is_spike(reading.loss): | and False:
a gradient spike | if self.usual_norm.is_spike(reading.gradient_norm):
only accepted norms are usual | fault = self._fault(reading) | fault = self._fault(reading); self.usual_norm.accept(reading.gradient_norm)
only accepted losses are usual | fault = self._fault(reading) | fault = self._fault(reading); self.usual_loss.accept(reading.loss)
a training without gradient | if zero_gradient or max(reading.rates) == 0 else | if max(reading.rates) == 0 else
a training without rates | if zero_gradient or max(reading.rates) == 0 else | if zero_gradient else
a training that does not move | if self.idle >= IDLE_STEPS:
inputs before the first step | if lost > self.max_skipped:
weights after an epoch | wrong = unsound_weights(model)\n | wrong = unsound_weights(model)[:0]\n
the budget | if self.skipped > self.samples_left:
the budget is of one epoch | self.skipped = 0\n        self.reasons | self.reasons
weights that are not finite | if not most <= bound] | if most > bound]
absurd weights | (each, LARGEST_WEIGHT) for name | (each, math.inf) for name
buffers | for name, each in model.named_buffers()} | for name, each in ()}
collapse to the same logits | if np.ptp(logits_BK, axis=0).max() <= 1e-6 * | if False and 0 <=
collapse to one class | if len(np.unique(predicted_B)) == 1:
# training/stepper.py: tests/training/test_mending.py
all weights are read | () if seen[2] <= LARGEST_WEIGHT else | () if True else | unsound_for_a_single
the average is read | [] if state.average is None else [state.average.extremes()] | [] | leaves_no_trace and average
bits are compared | changed=state.names_of(seen[len(seen) - len(changed) :]) | changed=() | flips_between
the random state | if all(torch.equal(found[name], expected) | if True or all(torch.equal(found[name], expected) | leaves_no_trace and random
# training/training_state.py: tests/training/test_mending.py
buffers are read | (*self.model.parameters(), *self.model.buffers()) | (*self.model.parameters(),) | unsound_for_a_single
only sound states are kept for a roll-back | if snapshot.is_sound and not | if not | is_not_remembered
# training/stepper.py: tests/training/test_loop.py
gradients are clipped | if norm > 0.999 * largest: | if False: | torch_clips
# training/training_state.py: tests/training/test_refused.py
a skipped step draws nothing | self.place.batches += 1\n        self.rewind_random_state(states) | self.place.batches += 1
# training/loop.py: tests/training/test_loop.py
the guard is asked | if fault is None: | if True: | bad_step
a NaN is never the best | improved = math.isfinite(calibrated) and ( | improved = ( | nan_validation
no model without a finite loss | if state.best is None:\n            raise | if False:\n            raise | leave_no_model
# training/loop.py: tests/training/test_mending.py
weights before validation | if repair_weights(trainer):\n        return  # the training | if False:\n        return  # the training | before_validation
# training/batches/epoch.py: tests/training/test_windows_once.py
windows that were used before | if self._is_repeated(drawn):\n            self._order | if False:\n            self._order
an order with every window | if len(order) != expected or covered != expected or order.units != units:
a batch of other windows | if not self._holds(batch, own):\n            batch | if False:\n            batch
# training/batches/feature_cache.py: tests/training/test_feature_cache.py -k garbage
features in use | if wrong.any():
# training/phases.py: tests/training/test_phases.py -k "refused"
a rate that rises too much | if rate > LARGEST_RISE * before:
# training/recovery.py: tests/training/test_mending.py
unsound windows stay out | found.append(state.guard.is_sound( | found.append(True or state.guard.is_sound( | quarantined_samples
damage is not repaired without end | repeated=state.repeats[here] > 0 | repeated=False | comes_back
# training/recovery.py: tests/training/test_loop.py
skipped samples are counted | state.guard.count(attempt.reading, fault.kind, fault.reason, found) | pass | poison_outside
# stability/remedies.py: tests/stability/test_remedies.py
the budget of roll-backs | if ledger.rollbacks >= MOST_ROLLBACKS:
the budget of quarantine | if len(rows) > situation.samples_left:
# training/snapshot.py: tests/training/test_resume.py -k "poisoned or damaged or last_two or another or link"
a state that is not finite | return self.first_fault() is None | return True
# training/saved_states.py: tests/training/test_resume.py -k "poisoned or damaged or last_two or another or link"
the health of a state | return self.finite and self.canary_loss is not None | return True
the canaries | return self.finite and self.canary_loss is not None | return self.finite
the numbers of a state | return self.finite and self.canary_loss is not None | return self.canary_loss is not None
an unsound state on the disk | if found.health.sound: | if True:
the newest healthy state is kept | if healthy is None:
the best weights of a state | if best:\n            self.read_best(best) | pass
# runs/sealed_file.py: tests/training/test_resume.py -k "poisoned or damaged or last_two or another or link"
the hash | if metadata.get(SEAL) != seal(text, tensors):
# step/forecast.py: tests/cli/test_cli.py -k finite
forecasts that are not finite | if len(bad):
# verification/verify.py: tests/verification
scores of forecasts that are not finite | bad = ~np.isfinite(p).all( | bad = False & ~np.isfinite(p).all(
# model/checkpoints/pretrained.py: tests/model/test_pretrained.py
damaged pre-trained weights | if bad := int(infinite.sum()): | if bad := 0 * int(infinite.sum()):
"""  # noqa: E501 (one line per mutant)
"""Below each source file with its tests: name, replaced text, new text (`if False:` without one), and tests to select."""


@dataclass(frozen=True)
class Mutant:
    """One check, removed."""

    name: str
    file: str
    """Path below `src/llueve/`."""
    old: str
    new: str
    tests: tuple[str, ...]


def mutants() -> Iterator[Mutant]:
    """The rows of the table."""
    for line in TABLE.strip().splitlines():
        if line.startswith("# "):
            file, _, tests = line.removeprefix("# ").partition(": ")
            continue
        name, old, *rest = line.replace("\\n", "\n").split(" | ")
        new, words = (*rest, "if False:")[0], rest[1:]
        yield Mutant(name, file, old, new, (*shlex.split(tests), *(("-k", *words) if words else ())))


def mutated(mutant: Mutant) -> str:
    """The file without the check.

    Raises:
        SystemExit: the text does not occur exactly once.
    """
    text = (ROOT / "src" / "llueve" / mutant.file).read_text(encoding="utf-8")
    if (count := text.count(mutant.old)) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.file} contains {mutant.old!r} {count} times; update this script")
    return text.replace(mutant.old, mutant.new)


def survives(mutant: Mutant, folder: Path) -> bool:
    """True if every test passes on the mutant.

    Raises:
        SystemExit: the tests cannot run.
    """
    source = folder / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    path = source / "llueve" / mutant.file
    path.write_text(mutated(mutant), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{mutant.name}: the tests cannot run\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return done.returncode == 0


def main() -> None:
    """Run every mutant, print a table, and fail if one survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="mutants with this in their name or file")
    parser.add_argument("--list", action="store_true", help="only check that every text occurs once")
    arguments = parser.parse_args()
    chosen = [each for each in mutants() if arguments.only in each.name or arguments.only in each.file]
    survivors = 0
    for mutant in chosen:
        mutated(mutant)  # checks all texts before the first test runs
    if arguments.list:
        print(f"{len(chosen)} mutants, every text occurs once")
        return
    for mutant in chosen:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            survived = survives(mutant, Path(folder))
        survivors += survived
        outcome = "SURVIVED" if survived else "caught"
        print(f"{outcome:8}  {mutant.file:26}  {mutant.name}  ({time.perf_counter() - started:.0f} s)", flush=True)
    print(f"{len(chosen)} mutants, {survivors} survived")
    raise SystemExit(1 if survivors else 0)


if __name__ == "__main__":
    main()
