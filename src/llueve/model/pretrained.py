"""Published checkpoints: read without running anything, matched by name, reported tensor by tensor.

| format | container | architecture | names |
| --- | --- | --- | --- |
| `openltm` | `checkpoint.pth` of torch | Timer-XL | `embedding.weight`, `blocks.attn_layers.0.…` |
| `huggingface` | safetensors with `config.json` beside it | Timer | `model.embed_layer.emb.weight`, `model.layers.0.…` |
| `safetensors` | safetensors | Timer-XL | as `openltm` |

An OpenLTM file carries no configuration: every size is read from its tensors. The number of heads of the Hugging Face
Timer is in no tensor, so its `config.json` is needed.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from llueve.errors import CheckpointError, listed
from llueve.model.files import read_tensors
from llueve.model.patches import PatchEncoder
from llueve.model.timer import Timer
from llueve.model.timer_xl import Positions, TimerXL

Format = Literal["openltm", "huggingface", "safetensors"]
Architecture = Literal["timer_xl", "timer"]

VARIABLE_BIAS = "attention.inner_attention.attn_bias.emb.weight"
RENAMED_PREFIXES = (
    ("module.", ""),  # DataParallel
    ("_orig_mod.", ""),  # torch.compile
    ("encoder.attn_layers.", "blocks.attn_layers."),
    ("encoder.norm.", "blocks.norm."),
)
MOST_LAYERS = 256
MOST_MISSING = 16
"""A partial file holds at least one in so many of its encoder's numbers."""
LARGEST_CONFIG = 1024 * 1024
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WEIGHT_FILES = ("model.safetensors", "checkpoint.pth")
LARGEST_SANE = 1e4
"""Trained transformer weights are of the order of one; beyond this a forward pass is close to overflow."""


