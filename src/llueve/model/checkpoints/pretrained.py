"""Published checkpoints: read without running anything, matched by name, reported tensor by tensor.

| format | container | architecture | names |
| --- | --- | --- | --- |
| `openltm` | `checkpoint.pth` of torch | Timer-XL | `embedding.weight`, `blocks.attn_layers.0.…` |
| `huggingface` | safetensors with `config.json` beside it | Timer | `model.embed_layer.emb.weight`, `model.layers.0.…` |
| `safetensors` | safetensors | Timer-XL | as `openltm` |
| `safetensors` | safetensors | weather encoder | as `openltm`, and `variable_CD`, `level_CVD`, … |

An OpenLTM file holds no configuration: every size is read from its tensors. No tensor holds the number of heads of the
Hugging Face Timer, so its `config.json` is needed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from llueve.config.model_keys import LARGEST_MODEL
from llueve.errors import CheckpointError, UsageError, listed
from llueve.model.build import EncoderSizes, shapes_only
from llueve.model.checkpoints.locate import weight_file
from llueve.model.checkpoints.tensor_sizes import sizes_of
from llueve.model.checkpoints.weight_files import read_tensors
from llueve.model.patches import PatchEncoder
from llueve.model.timer_xl import Positions

Format = Literal["openltm", "huggingface", "safetensors"]

RENAMED_PREFIXES = (
    ("module.", ""),  # DataParallel
    ("_orig_mod.", ""),  # torch.compile
    ("encoder.attn_layers.", "blocks.attn_layers."),
    ("encoder.norm.", "blocks.norm."),
)
MOST_MISSING = 16
"""A partial file holds at least one number for each `MOST_MISSING` parameters of its encoder."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ARCHITECTURES = {"timer_xl": "Timer-XL", "timer": "Timer", "weather_xl": "weather encoder"}
LARGEST_SANE = 1e4
"""Trained transformer weights are of the order of one; beyond this a forward pass is close to overflow."""


