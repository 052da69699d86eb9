"""Read first: from a table to a verified model. Each public function is one verb of the command line.

table → panel → audit → split → windows → encoder + head → probability → verification
"""

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from rich.console import Console

from llueve.audit import audit_panel
from llueve.calibration.validation_fit import fit_on_validation
from llueve.config import Config, override_verify
from llueve.config.model_keys import DAY_HOURS
from llueve.csv_text import with_safe_sites
from llueve.distributed.processes import join_processes
from llueve.distributed.torchrun import has_begun, is_restarted, remember_begun
from llueve.errors import DataError, RunError, UsageError
from llueve.files import make_folder, write_whole
from llueve.model.build import with_sizes
from llueve.model.checkpoints.convert import encode_checkpoint
from llueve.model.checkpoints.locate import EMBEDDED
from llueve.model.checkpoints.pretrained import Format, load_pretrained, read_pretrained
from llueve.model.timer_xl import TimerXL
from llueve.model.weather_xl import WeatherXL
from llueve.panel import feature_cube, feature_names, fingerprint, site_positions, static_table
from llueve.paths import path_problem
from llueve.runs.directory import AUDIT, MODEL, PREDICTIONS, VERIFICATION, Run
from llueve.runs.lock import RunLock
from llueve.runs.model_files import load_model, require_own_configuration, save_model
from llueve.runs.outputs import require_separate, require_separate_data
from llueve.runs.replacement import replace_run, saying_how_to_resume
from llueve.runs.saved_model import SavedModel
from llueve.samples.encoder_inputs import encoder_problem
from llueve.samples.read import read_panel, read_source
from llueve.samples.scale import fit_scaler
from llueve.samples.split import Part, Split, complete_windows, split_panel, training_sample
from llueve.samples.target import event_outcomes, horizon_steps
from llueve.samples.windows import Windows
from llueve.step.forecast import Forecast, forecast_part, member_logits
from llueve.step.predict import mean_logits
from llueve.training.fit import Job, fit_members
from llueve.training.resume import StartingPoint, begin_run, find_start, resume_run
from llueve.training.tracking import Tracking, require_trackers
from llueve.verification.reference_data import ReferenceData
from llueve.verification.verify import verify

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A finished training, with the content of `verification.json`."""

    directory: Path
    verification: dict[str, Any]

    @property
    def verdict(self) -> str:
        """One sentence that compares the model with the best reference."""
        return str(self.verification["verdict"])


def train(
    config: Config, directory: str | Path, overwrite: bool = False, console: Console | None = None, resume: bool = False
) -> Result:
    """Train a model, verify it on the test period, and leave a run directory. Under torchrun all processes train together.

    Args:
        config, directory: the configuration, and the run directory to create.
        overwrite: replace an earlier run there. That run stays whole until the new one is verified.
        console: receives the progress; standard error if None.
        resume: continue an interrupted training there, bit-for-bit identical to an uninterrupted run. If there is no run yet,
            start it; if it is finished, leave it as it is.

    Raises:
        DataError, AuditError, GuardStop, Interrupted, RunError, WorkerLost: see `llueve.errors`.
    """
    require_trackers(config.track)
    if resume and overwrite:
        raise UsageError("resume keeps what overwrite replaces: give one of them")
    pretrained = None
    if config.model.names_weights:
        pretrained = read_pretrained(config.model.pretrained, config.model.allow_missing)
        with_sizes(config.model, pretrained.report.sizes)  # it may not ask for others
    run = Run(Path(directory))
    timeout = timedelta(minutes=config.processes.timeout_minutes)
    with join_processes(timeout) as processes, RunLock(run.directory) as lock:
        start = processes.on_first(
            lambda: _find_start(run, config, overwrite, resume, lock),
            lambda found: [str(found.run.directory), found.verification, found.members],
            lambda found: StartingPoint(Run(Path(found[0])), verification=found[1], members=found[2]),
        )
        if start.verification is not None:
            return Result(run.directory, start.verification)

        panel = read_panel(config)
        audit = audit_panel(panel, config)
        audit.require_clean(config.audit.allow)
        split = audit.split or split_panel(panel, config)
        scaler = fit_scaler(panel, split.training_rows)
        if config.model.pretrained == "auto" and _suits_embedded(panel, config):
            pretrained = read_pretrained(EMBEDDED)
            logger.info("starts from the weather encoder of the package (model.pretrained)")
        saved = SavedModel.build(panel, split, scaler, config, pretrained)
        further = partial(SavedModel.build, panel, split, scaler, pretrained=pretrained)
        build = further if config.train.members > 1 else None
        del pretrained, further  # its tensors are as large as the model
        windows = saved.windows(panel, horizon_steps(config.target.horizon_hours, saved.step_hours))
        # Only now, so that neither a typing error nor bad data leaves anything behind.
        processes.on_first(lambda: _begin(run, config, start, saved, audit.as_dict(), lock))

        console = console or Console(stderr=True, quiet=not processes.is_first)
        name = run.directory.resolve().name
        with (
            saying_how_to_resume(run, start.run) if processes.is_first else nullcontext(),
            Tracking(config, start.run.directory, name) if processes.is_first else nullcontext() as tracking,
        ):
            settled = config.model_copy(update={"train": config.train.for_encoder(saved.checkpoint is not None)})
            job = Job(settled, start.run, processes, console, tracking)
            saved = fit_members(job, saved, build, panel, split, windows, start)
            return Result(run.directory, processes.on_first(lambda: _finish(job, run, saved, panel, split, windows)))


def evaluate(directory: str | Path, console: Console | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Verify a trained run on its test period again; write `verification.json` again, and return its content.

    Each override is `verify.key=value`, as in `verify.bootstrap=200`.

    Raises:
        ConfigError: an override is not of `[verify]`, or is refused.
        RunError: the run is incomplete, or a training uses its directory.
        CheckpointError: its files are damaged, or do not belong together.
        DataError: the table is gone or has changed, and its periods with it.
    """
    with RunLock(Run.open(directory)[0].directory) as lock:
        lock.take()
        run, config, saved = _open(directory)
        config = config.model_copy(update={"verify": override_verify(config.verify, overrides)})
        return _evaluate(run, config, saved, console or Console(stderr=True))


