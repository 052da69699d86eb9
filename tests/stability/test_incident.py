"""Incidents: kept whole, replayed bit for bit in another process, and refused by name when torn, damaged or hostile."""

import errno
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from llueve.cli import main as cli
from llueve.errors import CheckpointError, LlueveError, RunError, UsageError
from llueve.model.build import HeadSizes, build_classifier, build_encoder, recent_steps
from llueve.runs.directory import INCIDENT, INCIDENTS, Run
from llueve.runs.sealed_file import read_sealed, write_sealed
from llueve.samples.scale import fit_scaler
from llueve.samples.split import split_panel
from llueve.samples.windows import build_windows
from llueve.stability import incidents
from llueve.stability.incidents import DataNames, list_incidents, load_incident, parse, replay
from llueve.stability.incidents import write as keeping
from llueve.stability.reading import FaultKind, Reading
from llueve.stability.refused_step import RefusedStep
from llueve.step.gradients import loss_and_gradients
from llueve.step.predict import as_batch
from llueve.step.random_state import random_states
from llueve.training.optimiser import build_optimiser

KINDS = list(product(["timer_xl", "timer"], ["variables", "mean"], [torch.float32, torch.bfloat16]))


@pytest.fixture
def refused_step(make_panel, make_config):
    """What the loop knows of its third step: with applied ones before it, dropout, and one sample planted bad or not."""

    def make(architecture="timer_xl", head="variables", precision=torch.float32, bad=math.nan, **sections):
        sizes = {"width": 16, "heads": 2, "dropout": 0.3, "architecture": architecture, "head": head}
        panel, config = make_panel(times=200), make_config(**{"model": sizes, **sections})
        split = split_panel(panel, config)
        windows = build_windows(panel, fit_scaler(panel, split.training_rows), config.windows.context, "mask")
        torch.manual_seed(0)
        head_sizes = HeadSizes(3, 2, 2, recent_steps(24.0, config.windows.context))
        model = build_classifier(build_encoder(config.model), config.model, head_sizes).train()
        optimiser = build_optimiser([{"params": list(model.parameters()), "lr": 1e-3}]).adamw
        for step in range(3):
            part = split.training[16 * step : 16 * step + 16]
            batch = as_batch(windows, part, torch.device("cpu"))
            state = random_states(torch.device("cpu"))
            if step == 2 and bad is not None:
                batch.x_BLC[5, 2, 1] = bad
            loss = loss_and_gradients(model, batch, config.train, precision)
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.train.clip_norm, foreach=True)
            if step < 2:
                optimiser.step()
        return {
            "kind": "loss",
            "reason": "step 3: loss nan",
            "epoch": 1,
            "step": 3,
            "loss": float(loss),
            "gradient_norm": float(norm),
            "rates": [1e-3, 1e-3],
            "model": model,
            "optimiser": optimiser,
            "batch": batch,
            "part": part,
            "random_state": state,
            "precision": precision,
            "train": config.train,
            "model_config": config.model,
            "variables": [("a", "mm"), ("b", None), ("c", None)],
            "classes": ["0", "1"],
            "sites": panel["site"].values,
            "times": panel["time"].values,
            "step_hours": 24.0,
        }

    return make


@pytest.fixture
def kept(refused_step, tmp_path):
    """A run directory with one incident."""
    assert keep_incident(tmp_path, **refused_step()) == tmp_path / INCIDENTS / "001"
    return tmp_path


def moments_of(model, optimiser):
    """The optimiser's memory by the names of the parameters."""
    return {
        f"{name}.{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in (optimiser.state.get(parameter, {}) if optimiser else {}).items()
    }


