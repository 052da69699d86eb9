"""Find the weight file of a checkpoint: a file, a file inside a folder, or a repository of the Hugging Face hub."""

import re
from pathlib import Path

from llueve.errors import CheckpointError

WEIGHT_FILES = ("model.safetensors", "checkpoint.pth")


def weight_file(path: str | Path) -> Path:
    """Return the weight file of a path: the file itself, one of `WEIGHT_FILES` in a folder, or a download from the hub.

    Raises:
        CheckpointError: the file does not exist, or the download fails.
    """
    file = Path(path)
    if str(path) == "embedded":
        raise CheckpointError(
            'embedded: this version carries no encoder of its own; take "none" for a fresh one, or give a checkpoint (a '
            "file, a folder, or the name of a Hugging Face repository)"
        )
    try:
        if found := next(filter(Path.is_file, (file, *(file / name for name in WEIGHT_FILES))), None):
            return found
        is_folder, has_parent = file.is_dir(), file.parent != Path() and file.parent.is_dir()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    if is_folder:
        raise CheckpointError(f"{file}: the folder holds neither {WEIGHT_FILES[0]} nor {WEIGHT_FILES[1]}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not has_parent and file.suffix not in (".pth", ".safetensors"):
        return _from_hub(str(path))
    raise CheckpointError(
        f"{path}: does not exist; expected a checkpoint (.pth or .safetensors), or a folder that holds one"
    )


def _from_hub(repository: str) -> Path:
    """Download weights and configuration of a repository once."""
    from huggingface_hub import hf_hub_download  # slow to import, and needed only here
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hf_hub_download(repository, "config.json")
        return Path(hf_hub_download(repository, "model.safetensors"))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{repository}: could not be fetched from the Hugging Face hub ({reason}). Copy config.json and model.safetensors "
            "of that repository into one folder, and give the folder as model.pretrained"
        ) from error
