"""Read the named tensors of a weight file without running anything in it.

A torch file is a pickle in a zip. Only torch's restricted unpickler reads it: it builds tensors and plain containers, and
refuses everything else. Before that, the zip must look like one that torch wrote, and its pickle like one of tensors.
"""

import json
import struct
import zipfile
from collections import Counter
from pathlib import Path
from pickle import UnpicklingError  # raised by torch when it refuses a file; nothing is unpickled here
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from llueve.errors import CheckpointError
from llueve.model.checkpoints.pickle_scan import CodeInPickleError, scan

LARGEST_HEADER = 4 * 2**20
"""Most bytes of a safetensors header; that of `timer-base-84m` has 15 kB."""
MOST_TENSORS = 5_000
"""Most tensors of a file; an encoder of 256 layers has 4,358."""
LARGEST_DIRECTORY = 4 * 2**20
"""Most bytes of the directory of a zip."""
LONGEST_NAME = 500
MOST_DIMENSIONS = 8
END, LOCATOR, END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
"""The last structures of a zip: the end of its directory, and before it, in large files, its two 64-bit parts."""
MORE_THAN_TENSORS = (
    "holds more than tensors: reading it would run code, so it is not opened. Save only the state_dict, or save it as "
    "safetensors."
)
WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts store the tensors, next to epochs and optimisers."""


def read_tensors(file: Path) -> tuple[Literal["torch", "safetensors"], dict[str, Tensor], dict[str, str]]:
    """Return the container of a weight file, its tensors by name, and the type of each other entry by name.

    Raises:
        CheckpointError: the file is empty, truncated or of another kind, or reading it would run code.
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
        return "safetensors", *_named(file, _safetensors(file, size, int.from_bytes(start[:8], "little")))
    if start[:1] == b"\x80":
        raise CheckpointError(
            f"{file}: is a bare pickle, the format of torch before 1.6, which is not opened; if you trust its source, load it "
            "with torch and save it again with torch.save"
        )
    raise CheckpointError(f"{file}: is neither a torch checkpoint nor safetensors (it begins with {start[:8]!r})")


def _safetensors(file: Path, size: int, header: int) -> dict[str, Tensor]:
    try:
        _check_header(file, size, header)
        return load_file(file)
    except (SafetensorError, ValueError, OSError, RecursionError, KeyError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{file}: is damaged safetensors ({short_message(error)}); download it again") from error


def _check_header(file: Path, size: int, header: int) -> None:
    """Refuse a header that is too large, is not JSON, or names a tensor twice (`CheckpointError`, `ValueError`)."""
    if header > min(size - 8, LARGEST_HEADER):
        raise CheckpointError(
            f"{file}: declares a header of {header:,} bytes, expected at most {LARGEST_HEADER:,} and no more than the "
            f"{size:,} bytes of the file; it is damaged or hostile"
        )
    with file.open("rb") as handle:
        handle.seek(8)
        json.loads(handle.read(header), object_pairs_hook=_each_once)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object as a dictionary; `ValueError` if a name occurs twice, or there are too many."""
    if len(pairs) > MOST_TENSORS:
        raise ValueError(f"it names {len(pairs):,} tensors, expected at most {MOST_TENSORS:,}")
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"the name {twice[0][:100]!r} occurs twice")
    return dict(pairs)


def _torch_content(file: Path, size: int) -> Any:
    try:
        _check_zip_directory(file, size)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            # torch does not compress its records: compression could expand a small file into a huge one.
            sizes = sum(entry.file_size for entry in entries)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sizes > size:
                raise CheckpointError(f"{file}: has compressed records, which torch never writes; it is not opened")
            names = Counter(entry.filename.lower() for entry in entries)  # torch ignores case
            records = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(records) != 1 or max(names.values()) > 1:
                raise CheckpointError(
                    f"{file}: is a zip, but torch did not write it (expected one data.pkl, and each name once)"
                )
            scan(archive.read(records[0]))
        return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except (CodeInPickleError, UnpicklingError) as error:
        raise CheckpointError(f"{file}: {MORE_THAN_TENSORS} ({short_message(error)})") from error
    except Exception as error:  # flipped bytes can raise any error in the readers
        raise CheckpointError(
            f"{file}: is a damaged torch checkpoint ({short_message(error)}); download it again"
        ) from error


def _check_zip_directory(file: Path, size: int) -> None:
    """Refuse a zip whose directory is huge, or lies where torch's reader and Python's would look in different places.

    Raises:
        ValueError: the directory does not end where the file does, or lists too many records.
    """
    with file.open("rb") as handle:
        handle.seek(max(0, size - END.size - END_64.size - LOCATOR.size))
        end = handle.read()
    mark, *_, records, length, start, comment = END.unpack(end[-END.size :])
    place = size - END.size
    locator = end[-END.size - LOCATOR.size : -END.size]
    if locator.startswith(b"PK\x06\x07"):
        place -= LOCATOR.size + END_64.size
        mark_64, *_, records, length, start = END_64.unpack(end[: END_64.size])
        if mark_64 != b"PK\x06\x06" or LOCATOR.unpack(locator)[2] != place:
            raise ValueError("the directory of the zip is not where its end says")
    if mark != b"PK\x05\x06" or comment or start + length != place:
        raise ValueError("the zip does not end with its directory")
    if records > MOST_TENSORS or length > LARGEST_DIRECTORY:
        raise ValueError(f"the zip has {records:,} records, expected at most {MOST_TENSORS:,}")


def _named(file: Path, content: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a loaded dictionary, or of the first wrapper in it, and the types of the other entries."""
    tensors: dict[str, Tensor] = {}
    others: dict[str, str] = {}
    for key in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            # Other entries beside the wrapper are usual, but a tensor there may be a misplaced weight.
            others = {str(name): f"Tensor beside {key}" for name, value in content.items() if isinstance(value, Tensor)}
            content = content[key]
            break
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file}: holds a {type(content).__name__}; expected a dictionary of tensors (a state_dict)"
        )
    room = file.stat().st_size
    for key, value in content.items():
        name = str(key)
        if not name.isprintable() or len(name) > LONGEST_NAME or name in tensors:
            raise CheckpointError(f"{file}: {name[:100]!r} is not a valid name of a tensor, or occurs twice")
        if not isinstance(value, Tensor):
            others[name] = f"{type(value).__name__}, not a tensor"
        elif value.layout != torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
            raise CheckpointError(
                f"{file}: {name} is a sparse, nested, quantised or meta tensor; expected a dense tensor on the processor"
            )
        elif value.ndim > MOST_DIMENSIONS:
            raise CheckpointError(f"{file}: {name} has {value.ndim:,} dimensions, expected at most {MOST_DIMENSIONS}")
        elif (room := room - value.numel() * value.element_size()) < 0:
            raise CheckpointError(f"{file}: {name} claims {value.numel():,} numbers that the file does not hold")
        else:
            tensors[name] = value
    return tensors, others


def short_message(error: Exception) -> str:
    """The first line of a library's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
