"""`load_config` and `parse_config`: what is refused, in which words, and what survives a round trip."""

import re
import time as time_module
import tomllib
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from pathlib import Path
from typing import Any, get_args

import pytest

from llueve.config import (
    Config,
    PhaseConfig,
    RegionConfig,
    Rolling,
    Section,
    SplitConfig,
    TrainConfig,
    load_config,
    load_pretrain_config,
    parse_config,
    parse_pretrain_config,
)
from llueve.config.pretrain_keys import EncoderConfig, EncoderTrainConfig
from llueve.config.section import NOT_SET, key_docstrings
from llueve.config.train_keys import NamedPhase, PhaseKeys
from llueve.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "examples"
PRETRAINING = FOLDER / "pretrain.toml"
EXAMPLES = sorted({*FOLDER.glob("*.toml")} - {PRETRAINING})
SMALLEST: dict[str, dict[str, Any]] = {
    "data": {"path": "table.csv"},
    "target": {"label": "wet"},
    "split": {"validation_fraction": 0.2, "test_fraction": 0.2},
    "windows": {"context": 8},
}
DATES = {"validation_start": "2024-03-01", "test_start": "2024-06-01"}


def with_section(section: str, values: dict[str, Any]) -> Config:
    """The smallest configuration with one section replaced."""
    return parse_config({**SMALLEST, section: values}, where="here.toml")


def refused(section: str, values: dict[str, Any]) -> str:
    """The message, which names the file."""
    with pytest.raises(ConfigError) as caught:
        with_section(section, values)
    assert str(caught.value).startswith("here.toml: ")
    return str(caught.value)


def written(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def smallest(tmp_path: Path) -> Path:
    return written(tmp_path, parse_config(SMALLEST, where="").to_toml())


# Names


def test_an_unknown_key_names_the_nearest() -> None:
    message = refused("windows", {"context": 8, "contxt": 9})
    assert "windows.contxt = 9" in message and "did you mean windows.context?" in message


def test_an_unknown_section_names_the_nearest() -> None:
    assert "did you mean windows?" in refused("window", {"context": 8})


def test_a_key_in_the_wrong_section_names_the_right_one() -> None:
    assert "did you mean train.epochs?" in refused("model", {"epochs": 3})


def test_an_unknown_key_like_no_other_lists_the_valid_ones() -> None:
    message = refused("guard", {"zzz": 1})
    assert "guard.zzz" in message and "valid names here are max_skipped" in message


def test_every_problem_is_told_at_once() -> None:
    table = {**SMALLEST, "windows": {"context": -1}, "train": {"epoch": 1, "batch_size": 0}}
    with pytest.raises(ConfigError) as caught:
        parse_config(table, where="here.toml")
    for key in ("windows.context", "train.epoch", "train.batch_size"):
        assert f"here.toml: {key}" in str(caught.value)


def test_a_missing_section() -> None:
    table = {name: values for name, values in SMALLEST.items() if name != "split"}
    with pytest.raises(ConfigError, match="split: section is missing"):
        parse_config(table, where="here.toml")


def test_a_missing_key() -> None:
    assert "windows.context: is missing" in refused("windows", {})


# Values


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("windows", "context", -8),
        ("windows", "context", 0),
        ("windows", "context", 8.5),
        ("windows", "context", "long"),
        ("windows", "stride", 0),
        ("target", "horizon_hours", -24),
        ("target", "horizon_hours", 0),
        ("data", "step_hours", float("nan")),
        ("data", "path", 3),
        ("data", "exclude", "rain"),
        ("model", "layers", 0),
        ("model", "dropout", 1.0),
        ("model", "instance_norm", "perhaps"),
        ("train", "encoder_learning_rate", 0.0),
        ("train", "head_learning_rate", float("inf")),
        ("train", "patience", 0),
        ("train", "seed", -1),
        ("train", "fraction", 0.0),
        ("train", "layer_decay", 1.5),
        ("train", "accumulate", 0),
        ("guard", "max_skipped", 1.5),
        ("verify", "bootstrap", 99),
        ("verify", "lags", [1, 0]),
        ("split", "test_fraction", 1.0),
        ("split", "test_fraction", 0.0),
    ],
)
def test_an_impossible_value_names_its_key_and_itself(section: str, key: str, value: Any) -> None:
    message = refused(section, {**SMALLEST.get(section, {}), key: value})
    shown = value[-1] if isinstance(value, list) else value
    assert f"{section}.{key}" in message and f"= {shown!r}: " in message


