"""On a CUDA device: the numbers are the processor's, steps repeat bit for bit, and nothing unsound is applied.

Shapes: B batch, H heads, T tokens, E head width, C variables, N patches, L steps. How far numbers are apart is written out
(`pytest -s`).
"""

import copy
import json
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from llueve import pipeline
from llueve.config import TrainConfig, load_config
from llueve.errors import Interrupted
from llueve.model.batch import Batch
from llueve.model.classifier import TimerXLForClassification
from llueve.model.kernels.attention import variable_attention
from llueve.model.timer import Timer
from llueve.model.timer_xl import TimerXL
from llueve.runs import directory as files
from llueve.runs import saved_model
from llueve.samples.scale import fit_scaler
from llueve.samples.split import split_panel
from llueve.samples.windows import build_windows
from llueve.stability.diagnosis.trace import trace_step
from llueve.stability.guard import Guard
from llueve.stability.incidents import explain_incident, load_incident, replay
from llueve.stability.reading import Fault, FaultKind
from llueve.step import gradients as steps
from llueve.step.gradients import loss_and_gradients
from llueve.step.predict import as_batch
from llueve.step.random_state import random_states, set_random_states
from llueve.training.batches.feature_cache import FeatureCache
from llueve.training.precision import choose_precision
from llueve.training.stepper import Stepper

sys.path.insert(0, str(Path(__file__).parent / "model"))
import plain

DEVICE = torch.device("cuda")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA device here: these tests compare one with the processor"
)
NAN = float("nan")


def tell(what, number):
    sys.stdout.write(f"\n  {what}: {number}\n")


def apart(one, other):
    """Largest difference, relative to the norm's share of one number."""
    one, other = one.detach().cpu().double(), other.detach().cpu().double()
    return float((one - other).abs().max() / other.square().mean().sqrt().clamp(min=1e-12))


# The same numbers as the processor


def encoders(form, width=64, layers=2):
    torch.manual_seed(0)
    encoder = form(8, width=width, layers=layers, heads=4, feed_forward=2 * width, dropout=0.1).eval()
    for name, parameter in encoder.named_parameters():
        if "attn_bias" in name:
            torch.nn.init.normal_(parameter)
    return encoder, copy.deepcopy(encoder).to(DEVICE)


@pytest.mark.parametrize("form", [TimerXL, Timer])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(("variables", "patches", "width"), [(3, 5, 64), (27, 15, 256)])
def test_tokens_and_gradients_are_the_processors(form, holes, variables, patches, width):
    here, there = encoders(form, width)
    x_BCL = torch.randn(3, variables, 8 * patches)
    observed_BCL = torch.ones_like(x_BCL, dtype=torch.bool)
    if holes:
        observed_BCL[0, 1, :16] = observed_BCL[1, 2, -8:] = observed_BCL[2, 0] = False
    x_BCL = x_BCL * observed_BCL
    gap_D = torch.randn(width)
    weigh = torch.randn(3, variables, patches, width)
    out = here.tokens(x_BCL, observed_BCL, gap_D)
    (out * weigh).mean().backward()
    on_device = there.tokens(x_BCL.to(DEVICE), observed_BCL.to(DEVICE), gap_D.to(DEVICE))
    (on_device * weigh.to(DEVICE)).mean().backward()
    furthest = float((on_device.detach().cpu() - out.detach()).abs().max())
    gradients = [
        (name, apart(b.grad, a.grad))
        for (name, a), b in zip(here.named_parameters(), there.parameters(), strict=True)
        if a.grad is not None
    ]
    worst = max(gradients, key=lambda each: each[1])
    tell(f"{form.__name__} {variables}x{patches} wide {width}, holes {holes}: tokens", furthest)
    tell("  gradients, relative", worst)
    assert furthest < 1e-4
    assert worst[1] < 1e-2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize(("variables", "patches"), [(3, 4), (1, 150), (5, 40), (70, 3)])
