"""The trace: faults planted in inputs, weights, both passes and the loss are named; clean steps and masks are not.

Shapes: B batch, L steps, C variables, F facts, K classes.
"""

import copy
import itertools
import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from llueve.config import TrainConfig
from llueve.model import timer, timer_xl
from llueve.model.batch import Batch
from llueve.model.classifier import TimerXLForClassification
from llueve.model.kernels import attention, dropout
from llueve.model.timer import Timer
from llueve.model.timer_xl import TimerXL
from llueve.stability.diagnosis.trace import Trace, trace_step
from llueve.step import gradients as step
from llueve.step.gradients import loss_and_gradients

CONFIG = TrainConfig()
SETUPS = [
    pytest.param(
        encoder, head, precision, size, id=f"{encoder.__name__}-{head}-{str(precision)[6:]}-{size[0]}x{size[1]}"
    )
    for encoder in (TimerXL, Timer)
    for head in ("variables", "mean")
    for precision, size in (
        (torch.float32, (5, 29, 2)),
        (torch.bfloat16, (4, 32, 3)),
        (torch.float64, (3, 8, 3)),
        (torch.float32, (1, 80, 4)),
    )
]
every_setup = pytest.mark.parametrize(("encoder", "head", "precision", "size"), SETUPS)


def prepared(encoder, head, precision=torch.float32, size=(4, 32, 3), seed=0, missing=0.2):
    """A small model in training mode, whose last layer is not zero, and a batch."""
    torch.manual_seed(seed)
    batch, _, variables = size
    model = TimerXLForClassification(encoder(8, 16, 2, 2, 24), 2, head, num_variables=variables, num_facts=2)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    observed_BLC = torch.rand(size) >= missing
    given = Batch(
        torch.randn(size).masked_fill(~observed_BLC, 0), observed_BLC, torch.randn(batch, 2), torch.arange(batch) % 2
    )
    if precision == torch.float64:
        model, given = model.double(), Batch(given.x_BLC.double(), observed_BLC, given.facts_BF.double(), given.y_B)
    return model.train(), given


def with_features(model, batch):
    """The batch of a step with a frozen encoder."""
    model.encoder.requires_grad_(False)
    model.gap_embedding_D.requires_grad_(False)
    model.train()
    with torch.no_grad():
        return replace(batch, features=model.pool(batch.x_BLC, batch.observed_BLC))


def traced(model, batch, precision=torch.float32, config=CONFIG):
    """The trace, which is None exactly if a plain step is finite; weights, generator and switches stay as they were."""
    state, weights = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    switch = torch.backends.mkldnn.matmul.fp32_precision
    loss = loss_and_gradients(model, batch, config, precision)
    after = torch.get_rng_state()
    before = {name: parameter.grad for name, parameter in model.named_parameters()}
    finite = all(each.isfinite().all() for each in (loss, *before.values()) if each is not None)
    torch.set_rng_state(state)
    trace = trace_step(model, batch, config, precision)
    assert torch.equal(torch.get_rng_state(), after)
    assert (trace is None) == bool(finite)
    assert all(parameter.grad is before[name] for name, parameter in model.named_parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0, equal_nan=True)
    assert torch.backends.mkldnn.matmul.fp32_precision == switch
    assert not is_in_torch_dispatch_mode() and torch._C._len_torch_dispatch_stack() == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    return trace


def line_of(module, text):
    """`file.py:line` of the first line of a module's source that holds `text`."""
    with open(module.__file__, encoding="utf-8") as file:  # noqa: PTH123
        number = next(number for number, line in enumerate(file, 1) if text in line)
    return f"{module.__file__.rpartition('/')[2]}:{number}"


def layer_of(model, number=1):
    """Path of a layer, and the layer."""
    path = (
        f"encoder.blocks.attn_layers.{number}"
        if isinstance(model.encoder, TimerXL)
        else f"encoder.model.layers.{number}"
    )
    return path, model.get_submodule(path)


def attention_of(model, number=1):
    path, layer = layer_of(model, number)
    name = "attention" if isinstance(model.encoder, TimerXL) else "self_attn"
    return f"{path}.{name}", layer.get_submodule(name)


def projections(model):
    found = attention_of(model)[1]
    return (
        (found.query_projection, found.key_projection)
        if isinstance(model.encoder, TimerXL)
        else (found.q_proj, found.k_proj)
    )


