"""Several processes train as one does: the same loss, the same decisions, and an end that is told when one is lost."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from forks import LLUEVE, TORCHRUN, forks
from llueve.runs import directory as files

WAIT_SECONDS = 120
COMMAND = """
import os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from llueve.cli import main as cli
sys.argv[0] = "llueve"
codes, code = os.environ["CODES"], 0
Path(codes, os.environ["RANK"] + ".pid").write_text(str(os.getpid()))
if os.environ.get("PLANT") == os.environ["RANK"]:
    from llueve.training import stepper
    gradients = stepper.loss_and_gradients
    stepper.loss_and_gradients = lambda *step: gradients(*step) * float("nan")
try:
    cli.main()
except SystemExit as end:
    code = end.code or 0
Path(codes, os.environ["RANK"]).write_text(str(code))
sys.exit(code)
"""
"""`llueve` under torchrun, with what each process was and how it ended."""


@pytest.fixture(scope="module")
def table(tmp_path_factory, write_rainy_table):
    """A table, and a configuration of a few small epochs without dropout."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "command.py").write_text(COMMAND, encoding="utf-8")
    return write_rainy_table(
        folder,
        """
[train]
epochs = 2
patience = 99
batch_size = 7
warmup_steps = 5
average_decay = 0.9
[checkpoints]
steps = 5
""",
        days=300,
        model="dropout = 0.0",
    )


JOBS = []


@pytest.fixture(scope="module")
def torchrun(table):
    """Start a program under torchrun, which forks its processes."""

    def start(program, *arguments, options=TWO, **environment):
        forking = ("--shutdown-timeout=3", "--run-path", "--start-method=fork")
        here = {"OMP_NUM_THREADS": "1", "CODES": str(table.parent), **environment}
        JOBS.append(forks().start(TORCHRUN, *forking, *options, program, *arguments, merged=True, **here))
        return JOBS[-1]

    return start


def output(job):
    """All that it said, as one line."""
    return " ".join(job.communicate(timeout=WAIT_SECONDS)[0].split())


@pytest.fixture(autouse=True)
def _nothing_is_left(table):
    """Neither codes of an earlier test nor, however this one ends, processes."""
    for path in table.parent.glob("[0-9]*"):
        path.unlink()
    yield
    while JOBS:
        JOBS.pop().end(patience=10)  # it ends its processes, by force after the timeout above


TWO = ("--standalone", "--nproc-per-node=2")


@pytest.fixture
def train(table, torchrun):
    """Start a training under torchrun."""

    def start(run, *more, **how):
        return torchrun(table.parent / "command.py", "--", "train", table, "--run", run, *more, **how)

    return start


def codes(table):
    return {int(path.name): int(path.read_text()) for path in table.parent.glob("[0-9]")}


def wait_for(condition):
    end = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
    return found


def has_state(run):
    return list((run / files.CHECKPOINTS).glob("[0-9]*.safetensors"))


def process(table, rank):
    return int((table.parent / f"{rank}.pid").read_text())


def losses(run):
    lines = [json.loads(line) for line in (run / files.HISTORY).read_text().splitlines()]
    return [line["validation_loss"] for line in lines if "validation_loss" in line]


