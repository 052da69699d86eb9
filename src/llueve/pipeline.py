"""Read first: the way of the data, as code.

    table → panel → audit → split → windows → encoder + head → probability → verification

Each function below is one verb of the command line.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from rich.console import Console

from llueve import run as files
from llueve.audit import audit_panel
from llueve.beginning import Beginning, require_same_table
from llueve.config import Config
from llueve.errors import ConfigError, DataError, GuardStop, RunError, UsageError
from llueve.forecasting import best_device, predict_logits, probabilities
from llueve.model.classifier import KNOTS
from llueve.model.pretrained import Format, inspect_checkpoint, load_pretrained
from llueve.model.timer_xl import TimerXL
from llueve.model.writing import encode_checkpoint
from llueve.panel import feature_cube, feature_names, observed_rows, static_table
from llueve.rain import class_labels
from llueve.reading import read_panel, read_source
from llueve.run import Run
from llueve.saved import SavedModel, fingerprint, load_model, save_model
from llueve.stability.incident import keep_incident
from llueve.torchrun import is_restarted
from llueve.training.checkpoint import Checkpoint, Checkpoints
from llueve.training.course import Surroundings
from llueve.training.interruption import Interruption
from llueve.training.loop import train_model
from llueve.training.processes import Processes, joined
from llueve.training.tracking import Tracking, require_trackers
from llueve.verification.references import ReferenceData
from llueve.verification.verify import verify
from llueve.windows import Part, Scaler, Split, build_windows, few_shot, fit_scaler, split_panel, thinned

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A finished training."""

    directory: Path
    verification: dict[str, Any]
    """The content of `verification.json`."""

    @property
    def verdict(self) -> str:
        """One sentence: does the model beat the best reference?"""
        return str(self.verification["verdict"])


def train(
    config: Config,
    directory: str | Path,
    overwrite: bool = False,
    console: Console | None = None,
    resume: bool = False,
) -> Result:
    """Train, verify on the test period, and leave a run directory; under torchrun with all its processes together.

    Args:
        config: what to do.
        directory: the run directory to make.
        overwrite: replace an earlier run there.
        console: where progress goes; standard error if None.
        resume: go on with the training that was interrupted there, bit for bit as if it had not been; begin it if there is
            none yet, and leave a finished one as it is.

    Raises:
        DataError, AuditError, GuardStop, Interrupted, RunError, WorkerLost: see `llueve.errors`.
    """
    require_trackers(config.track)
    if resume and overwrite:
        raise UsageError("resume keeps what overwrite replaces: give one of them")
    if (
        is_restarted()
    ):  # after a process was lost: what has been reached is gone on from, whatever was asked for at first
        resume, overwrite = True, False
    config = _with_checkpoint_sizes(config)
    run = Run(Path(directory))
    with joined(timedelta(minutes=config.processes.timeout_minutes)) as processes:
        begun = Beginning(overwrite)
        processes.alone(lambda: begun.look(run, config) if resume else run.require_free(overwrite))
        if verification := processes.alone(lambda: begun.verification):
            return Result(run.directory, verification)
        return _train(config, run, begun, processes, console or Console(stderr=True, quiet=not processes.is_first))


def _train(config: Config, run: Run, begun: Beginning, processes: Processes, console: Console) -> Result:
    """From the data to the verified model."""
    panel = read_panel(config)
    report = audit_panel(panel, config)
    report.require_clean(config.audit.allow)
    split = split_panel(panel, config)
    scaler = fit_scaler(panel, split.training_rows)

    def create() -> None:
        if begun.checkpoint is None:
            # Only now, so that neither a typing error nor bad data costs an earlier run or leaves half of a new one.
            run.create(config, begun.overwrite)
            run.write_json(files.AUDIT, report.as_dict())

    processes.alone(create)
    # A tracker belongs to process 0, as every file does.
    with Tracking(config, run.directory) if processes.is_first else nullcontext() as tracking:
        saved = _fit(panel, split, scaler, config, run, tracking, begun.checkpoint, processes, console)

        def finish() -> dict[str, Any]:
            probability = _probability(saved, panel, split.test)  # not finite, and no model is written
            save_model(run, saved)
            verification = _verify(run, saved, panel, split, probability, config, console)
            if tracking is not None:
                tracking.scores(verification)
            run.remove_checkpoints()
            return verification

        return Result(run.directory, processes.alone(finish))


