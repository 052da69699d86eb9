"""The explanation of a refused step: its cause, the experiments that support it, and what is responsible."""

from dataclasses import dataclass
from typing import Any

from llueve.model.classifier import LARGEST
from llueve.stability.diagnosis.causes import Cause
from llueve.stability.diagnosis.origin import Trace
from llueve.stability.language import Language, WordedEnum, Words
from llueve.stability.reading import as_word

UNUSUAL = 30.0
"""Training standard deviations beyond which a cell is unusual."""


class Change(WordedEnum):
    """The single change that an experiment makes to a step; `{}` in its words stands for the detail of the experiment."""

    NONE = "none", "none: the same step again", "ninguno: el mismo paso otra vez"
    GATHERED_AGAIN = (
        "windows_gathered_again",
        "windows gathered from the data again",
        "ventanas leídas otra vez de los datos",
    )
    CELLS = "cells_masked", "missing and infinite cells masked", "celdas ausentes e infinitas enmascaradas"
    FACTS = "facts_zeroed", "non-finite facts replaced by zero", "datos no finitos sustituidos por cero"
    CELLS_AND_FACTS = (
        "cells_masked_and_facts_zeroed",
        "non-finite cells masked and non-finite facts replaced by zero",
        "celdas no finitas enmascaradas y datos no finitos sustituidos por cero",
    )
    FAR_CELLS = (
        "far_cells_masked",
        f"cells beyond {LARGEST:g} training spreads masked",
        f"celdas a más de {LARGEST:g} dispersiones de entrenamiento enmascaradas",
    )
    UNUSUAL_CELLS = (
        "unusual_cells_masked",
        f"cells beyond {UNUSUAL:g} training spreads masked",
        f"celdas a más de {UNUSUAL:g} dispersiones de entrenamiento enmascaradas",
    )
    FAR_FACTS = (
        "far_facts_zeroed",
        f"facts beyond {LARGEST:g} replaced by zero",
        f"datos mayores de {LARGEST:g} sustituidos por cero",
    )
    CONSTANT_WINDOWS = (
        "constant_windows_varied",
        "a tiny ramp added to constant windows",
        "una rampa diminuta sumada a las ventanas constantes",
    )
    EMPTY_PATCHES = (
        "empty_patches_filled",
        "patches without observations taken as observed",
        "parches sin observaciones tomados como observados",
    )
    PLAIN_LOSS = "plain_loss", "plain cross-entropy as the loss", "entropía cruzada simple como pérdida"
    LOSS_SETTING = "loss_setting", "the loss with {}", "la pérdida con {}"
    FLOAT32 = "float32", "float32", "float32"
    FLOAT64 = "float64", "float64", "float64"
    LOWER_RATES = "lower_rates", "learning rates divided by {}", "tasas de aprendizaje divididas por {}"
    CLIPPED = "clipped", "gradients clipped at {}", "gradientes recortados en {}"
    NEW_WEIGHTS = (
        "non_finite_weights_replaced",
        "non-finite weights replaced by new ones",
        "pesos no finitos sustituidos por otros nuevos",
    )
    NEW_BUFFERS = (
        "non_finite_buffers_replaced",
        "non-finite stored tables replaced by new ones",
        "tablas no finitas sustituidas por otras nuevas",
    )
    HEALTHY_WEIGHTS = "healthy_weights", "weights of the last healthy state", "pesos del último estado sano"
    UNDAMAGED_WEIGHTS = (
        "damaged_weights_replaced",
        "only the absurd weights taken from the last healthy state: {}",
        "solo los pesos absurdos tomados del último estado sano: {}",
    )
    NEW_HEAD = "new_head", "new head", "cabeza nueva"
    NEW_ENCODER = "new_encoder", "new encoder, no pre-trained weights", "codificador nuevo, sin pesos preentrenados"
    NEW_MOMENTS = "new_moments", "new optimiser moments", "momentos nuevos del optimizador"
    NEW_AVERAGE = "new_average", "average started again from the weights", "media iniciada de nuevo desde los pesos"
    SAME_RERUN = (
        "rerun_unchanged",
        "steps since the last healthy state run again",
        "pasos desde el último estado sano repetidos",
    )
    REBUILT = (
        "changed_numbers_rebuilt",
        "only the changed numbers taken from the steps run again: {}",
        "solo los números cambiados tomados de los pasos repetidos: {}",
    )
    CLIPPED_RERUN = (
        "rerun_clipped",
        "the same steps, gradients clipped at {}",
        "los mismos pasos, gradientes recortados en {}",
    )
    WARMED_RERUN = (
        "rerun_with_warmup",
        "the same steps, warm-up over {} steps",
        "los mismos pasos, calentamiento de {} pasos",
    )
    SLOWED_RERUN = (
        "rerun_with_lower_rates",
        "the same steps, rates divided by {}",
        "los mismos pasos, tasas divididas por {}",
    )
    WITHOUT_SAMPLES = "without_samples", "without samples {}", "sin las muestras {}"

    def in_words(self, detail: str, language: Language) -> str:
        """The words with their detail."""
        return self.words.of(language).replace("{}", detail)


