"""Find the weight file of a checkpoint: a file, a file inside a folder, or a repository of the Hugging Face hub."""

import re
from pathlib import Path

from llueve.errors import CheckpointError, listed
from llueve.paths import path_problem

WEIGHT_FILES = ("model.safetensors", "checkpoint.pth", "encoder.safetensors")
HUB = "hf://"
HUB_NAME = re.compile(r"(?P<repository>[\w.-]{1,96}/[\w.-]{1,96})(@(?P<revision>[\w./-]{1,255}))?", re.ASCII)
"""`organisation/name` or `organisation/name@revision`; a revision is a branch, a tag or a commit."""
EMBEDDED = "embedded"
"""The name of the weights that the package carries."""
EMBEDDED_FILE = Path(__file__).parents[2] / "data" / "weather_xl.safetensors"


def weight_file(path: str | Path) -> Path:
    """Return the weight file of a path: the file itself, one of `WEIGHT_FILES` in a folder, a download from the hub, or
    the file of the package for `embedded`.

    Only an address `hf://organisation/name@revision` is ever downloaded; the revision may be left out.

    Raises:
        CheckpointError: the file does not exist, the address is not valid, or the download fails.
    """
    if str(path) == EMBEDDED:
        return EMBEDDED_FILE
    if str(path).startswith(HUB):
        return _from_hub(str(path))
    if problem := path_problem(str(path)):
        raise CheckpointError(f"{str(path)[:100]!r}: {problem}")
    file = Path(path)
    try:
        if found := next(filter(Path.is_file, (file, *(file / name for name in WEIGHT_FILES))), None):
            return found
        is_folder = file.is_dir()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    if is_folder:
        raise CheckpointError(f"{file}: the folder holds none of {listed(WEIGHT_FILES)}")
    advice = ""
    if HUB_NAME.fullmatch(str(path)):
        advice = f". If it is a repository of the Hugging Face hub, write {HUB}{path}"
    raise CheckpointError(
        f"{path}: does not exist; expected a checkpoint (.pth or .safetensors), or a folder that holds one{advice}"
    )


def _from_hub(address: str) -> Path:
    """Download weights and configuration of a repository once."""
    if not (name := HUB_NAME.fullmatch(address.removeprefix(HUB))):
        raise CheckpointError(
            f"{address[:200]}: is not the address of a repository; expected {HUB}organisation/name, or "
            f"{HUB}organisation/name@revision"
        )
    from huggingface_hub import hf_hub_download  # slow to import, and needed only here
    from huggingface_hub.errors import HfHubHTTPError

    repository, revision = name["repository"], name["revision"]
    try:
        hf_hub_download(repository, "config.json", revision=revision)
        return Path(hf_hub_download(repository, "model.safetensors", revision=revision))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{address}: could not be fetched from the Hugging Face hub ({reason}). Copy config.json and model.safetensors "
            "of that repository into one folder, and give the folder instead"
        ) from error
