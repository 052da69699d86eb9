"""Prepare a pre-training: read the corpus, draw its windows, build the encoder with its pre-training head."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llueve.config.pretrain_keys import CorpusConfig, EncoderConfig, PretrainConfig
from llueve.errors import DataError
from llueve.model.classifier import TimerXLForClassification
from llueve.model.weather_xl import LEVEL_KNOTS, WeatherXL
from llueve.panel import UNKNOWN, FloatArray
from llueve.pretraining.corpus import Corpus, read_corpus
from llueve.pretraining.corpus_windows import CorpusWindows, drawn_windows
from llueve.pretraining.provenance import Provenance, read_provenance
from llueve.quantities.encoder_quantities import ENCODER_QUANTITIES
from llueve.samples.split import Part
from llueve.stability.incidents.format import day_classifier

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
    sizes: EncoderConfig
    fingerprint: str
    """Hash of the corpus."""
    provenance: dict[str, Provenance]
    """Origin of each group of the corpus, as far as it is known."""

    def fresh(self) -> TimerXLForClassification:
        """A newly initialised model of the same sizes, in training mode; the random generator stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = day_classifier(self.sizes.as_model())
        encoder_of(model).knots_CJ.copy_(encoder_of(self.model).knots_CJ)
        return model.train()


def corpus_files(config: CorpusConfig) -> list[Path]:
    """The files of a corpus, in the order of their names.

    Raises:
        DataError: the folder has no such file.
    """
    folder = Path(config.path)
    try:
        files = sorted({path for pattern in config.files for path in folder.glob(pattern) if path.is_file()})
    except (OSError, ValueError, NotImplementedError) as error:  # an unreadable folder; an absolute or empty pattern
        raise DataError(
            f"{folder}: cannot be searched for {', '.join(config.files)} ({error}); set corpus.files"
        ) from error
    if not files:
        raise DataError(
            f"{folder}: has no file that matches {', '.join(config.files)}; set corpus.path or corpus.files"
        )
    return files


def prepare(config: PretrainConfig) -> Prepared:
    """Read the corpus, draw its windows, and build the encoder with its pre-training head.

    Raises:
        DataError: see `read_corpus` and `drawn_windows`.
    """
    provenance = read_provenance(Path(config.corpus.path))
    corpus = read_corpus(corpus_files(config.corpus), config.corpus.held_out, config.corpus.until)
    seed = config.train.seed
    windows = CorpusWindows(corpus, seed)
    training = drawn_windows(corpus, windows, config.corpus.windows, seed, held_out=False)
    validation = drawn_windows(corpus, windows, config.corpus.validation_windows, seed + 1, held_out=True)
    # The training does not use the classes; the loop counts windows without one as windows without an outcome.
    training = Part(training.name, training.site, training.end, np.where(training.y == UNKNOWN, 0, training.y))
    torch.manual_seed(seed)
    model = day_classifier(config.model.as_model())
    encoder_of(model).set_knots(_knots(windows, training))
    sites = len(np.unique(corpus.site_S[training.site]))
    logger.info("%s training windows of %s sites", f"{len(training):,}", f"{sites:,}")
    return Prepared(corpus, windows, training, validation, model, config.model, corpus.fingerprint(), provenance)


def encoder_of(model: TimerXLForClassification) -> WeatherXL:
    """The weather encoder of a pre-training model."""
    assert isinstance(model.encoder, WeatherXL)
    return model.encoder


def _knots(windows: CorpusWindows, training: Part) -> FloatArray:
    """Quantiles of each quantity over a part of the training windows, (Q, J); −2 to 2 without a value."""
    rows = np.linspace(0, len(training) - 1, min(KNOT_WINDOWS, len(training))).astype(int)
    values_BQL, observed_BQL, _ = windows.batch(training[rows])
    at = np.linspace(0, 1, LEVEL_KNOTS)
    knots_QJ = np.tile(np.linspace(-2, 2, LEVEL_KNOTS, dtype=np.float32), (len(ENCODER_QUANTITIES), 1))
    for place in range(len(ENCODER_QUANTITIES)):
        known = values_BQL[:, place][observed_BQL[:, place]]
        if len(known):
            knots_QJ[place] = np.quantile(known, at)
    return knots_QJ