def test_a_literal_with_a_typing_error_names_the_nearest() -> None:
    message = refused("windows", {"context": 8, "missing": "masked"})
    assert "windows.missing = 'masked'" in message and "did you mean 'mask'?" in message


def test_a_literal_like_no_other_lists_the_valid_ones() -> None:
    message = refused("train", {"schedule": "zzz"})
    assert "'cosine' or 'constant'" in message and "did you mean" not in message


def test_width_must_be_a_multiple_of_heads() -> None:
    assert "width 64 is not a multiple of heads 3" in refused("model", {"width": 64, "heads": 3})


def test_width_over_heads_must_be_a_multiple_of_four() -> None:
    assert "width / heads is 2" in refused("model", {"width": 8, "heads": 4})


# Target


@pytest.mark.parametrize("target", [{}, {"label": "wet", "variable": "tp"}])
def test_label_and_variable_exclude_each_other_and_one_is_needed(target: dict[str, Any]) -> None:
    message = refused("target", target)
    assert "target: give either label" in message and "not both and not neither" in message


def test_variable_needs_a_threshold() -> None:
    assert "variable needs threshold_mm" in refused("target", {"variable": "tp"})


def test_label_has_no_threshold() -> None:
    assert "threshold_mm belongs to variable" in refused("target", {"label": "wet", "threshold_mm": 1.0})


def test_variable_has_no_classes() -> None:
    message = refused("target", {"variable": "tp", "threshold_mm": 1.0, "classes": ["No", "Yes"]})
    assert "classes belongs to label" in message


@pytest.mark.parametrize("classes", [["1"], ["1", "1"]])
def test_classes_must_differ(classes: list[str]) -> None:
    assert "two different values" in refused("target", {"label": "wet", "classes": classes})


def test_the_event_must_be_a_class() -> None:
    message = refused("target", {"label": "wet", "event": "rain"})
    assert "'rain'" in message and "['0', '1']" in message


def test_the_event_is_the_last_class_unless_named() -> None:
    target = {"label": "wet", "classes": ["Yes", "No"]}
    assert with_section("target", target).target.event_index == 1
    assert with_section("target", {**target, "event": "Yes"}).target.event_index == 0


def test_a_sum_of_precipitation_has_the_classes_dry_and_wet() -> None:
    target = with_section("target", {"variable": "tp", "threshold_mm": 1.0}).target
    assert target.class_names == ("dry", "wet") and target.event_index == 1


# Split


@pytest.mark.parametrize(
    "split",
    [
        {},
        {**DATES, "validation_fraction": 0.2, "test_fraction": 0.2},
        {"validation_start": "2024-03-01"},
        {"test_fraction": 0.2},
        {"validation_start": "2024-03-01", "test_fraction": 0.2},
    ],
)
def test_either_two_dates_or_two_fractions(split: dict[str, Any]) -> None:
    assert "split: give validation_start and test_start (dates), or" in refused("split", split)


def test_cut_dates_in_the_wrong_order() -> None:
    message = refused("split", {"validation_start": "2024-06-01", "test_start": "2024-03-01"})
    assert "validation_start 2024-06-01 00:00 is not before test_start 2024-03-01" in message


def test_the_end_of_the_test_comes_after_its_start() -> None:
    message = refused("split", {**DATES, "test_end": "2024-06-01"})
    assert "test_start 2024-06-01 00:00 is not before test_end" in message