def _evaluate(run: Run, config: Config, saved: SavedModel, console: Console) -> dict[str, Any]:
    panel = saved.aligned(read_source(config, known_categories=saved.categories))
    if fingerprint(panel) != saved.fingerprint:
        raise DataError(
            f"{config.data.path}: is not the table that the run was trained on: its cells have changed, so its test period "
            "may hold training data. Restore it, train again, or use predict for other data"
        )
    split = split_panel(panel, config)
    forecast = forecast_part(saved, panel, saved.windows(panel), split.test)
    return _verify(run, config, saved, panel, split, forecast, console)


def predict(directory: str | Path, table: str | Path, every_window: bool = False) -> pd.DataFrame:
    """Forecast the event for a table without labels: columns site, time, probability, event.

    The probability is calibrated, and `event` is 1 from the threshold of the run on (`[decision]`), otherwise 0.

    Args:
        directory: a finished run.
        table: CSV or Parquet with the trained columns, or ERA5 files, a pattern or the address of a store with the trained
            variables.
        every_window: forecast every complete window, not only the last one of each site.

    Raises:
        RunError: the run is incomplete. CheckpointError: its files are damaged, or do not belong together.
        DataError: the table's variables, units or step differ from the trained ones, or no site has a whole context.
    """
    _, config, saved = _open(directory)
    panel = saved.aligned(read_source(config, new=str(table), known_categories=saved.categories))
    for finding in panel.attrs["findings"]:
        if finding.severity == "warning":
            logger.warning(finding.message)
    part = complete_windows(panel, saved.context, every_window, config.windows.issue_hours)
    forecast = forecast_part(saved, panel, saved.windows(panel), part)
    yes = saved.decision.says_yes(forecast.event_n).astype(int)
    return _forecasts(panel, part, probability=forecast.event_n, event=yes, **forecast.spread)


def convert(source: str | Path, to: Format, output: str | Path, allow_missing: Sequence[str] = ()) -> list[Path]:
    """Write the encoder of a checkpoint, or of a run, in a published format; return the files written.

    Args:
        source: a checkpoint as `load_pretrained` takes it, or a run directory.
        to: `openltm`, `huggingface` or `safetensors`.
        output: folder for the files, created if it does not exist; existing files are not replaced.
        allow_missing: tensors of a checkpoint that may be absent or unexpected; absent ones are newly initialised.

    Raises:
        CheckpointError: the source cannot be read. UsageError: its architecture has no such format, or a file exists.
    """
    if problem := path_problem(str(output)):
        raise UsageError(f"{str(output)[:100]!r}: {problem}; give another --output")
    if _is_run(source):
        encoder = load_model(Run.open(source)[0]).classifier.encoder
    else:
        encoder, _ = load_pretrained(source, allow_missing)
    if to == "openltm" and isinstance(encoder, WeatherXL):
        logger.warning(
            "only the plain Timer-XL is written: embedding, layers and forecasting head. The vectors of quantities, levels, "
            "gaps, place and time, and the probabilities of rain have no place in OpenLTM, whose positions are also others"
        )
    elif isinstance(encoder, TimerXL) and encoder.positions != "flattened":
        logger.warning("the encoder was trained with positions = %r: set this when you load it", encoder.positions)
    contents = {Path(output) / name: content for name, content in encode_checkpoint(encoder, to).items()}
    if present := [path for path in contents if os.path.lexists(path)]:
        raise UsageError(f"{present[0]}: exists already; give another --output, or remove it")
    for path in contents:
        require_separate(path, [])
    try:
        make_folder(Path(output))
        for path, content in contents.items():
            write_whole(path, [content])
    except OSError as error:
        raise RunError(f"{output}: cannot be written ({error.strerror or error}); choose another --output") from error
    return list(contents)


