"""Run a kept step again, and compare its numbers with the recorded ones."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llueve.stability.incidents.format import Incident, Scalar, this_machine, versions
from llueve.stability.reading import as_word
from llueve.step.gradients import finite_norm, loss_and_gradients
from llueve.step.random_state import set_random_states


@dataclass(frozen=True)
class Replayed:
    """The numbers of a replay beside the recorded ones."""

    recorded_loss: float
    recorded_norm: float
    loss: float
    gradient_norm: float
    same: bool
    """True if both numbers have the recorded bits, or are NaN as recorded."""
    elsewhere: tuple[str, ...]
    """Differences between this machine and the recorded one."""

    @property
    def verdict(self) -> str:
        """One sentence about the replay, with the size of a difference and its likely reason."""
        if self.same:
            return "the same bits: the step repeats exactly"
        pairs = (("loss", self.recorded_loss, self.loss), ("gradient norm", self.recorded_norm, self.gradient_norm))
        apart = "; ".join(f"{name} {there:g} there, {here:g} here{_apart(there, here)}" for name, there, here in pairs)
        if self.elsewhere:
            return (
                f"other numbers: {apart}. The circumstances differ, which can explain it: {'; '.join(self.elsewhere)}"
            )
        reason = "so the step does not repeat: damaged memory, or a fact that an incident does not record"
        return f"other numbers: {apart}. Machine, versions and threads are as recorded, {reason}"

    def as_dict(self) -> dict[str, Any]:
        """The replay for JSON."""
        recorded = {"loss": as_word(self.recorded_loss), "gradient_norm": as_word(self.recorded_norm)}
        here = {"loss": as_word(self.loss), "gradient_norm": as_word(self.gradient_norm)}
        numbers = {"same": self.same, "recorded": recorded, "here": here}
        return {**numbers, "elsewhere": list(self.elsewhere), "verdict": self.verdict}


@contextmanager
def recorded_circumstances(incident: Incident, threads: int | None = None) -> Iterator[None]:
    """Give torch the recorded random states, and the recorded or given number of threads, inside a `with` block."""
    before = torch.get_num_threads()
    device = device_for(incident)
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device.type == "cuda" else []):
        torch.set_num_threads(threads or incident.about.machine.threads)
        try:
            set_random_states(incident.step.random_state, device)
            yield
        finally:
            torch.set_num_threads(before)


def replay(incident: Incident, threads: int | None = None) -> Replayed:
    """Run the step again up to its gradients; on the same machine, versions and threads the bits are the same."""
    device = device_for(incident)
    step = incident.step.to(device)
    with recorded_circumstances(incident, threads):
        elsewhere = differences(incident, device)
        loss = float(loss_and_gradients(step.model, step.batch, step.config, step.precision))
        norm = finite_norm(step.model)
    recorded = (incident.about.loss, incident.about.gradient_norm)
    same = all(
        before.bits == Scalar.of(here).bits or (np.isnan(before.number) and np.isnan(here))
        for before, here in zip(recorded, (loss, norm), strict=True)
    )
    return Replayed(recorded[0].number, recorded[1].number, loss, norm, same, elsewhere)


def device_for(incident: Incident) -> torch.device:
    """The device of a replay: the recorded kind if this machine has it, else the processor."""
    return torch.device("cuda" if incident.about.device == "cuda" and torch.cuda.is_available() else "cpu")


def differences(incident: Incident, device: torch.device) -> tuple[str, ...]:
    """Differences between this machine with its software and the recorded ones, in words."""
    there = {**incident.about.machine.model_dump(), **incident.about.versions}
    here = {**this_machine(device).model_dump(), **versions()}
    return tuple(
        f"{name} {there.get(name)} there, {here.get(name)} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    )


def _apart(there: float, here: float) -> str:
    """Difference of two finite numbers, relative to the larger one."""
    largest = max(abs(there), abs(here))
    return f" ({abs(there - here) / largest:.2g} of it)" if np.isfinite(largest) and largest else ""
