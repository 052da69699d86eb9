"""What others may rely on, frozen; and who may import whom."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

import llueve
from llueve import errors
from llueve.cli.main import app
from llueve.runs import directory as run_files

SOURCE = Path(llueve.__file__).parent
PACKAGE = SOURCE.name


# Frozen names: change them here only together with the documentation


def test_the_commands_and_their_parameters() -> None:
    def walk(command: object, path: str) -> Iterator[tuple[str, dict[str, list[str]]]]:
        children = getattr(command, "commands", {})
        parameters = {
            parameter.name: [*parameter.opts, *parameter.secondary_opts]
            for parameter in command.params  # type: ignore[attr-defined]
        }
        if parameters or not children:
            yield path, parameters
        for name, child in children.items():
            yield from walk(child, f"{path} {name}".strip())

    assert dict(walk(typer.main.get_command(app), "")) == {
        "": {"version": ["--version"]},
        "train": {
            "config": ["config"],
            "run": ["--run", "-r"],
            "overwrite": ["--overwrite"],
            "resume": ["--resume"],
            "overrides": ["--set"],
        },
        "pretrain": {
            "config": ["config"],
            "run": ["--run", "-r"],
            "list_sites": ["--list"],
            "overwrite": ["--overwrite"],
            "resume": ["--resume"],
            "as_json": ["--json"],
            "overrides": ["--set"],
        },
        "evaluate": {
            "run": ["run"],
            "predictions": ["--predictions"],
            "as_json": ["--json"],
            "output": ["--output"],
            "overrides": ["--set"],
        },
        "predict": {"run": ["run"], "table": ["table"], "every_window": ["--all"], "output": ["--output"]},
        "forecast": {
            "latitude": ["--latitude"],
            "longitude": ["--longitude"],
            "table": ["--input"],
            "no_cache": ["--no-cache"],
            "as_json": ["--json"],
        },
        "audit": {
            "config": ["config"],
            "overrides": ["--set"],
            "concatenated": ["--concatenated"],
            "context": ["--context"],
            "batch_size": ["--batch-size"],
            "as_json": ["--json"],
        },
        "config check": {"config": ["config"], "overrides": ["--set"]},
        "checkpoint inspect": {"file": ["file"], "as_json": ["--json"]},
        "checkpoint convert": {
            "file": ["file"],
            "to": ["--to"],
            "output": ["--output"],
            "allow_missing": ["--allow-missing"],
        },
        "incident list": {"run": ["run"], "as_json": ["--json"]},
        "incident show": {"run": ["run"], "number": ["number"], "as_json": ["--json"]},
        "incident replay": {"run": ["run"], "number": ["number"], "as_json": ["--json"]},
        "incident explain": {
            "run": ["run"],
            "number": ["number"],
            "whole_run": ["--all"],
            "language": ["--language"],
            "as_json": ["--json"],
        },
        "data openmeteo": {
            "latitude": ["--latitude"],
            "longitude": ["--longitude"],
            "start": ["--start"],
            "end": ["--end"],
            "output": ["--output"],
            "site": ["--site"],
            "variables": ["--variables"],
            "model": ["--model"],
            "url": ["--url"],
            "surroundings": ["--surroundings"],
            "overwrite": ["--overwrite"],
        },
        "data era5": {
            "area": ["--area"],
            "start": ["--start"],
            "end": ["--end"],
            "output": ["--output"],
            "variables": ["--variables"],
            "dataset": ["--dataset"],
            "parallel": ["--parallel"],
        },
    }


def test_the_exported_names() -> None:
    assert llueve.__all__ == [
        "Config",
        "LlueveError",
        "Result",
        "TimerXLForClassification",
        "evaluate",
        "forecast",
        "load_config",
        "load_pretrained",
        "predict",
        "train",
    ]


@pytest.mark.parametrize("name", llueve.__all__)
def test_every_exported_name_exists(name: str) -> None:
    assert getattr(llueve, name) is not None


def test_a_name_that_is_not_exported() -> None:
    with pytest.raises(AttributeError, match="'llueve' has no attribute 'prognosis'"):
        llueve.prognosis  # noqa: B018


def test_the_errors_their_exit_codes_and_parents() -> None:
    tree = {
        name: (kind.exit_code, [parent.__name__ for parent in kind.__bases__])
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert tree == {
        "LlueveError": (1, ["Exception"]),
        "ConfigError": (2, ["LlueveError", "ValueError"]),
        "UsageError": (2, ["LlueveError", "ValueError"]),
        "DataError": (1, ["LlueveError", "ValueError"]),
        "AuditError": (4, ["LlueveError"]),
        "GuardStop": (3, ["LlueveError"]),
        "RunError": (1, ["LlueveError"]),
        "CheckpointError": (1, ["LlueveError", "ValueError"]),
        "WorkerLost": (1, ["LlueveError"]),
        "Interrupted": (1, ["LlueveError"]),  # and 128 + signal on each instance
    }


def test_the_files_of_a_run() -> None:
    assert run_files.FILES == (
        "config.toml",
        "audit.json",
        "history.jsonl",
        "model.safetensors",
        "model.json",
        "predictions.csv",
        "verification.json",
    )
    assert run_files.PRETRAINING_FILES == ("encoder.safetensors", "model_card.json", "MODEL_CARD.md")
    assert (run_files.INCIDENTS, run_files.INCIDENT, run_files.EXPLANATION) == (
        "incidents",
        "step.safetensors",
        "explanation.json",
    )


# Imports

LIGHT = (
    "sources",
    "samples",
    "audit",
    "calibration",
    "panel",
    "config",
    "quantities",
    "errors",
    "files",
    "progress",
    "version",
    "verification",
    "runs.directory",
)
"""Modules and packages that never import torch."""


def module_name(path: Path) -> str:
    parts = [PACKAGE, *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def trees() -> Iterator[tuple[str, ast.Module]]:
    for name, path in MODULES.items():
        yield name, ast.parse(path.read_text(encoding="utf-8"), str(path))


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node except those that only a type checker sees."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from statements(node)


@cache
def imports() -> dict[str, frozenset[str]]:
    """What each module imports, at its top or inside a function."""
    found = {}
    for name, tree in trees():
        names: set[str] = set()
        for node in statements(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0 and node.module is not None, f"{name}: relative import"
                # `from package import module` imports the module, `from module import name` does not.
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= inner & set(MODULES)
                if inner - set(MODULES):
                    names.add(node.module)
        found[name] = frozenset(names)
    return found


def reached(start: str) -> dict[str, str]:
    """Everything that importing `start` imports, each with the chain that leads there."""
    chains = {start: start}
    waiting = [start]
    while waiting:
        here = waiting.pop()
        for name in imports().get(here, ()):
            if name not in chains:
                chains[name] = f"{chains[here]} -> {name}"
                waiting.append(name)
    return chains


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def modules_of(*parts: str) -> list[str]:
    chosen = [name for name in MODULES if any(inside(name, f"{PACKAGE}.{part}") for part in parts)]
    assert all(any(inside(name, f"{PACKAGE}.{part}") for name in chosen) for part in parts)
    return chosen


@pytest.mark.parametrize("name", [PACKAGE, *modules_of(*LIGHT)])
def test_light_modules_do_not_reach_torch(name: str) -> None:
    # The package itself and the command line import torch on demand, which `test_cli` watches at run time.
    heavy = ("torch", "safetensors")
    assert [chain for at, chain in reached(name).items() if any(inside(at, other) for other in heavy)] == []


LAYOUT = (Path(__file__).parents[1] / "docs" / "layout.md").read_text(encoding="utf-8")
PLAN = LAYOUT.partition("## Floors")[2].partition("```text")[2].partition("```")[0]
FLOORS = tuple(tuple(line.split()) for line in reversed(PLAN.strip().splitlines()))
"""The floors of docs/layout.md from the ground up: each folder or file of `src/llueve`."""
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}


def place_of(module: str) -> str:
    """The folder or file of `src/llueve` that a module belongs to."""
    return module.split(".")[1]


def own_imports() -> Iterator[tuple[str, str]]:
    """Each import between two modules of the package, the package's own face left out."""
    for name, names in imports().items():
        for other in names:
            if name != PACKAGE and other != PACKAGE and inside(other, PACKAGE):
                yield name, other


