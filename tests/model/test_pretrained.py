"""Published checkpoints: sizes from tensors, every tensor accounted for, and nothing in a file ever runs."""

import contextlib
import io
import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import llueve
from llueve.errors import CheckpointError, UsageError
from llueve.model.build import EncoderSizes
from llueve.model.checkpoints.convert import encode_checkpoint
from llueve.model.checkpoints.pretrained import inspect_checkpoint, load_pretrained
from llueve.model.timer import Timer
from llueve.model.timer_xl import TimerXL

OPENLTM = ("openltm_univariate", "openltm_multivariate", "openltm_multivariate_nonorm")
SIZES = {"patch_length": 4, "width": 16, "layers": 2, "heads": 2, "feed_forward": 8}


def fresh(architecture="timer_xl"):
    torch.manual_seed(0)
    return EncoderSizes(architecture=architecture, **SIZES).build().eval()


@pytest.fixture
def checkpoint(tmp_path):
    """A small Timer-XL file."""
    path = tmp_path / "checkpoint.pth"
    torch.save(fresh().state_dict(), path)
    return path


@pytest.fixture
def timer_folder(shared, tmp_path):
    """The golden Hugging Face checkpoint as its repository lays it out."""
    shutil.copy(shared("golden/hf_timer.safetensors"), tmp_path / "model.safetensors")
    shutil.copy(shared("golden/hf_timer.config.json"), tmp_path / "config.json")
    return tmp_path


def change(path, edit):
    """Rewrite a torch file after `edit` has changed its dictionary."""
    state = torch.load(path, weights_only=True)
    edit(state)
    torch.save(state, path)


# Parity with the original implementations


@pytest.mark.parametrize("name", OPENLTM)
def test_golden_openltm_files_load_and_forecast_as_the_original(shared, name):
    said = json.loads(shared(f"golden/{name}.json").read_text())
    encoder, report = llueve.load_pretrained(shared(f"golden/{name}.pth"))
    assert vars(report.sizes) == {
        "architecture": "timer_xl",
        "patch_length": said["input_token_len"],
        "width": said["d_model"],
        "layers": said["e_layers"],
        "heads": said["n_heads"],
        "feed_forward": said["d_ff"],
    }
    assert len(report.matched) == 4 + 2 + 17 * said["e_layers"] and not report.renamed and not report.new
    golden = np.load(shared(f"golden/{name}.npz"))
    x_BLC = torch.from_numpy(golden["x_BLC"])
    encoder.eval()
    with torch.no_grad():
        forecast, tokens = (form(x_BLC, normalise=said["use_norm"]) for form in (encoder.forecast, encoder.encode))
    assert np.abs(forecast.numpy() - golden["forecast_BLC"]).max() <= 1e-5
    assert np.abs(tokens.numpy() - golden["encoder_out_BTD"]).max() <= 1e-5


def test_golden_hugging_face_file_loads_and_forecasts_as_the_original(shared, timer_folder):
    encoder, report = load_pretrained(timer_folder)
    assert report.format == "huggingface" and report.sizes.heads == 4 and len(report.matched) == 4 + 14 * 2
    golden = np.load(shared("golden/hf_timer.npz"))
    x_BLC = torch.from_numpy(golden["x_BL"])[..., None]
    encoder.eval()
    with torch.no_grad():
        tokens = encoder.encode(x_BLC)
        window = encoder.normalise(x_BLC.transpose(1, 2), torch.ones_like(x_BLC.transpose(1, 2), dtype=torch.bool))
    assert np.abs(window.x_BCL[:, 0].numpy() - golden["normalised_BL"]).max() <= 1e-5
    assert np.abs(tokens.numpy() - golden["encoder_out_BNH"]).max() <= 1e-5
    assert np.abs(encoder.forecasting(tokens).detach().numpy() - golden["next_patch_BNP"]).max() <= 1e-5


def test_public_sizes_have_the_public_counts():
    with torch.device("meta"):
        for build, tensors, parameters in ((TimerXL, 142, 67_398_880), (Timer, 116, 84_142_080)):
            state = build().state_dict()
            assert (len(state), sum(tensor.numel() for tensor in state.values())) == (tensors, parameters)


# Matching by name


