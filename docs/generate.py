"""Write `configuration.md`, `cli.md`, and tables of `layout`, `pretraining` and `quantities` from the code: `make docs`."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

import llueve
from llueve.cli.main import EXIT_CODES, app
from llueve.cli.openltm.flags import IGNORED_FLAGS, MAPPED_FLAGS, REQUIRED_FLAGS
from llueve.config import Config, Section
from llueve.config.pretrain_keys import UNUSED, CorpusConfig, EncoderConfig, EncoderTrainConfig
from llueve.config.section import key_docstrings
from llueve.config.train_keys import TrainConfig
from llueve.quantities.catalogue import QUANTITIES, SAME_AS
from llueve.quantities.header_words import SEVERAL_MEANINGS, VOCABULARIES
from llueve.quantities.unit_table import SPELLINGS

FOLDER, SOURCE = Path(__file__).parent, Path(llueve.__file__).parent
NOTE = "<!-- Written by docs/generate.py: do not edit; change the code and run `make docs`. -->"
FILES_START, FILES_END = "<!-- files: start -->", "<!-- files: end -->"
DATE = "date, or date and time"
PRETRAINING_START, PRETRAINING_END = "<!-- pretraining: start -->", "<!-- pretraining: end -->"
DEFAULTS_START, DEFAULTS_END = "<!-- defaults: start -->", "<!-- defaults: end -->"
QUANTITIES_START, QUANTITIES_END = "<!-- quantities: start -->", "<!-- quantities: end -->"
NOUNS = {str: "text", int: "whole number", float: "number", bool: "`true` or `false`", datetime: DATE}
LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
EXAMPLES = {
    "data": (
        'path = "weather.csv"',
        'site = "station"',
        'time = "date"',
        'exclude = ["notes"]',
        'units = { rain = "mm" }',
    ),
    "regions": ("point = [-12.05, -77.04]", "", "[regions.sierra]", "box = [-8.0, -79.0, -16.0, -70.0]"),
    "target": ('variable = "rain"', "threshold_mm = 1.0", "horizon_hours = 24"),
    "features": ('wind = { wind10 = ["u10", "v10"] }', "lag_hours = { rain = [24, 48] }"),
    "features.rolling": ('variable = "rain"', "hours = 168", 'statistic = "sum"'),
    "split": ("validation_start = 2021-01-01", "test_start = 2022-01-01"),
    "windows": ("context = 32",),
    "model": ("patch_length = 8", "width = 32"),
    "train": ("epochs = 20", "batch_size = 32", "patience = 5"),
    "train.phases": (
        'name = "head"',
        'freeze = "encoder"',
        "epochs = 3",
        "",
        "[[train.phases]]",
        'name = "all"',
        "encoder_learning_rate = 1e-4",
    ),
    "audit": ('allow = ["sentinel"]',),
    "guard": ("max_skipped = 0.001", 'policy = "skip"'),
    "checkpoints": ("minutes = 5",),
    "track": ("tensorboard = true",),
    "processes": ("timeout_minutes = 10",),
    "calibration": ('method = "temperature"',),
    "decision": ('rule = "cost_loss"', "cost_loss_ratio = 0.2"),
    "verify": ("bootstrap = 2000", "lags = [1, 2, 7]"),
}
"""A small example of each section: the lines below its first header."""
MORE_EXIT_CODES = {"train": (3, 4), "pretrain": (3,), "evaluate": (3,), "predict": (3,), "audit": (4,)}
"""Exit codes of single commands, in addition to those of all commands."""


def paragraph(text: str) -> str:
    """A text in lines of at most 120 characters."""
    return textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False)


def table(heading: str, rows: Iterable[str]) -> str:
    """A table in Markdown: the names of its columns, and its rows."""
    return "\n".join((f"| {heading} |", f"|{' --- |' * (heading.count('|') + 1)}", *rows))


def page(*blocks: str) -> str:
    """The text of a page: its blocks, with an empty line between them."""
    return "\n\n".join(blocks) + "\n"


def default_in_words(required: bool, default: Any) -> str:
    """A default as TOML writes it."""
    return "required" if required else "none" if default is None else f"`{json.dumps(default, ensure_ascii=False)}`"


def key_default(field: FieldInfo) -> str:
    """The default of a key as TOML writes it."""
    return default_in_words(field.is_required(), field.get_default(call_default_factory=True))


# configuration.md


def sections() -> Iterator[tuple[str, type[Section], str]]:
    """Name, class and header of each section, and of the sections inside it."""
    for name, field in Config.model_fields.items():
        kind = _section_in(field.annotation)
        yield name, kind, f"[{name}.NAME]" if get_origin(field.annotation) is dict else f"[{name}]"
        for key, inner in kind.model_fields.items():
            if (entry := _section_in(inner.annotation)) is not None:
                yield f"{name}.{key}", entry, f"[[{name}.{key}]]"


def _section_in(kind: Any) -> Any:
    """The section class inside an annotation, if there is one."""
    candidates = (kind, *get_args(kind))
    return next((each for each in candidates if inspect.isclass(each) and issubclass(each, Section)), None)


def type_in_words(kind: Any, metadata: tuple[Any, ...] = (), plural: bool = False) -> str:
    """A type as a reader of TOML knows it, with its limits."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return type_in_words(arguments[0], (*arguments[1:], *metadata), plural)
    if origin in (Union, UnionType):
        (kind,) = (each for each in arguments if each is not NoneType)
        return type_in_words(kind, metadata, plural)
    if origin is Literal:
        return ("of " if plural else "") + ", ".join(f'`"{each}"`' for each in arguments)
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"list{'s' * plural} of {count}{type_in_words(arguments[0], plural=True)}"
    if origin is dict:
        return f"table: name = {type_in_words(arguments[1])}"
    if inspect.isclass(kind) and issubclass(kind, Section):
        return "tables" if plural else "table"
    limits = [limit for each in metadata for limit in (each.metadata if isinstance(each, FieldInfo) else [each])]
    given = {name: getattr(each, name) for each in limits for name in LIMITS if hasattr(each, name)}
    words = " and ".join(f"{LIMITS[name]} {number}" for name, number in given.items())
    if set(given) == {"ge", "le"}:
        words = f"from {given['ge']} to {given['le']}"
    return f"{NOUNS[kind]}{'s' * plural} {words}".strip()


