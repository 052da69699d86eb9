"""Features computed once: the same numbers as in each step, reused, recognised as stale, never trusted when damaged."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from llueve.config import GuardConfig, PhaseConfig
from llueve.model.build import HeadSizes, build_classifier, build_encoder
from llueve.samples.scale import fit_scaler
from llueve.samples.split import split_panel
from llueve.samples.windows import build_windows
from llueve.step.gradients import loss_and_gradients
from llueve.step.predict import as_batch
from llueve.training.batches.feature_cache import DamagedFeatures, FeatureCache
from llueve.training.batches.feature_files import UnusableFiles
from llueve.training.environment import Environment
from llueve.training.loop import train_model
from llueve.training.stepper import Stepper

CPU = torch.device("cpu")
LIMIT = 10**9


@pytest.fixture
def prepared(make_panel, make_config):
    """A model with a frozen encoder, windows with holes, their split and the configuration."""

    def make(head="variables", missing="mask", **model_settings):
        sizes = {"width": 16, "heads": 2, "dropout": 0.3, "head": head, **model_settings}
        panel, config = make_panel(times=200), make_config(model=sizes)
        split = split_panel(panel, config)
        windows = build_windows(panel, fit_scaler(panel, split.training_rows), config.windows.context, missing)
        torch.manual_seed(0)
        model = build_classifier(build_encoder(config.model), config.model, HeadSizes(3, 2, 2))
        torch.nn.init.normal_(model.gap_embedding_D)
        model.encoder.requires_grad_(False)
        model.gap_embedding_D.requires_grad_(False)
        return model.train(), windows, split, config

    return make


class Counted:
    """How many windows an encoder was given."""

    def __init__(self, model, monkeypatch):
        self.windows = 0
        pool = model.pool

        def counted(x_BLC, *others):
            self.windows += len(x_BLC)
            return pool(x_BLC, *others)

        monkeypatch.setattr(model, "pool", counted)


def opened(path, model, windows, part, **options):
    return FeatureCache.open(path / "cache", model, windows, part, **{"limit_bytes": LIMIT, **options})


def files(path, ending=""):
    return sorted(each for each in (path / "cache").iterdir() if each.name.endswith(ending))


@pytest.mark.parametrize("head", ["variables", "mean"])
@pytest.mark.parametrize("architecture", ["timer_xl", "timer"])
def test_a_step_from_the_cache_gives_the_numbers_of_a_whole_step(prepared, tmp_path, head, architecture):
    """Loss and gradients for random windows; and the same bits where the encoder was given the same windows together."""
    model, windows, split, config = prepared(head, architecture=architecture)
    cache = opened(tmp_path, model, windows, split.training, compute_batch=16)
    assert len(cache) == len(split.training) and cache.non_finite.tolist() == []
    for rows, exact in ((np.random.default_rng(0).permutation(len(cache))[:16], False), (np.arange(16, 32), True)):
        plain = as_batch(windows, split.training[rows], CPU)
        begun = replace(plain, features=cache.batch(rows))
        found = []
        for batch in (plain, begun):
            torch.manual_seed(1)
            loss = loss_and_gradients(model, batch, config.train, torch.float32)
            found.append([loss, *(weight.grad for weight in model.parameters() if weight.grad is not None)])
        assert len(found[0]) == len(found[1]) > 5
        for whole, cached in zip(*found, strict=True):
            torch.testing.assert_close(cached, whole, atol=0 if exact else 1e-6, rtol=0 if exact else 1e-5)


def test_every_window_is_computed_once_and_then_read(prepared, tmp_path, monkeypatch):
    model, windows, split, _ = prepared()
    count, told = Counted(model, monkeypatch), []
    first = opened(tmp_path, model, windows, split.training, compute_batch=32, progress=lambda *done: told.append(done))
    assert count.windows == len(split.training)
    assert told[0] == (32, len(first)) and told[-1] == (len(first), len(first))
    torch.nn.init.normal_(model.head.out.weight)  # the head may learn meanwhile
    again = opened(tmp_path, model, windows, split.training, compute_batch=32, progress=told.append)
    assert count.windows == len(split.training)
    assert np.array_equal(first.rows, again.rows)
    assert [each.suffix for each in files(tmp_path)] == [".features", ".json"]
    assert torch.equal(again.batch(slice(3, 7)), again.batch(np.array([3, 4, 5, 6])))


def test_parts_stand_side_by_side_and_features_do_not_depend_on_what_is_asked(prepared, tmp_path, monkeypatch):
    model, windows, split, _ = prepared()
    model.encoder.train()
    training, validation = (opened(tmp_path, model, windows, part) for part in (split.training, split.validation))
    assert model.encoder.training
    assert len(files(tmp_path)) == 4
    count = Counted(model, monkeypatch)
    assert np.array_equal(opened(tmp_path, model, windows, split.training).rows, training.rows)
    assert np.array_equal(opened(tmp_path, model, windows, split.validation).rows, validation.rows)
    assert count.windows == 0


def changed(kind, model, windows, part):
    """The same with one thing changed."""
    with torch.no_grad():
        if kind == "a weight of the encoder":
            next(model.encoder.parameters()).view(-1)[0] += 1e-6
        elif kind == "the gap embedding":
            model.gap_embedding_D[0] += 1e-6
    if kind == "instance_norm":
        model.instance_norm = False
    elif kind == "positions":
        model.encoder.positions = "time"
    elif kind == "a value":
        windows.values_STC[1, 50, 2] += 1e-3
    elif kind == "an observation":
        windows.observed_STC[1, 50, 2] ^= True
    elif kind == "the context":
        windows = replace(windows, context=windows.context - 1)
    elif kind == "the windows":
        part = part[1:]
    elif kind == "their order":
        part = part[::-1]
    return model, windows, part


CHANGES = [
    "a weight of the encoder",
    "the gap embedding",
    "instance_norm",
    "positions",
    "a value",
    "an observation",
    "the context",
    "the windows",
    "their order",
]


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_recognised_and_the_old_files_go(prepared, tmp_path, monkeypatch, kind):
    model, windows, split, _ = prepared()
    opened(tmp_path, model, windows, split.training)
    before = files(tmp_path)
    model, windows, part = changed(kind, model, windows, split.training)
    count = Counted(model, monkeypatch)
    cache = opened(tmp_path, model, windows, part)
    assert count.windows == len(part) == len(cache)
    assert len(files(tmp_path)) == 2 and not {*before} & {*files(tmp_path)}


def test_facts_knots_and_outcomes_may_change(prepared, tmp_path, monkeypatch):
    model, windows, split, _ = prepared()
    opened(tmp_path, model, windows, split.training)
    count = Counted(model, monkeypatch)
    model.set_knots(windows.quantiles(split.training_rows, 16))
    other = replace(windows, calendar_TF=windows.calendar_TF + 1)
    opened(tmp_path, model, other, replace(split.training, y=1 - split.training.y))
    assert count.windows == 0


def damage(path, kind):
    features, header = files(path, ".features")[0], files(path, ".json")[0]
    content = features.read_bytes()
    if kind == "flipped":
        features.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif kind in ("truncated", "longer", "empty"):
        features.write_bytes({"truncated": content[:-4], "longer": content + b"more", "empty": b""}[kind])
    elif kind == "other checksums":
        about = json.loads(header.read_text())
        header.write_text(json.dumps({**about, "crc32": about["crc32"][:-1]}))
    elif kind == "another key":
        header.write_text(json.dumps({**json.loads(header.read_text()), "key": "0" * 128}))
    elif kind in ("no header", "no features"):
        (header if kind == "no header" else features).unlink()
    elif kind.startswith("header "):
        header.write_bytes({"header {": b"{", "header []": b"[]", "header \xff": b"\xff", "header": b""}[kind])
    elif kind == "link":
        features.rename(path / "elsewhere")
        features.symlink_to(path / "elsewhere")


DAMAGES = [
    "flipped",
    "truncated",
    "longer",
    "empty",
    "other checksums",
    "another key",
    "no header",
    "no features",
    "header {",
    "header []",
    "header \xff",
    "link",
]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_cache_is_computed_again_and_said(prepared, tmp_path, monkeypatch, caplog, kind):
    model, windows, split, _ = prepared()
    first = opened(tmp_path, model, windows, split.training).batch(slice(None))
    damage(tmp_path, kind)
    count = Counted(model, monkeypatch)
    again = opened(tmp_path, model, windows, split.training)
    assert count.windows == len(split.training) and torch.equal(again.batch(slice(None)), first)
    (line,) = caplog.messages
    assert "the features are computed again" in line and "training-" in line
    assert len(files(tmp_path)) == 2 and not any(each.is_symlink() for each in files(tmp_path))
    if kind == "link":
        assert (tmp_path / "elsewhere").stat().st_size == first.nbytes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.data())
def test_whatever_byte_is_changed_the_features_are_the_same(prepared, tmp_path, data):
    model, windows, split, _ = prepared()
    part = split.training[:40]
    first = opened(tmp_path, model, windows, part, compute_batch=16).batch(slice(None))
    path = data.draw(st.sampled_from(files(tmp_path)))
    content = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    path.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
    assert torch.equal(opened(tmp_path, model, windows, part, compute_batch=16).batch(slice(None)), first)


def test_a_kill_during_the_computation_leaves_nothing_that_is_believed(prepared, tmp_path, monkeypatch):
    """Another process is killed after two blocks; its half of a file is replaced."""
    model, windows, split, config = prepared()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    arrays = {name: value for name, value in vars(windows).items() if name not in ("network", "place")}
    np.savez(tmp_path / "data.npz", **arrays, site=split.training.site, end=split.training.end)
    script = f"""