def _suits_embedded(panel: xr.Dataset, config: Config) -> bool:
    """True if `model.pretrained = "auto"` means the weights of the package for this panel."""
    fresh = config.model.asks_for_sizes or config.train.recipe == "scratch"
    days = config.windows.context * float(panel.attrs["step_hours"]) / DAY_HOURS
    return not fresh and days >= 1 and encoder_problem(panel) is None


def _open(directory: str | Path) -> tuple[Run, Config, SavedModel]:
    """A trained run, whose files belong together."""
    run, config = Run.open(directory)
    saved = load_model(run)
    require_own_configuration(run, config, saved)
    return run, config, saved


def _find_start(run: Run, config: Config, overwrite: bool, resume: bool, lock: RunLock) -> StartingPoint:
    """The starting point of a training, under the lock of the run directory if there is a run in it."""
    require_separate_data(run.directory, config)
    if run.exists:
        lock.take(is_restarted())
    if has_begun(run.directory):  # torchrun starts the same command again after a process was lost
        resume, overwrite = True, False
    return find_start(run, config, overwrite, resume)


def _begin(
    run: Run, config: Config, start: StartingPoint, saved: SavedModel, audit: dict[str, Any], lock: RunLock
) -> None:
    """Create the run, or bring it to the state that the training resumes from."""
    if start.facts is None:
        begin_run(run, config, start, lock)
    else:
        resume_run(start.run, start.facts, saved, config)
    start.run.write_json(AUDIT, audit)
    remember_begun(run.directory)


def _finish(job: Job, run: Run, saved: SavedModel, panel: xr.Dataset, split: Split, windows: Windows) -> dict[str, Any]:
    """Calibrate, forecast the test period, write the model, verify. Without finite forecasts no model is written.

    A run that was trained to replace another one is moved over `run` at the end.
    """
    logits_nK = mean_logits(member_logits(saved, panel, windows, split.validation))
    calibration, decision = fit_on_validation(logits_nK, split.validation, panel["time"].values, job.config)
    saved = saved.model_copy(update={"calibration": calibration, "decision": decision})
    forecast = forecast_part(saved, panel, windows, split.test)
    save_model(job.run, saved)
    verification = _verify(job.run, job.config, saved, panel, split, forecast, job.console)
    if job.tracking is not None:
        job.tracking.scores(verification)
    job.run.remove_checkpoints()
    if job.run != run:
        replace_run(run)
    return verification


def _verify(
    run: Run,
    config: Config,
    saved: SavedModel,
    panel: xr.Dataset,
    split: Split,
    forecast: Forecast,
    console: Console,
) -> dict[str, Any]:
    """Compare the forecasts of the test period with the reference forecasts, and write both."""
    names = feature_names(panel)
    data = ReferenceData(
        cube_STC=feature_cube(panel, names),
        derived_C=np.array([panel[name].attrs.get("derived", False) for name in names]),
        statics_SF=static_table(panel),
        times=panel["time"].values,
        step_hours=saved.step_hours,
        horizon_hours=config.target.horizon_hours,
        context=saved.context,
        event_ST=event_outcomes(split.labels_ST, saved.event_index),
        training=split.training,
        validation=split.validation,
        sample=training_sample(split, config, panel["time"].values, saved.step_hours)
        if config.train.fraction < 1
        else None,
        lags=config.verify.lags,
        seed=config.train.seed,
        position_S2=site_positions(panel) if saved.sites is not None else None,
    )
    with console.status("fitting the references and verifying the test period"):
        verified = verify(
            data,
            split.test,
            forecast.share_nK,
            [str(site) for site in panel["site"].values],
            bootstrap=config.verify.bootstrap,
            block_days=config.verify.block_days,
            event_index=saved.event_index,
            threshold=saved.decision.threshold,
        )
    observed = (split.test.y == saved.event_index).astype(int)
    table = _forecasts(
        panel, split.test, observed=observed, probability=forecast.event_n, **forecast.spread, **verified.reference_p
    )
    run.write(PREDICTIONS, with_safe_sites(table).to_csv(index=False).encode())
    run.write_json(VERIFICATION, verified.content)
    return verified.content


def _forecasts(panel: xr.Dataset, part: Part, **columns: NDArray[Any]) -> pd.DataFrame:
    """A table with site and issue time of each window."""
    return pd.DataFrame({"site": panel["site"].values[part.site], "time": panel["time"].values[part.end], **columns})


def _is_run(source: str | Path) -> bool:
    try:
        return (Path(source) / MODEL).is_file()
    except OSError:  # a name that is too long, for example: the reader of checkpoints explains it
        return False