def configuration_page() -> str:
    """The text of `docs/configuration.md`."""
    *most, last = (f"`[{name}]`" for name, field in Config.model_fields.items() if field.is_required())
    blocks = [
        paragraph(
            f"A configuration is a TOML file with one section per subject. The sections {', '.join(most)} and {last} are "
            "required; all others have defaults. A relative path starts at the folder of the file. An unknown key or an "
            "impossible value is an error, and the message names the nearest valid key."
        ),
        paragraph(
            "`llueve config check FILE` validates a file and prints it with all defaults. The option `--set` of `train`, "
            "`audit` and `config check` changes one key: `--set train.epochs=5`. The folder `examples/` has complete files."
        ),
    ]
    keys_of: dict[str, set[str]] = {}
    for name, section, header in sections():
        parent, docstrings = name.rpartition(".")[0], key_docstrings(section)
        keys_of[name] = set(section.model_fields)
        rows = []
        for key, field in section.model_fields.items():
            default = key_default(field)
            meaning = docstrings.get(key, "")
            if key in keys_of.get(parent, ()) and default == "none":
                default = f"that of `[{parent}]`"
                meaning = meaning or f"`{parent}.{key}` of this phase."
            kind = type_in_words(field.annotation, tuple(field.metadata))
            rows.append(f"| `{key}` | {kind} | {default} | {meaning} |")
        summary = " ".join((inspect.getdoc(section) or "").split()).replace(f" (`[{name}]`)", "")
        example = "\n".join((header.replace("NAME", "lima"), *EXAMPLES[name]))
        blocks += [f"## `{header}`", summary, *filter(None, [key_docstrings(Config).get(name)])]
        blocks += [table("key | type | default | meaning", rows), f"```toml\n{example}\n```"]
    return page("# Configuration", NOTE, *blocks)


