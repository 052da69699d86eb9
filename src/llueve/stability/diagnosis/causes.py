"""The closed list of causes of a refused step, each with its meaning."""

from llueve.stability.language import WordedEnum


class Cause(WordedEnum):
    """The cause of a refused step; its words are its meaning."""

    TRANSIENT = (
        "transient",
        "the same step gives sound numbers when it runs again: a machine fault that did not repeat",
        "el mismo paso da números sanos al repetirlo: un fallo de la máquina que no se repite",
    )
    MISSING_INPUT = (
        "missing_input",
        "cells without a value reach the model",
        "celdas sin valor llegan al modelo",
    )
    INFINITE_INPUT = (
        "infinite_input",
        "infinite cells reach the model",
        "celdas infinitas llegan al modelo",
    )
    SENTINEL_OR_UNIT = (
        "sentinel_or_unit",
        "one number repeats far from all others, or a whole stretch of a variable is far away: a mark for "
        "missing values, or another unit",
        "un mismo número se repite lejos de los demás, o un tramo entero de una variable está lejos: una "
        "marca de dato ausente, u otra unidad",
    )
    OUTLIER_INPUT = (
        "outlier_input",
        "single cells or facts are far from all others: an error of measurement or of typing",
        "celdas o datos sueltos están lejos de todos los demás: un error de medida o de escritura",
    )
    CONSTANT_WINDOW = (
        "constant_window",
        "a variable that is constant within a window is divided by its spread, which is zero",
        "una variable constante dentro de una ventana se divide por su dispersión, que es cero",
    )
    EMPTY_ATTENTION_ROW = (
        "empty_attention_row",
        "a patch without any observation leaves attention with nothing to attend to",
        "un parche sin ninguna observación deja a la atención sin nada que atender",
    )
    LOSS_EDGE = (
        "loss_edge",
        "the loss function fails at its edge, as log 0 does; plain cross-entropy does not",
        "la función de pérdida falla en su borde, como log 0; la entropía cruzada simple no",
    )
    CORRUPT_WEIGHTS = (
        "corrupt_weights",
        "weights were not finite before the step, although a checkpoint with such numbers is refused",
        "antes del paso ya había pesos no finitos, aunque un checkpoint con esos números se rechaza",
    )
    CORRUPT_BUFFER = (
        "corrupt_buffer",
        "a stored table of the model was damaged before the step",
        "antes del paso ya había una tabla del modelo dañada",
    )
    DAMAGED_WEIGHTS = (
        "damaged_weights",
        "a few weights changed since the last healthy state, and no step explains it: damaged memory",
        "unos pocos pesos cambiaron desde el último estado sano, y ningún paso lo explica: memoria dañada",
    )
    POISONED_MOMENTS = (
        "poisoned_moments",
        "the optimiser's moments are not sound; the step itself is",
        "los momentos del optimizador no son sanos; el paso sí",
    )
    POISONED_AVERAGE = (
        "poisoned_average",
        "the moving average of the weights is not sound; the weights themselves are",
        "la media móvil de los pesos no es sana; los pesos mismos sí",
    )
    LEARNING_RATE = (
        "learning_rate",
        "a learning rate is not the planned one, or too large a rate drove the weights away",
        "una tasa de aprendizaje no es la prevista, o una tasa demasiado alta disparó los pesos",
    )
    MISSING_WARMUP = (
        "missing_warmup",
        "the rates were too large for the first steps only: with slowly rising rates the same steps are sound",
        "las tasas eran demasiado altas solo para los primeros pasos: con tasas que suben despacio los mismos"
        " pasos son sanos",
    )
    EXPLODING_GRADIENT = (
        "exploding_gradient",
        "single large gradients threw the weights away: clipped, the same steps are sound",
        "algunos gradientes muy grandes dispararon los pesos: recortados, los mismos pasos son sanos",
    )
    HALF_PRECISION = (
        "half_precision",
        "float32 gives sound numbers where bfloat16 does not",
        "float32 da números sanos donde bfloat16 no",
    )
    OVERFLOW = (
        "overflow",
        "numbers overflow float32; float64 gives finite ones. Weights or inputs have an absurd scale",
        "hay números fuera de float32; float64 los da finitos. Los pesos o las entradas tienen una escala absurda",
    )
    HEAD_INITIALISATION = (
        "head_initialisation",
        "the weights of the head have an absurd scale; a new head fixes the step",
        "los pesos de la cabeza tienen una escala absurda; una cabeza nueva corrige el paso",
    )
    ENCODER_WEIGHTS = (
        "encoder_weights",
        "wrong architecture or scale of the encoder's weights: a new encoder fixes the step",
        "arquitectura o escala equivocada de los pesos del codificador: un codificador nuevo corrige el paso",
    )
    FEW_SAMPLES = (
        "few_samples",
        "a few samples alone make the step unsound",
        "unas pocas muestras por sí solas causan el fallo",
    )
    UNKNOWN = (
        "unknown",
        "no single change fixes the step",
        "ningún cambio por sí solo corrige el paso",
    )


INPUT_CAUSES = (Cause.MISSING_INPUT, Cause.INFINITE_INPUT, Cause.SENTINEL_OR_UNIT, Cause.OUTLIER_INPUT)
"""Causes that rest on cells or facts of a batch."""
STORED_CAUSES = (Cause.CORRUPT_WEIGHTS, Cause.CORRUPT_BUFFER, Cause.POISONED_MOMENTS)
"""Causes that rest on stored numbers, which an incident file holds too."""