def test_wrappers_names_of_other_versions_are_renamed_and_reported(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    wrapped = {"module." + name.replace("blocks.", "encoder."): tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, checkpoint)
    encoder, report = load_pretrained(checkpoint)
    assert report.renamed["module.encoder.attn_layers.0.norm1.weight"] == "blocks.attn_layers.0.norm1.weight"
    assert len(report.renamed) == len(state) and not report.matched
    assert all(torch.equal(encoder.state_dict()[name], tensor) for name, tensor in state.items())


def test_a_missing_tensor_is_refused_by_name_unless_allowed(checkpoint):
    change(checkpoint, lambda state: [state.pop(name) for name in ("head.weight", "head.bias")])
    with pytest.raises(CheckpointError, match=r"not in the file: head\.weight, head\.bias.*model\.allow_missing"):
        load_pretrained(checkpoint)
    _, report = load_pretrained(checkpoint, allow_missing=["head.*"])
    assert report.new == ("head.weight", "head.bias")


def test_a_file_without_its_frozen_first_layer_loads_when_allowed(checkpoint):
    """OpenLTM drops frozen tensors on saving."""
    change(checkpoint, lambda state: [state.pop(n) for n in list(state) if n.startswith("blocks.attn_layers.0.")])
    with pytest.raises(CheckpointError, match=r"not in the file: blocks\.attn_layers\.0\."):
        load_pretrained(checkpoint)
    _, report = load_pretrained(checkpoint, allow_missing=["blocks.attn_layers.0.*"])
    assert report.sizes.layers == 2 and len(report.new) == 17


def test_a_tensor_too_many_is_refused_by_name_unless_allowed(checkpoint):
    change(checkpoint, lambda state: state.update(extra=torch.zeros(2)))
    with pytest.raises(CheckpointError, match=r"of no use: extra \(no such tensor in the encoder\)"):
        load_pretrained(checkpoint)
    assert list(load_pretrained(checkpoint, allow_missing=["extra"])[1].ignored) == ["extra"]


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.zeros(3), r"expected the shape \[16\], found \[3\]"),
        (torch.full((16,), torch.nan), r"16 of 16 numbers are not finite, the first at \[0\]"),
        (torch.zeros(16, dtype=torch.int64), "expected floating-point numbers of 16, 32 or 64 bits, found int64"),
        (torch.full((16,), 1e300, dtype=torch.float64), "16 of 16 numbers are not finite"),  # as float32
    ],
)
def test_a_wrong_tensor_is_refused_by_name_whatever_is_allowed(checkpoint, tensor, why):
    change(checkpoint, lambda state: state.update({"blocks.norm.bias": tensor}))
    with pytest.raises(CheckpointError, match=rf"blocks\.norm\.bias: {why}"):
        load_pretrained(checkpoint, allow_missing=["*"])


def test_suspicious_tensors_load_and_are_told(checkpoint):
    def edit(state):
        state["blocks.attn_layers.0.conv1.weight"][2] = 0
        state["embedding.bias"] *= 1e9

    change(checkpoint, edit)
    found = load_pretrained(checkpoint)[1].suspicious
    assert found["blocks.attn_layers.0.conv1.weight"] == "1 of 8 rows are all zero: dead"
    assert "absurd scale" in found["embedding.bias"]


def test_half_precision_files_load_as_float32(checkpoint):
    change(checkpoint, lambda state: state.update({name: tensor.bfloat16() for name, tensor in state.items()}))
    encoder, report = load_pretrained(checkpoint)
    assert report.dtypes == ("bfloat16",)
    assert {tensor.dtype for tensor in encoder.state_dict().values()} == {torch.float32}


# Hostile and broken files


