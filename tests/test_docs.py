"""The documents: short sentences, links that resolve, valid configurations, and commands that run.

Every command of a fenced `sh` block has a row in `COMMANDS`, which says how it is run here: as it is in a small project, in a
reduced form, or only parsed where it needs a network, hours, or files that only its user has. A command without a row fails.
"""

import importlib.util
import json
import re
import shlex
import shutil
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w
import typer

from llueve.cli.main import EXIT_CODES, app, main
from llueve.cli.openltm import run as run_openltm
from llueve.config import load_config, load_pretrain_config, parse_config, parse_pretrain_config
from llueve.stability.diagnosis.causes import Cause
from llueve.stability.reading import FaultKind

ROOT = Path(__file__).parents[1]
GENERATED = (ROOT / "docs/cli.md", ROOT / "docs/configuration.md")
"""Pages of `docs/generate.py`: their synopses are blocks without a language."""
GUIDES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))
MOST_WORDS = 35
LANGUAGES = ("sh", "toml", "python", "text")
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.M | re.S)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^()\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    path: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str, paths: tuple[Path, ...] = GUIDES) -> list[Block]:
    found = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for fence in FENCE.finditer(text):
            if not languages or fence["language"] in languages:
                line = text.count("\n", 0, fence.start()) + 1
                found.append(Block(path, line, fence["language"], textwrap.dedent(fence["body"])))
    return found


def prose(path: Path) -> str:
    """The text of a document without its blocks and comments."""
    return re.sub(r"<!--.*?-->", "", FENCE.sub("", path.read_text(encoding="utf-8")), flags=re.S)


# Sentences and links


def sentences(path: Path) -> Iterator[str]:
    """Sentences outside of blocks and tables; a span of code counts as one word."""
    lines = ["" if line.lstrip().startswith("|") else line for line in prose(path).splitlines()]
    text = re.sub(r"\]\([^()\s]+\)", "]", CODE.sub("code", "\n".join(lines)))
    for paragraph in re.split(r"\n\s*\n|\n\s*(?:[-*]|\d+\.)\s|\n(?=#)", text):
        yield from re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split()))


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sentences_are_short(path: Path) -> None:
    assert [each for each in sentences(path) if len(each.split()) > MOST_WORDS] == []


def test_a_long_sentence_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text(f"- {'word ' * 36}end.\n\n| {'cell ' * 40} |\n\n```text\n{'code ' * 40}\n```\n")
    assert [len(each.split()) for each in sentences(tmp_path / "a.md") if each] == [38]


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(path), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path: Path) -> None:
    broken = []
    for link in LINK.finditer(CODE.sub("", prose(path))):
        file, _, anchor = link["target"].partition("#")
        if "://" in link["target"]:
            continue
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link["target"])
    assert broken == []


def test_the_index_names_every_document() -> None:
    index = prose(ROOT / "docs/index.md")
    pages = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "index.md"]
    assert [name for name in pages if f"({name})" not in index] == []


def test_the_decisions_are_listed() -> None:
    index = prose(ROOT / "docs/decisions/README.md")
    names = [path.name for path in (ROOT / "docs/decisions").glob("0*.md")]
    assert [name for name in names if f"({name})" not in index] == []


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_scripts_that_are_named_exist(path: Path) -> None:
    missing = []
    for code in CODE.findall(prose(path)):
        words = code.strip("`").split()
        if words[:2] == ["python", "-m"]:
            module = words[2].replace(".", "/")
            words = [module if (ROOT / module).is_dir() else f"{module}.py", *words[3:]]
        words = words[1:] if words[:1] == ["python"] else words
        if not words or not re.fullmatch(r"(benchmarks|examples|tests|docs|src)/[\w./-]+", words[0]):
            continue
        file = ROOT / words[0]
        if not file.exists():
            missing.append(code)
        elif words[0].startswith("benchmarks/"):
            source = "".join(each.read_text() for each in ([file] if file.is_file() else file.glob("*.py")))
            flags = [word.strip("[]-") for word in words if word.strip("[").startswith("--")]
            missing += [f"{code}: {flag}" for flag in flags if not re.search(rf'--{flag}\b|"{flag}"', source)]
    assert missing == []


def test_every_block_has_a_language() -> None:
    assert [str(each) for each in blocks() if each.language not in LANGUAGES and each.path not in GENERATED] == []


# Tables that list what the code has


