"""Standard output on a full disk, closed, or a pipe without a reader: an error of llueve, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
[data]
path = "table.csv"
[target]
label = "rain"
[split]
validation_fraction = 0.2
test_fraction = 0.2
[windows]
context = 8
"""


def llueve(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a shell with its output redirected."""
    command = " ".join((sys.executable, "-m", "llueve", *arguments, redirection))
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "config.toml").write_text(CONFIG)
    return str(tmp_path / "config.toml")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("help_page", [True, False])
def test_a_full_disk(config: str, help_page: bool) -> None:
    done = llueve("> /dev/full", *(["--help"] if help_page else ["config", "check", config]))
    assert done.returncode == 1
    assert done.stderr.startswith("error: standard output: cannot be written (No space left on device)")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", ["--version", "config check"])
def test_a_pipe_without_a_reader(config: str, arguments: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    given = arguments.split() + [config] * (arguments != "--version")
    command = [sys.executable, "-m", "llueve", *given]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 1 and done.stderr.startswith("error: standard output: cannot be written")
    assert done.stderr.count("\n") == 1


def test_a_closed_output(config: str) -> None:
    done = llueve(">&-", "config", "check", config)
    assert (done.returncode, done.stdout) == (1, "") and "error: standard output: is closed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_standard_error_changes_no_result_and_no_exit_code(config: str) -> None:
    assert llueve("2>&-", "config", "check", config).stdout == llueve("", "config", "check", config).stdout
    assert llueve("2>&-", "config", "check", "nowhere.toml").returncode == 2


def test_a_name_that_is_no_text_is_printed_as_codes() -> None:
    done = llueve("", "config", "check", "$'\\xff.toml'")
    assert done.returncode == 2 and "\\udcff.toml" in done.stderr and "Traceback" not in done.stderr