class Bomb:
    """Unpickling it would make a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("kind", ["zip", "bare"])
def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path, kind):
    marker, path = tmp_path / "it ran", tmp_path / "checkpoint.pth"
    if kind == "zip":
        torch.save({"embedding.weight": torch.zeros(2), "x": Bomb(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"x": Bomb(marker)}))
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth: (holds more than tensors|is a bare pickle)"):
        load_pretrained(path)
    assert not marker.exists()


def safetensors_header(length, rest=b"{}"):
    return struct.pack("<Q", length) + rest


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "neither a torch checkpoint nor safetensors"),
        (safetensors_header(2**62, b"{" * 50), "header of 4,611,686,018,427,387,904 bytes"),
        (safetensors_header(40, b"{" * 40), "damaged safetensors"),
        (safetensors_header(2, b"{}"), "holds neither Timer-XL"),
        (b"PK\x03\x04" + b"\0" * 60, "damaged torch checkpoint"),
    ],
)
def test_broken_files_are_named_with_the_reason(tmp_path, content, why):
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"weights\.bin: .*{why}"):
        load_pretrained(path)


@pytest.mark.parametrize("name", ["torch Tensor", "builtins bytearray", "torch._utils _rebuild_meta_tensor_no_storage"])
def test_names_beyond_plain_tensors_are_refused_before_anything_is_built(tmp_path, name):
    """torch's restricted reader would make memory of any size, or content that is not in the file."""
    path = tmp_path / "checkpoint.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "archive/data.pkl", b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\nJ\x00\x00\x00\x40\x85R."
        )
        archive.writestr("archive/version", "3")
    with pytest.raises(CheckpointError, match=f"holds more than tensors.*asks for {name}"):
        load_pretrained(path)


NESTED = b")q\x00" + b"".join(b"0h%ch%c\x86q%c" % (level, level, level + 1) for level in range(40))
"""A tuple of two tuples of two tuples … 40 deep: each level holds the same object twice."""
LISTS = b"".join(b"]q%c0" % level for level in range(40)) + b"".join(
    b"h%c(h%ch%ce0" % (level, level + 1, level + 1) for level in range(39)
)
"""The same with lists that are filled after they were named."""
KEY_A = b"X\x01\x00\x00\x00a"


@pytest.mark.parametrize(
    ("pickled", "why"),
    [
        (b"}" + NESTED + b"K\x01s", "a key of a dictionary is not a text"),
        (b"}" + KEY_A + NESTED + b"s", "its objects repeat each other"),
        (b"}" + LISTS + KEY_A + b"h\x00s", "its objects repeat each other"),
        (NESTED + b"\x85Q", "its objects repeat each other"),
        (b"ccollections\nOrderedDict\n(" + NESTED + b"K\x01\x86l\x85R", "its objects repeat each other"),
        (b"]q\x00h\x00a", "an object contains itself"),
        (b"]" * 1000 + b"a" * 999, "nested more than 32 deep"),
        (b"\x8b" + struct.pack("<i", 10**6) + b"\x01" * 10**6, "a whole number of more than 16 bytes"),
        (b"}\x8a\xff" + b"\x01" * 255 + b"K\x01s", "a whole number of more than 16 bytes"),
        (b"](" + b"K\x01" * 300_000 + b"e", "more than 200,000 operations"),
        (b"}X" + struct.pack("<I", 5 * 10**6) + b"x" * 5 * 10**6 + b"K\x01s", "expected at most 4,194,304"),
        (b"}X" + struct.pack("<I", 700_000) + b"module." * 100_000 + b"K\x01s", "is not a valid name of a tensor"),
        (b"}(" + KEY_A + b"K\x01" + KEY_A + b"K\x02u", "the key 'a' occurs twice"),
        (b"}" + KEY_A + b"K\x01s" + KEY_A + b"K\x02s", "the key 'a' occurs twice"),
        (b"s", "its operations do not fit each other"),
        (b"(" * 1000, "its operations do not fit each other"),
    ],
)
def test_a_pickle_that_takes_for_ever_is_refused_before_it_is_loaded(tmp_path, pickled, why):
    path = tmp_path / "checkpoint.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr("archive/version", "3")
    with pytest.raises(CheckpointError, match=why) as caught:
        inspect_checkpoint(path)
    assert len(str(caught.value)) < 1000


def test_a_tensor_under_two_names_loads(checkpoint):
    change(checkpoint, lambda state: state.update({"head.bias": state["head.bias"], "shared": state["head.bias"]}))
    assert list(inspect_checkpoint(checkpoint)[0].ignored) == ["shared"]


def zipped(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"\x80\x02}.")


def test_a_zip_that_torch_would_read_in_another_place_is_refused(tmp_path):
    """torch ignores case in names, and takes the place of the directory from the end of the file."""
    path, hidden = tmp_path / "checkpoint.pth", tmp_path / "hidden.pth"
    zipped(path, "archive/data.pkl", "archive/DATA.PKL")
    with pytest.raises(CheckpointError, match=r"expected one data\.pkl, and each name once"):
        inspect_checkpoint(path)
    zipped(path, "archive/data.pkl")
    zipped(hidden, "archive/data.pkl")
    for content in (
        path.read_bytes() + hidden.read_bytes(),
        path.read_bytes() + b"more",
        hidden.read_bytes()[:30] + path.read_bytes(),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="the zip does not end with its directory"):
            inspect_checkpoint(path)
    zipped(path, *(f"archive/{number}" for number in range(5001)))
    with pytest.raises(CheckpointError, match="has 5,001 records, expected at most 5,000"):
        inspect_checkpoint(path)


