"""Load a validated configuration from a TOML file or a dictionary."""

import glob
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from llueve.config.pretrain_keys import PretrainConfig
from llueve.config.refusals import explain, shown
from llueve.config.root import Config
from llueve.config.run_keys import VerifyConfig
from llueve.config.section import Section
from llueve.config.tree_bounds import tree_problem
from llueve.errors import ConfigError
from llueve.paths import path_problem

Whole = TypeVar("Whole", bound=Section)
"""The class of a whole configuration."""

LARGEST_FILE = 2**20
"""Most bytes of a configuration."""
MOST_DOTS = 500
"""Most dots in one line: the parser takes time with the square of the parts of a key."""
MOST_EXPLAINED = 20
"""Refused keys that a message explains; the others are counted."""


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read and validate a TOML file. Relative paths in it start at its folder.

    Each override is `section.key=value` with the value in TOML, such as `model.head="mean"`; a bare word is text.

    Raises:
        ConfigError: the file is absent, too large or not TOML, or a key or value is refused.
    """
    return parse_config(_read(path, overrides), where=str(path), folder=Path(path).parent)


def load_pretrain_config(path: str | Path, overrides: tuple[str, ...] = ()) -> PretrainConfig:
    """Read and validate the TOML file of a pre-training, as `load_config`."""
    return parse_pretrain_config(_read(path, overrides), where=str(path), folder=Path(path).parent)


def _read(path: str | Path, overrides: tuple[str, ...]) -> dict[str, Any]:
    """The table of a TOML file with some keys changed."""
    if problem := path_problem(str(path)):
        raise ConfigError(f"{str(path)[:100]!r}: {problem}")
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        message = f"{path}: cannot be read ({error.strerror}); give the path of a TOML configuration"
        raise ConfigError(message) from error
    if len(content) > LARGEST_FILE:
        raise ConfigError(f"{path}: has more than {LARGEST_FILE:,} bytes; give the path of a TOML configuration")
    try:
        table = _parse(content.decode("utf-8"))
    except ValueError as error:  # also numbers with too many digits
        raise ConfigError(f"{path}: is not TOML ({error}); see examples/ for a complete file") from error
    for override in overrides:
        _apply(table, override)
    return table


def _parse(text: str) -> dict[str, Any]:
    """The table of a TOML text; `ValueError` if it is not TOML, or would take the parser too long."""
    for number, line in enumerate(text.splitlines(), 1):
        if (dots := line.count(".")) > MOST_DOTS:
            raise ValueError(f"line {number} has {dots:,} dots, expected at most {MOST_DOTS}; use several lines")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("its lists or tables are nested too deep") from None


def parse_config(table: dict[str, Any], where: str, folder: Path | None = None) -> Config:
    """Validate a configuration that is already a dictionary; `where` is its name in errors.

    Its relative paths start at `folder` and become absolute; without a folder they stay as they are.

    Raises:
        ConfigError: a key or value is refused; the message has a line for each of the first 20.
    """
    return _absolute(_validated(Config, table, where), where, folder)


def parse_pretrain_config(table: dict[str, Any], where: str, folder: Path | None = None) -> PretrainConfig:
    """Validate the configuration of a pre-training, as `parse_config`."""
    config = _validated(PretrainConfig, table, where)
    changes: dict[str, Any] = {"corpus": _with_places(config.corpus, where, folder, "corpus", "path")}
    if config.track.mlflow_folder is not None:
        changes["track"] = _with_places(config.track, where, folder, "track", "mlflow")
    return config.model_copy(update=changes)


def _validated(kind: type[Whole], table: dict[str, Any], where: str) -> Whole:
    if problem := tree_problem(table):
        raise ConfigError(f"{where}: {problem}")
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise _refused(error, where, kind) from None


def override_verify(verify: VerifyConfig, overrides: Sequence[str]) -> VerifyConfig:
    """The keys of `[verify]` with some of them changed, each override as in `verify.bootstrap=200`.

    Raises:
        ConfigError: an override names another section, whose keys belong to the training, or is refused.
    """
    table: dict[str, Any] = {"verify": verify.model_dump(exclude_none=True)}
    for override in overrides:
        if override.partition("=")[0].partition(".")[0].strip() != "verify":
            raise ConfigError(
                f"--set {override[:100]}: only keys of [verify] can be changed here, as in verify.bootstrap=200; all others "
                "belong to the training: set them in `llueve train`"
            )
        _apply(table, override)
    if problem := tree_problem(table):
        raise ConfigError(f"--set: {problem}")
    try:
        return VerifyConfig.model_validate(table["verify"])
    except ValidationError as error:
        raise _refused(error, "--set", Config, "verify") from None


def _refused(error: ValidationError, where: str, whole: type[Section], *section: str) -> ConfigError:
    """The error with a line for each of the first refused keys of `whole`; `section` is where their names start."""
    problems = error.errors(include_url=False)
    located: list[ErrorDetails] = [{**problem, "loc": (*section, *problem["loc"])} for problem in problems]
    lines = [f"{where}: {explain(problem, whole)}" for problem in located[:MOST_EXPLAINED]]
    if (others := len(problems) - MOST_EXPLAINED) > 0:
        lines.append(f"{where}: and {others:,} more refused keys or values")
    return ConfigError("\n".join(lines))


def _absolute(config: Config, where: str, folder: Path | None) -> Config:
    """The configuration with checked paths that, given a folder, do not depend on the place of its file."""

    def placed(section: Section, name: str, *keys: str) -> Section:
        return _with_places(section, where, folder, name, *keys)

    changes: dict[str, Any] = {
        "data": placed(config.data, "data", "path", "more_paths", "land_mask", "positions"),
        "regions": {
            name: placed(region, f"regions.{name}", "polygon", "mask") for name, region in config.regions.items()
        },
        "model": placed(config.model, "model", *(["pretrained"] if config.model.pretrained_path else [])),
    }
    if config.track.mlflow_folder is not None:
        changes["track"] = placed(config.track, "track", "mlflow")
    return config.model_copy(update=changes)


def _with_places(section: Section, where: str, folder: Path | None, name: str, *keys: str) -> Section:
    """A section whose paths are absolute; `name` is its name in errors."""
    changes: dict[str, Any] = {}
    for key in keys:
        match getattr(section, key):
            case str(path):
                changes[key] = _placed(path, folder, f"{where}: {name}.{key}")
            case tuple(paths):
                changes[key] = tuple(_placed(path, folder, f"{where}: {name}.{key}") for path in paths)
    return section.model_copy(update=changes)


def _placed(path: str, folder: Path | None, key: str) -> str:
    """The absolute path, unless it is a file of a package, an address, or without a folder; `key` names it in errors.

    In a pattern, brackets in the name of the folder are escaped: they are not part of the pattern.
    """
    if problem := path_problem(path):
        raise ConfigError(f"{key} = {shown(path)}: {problem}")
    if folder is None or path.startswith("package:") or "://" in path:
        return path
    try:
        if not glob.has_magic(path) or (folder / path).exists():
            return str((folder / path).resolve())
        parts = Path(path).parts
        plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        return str(Path(glob.escape(str(folder.joinpath(*parts[:plain]).resolve())), *parts[plain:]))
    except (OSError, RuntimeError) as error:  # a link that leads to itself, or a folder that may not be read
        raise ConfigError(f"{key} = {shown(path)}: cannot be looked up ({error})") from error


def _apply(table: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in the parsed TOML."""
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not (equals and len(path) > 1 and all(path)):
        raise ConfigError(f"--set {override}: expected section.key=value, such as train.epochs=5")
    try:
        value = _parse(f"value = {text}")["value"]
    except ValueError:
        value = text.strip()
    for part in path[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            cannot = f"so --set {override} cannot change it; write [{part}]"
            raise ConfigError(f"{part} = {shown(inner)}: is not a section, {cannot}")
        table = inner
    table[path[-1]] = value