def keep_incident(run: Path, **step):
    """Keep what the fixture gives."""
    refused = RefusedStep(
        kind=FaultKind(step["kind"]),
        reason=step["reason"],
        epoch=step["epoch"],
        reading=Reading(
            step=step["step"],
            samples=len(step["batch"]),
            loss=step["loss"],
            gradient_norm=step["gradient_norm"],
            rates=tuple(step["rates"]),
        ),
        rows=step["part"],
        batch=step["batch"],
        model=step["model"],
        moments=moments_of(step["model"], step["optimiser"]),
        random_state=step["random_state"],
        config=step["train"],
        precision=step["precision"],
    )
    names = {"model": "model_config", **dict.fromkeys(("variables", "classes", "sites", "times", "step_hours"))}
    return incidents.keep_incident(run, refused, DataNames(**{name: step[key or name] for name, key in names.items()}))


def file_of(run: Path) -> Path:
    return run / INCIDENTS / "001" / INCIDENT


def description(run: Path) -> dict:
    return json.loads(read_sealed(file_of(run))[1])


def describe(run: Path, content: object) -> None:
    """Exchange the description, with the seal made right, as a hostile writer would."""
    write_sealed(
        file_of(run), read_sealed(file_of(run))[0], content if isinstance(content, str) else json.dumps(content)
    )


def exchange(run: Path, group: str, change) -> None:
    """Change the tensors of a group, with the seal made right."""
    tensors, text = read_sealed(file_of(run))
    inside = {name.removeprefix(f"{group}."): each for name, each in tensors.items() if name.startswith(f"{group}.")}
    others = {name: each for name, each in tensors.items() if not name.startswith(f"{group}.")}
    changed = {f"{group}.{name}": each for name, each in change(inside).items()}
    write_sealed(file_of(run), {**others, **changed}, text)


