"""Load a validated configuration from a TOML file or a dictionary."""

import glob
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llueve.config.refusals import explain
from llueve.config.root import Config
from llueve.config.section import Section
from llueve.errors import ConfigError


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read and validate a TOML file. Relative paths in it start at its folder.

    Each override is `section.key=value` with the value in TOML, such as `model.head="mean"`; a bare word is text.

    Raises:
        ConfigError: the file is absent or not TOML, or a key or value is refused.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}); give the path of a TOML configuration"
        raise ConfigError(message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML ({error}); see examples/ for a complete file") from error
    for override in overrides:
        _apply(table, override)
    return parse_config(table, where=str(path), folder=path.parent)


def parse_config(table: dict[str, Any], where: str, folder: Path | None = None) -> Config:
    """Validate a configuration that is already a dictionary; `where` is its name in errors.

    Its relative paths start at `folder` and become absolute; without a folder they stay as they are.

    Raises:
        ConfigError: a key or value is refused; the message has a line for each.
    """
    try:
        config = Config.model_validate(table)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {explain(problem)}" for problem in error.errors())) from None
    return config if folder is None else _absolute(config, folder)


def _absolute(config: Config, folder: Path) -> Config:
    """The configuration with paths that do not depend on the place of its file."""
    changes: dict[str, Any] = {
        "data": _with_paths(config.data, folder, "path", "more_paths", "land_mask", "positions"),
        "regions": {name: _with_paths(region, folder, "polygon", "mask") for name, region in config.regions.items()},
    }
    if (folder / config.model.pretrained).exists():  # otherwise a word, or the name of a repository
        changes["model"] = _with_paths(config.model, folder, "pretrained")
    if (mlflow := config.track.mlflow_folder) is not None:
        changes["track"] = config.track.model_copy(update={"mlflow": str((folder / mlflow).resolve())})
    return config.model_copy(update=changes)


def _with_paths(section: Section, folder: Path, *keys: str) -> Section:
    """The section with the paths of these keys, as far as they are set, starting at a folder."""
    placed = {
        key: _placed(path, folder) if isinstance(path, str) else tuple(_placed(each, folder) for each in path)
        for key in keys
        if (path := getattr(section, key)) is not None
    }
    return section.model_copy(update=placed)


def _placed(path: str, folder: Path) -> str:
    """The absolute path, unless it is a file of a package or an address.

    In a pattern, brackets in the name of the folder are escaped: they are not part of the pattern.
    """
    if path.startswith("package:") or "://" in path:
        return path
    if not glob.has_magic(path) or (folder / path).exists():
        return str((folder / path).resolve())
    parts = Path(path).parts
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return str(Path(glob.escape(str(folder.joinpath(*parts[:plain]).resolve())), *parts[plain:]))


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
            cannot = f"so --set {override} cannot change it; write [{part}]"
            raise ConfigError(f"{part} = {inner!r}: is not a section, {cannot}")
        table = inner
    table[path[-1]] = value