def test_fractions_must_leave_something_to_train_on() -> None:
    message = refused("split", {"validation_fraction": 0.5, "test_fraction": 0.5})
    assert "leave nothing to train on" in message


def test_a_date_without_a_meaning_is_refused() -> None:
    assert "split.test_start = 'soon'" in refused("split", {**DATES, "test_start": "soon"})


@pytest.mark.parametrize("moment", [2024, 20240301, 1.7e9, "2024", "1709251200"])
def test_a_number_is_not_a_date(moment: float | str) -> None:
    message = refused("split", {**DATES, "test_start": moment})
    assert f"split.test_start = {moment!r}: expected a date, or a date and time, such as 2022-01-02 or" in message


def test_dates_of_toml_and_text_with_an_offset_become_utc(tmp_path: Path) -> None:
    text = parse_config(SMALLEST, where="").to_toml()
    dates = '[split]\nvalidation_start = 2024-03-01\ntest_start = "2024-06-01T00:00:00+02:00"\n'
    split = load_config(written(tmp_path, re.sub(r"\[split\]\n(.+\n)+", dates, text))).split
    assert split.validation_start == datetime(2024, 3, 1)
    assert split.test_start == datetime(2024, 5, 31, 22)


# Phases and recipes

HEAD_THEN_ALL = [{"name": "head", "freeze": "encoder", "epochs": 2}, {"name": "all", "freeze": ["norms", "layers:1"]}]


def test_phases_take_what_they_leave_out_from_train() -> None:
    train = with_section("train", {"epochs": 7, "phases": HEAD_THEN_ALL}).train
    assert [train.in_phase(phase).epochs for phase in train.phases] == [2, 7]
    assert [phase.freeze for phase in train.phases] == [("encoder",), ("norms", "layers:1")]


@pytest.mark.parametrize("freeze", ["head", "layers:0", "layers:", "layers:-1", [], ["none", "encoder"], ""])
def test_what_cannot_be_frozen(freeze: Any) -> None:
    assert "train.phases.0: freeze = " in refused("train", {"phases": [{"name": "a", "freeze": freeze}]})


def test_names_of_phases_differ_and_are_not_empty() -> None:
    assert "names must differ, found ['a', 'a']" in refused("train", {"phases": [{"name": "a"}, {"name": "a"}]})
    assert "train.phases.0.name = ''" in refused("train", {"phases": [{"name": ""}]})


def test_an_unknown_key_of_a_phase_names_the_nearest() -> None:
    message = refused("train", {"phases": [{"name": "a", "frezze": "encoder"}]})
    assert "did you mean train.phases.0.freeze?" in message


def test_more_frozen_layers_than_there_are() -> None:
    table = {**SMALLEST, "train": {"phases": [{"name": "a", "freeze": "layers:3"}]}, "model": {"pretrained": "none"}}
    with pytest.raises(ConfigError) as caught:
        parse_config(table, where="here.toml")
    message = str(caught.value)
    assert "train.phases: a freezes layers:3, but model.layers = 2" in message


def test_a_recipe_and_phases_exclude_each_other() -> None:
    assert "has phases of its own" in refused("train", {"recipe": "default", "phases": [{"name": "a"}]})


def test_a_recipe_with_a_typing_error_names_the_nearest() -> None:
    assert "did you mean 'conservative'?" in refused("train", {"recipe": "conservativ"})


def test_scratch_has_no_pretrained_weights() -> None:
    table = {**SMALLEST, "train": {"recipe": "scratch"}, "model": {"pretrained": "there.pth"}}
    with pytest.raises(ConfigError, match=r"scratch.*model\.pretrained = 'there\.pth'; remove one of them"):
        parse_config(table, where="here.toml")


