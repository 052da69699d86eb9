"""What each cause means and what to do about it, in plain words."""

ADVICE: dict[str, tuple[str, str]] = {
    "transient": (
        "the same step gives sound numbers when it is run again: a fault of the machine that did not repeat. Train again; "
        "if it comes back, test the memory",
        "el mismo paso da números sanos al repetirlo: un fallo de la máquina que no se repite. Entrene otra vez; si "
        "vuelve, compruebe la memoria",
    ),
    "missing_input": (
        'cells without a value reach the model. Set windows.missing = "mask", or mend the cells',
        'celdas sin valor llegan al modelo. Ponga windows.missing = "mask", o repare las celdas',
    ),
    "infinite_input": (
        'infinite cells reach the model. Mend them, or set data.infinite = "missing"',
        'celdas infinitas llegan al modelo. Repárelas, o ponga data.infinite = "missing"',
    ),
    "sentinel_or_unit": (
        "one number that repeats far from all others, or a whole stretch of a variable: a mark for missing, or another "
        "unit. Name the mark in data.sentinels, or correct the unit at its source",
        "un mismo número que se repite lejos de los demás, o un tramo entero de una variable: una marca de dato ausente, u "
        "otra unidad. Nombre la marca en data.sentinels, o corrija la unidad en su origen",
    ),
    "outlier_input": (
        "single cells or facts are far from all others: an error of measurement or of typing. Mend them, or leave them empty",
        "celdas o datos sueltos están lejos de todos los demás: un error de medida o de escritura. Repárelos, o déjelos vacíos",
    ),
    "constant_window": (
        "a variable that does not vary within a window is divided by its spread, which is nil. Give the normalisation a "
        "least spread, or leave the variable out",
        "una variable que no varía dentro de una ventana se divide por su dispersión, que es nula. Dé a la normalización una "
        "dispersión mínima, o excluya la variable",
    ),
    "empty_attention_row": (
        "a patch in which nothing was observed leaves attention with nothing to attend to. Let such a row attend to itself, "
        "or leave out windows with whole patches missing",
        "un parche sin ninguna observación deja a la atención sin nada que atender. Deje que esa fila se atienda a sí misma, "
        "o excluya las ventanas a las que les faltan parches enteros",
    ),
    "loss_edge": (
        "the loss itself fails at the edge, as log 0 or 0 to a negative power does: plain cross-entropy does not. Set "
        "train.focal_gamma = 0 and train.label_smoothing = 0, or compute the loss from logits",
        "la pérdida misma falla en el borde, como log 0 o 0 a una potencia negativa: la entropía cruzada simple no. Ponga "
        "train.focal_gamma = 0 y train.label_smoothing = 0, o calcule la pérdida a partir de los logits",
    ),
    "corrupt_weights": (
        "weights that are not finite were there before the step. Look at the checkpoint with `llueve checkpoint inspect`",
        "ya antes del paso había pesos no finitos. Mire el checkpoint con `llueve checkpoint inspect`",
    ),
    "corrupt_buffer": (
        "a stored table of the model that is not finite was there before the step. Train again",
        "ya antes del paso había una tabla del modelo no finita. Entrene otra vez",
    ),
    "damaged_weights": (
        "a few weights became absurd since the last healthy state, which no step explains: damaged memory. Train on from "
        "the healthy state, and test the memory",
        "unos pocos pesos se volvieron absurdos desde el último estado sano, y ningún paso lo explica: memoria dañada. "
        "Entrene desde el estado sano, y compruebe la memoria",
    ),
    "poisoned_moments": (
        "the optimiser's memory of earlier gradients is not sound; the step itself is. Train again from before it",
        "la memoria del optimizador sobre gradientes anteriores no es sana; el paso sí. Entrene desde antes",
    ),
    "poisoned_average": (
        "the moving average of the weights is not sound; the weights themselves are. Build it anew from the weights",
        "la media móvil de los pesos no es sana; los pesos mismos sí. Constrúyala de nuevo a partir de los pesos",
    ),
    "learning_rate": (
        "a learning rate that is no positive number, or weights that too large a rate has driven away. Lower "
        "train.encoder_learning_rate and train.head_learning_rate",
        "una tasa de aprendizaje que no es un número positivo, o pesos que una tasa demasiado alta ha disparado. Baje "
        "train.encoder_learning_rate y train.head_learning_rate",
    ),
    "missing_warmup": (
        "the rates were too large for the first steps only: the same steps with rates that rise slowly are sound. Raise "
        "train.warmup_steps",
        "las tasas eran demasiado altas solo para los primeros pasos: los mismos pasos con tasas que suben despacio son "
        "sanos. Suba train.warmup_steps",
    ),
    "exploding_gradient": (
        "single gradients were so large that applying them threw the weights away: clipped, the same steps are sound. Lower "
        "train.clip_norm to the usual norm",
        "algunos gradientes eran tan grandes que al aplicarlos dispararon los pesos: recortados, los mismos pasos son sanos. "
        "Baje train.clip_norm a la norma habitual",
    ),
    "half_precision": (
        'float32 gives sound numbers where bfloat16 does not. Set train.precision = "float32"',
        'float32 da números sanos donde bfloat16 no. Ponga train.precision = "float32"',
    ),
    "overflow": (
        "numbers beyond float32: float64 gives finite ones. Weights or inputs are of an absurd scale",
        "números fuera de float32: float64 los da finitos. Los pesos o las entradas tienen una escala absurda",
    ),
    "head_initialisation": (
        "the head's weights are of an absurd scale; a fresh head cures it. Initialise it anew",
        "los pesos de la cabeza tienen una escala absurda; una cabeza nueva lo cura. Inicialícela de nuevo",
    ),
    "encoder_weights": (
        "wrong architecture or scale of pre-trained weights: a fresh encoder cures it. Look at the checkpoint with `llueve "
        "checkpoint inspect`, and at model.architecture",
        "arquitectura o escala equivocada de los pesos preentrenados: un codificador nuevo lo cura. Mire el checkpoint con "
        "`llueve checkpoint inspect`, y model.architecture",
    ),
    "few_samples": (
        "a few samples alone make the step what it is. Look at them",
        "unas pocas muestras por sí solas causan el paso. Mírelas",
    ),
    "unknown": (
        "no single change cures it. Keep the incident and report it",
        "ningún cambio por sí solo lo cura. Guarde el incidente y comuníquelo",
    ),
}
"""In English and in Spanish, by cause: the closed list of causes."""