# cli.md


def commands(command: Any = None, path: str = "llueve") -> Iterator[tuple[str, Any]]:
    """Each command with its full name."""
    command = command or typer.main.get_command(app)
    children = getattr(command, "commands", {})
    if not children:
        yield path, command
    for name, child in children.items():
        yield from commands(child, f"{path} {name}")


def is_option(parameter: Any) -> bool:
    """True if a parameter is an option, not an argument."""
    return bool(parameter.opts[0].startswith("-"))


def synopsis(path: str, parameters: list[Any]) -> str:
    """The command with its arguments and options, on lines of at most 100 characters."""
    words = [path]
    for parameter in parameters:
        word = f"{parameter.opts[0]} {parameter.metavar or ''}".strip() if is_option(parameter) else parameter.metavar
        if not parameter.required:
            word = f"[{word}]"
        if getattr(parameter, "multiple", False):
            word = f"({word})..." if parameter.required else f"{word}..."
        words.append(word)
    joined = " ".join(word.replace(" ", "\xa0") for word in words)  # no line ends inside a word
    return textwrap.fill(joined, 100, subsequent_indent="    ", break_on_hyphens=False).replace("\xa0", " ")


def parameter_row(parameter: Any) -> str:
    """One row of the table of a command."""
    names = parameter.opts if is_option(parameter) else [parameter.metavar]
    is_flag = getattr(parameter, "is_flag", False)
    default = "off" if is_flag else default_in_words(parameter.required, parameter.default)
    return f"| {', '.join(f'`{name}`' for name in names)} | {default} | {parameter.help} |"


def cli_page() -> str:
    """The text of `docs/cli.md`."""
    blocks = []
    for path, command in commands():
        parameters = sorted(command.params, key=is_option)
        codes = (0, 1, 2, *MORE_EXIT_CODES.get(path.removeprefix("llueve "), ()))
        blocks += [
            f"## `{path}`",
            paragraph(command.help),
            f"```\n{synopsis(path, parameters)}\n```",
            table("argument or option | default | meaning", map(parameter_row, parameters)),
            f"Exit codes: {', '.join(map(str, codes))}; 130 or 143 if a signal ends it.",
            f"Example:\n\n```sh\n{command.epilog.removeprefix('Example: ')}\n```",
        ]
    flags = (
        f"| `--{name}` | {NOUNS[flag.kind]} | {default_in_words(name in REQUIRED_FLAGS, flag.default)} |"
        for name, flag in MAPPED_FLAGS.items()
    )
    reasons: dict[str, list[str]] = {}
    for name, (_, reason) in IGNORED_FLAGS.items():
        reasons.setdefault(reason, []).append(f"`--{name}`")
    return page(
        "# Command line",
        NOTE,
        paragraph(
            "`llueve --version` prints the version. `llueve COMMAND --help` explains a command on the screen. Results go "
            "to standard output; messages and progress go to standard error."
        ),
        table("exit code | meaning", (f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())),
        *blocks,
        "## `python run.py`",
        "The flags of OpenLTM's `run.py` for classification. [docs/training.md](training.md) explains their effect.",
        table("flag | type | default", flags),
        "These flags have no effect:",
        table("flags | reason", (f"| {', '.join(names)} | {reason} |" for reason, names in reasons.items())),
    )


