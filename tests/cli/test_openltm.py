"""OpenLTM's `run.py` on llueve: what each flag becomes, what is refused, and a command from end to end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from forks import forks
from llueve.cli.openltm import CsvSummary, map_flags, parse_flags, summarise_csv
from llueve.cli.openltm.flags import IGNORED_FLAGS, MAPPED_FLAGS
from llueve.config import parse_config
from llueve.errors import DataError, UsageError
from llueve.model.build import EncoderSizes
from llueve.model.checkpoints.convert import encode_checkpoint

ROOT = Path(__file__).parents[2]
NEEDED = "--task_name classification --is_training 1 --model_id X --model timer_xl_classifier --data PeruRainfall"
PERU = CsvSummary(
    Path("/data/peru.csv"),
    ("tp", "t2m", "timestamp", "region", "precipitation", "rain_24h"),
    "timestamp",
    "region",
    2190,
    12.0,
)
OTHER = CsvSummary(Path("/data/o.csv"), ("date", "a", "wet"), "date", None, 2000, 24.0, ("-1", "no", "yes"))
CHECKPOINT = {
    "architecture": "timer_xl",
    "patch_length": 96,
    "width": 1024,
    "layers": 8,
    "heads": 8,
    "feed_forward": 2048,
}


def mapped(text="", table=PERU, sizes=None):
    return map_flags(parse_flags(f"{NEEDED} --seq_len 96 {text}".split()), table, sizes)


def section(name, text="", **known):
    """A section of the configuration, which is also a valid one."""
    table = mapped(text, **known).sections
    parse_config(table, where="run.py")
    return table[name]


def effect(flag, text="", **known):
    (row,) = [row for row in mapped(text, **known).flags if row.name == flag]
    return row.effect


def refused(text, table=PERU):
    with pytest.raises(UsageError) as caught:
        mapped(text, table)
    return str(caught.value)


# Parsing


def test_values_switches_and_their_spellings():
    flags = parse_flags(
        [*NEEDED.split(), "--learning_rate=1e-6", "--use_norm", "0", "--cosine", "--des", "a b", "--ddp"]
    )
    assert flags["learning_rate"] == 1e-6 and flags["use_norm"] is False and flags["cosine"] is True
    assert flags["patience"] == 3 and "patience" not in flags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--lerning_rate 1", "--lerning_rate: unknown flag; did you mean --learning_rate?"),
        ("--zzzzzzzz 1", "--zzzzzzzz: unknown flag; flags with an effect are --task_name"),
        ("seq_len 1", "seq_len: unknown flag; did you mean --seq_len?"),
        ("--patience", "--patience: expected a value after it"),
        ("--patience --cosine", "--patience: expected a value after it"),
        ("--patience soon", "--patience soon: expected a whole number"),
        ("--dropout much", "--dropout much: expected a number"),
        ("--cosine=perhaps", "--cosine perhaps: expected 0 or 1"),
    ],
)
def test_what_cannot_be_parsed(arguments, message):
    with pytest.raises(UsageError) as caught:
        parse_flags([*NEEDED.split(), *arguments.split()])
    assert message in str(caught.value)


def test_required_flags():
    with pytest.raises(UsageError, match="--model_id, --data: required"):
        parse_flags(["--task_name", "classification", "--is_training", "1", "--model", "timer_xl_classifier"])


def test_the_flags():
    """A flag more or less is a change for those who have scripts."""
    assert not set(MAPPED_FLAGS) & set(IGNORED_FLAGS)
    assert (len(MAPPED_FLAGS), len(IGNORED_FLAGS)) == (36, 45)


# Mapping


def test_the_notes_command():
    command = (
        "--learning_rate 1e-6 --batch_size 16 --input_token_len 96 --adaptation --pretrain_model_path /c.pth --use_norm"
    )
    table = mapped(command, sizes=CHECKPOINT).sections
    config = parse_config(table, where="run.py")
    assert (config.train.encoder_learning_rate, config.train.head_learning_rate) == (1e-6, 1e-6)
    assert (config.train.batch_size, config.train.clip_norm, config.train.warmup_steps) == (16, 1.0, 0)
    assert (config.model.head, config.model.pretrained, config.model.instance_norm) == ("mean", "/c.pth", True)
    assert config.windows.missing == "mask"


def test_the_peru_table():
    assert section("target") == {"label": "rain_24h", "classes": ["0", "1"], "missing": ["-1"], "horizon_hours": 24}
    data = section("data")
    assert (data["site"], data["time"], data["exclude"]) == ("region", "timestamp", ["precipitation"])
    assert data["units"] == {"tp": "m", "t2m": "K"}


def test_another_table_with_its_target():
    table = map_flags(parse_flags(f"{NEEDED} --data custom --target wet --seq_len 96".split()), OTHER).sections
    assert table["target"]["label"] == "wet" and table["target"]["classes"] == ["no", "yes"]
    assert "site" not in table["data"] and table["data"]["exclude"] == []


@pytest.mark.parametrize(
    ("text", "name", "key", "value"),
    [
        ("", "train", "schedule", "constant"),
        ("--cosine --tmax 50", "train", "schedule", "cosine"),
        ("", "model", "instance_norm", False),
        ("--use_norm", "model", "instance_norm", True),
        ("--subset_rand_ratio 0.1", "train", "fraction", 0.1),
        ("--weight_decay 0.5", "train", "weight_decay", 0.5),
        ("--use_focal_loss", "train", "focal_gamma", 2.0),
        ("--use_focal_loss --focal_gamma 3", "train", "focal_gamma", 3.0),
        ("--use_focal_loss --focal_alpha 0.25", "train", "class_weights", [0.75, 0.25]),
        ("--use_focal_loss --focal_alpha 1,3", "train", "class_weights", [1.0, 3.0]),
        ("--class_weights 0.3,0.7", "train", "class_weights", [0.3, 0.7]),
        ("--d_model 64 --n_heads 4", "model", "width", 64),
        ("--input_token_len 24", "model", "patch_length", 24),
        ("", "train", "seed", 2021),
    ],
)
def test_a_flag_becomes_a_key(text, name, key, value):
    assert section(name, text)[key] == value


def test_sizes_of_the_checkpoint_win_and_a_difference_is_shown():
    text = "--adaptation --pretrain_model_path /c.pth --e_layers 4 --d_model 1024"
    assert not {"layers", "width", "heads"} & set(section("model", text, sizes=CHECKPOINT))
    assert effect("e_layers", text, sizes=CHECKPOINT) == "8, as in the checkpoint, not 4"
    assert effect("d_model", text, sizes=CHECKPOINT) == "1024, as in the checkpoint"


@pytest.mark.parametrize("name", IGNORED_FLAGS)
def test_a_flag_without_effect_gives_a_reason(name):
    value = {int: "1", float: "1", str: "a", bool: ""}[IGNORED_FLAGS[name][0]]
    assert effect(name, f"--{name} {value}").startswith("no effect: ")


def test_a_checkpoint_without_adaptation_is_unused():
    assert section("model", "--pretrain_model_path /c.pth").get("pretrained") is None
    assert effect("pretrain_model_path", "--pretrain_model_path /c.pth") == "unused without --adaptation"


def test_a_context_too_long_in_steps_is_read_in_hours():
    """2190 steps of 12 h: validation has 328 of them, of which at least half must outlast context + horizon."""
    assert section("windows", "--seq_len 162")["context"] == 162
    assert section("windows", "--seq_len 1440")["context"] == 120
    assert "1440 steps of 12 h are too long for a record of 2190 steps" in effect("seq_len", "--seq_len 1440")
    assert "expected at most 162" in refused("--seq_len 14400")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("--model timer_xl", "--model timer_xl: expected timer_xl_classifier"),
        ("--task_name imputation", "expected classification or forecast"),
        ("--data ETTh1", "expected PeruRainfall or custom"),
        ("--data custom", "--data custom: needs --target COLUMN"),
        ("--is_training 2", "expected 0 or 1"),
        ("--model_id ../x", "expected a name without folders"),
        ("--input_token_len 96 --output_token_len 48", "expected --input_token_len 96"),
        ("--test_seq_len 48", "expected --seq_len 96"),
        ("--activation gelu", "published with relu only"),
        ("--loss MSE", "trained with CE"),
        ("--focal_gamma 2", "belongs to --use_focal_loss"),
        ("--use_focal_loss --focal_alpha 0.5 --class_weights 1,1", "give one of them"),
        ("--class_weights 1,2,3", "expected 2 numbers above zero"),
        ("--class_weights 1,nan", "expected 2 numbers above zero"),
        ("--class_weights heavy,light", "expected numbers with commas"),
        ("--dp --ddp", "exclude each other"),
        ("--adaptation", "needs --pretrain_model_path"),
    ],
)
def test_what_is_refused(text, message):
    assert message in refused(text)


def test_other_classes_than_the_column_has():
    message = refused("--data custom --target wet --n_classes 3", OTHER)
    assert "--n_classes 3: the column wet holds the 2 values ['no', 'yes']" in message


# The table


def test_a_look_at_a_table(tmp_path):
    path = tmp_path / "t.csv"
    days = [f"2020-01-0{day}T00:00Z" for day in (1, 1, 3, 2)]
    path.write_text("date,site,wet\n{},a,1\n{},b,0\n{},a,\n{},a,1\n".format(*days))
    table = summarise_csv(path, "wet")
    assert (table.time, table.site, table.steps, table.step_hours, table.classes) == (
        "date",
        "site",
        3,
        24.0,
        ("0", "1"),
    )


@pytest.mark.parametrize(
    ("text", "target", "error", "message"),
    [
        (None, None, UsageError, "cannot be read"),
        ("a,b\n1,2\n", None, UsageError, "no column of times; expected one of timestamp"),
        ("time,b\n2020-01-01,2\n", "c", UsageError, "--target c: .* it has time, b"),
        ("time,b\nsoon,2\n", None, DataError, "is not a table with times"),
        ("time,b\n2020-01-01,2\n", None, DataError, "has 1 different times"),
        ("", None, DataError, "is not a table"),
    ],
)
def test_tables_that_cannot_be_looked_at(tmp_path, text, target, error, message):
    path = tmp_path / "t.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=message):
        summarise_csv(path, target)


# From end to end


def command(folder, *arguments):
    """As a user starts it."""
    given = [sys.executable, str(ROOT / "run.py"), *arguments]
    return subprocess.run(given, capture_output=True, text=True, cwd=folder, check=False)


def forked(folder, *arguments):
    """The same without the time of the imports."""
    code = f"import runpy; runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')"
    return forks().run(code, *arguments, folder=folder, COLUMNS="200")


@pytest.fixture
def project(tmp_path):
    """A table as the Peru loader read it, and a small checkpoint in OpenLTM's format."""
    random = np.random.default_rng(0)
    rows = []
    for region in ("costa", "sierra"):
        rain = random.gamma(0.5, 1e-3, 400)
        times = pd.date_range("2020-01-01 06:00", periods=400, freq="12h").strftime("%Y-%m-%d %H:%M:%S")
        after = np.append(rain[1:], 0)
        label = np.where(np.arange(400) < 398, after + random.gamma(0.5, 2e-4, 400) > 3e-4, -1).astype(int)
        rows.append(
            pd.DataFrame({"tp": rain, "t2m": random.normal(290, 5, 400), "timestamp": times, "region": region}).assign(
                precipitation=after, rain_24h=label
            )
        )
    (tmp_path / "data").mkdir()
    table = pd.concat(rows)
    table.loc[table.index < 4, "t2m"] = np.nan
    table.to_csv(tmp_path / "data" / "peru.csv", index=False)
    torch.manual_seed(0)
    encoder = EncoderSizes("timer_xl", patch_length=4, width=8, layers=1, heads=2, feed_forward=8).build()
    (tmp_path / "checkpoint.pth").write_bytes(encode_checkpoint(encoder, "openltm")["checkpoint.pth"])
    return tmp_path