def spoil(module, monkeypatch, harm):
    """What a module gives goes through `harm`."""
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda *given: harm(forward(*given)))


def only_in(x, sample, samples):
    """One in the rows of a sample, zero in the others."""
    rows = torch.arange(len(x)) // (len(x) // samples) == sample
    return rows.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


@every_setup
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_cell(encoder, head, precision, size, value):
    model, batch = prepared(encoder, head, precision, size, missing=0)
    cell = tuple(torch.randint(n, ()).item() for n in size)
    batch.x_BLC[cell] = value
    trace = traced(model, batch, precision)
    assert (trace.phase, trace.tensor, trace.shape, trace.index, trace.count) == ("input", "x", size, cell, 1)
    assert (trace.sample, trace.step, trace.variable) == cell


@pytest.mark.parametrize("encoder", [TimerXL, Timer])
def test_a_bad_fact(encoder):
    model, batch = prepared(encoder, "variables")
    batch.facts_BF[2, 1] = math.nan
    trace = traced(model, batch)
    assert (trace.phase, trace.tensor, trace.index, trace.sample, trace.step) == ("input", "facts", (2, 1), 2, None)
    assert trace.variable is None


@every_setup
def test_a_bad_number_in_any_weight(encoder, head, precision, size):
    """Whichever it is, if a step uses it; `traced` holds that a step that does not is left in peace."""
    model, batch = prepared(encoder, head, precision, size)
    used, tried = 0, list(model.named_parameters())[size[1] % 3 :: 3]
    for name, parameter in tried:
        before = parameter.detach().clone()
        place = tuple(torch.randint(n, ()).item() for n in parameter.shape)
        with torch.no_grad():
            parameter[place] = math.nan
        if (trace := traced(model, batch, precision)) is not None:
            used += 1
            assert (trace.phase, trace.tensor, trace.index, trace.count) == ("weights", name, place, 1)
            assert trace.module == name.rpartition(".")[0]
        with torch.no_grad():
            parameter.copy_(before)
    assert used >= len(tried) - 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_buffer(value):
    model, batch = prepared(TimerXL, "variables", missing=0)
    model.head.knots_CJ[1, 4:6] = value
    trace = traced(model, batch)
    assert (trace.phase, trace.tensor, trace.module) == ("weights", "head.knots_CJ", "head")
    assert (trace.index, trace.count) == ((1, 4), 2)


def test_of_inputs_and_weights_the_inputs_are_named():
    model, batch = prepared(TimerXL, "variables")
    batch.x_BLC[1, 2, 0] = math.nan
    with torch.no_grad():
        model.encoder.embedding.bias[0] = math.nan
    assert traced(model, batch).phase == "input"


HARMS = {
    "exp": lambda x, one: x + (one * 1e6).exp() * one,
    "div": lambda x, one: x / (1 - one),
    "log": lambda x, one: x + (1 - one).log(),
    "square": lambda x, one: x + (one * torch.finfo(x.dtype).max).square(),
    "sqrt": lambda x, one: x + (0 - one).sqrt(),
    "mul": lambda x, one: x + (one * torch.finfo(x.dtype).max) * 1.5,
    "reciprocal": lambda x, one: x - (1 - one).reciprocal(),
    "sum": lambda x, one: x + (one * torch.finfo(x.dtype).max).expand_as(x).sum(-1, keepdim=True),
}


@every_setup
@pytest.mark.parametrize(("operation", "where"), list(zip(HARMS, itertools.cycle(["layer", "feed-forward", "norm"]))))
def test_an_operation_of_a_module_in_one_sample(encoder, head, precision, size, operation, where, monkeypatch):
    model, batch = prepared(encoder, head, precision, size)
    sample = size[0] // 2
    path, module = layer_of(model)
    if where != "layer":
        name = {"norm": "norm1"}.get(where) or ("ffn_layer" if encoder is Timer else "norm2")
        path, module = f"{path}.{name}", module.get_submodule(name)
    spoil(module, monkeypatch, lambda x: HARMS[operation](x, only_in(x, sample, size[0])))
    trace = traced(model, batch, precision)
    assert (trace.phase, trace.operation, trace.module, trace.sample) == ("forward", operation, path, sample)
    assert re.fullmatch(r"timer(_xl)?\.py:\d+", trace.source)
    assert 0 < trace.count <= math.prod(trace.shape)


