"""The pages that `docs/generate.py` writes: up to date, complete, and with examples that work."""

import runpy
import shlex
import tomllib
from pathlib import Path

import pytest

import llueve
from llueve.cli.openltm.flags import IGNORED_FLAGS, MAPPED_FLAGS
from llueve.config import Config, parse_config

DOCS = Path(__file__).parents[1] / "docs"
GENERATOR = runpy.run_path(str(DOCS / "generate.py"))
SECTIONS = list(GENERATOR["sections"]())
COMMANDS = list(GENERATOR["commands"]())
CONFIGURATION, CLI = GENERATOR["configuration_page"](), GENERATOR["cli_page"]()
SMALLEST = {
    "data": {"path": "table.csv"},
    "target": {"label": "rain"},
    "split": {"validation_fraction": 0.2, "test_fraction": 0.2},
    "windows": {"context": 8},
}


@pytest.mark.parametrize("name", GENERATOR["PAGES"])
def test_a_page_is_up_to_date(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    assert text == GENERATOR["PAGES"][name](), f"docs/{name} is stale: run `make docs`"


def part(page, heading):
    """The text under one heading."""
    assert page.count(f"\n## `{heading}`\n") == 1
    return page.split(f"\n## `{heading}`\n")[1].split("\n## ")[0]


def test_every_section_is_there_in_the_order_of_the_configuration():
    names = [name for name, _, _ in SECTIONS]
    assert [name for name in names if "." not in name] == list(Config.model_fields)
    assert {"train.phases", "features.rolling"} <= set(names)


@pytest.mark.parametrize(("name", "section", "header"), SECTIONS, ids=[name for name, _, _ in SECTIONS])
def test_every_key_appears_with_its_type_and_meaning(name, section, header):
    rows = [line.strip("| ").split(" | ") for line in part(CONFIGURATION, header).splitlines() if line[:3] == "| `"]
    assert [row[0].strip("`") for row in rows] == list(section.model_fields)
    for row in rows:
        assert len(row) == 4 and all(row), f"{header} {row[0]}: expected type, default, and a docstring as its meaning"


@pytest.mark.parametrize(("name", "header"), [(name, header) for name, _, header in SECTIONS])
def test_the_example_of_a_section_is_valid(name, header):
    text = part(CONFIGURATION, header).split("```toml")[1].split("```")[0]
    example = tomllib.loads(text)
    assert list(example) == [name.partition(".")[0]]
    parse_config({**SMALLEST, **example}, where=header)


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[path for path, _ in COMMANDS])
def test_every_command_has_its_parameters_exit_codes_and_an_example(path, command):
    text = part(CLI, path)
    for parameter in command.params:
        names = parameter.opts if parameter.opts[0].startswith("-") else [parameter.metavar]
        assert parameter.help and all(f"`{name}`" in text for name in names)
    assert "Exit codes: 0, 1, 2" in text
    example = text.split("```sh\n")[-1].split("```")[0].strip()
    assert example.startswith(f"{path} ")
    command.make_context(path, shlex.split(example.removeprefix(path)))  # raises for wrong use


def test_every_flag_of_openltm_appears():
    text = part(CLI, "python run.py")
    assert [name for name in MAPPED_FLAGS | IGNORED_FLAGS if f"`--{name}`" not in text] == []


def test_every_file_of_the_package_has_its_row():
    page = GENERATOR["layout_page"]()
    section = page.split("<!-- files: start -->")[1].split("<!-- files: end -->")[0]
    rows = dict(line.removeprefix("| `").removesuffix(" |").split("` | ") for line in section.splitlines()[4:-1])
    source = Path(llueve.__file__).parent
    files = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    assert set(rows) == {name for name in files if not name.endswith("/__init__.py")}
    assert list(rows) == sorted(rows, key=lambda name: (Path(name).parent, Path(name).name))
    assert all(sentence[-1] in ".!?" and "\n" not in sentence for sentence in rows.values())
    assert rows["pipeline.py"] == "Read first: from a table to a verified model."


@pytest.mark.parametrize("page", [CONFIGURATION, CLI], ids=["configuration", "cli"])
def test_a_page_is_the_same_each_time_and_ends_with_one_newline(page):
    again = runpy.run_path(str(DOCS / "generate.py"))
    assert page in (again["configuration_page"](), again["cli_page"]())
    assert page.endswith("\n") and not page.endswith("\n\n")