def llueve(capsys, *arguments):
    """Exit code, stdout and stderr of the command line; an exception that it lets through fails the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["llueve", *map(str, arguments)])
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        with pytest.raises(SystemExit) as caught:
            cli.main()
    shown = capsys.readouterr()
    return caught.value.code or 0, shown.out, shown.err


# Keeping and replaying


def test_a_step_with_a_frozen_encoder_gives_the_same_bits(refused_step, tmp_path):
    """Dropout drew for the head alone."""
    step = refused_step()
    model, train = step["model"], step["train"]
    model.freeze_encoder()
    step["batch"].x_BLC[5, 2, 1] = 0.5
    torch.set_rng_state(step["random_state"]["cpu"])
    step["loss"] = float(loss_and_gradients(model, step["batch"], train, step["precision"]))
    step["gradient_norm"] = float(nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm, foreach=True))
    keep_incident(tmp_path, **step)
    assert replay(load_incident(tmp_path)).same


def test_every_kind_of_model_gives_the_same_bits_in_a_fresh_process(refused_step, tmp_path):
    recorded = []
    for architecture, head, precision in KINDS:
        for bad in (None, math.nan):
            run = tmp_path / str(len(recorded))
            run.mkdir()
            step = refused_step(architecture, head, precision, bad)
            keep_incident(run, **step)
            recorded.append((step["loss"], step["gradient_norm"]))
    script = (
        "import json, sys, torch\n"
        "from llueve.stability.incidents import load_incident, replay\n"
        "torch.manual_seed(9)\n"
        f"found = [replay(load_incident(f'{tmp_path}/{{number}}')) for number in range({len(recorded)})]\n"
        "json.dump([(each.same, each.loss, each.gradient_norm, each.elsewhere) for each in found], sys.stdout)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}  # which the replay sets back to the recorded one
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.stderr == ""
    for (loss, norm), (same, loss_there, norm_there, elsewhere) in zip(recorded, json.loads(done.stdout), strict=True):
        assert same and elsewhere == []
        assert (loss_there, norm_there) == (loss, norm) or (math.isnan(loss) and math.isnan(loss_there))
    assert len({loss for loss, _ in recorded if math.isfinite(loss)}) == len(KINDS)


def test_another_random_state_gives_other_numbers_and_no_excuse(kept, refused_step, tmp_path):
    """Without it the test above would prove nothing."""
    keep_incident(tmp_path, **{**refused_step(bad=None), "random_state": random_states(torch.device("cpu"))})
    replayed = replay(load_incident(tmp_path))
    assert not replayed.same and replayed.elsewhere == ()
    assert "other numbers: loss" in replayed.verdict and "the step does not repeat" in replayed.verdict


def test_a_replay_leaves_threads_generators_and_the_incident_as_they_were(kept):
    found = load_incident(kept)
    torch.manual_seed(3)
    weights = {name: tensor.clone() for name, tensor in found.step.model.state_dict().items()}
    before = torch.get_rng_state()
    replay(found, threads=2)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == 1
    assert all(torch.equal(weights[name], tensor) for name, tensor in found.step.model.state_dict().items())


def test_other_threads_and_another_machine_are_said_if_numbers_differ(refused_step, tmp_path):
    step = refused_step(bad=None)
    keep_incident(tmp_path, **{**step, "loss": step["loss"] * 1.5})
    about = description(tmp_path)
    about["machine"]["processor"], about["versions"]["torch"] = "Other 9000", "2.0.0"
    describe(tmp_path, about)
    replayed = replay(load_incident(tmp_path), threads=2)
    assert not replayed.same
    for words in ("(0.33 of it)", "threads 1 there, 2 here", "processor Other 9000 there", "torch 2.0.0 there"):
        assert words in replayed.verdict


def test_what_was_kept_comes_back(refused_step, tmp_path):
    step = refused_step()
    step["model"].head.variable_CW.requires_grad_(False)
    keep_incident(tmp_path, **step)
    found = load_incident(tmp_path)
    for name in ("x_BLC", "observed_BLC", "facts_BF", "y_B"):
        here, there = getattr(found.step.batch, name), getattr(step["batch"], name)
        assert torch.equal(here.nan_to_num(9), there.nan_to_num(9)) and here.stride() == there.stride()
    model = found.step.model
    assert model.training
    for (name, here), (_, there) in zip(model.named_parameters(), step["model"].named_parameters(), strict=True):
        assert torch.equal(here, there) and here.requires_grad == there.requires_grad
        state = step["optimiser"].state[there]
        assert all(torch.equal(found.step.moments[f"{name}.{key}"], value) for key, value in state.items())
    assert found.step.rows.site.tolist() == step["part"].site.tolist()
    assert found.step.rows.end.tolist() == step["part"].end.tolist()
    about = found.about
    assert (about.kind, about.epoch, about.step, about.loss.value) == ("loss", 1, 3, "nan")
    assert about.train == step["train"] and about.model == step["model_config"]
    index = int(step["part"].end[5])
    assert (about.sites[5], about.times[5]) == ("s0", str(step["times"][index].astype("datetime64[s]")))


def test_a_rebuilt_model_may_be_changed_and_has_the_mode_of_the_step(refused_step, tmp_path):
    step = refused_step()
    step["model"].eval()
    keep_incident(tmp_path, **step)
    found = load_incident(tmp_path).step
    model = found.to(torch.device("cpu")).model
    assert not model.training
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    for name, tensor in step["model"].state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor)


def test_keeping_changes_nothing_of_the_training(refused_step, tmp_path):
    step = refused_step()
    before = {name: tensor.clone() for name, tensor in step["model"].state_dict().items()}
    gradients = {name: each.grad.clone() for name, each in step["model"].named_parameters() if each.grad is not None}
    generator = torch.get_rng_state()
    keep_incident(tmp_path, **step)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], tensor) for name, tensor in step["model"].state_dict().items())
    after = dict(step["model"].named_parameters())
    assert gradients and all(
        torch.equal(each.nan_to_num(9), after[name].grad.nan_to_num(9)) for name, each in gradients.items()
    )


def test_json_holds_no_nan(kept):
    def refuse(word):
        raise AssertionError(word)

    json.loads(read_sealed(file_of(kept))[1], parse_constant=refuse)


def test_infinite_and_negative_numbers_are_kept_exactly(refused_step, tmp_path):
    step = {
        **refused_step(),
        "loss": math.inf,
        "gradient_norm": -math.inf,
        "rates": [math.nan, 1e300],
        "optimiser": None,
    }
    keep_incident(tmp_path, **step)
    about = load_incident(tmp_path).about
    assert (about.loss.bits, about.gradient_norm.bits) == ("7f800000", "ff800000")
    assert about.rates == ["nan", 1e300] and load_incident(tmp_path).step.moments == {}


# The cap


def test_the_first_twenty_are_kept_and_the_rest_told(refused_step, tmp_path, caplog):
    step = refused_step()
    for number in range(1, keeping.MOST + 1):
        assert keep_incident(tmp_path, **step).name == f"{number:03d}"
    assert keep_incident(tmp_path, **step) is None
    assert "not kept" in caplog.text and "20 already" in caplog.text
    assert [each.number for each in list_incidents(tmp_path)] == list(range(1, keeping.MOST + 1))


def test_together_they_take_no_more_than_their_room(refused_step, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(keeping, "MOST_BYTES", 1000)
    step = refused_step()
    assert keep_incident(tmp_path, **step) is not None  # the first has room in any case
    assert keep_incident(tmp_path, **step) is None
    assert "together at most 1,000" in caplog.text


def test_half_of_the_free_disk_is_left_to_the_model(refused_step, tmp_path, monkeypatch, caplog):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert keep_incident(tmp_path, **refused_step()) is None
    assert "the disk has 1,000 left" in caplog.text and list_incidents(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_no_more_is_a_run_error_and_leaves_nothing(refused_step, tmp_path, monkeypatch, code):
    def failing(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(RunError, match=f"001: a refused step cannot be kept there \\({os.strerror(code)}\\)"):
        keep_incident(tmp_path, **refused_step())
    assert list((tmp_path / INCIDENTS).iterdir()) == []


def test_a_file_in_the_place_of_the_folder(refused_step, tmp_path):
    (tmp_path / INCIDENTS).write_text("mine")
    with pytest.raises(RunError, match="cannot be"):
        keep_incident(tmp_path, **refused_step())
    assert (tmp_path / INCIDENTS).read_text() == "mine"


# Torn, damaged, hostile


@pytest.mark.parametrize("place", [(os, "open"), (os, "fdopen"), (os, "fsync"), (Path, "replace")])
def test_a_kill_leaves_a_torn_one_that_the_list_names(refused_step, kept, monkeypatch, place):
    """And the next one is kept beside it."""

    class Killed(BaseException):
        pass

    def stop(*_):
        raise Killed

    step = refused_step()
    with monkeypatch.context() as patch:
        patch.setattr(*place, stop)
        with pytest.raises(Killed):
            keep_incident(kept, **step)
    first, second = list_incidents(kept)
    assert first.fault is None and "002: is torn" in second.fault
    with pytest.raises(RunError, match="002: is torn"):
        load_incident(kept)
    assert keep_incident(kept, **step).name == "003"
    assert replay(load_incident(kept)).same


@pytest.mark.parametrize("damage", ["absent", "truncated", "longer", "empty", "flipped", "folder", "link"])
def test_a_damaged_file_is_refused_by_name(kept, damage, capsys):
    name, path = INCIDENT, file_of(kept)
    content = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage in ("truncated", "longer", "empty"):
        path.write_bytes({"truncated": content[:-1], "longer": content + b" ", "empty": b""}[damage])
    else:
        path.rename(kept / "elsewhere")
        if damage == "folder":
            path.mkdir()
        elif damage == "link":
            path.symlink_to(kept / "elsewhere")
    with pytest.raises((CheckpointError, RunError), match=name):
        load_incident(kept)
    for command in ("show", "replay"):
        code, out, err = llueve(capsys, "incident", command, kept, "1")
        assert (code, out) == (1, "") and name in err and "Traceback" not in err
    if damage != "flipped":  # the list checks no hashes
        assert name in list_incidents(kept)[0].fault


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_any_flipped_byte_is_found(kept, data):
    name, path = INCIDENT, file_of(kept)
    content = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
    try:
        with pytest.raises((CheckpointError, RunError), match=name):
            load_incident(kept)
    finally:
        path.write_bytes(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_a_description_that_was_changed_with_its_hash_is_refused_or_harmless(kept, data):
    path = file_of(kept)
    original, about = path.read_bytes(), description(kept)
    place = about
    key = data.draw(st.sampled_from(sorted(about)))
    while isinstance(place[key], dict) and data.draw(st.booleans()):
        place, key = place[key], data.draw(st.sampled_from(sorted(place[key])))
    numbers = st.integers(-(10**20), 10**20) | st.sampled_from([0, 1, 10**9, 2**62])
    place[key] = data.draw(JSON | numbers)
    try:
        describe(kept, about)
        found = load_incident(kept)
        assert found.about.machine.threads <= 4096
        replay(found, threads=1)
        incidents.render_list(list_incidents(kept))
        incidents.render_description(found.about)
    except LlueveError:
        pass
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"a": 1' + "0" * 9999, '{"format": 2}'])
def test_a_text_that_is_not_a_description(kept, content):
    describe(kept, content)
    with pytest.raises(CheckpointError, match=r"001/step\.safetensors: is damaged|another version"):
        load_incident(kept)


def test_another_format_is_said(kept):
    describe(kept, {**description(kept), "format": 1})
    with pytest.raises(CheckpointError, match="another version of llueve"):
        load_incident(kept)


def test_a_file_without_end_is_not_read(kept):
    with file_of(kept).open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(CheckpointError, match="is torn or damaged"):
        load_incident(kept)


def test_a_description_without_end_is_not_parsed(kept, monkeypatch):
    monkeypatch.setattr(parse, "LARGEST_DESCRIPTION", 1000)
    with pytest.raises(CheckpointError, match="expected at most 1,000"):
        load_incident(kept)


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def with_other(name, change):
    return lambda tensors: {**tensors, name: change(tensors[name]).contiguous()}


@pytest.mark.parametrize(
    ("group", "change", "words"),
    [
        ("batch", without("y_B"), "the batch holds"),
        ("batch", with_other("x_BLC", lambda x: x[:, :, :2]), "x_BLC has the shape"),
        ("batch", with_other("x_BLC", lambda x: x.double()), "other types"),
        ("batch", with_other("x_BLC", lambda x: x[0, 0, 0]), "x_BLC has the shape"),
        ("batch", with_other("x_BLC", lambda x: x[:, :0]), "has the shape"),
        ("batch", with_other("observed_BLC", lambda x: x[:5]), "observed_BLC has the shape"),
        ("batch", with_other("facts_BF", lambda x: x[:, :1]), "facts_BF has the shape"),
        ("batch", with_other("y_B", lambda y: y + 9), "y_B goes from"),
        ("batch", with_other("y_B", lambda y: y - 100), "y_B goes from"),
        ("rows", with_other("site_B", lambda site: site - 100), "negative index"),
        ("batch", lambda tensors: {name: tensor[:0] for name, tensor in tensors.items()}, "has the shape"),
        ("model", without("gap_embedding_D"), "gap_embedding_D"),
        ("model", with_other("gap_embedding_D", lambda weight: weight[:3]), "gap_embedding_D"),
        ("model", with_other("gap_embedding_D", lambda weight: weight.half()), "gap_embedding_D"),
        ("model", lambda tensors: {**tensors, "more": torch.ones(2)}, "more"),
        ("moments", lambda tensors: {"more.exp_avg": torch.ones(2)}, "more.exp_avg"),
        ("moments", with_other("gap_embedding_D.exp_avg", lambda moment: moment[:3]), "gap_embedding_D.exp_avg"),
        ("random", without("cpu"), "random states of []"),
        ("random", with_other("cpu", lambda state: state[:5]), "random state of cpu is not valid"),
        ("random", with_other("cpu", lambda state: state.flip(0)), "random state of cpu is not valid"),
        ("random", with_other("cpu", lambda state: state.float()), "random state of cpu is not valid"),
    ],
)
def test_parts_that_do_not_belong_together(kept, group, change, words):
    exchange(kept, group, change)
    with pytest.raises(CheckpointError, match="do not belong together") as caught:
        load_incident(kept)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "size", [{"width": 2**40, "heads": 1}, {"layers": 10**9}, {"feed_forward": 10**18}, {"patch_length": 2**60}]
)
def test_a_model_that_would_fill_the_memory_is_refused_before_it_is_made(kept, size):
    about = description(kept)
    about["model"] = {**about["model"], **size}
    describe(kept, about)
    with pytest.raises(CheckpointError, match=f"is damaged .model.{next(iter(size))}: "):
        load_incident(kept)


@pytest.mark.parametrize("size", [{"width": 4096, "heads": 1}, {"layers": 256}, {"feed_forward": 2**20}])
def test_a_possible_model_that_is_larger_than_its_weights_is_not_made(kept, size):
    about = description(kept)
    describe(kept, {**about, "model": {**about["model"], **size}})
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_incident(kept)


def test_a_description_that_is_nested_deep_is_refused(kept):
    describe(kept, {**description(kept), "memory": json.loads("[" * 100 + "]" * 100)})
    with pytest.raises(CheckpointError, match="nested too deep"):
        load_incident(kept)


def test_bytes_that_are_not_safetensors(kept):
    for content in (b"", b"\x80\x04K\x01.", (2**63 - 1).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"[]"):
        file_of(kept).write_bytes(content)
        with pytest.raises(CheckpointError, match="is torn or damaged"):
            load_incident(kept)
    file_of(kept).write_bytes(save({"a": torch.ones(2)}))
    with pytest.raises(CheckpointError, match="was not written by this version"):
        load_incident(kept)


# Links


@pytest.mark.parametrize("which", ["incidents", "001"])
def test_a_folder_that_is_a_link_is_not_followed(kept, refused_step, which, capsys):
    path = kept / INCIDENTS if which == "incidents" else kept / INCIDENTS / "001"
    path.rename(kept / "elsewhere")
    path.symlink_to(kept / "elsewhere", target_is_directory=True)
    with pytest.raises(RunError, match="is a link, which is not followed"):
        load_incident(kept)
    code, out, err = llueve(capsys, "incident", "replay", kept)
    assert (code, out) == (1, "") and "is a link" in err
    if which == "incidents":
        with pytest.raises(RunError, match="is a link"):
            keep_incident(kept, **refused_step())
    else:
        assert "is a link" in list_incidents(kept)[0].fault
        assert keep_incident(kept, **refused_step()).name == "002"


def test_overwriting_a_run_removes_its_incidents_and_nothing_else(kept, refused_step, make_config):
    run, config = Run(kept), make_config()
    run.create(config, overwrite=False) if not any(kept.iterdir()) else run.write("config.toml", b"")
    torn = kept / INCIDENTS / "002"
    torn.mkdir()
    (torn / f".{INCIDENT}.part").write_bytes(b"half")
    run.create(config, overwrite=True)
    assert not (kept / INCIDENTS).exists()
    keep_incident(kept, **refused_step())
    outside = kept.parent / "outside"
    outside.mkdir()
    (outside / INCIDENT).write_text("mine")
    (kept / INCIDENTS / "002").symlink_to(outside, target_is_directory=True)
    (kept / INCIDENTS / "notes").mkdir()
    (kept / INCIDENTS / "001" / "notes.txt").write_text("mine")
    run.create(config, overwrite=True)
    assert (outside / INCIDENT).read_text() == "mine"
    assert [path.name for path in (kept / INCIDENTS / "001").iterdir()] == ["notes.txt"]
    assert sorted(path.name for path in (kept / INCIDENTS).iterdir()) == ["001", "002", "notes"]


def test_overwriting_a_run_whose_incidents_are_a_link_is_refused(kept, make_config):
    Run(kept).write("config.toml", b"")
    (kept / INCIDENTS).rename(kept / "elsewhere")
    (kept / INCIDENTS).symlink_to(kept / "elsewhere", target_is_directory=True)
    with pytest.raises(RunError, match="is a link"):
        Run(kept).create(make_config(), overwrite=True)
    assert (kept / "elsewhere" / "001" / INCIDENT).exists()


# The command line


def test_list_show_and_replay(kept, capsys):
    code, out, _ = llueve(capsys, "incident", "list", kept)
    assert code == 0 and "step 3: loss nan" in out
    code, out, _ = llueve(capsys, "incident", "list", kept, "--json")
    loss = json.loads(out)[0]["loss"]
    assert loss["value"] == "nan" and math.isnan(struct.unpack(">f", bytes.fromhex(loss["bits"]))[0])
    code, out, _ = llueve(capsys, "incident", "show", kept, "1")
    for words in ("loss", "16: s0 at 2020-", "timer_xl", "float32 on cpu"):
        assert words in out
    code, out, _ = llueve(capsys, "incident", "show", kept, "--json")
    assert code == 0 and json.loads(out)["train"]["batch_size"] == 16
    code, out, _ = llueve(capsys, "incident", "replay", kept)
    assert code == 0 and "the same bits" in out
    code, out, _ = llueve(capsys, "incident", "replay", kept, "1", "--json")
    assert code == 0 and json.loads(out)["same"] and json.loads(out)["here"]["loss"] == "nan"


def test_what_is_not_there(kept, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    for command in ("list", "show", "replay"):
        code, out, err = llueve(capsys, "incident", command, tmp_path / "nowhere")
        assert (code, out) == (1, "") and "is not a directory; give the DIR" in " ".join(err.split())
    for command in ("show", "replay"):
        code, out, err = llueve(capsys, "incident", command, empty)
        assert (code, out) == (1, "") and "has no incidents" in " ".join(err.split())
        code, out, err = llueve(capsys, "incident", command, kept, "7")
        assert (code, out) == (2, "")
        assert "has no incident 7; it has 1" in " ".join(err.split())
        for wrong in ("../001", "one", "1/../../001"):
            assert llueve(capsys, "incident", command, kept, wrong)[0] == 2
    code, out, _ = llueve(capsys, "incident", "list", empty)
    assert code == 0 and "no incidents" in " ".join(out.split())
    assert json.loads(llueve(capsys, "incident", "list", empty, "--json")[1]) == []
    with pytest.raises(UsageError, match="has no incident -1"):
        load_incident(kept, -1)


def test_words_that_would_steer_a_terminal_are_not_sent_to_it(refused_step, tmp_path, capsys):
    keep_incident(tmp_path, **{**refused_step(), "reason": "\x1b[2Jgone [bold]"})
    for command in ("list", "show"):
        _, out, _ = llueve(capsys, "incident", command, tmp_path)
        assert "\x1b[2J" not in out and "gone [bold]" in out


def test_a_slice_of_a_batch_can_be_kept_too(refused_step, tmp_path):
    step = refused_step(bad=None)
    batch = step["batch"][2:7]
    torch.set_rng_state(step["random_state"]["cpu"])
    loss = loss_and_gradients(step["model"], batch, step["train"], step["precision"])
    norm = nn.utils.clip_grad_norm_(step["model"].parameters(), 1.0)
    part = step["part"][2:7]
    keep_incident(tmp_path, **{**step, "batch": batch, "part": part, "loss": float(loss), "gradient_norm": float(norm)})
    assert replay(load_incident(tmp_path)).same


def from_features(step, bad=None):
    """The step of a frozen encoder whose features were computed before; a number of sample 5's may be planted bad."""
    model, batch = step["model"], step["batch"]
    model.encoder.requires_grad_(False)
    model.gap_embedding_D.requires_grad_(False)
    model.train()
    with torch.no_grad():
        features = model.pool(batch.x_BLC, batch.observed_BLC)
    if bad is not None:
        features[5].view(-1)[3] = bad
    batch = replace(batch, features=features)
    torch.set_rng_state(step["random_state"]["cpu"])
    loss = loss_and_gradients(model, batch, step["train"], step["precision"])
    norm = nn.utils.clip_grad_norm_(model.parameters(), step["train"].clip_norm, foreach=True)
    return {**step, "batch": batch, "loss": float(loss), "gradient_norm": float(norm)}