def test_attention_is_its_equation(dtype, absent, variables, patches):
    torch.manual_seed(3)
    tokens, width = variables * patches, 8
    exact = [torch.randn(2, 2, tokens, width, dtype=torch.float64, device=DEVICE, requires_grad=True) for _ in range(3)]
    bias_H2 = torch.randn(2, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)
    given = [each.detach().to(dtype).requires_grad_() for each in (*exact, bias_H2)]
    absent_BT = torch.zeros(2, tokens, dtype=torch.bool, device=DEVICE)
    absent_BT[0, [1, 2, tokens // 2, tokens - 1]] = absent
    token = torch.arange(tokens, device=DEVICE)
    patch, variable = token // variables, token % variables
    allowed = (patch[:, None] >= patch)[None, None] & ~absent_BT[:, None, None, :]
    same = (variable[:, None] == variable).long()
    expected = plain.attend(*exact, allowed, bias_H2[:, same], 0.0, False)
    fast = [SDPBackend.EFFICIENT_ATTENTION] if dtype == torch.float32 else [SDPBackend.MATH]
    with sdpa_kernel(fast):  # an error tells that the quick kernel would not take it
        found = variable_attention(*given, variables, absent_BT if absent else None)
    weigh = torch.randn_like(expected) * ~absent_BT[:, None, :, None]
    (found * weigh.to(dtype)).sum().backward()
    (expected * weigh).sum().backward()
    seen = (weigh != 0).expand_as(found)
    distances = [apart(found[seen], expected[seen])]
    for a, b in zip(given, (*exact, bias_H2), strict=True):
        if variables > 1 or a is not given[-1]:  # one variable alone: softmax does not see the bias
            distances.append(apart(a.grad, b.grad))
    tell(f"attention {str(dtype)[6:]} {variables}x{patches}, absent {absent}: out, q, k, v, bias", distances)
    assert max(distances) < (1e-9 if dtype == torch.float64 else 1e-3)


def test_bfloat16_is_chosen_and_near():
    encoder = encoders(TimerXL, 256)[1]
    x_BCL = torch.randn(4, 9, 80, device=DEVICE)
    choice = choose_precision("auto", encoder, x_BCL, torch.ones_like(x_BCL, dtype=torch.bool))
    tell("auto", (choice.name, choice.reason))
    assert choice.name == "bfloat16"
    assert choose_precision("float32", encoder, x_BCL, x_BCL == x_BCL).name == "float32"


# One step


def prepared(form=TimerXL, head="variables", width=16, samples=6, steps_of=32):
    torch.manual_seed(0)
    encoder = form(8, width=width, layers=2, heads=2, feed_forward=24, dropout=0.1)
    model = TimerXLForClassification(encoder, 2, head, num_variables=3, num_facts=2)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    observed_BLC = torch.rand(samples, steps_of, 3) >= 0.2
    observed_BLC[0, :8, 1] = False
    x_BLC = torch.randn(samples, steps_of, 3) * observed_BLC
    batch = Batch(x_BLC, observed_BLC, torch.randn(samples, 2), torch.arange(samples) % 2)
    return model.to(DEVICE).train(), batch.to(DEVICE)


@pytest.mark.parametrize("form", [TimerXL, Timer])
@pytest.mark.parametrize("head", ["variables", "mean"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config", [TrainConfig(), TrainConfig(batch_size=4, class_weights=(1, 2), focal_gamma=2, label_smoothing=0.1)]
)
def test_a_step_repeats_bit_for_bit(form, head, precision, config):
    model, batch = prepared(form, head, width=256, samples=16, steps_of=320)
    states, results = random_states(batch.y_B.device), []
    for _ in range(5):
        set_random_states(states, batch.y_B.device)
        loss = loss_and_gradients(model, batch, config, precision)
        results.append([loss.clone(), *(each.grad.clone() for each in model.parameters() if each.grad is not None)])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))
    assert torch.get_deterministic_debug_mode() == 0
    torch.rand(3, device=DEVICE)
    assert not torch.equal(loss_and_gradients(model, batch, config, precision), results[0][0])  # another dropout


def test_a_trace_names_what_was_planted(monkeypatch):
    model, batch = prepared()
    assert trace_step(model, batch, TrainConfig(), torch.float32) is None
    batch.x_BLC[4, 10, 2] = NAN
    found = trace_step(model, batch, TrainConfig(), torch.float32)
    assert (found.phase, found.sample, found.step, found.variable) == ("input", 4, 10, 2)
    model, batch = prepared()
    with torch.no_grad():
        model.encoder.blocks.attn_layers[1].conv1.weight[3, 5] = NAN
    found = trace_step(model, batch, TrainConfig(), torch.bfloat16)
    assert (found.phase, found.tensor) == ("weights", "encoder.blocks.attn_layers.1.conv1.weight")
    model, batch = prepared()
    loss_of = steps.weighted_mean

    def edged(*arguments):
        """The root has a finite value at zero, and no finite slope."""
        zero = model.gap_embedding_D - model.gap_embedding_D.detach()
        return loss_of(*arguments) + zero.square().sum().sqrt()

    monkeypatch.setattr(steps, "weighted_mean", edged)
    found = trace_step(model, batch, TrainConfig(), torch.float32)
    tell("backward", found.sentence())
    assert (found.phase, found.tensor) == ("backward", "gap_embedding_D")


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_trace_finds_the_layer_where_numbers_overflow(precision):
    """Tokens that are no multiple of attention's own block: what its kernel fills up with is blamed for nothing."""
    model, batch = prepared(steps_of=40)
    with torch.no_grad():
        layer = model.encoder.blocks.attn_layers[1]
        layer.conv1.weight.mul_(1e25)
        layer.conv2.weight.mul_(1e25)
    found = trace_step(model, batch, TrainConfig(), precision)
    tell("overflow", found.sentence())
    assert (found.phase, found.module) == ("forward", "encoder.blocks.attn_layers.1")


# Whole trainings


@pytest.fixture(scope="module")
def table(tmp_path_factory, write_rainy_table):
    """A table with missing cells, and a configuration of small epochs."""
    return write_rainy_table(
        tmp_path_factory.mktemp("table"),
        """
[train]
epochs = 3
patience = 3
batch_size = 32
warmup_steps = 5
average_decay = 0.9
[guard]
max_skipped = 0.1
[checkpoints]
steps = 7
""",
        missing=0.1,
    )


@pytest.fixture(scope="module")
def clean(table, tmp_path_factory):
    """A run without a fault."""
    folder = tmp_path_factory.mktemp("clean") / "run"
    pipeline.train(load_config(table), folder)
    return folder


def lines(run):
    return [json.loads(line) for line in (run / files.HISTORY).read_text().splitlines()]


def differences(one, other):
    a, b = (load_file(each / files.WEIGHTS) for each in (one, other))
    return {name: float((a[name] - b[name]).abs().max()) for name in a if not torch.equal(a[name], b[name])}


def plant(monkeypatch, at, damage):
    """Do `damage(course)` just before the attempt number `at`."""
    attempt, calls = Stepper.attempt, []

    def planted(self, *arguments):
        calls.append(None)
        if len(calls) == at:
            damage(self)
        return attempt(self, *arguments)

    monkeypatch.setattr(Stepper, "attempt", planted)


def without_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_it_is_trained_there_and_learns(clean):
    history = lines(clean)
    assert [line["epoch"] for line in history] == [1, 2, 3]
    assert all(line["refused"] == line["skipped"] == 0 for line in history)
    losses = [line["validation_loss"] for line in history]
    tell("validation losses, seconds", (losses, [line["seconds"] for line in history]))
    assert losses[-1] < losses[0]


def test_two_trainings_give_the_same_bits(clean, table, tmp_path):
    pipeline.train(load_config(table), tmp_path / "run")
    assert differences(clean, tmp_path / "run") == {}
    assert (clean / files.PREDICTIONS).read_bytes() == (tmp_path / "run" / files.PREDICTIONS).read_bytes()


def test_forecasts_are_the_processors(clean, table, monkeypatch):
    there = pipeline.predict(clean, table.parent / "table.csv", every_window=True)
    without_device(monkeypatch)
    here = pipeline.predict(clean, table.parent / "table.csv", every_window=True)
    furthest = float((there["probability"] - here["probability"]).abs().max())
    tell("probabilities", furthest)
    assert furthest < 1e-4


def test_an_interrupted_training_ends_in_the_same_bits(clean, table, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        plant(patch, 23, lambda here: setattr(here._environment.interruption, "number", int(signal.SIGTERM)))
        with pytest.raises(Interrupted):
            pipeline.train(load_config(table), tmp_path / "run")
    assert len(lines(tmp_path / "run")) < 3
    pipeline.train(load_config(table), tmp_path / "run", resume=True)
    found = differences(clean, tmp_path / "run")
    tell("after resuming, tensors that differ and by how much", found or "none")
    assert found == {}


def test_a_cell_that_is_not_finite_is_named_and_its_sample_left_out(table, tmp_path, monkeypatch):
    """Refused, kept, explained and repaired there; replayed to the same bits."""
    build = saved_model.build_windows

    def planted(*arguments):
        windows = build(*arguments)
        windows.values_STC[0, 100, 1] = NAN
        return windows

    with monkeypatch.context() as patch:
        patch.setattr(saved_model, "build_windows", planted)
        pipeline.train(load_config(table), tmp_path / "run")
    history = lines(tmp_path / "run")
    events = [line for line in history if "event" in line]
    assert {(each["cause"], each["action"]) for each in events} == {("missing_input", "quarantine")}
    assert history[-1]["quarantined"] == 8  # each window of 8 steps that sees the cell
    kept = load_incident(tmp_path / "run", 1)
    assert kept.about.device == DEVICE.type and kept.about.machine.accelerator
    again = replay(kept)
    assert again.same and again.elsewhere == ()
    told = explain_incident(kept)
    assert told.explanation.cause == "missing_input"
    assert told.explanation.trace.phase == "input"
    day = "2020-04-10T00:00:00"
    assert [(each.variable, each.site, *each.stretches()[0]) for each in told.cells] == [("pressure", "a", day, day)]


def test_a_weight_that_is_not_finite_is_named_and_rolled_back(clean, table, tmp_path, monkeypatch):
    def damage(course):
        with torch.no_grad():
            course.state.model.encoder.blocks.attn_layers[0].conv1.weight[0, 5] = NAN

    with monkeypatch.context() as patch:
        plant(patch, 9, damage)
        pipeline.train(load_config(table), tmp_path / "run")
    events = [line for line in lines(tmp_path / "run") if "event" in line]
    assert [(each["cause"], each["action"]) for each in events] == [("corrupt_weights", "roll_back")]
    assert differences(clean, tmp_path / "run") == {}
    told = explain_incident(load_incident(tmp_path / "run"))
    assert told.explanation.cause == "corrupt_weights"
    assert told.explanation.trace.tensor == "encoder.blocks.attn_layers.0.conv1.weight"


def test_what_does_not_repeat_leaves_no_trace(clean, table, tmp_path, monkeypatch):
    """The generators are where they were after a hundred experiments, and no false alarm is given about them."""
    compute, calls = loss_and_gradients, []

    def once(*arguments):
        loss = compute(*arguments)
        calls.append(None)
        return loss * NAN if len(calls) == 8 else loss

    with monkeypatch.context() as patch:
        patch.setattr("llueve.training.stepper.loss_and_gradients", once)
        pipeline.train(load_config(table), tmp_path / "run")
    events = [line for line in lines(tmp_path / "run") if "event" in line]
    assert [(each["cause"], each["action"]) for each in events] == [("transient", "rerun")]
    assert differences(clean, tmp_path / "run") == {}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_incident_is_replayed_there_and_on_the_processor(table, tmp_path, monkeypatch, precision):
    """Without dropout, so that both draw the same: nothing."""
    changes = ["model.dropout=0", f"train.precision={precision}", "guard.policy=skip", "train.epochs=1"]
    refuses = Guard.refuses

    def third(self, reading):
        return Fault(FaultKind.GRADIENT_SPIKE, "as if") if reading.step == 3 else refuses(self, reading)

    with monkeypatch.context() as patch:
        patch.setattr(Guard, "refuses", third)
        pipeline.train(load_config(table, tuple(changes)), tmp_path / "run")
    kept = load_incident(tmp_path / "run")
    assert kept.about.precision == precision
    there = replay(kept)
    assert there.same, there.verdict
    without_device(monkeypatch)
    here = replay(load_incident(tmp_path / "run"))
    tell(f"{precision}, {DEVICE.type} step on the processor", here.verdict)
    assert "accelerator" in here.verdict or here.same
    bound = 1e-4 if precision == "float32" else 0.05
    assert here.loss == pytest.approx(there.loss, rel=bound)
    assert here.gradient_norm == pytest.approx(there.gradient_norm, rel=10 * bound)


def test_a_step_of_a_processor_is_replayed_on_the_processor(table, tmp_path, monkeypatch):
    refuses = Guard.refuses

    def third(self, reading):
        return Fault(FaultKind.GRADIENT_SPIKE, "as if") if reading.step == 3 else refuses(self, reading)

    with monkeypatch.context() as patch:
        without_device(patch)
        patch.setattr(Guard, "refuses", third)
        pipeline.train(load_config(table, ("guard.policy=skip", "train.epochs=1")), tmp_path / "run")
    kept = load_incident(tmp_path / "run")
    assert kept.about.device == "cpu"
    assert replay(kept).same


def test_a_state_of_one_device_goes_on_on_another(table, tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        plant(patch, 23, lambda here: setattr(here._environment.interruption, "number", int(signal.SIGTERM)))
        with pytest.raises(Interrupted):
            pipeline.train(load_config(table), tmp_path / "run")
    without_device(monkeypatch)
    pipeline.train(load_config(table), tmp_path / "run", resume=True)
    assert [line["epoch"] for line in lines(tmp_path / "run")] == [1, 2, 3]
    assert f"began on {DEVICE.type} and resumes on cpu" in caplog.text


def test_features_of_a_frozen_encoder_are_kept(make_panel, make_config, table, tmp_path):
    panel, config = make_panel(), make_config()
    split = split_panel(panel, config)
    windows = build_windows(panel, fit_scaler(panel, split.training_rows), config.windows.context, "mask")
    torch.manual_seed(0)
    encoder = TimerXL(4, width=16, layers=2, heads=2, feed_forward=24)
    model = TimerXLForClassification(encoder, 2, "variables", num_variables=3, num_facts=2).to(DEVICE).eval()
    cache = FeatureCache.open(tmp_path / "features", model, windows, split.training, limit_bytes=10**9)
    batch = as_batch(windows, split.training, DEVICE)
    with torch.no_grad():
        direct = model.pool(batch.x_BLC, batch.observed_BLC)
    torch.testing.assert_close(cache.batch(slice(None)), direct.cpu(), rtol=1e-5, atol=1e-5)
    frozen = ('train.phases=[{name="head",freeze="encoder",epochs=2}]', "train.epochs=2")
    for name, more in (("kept", ()), ("computed", ("train.feature_cache_gb=0",))):
        pipeline.train(load_config(table, (*frozen, *more)), tmp_path / name)
    losses = [[line["validation_loss"] for line in lines(tmp_path / name)] for name in ("kept", "computed")]
    tell("validation losses with features kept and computed", losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
