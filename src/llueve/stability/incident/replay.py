"""A kept step run again, and what can be said when its numbers differ."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llueve.stability.incident.description import Incident, Scalar, this_machine, versions, worded
from llueve.stability.step import finite_norm, loss_and_gradients


@dataclass(frozen=True)
class Replayed:
    """What the same step gave here."""

    recorded_loss: float
    recorded_norm: float
    loss: float
    gradient_norm: float
    same: bool
    """Both numbers have the recorded bits, or are NaN as recorded."""
    elsewhere: tuple[str, ...]
    """How this machine differs from the recorded one."""

    @property
    def verdict(self) -> str:
        """One sentence; if the numbers differ, by how much and why that can be."""
        if self.same:
            return "the same bits: the step repeats exactly"
        pairs = (("loss", self.recorded_loss, self.loss), ("gradient norm", self.recorded_norm, self.gradient_norm))
        apart = "; ".join(
            f"{name} {before:g} there, {here:g} here{_apart(before, here)}" for name, before, here in pairs
        )
        if self.elsewhere:
            return f"other numbers: {apart}. That can be, as the circumstances differ: {'; '.join(self.elsewhere)}"
        return (
            f"other numbers: {apart}. Machine, versions and threads are as recorded, so the step does not repeat: "
            "damaged memory, or something that an incident does not keep"
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "same": self.same,
            "recorded": {"loss": worded(self.recorded_loss), "gradient_norm": worded(self.recorded_norm)},
            "here": {"loss": worded(self.loss), "gradient_norm": worded(self.gradient_norm)},
            "elsewhere": list(self.elsewhere),
            "verdict": self.verdict,
        }


@contextmanager
def as_it_was(incident: Incident, threads: int | None = None) -> Iterator[None]:
    """Inside, torch has the recorded random states and number of threads (or that many); after it, its own again."""
    before = torch.get_num_threads()
    device = device_for(incident)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.set_num_threads(threads or incident.about.machine.threads)
        try:
            torch.set_rng_state(incident.random_state["cpu"])
            if device.type == "cuda":
                torch.cuda.set_rng_state(incident.random_state["cuda"], device)
            yield
        finally:
            torch.set_num_threads(before)


def replay(incident: Incident, threads: int | None = None) -> Replayed:
    """The same step again, up to its gradients: on the same machine and versions it gives the same bits.

    Args:
        threads: instead of the recorded number.
    """
    device = device_for(incident)
    model, batch = incident.build_model().to(device), incident.batch.to(device)
    with as_it_was(incident, threads):
        elsewhere = _differences(incident, device)
        loss = float(loss_and_gradients(model, batch, incident.about.train, incident.precision))
        norm = finite_norm(model)
    recorded = (incident.about.loss, incident.about.gradient_norm)
    same = all(
        before.bits == Scalar.of(here).bits or (np.isnan(before.number) and np.isnan(here))
        for before, here in zip(recorded, (loss, norm), strict=True)
    )
    return Replayed(recorded[0].number, recorded[1].number, loss, norm, same, elsewhere)


def device_for(incident: Incident) -> torch.device:
    """Where a step is run again: on a device as it was, if there is one here, else on the processor."""
    return torch.device("cuda" if incident.about.device == "cuda" and torch.cuda.is_available() else "cpu")


def _differences(incident: Incident, device: torch.device) -> tuple[str, ...]:
    """What is not as recorded, in words."""
    there = {**incident.about.machine.model_dump(), **incident.about.versions}
    here = {**this_machine(device).model_dump(), **versions()}
    return tuple(
        f"{name} {there.get(name)} there, {here.get(name)} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    )


def _apart(before: float, here: float) -> str:
    """How far two finite numbers are apart, relative to the larger."""
    largest = max(abs(before), abs(here))
    return f" ({abs(before - here) / largest:.2g} of it)" if np.isfinite(largest) and largest else ""
