"""The two files of a trained model: weights in `model.safetensors`, everything else that a prediction needs in `model.json`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from llueve.config import Config
from llueve.config.tree_bounds import tree_problem
from llueve.errors import CheckpointError, GuardStop, listed
from llueve.model.build import build_encoder, shapes_only
from llueve.runs.decisive_keys import decisive_keys, differences
from llueve.runs.directory import CONFIG, MODEL, WEIGHTS, Run
from llueve.runs.saved_model import FORMAT, ModelDescription, SavedModel
from llueve.runs.sealed_file import read_unchecked, sealed_text, write_sealed

DESCRIBED = "description_sha256"
"""Entry of the sealed text in the weights: the hash of their description."""


def save_model(run: Run, saved: SavedModel) -> None:
    """Write both files. The description comes last: a run without it is not finished.

    Raises:
        GuardStop: a weight is not finite; nothing is written. RunError: the disk is full or read-only.
    """
    weights = _joined([each.state_dict() for each in saved.classifiers])
    description = saved.model_dump(mode="json")
    if bad := not_finite(weights):
        raise GuardStop(f"no model is written: weights are not finite in {listed(bad)}; see history.jsonl")
    with run.writing():
        write_sealed(run.directory / WEIGHTS, weights, json.dumps({DESCRIBED: _sha256(description)}))
    run.write_json(MODEL, description)


def load_model(run: Run) -> SavedModel:
    """Read a model, exactly as it was saved.

    Raises:
        RunError: a file is absent.
        CheckpointError: a file is damaged, a weight is not finite, or the two files do not belong together.
    """
    weights, content, path = run.path(WEIGHTS), run.read_json(MODEL), run.directory / MODEL
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: was written by another version of llueve; train again")
    if problem := tree_problem(content):
        raise CheckpointError(f"{path}: is damaged ({problem}); train again")
    try:
        description = ModelDescription.model_validate(content)
    except ValidationError as error:
        keys = listed([".".join(map(str, each["loc"])) for each in error.errors()])
        raise CheckpointError(f"{path}: has missing, unknown or invalid entries: {keys}; train again") from error
    tensors, metadata = read_unchecked(weights.resolve())
    if bad := not_finite(tensors):
        raise CheckpointError(
            f"{weights}: has numbers that are not finite in {listed(bad)}; restore it, or train again"
        )
    if sealed_text(weights, tensors, metadata) != json.dumps({DESCRIBED: _sha256(content)}):
        raise CheckpointError(
            f"{path}: does not belong to these weights ({WEIGHTS} records the hash of another description): one of the two "
            "was changed, or comes from another run; restore both from the same run, or train again"
        )
    # A wrong size in `model.json` must not cost memory or time: the weights decide before anything is built.
    with shapes_only():
        claimed = _joined(
            [description.build_classifier(build_encoder(description.model)).state_dict()] * description.members
        )
    expected, found = ({name: (each.dtype, each.shape) for name, each in state.items()} for state in (claimed, tensors))
    if wrong := sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)):
        names = f"absent, unexpected or of another shape: {listed(wrong)}"
        raise CheckpointError(f"{weights}: does not belong to {MODEL} ({names}); train again")
    try:
        classifiers = [
            description.build_classifier(build_encoder(description.model)) for _ in range(description.members)
        ]
        for number, classifier in enumerate(classifiers):
            before = _before(number, description.members)
            classifier.load_state_dict(
                {name.removeprefix(before): tensors[name] for name in tensors if name.startswith(before)}
            )
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{weights}: cannot be read together with {MODEL} ({error}); train again") from error
    return SavedModel(classifier=classifiers[0], others=classifiers[1:], **dict(description))


def _joined(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all members by the names that the file gives them."""
    return {
        _before(number, len(members)) + name: tensor
        for number, member in enumerate(members)
        for name, tensor in member.items()
    }


def _before(number: int, members: int) -> str:
    """Beginning of the names of a member's tensors; a single model has plain names."""
    return f"members.{number}." if members > 1 else ""


def require_own_configuration(run: Run, config: Config, saved: SavedModel) -> None:
    """Check that the configuration of a run is the one that its model was trained with.

    Raises:
        CheckpointError: it is that of another training; the message names the keys that differ.
    """
    if different := differences(saved.configuration, decisive_keys(config)):
        raise CheckpointError(
            f"{run.directory / CONFIG}: does not belong to the model of this run: {'; '.join(different)}. Restore it"
        )


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with a number that is not finite."""
    return [name for name, tensor in tensors.items() if not tensor.isfinite().all()]


def _sha256(description: Any) -> str:
    """Hash of a description as JSON holds it, whatever the order and the spacing of its entries."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
