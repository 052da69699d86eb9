"""Write a refused step to an incident file: the whole step, or nothing if the disk is full."""

import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from llueve.errors import RunError
from llueve.files import flush_folder
from llueve.runs.directory import INCIDENT, INCIDENTS
from llueve.runs.sealed_file import write_sealed
from llueve.stability.incidents.format import (
    FORMAT,
    DataNames,
    Description,
    Scalar,
    incident_folders,
    this_machine,
    versions,
)
from llueve.stability.reading import as_word
from llueve.stability.refused_step import RefusedStep

logger = logging.getLogger(__name__)

MOST = 20
"""Incidents that are kept per run: the first ones, since later ones often follow from them."""
MOST_BYTES = 4 * 2**30
"""Total size of the incidents of a run. The first is kept whatever its size, if it leaves half of the free disk."""


@dataclass(frozen=True)
class IncidentFolder:
    """The incidents of one run, for the training that may add to them."""

    run_directory: Path
    names: DataNames

    def keep(self, step: RefusedStep) -> Path | None:
        """Keep a refused step; a full disk becomes a warning, since it must not end the training."""
        try:
            return keep_incident(self.run_directory, step, self.names)
        except RunError as error:
            logger.warning("%s", error)
            return None


def keep_incident(run_directory: Path, step: RefusedStep, names: DataNames) -> Path | None:
    """Keep a refused step before anything of it changes.

    Returns:
        The new folder; None, with a line in the log, if there are too many already or the disk is too full.

    Raises:
        RunError: it cannot be written; nothing of it stays.
    """
    site_B, end_B = (torch.from_numpy(each.astype(np.int64)) for each in (step.rows.site, step.rows.end))
    groups: dict[str, Mapping[str, Tensor]] = {
        "batch": step.batch.tensors(),
        "rows": {"site_B": site_B, "end_B": end_B},
        "model": step.model.state_dict(),
        "moments": step.moments,
        "random": step.random_state,
    }
    tensors = {f"{group}.{name}": tensor for group, inside in groups.items() for name, tensor in inside.items()}
    folder = None
    try:
        folder = _next_folder(run_directory, sum(each.nbytes for each in tensors.values()))
        if folder is not None:
            for each in (folder.parent, run_directory):
                flush_folder(each)
            write_sealed(folder / INCIDENT, tensors, _describe(step, names).model_dump_json())
            logger.info("kept in %s", folder)
        return folder
    except OSError as error:
        if folder is not None:
            with suppress(OSError):
                folder.rmdir()
        found = f"a refused step cannot be kept there ({error.strerror or error})"
        where = folder or run_directory / INCIDENTS
        raise RunError(f"{where}: {found}; free the disk, or choose another --run") from error


def _describe(step: RefusedStep, names: DataNames) -> Description:
    batch = step.batch.tensors()
    return Description(
        format=FORMAT,
        kind=step.kind,
        reason=step.reason,
        epoch=step.epoch,
        step=step.reading.step,
        loss=Scalar.of(step.reading.loss),
        gradient_norm=Scalar.of(step.reading.gradient_norm),
        rates=[as_word(rate) for rate in step.reading.rates],
        changed=list(step.reading.changed),
        mode="train" if step.model.training else "eval",
        device=step.device.type,
        precision=str(step.precision).removeprefix("torch."),
        train=step.config,
        model=names.model,
        variables=list(names.variables),
        facts=step.batch.facts_BF.shape[1],
        classes=list(names.classes),
        frozen=[name for name, parameter in step.model.named_parameters() if not parameter.requires_grad],
        sites=[str(names.sites[index]) for index in step.rows.site],
        times=np.datetime_as_string(names.times[step.rows.end], unit="s").tolist(),
        step_hours=names.step_hours,
        context=step.batch.x_BLC.shape[1],
        missing=names.missing,
        site_vectors=names.site_vectors,
        pretraining=names.pretraining,
        memory={name: sorted(range(each.ndim), key=each.stride, reverse=True) for name, each in batch.items()},
        versions=versions(),
        machine=this_machine(step.device),
    )


def _next_folder(run_directory: Path, size: int) -> Path | None:
    """Create the folder of the next incident; None if it may not be kept."""
    folder = run_directory / INCIDENTS
    earlier = incident_folders(run_directory)
    if folder.is_symlink():
        raise OSError("the folder is a link, which is not followed")
    folder.mkdir(exist_ok=True)
    used = sum(path.lstat().st_size for each in earlier.values() for path in each.iterdir())
    refusal = None
    if len(earlier) >= MOST or 999 in earlier:
        refusal = f"there are {len(earlier)} already"
    elif earlier and used + size > MOST_BYTES:
        refusal = f"the earlier ones have {used:,} bytes, this one {size:,}, together at most {MOST_BYTES:,}"
    elif size > (free := shutil.disk_usage(folder).free) // 2:
        refusal = f"it has {size:,} bytes and the disk has {free:,} left, half of which are reserved for the model"
    if refusal:
        logger.warning("this step is not kept in %s: %s", folder, refusal)
        return None
    place = folder / f"{max(earlier, default=0) + 1:03d}"
    place.mkdir()
    return place
