"""One training step up to its gradients: what the loop does, and what is replayed when it went wrong.

Shapes: B batch, L steps, C variables, F facts known at issue time, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llueve.config import TrainConfig
from llueve.model.classifier import TimerXLForClassification
from llueve.model.losses import classification_loss
from llueve.model.products import quick_products


@dataclass(frozen=True)
class Batch:
    """Windows as the model takes them, with their outcomes."""

    x_BLC: Tensor
    """Training-set units; zero where not observed, unless missing cells were left raw."""
    observed_BLC: Tensor
    facts_BF: Tensor
    y_B: Tensor
    """Class indices."""

    def __len__(self) -> int:
        return len(self.y_B)

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        return Batch(self.x_BLC[rows], self.observed_BLC[rows], self.facts_BF[rows], self.y_B[rows])

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        return Batch(*(each.to(device) for each in (self.x_BLC, self.observed_BLC, self.facts_BF, self.y_B)))


@quick_products()
def loss_and_gradients(
    model: TimerXLForClassification,
    batch: Batch,
    config: TrainConfig,
    precision: torch.dtype,
    other_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The loss of a batch; its gradients are left in the parameters, those of earlier steps are dropped.

    The model is used in the mode it is in. Dropout draws from torch's default generator, so that one generator state, one
    batch and one set of weights give the same bits again on the same machine.

    Args:
        model, batch, config, precision: of the step.
        other_loss: of logits (B, K) and class indices (B,), in place of the configured one.
    """
    model.zero_grad(set_to_none=True)
    with model.encoder.computing_in(precision):
        logits_BK = model(batch.x_BLC, batch.observed_BLC, batch.facts_BF)
    if other_loss is not None:
        loss = other_loss(logits_BK, batch.y_B)
        loss.backward()
        return loss.detach()
    weights_K = None
    if config.class_weights is not None:
        weights_K = torch.tensor(config.class_weights, device=logits_BK.device)
    loss = classification_loss(logits_BK, batch.y_B, weights_K, config.focal_gamma, config.label_smoothing)
    loss.backward()
    return loss.detach()
