"""Trainings on scenes: quarantine of one site of one time, resuming, kills, processes and cached features, bit for bit."""

import json
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from forks import LLUEVE, TORCHRUN, forks
from llueve.distributed.processes import Processes
from llueve.panel import UNKNOWN
from llueve.runs import directory as files
from llueve.stability.diagnosis import Cause
from llueve.stability.incidents import explain_incident, load_incident
from llueve.stability.remedies import Quarantined
from llueve.step.gradients import loss_and_gradients
from llueve.step.predict import as_batch, predict_logits
from llueve.training.batches.epoch import EpochBatches
from small_network import LAST_END, NetworkTraining, network_panel, same, write_network_table

NAN = float("nan")
CPU = torch.device("cpu")


def cells_of(run, number=1):
    """Site, time and variable of each cell that an incident's explanation names."""
    found = explain_incident(load_incident(run, number))
    return {
        (each.site, str(time)[:10], each.variable) for each in found.cells for time in each.times
    }, found.explanation.cause


@pytest.mark.parametrize("site", [0, 1], ids=["without an outcome", "with an outcome"])
def test_a_bad_cell_costs_one_site_of_one_time(site, tmp_path):
    training = NetworkTraining()
    training.windows.values_STC[site, LAST_END, 2] = NAN
    training.windows.observed_STC[site, LAST_END, 2] = True
    training.go(tmp_path / "run")
    row = training.training.find(site, LAST_END)
    assert (training.training.y[row] == UNKNOWN) == (site == 0)
    (event,) = [each for each in training.events if each["event"] == "refused"]
    assert (event["cause"], event["action"]) == ("missing_input", "quarantine")
    assert training.quarantined == [(site, LAST_END)]
    day = str(training.panel["time"].values[LAST_END])[:10]
    assert cells_of(tmp_path / "run") == ({(f"s{site}", day, "c")}, "missing_input")
    # Its scene goes on with all others.
    refused = next(n for n, each in enumerate(training.attempts) if not np.isfinite(each.reading.loss))
    before, after = (training.attempts[refused + again].rows for again in (0, 1))
    left = before[~((before.site == site) & (before.end == LAST_END))]
    assert len(left) == len(before) - 1 and (left.end == LAST_END).sum() == 5
    assert np.array_equal(left.site, after.site) and np.array_equal(left.end, after.end)


def test_unknown_values_of_the_future_never_reach_the_loss(tmp_path):
    """The cell is in the horizon of the last training windows, and in no window of training or validation."""
    ends = []
    for missing in ("raw", "mask"):
        panel = network_panel(missing=0.0)
        panel["a"].values[2, LAST_END + 1] = NAN
        training = NetworkTraining(panel, windows={"missing": missing})
        part = training.training[training.training.find(2, LAST_END)]
        assert np.isnan(training.windows.values_STC[2, LAST_END + 1, 0]) == (missing == "raw")
        (future,) = as_batch(training.windows, part, CPU, with_future=True).future.future_known_BC.tolist()
        assert future == [False, True, True]
        ends.append(training.go(tmp_path / missing))
    assert same(*ends) and not ends[0].events


def test_an_absurd_value_in_the_future_does_not_outweigh_the_classes(tmp_path):
    """The model limits such a cell in its input, and the loss limits it in its target."""
    panel = network_panel()
    panel["a"].values[2, LAST_END + 1] = 1e9
    training = NetworkTraining(panel).go(tmp_path / "run")
    assert not training.events
    assert max(each.reading.loss for each in training.attempts) < 100


def scene_batch(training, ends):
    rows = np.concatenate([np.flatnonzero(training.training.end == end) for end in ends])
    return as_batch(training.windows, training.training[rows], CPU, with_future=True)


def gradients(training, batch, **keys):
    """Loss and gradients without anything random."""
    model = training.saved.classifier.eval()
    for layer in (model.head.out, model.head.future):
        torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    config = training.config.train.model_copy(update=keys)
    loss = loss_and_gradients(model, batch, config, torch.float32)
    return float(loss), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("class_weights", [None, (1.0, 3.0)])
