"""A training that is killed again and again, wherever it is, ends in the same bits as one that never was."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forks import MODULE, forks
from llueve.runs import directory as files

TRAINING = """
[train]
patience = 9
batch_size = 8
warmup_steps = 5
average_decay = 0.9
phases = [{ name = "head", freeze = "encoder", epochs = 2 }, { name = "all", epochs = 4 }]
[guard]
max_skipped = 0.1
[checkpoints]
steps = 3
"""

KILLED = """
import json, os, select, signal, sys, time
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from llueve import pipeline
from llueve.cli import main as cli
from llueve.config import load_config
from llueve.training import loop
from llueve.training.saved_states import SavedStates
from llueve.training.stepper import Stepper

config, folder = sys.argv[1], Path(sys.argv[2])
FAULTS = ["half", "fsync", "rename", "renamed", "remove", "removed"]
# Imports, table and audit are the same in every child, so they are done once, before the forks.
loaded = load_config(config)
panel = pipeline.read_panel(loaded)
report = pipeline.audit_panel(panel, loaded)
pipeline.read_panel, pipeline.audit_panel = lambda _: panel, lambda *_: report

def told(function, before, after, pipe):
    def call(*arguments, **keywords):
        os.write(pipe, before)
        result = function(*arguments, **keywords)
        os.write(pipe, after)
        return result
    return call

def dies(where, number):
    # Let this process kill itself at one place inside the writing of its state of this number.
    count = [0]
    def now(place):
        if place == where and count[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)
    def hooked(function, before, after=None):
        def call(*arguments, **keywords):
            now(before)
            result = function(*arguments, **keywords)
            now(after)
            return result
        return call
    class Half:
        def __init__(self, file):
            self.file = file
        def __enter__(self):
            return self
        def __exit__(self, *_):
            self.file.close()
        def write(self, content):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            now("half")
            self.file.write(content[len(content) // 2 :])
        def __getattr__(self, name):
            return getattr(self.file, name)
    def opened(descriptor, mode="r", *more, **keywords):
        file = open_plain(descriptor, mode, *more, **keywords)
        return Half(file) if mode == "wb" else file
    def unlinked(path, **keywords):
        temporary = path.name.endswith(".part")  # before and after each write
        return (unlink_plain if temporary else unlink)(path, **keywords)
    def written(self, *arguments):
        count[0] += 1
        return write(self, *arguments)
    open_plain, write, unlink_plain = os.fdopen, SavedStates.write, Path.unlink
    os.fdopen, SavedStates.write = opened, written
    os.fsync = hooked(os.fsync, "fsync")
    Path.replace = hooked(Path.replace, "rename", "renamed")
    unlink = hooked(Path.unlink, "remove", "removed")
    Path.unlink = unlinked

def child(run, fault):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    if fault is not None:
        dies(*fault)
    # What the training is about: a small letter when it begins, a capital when it is done.
    enter = Stepper.start_phase
    def phase(self):
        enter(self)
        os.write(writing, b"1" if self.state.place.phase == 0 else b"2")
    Stepper.start_phase = phase
    Stepper.attempt = told(Stepper.attempt, b"a", b"A", writing)
    Stepper.apply = told(Stepper.apply, b"s", b"S", writing)
    SavedStates._write = told(SavedStates._write, b"w", b"W", writing)
    loop.recover = told(loop.recover, b"m", b"M", writing)
    loop._validate = told(loop._validate, b"v", b"V", writing)
    sys.argv = ["llueve", "train", config, "--run", str(run), "--resume"]
    code = 1
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        os._exit(code)

def train(run, letter=None, count=0, delay=0, steps=12, fault=None):
    # Kill it some seconds after it has told a letter so many times, or has applied so many steps; returns what it has told
    # and how it ended.
    pid, pipe = child(run, fault)
    seen = b""
    while letter is None or (seen.count(letter) < count and seen.count(b"S") < steps):
        piece = os.read(pipe, 1)
        if not piece:
            break
        seen += piece
    else:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    while piece := os.read(pipe, 4096):
        seen += piece
    os.close(pipe)
    return seen.decode(), status

seen, status = train(folder / "whole")
assert status == 0, status
rng, kills = np.random.default_rng(11), []
# In the middle of a step, of a write, of the look at validation, of the start; and, as long as there is some, of mending.
targets = ["S"] * 18 + ["a"] * 8 + ["w"] * 6 + ["v"] * 2 + ["1"] * 2 + FAULTS * 2
for target in ["m"] * 5 + rng.permutation(targets).tolist():
    if target in FAULTS:
        seen, status = train(folder / "killed", fault=(target, int(rng.integers(1, 3))))
    else:
        count = int(rng.integers(1, 3 if target in "mv1" else 9))
        steps, delay = 1000 if target == "v" else 12, float(rng.choice([0, rng.exponential(0.003)]))
        seen, status = train(folder / "killed", target.encode(), count, delay, steps)
    if not os.WIFSIGNALED(status):
        assert status == 0, (status, seen)
        break
    if target == "half":
        assert list((folder / "killed" / "checkpoints").glob(".*.part")), "no file was half written"
    kills.append((target, seen))
else:
    seen, status = train(folder / "killed")
    assert status == 0, (status, seen)
print(json.dumps(kills))
"""


@pytest.fixture
def table(tmp_path, write_rainy_table):
    """Daily rows at two sites, with two cells missing in the training period."""
    return write_rainy_table(tmp_path, TRAINING, days=300, holes=(100, 150), windows='missing = "raw"')


def test_any_kill_is_without_trace(table, tmp_path):
    """Some fifty times in one run, each time gone on with: in a step, in the frozen phase and after it, while mending, and
    at each place inside the writing of a state."""
    done = forks().run(KILLED, table, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = json.loads(done.stdout.splitlines()[-1])
    assert {target for target, _ in kills} >= {"half", "fsync", "rename", "renamed", "remove", "removed"}
    kills = [seen for _, seen in kills if "S" in seen]
    assert len(kills) >= 25, "kills of a training that had applied a step of its own"
    frozen = [seen for seen in kills if "2" not in seen]
    assert len(frozen) >= 5 and len(kills) - len(frozen) >= 5, f"{len(frozen)} of {len(kills)} in the frozen phase"
    for letter, what in (("a", "a step"), ("w", "a write"), ("m", "mending")):
        assert any(seen.endswith(letter) for seen in kills), f"none was killed inside {what}"
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_kill_is_without_trace_with_every_recipe_and_head():
    """Once each, alone or over an earlier run; the bench has more kills, and those of processes under torchrun."""
    done = forks().run(MODULE.format("benchmarks.kills"), "--tiny", folder=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    last = done.stdout.splitlines()[-1]  # a training that ends before its kill is started again
    assert last.startswith("12 kills, ") and last.endswith(" runs: all bit-identical")


def assert_same_run(first: Path, second: Path):
    """Weights, forecasts, what was recorded, and what was kept of refused steps."""
    one, other = load_file(first / files.WEIGHTS), load_file(second / files.WEIGHTS)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (first / files.PREDICTIONS).read_bytes() == (second / files.PREDICTIONS).read_bytes()
    assert history(first) == history(second)
    assert incidents(first) == incidents(second) != {}
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}


def history(run):
    lines = [json.loads(line) for line in (run / files.HISTORY).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def incidents(run):
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted((run / files.INCIDENTS).rglob("*"))
        if path.is_file()
    }
