"""Two thousand mutations each of a configuration, a `model.json` and an incident: read, or refused by an error of llueve."""

import json
import os
import random
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from mutations import changed_bytes, changed_tree

from llueve.config import load_config
from llueve.runs.directory import EXPLANATION, INCIDENT, INCIDENTS, MODEL, Run
from llueve.runs.model_files import load_model
from llueve.runs.sealed_file import read_sealed, write_sealed
from llueve.stability.incidents import list_incidents, load_incident, render_description, render_list

CASES = 2000


def toml_of(tree: Any) -> bytes | None:
    """The tree as TOML; None if TOML cannot hold it."""
    try:
        return tomli_w.dumps(tree).encode()
    except (TypeError, ValueError, AttributeError):
        return None


def test_a_mutated_configuration(project: Path, limits: Any) -> None:
    draw, text = random.Random(1), (project / "run" / "config.toml").read_bytes()
    tree, path = tomllib.loads(text.decode()), project / "mutated.toml"
    for number in range(CASES):
        changed = changed_bytes(text, draw) if number % 3 else toml_of(changed_tree(tree, draw))
        path.write_bytes(text if changed is None else changed)
        with limits.case(number):
            tomllib.loads(load_config(path).to_toml())


def test_a_mutated_description_of_a_model(project: Path, tmp_path: Path, limits: Any) -> None:
    shutil.copytree(project / "run", tmp_path / "run")
    path, draw = tmp_path / "run" / MODEL, random.Random(2)
    text, run = path.read_bytes(), Run(tmp_path / "run")
    tree = json.loads(text)
    for number in range(CASES):
        path.write_bytes(json.dumps(changed_tree(tree, draw)).encode() if number % 4 else changed_bytes(text, draw))
        with limits.case(number):
            load_model(run)


def test_a_mutated_incident(project: Path, tmp_path: Path, limits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # these files need not survive a power failure
    folder, draw = tmp_path / "run" / INCIDENTS / "001", random.Random(3)
    shutil.copytree(project / "run" / INCIDENTS / "001", folder)
    path, content = folder / INCIDENT, (folder / INCIDENT).read_bytes()
    (folder / EXPLANATION).unlink(missing_ok=True)
    tensors, text = read_sealed(path)
    # Copies: the tensors are a view of the file, which the mutations write over.
    tensors = {name: tensor.clone() for name, tensor in tensors.items() if not name.startswith("moments.")}
    tree = json.loads(text)
    header = 8 + int.from_bytes(content[:8], "little")
    for number in range(CASES):
        match number % 4:
            case 0:
                path.write_bytes(changed_bytes(content[:header], draw) + content[header:])
            case 1:
                path.write_bytes(changed_bytes(content, draw))
            case _:  # with the seal made right, as a hostile writer would
                write_sealed(path, tensors, json.dumps(changed_tree(tree, draw)))
        with limits.case(number):
            if number % 16 == 2:
                render_list(list_incidents(tmp_path / "run"))
            render_description(load_incident(tmp_path / "run").about)
