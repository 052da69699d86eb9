"""One validated, frozen configuration: TOML in, TOML out.

Unknown keys and impossible values are refused with the key, the value, what was expected, and the nearest valid name.
Lengths in time carry their unit in the name; `context`, `stride` and `lags` count steps of the panel.
"""

import difflib
import glob
import tomllib
from datetime import date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from llueve.errors import ConfigError


def _as_moment(value: object) -> object:
    """A TOML date becomes its midnight; an aware moment becomes naive UTC, as everything inside a panel is UTC."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return value
    if isinstance(value, datetime):
        return (value - (value.utcoffset() or (value - value))).replace(tzinfo=None)
    if isinstance(value, date):
        return datetime.combine(value, time())
    return value


Moment = Annotated[datetime, BeforeValidator(_as_moment)]
"""A moment in UTC: a TOML date, or a date and time."""


class Section(BaseModel):
    """A frozen table of the TOML file that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """Where the table is and how to read it (`[data]`)."""

    path: str
    """File: absolute, relative to the configuration file, or `package:NAME/FILE` for one an installed package carries.
    An ERA5 archive may also be a folder, or a pattern such as `era5/2023-*.nc`."""
    more_paths: tuple[str, ...] = ()
    """Further files, folders or patterns of the same ERA5 archive."""
    format: Literal["auto", "csv", "parquet", "openmeteo", "ghcn", "era5"] = "auto"
    """`auto` goes by the file's first bytes; `ghcn` also takes a folder or a pattern of `.dly` files."""
    accumulation: Literal["auto", "previous_step", "from_00utc"] = "auto"
    """What an accumulated ERA5 value sums: the hour that ends at its time, or all hours since 00 UTC as in ERA5-Land.
    `auto` goes by what the files say of themselves and by the values, and refuses what neither can tell."""
    cells: Literal["all", "land"] = "all"
    """Cells of an ERA5 grid that enter a region's mean."""
    land_mask: str | None = None
    """NetCDF file with the share of land per cell (`lsm`), where the archive does not hold it."""
    start: Moment | None = None
    """First time to read of an ERA5 archive."""
    end: Moment | None = None
    """Exclusive end of the times to read of an ERA5 archive."""
    dask: str | None = None
    """Address of a dask cluster that reduces the archive, such as `tcp://10.0.0.5:8786`; without it, this machine."""
    site: str | None = None
    """Column that names the site; without one the whole table is a single site."""
    site_name: str = Field("site", min_length=1)
    """Name of that single site."""
    time: str = "time"
    """Column that holds the time."""
    time_format: str | None = None
    """`strptime` format; ISO 8601 without one."""
    time_zone: str = "UTC"
    """Zone of times that carry none."""
    step_hours: float | None = Field(None, gt=0)
    """Step of the panel in hours; without it, the step that the times themselves keep."""
    missing: tuple[str, ...] = ("", "NA", "N/A", "NaN", "nan", "null", "None")
    """Cell texts that mean "not observed"."""
    sentinels: tuple[float, ...] = ()
    """Numbers that mean "not observed", such as -9999."""
    infinite: Literal["error", "missing"] = "error"
    """What to do with infinite numbers."""
    duplicates: Literal["error", "first", "mean"] = "error"
    """What to do with several rows of one (site, time)."""
    exclude: tuple[str, ...] = ()
    """Columns that never become features, above all those that hold the future. The label column is always one."""
    variables: tuple[str, ...] | None = None
    """Columns that become features; without it, all that are not excluded."""
    wind_directions: tuple[str, ...] = ()
    """Columns of compass points (N, NNE …) or degrees: each becomes a sine and a cosine."""
    categories: dict[str, Literal["one-hot", "static"]] = {}
    """Text columns: `one-hot` makes one 0/1 variable per value, `static` one per-site value that never changes."""
    units: dict[str, str] = {}
    """Unit by column, such as `mm`; a header like `rain [mm]` says it too."""
    positions: str | None = None
    """Table with the columns site, latitude, longitude (degrees north and east), for what needs neighbours."""
    accumulation_hours: dict[str, float] = {}
    """Hours over which a precipitation column sums, where that is not one step of the table."""
    stamps: Literal["start", "end"] | None = None
    """Which end of `accumulation_hours` the times of an ERA5 archive mark; daily sums mostly mark the start."""