@pytest.mark.parametrize("epochs", [0, 0.5, 11])
def test_a_staircase_has_one_to_ten_whole_epochs(epochs: float) -> None:
    message = refused("train", {"warmup": "staircase", "warmup_epochs": epochs})
    assert f"needs warmup_epochs from 1 to 10, whole, found {epochs:g}" in message


@pytest.mark.parametrize("recipe", ["default", "conservative", "scratch"])
@pytest.mark.parametrize("changes", [{}, {"epochs": 4, "head_learning_rate": 0.25, "warmup_steps": 3}])
def test_a_recipe_survives_the_round_trip_as_its_phases(recipe: str, changes: dict[str, Any], tmp_path: Path) -> None:
    config = with_section("train", {"recipe": recipe, **changes})
    again = load_config(written(tmp_path, config.to_toml()))
    assert again.train == config.train.resolved()
    assert load_config(written(tmp_path, again.to_toml())) == again


def test_given_keys_hold_in_every_phase_of_a_recipe_but_epochs_in_the_last() -> None:
    train = with_section("train", {"recipe": "conservative", "epochs": 30, "head_learning_rate": 0.25}).train.resolved()
    head, everything = (train.in_phase(phase) for phase in train.phases)
    assert (head.epochs, everything.epochs) == (5, 30)
    assert (head.head_learning_rate, everything.head_learning_rate) == (0.25, 0.25)
    assert everything.encoder_learning_rate == 1e-6


def test_warm_up_in_steps_takes_the_place_of_a_recipes_epochs() -> None:
    train = with_section("train", {"recipe": "conservative", "warmup_steps": 40}).train.resolved()
    last = train.in_phase(train.phases[-1])
    assert (last.warmup_steps, last.warmup_epochs, last.warmup) == (40, 0, "linear")


# Files


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    path = written(tmp_path, "[data]\npath = \n")
    with pytest.raises(ConfigError, match=r"is not TOML .*line 2") as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"\xff\xfe[data]")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(tmp_path / "config.toml")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml: cannot be read \(No such file"):
        load_config(tmp_path / "nothing.toml")


def test_a_section_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train = 3"):
        load_config(written(tmp_path, "train = 3\n"))


def test_a_relative_path_starts_at_the_folder_of_the_configuration(
    smallest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    assert load_config(smallest).data.path == str((smallest.parent / "table.csv").resolve())


@pytest.mark.parametrize("path", ["/elsewhere/table.csv", "package:somewhere/table.csv"])
def test_absolute_paths_and_packages_stay(smallest: Path, path: str) -> None:
    assert load_config(smallest, (f"data.path={path}",)).data.path == path


# Overrides


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("train.epochs=5", "train", "epochs", 5),
        ("train.epochs = 5", "train", "epochs", 5),
        ("model.dropout=0.25", "model", "dropout", 0.25),
        ("model.instance_norm=false", "model", "instance_norm", False),
        ('model.head="mean"', "model", "head", "mean"),
        ("model.head=mean", "model", "head", "mean"),
        ("verify.lags=[1, 4]", "verify", "lags", (1, 4)),
        ('data.units={tp = "m"}', "data", "units", {"tp": "m"}),
        ("data.site_name=A=B", "data", "site_name", "A=B"),
    ],
)
def test_an_override_sets_one_typed_value(smallest: Path, override: str, section: str, key: str, value: Any) -> None:
    assert getattr(getattr(load_config(smallest, (override,)), section), key) == value


def test_the_last_override_of_a_key_holds(smallest: Path) -> None:
    assert load_config(smallest, ("train.epochs=5", "train.epochs=6")).train.epochs == 6


@pytest.mark.parametrize("override", ["train.epochs", "epochs=5", "train=5", "=5", "train.=5", ""])
def test_a_malformed_override_says_its_form(smallest: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"expected section\.key=value") as caught:
        load_config(smallest, (override,))
    assert f"--set {override}" in str(caught.value)