@dataclass(frozen=True)
class Sizes:
    """What an encoder is built from."""

    architecture: Architecture
    patch_length: int
    width: int
    layers: int
    heads: int
    feed_forward: int

    def build(self, dropout: float = 0.1, positions: Positions = "flattened") -> PatchEncoder:
        """A fresh encoder of these sizes; `positions` is Timer-XL's alone.

        Raises:
            CheckpointError: the sizes do not go together.
        """
        even = 4 if self.architecture == "timer_xl" else 2
        if self.width % self.heads or self.width // self.heads % even:
            raise CheckpointError(
                f"width {self.width} with {self.heads} heads: the width of a head must be a multiple of {even} to be rotated"
            )
        sizes = (self.patch_length, self.width, self.layers, self.heads, self.feed_forward, dropout)
        return Timer(*sizes) if self.architecture == "timer" else TimerXL(*sizes, positions)


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor of a checkpoint, by name."""

    path: str
    format: Format
    sizes: Sizes
    parameters: int
    dtypes: tuple[str, ...]
    matched: tuple[str, ...]
    """In the encoder under the name that the file has."""
    renamed: dict[str, str]
    """In the encoder under another name: file → encoder."""
    new: tuple[str, ...]
    """Not in the file: freshly initialised."""
    ignored: dict[str, str]
    """In the file, but of no use to the encoder: name → why."""
    rejected: dict[str, str]
    """In the file, and wrong: name → why. A checkpoint with any of these does not load."""
    suspicious: dict[str, str]
    """Loadable, but worth a look: name → why."""

    def problems(self, allow_missing: Sequence[str]) -> list[str]:
        """Why the checkpoint must not load, given the names that may be absent or left over (`*` matches any text)."""

        def unexpected(names: Sequence[str]) -> list[str]:
            return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in allow_missing)]

        found = [f"{name}: {why}" for name, why in self.rejected.items()]
        if absent := unexpected(self.new):
            found.append(f"not in the file: {listed(absent)}")
        if left := unexpected(list(self.ignored)):
            found.append(f"in the file, but of no use: {listed([f'{name} ({self.ignored[name]})' for name in left])}")
        return found

    def require_loadable(self, allow_missing: Sequence[str]) -> None:
        """Raise unless the checkpoint may load.

        Raises:
            CheckpointError: it may not; each problem is named.
        """
        if problems := self.problems(allow_missing):
            raise CheckpointError(
                f"{self.path}: does not fit {self.sizes.architecture}: {'; '.join(problems)}. If that is as it should be, "
                "name the tensors in model.allow_missing"
            )

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return {**vars(self), "sizes": vars(self.sizes), "loads": not self.problems(())}

    def render(self) -> Group:
        """The report as a person reads it."""
        sizes = self.sizes
        name = "Timer-XL" if sizes.architecture == "timer_xl" else "Timer"
        table = Table("what", "tensors", "which", box=SIMPLE_HEAD, pad_edge=False)
        table.add_row("under its own name", str(len(self.matched)), "")
        for what, names in (
            ("renamed", [f"{old} → {new}" for old, new in self.renamed.items()]),
            ("not in the file", list(self.new)),
            ("of no use", [f"{name}: {why}" for name, why in self.ignored.items()]),
            ("wrong", [f"{name}: {why}" for name, why in self.rejected.items()]),
            ("suspicious", [f"{name}: {why}" for name, why in self.suspicious.items()]),
        ):
            table.add_row(what, str(len(names)), Text(listed(names, 3)))
        problems = self.problems(())
        return Group(
            Text(f"{self.path}: {self.format}, {name}, {self.parameters:,} parameters, {', '.join(self.dtypes)}"),
            Text(
                f"patch {sizes.patch_length}, width {sizes.width}, {sizes.layers} layers, {sizes.heads} heads, "
                f"feed-forward {sizes.feed_forward}"
            ),
            table,
            Text("would not load: " + "; ".join(problems) if problems else "loads"),
        )


class TimerJson(BaseModel):
    """What is read of the `config.json` beside a Hugging Face checkpoint."""

    model_config = ConfigDict(extra="ignore", strict=True)

    num_attention_heads: int = Field(ge=1, le=4096)
    rope_theta: Literal[10000] = 10000
    hidden_act: Literal["silu"] = "silu"
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_hidden_layers: int | None = None
    input_token_len: int | None = None


def load_pretrained(
    path: str | Path, allow_missing: Sequence[str] = (), dropout: float = 0.1, positions: Positions = "flattened"
) -> tuple[PatchEncoder, LoadReport]:
    """An encoder with the weights of a published checkpoint, and the report of how each tensor fared.

    It is in float32 and in evaluation mode.

    Args:
        path: an OpenLTM `.pth`, a safetensors file, a folder that holds one of them, or the name of a Hugging Face
            repository such as `thuml/timer-base-84m`.
        allow_missing: names that may be absent from the file (they are then freshly initialised) or left over in it;
            `*` matches any text.
        dropout: of the encoder, in training.
        positions: rotary index of Timer-XL; the public checkpoint was trained with `flattened`.

    Raises:
        CheckpointError: the file is damaged, hostile or of another kind, or a tensor does not match and is not allowed
            to; the message names the file, the tensors and the reason.
    """
    report, tensors = inspect_checkpoint(path)
    report.require_loadable(allow_missing)
    encoder = report.sizes.build(dropout, positions)
    state = encoder.state_dict()
    state.update({name: tensor.to(torch.float32) for name, tensor in tensors.items()})
    encoder.load_state_dict(state)
    return encoder.eval(), report


def inspect_checkpoint(path: str | Path) -> tuple[LoadReport, dict[str, Tensor]]:
    """What a checkpoint holds and what of it would load, and the tensors that would, under the encoder's names.

    Raises:
        CheckpointError: the file cannot be read, or does not look like one of the published encoders.
    """
    file = resolve(path)
    container, found, others = read_tensors(file)
    renamed = {name: _plain_name(name) for name in found}
    if twice := sorted(new for new, count in Counter(renamed.values()).items() if count > 1):
        raise CheckpointError(f"{file}: {listed(twice)}: several tensors come to the same name without their prefixes")
    named = {renamed[name]: tensor for name, tensor in found.items()}
    sizes = _sizes(file, named)
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in sizes.build().state_dict().items()}
    claimed, held = sum(shape.numel() for shape in expected.values()), sum(tensor.numel() for tensor in named.values())
    if claimed > MOST_MISSING * held + 1_000_000:
        raise CheckpointError(
            f"{file}: its tensors speak of an encoder of {claimed:,} parameters, but hold {held:,} numbers; they do not "
            "belong to one encoder"
        )
    original = {new: old for old, new in renamed.items()}
    rejected, good = {}, {}
    for name, tensor in named.items():
        if name in expected:
            if why := _wrong(tensor, expected[name]):
                rejected[original[name]] = why
            else:
                good[name] = tensor
    ignored = {original[name]: "no such tensor in the encoder" for name in named if name not in expected}
    ignored |= others
    known = {original[name] for name in good}
    report = LoadReport(
        path=str(file),
        format="huggingface" if sizes.architecture == "timer" else "openltm" if container == "torch" else "safetensors",
        sizes=sizes,
        parameters=sum(tensor.numel() for tensor in good.values()),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in found.values()})),
        matched=tuple(name for name in good if original[name] == name),
        renamed={old: new for old, new in renamed.items() if old != new and old in known},
        new=tuple(name for name in expected if name not in named),
        ignored=ignored,
        rejected=rejected,
        suspicious={original[name]: why for name, tensor in good.items() if (why := _suspicious(tensor))},
    )
    return report, good


def resolve(path: str | Path) -> Path:
    """The weight file of a path: itself, the one inside a folder, or the local copy of a hub repository's.

    Raises:
        CheckpointError: there is none.
    """
    file = Path(path)
    if str(path) == "embedded":
        raise CheckpointError(
            'embedded: this version carries no encoder of its own; take "none" for a fresh one, or give a checkpoint (a '
            "file, a folder, or the name of a Hugging Face repository)"
        )
    try:
        if file.is_file():
            return file
        is_folder, beside = file.is_dir(), file.parent != Path() and file.parent.is_dir()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be looked at ({error.strerror or error})") from error
    if is_folder:
        for name in WEIGHT_FILES:
            if (file / name).is_file():
                return file / name
        raise CheckpointError(f"{file}: the folder holds neither {WEIGHT_FILES[0]} nor {WEIGHT_FILES[1]}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not beside and file.suffix not in (".pth", ".safetensors"):
        return _from_hub(str(path))
    raise CheckpointError(
        f"{path}: there is no such file; expected a checkpoint (.pth or .safetensors), or a folder with one"
    )


def _from_hub(repository: str) -> Path:
    """Fetch weights and configuration of a Hugging Face repository, or find them among what was fetched before."""
    from huggingface_hub import hf_hub_download  # needed by this way alone, and slow to import
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hf_hub_download(repository, "config.json")
        return Path(hf_hub_download(repository, "model.safetensors"))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise CheckpointError(
            f"{repository}: could not be fetched from the Hugging Face hub ({_one_line(error)}). Bring config.json and "
            "model.safetensors of that repository in one folder, and give the folder as model.pretrained"
        ) from error


def _plain_name(name: str) -> str:
    """A tensor's name without what training wrappers put before it."""
    changed = True
    while changed:
        changed = False
        for prefix, new in RENAMED_PREFIXES:
            if name.startswith(prefix):
                name, changed = new + name.removeprefix(prefix), True
    return name