@dataclass(frozen=True)
class LoadReport:
    """The result of matching a checkpoint with its encoder, for every tensor by name."""

    path: str
    format: Format
    sizes: EncoderSizes
    parameters: int
    dtypes: tuple[str, ...]
    matched: tuple[str, ...]
    """Tensors that have the same name in the file and in the encoder."""
    renamed: dict[str, str]
    """Tensors that have another name in the encoder: name in the file → name in the encoder."""
    new: tuple[str, ...]
    """Tensors that the file lacks; they are freshly initialised."""
    ignored: dict[str, str]
    """Entries of the file that the encoder does not use: name → reason."""
    rejected: dict[str, str]
    """Tensors of the file that cannot be used: name → reason. A checkpoint with any of these does not load."""
    suspicious: dict[str, str]
    """Tensors that load, but look wrong: name → reason."""

    def problems(self, allow_missing: Sequence[str]) -> list[str]:
        """Return the reasons why the checkpoint must not load; names in `allow_missing` may be absent or unused."""

        def unexpected(names: Sequence[str]) -> list[str]:
            return [name for name in names if not any(fnmatchcase(name, pattern) for pattern in allow_missing)]

        found = [f"{name}: {why}" for name, why in self.rejected.items()]
        if absent := unexpected(self.new):
            found.append(f"not in the file: {listed(absent)}")
        if unused := unexpected(list(self.ignored)):
            found.append(f"in the file, but of no use: {listed([f'{name} ({self.ignored[name]})' for name in unused])}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {**vars(self), "sizes": vars(self.sizes), "loads": not self.problems(())}

    def render(self) -> Group:
        """Return the report for a terminal."""
        sizes = self.sizes
        name = ARCHITECTURES[sizes.architecture]
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


@dataclass(frozen=True)
class PretrainedWeights:
    """The weights of a checkpoint that loads."""

    report: LoadReport
    tensors: Mapping[str, Tensor]
    """Tensors under the names of the encoder."""

    def build(self, dropout: float, positions: Positions) -> PatchEncoder:
        """Return an encoder with these weights, in float32 and in evaluation mode."""
        encoder = self.report.sizes.build(dropout, positions)
        encoder.load_state_dict(self.tensors, strict=False)
        return encoder.eval()


def load_pretrained(
    path: str | Path, allow_missing: Sequence[str] = (), dropout: float = 0.1, positions: Positions = "flattened"
) -> tuple[PatchEncoder, LoadReport]:
    """Return an encoder with published weights, in float32 and evaluation mode, and the report on every tensor.

    Args:
        path: an OpenLTM `.pth`, a safetensors file, a folder that holds one of them, or the address of a Hugging Face
            repository such as `hf://thuml/timer-base-84m`, with `@revision` if it matters.
        allow_missing: names of tensors that the file may lack (they are then freshly initialised) or hold without use;
            `*` matches any text.
        dropout: rate of the encoder in training, 0…1.
        positions: rotary index of Timer-XL; the public checkpoint was trained with `flattened`.

    Raises:
        CheckpointError: the file is damaged, hostile or of another kind, or a tensor does not match and is not allowed
            to; the message names the file, the tensors and the reason.
    """
    pretrained = read_pretrained(path, allow_missing)
    return pretrained.build(dropout, positions), pretrained.report


def read_pretrained(path: str | Path, allow_missing: Sequence[str] = ()) -> PretrainedWeights:
    """Read the weights of a published checkpoint once, for its sizes and for its encoder; as `load_pretrained`."""
    report, tensors = inspect_checkpoint(path)
    if problems := report.problems(allow_missing):
        raise CheckpointError(
            f"{report.path}: does not fit {report.sizes.architecture}: {'; '.join(problems)}. If this is intended, name the "
            "tensors in model.allow_missing"
        )
    return PretrainedWeights(report, tensors)


def inspect_checkpoint(path: str | Path) -> tuple[LoadReport, dict[str, Tensor]]:
    """Return the report on a checkpoint, and the tensors that can be loaded, under the encoder's names.

    Raises:
        CheckpointError: the file cannot be read, or is not a checkpoint of a published encoder.
    """
    file = weight_file(path)
    container, found, others = read_tensors(file)
    renamed = {name: _plain_name(name) for name in found}
    if twice := sorted(new for new, count in Counter(renamed.values()).items() if count > 1):
        raise CheckpointError(f"{file}: {listed(twice)}: several tensors have the same name without their prefixes")
    named = {renamed[name]: tensor for name, tensor in found.items()}
    sizes = sizes_of(file, named)
    try:
        with shapes_only():
            expected = {name: tensor.shape for name, tensor in sizes.build().state_dict().items()}
    except UsageError as error:
        raise CheckpointError(f"{file}: {error}") from error
    claimed, held = sum(shape.numel() for shape in expected.values()), sum(tensor.numel() for tensor in named.values())
    if claimed > MOST_MISSING * held + 1_000_000:
        raise CheckpointError(
            f"{file}: the shapes of its tensors describe an encoder of {claimed:,} parameters, but they hold {held:,} "
            "numbers; they do not belong to one encoder"
        )
    if claimed > LARGEST_MODEL:
        raise CheckpointError(f"{file}: is an encoder of {claimed:,} weights, expected at most {LARGEST_MODEL:,}")
    original = {new: old for old, new in renamed.items()}
    wrong = {name: _wrong(tensor, expected[name]) for name, tensor in named.items() if name in expected}
    good = {name: named[name] for name, why in wrong.items() if not why}
    report = LoadReport(
        path=str(file),
        format="huggingface" if sizes.architecture == "timer" else "openltm" if container == "torch" else "safetensors",
        sizes=sizes,
        parameters=sum(tensor.numel() for tensor in good.values()),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in found.values()})),
        matched=tuple(name for name in good if original[name] == name),
        renamed={old: new for old, new in renamed.items() if old != new and new in good},
        new=tuple(name for name in expected if name not in named),
        ignored={original[name]: "no such tensor in the encoder" for name in named if name not in expected} | others,
        rejected={original[name]: why for name, why in wrong.items() if why},
        suspicious={original[name]: why for name, tensor in good.items() if (why := _suspicious(tensor))},
    )
    return report, good


def _plain_name(name: str) -> str:
    """Name of a tensor without the prefixes of training wrappers."""
    while found := next((pair for pair in RENAMED_PREFIXES if name.startswith(pair[0])), None):
        name = found[1] + name.removeprefix(found[0])
    return name


def _wrong(tensor: Tensor, expected: torch.Size) -> str:
    """Reason why a tensor cannot be used; empty if it can."""
    if tensor.shape != expected:
        return f"expected the shape {list(expected)}, found {list(tensor.shape)}"
    if tensor.dtype not in DTYPES:
        return f"expected floating-point numbers of 16, 32 or 64 bits, found {str(tensor.dtype).removeprefix('torch.')}"
    infinite = ~tensor.to(torch.float32).isfinite()  # the type of the encoder's weights
    if bad := int(infinite.sum()):
        where = infinite.nonzero()[0].tolist()
        return f"{bad} of {tensor.numel()} numbers are not finite, the first at {where}"
    return ""


def _suspicious(tensor: Tensor) -> str:
    """Reason why a usable tensor looks wrong; empty if it looks right."""
    size = float(tensor.detach().float().abs().max()) if tensor.numel() else 0.0
    if size > LARGEST_SANE:
        return f"numbers up to {size:.3g}: an absurd scale"
    if tensor.ndim > 1 and (dead := int((tensor.flatten(1) == 0).all(1).sum())):
        return f"{dead} of {len(tensor)} rows are all zero: dead"
    return ""
