"""Weight files as named tensors, without running anything that they hold.

A torch file is a pickle in a zip. It is read by torch's restricted unpickler alone, which builds tensors and plain
containers and refuses everything else; and only after the zip has been found to be what torch writes.
"""

import json
import pickletools
import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError  # the name of torch's refusal; nothing is unpickled here
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llueve.errors import CheckpointError

Container = Literal["torch", "safetensors"]

LARGEST_HEADER = 100 * 1024 * 1024
"""The limit of the safetensors format."""
PLAIN_NAMES = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "collections OrderedDict")
STORAGE = re.compile(r"torch [A-Za-z0-9]+Storage")
MORE_THAN_TENSORS = (
    "holds more than tensors: it would have to run code to be read, so it is not opened. Save the state_dict alone, or as "
    "safetensors."
)
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep the tensors beside other things."""


def read_tensors(file: Path) -> tuple[Container, dict[str, Tensor], dict[str, str]]:
    """The tensors of a weight file, and by name the type of whatever else its dictionary holds.

    Raises:
        CheckpointError: the file is empty, truncated, of another kind, or holds what would have to be run to be read.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            start = handle.read(16)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    if size == 0:
        raise CheckpointError(f"{file}: is empty; download it again")
    if start[:4] == b"PK\x03\x04":
        return "torch", *_named(file, _torch_content(file, size))
    if start[8:9] == b"{" and size > 8:
        return "safetensors", _safetensors(file, size, int.from_bytes(start[:8], "little")), {}
    if start[:1] == b"\x80":
        raise CheckpointError(
            f"{file}: is a bare pickle, the format of torch before 1.6, which is not opened here; load it with a torch you "
            "trust it to and save it again with torch.save"
        )
    raise CheckpointError(f"{file}: is neither a torch checkpoint nor safetensors (it begins with {start[:8]!r})")


def _safetensors(file: Path, size: int, header: int) -> dict[str, Tensor]:
    if header > min(size - 8, LARGEST_HEADER):
        raise CheckpointError(
            f"{file}: says that its header has {header:,} bytes, but the file has {size:,}; it is damaged or hostile"
        )
    try:
        with file.open("rb") as handle:
            handle.seek(8)
            json.loads(handle.read(header))
        return load_file(file)
    except (SafetensorError, ValueError, OSError, RecursionError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{file}: is damaged safetensors ({_short(error)}); download it again") from error


def _torch_content(file: Path, size: int) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{file}: is a damaged torch checkpoint ({_short(error)}); download it again") from error
    # torch stores its records as they are: compression would let a small file unfold into a huge one.
    sizes = sum(entry.file_size for entry in entries)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sizes > size:
        raise CheckpointError(f"{file}: has compressed records, which torch never writes; it is not opened")
    records = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(records) != 1:
        raise CheckpointError(f"{file}: is a zip, but not one that torch wrote (no data.pkl in it)")
    try:
        with zipfile.ZipFile(file) as archive:
            _refuse_code(file, archive.read(records[0]))
        return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except UnpicklingError as error:
        raise CheckpointError(f"{file}: {MORE_THAN_TENSORS} ({_short(error)})") from error
    except Exception as error:  # flipped bytes make torch's reader fail in any way
        raise CheckpointError(f"{file}: is a damaged torch checkpoint ({_short(error)}); download it again") from error


def _refuse_code(file: Path, content: bytes) -> None:
    """Look through a pickle without running it, and refuse every name but those that plain tensors need.

    torch's restricted reader also makes uninitialised tensors and buffers of any size, when asked by name.
    """
    for operation, argument, _ in pickletools.genops(content):
        named = operation.name in ("GLOBAL", "INST")
        if named and (argument in PLAIN_NAMES or STORAGE.fullmatch(str(argument))):
            continue
        if named or operation.name in ("STACK_GLOBAL", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
            raise CheckpointError(f"{file}: {MORE_THAN_TENSORS} (it asks for {argument or operation.name})")


def _named(file: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a loaded dictionary, looking inside one wrapper."""
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            # Epochs and optimisers beside the weights are usual; a tensor there may be one of them by mistake.
            beside = [str(name) for name, value in content.items() if isinstance(value, Tensor)]
            others = dict.fromkeys(beside, f"Tensor beside {key}")
            content = content[key]
            break
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file}: holds a {type(content).__name__}; expected a dictionary of tensors (a state_dict)"
        )
    room = file.stat().st_size
    for key, value in content.items():
        name = str(key)
        if not name.isprintable() or name in tensors:
            raise CheckpointError(f"{file}: {name!r} is no name of a tensor, or is there twice")
        if not isinstance(value, Tensor):
            others[name] = f"{type(value).__name__}, no tensor"
        elif value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
            raise CheckpointError(
                f"{file}: {name} is a sparse, nested, quantised or empty-shelled tensor; expected plain ones"
            )
        elif (room := room - value.numel() * value.element_size()) < 0:
            raise CheckpointError(f"{file}: {name} claims {value.numel():,} numbers that the file does not hold")
        else:
            tensors[name] = value
    return tensors, others


def _short(error: Exception) -> str:
    """The first line of a library's message."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