class RegionConfig(Section):
    """Cells of a grid that make one site (`[regions]`): a box, the cell nearest to a point, a polygon, or a mask."""

    box: tuple[float, float, float, float] | None = None
    """North, west, south, east in degrees; a west that is greater than the east crosses the date line."""
    point: tuple[float, float] | None = None
    """Latitude and longitude; the nearest cell is taken."""
    polygon: str | None = None
    """GeoJSON file; cells with their centre inside."""
    feature: str | None = None
    """The one feature of that file whose id, or one of whose properties, is this text; without it, all of them."""
    mask: str | None = None
    """NetCDF file on the grid of the archive; cells with at least 0.5."""
    variable: str | None = None
    """Variable of the mask file, where it holds several."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [name for name in ("box", "point", "polygon", "mask") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of box, point, polygon, mask; found {' and '.join(given) or 'none'}")
        if self.feature is not None and self.polygon is None:
            raise ValueError("feature belongs to polygon")
        if self.variable is not None and self.mask is None:
            raise ValueError("variable belongs to mask")
        north, west, south, east = self.box or (1.0, 0.0, 0.0, 1.0)
        latitude, longitude = self.point or (0.0, 0.0)
        if not (-90 <= south < north <= 90):
            raise ValueError(
                f"box is [north, west, south, east] with 90 ≥ north > south ≥ -90, found {list(self.box or ())}"
            )
        degrees = (west, east, longitude)
        if west == east or abs(east - west) > 360 or min(degrees) < -180 or max(degrees) > 360:
            raise ValueError("longitudes lie within -180 … 360, and the west of a box differs from its east")
        if abs(latitude) > 90:
            raise ValueError(f"point is [latitude, longitude]; {latitude:g} is no latitude")
        return self


class TargetConfig(Section):
    """What is forecast (`[target]`): a label column, or a sum of precipitation over the next hours."""

    label: str | None = None
    """Label column."""
    classes: tuple[str, ...] = ("0", "1")
    """Values of the label column, in the order of the classes."""
    missing: tuple[str, ...] = ()
    """Values of the label column that mean "unknown", besides `data.missing`."""
    event: str | None = None
    """The class whose probability is verified; without it the last one."""
    variable: str | None = None
    """Precipitation variable that is summed over the horizon."""
    threshold_mm: float | None = Field(None, ge=0.01)
    """The event is a sum of at least this many millimetres. Packed archives hold traces of rain that never fell: 0.1 mm
    is the usual least."""
    horizon_hours: float = Field(24.0, gt=0)
    """The target looks over (t, t + horizon]."""
    allow_sampled: bool = False
    """Accept sums of a variable whose accumulation is shorter than the step, knowing that they miss most of the rain."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.label is None) == (self.variable is None):
            raise ValueError(
                "give either label (a column) or variable (precipitation to sum), not both and not neither"
            )
        if self.variable is not None and self.threshold_mm is None:
            raise ValueError("variable needs threshold_mm, the millimetres from which it counts as rain, such as 1.0")
        if self.label is not None and self.threshold_mm is not None:
            raise ValueError("threshold_mm belongs to variable; a label column is already decided")
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise ValueError(f"classes needs at least two different values, found {list(self.classes)}")
        # `to_toml` writes the default too, so only another value tells a wish.
        if self.variable is not None and self.classes != type(self).model_fields["classes"].default:
            raise ValueError("classes belongs to label; with variable they are dry and wet")
        if self.event is not None and self.event not in self.class_names:
            raise ValueError(f"event is {self.event!r}, which is not one of the classes {list(self.class_names)}")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in order; `dry` and `wet` for a sum of precipitation."""
        return self.classes if self.label is not None else ("dry", "wet")

    @property
    def event_index(self) -> int:
        """Index of the class whose probability is verified."""
        return self.class_names.index(self.event) if self.event is not None else len(self.class_names) - 1


Statistic = Literal["mean", "std", "sum", "min", "max"]
Hours = Annotated[float, Field(gt=0)]


class Rolling(Section):
    """One statistic of a variable over the last hours (an entry of `features.rolling`)."""

    variable: str
    hours: Hours
    statistic: Statistic


class FeaturesConfig(Section):
    """Variables derived from those of the table (`[features]`); each is known at its own time."""

    wind: dict[str, tuple[str, str]] = {}
    """New name → eastward and northward component: `wind10 = ["u10", "v10"]` makes wind10_speed, _from_sin, _from_cos."""
    dewpoint_spread: dict[str, tuple[str, str]] = {}
    """New name → temperature and dewpoint."""
    relative_humidity: dict[str, tuple[str, str]] = {}
    """New name → temperature and dewpoint."""
    tendency_hours: dict[str, tuple[Hours, ...]] = {}
    """Variable → over how many hours its change is taken: `sp = [3, 24]` makes sp_change_3h and sp_change_24h."""
    lag_hours: dict[str, tuple[Hours, ...]] = {}
    """Variable → how many hours back."""
    rolling: tuple[Rolling, ...] = ()
    """Statistics over the last hours: `{ variable = "tp", hours = 168, statistic = "sum" }` makes tp_sum_168h."""
    neighbours: int = Field(0, ge=0, le=50)
    """How many nearest sites lend their variables."""
    neighbour_variables: tuple[str, ...] | None = None
    """Which of them; all without it."""


class SplitConfig(Section):
    """Training, validation and test periods (`[split]`): two cut dates, or two fractions of the panel's time span."""

    validation_start: Moment | None = None
    test_start: Moment | None = None
    test_end: Moment | None = None
    """Exclusive end of the test period; without it the end of the panel."""
    validation_fraction: float | None = Field(None, gt=0, lt=1)
    test_fraction: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        dates = (self.validation_start, self.test_start)
        fractions = (self.validation_fraction, self.test_fraction)
        neither = (None, None)
        if (dates == neither) == (fractions == neither) or (None in dates) == (None in fractions):
            raise ValueError(
                "give validation_start and test_start (dates), or validation_fraction and test_fraction (of the time span)"
            )
        if self.validation_start is not None and self.test_start is not None:
            if self.validation_start >= self.test_start:
                raise ValueError(f"validation_start {self.validation_start} is not before test_start {self.test_start}")
            if self.test_end is not None and self.test_start >= self.test_end:
                raise ValueError(f"test_start {self.test_start} is not before test_end {self.test_end}")
        if (self.validation_fraction or 0) + (self.test_fraction or 0) >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        return self