def test_pieces_of_scenes_give_the_gradients_of_one_batch(class_weights):
    training = NetworkTraining()
    batch = scene_batch(training, range(20, 26))
    batch.y_B[batch.scenes.scene_B == 21] = UNKNOWN
    whole = gradients(training, batch, batch_size=6, class_weights=class_weights)
    for size in (1, 2, 4):
        assert sum(map(len, batch.pieces(size))) == len(batch)
        loss, found = gradients(training, batch, batch_size=size, class_weights=class_weights)
        assert loss == pytest.approx(whole[0], rel=1e-5)
        for name, each in whole[1].items():
            torch.testing.assert_close(found[name], each, rtol=1e-3, atol=1e-6)
    # Without what has no outcome the loss is another number only because the others see it.
    assert whole[0] != gradients(training, batch[batch.y_B != UNKNOWN], batch_size=6)[0]


@pytest.mark.parametrize("class_weights", [None, (1.0, 3.0)])
@pytest.mark.parametrize("size", [1, 3])
def test_a_batch_without_any_outcome_has_no_loss_and_no_gradient(size, class_weights):
    training = NetworkTraining()
    batch = scene_batch(training, range(20, 23))
    loss, found = gradients(
        training, replace(batch, y_B=torch.full_like(batch.y_B, UNKNOWN)), batch_size=size, class_weights=class_weights
    )
    assert loss == 0 and found and not any(each.any() for each in found.values())


def drawn(batches):
    """The steps of an epoch."""
    position, steps = 0, []
    while not batches.is_over(position):
        steps.append(batches.draw(position))
        position = steps[-1].after
    return steps


def test_a_scene_without_an_outcome_is_passed_over():
    training = NetworkTraining()
    part = training.training
    batches = EpochBatches(training.windows, part, training.config.train, Processes(), CPU, lambda *_: None)
    batches.start_phase(4, None)
    batches.start_epoch(1, [])
    whole = drawn(batches)
    assert sum(len(each.chosen) for each in whole) == len(part)
    known = np.flatnonzero((part.end == 30) & (part.y != UNKNOWN))
    batches.leave_out([Quarantined(int(part.site[row]), 30, 1, Cause.FEW_SAMPLES) for row in known])
    rest = np.concatenate([each.chosen for each in drawn(batches)])
    assert 30 not in part.end[rest] and len(rest) == (part.end != 30).sum()
    assert [len(np.unique(part.end[each.chosen])) for each in drawn(batches)[:-1]] == [4] * (len(whole) - 1)
    # All of them: the epoch is over without a step.
    batches.leave_out([Quarantined(*each, 1, Cause.FEW_SAMPLES) for each in zip(part.site, part.end, strict=True)])
    assert [len(each.chosen) for each in drawn(batches)] == [0]