@pytest.fixture(scope="module")
def one(table, tmp_path_factory):
    """The run of one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    done = forks().run(LLUEVE, "train", table, "--run", run)
    assert done.returncode == 0, done.stderr
    return run


# What all decide alike


@pytest.fixture(scope="module")
def seen(table, torchrun, tmp_path_factory):
    """What each of two processes saw of the scenarios in `together.py`."""
    folder = tmp_path_factory.mktemp("seen")
    job = torchrun(Path(__file__).with_name("together.py"), table, folder)
    told = output(job)
    assert job.returncode == 0, told
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_both_take_the_same_steps_to_the_same_weights(seen):
    for name in seen[0].keys() - {"alone"}:
        first, second = (each[name] for each in seen)
        assert first["places"] == second["places"], name
        assert first["weights"] == second["weights"] or first["error"], name
        assert first["error"] == second["error"], name
        assert second["kept"] == 0


def actions(found):
    return [
        (line["kind"], line.get("cause"), line["action"]) for line in found["lines"] if line.get("event") == "refused"
    ]


def test_a_nan_in_one_process_is_refused_by_both(seen):
    found = seen[0]["wrong loss"]
    assert actions(found) == [("loss", "transient", "rerun")]
    assert found["kept"] == 1
    assert found["weights"] == seen[0]["clean"]["weights"]
    skipped = seen[1]["wrong loss, to skip"]
    assert [line["skipped"] for line in skipped["lines"] if "skipped" in line] == [7, 0]
    assert seen[1]["wrong loss, to stop"]["error"][0] == "GuardStop"


def test_a_bad_window_is_quarantined_in_both(seen):
    assert {action for *_, action in actions(seen[0]["a bad window"])} == {"quarantine"}
    for each in seen:  # 8 windows hold the bad cell
        assert [line["quarantined"] for line in each["a bad window"]["lines"] if "quarantined" in line] == [8, 8]


DAMAGES = {
    "a weight": (0, 1),
    "a weight, in silence": (0, 1),
    "an unused weight": (1,),
    "a first moment": (1,),
    "a second moment, in silence": (1,),
    "the average": (1,),
}


@pytest.mark.parametrize(("what", "rank"), [(what, rank) for what, ranks in DAMAGES.items() for rank in ranks])
def test_damage_in_the_memory_of_one_leaves_no_trace(seen, what, rank):
    found = seen[0][f"{what}, process {rank}"]
    assert actions(found) == [("processes", "unlike_processes", "roll_back")]
    (reason,) = [line["reason"] for line in found["lines"] if line.get("event") == "refused"]
    assert "the state of process 1 is not that of process 0" in reason
    assert found["weights"] == seen[0]["clean"]["weights"]


def test_a_touched_generator_is_put_back(seen):
    assert seen[0]["the random state, process 1"]["weights"] == seen[0]["clean"]["weights"]


def test_damage_ends_the_run_where_nothing_may_be_mended(seen):
    kind, told = seen[1]["damage, to stop"]["error"]
    assert kind == "GuardStop" and "the state of process 1 is not that of process 0" in told


def test_a_signal_to_one_ends_both_after_the_same_step(seen):
    assert [each["a signal"]["error"][0] for each in seen] == ["Interrupted"] * 2
    assert len(seen[1]["a signal"]["places"]) == 7


def test_the_others_hear_what_process_0_got_alone(seen):
    for each in seen:
        assert each["alone"]["first"] == 0 and math.isnan(each["alone"]["nan"])


# The command


def test_two_processes_reach_the_loss_of_one(table, one, tmp_path):
    """As a user starts them."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *TWO, "-m", "llueve", "train", table, "-r", tmp_path / "run"],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    told = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == 0, told
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one), rtol=1e-5)
    assert told.count("epoch 1:") == told.count("run directory:") == told.count("training steps in") == 1
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(path.name for path in one.iterdir())
    probability, expected = (pd.read_csv(run / files.PREDICTIONS)["probability"] for run in (tmp_path / "run", one))
    np.testing.assert_allclose(probability, expected, atol=1e-4)


def test_a_nan_in_one_process_stops_both_with_one_message(table, train, tmp_path):
    job = train(tmp_path / "run", "--set", "guard.policy=stop", PLANT="1")
    told = output(job)
    assert job.returncode == 1 and codes(table) == {0: 3, 1: 3}, told
    assert told.count("stopped by the guard: step 1: loss nan") == 1
    assert not (tmp_path / "run" / files.WEIGHTS).exists()


def test_a_lost_process_ends_all_and_one_process_goes_on(table, train, one, tmp_path):
    run = tmp_path / "run"
    job = train(run, "--set", "train.epochs=500")
    wait_for(lambda: has_state(run))
    os.kill(process(table, 1), signal.SIGKILL)
    told = output(job)
    assert job.returncode == 1 and codes(table) == {0: 1}
    assert told.count("one of the 2 processes of this training was lost") == 1 and "--resume" in told
    assert has_state(run)