@every_setup
def test_an_overflowing_linear_map(encoder, head, precision, size):
    model, batch = prepared(encoder, head, precision, size)
    path, _ = attention_of(model)
    largest = torch.finfo(projections(model)[0].weight.dtype).max
    with torch.no_grad():
        projections(model)[0].weight.mul_(largest)
    trace = traced(model, batch, precision)
    assert (trace.phase, trace.operation, trace.module) == ("forward", "linear", path)
    assert re.match(r"timer(_xl)?\.py|matmul\.py", trace.source)


@every_setup
def test_overflow_inside_the_fused_attention(encoder, head, precision, size):
    model, batch = prepared(encoder, head, precision, size, missing=0)
    for project in projections(model):
        with torch.no_grad():
            project.weight.mul_(torch.finfo(project.weight.dtype).max ** 0.5 * 1e3)
    trace = traced(model, batch, precision)
    assert (trace.phase, trace.operation) == ("forward", "flash_attention")
    assert trace.module == attention_of(model)[0]
    assert trace.source == line_of(attention, "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(")


@every_setup
def test_a_row_with_nothing_to_attend_to_is_the_softmax(encoder, head, precision, size, monkeypatch):
    """Not the linear layer after it, and not the mask that was written on purpose."""
    model, batch = prepared(encoder, head, precision, size)
    rows = torch.arange(size[0] if encoder is TimerXL else size[0] * size[2])
    hit = size[0] - 1

    def plain(query, key, value, *_):
        empty_B111 = (rows // (len(rows) // size[0]) == hit)[:, None, None, None]
        later_TT = torch.full((query.shape[2], key.shape[2]), -torch.inf, dtype=query.dtype).triu(1)
        score = query @ key.transpose(-1, -2) + later_TT.clone().expand(1, -1, -1)
        return score.masked_fill(empty_B111, -torch.inf).softmax(-1) @ value.to(query.dtype)

    monkeypatch.setattr(attention._FusedAttention, "apply", plain)
    trace = traced(model, batch, precision)
    assert (trace.phase, trace.operation, trace.sample) == ("forward", "softmax", hit)
    assert trace.module == attention_of(model, 0)[0]
    assert trace.source.startswith("attention.py:")


@every_setup
def test_infinite_masks_alone_are_no_fault(encoder, head, precision, size, monkeypatch):
    def plain(query, key, value, *_):
        later_TT = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).triu(1)
        return (query @ key.transpose(-1, -2)).masked_fill(later_TT, -torch.inf).softmax(-1) @ value.to(query.dtype)

    monkeypatch.setattr(attention._FusedAttention, "apply", plain)
    assert traced(*prepared(encoder, head, precision, size), precision) is None


@every_setup
def test_log_of_nothing_in_the_loss(encoder, head, precision, size, monkeypatch):
    model, batch = prepared(encoder, head, precision, size)
    sample = size[0] - 1

    def plain(logits_BK, y_B, *_):
        sure_BK = logits_BK.detach() * 0 + torch.tensor([1e4, 0.0]) * only_in(logits_BK, sample, size[0])
        return -(logits_BK + sure_BK).softmax(-1)[:, 1].log()

    monkeypatch.setattr(step, "sample_losses", plain)
    trace = traced(model, batch, precision)
    assert (trace.phase, trace.operation, trace.module, trace.sample) == ("forward", "log", "", sample)
    assert (trace.source, trace.shape, trace.index) == (line_of(step, "loss_B = sample"), size[:1], (sample,))


@every_setup
def test_a_root_at_zero_fails_only_backward(encoder, head, precision, size, monkeypatch):
    model, batch = prepared(encoder, head, precision, size)
    path, module = layer_of(model, 0)
    spoil(module, monkeypatch, lambda x: x + (x - x.detach()).square().sum().sqrt())
    trace = traced(model, batch, precision)
    assert (trace.phase, trace.operation, trace.module) == ("backward", "sqrt", path)
    # The first thing behind the layer, in backward order, is its last norm.
    assert trace.tensor.startswith(f"{path}.norm2.")
    assert re.fullmatch(r"timer(_xl)?\.py:\d+", trace.source)