def test_a_training_resumes_bit_for_bit(tmp_path):
    """Some sites of each scene are drawn; a quarantine comes before the signal, in the second epoch; a head phase is first."""
    phases = [{"name": "head", "freeze": "encoder", "epochs": 1}, {"name": "all", "epochs": 2}]

    def training():
        made = NetworkTraining(model={"sites_per_scene": 4}, train={"phases": phases})
        made.windows.values_STC[1, LAST_END, 2] = NAN
        made.windows.observed_STC[1, LAST_END, 2] = True
        return made

    whole = training().go(tmp_path / "whole")
    steps = len(whole.attempts) // 3
    first = training().go(tmp_path / "run", interrupt=steps + steps // 2)
    assert len(first.attempts) == steps + steps // 2
    second = training().go(tmp_path / "run", resume=True)
    second.history = first.history + second.history
    assert same(whole, second)
    assert whole.quarantined == second.quarantined
    assert {each["action"] for each in whole.events if each["event"] == "refused"} == {"quarantine"}


def test_a_small_scene_has_few_sites_in_training_and_each_is_answered_in_a_forecast(tmp_path):
    training = NetworkTraining(model={"sites_per_scene": 3}).go(tmp_path / "run")
    for attempt in training.attempts:
        sizes = np.unique(attempt.rows.end, return_counts=True)[1]
        assert sizes.max() <= 3 and (attempt.rows.y != UNKNOWN).any()
    assert {int(each) for attempt in training.attempts for each in attempt.rows.site} == set(range(6))
    logits = predict_logits(training.saved.classifier, training.windows, training.split.test)
    assert logits.shape == (len(training.split.test), 2) and np.isfinite(logits).all()
    assert len(np.unique(logits, axis=0)) == len(logits)


def test_cached_features_give_the_bits_of_the_windows(tmp_path):
    phases = [{"name": "head", "freeze": "encoder", "epochs": 2}]
    cached, plain = (
        NetworkTraining(train={"phases": phases, "feature_cache_gb": room}).go(tmp_path / str(room)) for room in (1, 0)
    )
    assert all(each.batch.features is not None for each in cached.attempts)
    assert all(each.batch.features is None for each in plain.attempts)
    assert same(cached, plain)


# Through the command line


def whole_run(config, run):
    done = forks().run(LLUEVE, "train", config, "--run", run)
    assert done.returncode == 0, done.stderr
    return run


def lines(run):
    found = [json.loads(line) for line in (run / files.HISTORY).read_text().splitlines()]
    return [{**line, "seconds": None} for line in found]


def test_kills_leave_no_trace(tmp_path):
    config = write_network_table(tmp_path, "sites_per_scene = 5")
    whole, run = whole_run(config, tmp_path / "whole"), tmp_path / "run"
    for states in (1, 3):  # SIGKILL as soon as so many states were written
        process, seen = forks().start(LLUEVE, "train", config, "--run", run, "--resume"), set()
        while process.poll() is None and len(seen) < states:
            seen |= {path.name for path in run.glob(f"{files.CHECKPOINTS}/[0-9]*.safetensors")}
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    done = forks().run(LLUEVE, "train", config, "--run", run, "--resume")
    assert done.returncode == 0, done.stderr
    one, other = (load_file(each / files.WEIGHTS) for each in (whole, run))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert lines(whole) == lines(run)
    assert (whole / files.PREDICTIONS).read_bytes() == (run / files.PREDICTIONS).read_bytes()


SHARES = """
import json, os, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from llueve.cli import main as cli
from llueve.model import sites
from llueve.training.batches.epoch import EpochBatches
sys.argv[0] = "llueve"
# Nothing random, so that two processes compute what one does.
sites.DROPPED_KEYS = sites.DROPPED_VECTORS = 0.0
seen, load = [], EpochBatches.load

def watched(batches, drawn):
    part, own = batches.training, batches.own(drawn)
    seen.append([part.end[own].tolist(), part.end[drawn.chosen].tolist()])
    return load(batches, drawn)

EpochBatches.load = watched
try:
    cli.main()
finally:
    Path(os.environ["SEEN"], os.environ.get("RANK", "one")).write_text(json.dumps(seen))
"""


def test_two_processes_share_whole_scenes_and_reach_the_loss_of_one(tmp_path):
    config = write_network_table(tmp_path, "dropout = 0.0")
    (tmp_path / "command.py").write_text(SHARES, encoding="utf-8")
    run = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    one, two = tmp_path / "alone", tmp_path / "shared"
    command = tmp_path / "command.py"
    done = forks().run(run, command, "train", config, "--run", one, SEEN=str(tmp_path))
    assert done.returncode == 0, done.stderr
    options = ("--shutdown-timeout=3", "--run-path", "--start-method=fork", "--standalone", "--nproc-per-node=2")
    here = {"OMP_NUM_THREADS": "1", "SEEN": str(tmp_path)}
    job = forks().start(TORCHRUN, *options, command, "--", "train", config, "--run", two, merged=True, **here)
    output = job.communicate(timeout=120)[0]
    assert job.returncode == 0, output
    alone, first, second = (json.loads((tmp_path / name).read_text()) for name in ("one", "0", "1"))
    assert len(alone) == len(first) == len(second)
    for (_, whole), (own, drawn_here), (other, _) in zip(alone, first, second, strict=True):
        assert whole == drawn_here == own + other
        assert not set(own) & set(other)
    for here_line, there in zip(lines(one), lines(two), strict=True):
        for name in ("train_loss", "validation_loss"):
            assert here_line[name] == pytest.approx(there[name], rel=1e-4)