def first_cells(path: Path, heading: str) -> list[str]:
    """The code spans in the first cell of each row under a heading."""
    part = prose(path).split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in part.splitlines() if line.startswith("| `")]
    return [code.strip("`") for cell in cells for code in CODE.findall(cell)]


def test_the_guide_lists_what_the_guard_refuses() -> None:
    assert sorted(first_cells(ROOT / "docs/stability.md", "What the guard checks")) == sorted(FaultKind)


def test_the_guide_lists_every_cause() -> None:
    named = first_cells(ROOT / "docs/stability.md", "Causes and actions")
    assert sorted(named) == sorted(Cause)


def test_the_audits_findings_are_listed() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/llueve/audit").glob("*.py"))
    codes = set(re.findall(r'Finding\(\s*"(\w+)"', sources)) - {"crosses_sites", "split_by_row"}  # of --concatenated
    assert codes and codes <= set(first_cells(ROOT / "docs/audit.md", "Findings"))


def test_the_exit_codes_are_listed() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| ", prose(ROOT / "README.md"), re.M)
    assert sorted(int(code) for row in rows for code in row.split(",")) == sorted(EXIT_CODES)


# Configurations

SMALLEST = {
    "data": {"path": "weather.csv"},
    "target": {"variable": "tp", "threshold_mm": 1.0},
    "split": {"validation_fraction": 0.2, "test_fraction": 0.2},
    "windows": {"context": 8},
}
REPLACED = ("target", "split")
"""Sections whose keys exclude each other, so that a fragment's section stands alone."""


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_a_configuration_is_valid(block: Block, tmp_path: Path) -> None:
    table = tomllib.loads(block.text)
    if "corpus" in table:
        parse_pretrain_config(table, str(block))
        return
    if set(SMALLEST) <= set(table):
        (tmp_path / "mine.toml").write_text(block.text, encoding="utf-8")
        load_config(tmp_path / "mine.toml")
        return
    merged = {**SMALLEST, **table}
    for name in set(SMALLEST) & set(table) - set(REPLACED):
        merged[name] = {**SMALLEST[name], **table[name]}
    parse_config(merged, str(block))


# A small project, as the README describes it

SMALL: dict[str, dict[str, Any]] = {
    "model": {"width": 8, "layers": 1, "heads": 2, "feed_forward": 8},
    "train": {"epochs": 1, "batch_size": 256, "warmup_steps": 2},
    "verify": {"bootstrap": 100, "lags": [1]},
}
QUICK = ("train.epochs=1", "model.layers=1", "verify.bootstrap=100", "verify.lags=[1]")


