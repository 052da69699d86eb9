"""Sealed files: tensors and a JSON text in one safetensors file, with a hash over both."""

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from llueve.errors import CheckpointError
from llueve.files import write_whole

CONTENT, SEAL = "llueve", "sha256"
"""Entries of the file's metadata: the JSON text, and the hash."""
LARGEST_HEADER = 32 * 2**20
"""Most bytes of the header, which holds the text and the names of the tensors."""


def write_sealed(path: Path, tensors: Mapping[str, Tensor], text: str) -> None:
    """Write tensors and a text, whole or not at all; OSError means that the disk is full or read-only."""
    on_cpu = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
    # Bytes first: the file writer of safetensors reports a full disk as an error that is not an OSError.
    write_whole(path, _with_sorted_metadata(save(on_cpu, metadata={CONTENT: text, SEAL: seal(text, on_cpu)})))


def _with_sorted_metadata(content: bytes) -> list[bytes | memoryview]:
    """The same safetensors file with its metadata in a fixed order: safetensors writes them in a random one."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, memoryview(content)[end:]]


def read_sealed(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors and the text of a file that is exactly as it was written.

    Raises:
        CheckpointError: the file is torn, damaged, or not a sealed file.
    """
    tensors, metadata = read_unchecked(path)
    return tensors, sealed_text(path, tensors, metadata)


def read_unchecked(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of any safetensors file, for `sealed_text`.

    Raises:
        CheckpointError: the file is torn, damaged, a link, or not a safetensors file.
    """
    return _read(path, with_tensors=True)


def sealed_text(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the text of a sealed file that was read with `read_unchecked`.

    Raises:
        CheckpointError: it is not a sealed file, or not exactly as it was written.
    """
    text = _text(path, metadata)
    if metadata.get(SEAL) != seal(text, tensors):
        raise CheckpointError(f"{path}: is damaged (its hash is not the recorded one)")
    return text


def read_sealed_text(path: Path) -> str:
    """Return only the text, without a check of the hash; a torn file, or another one, raises CheckpointError."""
    return _text(path, _read(path, with_tensors=False)[1])


def _read(path: Path, with_tensors: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ValueError("it is not a plain file; links are not followed")
        with path.open("rb") as start:
            if (header := int.from_bytes(start.read(8), "little")) > LARGEST_HEADER:
                raise ValueError(f"its header has {header:,} bytes, expected at most {LARGEST_HEADER:,}")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys() if with_tensors}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: is torn or damaged ({error})") from error
    return tensors, metadata


def _text(path: Path, metadata: Mapping[str, str]) -> str:
    if CONTENT not in metadata:
        raise CheckpointError(f"{path}: was not written by this version of llueve")
    return metadata[CONTENT]


def seal(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the text and the name, type, shape and bytes of every tensor."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