@pytest.mark.parametrize("head", ["variables", "mean"])
@pytest.mark.parametrize("bad", [None, math.nan])
def test_a_step_from_features_is_kept_and_replayed_with_them(refused_step, tmp_path, head, bad):
    step = from_features(refused_step(head=head, bad=None), bad)
    assert math.isnan(step["loss"]) == (bad is not None)
    keep_incident(tmp_path, **step)
    found = load_incident(tmp_path)
    assert torch.equal(found.step.batch.features.nan_to_num(9), step["batch"].features.nan_to_num(9))
    assert replay(found).same
    assert not found.step.model.encoder.training and found.step.model.training
    mended = replace(found, step=found.step.without_features())
    if bad is None:  # the encoder gives them again
        assert replay(mended).same
    else:
        assert math.isfinite(replay(mended).loss)


@pytest.mark.parametrize("cell", [math.nan, None])
def test_bad_features_are_explained_by_their_window_or_are_transient(refused_step, tmp_path, cell):
    """Sample 5, step 2, variable b; or a sound window whose stored features were damaged since."""
    keep_incident(tmp_path, **from_features(refused_step(bad=cell), None if cell else math.nan))
    found = incidents.explain_incident(load_incident(tmp_path)).explanation
    assert (found.cause, found.cells) == (("missing_input", ((5, 2, 1),)) if cell else ("transient", ()))