def _sizes(file: Path, named: dict[str, Tensor]) -> Sizes:
    """The sizes that the tensors (and a config.json) tell.

    Raises:
        CheckpointError: they tell of neither architecture, or leave a size open.
    """
    if any(name.startswith(("model.layers.", "model.embed_layer.")) for name in named):
        return _timer_sizes(file, named)
    layers = _layers(file, named, r"blocks\.attn_layers\.(\d+)\.")
    if layers == 0:
        raise CheckpointError(
            f"{file}: holds neither Timer-XL (blocks.attn_layers.…) nor Timer (model.layers.…); its tensors are "
            f"{listed(sorted(named)) or 'none'}"
        )
    # OpenLTM saves unfrozen tensors alone, so any layer may be the first that is there.
    bias, inner = (
        [f"blocks.attn_layers.{n}.{part}" for n in range(layers)] for part in (VARIABLE_BIAS, "conv1.weight")
    )
    width = _size(file, named, 0, "embedding.weight", "embedding.bias", "blocks.norm.weight")
    return Sizes(
        architecture="timer_xl",
        patch_length=_size(file, named, 1, "embedding.weight", "head.bias"),
        width=width,
        layers=layers,
        heads=_size(file, named, 1, *bias),
        feed_forward=_size(file, named, 0, *inner),
    )