def test_a_command_trains_and_its_evaluation_agrees(project):
    arguments = (
        f"{NEEDED} --root_path data/ --data_path peru.csv --checkpoints runs/ --seq_len 16 --input_token_len 96 "
        "--output_token_len 96 --test_seq_len 16 --e_layers 8 --d_model 1024 --d_ff 2048 --n_heads 8 --adaptation "
        "--pretrain_model_path checkpoint.pth --learning_rate 1e-3 --batch_size 16 --train_epochs 1 --use_norm --gpu 0 "
        "--num_workers 4 --des test"
    ).split()
    done = forked(project, *arguments)
    assert done.returncode == 0, done.stderr
    assert "1, as in the checkpoint, not 8" in done.stdout
    assert "--num_workers" in done.stdout and "no effect: windows are views" in done.stdout
    run = project / "runs" / "X"
    *_, line = (run / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["skipped"] == 0  # missing cells are masked
    verified = json.loads((run / "verification.json").read_text())
    again = forked(project, *NEEDED.replace("--is_training 1", "--is_training 0").split(), "--checkpoints", "runs/")
    assert again.returncode == 0, again.stderr
    assert json.loads((run / "verification.json").read_text()) == verified
    assert verified["verdict"].split(":")[0] in again.stdout.replace("\n", " ")


def test_wrong_use_has_its_exit_code_and_no_traceback(project):
    done = command(project, *NEEDED.split(), "--lerning_rate", "1")
    assert done.returncode == 2 and "did you mean --learning_rate?" in done.stderr and "Traceback" not in done.stderr
    assert command(project, "--help").returncode == 0
