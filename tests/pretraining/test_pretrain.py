"""The command `llueve pretrain`: its outputs, and a training that can be interrupted, resumed, replaced and explained."""

import hashlib
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from forks import LLUEVE, TORCHRUN, forks
from llueve.config import load_pretrain_config
from llueve.errors import CheckpointError, ConfigError, DataError, GuardStop, RunError
from llueve.model.checkpoints.model_card import ModelCard
from llueve.model.checkpoints.pretrained import load_pretrained
from llueve.pretraining import pretrain as verb
from llueve.pretraining.finish import stored_weights
from llueve.pretraining.prepare import prepare
from llueve.runs import directory as files
from llueve.runs.directory import Run
from llueve.runs.sealed_file import read_sealed, write_sealed
from llueve.stability.incidents import list_incidents, load_incident
from llueve.stability.incidents.explain import explain_incident
from llueve.stability.incidents.replay import replay
from llueve.training import tracking
from llueve.training.stepper import Stepper

MOMENTS = ("seconds",)


def run_of(config, folder, *overrides, **how):
    return verb.pretrain(load_pretrain_config(config, overrides), folder, console=Console(quiet=True), **how)


def history(run):
    lines = [json.loads(line) for line in (run / files.HISTORY).read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MOMENTS} for line in lines]


def content(run):
    """What must be the same: the weights, the history, and the card without its times."""
    card = json.loads((run / files.CARD).read_text())
    del card["training"]["seconds"]
    return (run / files.ENCODER).read_bytes(), history(run), card


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run of the command, and what it printed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = forks().run(LLUEVE, "pretrain", config, "--run", run, strict=True)
    assert done.returncode == 0, done.stderr
    return run, done.stdout, done.stderr


def test_the_command_leaves_an_encoder_with_its_card(whole, config):
    run, printed, said = whole
    assert {path.name for path in run.iterdir()} == {
        files.CONFIG,
        files.HISTORY,
        files.ENCODER,
        files.CARD,
        files.CARD_TEXT,
    }
    assert load_pretrain_config(run / files.CONFIG) == load_pretrain_config(config)
    card = ModelCard.model_validate(json.loads((run / files.CARD).read_text()))
    assert card.sha256 == hashlib.sha256((run / files.ENCODER).read_bytes()).hexdigest()
    assert (card.training.epochs, card.training.steps, card.storage) == (2, 10, "float16")
    assert [(each.group, each.sites, each.held_out, each.licence) for each in card.corpus] == [
        ("hourly_north", 8, 2, "CC0"),
        ("hourly_tropics", 8, 2, None),
    ]
    assert card.left_out == {"hourly_only_by_name.parquet": "its step is 24 h, expected 1 h"}
    assert [each.group for each in card.scores] == ["all", "far from training", "hourly_north", "hourly_tropics"]
    assert (card.scores[0].sites, card.scores[1].sites) == (4, 0)  # all sites of a group have one position
    sums = [sum(group.amounts[0].windows for group in card.scores[part]) for part in (slice(1), slice(2, 4))]
    assert sums[0] == sums[1] > 300
    assert {each.zone: each.sites for each in card.zones if each.sites} == {"tropical": 6, "temperate": 6}
    text = (run / files.CARD_TEXT).read_text()
    assert "drawn at random" in text and card.command in text and card.sha256 in text
    assert "hourly_tropics" in printed and "run directory" in printed
    assert "hourly_only_by_name.parquet: left out" in " ".join(said.split())
    assert max(map(len, printed.splitlines())) <= 80


def test_the_encoder_loads_as_a_checkpoint(whole):
    run = whole[0]
    stored = load_file(run / files.ENCODER)
    assert {each.dtype for each in stored.values()} == {torch.float16}
    encoder, report = load_pretrained(run / files.ENCODER)
    assert report.sizes.architecture == "weather_xl" and report.sizes.width == 8
    assert torch.equal(encoder.state_dict()["gap.weight"], stored["gap.weight"].float())


def test_the_same_seed_gives_the_same_bits_and_another_one_others(whole, config, tmp_path):
    again = run_of(config, tmp_path / "again")
    assert content(tmp_path / "again") == content(whole[0])
    assert again.card.overall.amounts[1].windows > 0
    run_of(config, tmp_path / "other", "train.seed=1")
    assert content(tmp_path / "other")[0] != content(whole[0])[0]


