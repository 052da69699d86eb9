"""The benchmarks find what they measure and damage in the code of today."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PREPARE = """
from dataclasses import replace
from benchmarks.faults.__main__ import jobs
from benchmarks.faults.kinds import kinds
from benchmarks.faults.trial import Trial

prepared = set()
for job in jobs(False, 1):
    kind = kinds(False).get(job.kind)
    if kind is not None and job.kind not in prepared:
        trial = Trial(replace(job.shape, **kind.shape), job.seed, job.precision, **kind.train)
        if kind.prepare is not None:
            trial = kind.prepare(trial, job.random()) or trial
        trial.patches.close()
        prepared.add(job.kind)
print(len(prepared))
"""


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_kind_of_fault_can_be_prepared() -> None:
    assert int(run("-c", PREPARE)) > 50


def test_every_check_that_a_mutation_removes_is_there_once() -> None:
    assert "every text occurs once" in run("benchmarks/mutations.py", "--list")
