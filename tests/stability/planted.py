"""A refused step that is sound, and the evidence for it: tests plant faults into it."""

import numpy as np
import torch

from llueve.config import TrainConfig
from llueve.model.batch import Batch
from llueve.model.classifier import TimerXLForClassification
from llueve.model.timer_xl import TimerXL
from llueve.samples.split import Part
from llueve.stability.diagnosis import Evidence
from llueve.stability.reading import FaultKind, Reading
from llueve.stability.refused_step import RefusedStep
from llueve.step.random_state import random_states

NAN, INF = float("nan"), float("inf")


def fresh(form, head, seed=0, variables=3, width=16):
    torch.manual_seed(seed)
    encoder = form(4, width=width, layers=2, heads=2, feed_forward=24, dropout=0.1)
    model = TimerXLForClassification(encoder, 2, head, num_variables=variables, num_facts=2).train()
    if head == "variables":
        torch.nn.init.normal_(model.head.out.weight)  # as after some steps: the gradient reaches the encoder
    return model


def planted(form=TimerXL, head="variables", seed=0, batch=8, steps=13, variables=3, **changes):
    model = fresh(form, head, seed, variables)
    torch.manual_seed(seed + 1)
    x_BLC = torch.randn(batch, steps, variables)
    given = Batch(x_BLC, torch.ones_like(x_BLC, dtype=torch.bool), torch.randn(batch, 2), torch.randint(2, (batch,)))
    rates = changes.pop("rates", (1e-3, 1e-3))
    step = {
        "kind": FaultKind(changes.pop("kind", "loss")),
        "reason": "planted",
        "epoch": 1,
        "reading": Reading(step=1, samples=batch, loss=float("nan"), gradient_norm=float("nan"), rates=rates),
        "rows": Part("training", np.zeros(batch, int), np.arange(batch), given.y_B.numpy()),
        "model": model,
        "batch": given,
        "config": TrainConfig(),
        "precision": torch.float32,
        "random_state": random_states(torch.device("cpu")),
        "moments": {},
    }
    evidence = Evidence(new_model=lambda: fresh(form, head, seed + 99, variables))
    return RefusedStep(**{**step, **changes}), evidence