INTERRUPTED = """
import os, signal, sys
from llueve.training import loop
from llueve.cli.main import main
steps, plain = [0], loop._run_step
def counted(trainer):
    plain(trainer)
    steps[0] += 1
    if steps[0] == 7:
        os.kill(os.getpid(), signal.SIGTERM)
loop._run_step = counted
main()
"""


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(whole, config, tmp_path):
    run = tmp_path / "run"
    ended = forks().run(INTERRUPTED, "pretrain", config, "--run", run)
    assert ended.returncode == 143 and not (run / files.CARD).exists()
    assert "llueve pretrain" in ended.stderr and "--resume" in ended.stderr
    assert len(history(run)) == 1
    with pytest.raises(RunError, match="already exists"):
        run_of(config, run)
    with pytest.raises(ConfigError, match=r"began with another configuration: train.batch_size was 16 and is 8"):
        run_of(config, run, "train.batch_size=8", resume=True)
    run_of(config, run, resume=True)
    assert content(run) == content(whole[0])
    before = (run / files.CARD).stat().st_mtime_ns
    run_of(config, run, resume=True)  # finished already
    assert (run / files.CARD).stat().st_mtime_ns == before


def test_another_corpus_is_not_resumed(config, write_corpus, tmp_path):
    run, other = tmp_path / "run", write_corpus(tmp_path, days=100)
    assert forks().run(INTERRUPTED, "pretrain", config, "--run", run).returncode == 143
    with pytest.raises(DataError, match="is not the corpus that this pre-training began with"):
        run_of(other, run, resume=True)


def test_a_replaced_run_stays_whole_until_the_new_one_is_complete(config, tmp_path):
    run = tmp_path / "run"
    run_of(config, run, "train.epochs=1")
    first = content(run)
    with pytest.raises(RunError, match="holds a finished run"):
        run_of(config, run)
    ended = forks().run(INTERRUPTED, "pretrain", config, "--run", run, "--overwrite")
    assert ended.returncode == 143 and content(run) == first
    run_of(config, run, resume=True)
    assert content(run)[1] != first[1] and not (run / files.UNFINISHED).exists()
    assert len(history(run)) == 2


def test_a_run_of_another_kind_is_named(whole, config, tmp_path, write_rainy_table):
    with pytest.raises(RunError, match="is the run directory of a pre-training"):
        Run.open(whole[0])
    table = write_rainy_table(tmp_path, "")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / files.CONFIG).write_bytes(table.read_bytes())
    with pytest.raises(RunError, match="is the run directory of a training, not of a pre-training"):
        run_of(config, tmp_path / "run", resume=True)


def test_a_refused_step_is_kept_read_back_replayed_and_explained(config, tmp_path, monkeypatch):
    """A NaN that is planted in a weight is found before the step is applied."""
    attempt, planted = Stepper.attempt, []

    def planting(self, *how):
        if self.state.place.steps == 3 and not planted:
            planted.append(True)
            with torch.no_grad():
                self.state.model.encoder.level_CVD[0, 0, 0] = float("nan")
        return attempt(self, *how)

    monkeypatch.setattr(Stepper, "attempt", planting)
    run = tmp_path / "run"
    run_of(config, run, "guard.max_skipped=0.5")
    monkeypatch.undo()
    (line,) = list_incidents(run)
    assert line.fault is None
    incident = load_incident(run, 1)
    assert incident.about.pretraining and incident.step.batch.days is not None
    assert replay(incident).same
    found = explain_incident(incident)
    assert str(found.explanation.cause) in (run / files.INCIDENTS / "001" / files.EXPLANATION).read_text()
    assert "level_CVD" in json.dumps(found.as_dict())
    shown = forks().run(LLUEVE, "incident", "show", run, "1")
    assert shown.returncode == 0, shown.stderr