@every_setup
def test_a_gradient_that_overflows(encoder, head, precision, size, monkeypatch):
    """Each factor is finite, their product is not."""
    model, batch = prepared(encoder, head, precision, size)
    path, module = layer_of(model)
    largest = torch.finfo(batch.x_BLC.dtype).max

    def steep(x):
        return x + (x - x.detach()) * largest * 2.0 * largest**0.25

    spoil(module, monkeypatch, steep)
    trace = traced(model, batch, precision)
    assert (trace.phase, trace.operation, trace.module) == ("backward", "mul", path)


class Treacherous(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / (grad - grad)


@every_setup
def test_a_function_of_its_own_that_fails_only_backward(encoder, head, precision, size, monkeypatch):
    model, batch = prepared(encoder, head, precision, size)
    path, module = layer_of(model, 0)
    spoil(module, monkeypatch, Treacherous.apply)
    trace = traced(model, batch, precision)
    assert (trace.phase, trace.operation, trace.module) == ("backward", "div", path)
    assert trace.tensor.startswith(f"{path}.norm2.")


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gradient_of_the_attention_bias(precision, monkeypatch):
    model, batch = prepared(TimerXL, "variables", precision)
    monkeypatch.setattr(attention, "_bias_gradient", lambda ctx, *_: ctx.saved_tensors[3] / 0)
    with torch.no_grad():
        attention_of(model)[1].inner_attention.attn_bias.emb.weight.normal_()
    trace = traced(model, batch, precision)
    path = attention_of(model)[0]
    assert (trace.phase, trace.operation, trace.module) == ("backward", "div", path)
    assert trace.source == line_of(attention, "grad_delta_H = _bias_gradient(")
    assert trace.tensor == f"{path}.inner_attention.attn_bias.emb.weight"


@every_setup
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_dropout(encoder, head, precision, size, way, monkeypatch):
    """A scale that overflows, in the function's own forward or backward pass."""
    model, batch = prepared(encoder, head, precision, size)
    path, module = layer_of(model)
    name = "ffn_layer" if encoder is Timer else "norm2"
    dropping = dropout.Dropout(0.5)
    module.get_submodule(name).add_module("dropping", dropping)

    def infinite(x, rate):
        return torch.ones_like(x, dtype=torch.bool), math.inf

    class Slope(dropout._Dropout):
        @staticmethod
        def forward(ctx, x, rate):
            ctx.scale = math.inf
            ctx.save_for_backward(torch.ones_like(x, dtype=torch.bool))
            return x.clone()

    def harm(x):
        with monkeypatch.context() as inside:
            if way == "forward":
                inside.setattr(dropout, "_kept", infinite)
            else:
                inside.setattr(dropout, "_Dropout", Slope)
            return dropping(x)

    spoil(module.get_submodule(name), monkeypatch, harm)
    trace = traced(model, batch, precision)
    assert (trace.phase, trace.operation, trace.module) == (way, "mul", f"{path}.{name}.dropping")
    assert trace.source == line_of(dropout, "kept.to(like.dtype)")


@pytest.mark.parametrize("encoder", [TimerXL, Timer])
def test_a_weight_too_large_for_bfloat16(encoder):
    model, batch = prepared(encoder, "variables")
    with torch.no_grad():
        projections(model)[0].weight[0, 0] = torch.finfo(torch.float32).max
    trace = traced(model, batch, torch.bfloat16)
    assert (trace.phase, trace.operation, trace.module) == ("forward", "to", attention_of(model)[0])
    assert trace.source.startswith("matmul.py:") and trace.index == (0, 0) and trace.count == 1


@every_setup
def test_a_spread_of_nothing(encoder, head, precision, size, monkeypatch):
    model, batch = prepared(encoder, head, precision, size, missing=0)
    batch.x_BLC[0, :, 1] = 3.0
    monkeypatch.setattr(model.encoder, "spread", lambda variance, count: variance.sqrt())
    trace = traced(model, batch, precision)
    assert (trace.phase, trace.operation, trace.module, trace.sample) == ("forward", "div", "", 0)
    assert trace.source.startswith("patches.py:") and trace.index == (0, 1, 0) and trace.count == size[1]


@pytest.mark.parametrize("encoder", [TimerXL, Timer])
@pytest.mark.parametrize("head", ["variables", "mean"])
def test_a_gradient_of_one_sample(encoder, head, monkeypatch):
    model, batch = prepared(encoder, head, size=(5, 32, 3))
    path, module = layer_of(model)
    # Zero under the root in the third sample alone.
    spoil(module, monkeypatch, lambda x: x + ((x - x.detach()).square() + 1 - only_in(x, 2, 5)).sqrt())
    trace = traced(model, batch)
    assert (trace.phase, trace.operation, trace.module, trace.sample) == ("backward", "sqrt", path, 2)


@pytest.mark.parametrize("encoder", [TimerXL, Timer])
def test_a_mean_that_overflows(encoder):
    model, batch = prepared(encoder, "variables", torch.float64, missing=0)
    batch.x_BLC[2, :, 1] = 1e308
    trace = traced(model, batch, torch.float64)
    assert (trace.phase, trace.operation, trace.index, trace.sample) == ("forward", "sum", (2, 1, 0), 2)


def test_what_was_healed_or_never_used_is_not_blamed(monkeypatch):
    """An earlier NaN that reaches nothing does not hide the one that does."""
    model, batch = prepared(TimerXL, "variables")

    def harmless(x):
        unused = x * math.nan
        return torch.where(torch.ones_like(x, dtype=torch.bool), x, unused.detach())

    spoil(model.encoder.embedding, monkeypatch, harmless)
    assert traced(model, batch) is None
    path, module = layer_of(model)
    spoil(module, monkeypatch, lambda x: x / (x - x))
    trace = traced(model, batch)
    assert (trace.operation, trace.module) == ("div", path)


def test_memory_that_nobody_wrote_is_not_judged(monkeypatch):
    model, batch = prepared(TimerXL, "variables")

    def pieces(x):
        torch.use_deterministic_algorithms(True)  # fills with NaN what is not written
        out = torch.empty_like(x)
        torch.use_deterministic_algorithms(False)
        assert out.isnan().all()
        out[:, :2] = x[:, :2]
        out[:, 2:].copy_(x[:, 2:])
        return out

    spoil(model.encoder.blocks, monkeypatch, pieces)
    assert traced(model, batch) is None


def test_a_slice_written_badly_is_named(monkeypatch):
    model, batch = prepared(TimerXL, "variables")

    def pieces(x):
        out = torch.empty_like(x)
        out[:, :2] = x[:, :2]
        out[:, 2:] = x[:, 2:]
        out[1, 2:4].div_(0)
        return out.clone()

    spoil(model.encoder.blocks, monkeypatch, pieces)
    trace = traced(model, batch)
    assert (trace.operation, trace.module, trace.shape, trace.sample) == ("div", "encoder.blocks", (2, 16), 1)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_bad_constant_is_the_operation_that_takes_it(factor, monkeypatch):
    model, batch = prepared(Timer, "mean")
    right = step.weighted_mean
    monkeypatch.setattr(step, "weighted_mean", lambda *given: right(*given) * factor)
    trace = traced(model, batch)
    assert (trace.phase, trace.operation, trace.shape, trace.sample) == ("forward", "mul", (), None)


def test_a_mask_that_reaches_the_loss_is_named(monkeypatch):
    model, batch = prepared(Timer, "mean")
    monkeypatch.setattr(
        step, "sample_losses", lambda z, *_: z.masked_fill(torch.ones_like(z).bool(), -torch.inf).sum(-1)
    )
    trace = traced(model, batch)
    assert (trace.phase, trace.operation) == ("forward", "masked_fill")


def test_numbers_from_outside_torch_are_said_to_be_unknown(monkeypatch):
    model, batch = prepared(Timer, "mean")
    monkeypatch.setattr(step, "weighted_mean", lambda loss_B, *_: UnseenNan.apply(loss_B.sum()))
    trace = traced(model, batch)
    assert trace.phase == "forward" and trace.shape == ()
    assert "not finite" in trace.sentence()


class UnseenNan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        x.numpy()[...] = math.nan
        return x

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_all_samples_are_no_sample(monkeypatch):
    model, batch = prepared(TimerXL, "mean")
    spoil(model.encoder.blocks, monkeypatch, lambda x: x / 0)
    assert traced(model, batch).sample is None


def test_a_step_that_raises_leaves_everything_as_it_was(monkeypatch):
    model, batch = prepared(TimerXL, "variables")
    loss_and_gradients(model, batch, CONFIG, torch.float32)
    gradients = [parameter.grad for parameter in model.parameters()]

    def fails(*_):
        raise RuntimeError("planted")

    with monkeypatch.context() as inside:
        inside.setattr(model.encoder.blocks, "forward", fails)
        with pytest.raises(RuntimeError, match="planted"):
            trace_step(model, batch, CONFIG, torch.float32)
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), gradients, strict=True))
    assert traced(model, batch) is None


