"""One training step up to its gradients: what the loop does, and what is replayed when it went wrong.

Shapes: B batch, L steps, C variables, F facts known at issue time, K classes.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import deterministic as _deterministic

from llueve.config import TrainConfig
from llueve.model.classifier import TimerXLForClassification
from llueve.model.losses import classification_loss
from llueve.model.products import quick_products

deterministic: Any = _deterministic  # its switch is no attribute that a type checker sees

# The memory that CUDA's products may use decides their last bits; read once, before the first of them.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@dataclass(frozen=True)
class Batch:
    """Windows as the model takes them, with their outcomes."""

    x_BLC: Tensor
    """Training-set units; zero where not observed, unless missing cells were left raw."""
    observed_BLC: Tensor
    facts_BF: Tensor
    y_B: Tensor
    """Class indices."""
    features: Tensor | None = None
    """What `model.pool` gave for the windows, where it is known already: the step then starts from that, not from `x_BLC`."""

    def __len__(self) -> int:
        return len(self.y_B)

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        return self._each(lambda tensor: tensor[rows])

    @property
    def finite_B(self) -> Tensor:
        """Which samples hold finite numbers alone."""
        given = (self.x_BLC, self.facts_BF, *([] if self.features is None else [self.features]))
        finite_B: Tensor = torch.stack([each.isfinite().flatten(1).all(1) for each in given]).all(0)
        return finite_B

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device; out of pinned memory it is copied beside what the device does."""
        beside = device.type == "cuda"  # the way back must be waited for
        return self._each(lambda tensor: tensor.to(device, non_blocking=beside))

    def pinned(self) -> "Batch":
        """The batch in pinned memory of this machine."""
        return self._each(lambda tensor: tensor.pin_memory())

    def without_features(self) -> "Batch":
        """The batch whose step starts from `x_BLC`: for a change of the windows, of the encoder or of the precision to count."""
        return replace(self, features=None)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        features = None if self.features is None else change(self.features)
        return Batch(change(self.x_BLC), change(self.observed_BLC), change(self.facts_BF), change(self.y_B), features)


@quick_products()
def loss_and_gradients(
    model: TimerXLForClassification,
    batch: Batch,
    config: TrainConfig,
    precision: torch.dtype,
    other_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """The loss of a batch; its gradients are left in the parameters, those of earlier steps are dropped.

    A batch of more than `config.batch_size` windows (`accumulate`) is computed in pieces of that size: less memory, the same
    gradients. The model is used in the mode it is in. Dropout draws from torch's default generator of the device, so that one
    generator state, one batch and one set of weights give the same bits again on the same machine.

    Args:
        model, batch, config, precision: of the step.
        other_loss: of logits (B, K) and class indices (B,), in place of the configured one.
    """
    with _repeating(batch.y_B.device):
        return _compute(model, batch, config, precision, other_loss)


def _compute(
    model: TimerXLForClassification,
    batch: Batch,
    config: TrainConfig,
    precision: torch.dtype,
    other_loss: Callable[[Tensor, Tensor], Tensor] | None,
) -> Tensor:
    model.zero_grad(set_to_none=True)
    weights_K = None
    if config.class_weights is not None:
        weights_K = torch.tensor(config.class_weights, device=batch.y_B.device)
    total = torch.zeros((), device=batch.y_B.device)
    for start in range(0, len(batch), config.batch_size):
        piece = batch if len(batch) <= config.batch_size else batch[start : start + config.batch_size]
        with model.encoder.computing_in(precision):
            if piece.features is None:
                logits_BK = model(piece.x_BLC, piece.observed_BLC, piece.facts_BF)
            else:
                logits_BK = model.classify(piece.features, piece.facts_BF)
        if other_loss is not None:
            loss = other_loss(logits_BK, piece.y_B)
        else:
            loss = classification_loss(logits_BK, piece.y_B, weights_K, config.focal_gamma, config.label_smoothing)
        if piece is not batch:
            loss = loss * _share(piece, batch, weights_K)
        loss.backward()
        total = loss.detach() if piece is batch else total + loss.detach()
    return total


@contextmanager
def _repeating(device: torch.device) -> Iterator[None]:
    """Inside, an accelerator adds in the same order each time, as a processor always does.

    Attention's backward kernel would otherwise let blocks of keys add to one gradient in the order in which they finish.
    """
    if device.type == "cpu":
        yield
        return
    mode, filled = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    deterministic.fill_uninitialized_memory = False  # every number is written before it is read: a trace would tell
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        deterministic.fill_uninitialized_memory = filled


def total_norm(model: nn.Module, exact: bool = False) -> Tensor:
    """Euclidean norm of all gradients together.

    Args:
        exact: in float64, where no square of a finite gradient overflows.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return nn.utils.get_total_norm([each.double() for each in gradients] if exact else gradients, foreach=True)


def finite_norm(model: nn.Module) -> float:
    """The norm, in float64 where float32 does not hold it: infinite or NaN only if a gradient is."""
    norm = float(total_norm(model))
    return norm if math.isfinite(norm) else float(total_norm(model, exact=True))


def _share(piece: Batch, batch: Batch, weights_K: Tensor | None) -> Tensor | float:
    """How much the loss of a piece counts in that of the batch."""
    if weights_K is None:
        return len(piece) / len(batch)
    return weights_K[piece.y_B].sum() / weights_K[batch.y_B].sum()


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The generators that a step on `device` draws from, as they are now: to be taken before each forward pass."""
    states = {"cpu": torch.get_rng_state()}
    return states if device.type == "cpu" else {**states, "cuda": torch.cuda.get_rng_state(device)}


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the generators back to what `random_states` told."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
