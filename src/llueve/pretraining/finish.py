"""The end of a pre-training: the weights as they are stored, their scores, and the model card."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from safetensors.torch import save
from torch import Tensor

from llueve.config.pretrain_keys import PretrainConfig
from llueve.errors import GuardStop, listed
from llueve.model.checkpoints.model_card import CorpusGroup, ModelCard, TrainingFacts
from llueve.model.classifier import TimerXLForClassification
from llueve.model.weather_xl import DAYS
from llueve.pretraining.card_text import card_text
from llueve.pretraining.prepare import Prepared, encoder_of
from llueve.pretraining.provenance import Provenance
from llueve.pretraining.score import score_encoder
from llueve.pretraining.window_shares import window_shares
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES
from llueve.runs.directory import CARD, CARD_TEXT, ENCODER, HISTORY, Run
from llueve.training.tracking import Tracking
from llueve.version import __version__

logger = logging.getLogger(__name__)

SCORE_SEED = 2
"""Number that is added to the seed of the training for the windows of the scores."""
COMMAND = "llueve pretrain config.toml --run DIR"
LIMITS = [
    "The sites that were held out also chose the best epoch, on other windows: their scores are a little too good.",
    "Many held-out sites are near sites of the training that have the same hours, so their scores are too good: a dense grid "
    "of points is the extreme. The row of the sites far from the training is without them; a new region may be harder still.",
    "The climatology comes from the few years of each record, so it is a weaker reference than one of thirty years.",
    "For a record of one year or less it is the frequency of the whole record, without the seasons.",
    "Mean and spread of each quantity come from the whole record of a site; a new site needs weeks of record for them.",
    "The recalibration was fitted at sites of the training, on other windows than those that the training drew.",
]
"""Cautions about the numbers of a card."""


def finish(
    prepared: Prepared,
    config: PretrainConfig,
    run: Run,
    trained: dict[str, Any],
    console: Console,
    tracking: Tracking | None,
) -> dict[str, Any]:
    """Store the encoder, score it, and write its model card; returns the content of the card.

    The card comes last: a run without it is not finished.

    Args:
        prepared: its model holds the best weights; they become those that are stored.
        trained: the outcome of the training.

    Raises:
        GuardStop: a weight or a forecast is not finite; nothing is written. RunError: the disk is full or read-only.
    """
    weights = stored_weights(prepared.model, getattr(torch, config.model.storage))
    encoder_of(prepared.model).load_state_dict(weights)
    with console.status("scoring the encoder at held-out sites"):
        seed = config.train.seed + SCORE_SEED
        scores = score_encoder(prepared.model, prepared.windows, config.corpus.score_windows, seed)
    content = save(weights, metadata={"format": "pt"})
    card = ModelCard(
        llueve=__version__,
        **config.model.model_dump(include={"width", "layers", "heads", "feed_forward", "storage"}),
        days=DAYS,
        quantities=list(ENCODER_QUANTITIES),
        parameters=sum(each.numel() for each in encoder_of(prepared.model).parameters()),
        sha256=hashlib.sha256(content).hexdigest(),
        corpus=corpus_groups(prepared),
        left_out=prepared.corpus.left_out,
        corpus_sha256=prepared.fingerprint,
        training=_facts(prepared, config, run, trained),
        scores=scores.groups,
        errors=scores.errors,
        zones=scores.zones,
        limits=LIMITS,
        command=COMMAND,
    )
    description = card.model_dump(mode="json")
    run.write(ENCODER, content)
    run.write(CARD_TEXT, card_text(card).encode())
    run.write_json(CARD, description)
    if tracking is not None:
        tracking.scores({"model": {f"{each.mm:g} mm": each.model_dump() for each in card.overall.amounts}})
    run.remove_checkpoints()
    return description


def stored_weights(model: TimerXLForClassification, storage: torch.dtype) -> dict[str, Tensor]:
    """The tensors of the encoder in the number format of the file.

    Raises:
        GuardStop: a number is not finite, or too large for the format.
    """
    stored = {name: each.detach().to(storage).contiguous() for name, each in encoder_of(model).state_dict().items()}
    if bad := [name for name, each in stored.items() if not each.isfinite().all()]:
        raise GuardStop(
            f"no encoder is written: weights are not finite in {str(storage).removeprefix('torch.')} in {listed(bad)}; see "
            'history.jsonl. If only their size is the fault, set model.storage = "float32"'
        )
    return stored


def corpus_groups(prepared: Prepared) -> list[CorpusGroup]:
    """The groups of the corpus with their shares of the training windows."""
    corpus = prepared.corpus
    share_S = window_shares(corpus, held_out=False)
    group_S = np.array([each.group for each in corpus.stretches])
    held_S = np.array([each.held_out for each in corpus.stretches])
    found = []
    for name in np.unique(group_S):
        inside_S = group_S == name
        origin = prepared.provenance.get(str(name), Provenance())
        found.append(
            CorpusGroup(
                group=str(name),
                sites=len(np.unique(corpus.site_S[inside_S])),
                held_out=len(np.unique(corpus.site_S[inside_S & held_S])),
                hours=int(corpus.hours_S[inside_S].sum()),
                window_share=min(1.0, float(share_S[inside_S].sum())),
                source=origin.source,
                licence=origin.licence,
            )
        )
    return found


def _facts(prepared: Prepared, config: PretrainConfig, run: Run, trained: dict[str, Any]) -> TrainingFacts:
    epochs = [line for line in _history(run.directory / HISTORY) if "event" not in line]
    return TrainingFacts(
        seed=config.train.seed,
        windows=len(prepared.training),
        epochs=len(epochs),
        best_epoch=trained["best_epoch"],
        steps=sum(line["steps"] for line in epochs),
        seconds=round(sum(line["seconds"] for line in epochs), 1),
        skipped=trained["skipped"],
        quarantined=trained["quarantined"],
    )


def _history(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