@settings(max_examples=60, deadline=None)
@given(
    encoder=st.sampled_from([TimerXL, Timer]),
    head=st.sampled_from(["variables", "mean"]),
    precision=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    size=st.tuples(st.integers(1, 6), st.integers(1, 90), st.integers(1, 4)),
    missing=st.sampled_from([0.0, 0.3, 0.97, 1.0]),
    seed=st.integers(0, 2**31),
    training=st.booleans(),
    gamma=st.sampled_from([0.0, 2.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
    class_weights=st.sampled_from([None, (0.3, 1.7)]),
)
def test_a_clean_step_has_no_trace_and_the_watched_one_has_its_bits(
    encoder, head, precision, size, missing, seed, training, gamma, smoothing, class_weights
):
    model, batch = prepared(encoder, head, precision, size, seed, missing)
    model.train(training)
    config = TrainConfig(focal_gamma=gamma, label_smoothing=smoothing, class_weights=class_weights)
    assert traced(model, batch, precision, config) is None


@pytest.mark.parametrize("encoder", [TimerXL, Timer])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_watched_step_has_the_bits_of_a_plain_one(encoder, precision, monkeypatch):
    model, batch = prepared(encoder, "variables", precision, (4, 600, 3))
    kept = []

    def keeping(*given):
        loss = loss_and_gradients(*given)
        kept.append([loss, *(parameter.grad for parameter in model.parameters())])
        return loss

    monkeypatch.setattr("llueve.stability.diagnosis.trace.loss_and_gradients", keeping)
    state = torch.get_rng_state()
    keeping(model, batch, CONFIG, precision)
    torch.set_rng_state(state)
    assert trace_step(model, batch, CONFIG, precision) is None
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*kept, strict=True))