def test_a_silent_process_is_called_lost(table, train, tmp_path):
    run = tmp_path / "run"
    job = train(run, "--set", "train.epochs=500", "--set", "processes.timeout_minutes=0.05")
    wait_for(lambda: has_state(run))
    os.kill(process(table, 1), signal.SIGSTOP)
    wait_for((table.parent / "0").exists)
    os.kill(process(table, 1), signal.SIGKILL)  # torchrun would wait 30 s for it
    told = output(job)
    assert job.returncode == 1 and codes(table) == {0: 1}, told
    assert "did not answer for 3 s" in told


def test_a_signal_to_torchrun_writes_one_state(table, train, one, tmp_path):
    run = tmp_path / "run"
    job = train(run)
    wait_for(lambda: has_state(run))
    job.send_signal(signal.SIGTERM)
    told = output(job)
    assert codes(table) == {0: 143, 1: 143}, told
    assert told.count("continue with --resume") == 1
    again = forks().run(LLUEVE, "train", table, "--run", run, "--resume")
    assert again.returncode == 0, again.stderr
    assert "began with 2 process(es) and resumes with 1" in " ".join(again.stderr.split())
    np.testing.assert_allclose(losses(run), losses(one), rtol=1e-5)


def test_torchrun_starts_again_and_goes_on_by_itself(table, train, one, tmp_path):
    run = tmp_path / "run"
    job = train(run, options=(*TWO, "--max-restarts=1"))
    wait_for(lambda: has_state(run))
    os.kill(process(table, 0), signal.SIGKILL)
    told = output(job)
    assert job.returncode == 0, told
    assert "resuming from" in told and codes(table) == {0: 0, 1: 0}
    np.testing.assert_allclose(losses(run), losses(one), rtol=1e-5)


def test_torchrun_goes_on_with_a_training_that_replaces_a_run(table, train, one, tmp_path):
    """With a recipe, whose phases `config.toml` writes out; the earlier run stays until the new one is verified."""
    run = tmp_path / "run"
    shutil.copytree(one, run)
    recipe = ("--set", "train.recipe=default", "--set", "train.epochs=1")
    job = train(run, "--overwrite", *recipe, options=(*TWO, "--max-restarts=1"))
    wait_for(lambda: has_state(run / "unfinished"))
    assert (run / files.VERIFICATION).read_bytes() == (one / files.VERIFICATION).read_bytes()
    os.kill(process(table, 0), signal.SIGKILL)
    told = output(job)
    assert job.returncode == 0, told
    assert "resuming from" in told and len(losses(run)) == 4
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in one.iterdir())


def test_a_restart_does_not_resume_a_run_that_the_command_may_not_touch(train, one, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(one, run)
    job = train(run, options=(*TWO, "--max-restarts=1"))
    told = output(job)
    assert job.returncode == 1 and "holds a finished run" in told and "finished already" not in told, told


def test_two_machines_meet(train, one, tmp_path):
    meeting = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{_free_port()}")
    jobs = [train(tmp_path / "run", options=(*meeting, f"--rdzv-id={tmp_path.name}")) for _ in range(2)]
    told = [output(job) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], told
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(one), rtol=1e-5)


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_one_process_imports_nothing_of_it(table):
    """Nor the compiler of torch, which takes seconds."""
    script = (
        "import sys, llueve.cli.main, llueve.pipeline, torch.distributed\n"
        "from llueve.distributed.processes import join_processes\n"
        "from datetime import timedelta\n"
        "with join_processes(timedelta(1)) as alone: pass\n"
        "assert type(alone).__name__ == 'Processes' and 'lightning_fabric' not in sys.modules\n"
        "assert not torch.distributed.is_initialized()\n"
        "from llueve.training.optimiser import build_optimiser\n"
        "weight = torch.nn.Parameter(torch.ones(3))\n"
        "weight.grad = torch.ones(3)\n"
        "build_optimiser([{'params': [weight], 'lr': 0.1}]).adamw.step()\n"
        "assert weight[0] < 1 and 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=WAIT_SECONDS)
