"""Pre-train the weather encoder: corpus → windows → guarded training → weights. Same loop, guard and states as `train`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from llueve.config.pretrain_keys import CorpusConfig, EncoderConfig, PretrainConfig
from llueve.errors import DataError
from llueve.model.classifier import TimerXLForClassification
from llueve.model.heads import DayHead
from llueve.model.weather_xl import LEVEL_KNOTS, WeatherXL
from llueve.panel import UNKNOWN, FloatArray
from llueve.pretraining.corpus import Corpus, read_corpus
from llueve.pretraining.corpus_windows import CorpusWindows, drawn_windows
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES
from llueve.samples.split import Part
from llueve.training.environment import Environment
from llueve.training.loop import Trained, train_model

logger = logging.getLogger(__name__)

KNOT_WINDOWS = 4096
"""Training windows whose values decide the knots of the levels."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """The corpus of a pre-training, its windows, and a new model."""

    corpus: Corpus
    windows: CorpusWindows
    training: Part
    validation: Part
    model: TimerXLForClassification


def corpus_files(config: CorpusConfig) -> list[Path]:
    """The files of a corpus, in the order of their names.

    Raises:
        DataError: the folder has no such file.
    """
    folder = Path(config.path)
    files = sorted({path for pattern in config.files for path in folder.glob(pattern)})
    if not files:
        raise DataError(
            f"{folder}: has no file that matches {', '.join(config.files)}; set corpus.path or corpus.files"
        )
    return files


def prepare(config: PretrainConfig) -> Prepared:
    """Read the corpus, draw its windows, and build the encoder with its pre-training head."""
    corpus = read_corpus(corpus_files(config.corpus))
    seed = config.train.seed
    windows = CorpusWindows(corpus, seed)
    training = drawn_windows(corpus, windows, config.corpus.windows, seed, held_out=False)
    validation = drawn_windows(corpus, windows, config.corpus.validation_windows, seed + 1, held_out=True)
    # The training does not use the classes; the loop counts windows without one as windows without an outcome.
    training = Part(training.name, training.site, training.end, np.where(training.y == UNKNOWN, 0, training.y))
    model = new_model(config.model, seed)
    _encoder(model).set_knots(_knots(windows, training))
    logger.info("%s training windows of %s places", f"{len(training):,}", f"{len(np.unique(training.site)):,}")
    return Prepared(corpus, windows, training, validation, model)


def new_model(sizes: EncoderConfig, seed: int) -> TimerXLForClassification:
    """A fresh encoder with the pre-training head; the seed decides its weights."""
    torch.manual_seed(seed)
    encoder = WeatherXL(
        len(ENCODER_QUANTITIES),
        width=sizes.width,
        layers=sizes.layers,
        heads=sizes.heads,
        feed_forward=sizes.feed_forward,
        dropout=sizes.dropout,
    )
    return TimerXLForClassification(encoder, 2, DayHead(), instance_norm=False)


def fit_encoder(prepared: Prepared, config: PretrainConfig, environment: Environment) -> Trained:
    """Train the encoder in place until the calibrated log-loss at the held-out places stops falling.

    Raises:
        GuardStop, Interrupted, RunError, WorkerLost: see `llueve.training.loop.train_model`.
    """
    return train_model(
        prepared.model,
        prepared.windows,
        prepared.training,
        prepared.validation,
        config.train,
        config.guard,
        environment,
    )


def quiet_environment(record: Any, console: Console) -> Environment:
    """Surroundings without files: for measurements."""
    return Environment(
        record=record, keep_incident=lambda _: None, new_model=lambda: new_model(EncoderConfig(), 0), console=console
    )


def _knots(windows: CorpusWindows, training: Part) -> FloatArray:
    """Quantiles of each quantity over a part of the training windows, (C, J); −2 to 2 without a value."""
    rows: Sequence[int] = np.linspace(0, len(training) - 1, min(KNOT_WINDOWS, len(training))).astype(int).tolist()
    values_BQL, observed_BQL, _ = windows.batch(training[rows])
    at = np.linspace(0, 1, LEVEL_KNOTS)
    knots_QJ = np.tile(np.linspace(-2, 2, LEVEL_KNOTS, dtype=np.float32), (len(ENCODER_QUANTITIES), 1))
    for place in range(len(ENCODER_QUANTITIES)):
        known = values_BQL[:, place][observed_BQL[:, place]]
        if len(known):
            knots_QJ[place] = np.quantile(known, at)
    return knots_QJ


def _encoder(model: TimerXLForClassification) -> WeatherXL:
    assert isinstance(model.encoder, WeatherXL)
    return model.encoder