EMPTY = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"{" + b",".join(b'"%d":%s' % (number, EMPTY) for number in range(5001)) + b"}", "it names 5,001 tensors"),
        (b'{"a":%s,"a":%s}' % (EMPTY, EMPTY), "the name 'a' occurs twice"),
        (b'{"a":{"dtype":"F32","shape":[' + b"0," * 9999 + b'0],"data_offsets":[0,0]}}', "a has 10,000 dimensions"),
        (b'{"a":' + b"[" * 100_000, "damaged safetensors"),
        (b'{"a":' + b"9" * 100_000 + b"}", "damaged safetensors"),
        (b'{"' + b"module." * 100_000 + b'":' + EMPTY + b"}", "is not a valid name of a tensor"),
        (b" " * (4 * 2**20 + 1), "declares a header of 4,194,305 bytes"),
    ],
)
def test_a_hostile_header_of_safetensors_is_refused(tmp_path, header, why):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + b"{" + header[1:])
    with pytest.raises(CheckpointError, match=why):
        inspect_checkpoint(path)


def test_layers_and_widths_beyond_reason_are_refused_at_once(checkpoint):
    original = torch.load(checkpoint, weights_only=True)
    change(checkpoint, lambda state: state.update({"blocks.attn_layers.9999.junk": torch.zeros(0)}))
    with pytest.raises(CheckpointError, match="names layer 9999"):
        inspect_checkpoint(checkpoint)
    torch.save({**original, "embedding.weight": torch.zeros(2**20, 4)}, checkpoint)
    with pytest.raises(CheckpointError, match="do not belong to one encoder"):
        load_pretrained(checkpoint, allow_missing=["*"])


def test_tensors_beside_the_weights_are_accounted_for(checkpoint):
    change(checkpoint, lambda state: None)
    torch.save({"state_dict": torch.load(checkpoint, weights_only=True), "average": torch.zeros(3)}, checkpoint)
    with pytest.raises(CheckpointError, match=r"average \(Tensor beside state_dict\)"):
        load_pretrained(checkpoint)


def test_a_loaded_encoder_gives_the_same_twice(checkpoint):
    encoder, _ = load_pretrained(checkpoint)
    x_BLC = torch.randn(2, 8, 3)
    assert torch.equal(encoder.forecast(x_BLC), encoder.forecast(x_BLC))


def test_a_compressed_zip_is_not_unfolded(tmp_path):
    path = tmp_path / "checkpoint.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(CheckpointError, match="compressed records"):
        load_pretrained(path)


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(checkpoint):
    change(checkpoint, lambda state: state.update(extra=torch.zeros(1).expand(10**9)))
    with pytest.raises(CheckpointError, match=r"extra claims 1,000,000,000 numbers"):
        load_pretrained(checkpoint)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"a": 1}])
def test_what_is_no_dictionary_of_an_encoder_is_refused(tmp_path, content):
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pth: (holds a \w+; expected|holds neither)"):
        load_pretrained(path)


@given(cut=st.integers(0, 10**6), flips=st.lists(st.integers(0, 10**6), max_size=4))
@settings(max_examples=150, deadline=None)
def test_truncated_and_damaged_files_load_exactly_or_are_refused(tmp_path_factory, cut, flips):
    """No traceback of another kind, whatever the damage."""
    folder = tmp_path_factory.mktemp("damaged")
    for name, save in (("checkpoint.pth", torch.save), ("model.safetensors", save_file)):
        buffer = folder / name
        save(dict(fresh().state_dict()), buffer)
        content = bytearray(buffer.read_bytes())
        for flip in flips:
            content[flip % len(content)] ^= 0x55
        buffer.write_bytes(content[: cut % len(content) + 1] if cut % 2 else content)
        with contextlib.suppress(CheckpointError):
            load_pretrained(buffer)