def weather(start: str, end: str) -> pd.DataFrame:
    """Daily weather of two stations with the columns of the README."""
    random, frames = np.random.default_rng(0), []
    for station in ("Lima", "Puno"):
        dates = pd.date_range(start, end, freq="D")
        humidity = 70 + 10 * np.convolve(random.standard_normal(len(dates) + 4), np.ones(5) / 5, mode="valid")
        frames.append(
            pd.DataFrame(
                {
                    "station": station,
                    "date": dates.strftime("%Y-%m-%d"),
                    "rain": np.where(humidity > 72, random.gamma(1, 4, len(dates)), 0).round(1),
                    "temp_max": (20 + random.standard_normal(len(dates))).round(1),
                    "humidity": humidity.round(1),
                    "notes": "",
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def hourly() -> pd.DataFrame:
    """Seventy days of one place, hour by hour."""
    random, hours = np.random.default_rng(2), 70 * 24
    return pd.DataFrame(
        {
            "time": pd.date_range("2024-01-01", periods=hours, freq="h"),
            "temperature [degC]": 20 + random.standard_normal(hours),
            "humidity [%]": 70 + random.standard_normal(hours),
            "rain [mm]": random.gamma(0.1, 1, hours),
        }
    )


def peru(folder: Path) -> None:
    """A table of two regions every 12 hours, with the columns that OpenLTM's command expects."""
    random, frames = np.random.default_rng(1), []
    for region in ("coast", "sierra"):
        times = pd.date_range("2022-01-01", periods=600, freq="12h")
        label = (np.sin(np.arange(600) / 40) + random.standard_normal(600) > 0).astype(int)
        columns = {"tp": random.gamma(1, 1e-3, 600), "t2m": 290 + random.standard_normal(600), "rain_24h": label}
        frames.append(pd.DataFrame({"timestamp": times, "region": region, **columns}))
    folder.mkdir()
    pd.concat(frames).to_csv(folder / "peru_rainfall.csv", index=False)


def readme_configuration() -> dict[str, Any]:
    tables = [tomllib.loads(block.text) for block in blocks("toml", paths=(ROOT / "README.md",))]
    (whole,) = [table for table in tables if set(SMALLEST) <= set(table)]
    return whole


def llueve(*arguments: str) -> tuple[int, str]:
    """Run the command line in this process: exit code, and what it printed."""
    out = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
        patch.setattr(sys, "argv", ["llueve", *arguments])
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        with pytest.raises(SystemExit) as caught:
            main()
    assert caught.value.code is None or isinstance(caught.value.code, int)
    return caught.value.code or 0, out.getvalue()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a table, a configuration, a run, a run with a refused step, and a checkpoint; it is the current folder."""
    folder = tmp_path_factory.mktemp("project")
    table = weather("2019-01-01", "2022-12-31")
    table.to_csv(folder / "weather.csv", index=False)
    weather("2022-11-01", "2022-12-31").drop(columns="notes").to_csv(folder / "new.csv", index=False)
    table.loc[1, "temp_max"] = np.nan  # in the first two windows of Lima
    table.drop(columns="notes").to_csv(folder / "holes.csv", index=False)
    peru(folder / "data")
    hourly().to_csv(folder / "hourly.csv", index=False)
    mine = {**readme_configuration()}
    mine.update({name: {**mine.get(name, {}), **keys} for name, keys in SMALL.items()})
    holes = {**mine, "data": {**mine["data"], "path": "holes.csv", "exclude": []}}
    (folder / "mine.toml").write_text(tomli_w.dumps(mine), encoding="utf-8")
    (folder / "holes.toml").write_text(tomli_w.dumps(holes), encoding="utf-8")
    shutil.copytree(ROOT / "examples", folder / "examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in (
            ("train", "mine.toml", "--run", "runs/mine"),
            ("train", "holes.toml", "--run", "runs/refused", *RAW),
            ("checkpoint", "convert", "runs/mine", "--to", "openltm", "--output", "."),
        ):
            code, printed = llueve(*arguments)
            assert code == 0, printed
        assert (folder / "runs/refused/incidents/001").is_dir()
        yield folder


RAW = ("--set", "windows.missing=raw", "--set", "guard.max_skipped=1")

# Commands

Way = Callable[[list[str]], None]
REFUSED = {
    "runs/mine": "runs/refused",
    "runs/demo": "runs/refused",
    "runs/raw": "runs/refused",
    "runs/seattle": "runs/refused",
}


def sets(*overrides: str) -> tuple[str, ...]:
    return tuple(word for override in overrides for word in ("--set", override))


def runs(*extra: str, code: int = 0, instead: dict[str, str] | None = None) -> Way:
    """Run it in the project, with words replaced and others added."""

    def way(words: list[str]) -> None:
        found, printed = llueve(*((instead or {}).get(word, word) for word in words[1:]), *extra)
        assert found == code, printed

    return way


def parses(words: list[str]) -> None:
    """Only parse it: the command, its arguments and its options exist."""
    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(words[0], rest)
    for word in rest:
        if word.startswith("examples/"):
            (load_pretrain_config if words[1] == "pretrain" else load_config)(ROOT / word)


def makes(words: list[str]) -> None:
    """The target is in the Makefile."""
    assert words[0] == "make" and re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)


def installs(words: list[str]) -> None:
    """The extra is in pyproject.toml, and files that are named exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[:2] == ["pip", "install"] and re.search(r"\[(\w+)\]$", words[-1])[1] in extras  # type: ignore[index]
    assert "--constraint" not in words or (ROOT / words[words.index("--constraint") + 1]).is_file()


def activates(words: list[str]) -> None:
    """The Makefile makes this environment, by Python's own module."""
    assert ".venv" in words[-1] and "BIN := .venv/bin" in (ROOT / "Makefile").read_text()
    assert importlib.util.find_spec("venv") is not None


def starts_processes(words: list[str]) -> None:
    """torchrun takes its part of the command, and llueve the rest."""
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(words[1:])
    assert parsed.module and parsed.training_script == "llueve"
    parses(["llueve", *parsed.training_script_args])


def maps_flags(words: list[str]) -> None:
    """Run OpenLTM's command, for one epoch and with a context that fits the small table."""
    assert words[:2] == ["python", "run.py"] and (ROOT / "run.py").is_file()
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        run_openltm([*words[2:], "--seq_len", "24", "--train_epochs", "1"])
    assert Path("runs/peru/verification.json").is_file()


def is_tool(words: list[str]) -> None:
    """A development tool that the extra `dev` installs, on paths that exist."""
    words = words[2:] if words[:2] == ["python", "-m"] else words
    metadata.distribution(words[0])
    assert [word for word in words if "/" in word and not (ROOT / word).exists()] == []


COMMANDS: dict[str, Way] = {
    # Installation
    "make demo": makes,
    "make test": makes,
    "make lint": makes,
    "make types": makes,
    "make docs": makes,
    "make clean": makes,
    "python3 -m venv .venv": activates,
    "source .venv/bin/activate": activates,
    "pip install --constraint constraints.txt --editable '.[demo]'": installs,
    "pip install 'llueve[cds]'": installs,
    "pip install 'llueve[track]'": installs,
    "python -m pytest -q tests/test_config.py": is_tool,
    "ruff check src tests": is_tool,
    "ruff format src tests": is_tool,
    "mypy": is_tool,
    # As it is, in the small project
    "llueve --help": runs(),
    "llueve config check mine.toml": runs(),
    "llueve audit mine.toml": runs(),
    "llueve audit mine.toml --json": runs(),
    "llueve predict runs/mine new.csv": runs(),
    "llueve predict runs/mine new.csv --all --output p.csv": runs(),
    "llueve evaluate runs/mine": runs(),
    "llueve evaluate runs/mine --json": runs(),
    "llueve evaluate runs/mine --set verify.bootstrap=200": runs(),
    "llueve evaluate --predictions runs/mine/predictions.csv --output report.json": runs(),
    "llueve evaluate --predictions runs/mine/predictions.csv": runs(),
    "llueve evaluate --predictions mean.csv": runs(instead={"mean.csv": "runs/mine/predictions.csv"}),
    "llueve train mine.toml --run runs/mine --resume": runs(),
    "llueve train mine.toml --run runs/tracked --set track.tensorboard=true": runs(),
    "llueve checkpoint inspect checkpoint.pth": runs(),
    "llueve checkpoint inspect checkpoint.pth --json": runs(),
    "llueve checkpoint convert runs/mine --to openltm --output out": runs(),
    # Reduced: a run that exists, fewer epochs, or another table
    "llueve train examples/seattle.toml --run runs/seattle": runs(*sets(*QUICK)),
    "llueve evaluate runs/seattle --json": runs(instead={"runs/seattle": "runs/mine"}),
    "llueve predict runs/seattle new.csv --output forecasts.csv": runs(instead={"runs/seattle": "runs/mine"}),
    "llueve audit examples/seattle.toml --json": runs(),
    "llueve config check examples/seattle.toml --set train.epochs=5": runs(),
    "llueve checkpoint convert runs/seattle --to openltm --output converted": runs(
        instead={"runs/seattle": "runs/mine"}
    ),
    "llueve incident list runs/seattle": runs(instead=REFUSED),
    "llueve incident show runs/seattle 1": runs(instead=REFUSED),
    "llueve incident replay runs/seattle 1": runs(instead=REFUSED),
    "llueve incident explain runs/seattle --all --language es": runs(instead=REFUSED),
    "llueve train mine.toml --run runs/mine": runs("--overwrite"),
    "llueve train mine.toml --run runs/mine --overwrite --set train.epochs=5": runs(*sets("train.epochs=1")),
    "llueve train examples/brazil.toml --run runs/alone --set 'model.sites=\"alone\"'": parses,
    "llueve evaluate runs/demo": runs(instead={"runs/demo": "runs/mine"}),
    "llueve train lima.toml --run runs/lima": runs(instead={"lima.toml": "mine.toml"}),
    "llueve incident list runs/demo": runs(instead=REFUSED),
    "llueve incident list runs/mine": runs(instead=REFUSED),
    "llueve incident explain runs/mine": runs(instead=REFUSED),
    "llueve incident show runs/mine 1": runs(instead=REFUSED),
    "llueve incident replay runs/mine 1": runs(instead=REFUSED),
    "llueve incident explain runs/mine 1": runs(instead=REFUSED),
    "llueve incident explain runs/mine 1 --language es": runs(instead=REFUSED),
    "llueve incident explain runs/mine --all": runs(instead=REFUSED),
    "llueve incident explain runs/raw": runs(instead=REFUSED),
    f"llueve train examples/seed_case.toml --run runs/raw {' '.join(RAW)}": runs(
        instead={"examples/seed_case.toml": "holes.toml"}
    ),
    "llueve audit examples/seed_case.toml --concatenated --context 1440 --batch-size 16": runs(
        instead={"examples/seed_case.toml": "holes.toml", "1440": "32"}, code=4
    ),
    "python run.py --task_name classification --is_training 1 --model_id peru --model timer_xl_classifier --data PeruRainfall"
    " --root_path data/ --data_path peru_rainfall.csv --checkpoints runs/ --seq_len 1440 --input_token_len 96"
    " --output_token_len 96 --use_norm --adaptation --pretrain_model_path checkpoint.pth --learning_rate 1e-6"
    " --batch_size 16": maps_flags,
    # Only parsed: they need a network, an archive, a corpus, or several processes
    "llueve pretrain examples/pretrain.toml --list": parses,
    "llueve pretrain examples/pretrain.toml --list --json": parses,
    "llueve pretrain examples/pretrain.toml --run runs/encoder": parses,
    "llueve pretrain examples/pretrain.toml --run runs/encoder --resume": parses,
    "torchrun --nproc-per-node=2 -m llueve pretrain examples/pretrain.toml -r runs/encoder": starts_processes,
    "llueve forecast --input hourly.csv": runs(),
    # Only parsed: they need a network, an archive, a model card, or several processes
    "llueve forecast --latitude -12.05 --longitude -77.04": parses,
    "llueve forecast --input hourly.csv --latitude -12.05 --longitude -77.04 --json": runs(),
    "llueve data openmeteo --latitude -12.05 --longitude -77.04 --site Lima --start 2015-01-01 --end 2024-12-31"
    " --output lima.csv": parses,
    "llueve data openmeteo --latitude -12.05 --longitude -77.04 --site Lima --start 2015-01-01 --end 2024-12-31"
    " --surroundings --output lima.parquet": parses,
    "llueve data era5 --area 0 -82 -18 -68 --start 2020-01-01 --end 2023-12-31 --output era5": parses,
    "llueve data openmeteo --latitude -12 --longitude -77 --start 2015-01-01 --end 2023-12-31 --output lima.csv": parses,
    "llueve data era5 --area 0 -82 -18 -68 --start 2015-01-01 --end 2023-12-31 --output peru": parses,
    "llueve data era5 --area 0 -82 -18 -68 --start 2020-01-01 --end 2023-12-31 --variables tp,t2m,d2m,u10,v10,msl"
    " --output era5-peru": parses,
    "llueve audit examples/peru_era5.toml": parses,
    "llueve train examples/peru_era5.toml --run runs/peru": parses,
    "llueve predict runs/peru newer.nc": parses,
    "torchrun --nproc-per-node=2 -m llueve train mine.toml -r runs/mine": starts_processes,
    "torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=FIRST:29400 --rdzv-id=mine -m llueve train"
    " mine.toml -r runs/mine": starts_processes,
}


def commands() -> dict[str, str]:
    """Every command of the documents once, without its comment, and where it first is."""
    found: dict[str, str] = {}
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            command = " ".join(re.sub(r"\s#.*$", "", line).split())
            if command:
                found.setdefault(command, str(block))
    return found


def test_every_command_is_accounted_for() -> None:
    assert {place: command for command, place in commands().items() if command not in COMMANDS} == {}


def test_no_row_is_left_over() -> None:
    assert sorted(set(COMMANDS) - set(commands())) == []


@pytest.mark.parametrize("command", [command for command in commands() if command in COMMANDS])
def test_a_command_works(command: str, project: Path) -> None:
    COMMANDS[command](shlex.split(command))


@pytest.mark.parametrize(
    ("command", "message"),
    [("llueve train", "Missing parameter: config"), ("llueve evaluate runs/mine --wrong", "No such option: --wrong")],
)
def test_a_wrong_command_is_not_parsed(command: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        parses(shlex.split(command))


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_a_python_block_runs(block: Block, project: Path) -> None:
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        exec(compile(block.text, str(block), "exec"), {})


def test_every_key_of_a_verification_is_defined(project: Path) -> None:
    def keys(table: dict[str, Any]) -> Iterator[str]:
        for key, value in table.items():
            yield key
            yield from keys(value) if isinstance(value, dict) else ()

    page = prose(ROOT / "docs/verification.md")
    verification = json.loads((project / "runs/mine/verification.json").read_text(encoding="utf-8"))
    assert sorted({key for key in keys(verification) if f"`{key}`" not in page}) == []
