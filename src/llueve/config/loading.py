"""From a TOML file or a dictionary to a validated configuration, with every refusal in words."""

import difflib
import glob
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llueve.config.data import RegionConfig
from llueve.config.train import PhaseConfig
from llueve.config.whole import Config
from llueve.errors import ConfigError


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read and validate a TOML file.

    Args:
        path: the file. Relative paths in it are taken relative to its folder.
        overrides: `section.key=value` with the value in TOML, such as `model.head="mean"`; bare words are text.

    Raises:
        ConfigError: the file is absent or not TOML, or a key or value is refused; each with its key and the mend.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give the path of a TOML configuration"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML ({error}); see examples/ for a complete file") from error
    for override in overrides:
        _apply(table, override)
    return parse_config(table, where=str(path), folder=path.parent)


def parse_config(table: dict[str, Any], where: str, folder: Path | None = None) -> Config:
    """Validate a configuration that is already a dictionary; `where` names it in errors.

    With `folder`, relative paths in it become absolute, starting there.

    Raises:
        ConfigError: a key or value is refused.
    """
    try:
        config = Config.model_validate(table)
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors()]
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems)) from None
    return config if folder is None else _absolute(config, folder)


def _absolute(config: Config, folder: Path) -> Config:
    """The configuration with paths that no longer depend on where its file lies."""
    data, model = config.data, config.model
    others = {
        name: _placed(path, folder) for name in ("land_mask", "positions") if (path := getattr(data, name)) is not None
    }
    more_paths = tuple(_placed(path, folder) for path in data.more_paths)
    data = data.model_copy(update={"path": _placed(data.path, folder), "more_paths": more_paths, **others})
    regions = {name: _region_placed(region, folder) for name, region in config.regions.items()}
    if (folder / model.pretrained).exists():  # else a word, or the name of a repository
        model = model.model_copy(update={"pretrained": str((folder / model.pretrained).resolve())})
    track = config.track
    if track.mlflow_folder is not None:
        track = track.model_copy(update={"mlflow": str((folder / track.mlflow_folder).resolve())})
    return config.model_copy(update={"data": data, "regions": regions, "model": model, "track": track})


def _placed(path: str, folder: Path) -> str:
    """A path that no longer depends on the folder, unless it is a package's or an address.

    Where it is a pattern, brackets in the name of the folder are none of it.
    """
    if path.startswith("package:") or "://" in path:
        return path
    if not glob.has_magic(path) or (folder / path).exists():
        return str((folder / path).resolve())
    parts = Path(path).parts
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return str(Path(glob.escape(str(folder.joinpath(*parts[:plain]).resolve())), *parts[plain:]))


def _region_placed(region: RegionConfig, folder: Path) -> RegionConfig:
    files = {name: path for name in ("polygon", "mask") if (path := getattr(region, name)) is not None}
    return region.model_copy(update={name: _placed(path, folder) for name, path in files.items()})


def _apply(table: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in the parsed TOML."""
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not (equals and len(path) > 1 and all(path)):
        raise ConfigError(f"--set {override}: expected section.key=value, such as train.epochs=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for part in path[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{part} = {inner!r}: is no section, so --set {override} cannot change it; write [{part}]"
            )
        table = inner
    table[path[-1]] = value


def _explain(problem: Any) -> str:
    """One refused key as a sentence: key, value, what was expected, nearest valid name."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"{key} = {problem['input']!r}: there is no such key; {_nearest(location)}"
    if problem["type"] == "missing":
        what = "section is missing" if len(location) == 1 else "is missing"
        return f"{key}: {what}; add it (examples/ has complete files)"
    if problem["type"] == "value_error":
        error = problem["ctx"]["error"]
        return f"{key}: {error}" if key else str(error)
    expected = problem["msg"][0].lower() + problem["msg"][1:]
    message = f"{key} = {problem['input']!r}: {expected}"
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        allowed = [word.strip(" '") for word in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
        close = difflib.get_close_matches(problem["input"], allowed, n=1)
        message += f"; did you mean {close[0]!r}?" if close else ""
    return message


def _nearest(location: list[str]) -> str:
    """What the writer of an unknown key probably meant."""
    sections = {
        name: list((RegionConfig if name == "regions" else field.annotation).model_fields)  # type: ignore[union-attr]
        for name, field in Config.model_fields.items()
    }
    if location[:2] == ["train", "phases"]:
        sections["train"] = list(PhaseConfig.model_fields)
    unknown = location[-1]
    here = sections.get(location[0], []) if len(location) > 1 else list(sections)
    close = difflib.get_close_matches(unknown, here, n=1)
    if close:
        return f"did you mean {'.'.join([*location[:-1], close[0]])}?"
    elsewhere = [f"{section}.{key}" for section, keys in sections.items() for key in keys if key == unknown]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    return f"valid names here are {', '.join(here)}"