@pytest.mark.parametrize("change", [lambda x: x[:, :2], lambda x: x[:5], lambda x: x[0, 0, 0], lambda x: x.double()])
def test_features_that_do_not_fit_the_model_are_refused(refused_step, tmp_path, change):
    keep_incident(tmp_path, **from_features(refused_step(bad=None)))
    exchange(tmp_path, "batch", with_other("features", change))
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_incident(tmp_path)


def test_explain_names_site_time_and_variable_and_the_one_change_that_cures(kept, capsys):
    """Sample 5, step 2 of 8, variable b."""
    code, out, _ = llueve(capsys, "incident", "explain", kept, "--json")
    told = json.loads(out)
    assert code == 0 and told["cause"] == "missing_input"
    (cell,) = told["cells"]
    sample = load_incident(kept).about
    when = np.datetime64(sample.times[5], "s") - (
        load_incident(kept).step.batch.x_BLC.shape[1] - 1 - 2
    ) * np.timedelta64(1, "D")
    assert (cell["variable"], cell["site"], cell["first"]) == ("b", sample.sites[5], str(when))
    assert {each["words"]["en"] for each in told["experiments"] if each["cures"]} == {
        "missing and infinite cells masked",
        "without samples 5",
    }
    for language, word in (
        ("en", "Cause: missing_input"),
        ("es", "Causa: missing_input: celdas sin valor"),
        ("es", "celdas ausentes e infinitas"),
    ):
        code, out, _ = llueve(capsys, "incident", "explain", kept, "--language", language)
        assert code == 0 and word in out
    _, out, _ = llueve(capsys, "incident", "explain", kept, "--language", "es")
    english = {
        "and",
        "at",
        "cells",
        "held",
        "loss",
        "masked",
        "more",
        "new",
        "numbers",
        "of",
        "the",
        "with",
        "without",
        "yes",
    }
    assert english & set(re.findall(r"[a-z]+", out.lower())) == set()
    assert llueve(capsys, "incident", "explain", kept, "--language", "fr")[0] == 2