def test_an_override_of_an_unknown_key_names_the_nearest(smallest: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean train\.epochs\?"):
        load_config(smallest, ("train.epoch=5",))


def test_an_override_of_an_unknown_section_names_the_nearest(smallest: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean train\?"):
        load_config(smallest, ("trian.epochs=5",))


def test_an_override_inside_a_section_that_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train"):
        load_config(written(tmp_path, "train = 3\n"), ("train.epochs=5",))


# Round trip


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("data", {"path": "table.csv", "sentinels": [-9999.0], "units": {"tp": "m"}, "categories": {"sky": "static"}}),
        ("target", {"label": "wet", "classes": ["No", "Maybe", "Yes"], "event": "Maybe"}),
        ("target", {"variable": "tp", "threshold_mm": 0.1, "horizon_hours": 12.0}),
        ("split", {**DATES, "test_end": "2024-09-01T06:30:00"}),
        ("model", {"head": "mean", "width": 32, "heads": 8}),
        ("train", {"phases": HEAD_THEN_ALL, "layer_decay": 0.5, "warmup_epochs": 0.5, "fraction": 0.1}),
    ],
)
def test_toml_and_back(section: str, values: dict[str, Any], tmp_path: Path) -> None:
    config = with_section(section, values)
    path = written(tmp_path, config.to_toml())
    again = load_config(path)
    assert again.model_copy(update={"data": config.data}) == config
    assert again.model_copy(update={"data": config.data}).to_toml() == config.to_toml()
    assert again.data.path == str(tmp_path / "table.csv")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_loads_and_survives_the_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert load_config(written(tmp_path, config.to_toml())) == config