def layout_page() -> str:
    """The text of `docs/layout.md`, with the first sentence of each module of llueve between its two markers."""
    rows = []
    for path in sorted(SOURCE.rglob("*.py"), key=lambda path: (path.parent, path.name)):
        if path.name != "__init__.py" or path.parent == SOURCE:
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            sentence = re.split(r"(?<=[.!?])\s|\n\n", docstring)[0].replace("\n", " ").replace("|", r"\|")
            rows.append(f"| `{path.relative_to(SOURCE).as_posix()}` | {sentence} |")
    text = (FOLDER / "layout.md").read_text(encoding="utf-8")
    return between(text, FILES_START, FILES_END, table("file | what it does", rows))


# pretraining.md


def pretraining_page() -> str:
    """The text of `docs/pretraining.md`, with its keys and defaults from the code between their markers."""
    tables = []
    for section, kind in (("corpus", CorpusConfig), ("model", EncoderConfig)):
        rows = (
            f"| `{section}.{key}` | {type_in_words(field.annotation, tuple(field.metadata))} "
            f"| {key_default(field)} | {key_docstrings(kind)[key]} |"
            for key, field in kind.model_fields.items()
        )
        tables.append(table("key | type | default | meaning", rows))
    defaults = (
        f"| `train.{key}` | {default_in_words(False, field.default)} |"
        for key, field in EncoderTrainConfig.model_fields.items()
        if key not in UNUSED and field.default != TrainConfig.model_fields[key].default
    )
    text = (FOLDER / "pretraining.md").read_text(encoding="utf-8")
    text = between(text, PRETRAINING_START, PRETRAINING_END, "\n\n".join(tables))
    return between(text, DEFAULTS_START, DEFAULTS_END, table("key | default", defaults))


def between(text: str, start: str, end: str, content: str) -> str:
    """A text with other content between two markers."""
    before, _, rest = text.partition(start)
    return f"{before}{start}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


# quantities.md


def quantities_page() -> str:
    """The text of `docs/quantities.md`, with the quantities and the names of the code between its two markers."""
    rows = []
    for name, quantity in QUANTITIES.items():
        meanings = {text for each in VOCABULARIES for text in each.names if text.split()[0] == name}
        for meaning in sorted({name, *meanings}):
            given = {each.title: each.names[meaning].split(", ") for each in VOCABULARIES if meaning in each.names}
            names = "; ".join(f"{title}: {', '.join(f'`{word}`' for word in words)}" for title, words in given.items())
            bounds = f"{quantity.least:g} … {quantity.largest:g}"
            rows.append(
                f"| `{meaning}` | {quantity.units} | {', '.join(quantity.accepted)} | {bounds} | {names or '-'} |"
            )
    several = (
        f"| {', '.join(f'`{name}`' for name in names.split(', '))} | {', '.join(f'`{each}`' for each in meanings)} |"
        for names, meanings in SEVERAL_MEANINGS.items()
    )
    others = (f"| `{other}` | `{name}` |" for other, name in SAME_AS.items())
    units = (
        f"| {kind} | {'; '.join(', '.join(f'`{each}`' for each in spelled.split(' | ')) for spelled in spellings)} |"
        for kind, spellings in SPELLINGS.items()
    )
    tables = (
        "Each quantity with its canonical unit, the kinds of units that it may have, the range of its values, and the names by "
        "source:",
        table("quantity | unit | kinds | range | names", rows),
        "The units of each kind. `W/m²`, `W m**-2` and `w m^-2` are one spelling:",
        table("kind | units", units),
        "Names that need a unit or values to decide:",
        table("names | may be", several),
        "Other standard names, and the quantity that they become:",
        table("standard name | quantity", others),
    )
    text = (FOLDER / "quantities.md").read_text(encoding="utf-8")
    return between(text, QUANTITIES_START, QUANTITIES_END, "\n\n".join(tables))


PAGES = {
    "configuration.md": configuration_page,
    "cli.md": cli_page,
    "layout.md": layout_page,
    "pretraining.md": pretraining_page,
    "quantities.md": quantities_page,
}

if __name__ == "__main__":
    for name, text in PAGES.items():
        (FOLDER / name).write_text(text(), encoding="utf-8")
