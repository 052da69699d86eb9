"""The closed list of causes of a refused step, each with its meaning and advice."""

from llueve.stability.language import WordedEnum


class Cause(WordedEnum):
    """The cause of a refused step; its words are its meaning and advice."""

    TRANSIENT = (
        "transient",
        "the same step gives sound numbers when it runs again: a machine fault that did not repeat. Train again; if "
        "it happens again, test the memory",
        "el mismo paso da números sanos al repetirlo: un fallo de la máquina que no se repite. Entrene otra vez; si "
        "vuelve a ocurrir, compruebe la memoria",
    )
    MISSING_INPUT = (
        "missing_input",
        'cells without a value reach the model. Set windows.missing = "mask", or fill the cells at their source',
        'celdas sin valor llegan al modelo. Ponga windows.missing = "mask", o complete las celdas en su origen',
    )
    INFINITE_INPUT = (
        "infinite_input",
        'infinite cells reach the model. Correct them, or set data.infinite = "missing"',
        'celdas infinitas llegan al modelo. Corríjalas, o ponga data.infinite = "missing"',
    )
    SENTINEL_OR_UNIT = (
        "sentinel_or_unit",
        "one number repeats far from all others, or a whole stretch of a variable is far away: a mark for missing "
        "values, or another unit. Name the mark in data.sentinels, or correct the unit at its source",
        "un mismo número se repite lejos de los demás, o un tramo entero de una variable está lejos: una marca de "
        "dato ausente, u otra unidad. Nombre la marca en data.sentinels, o corrija la unidad en su origen",
    )
    OUTLIER_INPUT = (
        "outlier_input",
        "single cells or facts are far from all others: an error of measurement or of typing. Correct them, or leave them empty",
        "celdas o datos sueltos están lejos de todos los demás: un error de medida o de escritura. Corríjalos, o déjelos vacíos",
    )
    CONSTANT_WINDOW = (
        "constant_window",
        "a variable that is constant within a window is divided by its spread, which is zero. Give the normalisation "
        "a smallest spread, or leave the variable out",
        "una variable constante dentro de una ventana se divide por su dispersión, que es cero. Dé a la normalización"
        " una dispersión mínima, o excluya la variable",
    )
    EMPTY_ATTENTION_ROW = (
        "empty_attention_row",
        "a patch without any observation leaves attention with nothing to attend to. Let such a row attend to itself,"
        " or leave out windows in which whole patches are missing",
        "un parche sin ninguna observación deja a la atención sin nada que atender. Deje que esa fila se atienda a sí"
        " misma, o excluya las ventanas a las que les faltan parches enteros",
    )
    LOSS_EDGE = (
        "loss_edge",
        "the loss function fails at its edge, as log 0 does; plain cross-entropy does not. Set train.focal_gamma = 0 "
        "and train.label_smoothing = 0, or compute the loss from logits",
        "la función de pérdida falla en su borde, como log 0; la entropía cruzada simple no. Ponga train.focal_gamma "
        "= 0 y train.label_smoothing = 0, o calcule la pérdida a partir de los logits",
    )
    CORRUPT_WEIGHTS = (
        "corrupt_weights",
        "weights were not finite before the step. Look at the checkpoint with `llueve checkpoint inspect`",
        "antes del paso ya había pesos no finitos. Mire el checkpoint con `llueve checkpoint inspect`",
    )
    CORRUPT_BUFFER = (
        "corrupt_buffer",
        "a stored table of the model was not finite before the step. Train again",
        "antes del paso ya había una tabla del modelo no finita. Entrene otra vez",
    )
    DAMAGED_WEIGHTS = (
        "damaged_weights",
        "a few weights became absurd since the last healthy state, and no step explains it: damaged memory. Continue "
        "from the healthy state, and test the memory",
        "unos pocos pesos se volvieron absurdos desde el último estado sano, y ningún paso lo explica: memoria "
        "dañada. Continúe desde el estado sano, y compruebe la memoria",
    )
    POISONED_MOMENTS = (
        "poisoned_moments",
        "the optimiser's moments are not sound; the step itself is. Train again from before it",
        "los momentos del optimizador no son sanos; el paso sí. Entrene desde antes del paso",
    )
    POISONED_AVERAGE = (
        "poisoned_average",
        "the moving average of the weights is not sound; the weights themselves are. Start it again from the weights",
        "la media móvil de los pesos no es sana; los pesos mismos sí. Iníciela de nuevo a partir de los pesos",
    )
    LEARNING_RATE = (
        "learning_rate",
        "a learning rate is not a positive number, or too large a rate drove the weights away. Lower "
        "train.encoder_learning_rate and train.head_learning_rate",
        "una tasa de aprendizaje no es un número positivo, o una tasa demasiado alta disparó los pesos. Baje "
        "train.encoder_learning_rate y train.head_learning_rate",
    )
    MISSING_WARMUP = (
        "missing_warmup",
        "the rates were too large for the first steps only: with slowly rising rates the same steps are sound. Raise "
        "train.warmup_steps",
        "las tasas eran demasiado altas solo para los primeros pasos: con tasas que suben despacio los mismos pasos "
        "son sanos. Suba train.warmup_steps",
    )
    EXPLODING_GRADIENT = (
        "exploding_gradient",
        "single large gradients threw the weights away: clipped, the same steps are sound. Lower train.clip_norm to "
        "the usual norm",
        "algunos gradientes muy grandes dispararon los pesos: recortados, los mismos pasos son sanos. Baje "
        "train.clip_norm a la norma habitual",
    )
    HALF_PRECISION = (
        "half_precision",
        'float32 gives sound numbers where bfloat16 does not. Set train.precision = "float32"',
        'float32 da números sanos donde bfloat16 no. Ponga train.precision = "float32"',
    )
    OVERFLOW = (
        "overflow",
        "numbers overflow float32; float64 gives finite ones. Weights or inputs have an absurd scale",
        "hay números fuera de float32; float64 los da finitos. Los pesos o las entradas tienen una escala absurda",
    )
    HEAD_INITIALISATION = (
        "head_initialisation",
        "the weights of the head have an absurd scale; a new head fixes the step. Initialise the head again",
        "los pesos de la cabeza tienen una escala absurda; una cabeza nueva corrige el paso. Inicialice la cabeza de nuevo",
    )
    ENCODER_WEIGHTS = (
        "encoder_weights",
        "wrong architecture or scale of pre-trained weights: a new encoder fixes the step. Look at the checkpoint "
        "with `llueve checkpoint inspect`, and at model.architecture",
        "arquitectura o escala equivocada de los pesos preentrenados: un codificador nuevo corrige el paso. Mire el "
        "checkpoint con `llueve checkpoint inspect`, y model.architecture",
    )
    FEW_SAMPLES = (
        "few_samples",
        "a few samples alone make the step unsound. Look at them",
        "unas pocas muestras por sí solas causan el fallo. Mírelas",
    )
    UNKNOWN = (
        "unknown",
        "no single change fixes the step. Keep the incident and report it",
        "ningún cambio por sí solo corrige el paso. Guarde el incidente y comuníquelo",
    )


INPUT_CAUSES = (Cause.MISSING_INPUT, Cause.INFINITE_INPUT, Cause.SENTINEL_OR_UNIT, Cause.OUTLIER_INPUT)
"""Causes that rest on cells or facts of a batch."""
STORED_CAUSES = (Cause.CORRUPT_WEIGHTS, Cause.CORRUPT_BUFFER, Cause.POISONED_MOMENTS)
"""Causes that rest on stored numbers, which an incident file holds too."""