import time, numpy as np, torch
from pathlib import Path
from llueve.config import ModelConfig
from llueve.model.build import HeadSizes, build_classifier, build_encoder
from llueve.config import GuardConfig, PhaseConfig
from llueve.training.batches.feature_cache import FeatureCache
from llueve.training.environment import Environment
from llueve.training.loop import train_model
from llueve.training.stepper import Stepper
from llueve.samples.windows import Part, Windows
config = ModelConfig.model_validate_json({config.model.model_dump_json()!r})
model = build_classifier(build_encoder(config), config, HeadSizes(3, 2, 2))
model.load_state_dict(torch.load(Path({str(tmp_path)!r}) / "weights.pt", weights_only=True))
data = dict(np.load(Path({str(tmp_path)!r}) / "data.npz"))
site, end = data.pop("site"), data.pop("end")
part = Part("training", site, end, np.zeros(len(site), np.int64))
windows = Windows(**{{name: each if each.ndim else int(each) for name, each in data.items()}})
def wait(done, total):
    print(done, flush=True)
    time.sleep(60 if done >= 32 else 0)
FeatureCache.open(Path({str(tmp_path / "cache")!r}), model, windows, part,
                  limit_bytes={LIMIT}, compute_batch=16, progress=wait)
"""
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert [other.stdout.readline() for _ in range(2)] == ["16\n", "32\n"]
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    (half,) = files(tmp_path)
    assert half.name.endswith(".features.part") and half.stat().st_size > 0
    count = Counted(model, monkeypatch)
    cache = opened(tmp_path, model, windows, split.training, compute_batch=16)
    assert count.windows == len(cache) == len(split.training)
    assert [each.suffix for each in files(tmp_path)] == [".features", ".json"]
    assert half.name == f".{files(tmp_path)[0].name}.part"  # the other process had the same key


def test_what_a_killed_run_of_another_model_left_is_removed(prepared, tmp_path):
    model, windows, split, _ = prepared()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / f".training-{'0' * 16}-{'1' * 16}.features.part").write_bytes(b"half")
    (tmp_path / "cache" / "notes.txt").write_text("mine")
    opened(tmp_path, model, windows, split.training)
    assert sorted(each.suffix for each in files(tmp_path)) == [".features", ".json", ".txt"]
    assert (tmp_path / "cache" / "notes.txt").read_text() == "mine"


def test_the_limit_counts_every_part_and_no_part_is_removed_for_another(prepared, tmp_path, caplog):
    model, windows, split, _ = prepared()
    opened(tmp_path, model, windows, split.training)
    size = sum(each.stat().st_size for each in files(tmp_path))
    (tmp_path / "cache").rename(tmp_path / "first")
    folder = tmp_path / "cache"
    folder.mkdir()
    other = folder / f"test-{'1' * 16}-{'0' * 16}.features"
    other.write_bytes(bytes(size))
    limit = 2 * size + 20_000
    assert opened(tmp_path, model, windows, split.training, limit_bytes=2 * size - 1) is None
    assert "with those of other parts, at most" in caplog.messages.pop() and files(tmp_path) == [other]
    caplog.clear()
    assert opened(tmp_path, model, windows, split.training, limit_bytes=limit) is not None
    assert other.exists()
    assert sum(each.stat().st_size for each in files(tmp_path)) <= limit
    assert caplog.messages == []
    # Another part of the same model stays too, and leaves no room.
    other.unlink()
    assert opened(tmp_path, model, windows, split.validation, limit_bytes=size + 2000) is None
    assert "with those of other parts, at most" in caplog.messages.pop()
    assert len(files(tmp_path, "json")) == 1
    # A lower limit than what is there.
    caplog.clear()
    assert opened(tmp_path, model, windows, split.training, limit_bytes=1000) is None
    assert "at most 1,000 may be kept" in caplog.text and files(tmp_path) == []


def test_half_of_the_free_disk_is_left(prepared, tmp_path, monkeypatch, caplog):
    model, windows, split, _ = prepared()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert opened(tmp_path, model, windows, split.training) is None
    assert len(caplog.messages) == 1 and "the disk has 1,000 left" in caplog.text and files(tmp_path) == []


@pytest.mark.parametrize("written", [0, 2])
def test_a_full_disk_leaves_nothing(prepared, tmp_path, monkeypatch, caplog, written):
    model, windows, split, _ = prepared()
    done, real = [], os.fdopen

    class Full(io.FileIO):
        """A file on a disk that is full after some blocks."""

        def write(self, content):
            if len(done) == written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done.append(content)
            return super().write(content)

    monkeypatch.setattr(os, "fdopen", lambda number, mode: Full(number, mode) if mode == "wb" else real(number, mode))
    model.encoder.train()
    assert opened(tmp_path, model, windows, split.training, compute_batch=16) is None
    assert files(tmp_path) == [] and model.encoder.training
    assert len(caplog.messages) == 1 and os.strerror(errno.ENOSPC) in caplog.text
    assert len(done) == written


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_directory_that_is_none_is_not_used(prepared, tmp_path, caplog, kind):
    model, windows, split, _ = prepared()
    (tmp_path / "elsewhere").mkdir()
    if kind == "link":
        (tmp_path / "cache").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    else:
        (tmp_path / "cache").write_text("mine")
    assert opened(tmp_path, model, windows, split.training) is None
    assert len(caplog.messages) == 1 and list((tmp_path / "elsewhere").iterdir()) == []


def test_features_that_are_not_finite_are_kept_and_named(prepared, tmp_path):
    model, windows, split, _ = prepared(missing="raw")
    part = split.training
    cache = opened(tmp_path, model, windows, part, compute_batch=16)
    values_BCL, _, _ = windows.batch(part)
    assert cache.non_finite.tolist() == np.nonzero(~np.isfinite(values_BCL).all((1, 2)))[0].tolist() != []
    again = opened(tmp_path, model, windows, part, compute_batch=16)
    assert again.non_finite.tolist() == cache.non_finite.tolist()
    assert np.array_equal(again.rows, cache.rows, equal_nan=True)


@pytest.mark.parametrize("value", [0.25, 1e30, np.nan])
def test_garbage_in_a_live_cache_is_found_when_it_is_used_and_computed_again(prepared, tmp_path, value):
    model, windows, split, _ = prepared()
    cache = opened(tmp_path, model, windows, split.training, compute_batch=16)
    right = cache.batch(slice(None))
    rows = cache.rows.copy()
    rows[[5, 40], 1, 2] = value
    cache.rows = rows
    assert torch.equal(cache.batch(slice(6, 12)), right[6:12])  # these are sound
    with pytest.raises(DamagedFeatures) as caught:
        cache.batch(np.array([3, 40, 5]))
    assert caught.value.rows.tolist() == [40, 5]
    cache.mend(caught.value)
    for chosen in (slice(None), np.array([5, 3, 40]), np.empty(0, np.int64)):  # none: more processes than windows
        assert torch.equal(cache.batch(chosen), right[chosen])


def test_a_live_cache_that_is_full_of_garbage_is_given_up(prepared, tmp_path):
    model, windows, split, _ = prepared()
    cache = opened(tmp_path, model, windows, split.training, compute_batch=4)
    cache.rows = np.zeros_like(cache.rows)
    with pytest.raises(DamagedFeatures) as caught:
        cache.batch(slice(None))
    with pytest.raises(UnusableFiles, match="too many changed"):
        cache.mend(caught.value)


def test_a_damaged_file_does_not_change_a_training(prepared, tmp_path):
    """A few finite numbers of the file change between two steps, and the file of the validation before it is read."""
    ends = []
    for harmed in (False, True):
        model, windows, split, config = prepared()
        lines, attempt = [], Stepper.attempt

        def damaged(self, *given, harmed=harmed, attempt=attempt):
            if harmed and self.state.place.batches == 2 and self.state.place.epoch == 1:
                for path in (tmp_path / "features1").glob("*.features"):
                    with path.open("r+b") as file:
                        file.seek(path.stat().st_size - 400)
                        file.write(np.full(8, 0.5, np.float32).tobytes())
            return attempt(self, *given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Stepper, "attempt", damaged)
            around = Environment(
                lines.append,
                lambda _: None,
                lambda: None,
                Console(file=io.StringIO()),
                features=tmp_path / f"features{int(harmed)}",
            )
            train = config.train.model_copy(
                update={"phases": (PhaseConfig(name="head", freeze=("encoder",), epochs=2),)}
            )
            torch.manual_seed(3)
            train_model(model, windows, split.training, split.validation, train, GuardConfig(), around)
        ends.append((model.state_dict(), [line for line in lines if "event" not in line]))
        assert [line["kind"] for line in lines if "event" in line] == (["features"] if harmed else [])
    assert all(torch.equal(ends[0][0][name], each) for name, each in ends[1][0].items())
    assert [line["validation_loss"] for line in ends[0][1]] == [line["validation_loss"] for line in ends[1][1]]