NO_WORDS = Words("", "")
RERUNS = (Change.CLIPPED_RERUN, Change.WARMED_RERUN, Change.SLOWED_RERUN)
"""Changes to the steps before: tried only if those steps, unchanged, lead to the fault again."""


@dataclass(frozen=True)
class Experiment:
    """The step computed under one change."""

    change: Change
    detail: str
    """The number or names that belong to the change; empty without them."""
    loss: float
    gradient_norm: float
    cures: bool
    """True if the step is sound under this change."""

    def words(self, language: Language = Language.ENGLISH) -> str:
        """The change in words."""
        return self.change.in_words(self.detail, language)

    def as_dict(self) -> dict[str, Any]:
        """The experiment for JSON, which has no NaN."""
        words = {language: self.words(language) for language in Language}
        loss, norm = as_word(self.loss), as_word(self.gradient_norm)
        change = {"change": self.change, "detail": self.detail, "words": words}
        return {**change, "loss": loss, "gradient_norm": norm, "cures": self.cures}


@dataclass(frozen=True)
class Explanation:
    """The cause of a refused step, with its evidence."""

    cause: Cause
    advice: Words = NO_WORDS
    """Advice on the cause in this training, without a final period; empty if it is not known."""
    trace: Trace | None = None
    """The operation whose result was the first non-finite number; None if the repeated step has none."""
    experiments: tuple[Experiment, ...] = ()
    samples: tuple[int, ...] = ()
    """Rows of the batch that are at fault, if single ones are."""
    cells: tuple[tuple[int, int, int], ...] = ()
    """Sample, step and variable of each cell at fault."""
    facts: tuple[tuple[int, int], ...] = ()
    """Sample and fact of each fact at fault."""
    rate_factor: float | None = None
    """Factor of the rates under which the steps since the last healthy state are sound; None if it was not found."""
    numbers: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Name and index of the first hundred weights, moments or other stored numbers at fault."""

    @property
    def words(self) -> Words:
        """Meaning of the cause and advice, without a final period."""
        meaning, advice = self.cause.words, self.advice
        return Words(*(f"{one}. {other}" if other else one for one, other in zip(meaning, advice, strict=True)))

    def as_dict(self) -> dict[str, Any]:
        """The explanation for JSON."""
        trace = None if self.trace is None else self.trace.as_dict()
        experiments = [each.as_dict() for each in self.experiments]
        at_fault = {name: getattr(self, name) for name in ("samples", "cells", "facts", "numbers")}
        advice = self.words._asdict()
        return {"cause": self.cause, "advice": advice, "trace": trace, "experiments": experiments, **at_fault}
