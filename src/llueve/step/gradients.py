"""One training step up to its gradients: the training runs it, and replays it to find the cause of a refused step.

Shapes: B batch, L steps, C variables, F facts known at issue time, K classes.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import deterministic as _deterministic

from llueve.config import TrainConfig
from llueve.model.batch import Batch, Future, answer
from llueve.model.classifier import TimerXLForClassification
from llueve.model.heads import Answer
from llueve.model.kernels.matmul import quick_products
from llueve.panel import UNKNOWN
from llueve.step.loss import day_losses, forecast_losses, sample_losses, weighted_mean

deterministic: Any = _deterministic  # type checkers do not know its attributes

# The workspace size of CUDA's products decides their last bits. CUDA reads it once, before the first product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@quick_products()
def loss_and_gradients(
    model: TimerXLForClassification,
    batch: Batch,
    config: TrainConfig,
    precision: torch.dtype,
    other_loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Return the loss of a batch and leave its gradients in the parameters; gradients of earlier steps are dropped.

    The loss is the mean over the windows with an outcome; of scenes the others are only seen. A batch of more than
    `config.batch_size` windows or scenes (`accumulate`) is computed in pieces of that size, which needs less memory and gives
    the same gradients. Dropout draws from torch's default generator of the device: the same generator state, batch and weights
    give the same bits on the same machine.

    Args:
        model: in training mode for a training step; its mode is not changed.
        batch: windows with outcomes, on the model's device.
        config: the `[train]` section of the phase.
        precision: of the products in the encoder, float32 or bfloat16.
        other_loss: function of logits (B, K) and class indices (B,) that replaces the configured loss.
    """
    model.zero_grad(set_to_none=True)
    weights, device = config.class_weights, batch.y_B.device
    weights_K = None if weights is None else torch.tensor(weights, device=device)
    total = torch.zeros((), device=device)
    with _deterministic_sums(device):
        for piece in batch.pieces(config.batch_size):
            with model.encoder.computing_in(precision):
                found = answer(model, piece)
            whole = len(piece) == len(batch)
            loss = _loss(found, piece, config, weights_K, other_loss)
            if not whole:
                loss = loss * _share(piece, batch, weights_K)
            loss.backward()
            total = loss.detach() if whole else total + loss.detach()
    return total


def _loss(
    found: Answer,
    batch: Batch,
    config: TrainConfig,
    weights_K: Tensor | None,
    other_loss: Callable[[Tensor, Tensor], Tensor] | None,
) -> Tensor:
    """The mean loss over the windows with an outcome; zero, with zero gradients, without such a window."""
    logits_BK, y_B, future, forecast_BC = found.logits_BK, batch.y_B, batch.future, found.future_BC
    known_B = y_B != UNKNOWN
    if batch.scenes is not None and not bool(known_B.all()):
        if not bool(known_B.any()):
            return logits_BK.sum() * 0
        logits_BK, y_B = logits_BK[known_B], y_B[known_B]
        forecast_BC = None if forecast_BC is None else forecast_BC[known_B]
        future = None if future is None else Future(*(each[known_B] for each in future))
    if other_loss is not None:
        return other_loss(logits_BK, y_B)
    if batch.days is not None and found.days is not None:
        return day_losses(found.days, batch.days, config.forecast_weight).mean()
    loss_B = sample_losses(logits_BK, y_B, config.focal_gamma, config.label_smoothing)
    if future is not None and forecast_BC is not None and config.forecast_weight > 0:
        loss_B = loss_B + config.forecast_weight * forecast_losses(forecast_BC, *future)
    return weighted_mean(loss_B, y_B, weights_K)


@contextmanager
def _deterministic_sums(device: torch.device) -> Iterator[None]:
    """Inside, an accelerator adds numbers in the same order each time, as a processor always does.

    Otherwise the backward kernel of attention adds the blocks of keys to a gradient in the order in which they finish.
    """
    if device.type == "cpu":
        yield
        return
    mode, filled = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    deterministic.fill_uninitialized_memory = False  # every number is written before it is read
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        deterministic.fill_uninitialized_memory = filled


def total_norm(model: nn.Module, exact: bool = False) -> Tensor:
    """Return the Euclidean norm of all gradients together.

    If `exact`, it is computed in float64, where no square of a finite float32 gradient overflows.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return nn.utils.get_total_norm([each.double() for each in gradients] if exact else gradients, foreach=True)


def finite_norm(model: nn.Module) -> float:
    """Return the norm of all gradients, in float64 if it overflows in float32: it is not finite only if a gradient is not."""
    norm = float(total_norm(model))
    return norm if math.isfinite(norm) else float(total_norm(model, exact=True))


def _share(piece: Batch, batch: Batch, weights_K: Tensor | None) -> Tensor | float:
    """Weight of the loss of a piece in the loss of the batch."""
    part_B, all_B = (each.y_B[each.y_B != UNKNOWN] for each in (piece, batch))
    if not len(all_B):
        return 0.0
    if weights_K is None:
        return len(part_B) / len(all_B)
    return weights_K[part_B].sum() / weights_K[all_B].sum()