def test_the_sentences():
    assert Trace("input", "", "", "", "x", (4, 32, 3), (1, 2, 0), 3, 1, 2, 0).sentence() == (
        "x held 3 of 384 numbers that are not finite before the step, the first at [1, 2, 0] of [4, 32, 3], sample 1 of the "
        "batch, step 2, variable 0"
    )
    assert Trace("forward", "log", "", "losses.py:28", None, (4,), (2,), 1, 2).sentence() == (
        "log (losses.py:28) made 1 of 4 numbers that are not finite, the first at [2] of [4], sample 2 of the batch"
    )
    assert Trace("backward", "sqrt", "encoder", "patches.py:9", "encoder.emb.weight", (), (), 1).sentence() == (
        "the gradient of sqrt (encoder in patches.py:9) has 1 of 1 numbers that are not finite, although the forward pass "
        "was sound, its only one; encoder.emb.weight was the first parameter with such a gradient"
    )


def test_a_trace_goes_into_json():
    trace = Trace("weights", "", "head", "", "head.out.bias", (2,), (1,), 1)
    assert trace.as_dict()["shape"] == [2] and trace.as_dict()["sample"] is None


@every_setup
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_feature_is_an_input_with_its_sample(encoder, head, precision, size, bad):
    """Whatever the windows hold: such a step does not read them."""
    model, batch = prepared(encoder, head, precision, size)
    given = with_features(model, batch)
    assert traced(model, given, precision) is None
    given.x_BLC[0, 0, 0] = math.nan
    assert traced(model, given, precision) is None
    given.features[-1].view(-1)[2] = bad
    trace = traced(model, given, precision)
    assert (trace.phase, trace.tensor, trace.sample, trace.count) == ("input", "features", len(batch) - 1, 1)
    assert "features held 1 of" in trace.sentence()


def test_the_first_step_of_a_process_can_be_traced():
    """Its tables of rotation are made while it is watched."""
    timer_xl.rotary_table.cache_clear()
    timer.rotary_waves.cache_clear()
    for encoder in (TimerXL, Timer):
        assert trace_step(*prepared(encoder, "mean"), CONFIG, torch.float32) is None
