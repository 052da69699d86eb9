"""Two thousand command lines with mutated arguments: success, a refusal with its exit code, or wrong use; no traceback."""

import random
import shutil
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer

from llueve.cli import main as cli
from llueve.runs.directory import INCIDENTS

CASES = 2000
PATHS = (
    "", ".", "run/..", "\0", "x\0y", "x" * 300, "x/" * 3000, "nowhere/x.csv", "é🌧.toml", "\udcff.toml", "-", "--", "/dev/null",
    "*", "[", "**/*.csv", "hf://", "hf://a", "hf://a/b@", "s3:x", "package:llueve", "package:x/y.csv", "package:", "a\nb", "none",
    "config.toml", "table.csv", "run", "run/model.json", "run/model.safetensors", "run/incidents/001", "empty", "/dev/full",
)  # fmt: skip
WORDS = (
    "",
    "0",
    "1",
    "-1",
    "9" * 5000,
    "1e999",
    "nan",
    "x",
    "\0",
    "é",
    "--all",
    "--json",
    "--help",
    "²",
    "1_0",
    " 1",
    "0x1",
)
SETS = (
    "", "=", "a=b", "train.epochs=", "train.epochs=0x" + "f" * 5000, "train.epochs=" + "9" * 5000, "a." * 3000 + "b=1",
    "data.path=" + "[" * 5000, "model.layers=256", "train={}", "train.x.y=1", "\0.\0=1", "data.path=x\0",
    "data.path=" + "x" * 300,     "data.exclude=[[]]",
    "regions.a.box=[1,2,3,4]", "split.test_start=9999-12-31", "features.wind={a=1}", "windows.context=9", "windows.context=1e9",
    "model.pretrained=none", "target.label=é", "data.format=era5", "data.time_zone=x", "target.horizon_hours=1",
)  # fmt: skip


def a_command(draw: random.Random) -> list[str]:
    """A command with arguments of which some are right."""
    path = draw.choice(("config.toml", "run", draw.choice(PATHS), draw.choice(PATHS)))
    word, json = draw.choice(WORDS), draw.choice(([], ["--json"]))
    sets = [part for _ in range(draw.choice((0, 1, 1, 2))) for part in ("--set", draw.choice(SETS))]
    # The first day is after the last one, so that no download begins.
    days = ["--start", draw.choice(("2021-01-01", word)), "--end", draw.choice(("2020-01-02", word))]
    wanted = ["--output", draw.choice((draw.choice(PATHS), "new.csv"))]
    point = ["--latitude", draw.choice(("1", word)), "--longitude", draw.choice(("2", word))]
    area = ["--area", "1", draw.choice(("2", word)), "0", "3"]
    return draw.choice((
        ["config", "check", path, *sets],
        ["config", "check", "config.toml", *sets],
        ["audit", path, *sets, *draw.choice(([], ["--context", word], ["--batch-size", word], ["--concatenated"])), *json],
        ["train", path, "--run", draw.choice(PATHS), "--set", "data.path=nowhere.csv"],
        ["evaluate", draw.choice(PATHS), *json],
        ["predict", draw.choice(("run", path)), draw.choice(PATHS)],
        ["predict", "run", "table.csv", "--output", draw.choice(PATHS)],
        ["forecast", "--input", draw.choice(("table.csv", path)), *json],
        ["checkpoint", "inspect", path, *json],
        ["checkpoint", "convert", path, "--to", draw.choice(("openltm", "safetensors", word)), "--output", draw.choice(PATHS)],
        ["incident", "list", path, *json],
        ["incident", draw.choice(("show", "replay", "explain")), path, word, *json],
        ["incident", "show", "run", word, *json],
        ["data", "openmeteo", *point, *days, *wanted, "--url", word],
        ["data", "era5", *area, *days, "--output", draw.choice(PATHS), "--parallel", draw.choice(("17", word))],
        [word, *sets],
    ))  # fmt: skip


def mutated(command: list[str], draw: random.Random) -> list[str]:
    """The command with an argument left out, repeated, moved or cut, now and then."""
    changed = list(command)
    if draw.random() < 0.3:
        at, kind = draw.randrange(len(changed)), draw.randrange(4)
        if kind == 0:
            del changed[at]
        elif kind == 1:
            changed.insert(at, changed[at])
        elif kind == 2:
            changed.append(changed.pop(at))
        else:
            changed[at] = changed[at][: draw.randrange(len(changed[at]) + 1)]
    return changed


def test_a_mutated_command(project: Path, tmp_path: Path, limits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.toml", "table.csv"):
        shutil.copy(project / name, tmp_path)
    shutil.copytree(project / "run", tmp_path / "run", ignore=shutil.ignore_patterns(INCIDENTS))
    shutil.copytree(project / "run" / INCIDENTS / "001", tmp_path / "run" / INCIDENTS / "001")
    (tmp_path / "empty").mkdir()
    for name in ("HOME", "HF_HOME", "CDSAPI_RC"):
        monkeypatch.setenv(name, str(tmp_path / "empty"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    draw, command_line = random.Random(4), typer.main.get_command(cli.app)
    with chdir(tmp_path):
        for number in range(CASES):
            command, err = mutated(a_command(draw), draw), StringIO()
            monkeypatch.setattr(sys, "argv", ["llueve", *command])
            with limits.case((number, command)), redirect_stdout(StringIO()), redirect_stderr(err):
                with pytest.raises(SystemExit) as end:
                    cli.main(command_line)
                assert end.value.code in (None, 0, 1, 2, 3, 4)
                limits.refused += bool(end.value.code)
                assert "Traceback" not in err.getvalue()