def test_every_folder_and_file_has_a_floor() -> None:
    assert {place_of(name) for name in MODULES if name != PACKAGE} == set(FLOOR)


def test_every_file_that_the_walks_name_exists() -> None:
    walks = LAYOUT.partition("## Walk of one window")[2].partition("## Who owns what")[0]
    named = re.findall(r"`([a-z_/]+\.py)", walks)
    assert len(named) > 15 and [name for name in named if not (SOURCE / name).is_file()] == []


def test_an_import_points_to_the_same_folder_or_to_a_lower_floor() -> None:
    assert [
        f"{name} -> {other}"
        for name, other in own_imports()
        if place_of(name) != place_of(other) and FLOOR[place_of(other)] >= FLOOR[place_of(name)]
    ] == []


def test_no_module_imports_the_package_itself() -> None:
    # `llueve/__init__.py` is the face of the package: it stands above the pipeline, and the version has a file below.
    assert [name for name, names in imports().items() if PACKAGE in names and name != PACKAGE] == []


def test_a_name_of_a_file_is_used_once() -> None:
    stems = [path.stem for path in MODULES.values() if path.stem not in ("__init__", "__main__")]
    assert sorted({stem for stem in stems if stems.count(stem) > 1}) == []


def test_a_name_of_a_class_is_used_once() -> None:
    names = [node.name for _, tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert sorted({name for name in names if names.count(name) > 1}) == []


@pytest.mark.parametrize("name", [PACKAGE, *modules_of("config", "panel", "samples", "sources.tables")])
def test_reading_files_reaches_no_network(name: str) -> None:
    network = ("requests", "cdsapi", "urllib", "http", "socket")
    chains = [chain for at, chain in reached(name).items() if any(inside(at, other) for other in network)]
    # The package itself reaches the pipeline, whose checkpoints come by the name of a repository.
    assert [chain for chain in chains if "pretrained" not in chain] == []


def test_no_imports_in_a_circle() -> None:
    def own(name: str) -> list[str]:
        return [other for other in imports().get(name, ()) if other in MODULES and other != PACKAGE]

    assert [name for name in MODULES for other in own(name) if name in reached(other) and other != name] == []


def test_the_light_modules_at_run_time() -> None:
    script = (
        "import importlib, json, sys\n"
        f"for name in {modules_of(*LIGHT)!r}: importlib.import_module(name)\n"
        "json.dump(sorted({'torch', 'safetensors'} & set(sys.modules)), sys.stdout)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


# Forbidden


@pytest.mark.parametrize("name", ["utils", "util", "helpers", "common", "misc"])
def test_no_module_without_a_subject(name: str) -> None:
    assert [module for module in MODULES if name in module.split(".")] == []


@pytest.mark.parametrize("name", ["print", "nan_to_num", "filterwarnings", "simplefilter", "catch_warnings", "eval"])
def test_no_call_of(name: str) -> None:
    calls = []
    for module, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            bare = isinstance(node.func, ast.Name) and node.func.id == name
            # `console.print` and `model.eval` are methods of other things.
            method = isinstance(node.func, ast.Attribute) and node.func.attr == name and name not in ("print", "eval")
            if bare or method:
                calls.append(f"{module}:{node.lineno}")
    assert calls == []


@pytest.mark.parametrize("name", ["warnings", "argparse"])
def test_no_import_of(name: str) -> None:
    assert [module for module, names in imports().items() if any(inside(other, name) for other in names)] == []


def test_of_pickle_only_what_runs_nothing() -> None:
    taken = {
        (name, alias.name)
        for name, tree in trees()
        for node in statements(tree)
        if isinstance(node, ast.ImportFrom | ast.Import)
        for alias in node.names
        if "pickle" in (getattr(node, "module", None) or alias.name)
    }
    # `pickletools` looks through a pickle without running it.
    assert taken == {
        ("llueve.model.checkpoints.pickle_scan", "pickletools"),
        ("llueve.model.checkpoints.weight_files", "CodeInPickleError"),
        ("llueve.model.checkpoints.weight_files", "UnpicklingError"),
        ("llueve.model.checkpoints.weight_files", "scan"),
    }


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name, tree in trees() if ast.get_docstring(tree) is None] == []


# Size and plain English


MANY_PARAMETERS = {"llueve.cli.data_commands.openmeteo"}
"""One parameter for each flag of the command: docs/decisions/0017-layout.md."""


def test_no_file_is_longer_than_350_lines() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_no_function_is_longer_than_60_lines_or_takes_more_than_8_parameters() -> None:
    long, many = [], set()
    for module, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([each for each in given if each.arg not in ("self", "cls")])
                long += [f"{module}.{node.name}"] if node.end_lineno - node.lineno >= 60 else []
                many |= {f"{module}.{node.name}"} if count > 8 else set()
    assert long == [] and many == MANY_PARAMETERS


def docstrings() -> Iterator[tuple[str, str]]:
    """Every docstring of a module, class, function or attribute, with its place."""
    for module, tree in trees():
        for node in ast.walk(tree):
            for each in getattr(node, "body", []) if isinstance(getattr(node, "body", []), list) else []:
                if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant):
                    yield f"{module}:{each.lineno}", str(each.value.value)


def test_a_docstring_begins_with_what_the_thing_is_or_does() -> None:
    question = re.compile(r"\s*(What|Whether|Where|How|When|Which|Who|Why)\b")
    assert [place for place, text in docstrings() if question.match(text)] == []


def test_no_sentence_of_a_docstring_has_more_than_35_words() -> None:
    def longest(text: str) -> int:
        parts = re.split(r"(?<=[.!?:;])\s|\n\s*\n|\n\s*[-*|]", re.sub(r"`[^`]*`", "x", text))
        return max(len(part.split()) for part in parts)

    assert [place for place, text in docstrings() if longest(text) > 35] == []