class WindowsConfig(Section):
    """What the model sees of the past (`[windows]`)."""

    context: int = Field(ge=1)
    """Steps that end at the issue time."""
    stride: int = Field(1, ge=1)
    """Train the model on every n-th issue time (validation, test and the references use all)."""
    missing: Literal["mask", "raw"] = "mask"
    """`mask` keeps missing cells out of every computation; `raw` hands them to the model as NaN, to show what then happens."""


class ModelConfig(Section):
    """The Timer-XL encoder and its classification head (`[model]`)."""

    head: Literal["variables", "mean"] = "variables"
    """`variables` pools each variable apart and keeps its level and spread; `mean` is the troubleshooting note's head."""
    pretrained: str = "none"
    """`none` for a fresh encoder, or a checkpoint: a file, a folder, or the name of a Hugging Face repository."""
    allow_missing: tuple[str, ...] = ()
    """Tensors of the checkpoint that may be absent or left over; `*` matches any text."""
    architecture: Literal["timer_xl", "timer"] = "timer_xl"
    """`timer_xl` sees all variables together, `timer` each alone. A checkpoint decides it, and the sizes below."""
    patch_length: int = Field(96, ge=1)
    """Steps in one token."""
    width: int = Field(64, ge=2)
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    feed_forward: int = Field(128, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    positions: Literal["flattened", "time"] = "flattened"
    """Rotary index: `flattened` runs over variable × patch as the public code does, `time` over the patch alone."""
    instance_norm: bool = True
    """Normalise each variable of each window by its own mean and spread, as the public checkpoints were trained."""

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if (self.width // self.heads) % 4:
            raise ValueError(
                f"width / heads is {self.width // self.heads}; half of it is rotated in pairs, so it must be a multiple of 4"
            )
        return self


class TrainConfig(Section):
    """How the model is trained (`[train]`)."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(64, ge=1)
    encoder_learning_rate: float = Field(1e-3, gt=0, le=1)
    head_learning_rate: float = Field(1e-3, gt=0, le=1)
    weight_decay: float = Field(0.01, ge=0, le=1)
    warmup_steps: int = Field(100, ge=0)
    """Optimiser steps over which both rates rise linearly from zero."""
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float = Field(1.0, gt=0)
    """Largest total gradient norm of one step."""
    patience: int = Field(3, ge=1)
    """Epochs without a better validation log-loss before training ends."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of training steps: `auto` takes bfloat16 products where the machine has them, the encoder is wide enough, and a
    first batch comes out alike. Forecasts, and every score of them, are computed in float32."""
    class_weights: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Weight of each class in the loss, in the order of the classes; without it all count alike."""
    focal_gamma: float = Field(0.0, ge=0, le=10)
    """Above zero, the focal loss: samples that are already told apart count less, by (1 − p)^gamma."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    average_decay: float = Field(0.0, ge=0, lt=1)
    """Above zero, validation and the model itself use a moving average of the weights, which keeps this share of itself at
    each step; 0.999 is usual."""
    accumulate: int = Field(1, ge=1)
    """Batches of one optimiser step."""
    seed: int = Field(0, ge=0, lt=2**63)


class AuditConfig(Section):
    """What the audit may let pass (`[audit]`)."""

    allow: tuple[str, ...] = ()
    """Codes of errors in spite of which training goes on, such as `sentinel`."""


class GuardConfig(Section):
    """When the guard ends a run (`[guard]`)."""

    max_skipped: float = Field(0.01, ge=0, le=1)
    """Share of an epoch's training samples that may be skipped; one more ends the run with exit code 3 and no model."""
    policy: Literal["repair", "skip", "stop"] = "repair"
    """What becomes of a refused step: its cause is found and mended, its samples are skipped, or the run ends."""


class CheckpointConfig(Section):
    """When the state of a training is written to the disk (`[checkpoints]`), besides the end of each epoch."""

    minutes: float = Field(10.0, gt=0)
    """At the latest after so many."""
    steps: int | None = Field(None, ge=1)
    """After each so many applied steps of a phase."""


class VerifyConfig(Section):
    """How the test period is judged (`[verify]`)."""

    lags: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 3, 7)
    """Steps back that logistic regression and gradient boosting see besides the issue time."""
    bootstrap: int = Field(1000, ge=100, le=100_000)
    """Resamples behind each interval."""
    block_days: int = Field(7, ge=1)
    """Days that are resampled together, since neighbouring days are alike; never shorter than the horizon."""


class Config(Section):
    """The whole configuration of a run."""

    data: DataConfig
    regions: dict[str, RegionConfig] = {}
    """Sites of an ERA5 archive by name; without it each cell is a site."""
    target: TargetConfig
    features: FeaturesConfig = FeaturesConfig()
    split: SplitConfig
    windows: WindowsConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    audit: AuditConfig = AuditConfig()
    guard: GuardConfig = GuardConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    verify: VerifyConfig = VerifyConfig()

    @model_validator(mode="after")
    def _weights(self) -> Self:
        weights, names = self.train.class_weights, self.target.class_names
        if weights is not None and len(weights) != len(names):
            raise ValueError(f"train.class_weights has {len(weights)} numbers for {len(names)} classes {list(names)}")
        return self

    def to_toml(self) -> str:
        """The configuration as TOML, with every default written out."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read and validate a TOML file.

    Args:
        path: the file. Relative paths in it are taken relative to its folder.
        overrides: `section.key=value` with the value in TOML, such as `model.head="mean"`; bare words are text.

    Raises:
        ConfigError: the file is absent or not TOML, or a key or value is refused; each with its key and the mend.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give the path of a TOML configuration"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML ({error}); see examples/ for a complete file") from error
    for override in overrides:
        _apply(table, override)
    return parse_config(table, where=str(path), folder=path.parent)


def parse_config(table: dict[str, Any], where: str, folder: Path | None = None) -> Config:
    """Validate a configuration that is already a dictionary; `where` names it in errors.

    With `folder`, relative paths in it become absolute, starting there.

    Raises:
        ConfigError: a key or value is refused.
    """
    try:
        config = Config.model_validate(table)
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors()]
        raise ConfigError("\n".join(f"{where}: {problem}" for problem in problems)) from None
    return config if folder is None else _absolute(config, folder)


def _absolute(config: Config, folder: Path) -> Config:
    """The configuration with paths that no longer depend on where its file lies."""
    data, model = config.data, config.model
    others = {
        name: _placed(path, folder) for name in ("land_mask", "positions") if (path := getattr(data, name)) is not None
    }
    more_paths = tuple(_placed(path, folder) for path in data.more_paths)
    data = data.model_copy(update={"path": _placed(data.path, folder), "more_paths": more_paths, **others})
    regions = {name: _region_placed(region, folder) for name, region in config.regions.items()}
    if (folder / model.pretrained).exists():  # else a word, or the name of a repository
        model = model.model_copy(update={"pretrained": str((folder / model.pretrained).resolve())})
    return config.model_copy(update={"data": data, "regions": regions, "model": model})


def _placed(path: str, folder: Path) -> str:
    """A path that no longer depends on the folder, unless it is a package's or an address.

    Where it is a pattern, brackets in the name of the folder are none of it.
    """
    if path.startswith("package:") or "://" in path:
        return path
    if not glob.has_magic(path) or (folder / path).exists():
        return str((folder / path).resolve())
    parts = Path(path).parts
    plain = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return str(Path(glob.escape(str(folder.joinpath(*parts[:plain]).resolve())), *parts[plain:]))


def _region_placed(region: RegionConfig, folder: Path) -> RegionConfig:
    files = {name: path for name in ("polygon", "mask") if (path := getattr(region, name)) is not None}
    return region.model_copy(update={name: _placed(path, folder) for name, path in files.items()})


def _apply(table: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in the parsed TOML."""
    key, equals, text = override.partition("=")
    path = [part.strip() for part in key.split(".")]
    if not (equals and len(path) > 1 and all(path)):
        raise ConfigError(f"--set {override}: expected section.key=value, such as train.epochs=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    for part in path[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{part} = {inner!r}: is no section, so --set {override} cannot change it; write [{part}]"
            )
        table = inner
    table[path[-1]] = value


def _explain(problem: Any) -> str:
    """One refused key as a sentence: key, value, what was expected, nearest valid name."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        return f"{key} = {problem['input']!r}: there is no such key; {_nearest(location)}"
    if problem["type"] == "missing":
        what = "section is missing" if len(location) == 1 else "is missing"
        return f"{key}: {what}; add it (examples/ has complete files)"
    if problem["type"] == "value_error":
        error = problem["ctx"]["error"]
        return f"{key}: {error}" if key else str(error)
    expected = problem["msg"][0].lower() + problem["msg"][1:]
    message = f"{key} = {problem['input']!r}: {expected}"
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        allowed = [word.strip(" '") for word in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
        close = difflib.get_close_matches(problem["input"], allowed, n=1)
        message += f"; did you mean {close[0]!r}?" if close else ""
    return message


def _nearest(location: list[str]) -> str:
    """What the writer of an unknown key probably meant."""
    sections = {
        name: list((RegionConfig if name == "regions" else field.annotation).model_fields)  # type: ignore[union-attr]
        for name, field in Config.model_fields.items()
    }
    unknown = location[-1]
    here = sections.get(location[0], []) if len(location) > 1 else list(sections)
    close = difflib.get_close_matches(unknown, here, n=1)
    if close:
        return f"did you mean {'.'.join([*location[:-1], close[0]])}?"
    elsewhere = [f"{section}.{key}" for section, keys in sections.items() for key in keys if key == unknown]
    if elsewhere:
        return f"did you mean {elsewhere[0]}?"
    return f"valid names here are {', '.join(here)}"
