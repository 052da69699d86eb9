"""The model card as text for people: Markdown for the run directory, and a table for the screen."""

from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from llueve.model.checkpoints.model_card import GroupScores, ModelCard, SkillByAmount
from llueve.runs.directory import ENCODER

UNKNOWN = "not known"
NO_VALUE = "-"
MAIN_MM = 1.0
"""Amount of rain that has all scores in the table of groups."""


def card_text(card: ModelCard) -> str:
    """The text of `MODEL_CARD.md`."""
    blocks = [
        "# Weather encoder",
        f"A Timer-XL for hourly weather, pre-trained by llueve {card.llueve}. From up to {card.days} days of "
        f"{len(card.quantities)} quantities it forecasts, after each day, the values of the next day and the probability of "
        f"{_words(f'{each.mm:g}' for each in card.overall.amounts)} mm of rain.",
        *_origin(card),
        *_corpus(card),
        *_scores(card),
        *_recalibration(card),
        "## Limits",
        "\n".join(f"- {each}" for each in card.limits),
    ]
    return "\n\n".join(blocks) + "\n"


def _origin(card: ModelCard) -> list[str]:
    """Sizes and training."""
    training = card.training
    sizes = (
        ("width, layers, heads", f"{card.width}, {card.layers}, {card.heads}"),
        ("feed-forward", str(card.feed_forward)),
        ("parameters", f"{card.parameters:,}, stored as {card.storage}"),
        (f"SHA-256 of `{ENCODER}`", f"`{card.sha256}`"),
    )
    return [
        "## Sizes",
        _table(("what", "value"), sizes),
        f"Quantities: {', '.join(card.quantities)}.",
        "## Training",
        f"{training.steps:,} steps in {training.epochs} epochs over {training.windows:,} windows took "
        f"{training.seconds:,.0f} s. The best epoch was {training.best_epoch}. The seed was {training.seed}. "
        f"{training.skipped:,} samples were skipped and {training.quarantined:,} were in quarantine.",
        "This command makes the same encoder from the same corpus, with the `config.toml` beside this card:",
        f"```sh\n{card.command}\n```",
    ]


def _corpus(card: ModelCard) -> list[str]:
    rows = (
        (
            each.group,
            f"{each.sites:,}",
            str(each.held_out),
            f"{each.hours:,}",
            f"{each.window_share:.1%}",
            each.source or UNKNOWN,
            each.licence or UNKNOWN,
        )
        for each in card.corpus
    )
    left_out = [f"- `{name}`: {reason}" for name, reason in card.left_out.items()]
    return [
        "## Corpus",
        f"SHA-256 of its content: `{card.corpus_sha256}`. Source and licence are those that `PROVENANCE.md` gives.",
        _table(("group", "sites", "held out", "hours", "windows", "source", "licence"), rows),
        *(["Files that were left out:", "\n".join(left_out)] if left_out else []),
    ]


def _scores(card: ModelCard) -> list[str]:
    errors = (
        (each.quantity, f"{each.values:,}", *(_number(x) for x in (each.model, each.persistence, each.climatology)))
        for each in card.errors
    )
    return [
        "## Scores at held-out sites",
        "Rain in the 24 hours after the issue time, at sites that the training never saw. BSS is the Brier skill score against "
        "the climatology of the same site: 0 is as good as climatology, 1 is perfect. Rain, Brier, BSS, AUC and the last "
        f"column are those of {MAIN_MM:g} mm. The last column counts sites with a positive BSS among those with at least 20 "
        "events and 20 other windows. The row `far from training` holds the sites that are known to be at least 50 km from "
        "every site of the training.",
        _table(_headings(card.overall), (_row(each) for each in card.scores)),
        "Mean absolute error of the next 24 hours, in the units of the encoder (standard deviations of the site; of rain, "
        "log(1 + mm)):",
        _table(("quantity", "hours", "encoder", "persistence", "climatology"), errors),
    ]


def _recalibration(card: ModelCard) -> list[str]:
    rows = (
        (
            zone.zone,
            str(zone.sites),
            str(zone.held_out),
            f"{each.mm:g}",
            f"{each.slope:.3f}",
            f"{each.shift:+.3f}",
            _number(each.held_out.skill),
            _number(each.recalibrated.skill),
            _better(each.recalibrated),
        )
        for zone in card.zones
        for each in zone.amounts
    )
    return [
        "## Recalibration by climate zone",
        "The zones are those of the latitude: tropical below 23.5°, subtropical below 35°, temperate below 66.5°, polar beyond. "
        "With z, the log-odds of the encoder, the probability is 1 / (1 + exp(−(slope · z + shift))). Slope and shift come "
        "from sites of the training; BSS is that at held-out sites, before and after. A zone without enough sites has no map.",
        _table(
            ("zone", "sites", "held out", "mm", "slope", "shift", "BSS before", "BSS after", "better than climatology"),
            rows,
        ),
    ]


def score_table(card: ModelCard) -> Table:
    """The scores of each group as a table of at most 80 columns."""
    table = Table(
        title="rain in 24 hours at held-out sites",
        caption="rain, AUC, better: of 1 mm. better: sites with a skill (BSS) above climatology",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    headings = _headings(card.overall)
    kept = [place for place, heading in enumerate(headings) if heading != "Brier"]
    table.add_column(headings[0], no_wrap=True, overflow="ellipsis", max_width=24)
    for place in kept[1:]:
        table.add_column(headings[place].removesuffix(" mm"), no_wrap=True, justify="right")
    for each in card.scores:
        row = _row(each, digits=2)
        table.add_row(*(Text(row[place]) for place in kept))
    return table


def _headings(scores: GroupScores) -> list[str]:
    others = [f"BSS {each.mm:g} mm" for each in scores.amounts if each.mm != MAIN_MM]
    return ["group", "windows", "rain", "Brier", "BSS", "AUC", *others, "better"]


def _row(scores: GroupScores, digits: int = 3) -> list[str]:
    """The cells of one group, as `_headings` names them."""
    main = next(each for each in scores.amounts if each.mm == MAIN_MM)
    share = f"{main.events / main.windows:.{digits - 2}%}" if main.windows else NO_VALUE
    others = [_number(each.skill, digits) for each in scores.amounts if each.mm != MAIN_MM]
    own = [_number(each, digits) for each in (main.brier, main.skill, main.auc)]
    return [scores.group, f"{main.windows:,}", share, *own, *others, _better(main)]


def _better(scores: SkillByAmount) -> str:
    return f"{scores.sites_better} of {scores.sites_judged}"


def _number(value: float | None, digits: int = 3) -> str:
    return NO_VALUE if value is None else f"{value:.{digits}f}"


def _words(each: Iterable[str]) -> str:
    *most, last = each
    return f"{', '.join(most)} and {last}" if most else last


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    heading = [*headings]
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(
        f"| {' | '.join(' '.join(str(cell).replace('|', '/').split()) for cell in row)} |" for row in lines
    )