def evaluate(directory: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Verify a trained run on its test period again, from its files and its table; returns `verification.json`.

    Raises:
        RunError: the run is incomplete. DataError: the table is gone or changed, so that its periods are no longer
            those that the run held out.
    """
    run, config = Run.open(directory)
    saved = load_model(run)
    panel = saved.aligned(read_source(config, known_categories=saved.categories))
    if fingerprint(panel) != saved.fingerprint:
        raise DataError(
            f"{config.data.path}: is not the table that the run was trained on: its cells have changed, so its test period "
            "may hold what the model was trained with. Restore it, train again, or use predict for other data"
        )
    split = split_panel(panel, config)
    probability = _probability(saved, panel, split.test)
    return _verify(run, saved, panel, split, probability, config, console or Console(stderr=True))


def predict(directory: str | Path, table: str | Path, every_window: bool = False) -> pd.DataFrame:
    """Probability of the event for a table without labels: columns site, time, probability.

    Args:
        directory: a finished run.
        table: CSV or Parquet with the trained columns, or ERA5 files, a pattern or a store's address with the trained
            variables.
        every_window: every complete window instead of each site's last one.

    Raises:
        DataError: the table's variables, units or step differ from the trained ones, or no site has a whole context.
    """
    run, config = Run.open(directory)
    saved = load_model(run)
    panel = saved.aligned(read_source(config, new=str(table), known_categories=saved.categories))
    for finding in panel.attrs["findings"]:
        if finding.severity == "warning":
            logger.warning(finding.message)
    part = _complete_windows(panel, saved.context, every_window)
    probability = _probability(saved, panel, part)
    return pd.DataFrame(
        {"site": panel["site"].values[part.site], "time": panel["time"].values[part.end], "probability": probability}
    )


def convert(source: str | Path, to: Format, output: str | Path, allow_missing: Sequence[str] = ()) -> list[Path]:
    """Write the encoder of a checkpoint, or of a run, in a published format; returns the files written into `output`.

    Args:
        source: what `load_pretrained` takes, or a run directory.
        to: `openltm`, `huggingface` or `safetensors`.
        output: folder, made if need be; files that are there are not replaced.
        allow_missing: tensors of a checkpoint that may be absent or left over; absent ones are freshly initialised.

    Raises:
        CheckpointError: the source cannot be read. UsageError: its architecture has no such format, or a file is there.
    """
    try:
        is_run = (Path(source) / files.MODEL).is_file()
    except OSError:  # a name that is too long, say: what reads checkpoints tells it better
        is_run = False
    encoder = (
        load_model(Run.open(source)[0]).classifier.encoder if is_run else load_pretrained(source, allow_missing)[0]
    )
    if isinstance(encoder, TimerXL) and encoder.positions != "flattened":
        logger.warning("the encoder was trained with positions = %r: say so when you load it", encoder.positions)
    contents = {Path(output) / name: content for name, content in encode_checkpoint(encoder, to).items()}
    for path in contents:
        if path.exists():
            raise UsageError(f"{path}: is there already; give another --output, or remove it")
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
        for path, content in contents.items():
            path.write_bytes(content)
    except OSError as error:
        raise RunError(f"{output}: cannot be written ({error.strerror or error}); choose another --output") from error
    return list(contents)


def _with_checkpoint_sizes(config: Config) -> Config:
    """The configuration with architecture and sizes of its checkpoint, if it names one.

    Raises:
        ConfigError: it asks for other sizes. CheckpointError: the checkpoint cannot be read.
    """
    if config.model.pretrained == "none":
        return config
    report, _ = inspect_checkpoint(config.model.pretrained)
    report.require_loadable(config.model.allow_missing)
    sizes = vars(report.sizes)
    for name, size in sizes.items():
        asked = getattr(config.model, name)
        if name in config.model.model_fields_set and asked != size:
            raise ConfigError(
                f"model.{name} = {asked}: the checkpoint {config.model.pretrained} has {size}; leave it out"
            )
    return config.model_copy(update={"model": config.model.model_copy(update=sizes)})


def _fit(
    panel: xr.Dataset,
    split: Split,
    scaler: Scaler,
    config: Config,
    run: Run,
    tracking: Tracking | None,
    resume: Checkpoint | None,
    processes: Processes,
    console: Console,
) -> SavedModel:
    """Train a model on the split and return it with everything that a prediction needs."""
    saved = SavedModel.build(panel, split, scaler, config)
    processes.alone(lambda: require_same_table(saved, config, run, resume))
    if processes.alone(lambda: saved.fingerprint) != saved.fingerprint:
        raise DataError(
            f"{config.data.path}: process {processes.rank} reads another table there than process 0; bring the same one to "
            "every machine"
        )
    windows = build_windows(panel, scaler, config.windows.context, config.windows.missing)
    saved.classifier.set_knots(windows.quantiles(split.training_rows, KNOTS))

    def record(line: dict[str, Any]) -> None:
        if processes.is_first:
            run.append_history(line)
        if tracking is not None:
            tracking.record(line)

    def keep(**step: Any) -> Path | None:
        try:
            return keep_incident(
                run.directory,
                **step,
                model_config=config.model,
                variables=saved.variables,
                classes=config.target.class_names,
                sites=panel["site"].values.tolist(),
                times=panel["time"].values,
                step_hours=float(panel.attrs["step_hours"]),
            )
        except RunError as error:  # a full disk is no reason to lose the training
            logger.warning("%s", error)
            return None

    training = thinned(split.training, config.windows.stride)
    with Interruption() as interruption:
        trained = train_model(
            saved.classifier,
            windows,
            few_shot(training, panel["time"].values, config.train.fraction, config.train.seed),
            split.validation,
            config.train,
            config.guard,
            Surroundings(
                record=record,
                keep=keep,
                fresh=saved.fresh,
                console=console,
                checkpoints=Checkpoints(run.directory),
                every=config.checkpoints,
                features=run.directory / files.FEATURES,
                facts=lambda: {
                    "history_bytes": run.history_bytes,
                    "incidents": run.newest_incident,
                    "fingerprint": saved.fingerprint,
                },
                interruption=interruption,
                processes=processes,
            ),
            resume,
        )
    saved.trained.update(trained.as_dict())
    return saved


def _verify(
    run: Run,
    saved: SavedModel,
    panel: xr.Dataset,
    split: Split,
    probability: NDArray[np.float64],
    config: Config,
    console: Console,
) -> dict[str, Any]:
    """Judge the forecasts of the test period beside the references, and write both."""
    event_ST = class_labels(panel, config.target)
    event_ST = np.where(np.isnan(event_ST), np.nan, event_ST == saved.event_index).astype(np.float32)
    reference_data = ReferenceData(
        cube_STC=feature_cube(panel, feature_names(panel)),
        statics_SF=static_table(panel),
        times=panel["time"].values,
        step_hours=saved.step_hours,
        horizon_hours=config.target.horizon_hours,
        event_ST=event_ST,
        training=split.training,
        validation=split.validation,
        lags=config.verify.lags,
        seed=config.train.seed,
    )
    sites = [str(site) for site in panel["site"].values]
    with console.status("fitting the references and judging the test period"):
        verification = verify(
            reference_data,
            split.test,
            probability,
            sites,
            bootstrap=config.verify.bootstrap,
            block_days=config.verify.block_days,
            event_index=saved.event_index,
        )
    rows = pd.DataFrame(
        {
            "site": panel["site"].values[split.test.site],
            "time": panel["time"].values[split.test.end],
            "observed": (split.test.y == saved.event_index).astype(int),
            "probability": probability,
        }
    )
    run.write(files.PREDICTIONS, lambda path: rows.to_csv(path, index=False))
    run.write_json(files.VERIFICATION, verification)
    return verification


def _probability(saved: SavedModel, panel: xr.Dataset, part: Part) -> NDArray[np.float64]:
    """Probability of the event for each window.

    Raises:
        GuardStop: any of them is not finite: no forecast is better than an invented one.
    """
    windows = build_windows(panel, saved.scaler, saved.context, saved.missing)
    logits_BK = predict_logits(saved.classifier.to(best_device()), windows, part)
    saved.classifier.to("cpu")
    probability = probabilities(logits_BK)[:, saved.event_index]
    bad = np.flatnonzero(~np.isfinite(probability))
    if len(bad):
        site, time = panel["site"].values[part.site[bad[0]]], panel["time"].values[part.end[bad[0]]]
        raise GuardStop(
            f"{len(bad)} of {len(part)} forecasts are not finite, the first for {site} at {time}; nothing is reported. "
            "Look at the inputs of that window, or at the model's weights"
        )
    return probability


def _complete_windows(panel: xr.Dataset, context: int, every_window: bool) -> Part:
    """Windows with a whole context inside their site's record and an observation at their issue time.

    Raises:
        DataError: a site has none.
    """
    sites, ends = [], []
    for number, observed in enumerate(observed_rows(panel)):
        rows = np.flatnonzero(observed)
        complete = rows[rows >= rows[0] + context - 1] if len(rows) else rows
        if not len(complete):
            raise DataError(
                f"{panel['site'].values[number]}: {len(rows)} rows do not fill one window of {context} steps; "
                "bring a longer table for this site, or leave it out"
            )
        chosen = complete if every_window else complete[-1:]
        sites.append(np.full(len(chosen), number))
        ends.append(chosen)
    site, end = np.concatenate(sites), np.concatenate(ends)
    return Part("prediction", site, end, np.zeros(len(site), np.int64))
