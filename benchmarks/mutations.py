"""Whether the tests hold each guard: every check against a silent NaN is taken out, one at a time, and a test must fail.

    python benchmarks/mutations.py [--only WORD] [--list]

Each mutant is a copy of `src/` with one text replaced by another, and the test files that should see it are run on it. A
text that is not there exactly once, and tests that cannot be run, end the script. Exit code 1 if a mutant survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
GUARD, COURSE, LOOP = "stability/guard.py", "training/course.py", "training/loop.py"
CHECKPOINT, MENDING, REMEDIES = "training/checkpoint.py", "training/mending.py", "stability/remedies.py"
OF_GUARD = ("tests/stability/test_guard.py",)
LOOPS, MEND = ("tests/training/test_loop.py",), ("tests/training/test_mending.py",)
REFUSED = ("tests/training/test_refused.py",)
OF_STATES = ("tests/training/test_resume.py", "-k", "poisoned or damaged or last_two or another or link")
OF_FORECASTS = ("tests/test_cli.py", "-k", "finite")
OF_SCORES = ("tests/verification",)
OF_WEIGHTS = ("tests/model/test_pretrained.py",)


@dataclass(frozen=True)
class Mutant:
    """One guard, taken out."""

    name: str
    file: str
    """Under `src/llueve/`."""
    old: str
    new: str
    tests: tuple[str, ...]


def of(file: str, tests: tuple[str, ...], *rows: tuple[str, ...]) -> list[Mutant]:
    """Mutants of one file: name, what is replaced, by what, and which of the tests are enough."""
    return [
        Mutant(name, file, old, new, (*tests, "-k", words[0]) if words and words[0] else tests)
        for name, old, new, *words in rows
    ]


RATES = "if not all(math.isfinite(rate) and rate >= 0 for rate in reading.rates):"
CHECKS = [
    ("a learning rate that is not finite", RATES, "if not all(not rate < 0 for rate in reading.rates):"),
    ("a learning rate below zero", RATES, "if not all(math.isfinite(rate) for rate in reading.rates):"),
    ("a weight that is unsound", "if reading.unsound_weights:", "if False:"),
    ("moments that are not finite", "if not all(map(math.isfinite, reading.moments)):", "if False:"),
    ("a second moment below zero", "if least_second < 0:", "if False:"),
    ("a rate above the schedule", "if any(rate > most * ROUNDING for", "if any(False and rate > most * ROUNDING for"),
    ("moments beyond clipped gradients", "if most > self.largest_clip * ROUNDING:", "if False:"),
    ("an average that is absurd", "if max(map(abs, reading.average)) > LARGEST_WEIGHT:", "if False:"),
    ("an average that is not finite", "if not all(map(math.isfinite, reading.average)):", "if False:"),
    ("a loss that is not finite", "if not math.isfinite(reading.loss):", "if False:"),
    ("a gradient that is not finite", "if not math.isfinite(reading.gradient_norm):", "if False:"),
    ("a gradient whose square overflows", "> LARGEST_NORM:", "> math.inf:"),
    ("an absurd loss at the start", "reading.loss > START_LOSS * math.log(self.classes)", "False"),
    ("a loss spike", "and self.usual_loss.is_spike(reading.loss):", "and False:"),
    ("a gradient spike", "if self.usual_norm.is_spike(reading.gradient_norm):", "if False:"),
    (
        "only accepted steps are usual",
        "        found = self._fault(reading)\n",
        "        found = self._fault(reading)\n        self.usual_norm.accept(reading.gradient_norm)\n",
    ),
    (
        "only accepted losses are usual",
        "        found = self._fault(reading)\n",
        "        found = self._fault(reading)\n        self.usual_loss.accept(reading.loss)\n",
    ),
    ("a training without gradient", "if still or max", "if max"),
    (
        "a training without rates",
        "if still or max(reading.rates) == 0 else",
        "if still else",
    ),
    ("a training that does not move", "if self.idle >= IDLE_STEPS:", "if False:"),
    ("inputs before the first step", "if lost > self.max_skipped:", "if False:"),
    ("weights after an epoch", "if wrong := unsound_weights(model):", "if wrong := unsound_weights(model)[:0]:"),
    ("the budget", "if self.skipped > self.samples_left:", "if False:"),
    ("the budget is of one epoch", "        self.skipped = 0\n        self.reasons", "        self.reasons"),
    ("weights that are not finite", "if not most <= bound]", "if most > bound]"),
    (
        "weights beyond reason",
        "(each, LARGEST_WEIGHT) for name, each in model.named_parameters()",
        "(each, math.inf) for name, each in model.named_parameters()",
    ),
    ("buffers", "for name, each in model.named_buffers()}", "for name, each in ()}"),
    ("collapse to the same logits", "if np.ptp(logits_BK, axis=0).max() <= 1e-6 *", "if False and 0 <="),
    ("collapse to one class", "if len(np.unique(predicted_B)) == 1:", "if False:"),
]
MUTANTS = [
    *of(GUARD, OF_GUARD, *CHECKS),
    *of(
        COURSE,
        MEND,
        (
            "all weights are looked at",
            "() if seen[2] <= LARGEST_WEIGHT else",
            "() if True else",
            "unsound_for_a_single",
        ),
        (
            "buffers are looked at",
            "both = (*self.model.parameters(), *self.model.buffers())",
            "both = (*self.model.parameters(),)",
            "unsound_for_a_single",
        ),
        (
            "the average is looked at",
            "average = [] if self.average is None else [self.average.extremes()]",
            "average = []",
            "leaves_no_trace and average",
        ),
        (
            "the random state",
            "if all(torch.equal(found[name], state)",
            "if True or all(torch.equal(found[name], state)",
            "leaves_no_trace and random",
        ),
        (
            "only sound states are come back to",
            "            if snapshot.is_sound:\n",
            "            if True:\n",
            "is_not_remembered",
        ),
    ),
    *of(
        MENDING,
        MEND,
        (
            "windows that are still unsound stay out",
            "found.append(course.guard.is_sound(",
            "found.append(True or course.guard.is_sound(",
            "quarantined_samples",
        ),
    ),
    *of(COURSE, LOOPS, ("gradients are clipped", "if norm > 0.999 * largest:", "if False:", "torch_clips")),
    *of(COURSE, REFUSED, ("a skipped step draws nothing", "        self.rewind(attempt)\n", "")),
    *of(
        LOOP,
        LOOPS,
        ("the guard is asked", "if fault is None:", "if True:", "bad_step"),
        (
            "a NaN is never the best",
            "improved = math.isfinite(validation_loss) and (",
            "improved = (",
            "nan_validation",
        ),
        (
            "no model without a finite loss",
            "    if course.best is None:\n        raise GuardStop(",
            "    if False:\n        raise GuardStop(",
            "leave_no_model",
        ),
    ),
    *of(
        LOOP,
        MEND,
        (
            "weights before validation",
            "    if mend_weights(course):\n        return",
            "    if False:\n        return",
            "before_validation",
        ),
    ),
    *of(
        MENDING,
        LOOPS,
        (
            "what is passed over is counted",
            "    course.guard.count(attempt.reading, kind, reason, cause)\n",
            "",
            "poison_outside",
        ),
    ),
    *of(
        MENDING,
        MEND,
        ("damage is not mended for ever", "repeated=course.troubled[place] > 0", "repeated=False", "comes_back"),
    ),
    *of(
        REMEDIES,
        ("tests/stability/test_remedies.py",),
        ("the budget of roll-backs", "if ledger.rollbacks >= MOST_ROLLBACKS:", "if False:"),
        ("the budget of quarantine", "if len(rows) > standing.samples_left:", "if False:"),
    ),
    *of(
        "training/state.py",
        OF_STATES,
        ("a state that is not finite", "return self.first_fault() is None", "return True"),
    ),
    *of(
        CHECKPOINT,
        OF_STATES,
        ("the health of a state", "return self.finite and self.canary_loss is not None", "return True"),
        ("the canaries", "return self.finite and self.canary_loss is not None", "return self.finite"),
        (
            "the numbers of a state",
            "return self.finite and self.canary_loss is not None",
            "return self.canary_loss is not None",
        ),
        ("an unsound state on the disk", "            if found.health.sound:\n", "            if True:\n"),
        ("the newest healthy state is kept", "        if healthy is None:\n", "        if False:\n"),
        ("the hash", "    if sha256 != _seal(content, tensors):\n", "    if False:\n"),
        ("the best weights of a state", "        if best:\n            self.read_best(best)\n", ""),
    ),
    *of("pipeline.py", OF_FORECASTS, ("forecasts that are not finite", "    if len(bad):\n", "    if False:\n")),
    *of(
        "verification/verify.py",
        OF_SCORES,
        (
            "scores of forecasts that are not finite",
            "    bad = ~np.isfinite(p_n)\n",
            "    bad = np.isnan(p_n) & False\n",
        ),
    ),
    *of(
        "model/pretrained.py",
        OF_WEIGHTS,
        (
            "damaged pre-trained weights",
            "    if bad := int(infinite.sum()):\n",
            "    if bad := 0 * int(infinite.sum()):\n",
        ),
    ),
]


def mutated(mutant: Mutant) -> str:
    """The file with the guard taken out.

    Raises:
        SystemExit: what is to be replaced is not there once.
    """
    text = (ROOT / "src" / "llueve" / mutant.file).read_text(encoding="utf-8")
    if (count := text.count(mutant.old)) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.file} holds {mutant.old!r} {count} times, not once")
    return text.replace(mutant.old, mutant.new)


def survives(mutant: Mutant, folder: Path) -> bool:
    """Whether every test passes on the mutant.

    Raises:
        SystemExit: the tests cannot be run.
    """
    source = folder / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    path = source / "llueve" / mutant.file
    path.write_text(mutated(mutant), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{mutant.name}: the tests cannot be run\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return done.returncode == 0


def main() -> None:
    """Run every mutant, print a table, and fail if one survives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants whose name or file holds this")
    parser.add_argument("--list", action="store_true", help="only look whether every text is there")
    arguments = parser.parse_args()
    chosen = [each for each in MUTANTS if arguments.only in each.name or arguments.only in each.file]
    survivors = 0
    for mutant in chosen:
        mutated(mutant)  # all texts are looked for before the first test is run
    if arguments.list:
        print(f"{len(chosen)} mutants, every text is there once")
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
