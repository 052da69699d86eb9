"""Logits and probabilities of windows from a trained model.

Shapes: n windows, B batch, K classes.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llueve.model.batch import Batch, Future, NextDays, answer, device_of
from llueve.model.classifier import LARGEST, TimerXLForClassification
from llueve.model.kernels.matmul import quick_products
from llueve.model.sites import Scenes
from llueve.panel import FloatArray
from llueve.samples.scenes import Network, Scene
from llueve.samples.split import Part
from llueve.samples.windows import WindowSource

LEAST_WINDOWS, MOST_WINDOWS = 256, 2048
"""Windows that a forecast computes together: many of short ones, so that the overhead of each operation is small."""
TARGETS: dict[str, type[Future] | type[NextDays]] = {"future": Future, "days": NextDays}
"""Fields of a batch by the names of `WindowSource.targets`."""
CELLS = 1_000_000
"""Cells of the windows that a forecast computes together, between these limits."""


class EncoderFeatures(Protocol):
    """Features of the windows of a part: the output of `TimerXLForClassification.pool`, computed earlier."""

    def batch(self, chosen: NDArray[np.intp] | slice) -> Tensor:
        """Return the features (B, …) of some windows of the part."""


@quick_products()
def predict_logits(
    model: TimerXLForClassification, windows: WindowSource, part: Part, features: EncoderFeatures | None = None
) -> FloatArray:
    """Return logits (n, K) of every window of `part`, in float32; the model is set to evaluation mode.

    A model that sees other sites sees all windows of the same issue time, also those that are not in the part.

    Args:
        features: features of the windows, if they are known: the encoder is not computed. The part then holds every window of
            its issue times, if the model sees other sites.
    """
    model.eval()
    device = device_of(model)
    together = windows.network if model.sees_sites else None
    whole = part if together is None or features is not None else together.complete(part)
    logits_nK = np.empty((len(whole), model.num_classes), np.float32)
    with torch.inference_mode():
        for scenes in _chunks(whole, together, _windows_at_once(windows)):
            rows = np.concatenate([scene.rows for scene in scenes])
            numbers = (
                None if together is None else np.repeat(np.arange(len(scenes)), [len(each.rows) for each in scenes])
            )
            given = as_batch(windows, whole[rows], device, numbers)
            if features is not None:
                given = replace(given, features=features.batch(rows).to(device))
            found_nK = answer(model, given).logits_BK.cpu().numpy()
            answered = np.concatenate([scene.answered for scene in scenes])
            logits_nK[rows[answered]] = found_nK[answered]
    if whole is part:
        return logits_nK
    return logits_nK[np.isin(_identity(whole), _identity(part))]


def _windows_at_once(windows: WindowSource) -> int:
    return min(max(CELLS // windows.cells, LEAST_WINDOWS), MOST_WINDOWS)


def _chunks(part: Part, network: Network | None, size: int) -> Iterator[list[Scene]]:
    """Scenes that are computed together: about `size` windows, each alone or with all of its issue time."""
    if network is None:
        for start in range(0, len(part), size):
            rows = np.arange(start, min(start + size, len(part)))
            yield [Scene(rows, np.ones(len(rows), np.bool_))]
        return
    waiting: list[Scene] = []
    for scene in network.scenes(part):
        waiting.append(scene)
        if sum(len(each.rows) for each in waiting) >= size:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _identity(part: Part) -> NDArray[np.int64]:
    """One number for each window."""
    return part.site.astype(np.int64) << 32 | part.end


def probabilities(logits_BK: FloatArray) -> NDArray[np.float64]:
    """Return the softmax of logits (n, K), in float64."""
    return torch.from_numpy(logits_BK).double().softmax(-1).numpy()


def mean_logits(logits_MnK: FloatArray) -> NDArray[np.float64]:
    """Return the logarithm of the mean probability of M members, (n, K); the logits themselves for one member."""
    if len(logits_MnK) == 1:
        return np.asarray(logits_MnK[0], np.float64)
    log_share_MnK = torch.from_numpy(logits_MnK).double().log_softmax(-1)
    mean_nK: torch.Tensor = log_share_MnK.logsumexp(0) - math.log(len(logits_MnK))
    return np.asarray(mean_nK.numpy(), np.float64)


def as_batch(
    windows: WindowSource,
    part: Part,
    device: torch.device,
    scene_B: NDArray[np.int64] | None = None,
    with_future: bool = False,
) -> Batch:
    """Return the windows of `part` as a batch on a device.

    Args:
        scene_B: number of the scene of each window; None if the windows of one issue time are a scene.
        with_future: True to add what the forecasting loss compares with.
    """
    values_BCL, observed_BCL, facts_BF = (torch.from_numpy(np.ascontiguousarray(each)) for each in windows.batch(part))
    y_B, network, scenes = torch.from_numpy(part.y), windows.network, None
    if network is not None:
        scenes = Scenes(
            torch.from_numpy(part.end.astype(np.int64) if scene_B is None else scene_B.astype(np.int64)),
            torch.from_numpy(network.vector_S[part.site]),
            torch.from_numpy(network.position_S2[part.site]),
        )
    targets: dict[str, Future | NextDays] = {}
    for name, arrays in windows.targets(part).items() if with_future else ():
        tensors = [torch.from_numpy(each) for each in arrays]
        # As the model limits its input: otherwise one wrong cell outweighs all other losses of its batch.
        tensors[0] = tensors[0].clamp(-LARGEST, LARGEST)
        targets[name] = TARGETS[name](*tensors)
    x_BLC, observed_BLC = values_BCL.transpose(1, 2), observed_BCL.transpose(1, 2)
    return Batch(x_BLC, observed_BLC, facts_BF, y_B, scenes=scenes, **targets).to(device)  # type: ignore[arg-type]