def test_an_incident_with_other_targets_is_refused(config, tmp_path, monkeypatch):
    attempt, planted = Stepper.attempt, []

    def planting(self, *how):
        if not planted:
            planted.append(True)
            with torch.no_grad():
                self.state.model.encoder.rain[1].weight[0, 0] = float("inf")
        return attempt(self, *how)

    monkeypatch.setattr(Stepper, "attempt", planting)
    run_of(config, tmp_path / "run", "guard.max_skipped=0.5")
    incident = load_incident(tmp_path / "run", 1)
    path = incident.folder / files.INCIDENT
    tensors, sealed = read_sealed(path)
    for name, change in (
        ("batch.next_BCNP", lambda found: found[:, :, 1:]),
        ("batch.rain_BNR", lambda found: found[..., 1:]),
        ("batch.rain_known_BNR", lambda found: found.float()),
        ("batch.next_known_BCNP", None),
        ("model.encoder.rain.1.weight", lambda found: found[1:]),
    ):
        other = {key: each if key != name else change(each) for key, each in tensors.items() if key != name or change}
        write_sealed(path, other, sealed)
        with pytest.raises(CheckpointError, match="do not belong together"):
            load_incident(tmp_path / "run", 1)
    text = incident.about.model_dump()
    for change in ({"facts": 7}, {"context": 100}, {"classes": ["a", "b", "c"]}, {"pretraining": False}):
        with pytest.raises(ValueError, match=r"pre-training|memory orders|weather encoder"):
            type(incident.about).model_validate({**text, **change})


def test_weights_that_the_format_cannot_hold_are_refused(config):
    model = prepare(load_pretrain_config(config)).model
    model.encoder.place.weight.data[0, 0] = 1e5
    assert stored_weights(model, torch.float32)["place.weight"][0, 0] == 1e5
    with pytest.raises(GuardStop, match=r"not finite in float16 in place.weight.*model.storage"):
        stored_weights(model, torch.float16)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give --run DIR to pre-train, or --list"),
        (("--list", "--run", "x"), "one of them"),
        (("--list", "--resume"), "--list trains nothing"),
        (("--list", "--set", "corpus.files=['none']"), "has no file that matches none"),
        (("--list", "--set", "corpus.window=1"), "did you mean corpus.windows"),
        (("--run", "x", "--set", "train.fraction=0.5"), "train.fraction: has no effect in a pre-training"),
    ],
)
def test_wrong_use_is_explained(config, tmp_path, arguments, said):
    done = forks().run(LLUEVE, "pretrain", config, *arguments, folder=tmp_path)
    assert done.returncode in (1, 2) and said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_the_list_names_what_would_be_used(config):
    done = forks().run(LLUEVE, "pretrain", config, "--list", "--json", strict=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(each["window_share"] for each in found["groups"]) == pytest.approx(1)
    assert len(found["sites"]) == 16 and sum(each["held_out"] for each in found["sites"]) == 4
    first = found["sites"][0]
    assert (first["latitude"], first["hours"], first["rain"]) == (48.0, 3600, 1.0)
    assert (first["first"], first["last"]) == ("2023-01-01T00", "2023-05-30T23")
    assert first["quantities"] == [
        "air_temperature",
        "dew_point_temperature",
        "relative_humidity",
        "precipitation_amount",
    ]
    assert set(found["left_out"]) == {"hourly_only_by_name.parquet"}
    table = forks().run(LLUEVE, "pretrain", config, "--list", COLUMNS="80").stdout
    assert "hourly_north: 8 sites, 2 held out" in table and max(map(len, table.splitlines())) <= 80


def test_two_processes_reach_the_losses_of_one(whole, config, tmp_path):
    program = tmp_path / "command.py"
    program.write_text("import torch\ntorch.set_num_threads(1)\nfrom llueve.cli.main import main\nmain()\n")
    forking = ("--shutdown-timeout=3", "--run-path", "--start-method=fork", "--standalone", "--nproc-per-node=2")
    words = ("pretrain", config, "--run", tmp_path / "run", "--json")
    job = forks().start(TORCHRUN, *forking, program, "--", *words, OMP_NUM_THREADS="1")
    printed, said = job.communicate(timeout=120)
    assert job.returncode == 0, said
    assert json.loads(printed) == json.loads((tmp_path / "run" / files.CARD).read_text())
    assert said.count("epoch 2: loss") == 1
    two, one = ([line["validation_loss"] for line in history(run)] for run in (tmp_path / "run", whole[0]))
    assert two == pytest.approx(one, rel=1e-4)


def test_the_trackers_receive_the_epochs_and_the_scores(config, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    sent = []
    monkeypatch.setattr(tracking._TensorBoard, "record", lambda self, values: sent.append((self.last_epoch, values)))
    result = run_of(config, tmp_path / "run", "track.tensorboard=true", "train.epochs=1")
    assert [epoch for epoch, _ in sent] == [1, 1]
    assert sent[1][1]["verification/1 mm/skill"] == result.card.overall.amounts[1].skill
