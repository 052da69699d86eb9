"""What several test files build on: where the shared data lie, and small panels and configurations."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import settings

from llueve.config import Config, parse_config

sys.path.insert(0, str(Path(__file__).parent))  # `forks`

# A busy machine is no fault of the code; what is set for CI (the same examples each time) stays.
settings.register_profile("llueve", parent=settings.default, deadline=None)
settings.load_profile("llueve")

RAINY = """
[data]
path = "table.csv"
site = "site"
[target]
label = "rain"
[split]
validation_fraction = 0.2
test_fraction = 0.2
[verify]
bootstrap = 100
[windows]
context = 8
{windows}
[model]
patch_length = 4
width = 16
layers = 2
heads = 2
feed_forward = 16
{model}
"""
"""The configuration that trainings on a written table share."""

SHARED = Path(__file__).parents[2] / "shared"


SLOW_FILES = (
    "test_processes.py",
    "test_kills.py",
    "test_examples.py",
    "test_seed_case.py",
    "test_resume.py",
    "test_era5_archive.py",
    "test_hostile_files.py",
    "test_benchmarks.py",
)
"""Files that take minutes with few tests: started last, one of them would keep a single process busy at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slow files first."""
    items.sort(key=lambda item: item.path.name not in SLOW_FILES)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower on several threads, much so when another process uses a core."""
    torch.set_num_threads(1)


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """Path of a shared file; skips the test, saying why, where it is absent."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{path} is absent: this test reads real data that the repository does not carry")
        return path

    return find


@pytest.fixture(scope="session")
def write_rainy_table() -> Callable[..., Path]:
    """Write a table of daily rows at two sites, and a configuration of a small training on it; returns the latter's path."""

    def write(
        folder: Path,
        sections: str,
        *,
        days: int = 420,
        missing: float = 0.0,
        holes: tuple[int, ...] = (),
        windows: str = "",
        model: str = "",
    ) -> Path:
        random, frames = np.random.default_rng(3), []
        for number, site in enumerate(("a", "b")):
            wet = np.convolve(random.standard_normal(days), np.ones(5) / 5, mode="same")
            absent = random.random(days) < missing if missing else np.zeros(days, np.bool_)
            absent[list(holes[number : number + 1])] = True
            columns = {
                "site": site,
                "time": pd.date_range("2020-01-01", periods=days, freq="D"),
                "humidity": np.where(absent, np.nan, wet + 0.3 * random.standard_normal(days)),
                "pressure": random.standard_normal(days),
                "rain": (np.roll(wet, -1) > 0.1).astype(int),
            }
            frames.append(pd.DataFrame(columns))
        pd.concat(frames).to_csv(folder / "table.csv", index=False)
        path = folder / "config.toml"
        path.write_text(RAINY.format(windows=windows, model=model) + sections, encoding="utf-8")
        return path

    return write


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """A small valid configuration; keyword arguments are sections to merge over it."""

    def make(**sections: dict[str, Any]) -> Config:
        table: dict[str, Any] = {
            "data": {"path": "unused.csv"},
            "target": {"label": "rain", "horizon_hours": 24},
            "split": {"validation_fraction": 0.25, "test_fraction": 0.25},
            "windows": {"context": 8},
            "model": {"patch_length": 4, "width": 8, "layers": 1, "heads": 2, "feed_forward": 8},
            "train": {"epochs": 2, "batch_size": 16, "warmup_steps": 2},
            "verify": {"bootstrap": 100},
        }
        for section, values in sections.items():
            table[section] = {**table.get(section, {}), **values}
        return parse_config(table, "test")

    return make


@pytest.fixture
def make_panel() -> Callable[..., xr.Dataset]:
    """A panel with three features, some of them missing, and a label that the first feature decides."""

    def make(sites: int = 2, times: int = 120, missing: float = 0.1, seed: int = 0) -> xr.Dataset:
        random = np.random.default_rng(seed)
        cube = random.normal(size=(3, sites, times)).astype(np.float32)
        label = (cube[0] > 0).astype(np.float32)
        cube[random.random(cube.shape) < missing] = np.nan
        return xr.Dataset(
            {
                **{name: (("site", "time"), cube[i]) for i, name in enumerate(("a", "b", "c"))},
                "rain": (("site", "time"), label, {"role": "label", "classes": ["0", "1"]}),
            },
            coords={
                "site": [f"s{i}" for i in range(sites)],
                "time": np.datetime64("2020-01-01", "ns") + np.arange(times) * np.timedelta64(1, "D"),
            },
            attrs={"step_hours": 24.0, "findings": ()},
        )

    return make


@dataclass(frozen=True)
class Call:
    """One request to a local server."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


Answerer = Callable[[Call], tuple[int, dict[str, str], bytes]]
"""Status, headers and body; a Content-Length greater than the body breaks the connection in its middle."""


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answerer], str]]:
    """Serve a function on a free port of this machine; returns the address."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    servers: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(answer: Answerer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, content = answer(Call(self.command, parts.path, query, dict(self.headers), body))
                self.close_connection = True
                with suppress(ConnectionError):  # a client that was killed hears nothing
                    self.send_response(status)
                    for name, value in {"Content-Length": str(len(content)), **headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(content)

            do_POST = do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()