def test_a_timer_without_its_configuration_says_what_to_bring(timer_folder):
    (timer_folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"needs its config\.json beside it"):
        load_pretrained(timer_folder)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"num_attention_heads": "4"}',
        "[" * 100_000,
        '{"num_attention_heads": 4, "rope_theta": 500000}',
        '{"num_attention_heads": 0}',
    ],
)
def test_a_damaged_configuration_is_refused(timer_folder, content):
    (timer_folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json: is not the configuration of a Timer"):
        load_pretrained(timer_folder)


def test_a_configuration_of_another_model_is_refused(timer_folder):
    config = json.loads((timer_folder / "config.json").read_text())
    (timer_folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_pretrained(timer_folder)


def test_a_hub_address_offline_says_how_to_bring_the_file(monkeypatch):
    asked = []

    def unreachable(*names, **options):
        asked.append((names, options))
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    for address, revision in (("hf://thuml/timer-base-84m", None), ("hf://thuml/timer-base-84m@v1.0", "v1.0")):
        with pytest.raises(CheckpointError, match=rf"{address}: could not be fetched.*Copy config\.json and model"):
            load_pretrained(address)
        assert asked.pop() == (("thuml/timer-base-84m", "config.json"), {"revision": revision})


def test_a_mistyped_path_is_never_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"runs/mine: does not exist.*write hf://runs/mine"):
        load_pretrained("runs/mine")
    for address in ("hf://", "hf://a", "hf://a/b/c", "hf://a/b@", "hf://a/b@c d", "hf://a/b?c"):
        with pytest.raises(CheckpointError, match="is not the address of a repository; expected hf://"):
            load_pretrained(address)


@pytest.mark.parametrize("path", ["x" * 300, "x\0y", "a/" * 3000])
def test_an_impossible_path_is_refused(path):
    with pytest.raises(CheckpointError, match=r"bytes; expected at most|NUL"):
        load_pretrained(path)


# Writing back


@pytest.mark.parametrize(
    ("architecture", "to"),
    [("timer_xl", "openltm"), ("timer_xl", "safetensors"), ("timer", "huggingface"), ("timer", "safetensors")],
)
def test_an_encoder_survives_its_format(tmp_path, architecture, to):
    encoder = fresh(architecture)
    for name, content in encode_checkpoint(encoder, to).items():
        (tmp_path / name).write_bytes(content)
    again, report = load_pretrained(tmp_path)
    assert vars(report.sizes) == {"architecture": architecture, **SIZES}
    first, second = encoder.state_dict(), again.state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("architecture", "to"), [("timer_xl", "huggingface"), ("timer", "openltm")])
def test_an_impossible_conversion_is_refused_with_the_reason(architecture, to):
    with pytest.raises(UsageError, match="cannot be computed from these"):
        encode_checkpoint(fresh(architecture), to)


def test_a_written_openltm_file_holds_nothing_but_tensors():
    content = encode_checkpoint(fresh(), "openltm")["checkpoint.pth"]
    state = torch.load(io.BytesIO(content), weights_only=True)
    assert state.keys() == fresh().state_dict().keys()


# The Timer on its own


def test_timer_is_causal_and_blind_to_absent_patches():
    encoder, x_BCL = fresh("timer"), torch.randn(2, 3, 16)
    later = x_BCL.clone()
    later[..., 12:] = 5
    seen = torch.ones_like(x_BCL, dtype=torch.bool)
    seen[:, 1, 4:8] = False
    with torch.no_grad():
        torch.testing.assert_close(encoder.tokens(x_BCL)[:, :, :3], encoder.tokens(later)[:, :, :3], rtol=0, atol=0)
        first, second = encoder.tokens(x_BCL, seen), encoder.tokens(torch.where(seen, x_BCL, 1e3), seen)
    present = seen.unflatten(-1, (-1, 4)).any(-1)
    torch.testing.assert_close(first[present], second[present], rtol=0, atol=0)


@pytest.mark.parametrize("steps", [1, 8])
def test_timer_normalises_a_constant_window_to_zero_where_the_original_gave_nan(steps):
    encoder = fresh("timer")
    x_BLC = torch.full((2, steps, 1), 273.15, requires_grad=True)
    out = encoder.forecast(x_BLC)
    out.sum().backward()
    assert out.isfinite().all() and x_BLC.grad.isfinite().all()
    assert encoder.normalise(x_BLC.transpose(1, 2), torch.ones(2, 1, steps, dtype=torch.bool)).x_BCL.abs().max() == 0
