"""The benchmarks find what they measure and damage in the code of today."""

import subprocess
import sys
from pathlib import Path

from forks import forks

ROOT = Path(__file__).parents[1]
PREPARE = """
import sys
sys.path.insert(0, ".")
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


def test_every_kind_of_fault_can_be_prepared() -> None:
    done = forks().run(PREPARE, folder=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 50


def test_every_check_that_a_mutation_removes_is_there_once() -> None:
    command = [sys.executable, "benchmarks/mutations.py", "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "every text occurs once" in done.stdout
