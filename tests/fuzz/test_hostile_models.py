"""A `model.json` or a path of a run that is hostile: refused at once, without memory and without a traceback."""

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from llueve import pipeline
from llueve.errors import CheckpointError, LlueveError, RunError, UsageError
from llueve.runs.directory import MODEL, WEIGHTS, Run
from llueve.runs.model_files import load_model
from llueve.runs.sealed_file import read_sealed, write_sealed


@pytest.fixture
def run(project: Path, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(project / "run", tmp_path / "run")))


def change(run: Run, **values: Any) -> None:
    """Change the description of a run, and the hash in its weights, as whoever makes a hostile run would."""
    content = json.loads((run.directory / MODEL).read_text())
    for name, value in values.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    (run.directory / MODEL).write_text(json.dumps(content))
    weights = run.directory / WEIGHTS
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    write_sealed(weights, read_sealed(weights)[0], json.dumps({"description_sha256": digest}))


@pytest.mark.parametrize(
    "values",
    [
        {"model": {"width": 400_000_000}},
        {"model": {"layers": 100_000}},
        {"model": {"layers": 256}},
        {"model": {"width": 16_384, "heads": 4, "layers": 1}},
        {"model": {"feed_forward": 2**20}},
        {"model": {"patch_length": 2**20}},
        {"model": {"head": "mean"}},
        {"classes": [str(number) for number in range(100_000)]},
        {"statics": [str(number) for number in range(100_000)]},
        {"variables": [[str(number), None] for number in range(20_000)]},
        {"context": 10**12},
        {"scaler": {"std": [1e-320, 1.0]}},
        {"scaler": {"mean": [1e300, 0.0]}},
        {"trained": {"x": json.loads("[" * 100 + "]" * 100)}},
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused_before_anything_is_built(run: Run, values: Any) -> None:
    change(run, **values)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"does not belong to model\.json|invalid entries|damaged") as caught:
        load_model(run)
    assert time.monotonic() - start < 20 and len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"format": ' + "9" * 5000 + "}", " " * (2**24 + 1)]
)
def test_a_model_json_that_cannot_be_read(run: Run, text: str) -> None:
    (run.directory / MODEL).write_text(text)
    with pytest.raises(RunError, match=r"model\.json: is damaged"):
        load_model(run)


@pytest.mark.parametrize("path", ["x" * 300, "x\0y", "a/" * 3000])
def test_impossible_paths_are_refused_by_every_function(run: Run, project: Path, path: str) -> None:
    for call in (
        lambda: pipeline.evaluate(path),
        lambda: pipeline.predict(path, project / "table.csv"),
        lambda: pipeline.predict(run.directory, path),
        lambda: pipeline.convert(path, "safetensors", project / "out"),
        lambda: pipeline.convert(run.directory, "safetensors", path),
        lambda: pipeline.train(Run.open(run.directory)[1], path),
    ):
        with pytest.raises(LlueveError, match=r"bytes; expected at most|NUL"):
            call()
    with pytest.raises(UsageError):
        Run(Path(path))