def _timer_sizes(file: Path, named: dict[str, Tensor]) -> Sizes:
    beside = file.parent / "config.json"
    try:
        if beside.exists() and (not beside.is_file() or beside.stat().st_size > LARGEST_CONFIG):
            raise ValueError("no regular file of a sane size")
        config = TimerJson.model_validate(json.loads(beside.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file}: a Hugging Face Timer needs its config.json beside it (the number of heads is in no tensor); bring "
            f"it to {beside}"
        ) from error
    except (OSError, ValueError, ValidationError, RecursionError) as error:
        raise CheckpointError(f"{beside}: is not the configuration of a Timer ({_one_line(error)})") from error
    first = "model.layers.0."
    sizes = Sizes(
        architecture="timer",
        patch_length=_size(file, named, 1, "model.embed_layer.emb.weight"),
        width=_size(file, named, 0, "model.embed_layer.emb.weight", "model.norm.weight"),
        layers=_layers(file, named, r"model\.layers\.(\d+)\."),
        heads=config.num_attention_heads,
        feed_forward=_size(file, named, 0, first + "ffn_layer.gate_proj.weight", first + "ffn_layer.up_proj.weight"),
    )
    said = (config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.input_token_len)
    held = (sizes.width, sizes.feed_forward, sizes.layers, sizes.patch_length)
    if any(a is not None and a != b for a, b in zip(said, held, strict=True)):
        raise CheckpointError(
            f"{beside}: says width, feed-forward, layers, patch {said}, but the tensors of {file.name} have {held}; the two "
            "files do not belong together"
        )
    return sizes


def _layers(file: Path, named: dict[str, Tensor], pattern: str) -> int:
    numbers = [int(match[1]) for name in named if (match := re.match(pattern, name)) and len(match[1]) < 5]
    if max(numbers, default=0) >= MOST_LAYERS:
        raise CheckpointError(f"{file}: speaks of layer {max(numbers)}; expected at most {MOST_LAYERS} layers")
    return max(numbers, default=-1) + 1


def _size(file: Path, named: dict[str, Tensor], dimension: int, *candidates: str) -> int:
    """One dimension of the first of the candidates that the file has.

    Raises:
        CheckpointError: it has none, or that one has no such dimension.
    """
    for name in candidates:
        if name in named:
            shape = named[name].shape
            at = min(dimension, len(shape) - 1)
            if at < 0 or shape[at] < 1 or shape[at] > 2**20:
                raise CheckpointError(f"{file}: {name} has the shape {list(shape)}, from which no size can be read")
            return int(shape[at])
    raise CheckpointError(f"{file}: has none of {listed(candidates, 3)}, so the sizes of the encoder cannot be told")


def _wrong(tensor: Tensor, expected: torch.Size) -> str:
    """Why a tensor cannot be used; empty if it can."""
    if tensor.shape != expected:
        return f"expected the shape {list(expected)}, found {list(tensor.shape)}"
    if tensor.dtype not in DTYPES:
        return f"expected floating-point numbers of 16, 32 or 64 bits, found {str(tensor.dtype).removeprefix('torch.')}"
    infinite = ~tensor.to(torch.float32).isfinite()  # as the encoder will hold it
    if bad := int(infinite.sum()):
        where = infinite.nonzero()[0].tolist()
        return f"{bad} of {tensor.numel()} numbers are not finite, the first at {where}"
    return ""


def _suspicious(tensor: Tensor) -> str:
    """Why a usable tensor is worth a look; empty if it is not."""
    size = float(tensor.detach().float().abs().max()) if tensor.numel() else 0.0
    if size > LARGEST_SANE:
        return f"numbers up to {size:.3g}: an absurd scale"
    if tensor.ndim > 1:
        dead = int((tensor.flatten(1) == 0).all(1).sum())
        if dead:
            return f"{dead} of {len(tensor)} rows are all zero: dead"
    return ""


def _one_line(error: Exception) -> str:
    return str(error).replace("\n", " ")[:200]