def test_the_example_of_a_pretraining_loads_and_survives_the_round_trip(tmp_path: Path) -> None:
    config = load_pretrain_config(PRETRAINING)
    assert load_pretrain_config(written(tmp_path, config.to_toml())) == config
    assert config.train == EncoderTrainConfig() and config.model == EncoderConfig()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "corpus: section is missing"),
        (
            {"corpus": {"path": "a", "window": 3}},
            "corpus.window = 3: this key does not exist; did you mean corpus.windows?",
        ),
        ({"corpus": {"path": "a"}, "model": {"widht": 8}}, "did you mean model.width?"),
        ({"corpus": {"path": "a"}, "model": {"width": 10}}, "model: width 10 is not a multiple of heads 4"),
        (
            {"corpus": {"path": "a"}, "train": {"members": 2}},
            "train.members: has no effect in a pre-training; remove it",
        ),
        ({"corpus": {"path": "a"}, "train": {"phases": [{"name": "x"}]}}, "train.phases: has no effect"),
        ({"corpus": {"path": "a"}, "train": {"forecast_weight": 0}}, "expected a number above 0"),
        ({"corpus": {"path": "a\0"}}, "corpus.path"),
        ({"data": {"path": "a"}, "corpus": {"path": "a"}}, "valid names here are corpus, model, train"),
    ],
)
def test_a_wrong_pretraining_is_explained(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_pretrain_config(table, "here")


def test_paths_of_a_pretraining_start_at_its_file(tmp_path: Path) -> None:
    config = load_pretrain_config(written(tmp_path, '[corpus]\npath = "a"\n[track]\nmlflow = "b"\n'))
    assert (config.corpus.path, config.track.mlflow) == (str(tmp_path / "a"), str(tmp_path / "b"))


def test_there_are_examples() -> None:
    assert EXAMPLES


def test_a_configuration_is_frozen() -> None:
    config = parse_config(SMALLEST, where="")
    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 3  # type: ignore[misc]


def test_a_setting_inside_a_table_can_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[data]\npath = "t.csv"\n[target]\nvariable = "rain"\nthreshold_mm = 1.0\n')
    fractions = ("split.validation_fraction=0.2", "split.test_fraction=0.2")
    config = load_config(path, ("data.units.rain=mm", 'data.categories.sky="static"', "windows.context=8", *fractions))
    assert config.data.units == {"rain": "mm"} and config.data.categories == {"sky": "static"}


@pytest.mark.parametrize(
    "split",
    [
        {"validation_start": "2020-01-01", "test_start": "2021-01-01", "test_fraction": 0.3},
        {"validation_fraction": 0.2},
        {"validation_start": "2020-01-01"},
        {},
    ],
)
def test_half_a_split_or_two_of_them_are_refused(split: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give validation_start and test_start"):
        SplitConfig.model_validate(split)


# Every key


def every_key(section: type[Section] = Config, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The place of each key in a configuration, also inside a region, a rolling statistic and a phase."""
    inside = {"regions": ("here",), "rolling": (0,), "phases": (0,)}
    for key, field in section.model_fields.items():
        yield (*path, key)
        kinds = (field.annotation, *get_args(field.annotation))
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Section):
                yield from every_key(kind, (*path, key, *inside.get(key, ())))


ODD_VALUES = (
    *(None, True, -1, 0, 0.5, 10**400, float("inf"), float("nan"), "", "x", "1e999", "9" * 5000, "\ud800", "None"),
    *([], [0], [-0.5], ["x"], ["x"] * 9, [[]], [None], [{}], {}, {"x": 0}, {"x": "x"}, {"x": ["x"]}, {"x": {"x": 0}}),
    *(date(2024, 1, 1), time(7), datetime(2024, 1, 1, 7), datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=9)))),
    *("2024-01-01T00:00:00+25:00", "2024-13-01", 1e30, -(2**63) - 1, ["x", "y"], [1, 2], [1, 2, 3, "x"]),
)
PYDANTIC = re.compile(
    r"[Ii]nput |should be|[Rr]equired\b|[Uu]nable|[Ee]xtra |valid (int|num|str|bool|dict|list|tuple|date)|"
    r"(less|greater) than|pydantic|type=|Value error|another value|items?\b"
)


@pytest.mark.parametrize("path", list(every_key()), ids=lambda path: ".".join(map(str, path)))
def test_every_refusal_of_every_key_is_in_our_words(path: tuple[str | int, ...]) -> None:
    for odd in ODD_VALUES:
        value: Any = odd
        for part in reversed(path[1:]):
            value = [value] if part == 0 else {part: value}
        table: dict[str, Any] = {**SMALLEST, path[0]: value}
        if isinstance(value, dict):
            table[str(path[0])] = {**SMALLEST.get(str(path[0]), {}), **value}
        try:
            config = parse_config(table, where="here.toml")
        except ConfigError as error:
            for line in str(error).splitlines():
                assert line.startswith("here.toml: ") and not PYDANTIC.search(line), line
        else:
            assert parse_config(tomllib.loads(config.to_toml()), where="again") == config.model_copy(
                update={"train": config.train.resolved()}
            )


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("windows", "context", -8, "windows.context = -8: expected a number of at least 1"),
        ("windows", "context", 8.5, "windows.context = 8.5: expected a whole number"),
        ("model", "dropout", 1.0, "model.dropout = 1.0: expected a number below 1"),
        ("model", "instance_norm", "perhaps", "model.instance_norm = 'perhaps': expected true or false"),
        ("train", "head_learning_rate", 0, "train.head_learning_rate = 0: expected a number above 0"),
        ("guard", "max_skipped", 1.5, "guard.max_skipped = 1.5: expected a number of at most 1"),
        ("data", "path", 3, "data.path = 3: expected text in quotes"),
        ("data", "site_name", "", "data.site_name = '': expected text that is not empty"),
        ("data", "exclude", "rain", "data.exclude = 'rain': expected a list in square brackets"),
        ("data", "units", [], "data.units = []: expected a table, with names and values"),
        ("data", "step_hours", float("nan"), "data.step_hours = nan: expected a finite number"),
        (
            "split",
            "test_start",
            "soon",
            "split.test_start = 'soon': expected a date, or a date and time, such as 2022-",
        ),
        (
            "features",
            "wind",
            {"w": ["u", "v", "w"]},
            "features.wind.w = ['u', 'v', 'w']: expected a list of 2, found 3",
        ),
        ("features", "wind", {"w": ["u"]}, "features.wind.w: value 2 of the list is missing"),
    ],
)
def test_a_refusal_gives_key_value_and_expectation(section: str, key: str, value: Any, expected: str) -> None:
    assert f"here.toml: {expected}" in refused(section, {**SMALLEST.get(section, {}), key: value})


def test_unknown_keys_inside_tables_name_the_nearest() -> None:
    rolling = {"variabel": "tp", "variable": "tp", "hours": 24, "statistic": "sum"}
    assert "did you mean features.rolling.0.variable?" in refused("features", {"rolling": [rolling]})
    assert "did you mean regions.lima.point?" in refused("regions", {"lima": {"point": [0, 0], "pont": [0, 0]}})


SECTIONS = [field.annotation for key, field in Config.model_fields.items() if key != "regions"]


@pytest.mark.parametrize("section", [Config, NamedPhase, RegionConfig, Rolling, *SECTIONS])
def test_every_key_has_a_docstring_and_says_what_happens_without_it(section: type[Section]) -> None:
    docstrings = key_docstrings(section)
    for key, field in section.model_fields.items():
        if not (section is Config and key != "regions"):  # a section has the docstring of its class
            assert docstrings.get(key, "").endswith("."), key
            assert (NOT_SET in docstrings[key]) == (field.default is None), key


def test_phases_take_exactly_the_keys_that_they_share_with_train() -> None:
    assert set(PhaseConfig.model_fields) == {"name", "freeze", *PhaseKeys.model_fields}
    assert set(PhaseKeys.model_fields) < set(TrainConfig.model_fields)
    phase = PhaseConfig(name="a", freeze="encoder")  # type: ignore[arg-type]
    assert phase.overrides == {} and phase.epochs is None
    assert PhaseConfig(name="a", epochs=3) != PhaseConfig(name="a")


def test_a_key_that_is_not_set_is_a_comment(tmp_path: Path) -> None:
    text = parse_config(SMALLEST, where="").to_toml()
    assert "# test_end =  # not set: the end of the data\n" in text
    (end,) = [line for line in text.splitlines() if "test_end" in line]
    dated = re.sub(r"(?m)^(validation|test)_fraction.*\n", "", text).replace(end, "test_end = 2024-09-01")
    dated = dated.replace("[split]\n", "[split]\nvalidation_start = 2024-03-01\ntest_start = 2024-06-01\n")
    config = load_config(written(tmp_path, dated))
    assert config.split.test_end == datetime(2024, 9, 1) and "# validation_fraction =" in config.to_toml()


# Hostile files


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "is not TOML (its lists or tables are nested too deep)"),
        ("a = " + "{b = " * 5000 + "1" + "}" * 5000, "is not TOML (its lists or tables are nested too deep)"),
        ("a = " + "[" * 50 + "]" * 50, "is nested too deep; expected at most 16 levels"),
        (".".join(["a"] * 50) + " = 1", "is nested too deep; expected at most 16 levels"),
        (".".join(["a"] * 3000) + " = 1", "line 1 has 2,999 dots, expected at most 500"),
        ("[" + ".".join(["a"] * 3000) + "]", "line 1 has 2,999 dots, expected at most 500"),
        ("a = " + "9" * 5000, "is not TOML (Exceeds the limit"),
        ("a = 0x" + "f" * 5000, "a: is a whole number of 20,000 bits; expected at most 64"),
        ("a = [1, 2, 0x1" + "0" * 16 + "]", "a.2: is a whole number of 65 bits"),
        ('a = "' + "x" * 20_000 + '"', "a: is a text of 20,000 characters; expected at most 10,000"),
        ("x" * 2000 + " = 1", "or 2,000 characters; expected at most 1,000"),
        ('a = "\\u0000"', "a: is a text with a NUL character"),
        ("a = [" + "[], " * 200_001 + "]", "has more than 200,000 keys and values"),
        ("#" * 2**20 + "\n", "has more than 1,048,576 bytes"),
        ("a = '\ud800'", "is not TOML"),
    ],
)
def test_a_hostile_file_is_refused_in_time(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    start = time_module.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert words in str(caught.value) and str(path) in str(caught.value) and len(str(caught.value)) < 20_000
    assert time_module.monotonic() - start < 20


def test_of_many_unknown_keys_the_first_are_explained_and_the_others_counted(tmp_path: Path) -> None:
    path = written(tmp_path, "".join(f"k{number} = 1\n" for number in range(90_000)))
    start = time_module.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    # Four sections are missing too.
    assert str(caught.value).count("\n") == 20 and "and 89,984 more refused keys or values" in str(caught.value)
    assert time_module.monotonic() - start < 20


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000, "0x" + "f" * 5000, "{a = " * 50 + "1" + "}" * 50])
def test_a_hostile_override_is_refused(smallest: Path, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(smallest, (f"windows.context={value}",))
    assert len(str(caught.value)) < 1000


def test_an_override_of_three_thousand_parts_is_refused(smallest: Path) -> None:
    with pytest.raises(ConfigError, match="nested too deep"):
        load_config(smallest, ("a." * 3000 + "b=1",))


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000, "x\0y", "\ud800"])
@pytest.mark.parametrize(
    "place",
    [
        "data.path",
        "data.more_paths",
        "data.land_mask",
        "data.positions",
        "model.pretrained",
        "track.mlflow",
        "regions.r.mask",
        "regions.r.polygon",
    ],
)
def test_an_impossible_path_is_refused_with_its_key(tmp_path: Path, place: str, path: str) -> None:
    *sections, key = place.split(".")
    table: dict[str, Any] = {name: dict(values) for name, values in SMALLEST.items()}
    inside = table
    for name in sections:
        inside = inside.setdefault(name, {})
    inside[key] = [path] if key == "more_paths" else path
    for folder in (None, tmp_path):
        with pytest.raises(ConfigError) as caught:
            parse_config(table, where="here.toml", folder=folder)
        assert place in str(caught.value) and len(str(caught.value)) < 1000


def test_a_configuration_at_an_impossible_path_is_refused() -> None:
    for path in ("x" * 300, "x\0y", "a/" * 3000):
        with pytest.raises(ConfigError, match=r"bytes; expected at most|NUL"):
            load_config(path)


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match=r"data\.path = 'loop/x\.csv': cannot be looked up"):
        parse_config({**SMALLEST, "data": {"path": "loop/x.csv"}}, where="here.toml", folder=tmp_path)


@pytest.mark.parametrize(
    "sizes",
    [
        {"width": 400_000_000},
        {"layers": 100_000},
        {"heads": 10**6},
        {"feed_forward": 2**40},
        {"patch_length": 2**21},
        {"width": 2**16, "heads": 1, "layers": 4},
    ],
)
def test_an_encoder_beyond_all_memory_is_refused(sizes: dict[str, int]) -> None:
    message = refused("model", sizes)
    assert "at most" in message and (len(sizes) > 1 or f"model.{next(iter(sizes))}" in message)


def test_a_hub_address_stays_as_it_is_and_any_other_text_is_a_path(tmp_path: Path) -> None:
    def pretrained(text: str) -> str | None:
        table = {**SMALLEST, "model": {"pretrained": text}}
        return parse_config(table, where="here.toml", folder=tmp_path).model.pretrained

    assert pretrained("hf://a/b@c") == "hf://a/b@c"
    assert pretrained("a/b") == str(tmp_path / "a" / "b")
    assert [pretrained(word) for word in ("auto", "none", "embedded")] == ["auto", "none", "embedded"]
    assert parse_config(SMALLEST, where="").model.pretrained == "auto"
